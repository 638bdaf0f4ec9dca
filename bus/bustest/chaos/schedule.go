package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

// Fault is a kind of fault.
type Fault string

// The kinds of fault.
const (
	FaultCompete   Fault = "compete"   // one more process works on the same handlers
	FaultKill      Fault = "kill"      // SIGKILL, and a new process later
	FaultKillStep  Fault = "killstep"  // a process kills itself between two lines of the bus
	FaultFreeze    Fault = "freeze"    // SIGSTOP; SIGCONT after its messages and leases went
	FaultStepDown  Fault = "stepdown"  // the leaders of streams and consumers step down
	FaultRestart   Fault = "restart"   // SIGKILL of a server, started again on its directory
	FaultPartition Fault = "partition" // a process and the servers hear nothing of each other
	FaultSlow      Fault = "slow"      // a handler takes longer than AckWait
	FaultPoison    Fault = "poison"    // an event that is never handled
	FaultDuplicate Fault = "duplicate" // an event is published twice, by two publishers
	FaultSkew      Fault = "skew"      // the clock of a process is wrong
	FaultRedrive   Fault = "redrive"   // dead letters are redriven, and processes kill themselves half way
)

// Faults are all kinds.
func Faults() []Fault {
	return []Fault{FaultCompete, FaultKill, FaultKillStep, FaultFreeze, FaultStepDown, FaultRestart,
		FaultPartition, FaultSlow, FaultPoison, FaultDuplicate, FaultSkew, FaultRedrive}
}

// Topology is where the servers run.
type Topology string

// The topologies.
const (
	Embedded Topology = "embedded" // in the first worker, with a listener for the others
	Single   Topology = "single"   // one process
	Cluster  Topology = "cluster"  // three processes, three replicas
)

// Schedule is what a run does.
type Schedule struct {
	Seed     uint64
	Topology Topology
	Times    bus.Times
	Workers  int
	Keys     int
	Load     []Load
	Faults   []Injection
	// Skew is how far the clock of each worker is ahead, for the first and those
	// that replace it.
	Skew []time.Duration
	// Span is how long the load takes.
	Span time.Duration
	// Redrive says that what is set aside is redriven at the end; RedriveKill is at
	// which step of that processes kill themselves, "": at none.
	Redrive     bool
	RedriveKill string
	// Mutant is the rule that the workers break, see Child.
	Mutant string
}

// Load is one event that is published.
type Load struct {
	Key    int
	At     time.Duration
	Hold   time.Duration // how long its handler takes
	Work   time.Duration // how long the effect that it leads to takes; 0: none
	Timer  time.Duration // the deadline that it sets; 0: none
	Poison bool
	Twice  bool
}

// Injection is one fault.
type Injection struct {
	Fault  Fault
	At     time.Duration
	For    time.Duration
	Worker int
	Step   string // for FaultKillStep
	Nth    int    // at which time it is reached
	Abrupt bool   // a partition that ends with broken connections instead of late bytes
}

// Times are the durations of the protocol with AckWait 1 s and all others in
// proportion, except for the sweep, which is twice as frequent.
func Times() bus.Times {
	return bus.Times{
		AckWait:    time.Second,
		PullExpiry: time.Second,
		IdleExpiry: 3 * time.Second,
		Busy:       10 * time.Millisecond,
		BackoffMin: 50 * time.Millisecond,
		BackoffMax: time.Second,
		Retry:      100 * time.Millisecond,
		Handle:     6 * time.Second,
		Request:    time.Second,
		Shutdown:   time.Second,
		Sweep:      3 * time.Second,
		Metrics:    time.Second,
	}
}

// ProductionTimes are the defaults of the bus.
func ProductionTimes() bus.Times {
	return bus.Times{
		AckWait: 10 * time.Second, PullExpiry: 5 * time.Second, IdleExpiry: 30 * time.Second, Busy: 100 * time.Millisecond,
		BackoffMin: 500 * time.Millisecond, BackoffMax: 30 * time.Second, Retry: time.Second, Handle: time.Minute,
		Request: 5 * time.Second, Shutdown: 5 * time.Second, Sweep: time.Minute, Metrics: 10 * time.Second,
	}
}

// leaseTTL is how long a lease lasts, as the product's relation to AckWait is.
func leaseTTL(t bus.Times) time.Duration { return 3 * t.AckWait }

// maxSkew bounds how wrong a clock is. A lease is given up a fifth of its
// duration before it ends: that is for the difference of two clocks, and for the
// time that one process may be late on a busy machine.
func maxSkew(t bus.Times) time.Duration { return leaseTTL(t) / 20 }

// steps are where a process may kill itself.
var steps = []string{
	"provisioning/write/before", "provisioning/write/after", "provisioning/publish/after",
	"draining/write/before", "draining/write/after", "draining/publish/after",
	"provisioning/result/write/before", "provisioning/result/write/after", "provisioning/result/publish/after",
}

// redriveSteps are where a process may kill itself while it redrives.
var redriveSteps = []string{"provisioning/redrive/begun", "provisioning/redrive/copied", "provisioning/redrive/deleted", "provisioning/redrive/closed", "provisioning/redrive/unparked"}

// Plan makes the schedule of a seed. One kind of fault is certain, by the seed's
// remainder; everything else is random.
func Plan(seed uint64, times bus.Times) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x6b337361))
	kinds := Faults()
	certain := kinds[seed%uint64(len(kinds))]
	s := Schedule{
		Seed: seed, Times: times,
		Topology: []Topology{Embedded, Embedded, Single, Single, Cluster}[r.IntN(5)],
		Workers:  2 + r.IntN(2),
		Keys:     6 + r.IntN(15),
		Span:     6 * times.AckWait,
	}
	if certain == FaultStepDown {
		s.Topology = Cluster
	}
	s.addLoad(r, certain)
	s.addFaults(r, certain)
	return s
}

// NextSeed is the next seed with the same certain fault.
func NextSeed(seed uint64) uint64 { return seed + uint64(len(Faults()))*1_000_003 }

func (s *Schedule) addLoad(r *rand.Rand, certain Fault) {
	unit := s.Times.AckWait
	for range 170 + r.IntN(60) {
		l := Load{Key: r.IntN(s.Keys), At: between(r, 0, s.Span), Hold: between(r, 0, unit/40), Twice: r.IntN(20) == 0}
		if r.IntN(6) == 0 {
			l.Work = between(r, unit/50, unit/3)
		}
		if r.IntN(8) == 0 {
			l.Timer = between(r, unit/5, 2*unit)
		}
		s.Load = append(s.Load, l)
	}
	slices.SortStableFunc(s.Load, func(a, b Load) int { return cmp.Compare(a.At, b.At) })
	some := func() *Load { return &s.Load[r.IntN(len(s.Load))] }
	if certain == FaultSlow || r.IntN(3) == 0 {
		some().Hold = between(r, unit*3/2, unit*5/2)
	}
	if certain == FaultDuplicate {
		some().Twice = true
	}
	if certain == FaultPoison || certain == FaultRedrive || r.IntN(5) == 0 {
		some().Poison = true
		if certain == FaultRedrive || r.IntN(2) == 0 {
			s.Redrive = true
			s.RedriveKill = redriveSteps[r.IntN(len(redriveSteps))]
		}
	}
}

func (s *Schedule) addFaults(r *rand.Rand, certain Fault) {
	s.Skew = make([]time.Duration, s.Workers+1)
	if limit := maxSkew(s.Times); certain == FaultSkew || r.IntN(4) == 0 {
		for i := range s.Skew {
			s.Skew[i] = between(r, -limit, limit)
		}
	}
	kinds := []Fault{FaultCompete, FaultKill, FaultKillStep, FaultFreeze, FaultRestart, FaultPartition}
	if s.Topology == Cluster {
		kinds = append(kinds, FaultStepDown)
	}
	var chosen []Fault
	if slices.Contains(kinds, certain) {
		chosen = append(chosen, certain)
	}
	for range 2 + r.IntN(2) {
		chosen = append(chosen, kinds[r.IntN(len(kinds))])
	}
	unit := s.Times.AckWait
	for _, f := range chosen {
		s.Faults = append(s.Faults, Injection{
			Fault: f, At: between(r, unit/2, s.Span-unit), Worker: r.IntN(s.Workers),
			For:  between(r, unit*5/4, leaseTTL(s.Times)+unit/2),
			Step: steps[r.IntN(len(steps))], Nth: 1 + r.IntN(8), Abrupt: r.IntN(2) == 0,
		})
	}
	slices.SortStableFunc(s.Faults, func(a, b Injection) int { return cmp.Compare(a.At, b.At) })
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)+1))
}

// Has reports whether a kind of fault is injected.
func (s Schedule) Has(f Fault) bool {
	return slices.ContainsFunc(s.Faults, func(i Injection) bool { return i.Fault == f })
}

// poisoned reports whether a key gets an event that can't be handled.
func (s Schedule) poisoned(key string) bool {
	return slices.ContainsFunc(s.Load, func(l Load) bool { return l.Poison && keyName(l.Key) == key })
}

func (s Schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s, %d workers, %d keys, %d events", s.Seed, s.Topology, s.Workers, s.Keys, len(s.Load))
	for _, f := range s.Faults {
		fmt.Fprintf(&b, ", %s at %s", f.Fault, f.At.Round(time.Millisecond))
	}
	return b.String()
}
