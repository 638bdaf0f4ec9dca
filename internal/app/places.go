package app

import (
	"os"
	"runtime"
	"sync"
)

// placesForDisk is how many goroutines may wait for the disk while as many others
// run as there are cores: the streams of the embedded bus that a claim goes through,
// with some to spare for the positions of consumers and the audit store.
const placesForDisk = 4

var placesOnce sync.Once

// makePlaces has the Go runtime run more goroutines at a time than there are cores.
//
// A goroutine that waits for fsync keeps its place until the runtime's monitor takes
// it away, and that sleeps for up to 10 ms in a process that is mostly idle. With as
// many places as cores, two of them, everything stood still while the bus wrote two
// events to disk, and a claim goes through five such writes. GOMAXPROCS in the
// environment is the operator's word and counts. What this costs: the runtime no
// longer follows a CPU limit that is changed while the process runs.
func makePlaces() {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	placesOnce.Do(func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + placesForDisk) })
}
