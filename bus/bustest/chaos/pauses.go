//go:build unix

package chaos

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/utils/clock"
)

// killer ends this process between two lines of the bus.
type killer struct {
	log *Log

	mu   sync.Mutex
	at   string
	left int
}

// listen takes orders "step count", and ends the process with its parent.
func (k *killer) listen(in *os.File) {
	for s := bufio.NewScanner(in); s.Scan(); {
		step, n, _ := strings.Cut(s.Text(), " ")
		k.mu.Lock()
		k.at = step
		k.left, _ = strconv.Atoi(n)
		k.mu.Unlock()
	}
	os.Exit(3)
}

func (k *killer) step(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if name != k.at {
		return
	}
	if k.left--; k.left > 0 {
		return
	}
	k.log.Add(Line{What: WhatStep, Note: name})
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// pauses notices that this process did not run for a while.
type pauses struct {
	limit time.Duration
	seen  atomic.Int64 // when it was last seen running
	last  atomic.Int64 // when the last pause ended
}

func watchPauses(log *Log, ackWait time.Duration, server bool) *pauses {
	p := &pauses{limit: ackWait / 4}
	p.seen.Store(time.Now().UnixMicro())
	go func() {
		for range time.Tick(p.limit / 10) {
			if gap := p.note(); gap > 0 {
				log.Add(Line{What: WhatStall, Micros: gap.Microseconds(), Server: server})
			}
		}
	}()
	return p
}

func (p *pauses) note() time.Duration {
	now := time.Now().UnixMicro()
	gap := time.Duration(now-p.seen.Swap(now)) * time.Microsecond
	if gap < p.limit {
		return 0
	}
	p.last.Store(now)
	return gap
}

// since reports whether there was a pause after t.
func (p *pauses) since(t time.Time) bool {
	p.note()
	return p.last.Load() >= t.UnixMicro()
}

// skewed is a clock that is wrong.
type skewed struct {
	clock.RealClock
	by time.Duration
}

func (s skewed) Now() time.Time                  { return time.Now().Add(s.by) }
func (s skewed) Since(t time.Time) time.Duration { return s.Now().Sub(t) }
