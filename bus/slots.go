package bus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// slots limit how many messages a process handles at once. When the last one is
// taken, the open pulls are ended, so that messages go to processes with room:
// more processes mean more work done.
type slots struct {
	mu     sync.Mutex
	free   int
	freed  chan struct{} // closed when a slot becomes free
	nextID int
	onFull map[int]func()
}

func newSlots(n int) *slots {
	s := &slots{free: n, freed: make(chan struct{}), onFull: map[int]func(){}}
	close(s.freed)
	return s
}

// take takes a slot if there is one.
func (s *slots) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		return false
	}
	s.free--
	if s.free == 0 {
		s.freed = make(chan struct{})
		for _, fn := range s.onFull {
			fn()
		}
	}
	return true
}

func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.free == 1 {
		close(s.freed)
	}
}

func (s *slots) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free == 0
}

// wait waits for a free slot, without taking it.
func (s *slots) wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		free, freed := s.free, s.freed
		s.mu.Unlock()
		if free > 0 {
			return ctx.Err()
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch calls fn whenever the last slot is taken, until the returned function is
// called. fn must not block or use the slots.
func (s *slots) watch(fn func()) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.onFull[id] = fn
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.onFull, id)
	}
}

// liveness notices that this process was frozen: stopped by a signal, a suspended
// machine, a starved container. A message that arrived meanwhile has waited in a
// buffer, and may belong to another process by now.
type liveness struct {
	clk    clock.WithTicker
	period time.Duration
	start  time.Time
	seen   atomic.Int64 // when the process was last seen running, since start
	thawed atomic.Int64 // when the last freeze ended, since start; -1: never
}

func newLiveness(clk clock.WithTicker, ackWait time.Duration) *liveness {
	l := &liveness{clk: clk, period: ackWait, start: clk.Now()}
	l.thawed.Store(-1)
	return l
}

func (l *liveness) run(ctx context.Context) {
	tick := l.clk.NewTicker(l.period / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
			l.note()
		}
	}
}

// note records that the process runs now.
func (l *liveness) note() {
	now := int64(elapsed(l.start, l.clk.Now()))
	if seen := l.seen.Swap(now); now-seen > int64(l.period)/4 {
		l.thawed.Store(now)
	}
}

// suspicious reports whether a message that was just received may have waited
// through a freeze.
func (l *liveness) suspicious() bool {
	l.note()
	thawed := l.thawed.Load()
	return thawed >= 0 && l.seen.Load()-thawed < int64(l.period)
}

// elapsed is the time between two instants by the monotonic or the wall clock,
// whichever says more: the former stands still while a machine sleeps.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// broadcast wakes everybody who waits for the next time something happens.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// next returns a channel that is closed the next time.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
