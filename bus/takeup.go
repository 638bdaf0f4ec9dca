package bus

import (
	"errors"
	"time"
)

// takeUp is how a turn of a message takes the lease of its record in the same
// write, for the worker of this process: what the message asks for then begins when
// that is on disk, and needs neither the watcher nor two more writes.
//
//	message ─► place in the worker ─► CAS {state, last, outbox, lease} ─► timer, outbox ─► ack
//	                                             │
//	                                             └─► step of the worker, under the lease
//
// Killed after the CAS: the lease expires, and another worker takes the record over,
// as if the worker had been killed.
type takeUp[T any] struct {
	s      *State[T]
	key    Key
	worker *worker[T]    // in which a place is reserved; nil: none
	lease  *Lease[T]     // of the turn that is under way; nil: it takes none
	began  chan struct{} // closed when the message's own writes are done; nil: no step has begun
}

// TakeUp has this write take the record's lease for the worker of this process,
// which does the first step as soon as the record is written, under a lease of the
// returned epoch. It is false, and changes nothing, outside the message path, and
// when no worker runs here that could begin at once, or somebody holds the lease:
// then any worker takes the record up that sees the change.
func (t *Turn[T]) TakeUp() (epoch uint64, ok bool) {
	if t.take == nil {
		return 0, false
	}
	return t.take()
}

// offer is TakeUp for a turn on e.
func (u *takeUp[T]) offer(e entry) (epoch uint64, ok bool) {
	s := u.s
	now := s.b.opts.Clock.Now().UTC()
	if e.Lease.held(now) && !s.b.abandoned(e.Lease.Owner) && !s.left.is(u.key, e.Lease) && !broken.lease {
		return 0, false
	}
	if u.worker == nil {
		w := s.worker.Load()
		if w == nil || !w.reserve(u.key) {
			return 0, false
		}
		u.worker = w
	}
	u.lease = &Lease[T]{s: s, key: u.key, owner: s.b.opts.Instance, epoch: e.Lease.Epoch + 1, ttl: u.worker.o.TTL, renewed: now}
	return u.lease.epoch, true
}

// holder is the lease that the turn takes, in the entry.
func (l *Lease[T]) holder() holder {
	return holder{Owner: l.owner, Epoch: l.epoch, Until: l.renewed.Add(l.ttl)}
}

// stored begins the step, if the entry was written with the lease.
func (u *takeUp[T]) stored(e entry, rev uint64, err error) {
	l := u.lease
	if l == nil {
		return
	}
	if err != nil {
		if !errors.Is(err, ErrConflict) {
			u.s.left.asked(u.key, l.holder()) // it may be written
		}
		return
	}
	u.s.left.forget(u.key)
	if l.remember(e, rev) != nil {
		u.s.left.given(u.key, l.owner, l.epoch)
		return
	}
	u.began = make(chan struct{})
	l.after = u.began
	w := u.worker
	u.worker = nil
	go func() { w.done <- w.hold(l) }()
}

// end gives back a place that was not used, and lets the step write.
func (u *takeUp[T]) end() {
	if u.began != nil {
		close(u.began)
	}
	if u.worker != nil {
		u.worker.done <- finished[T]{rec: Record[T]{Key: u.key}, unused: true}
	}
}

// reservation asks a worker for a place for a record.
type reservation struct {
	key    Key
	answer chan bool
}

// reserve asks for a place for the record of k. Who gets it begins a step with it or
// gives it back, by sending to done.
func (w *worker[T]) reserve(k Key) bool {
	r := reservation{k, make(chan bool, 1)}
	select {
	case w.places <- r:
		return <-r.answer
	case <-w.over:
		return false
	}
}

// place answers a reservation.
func (w *worker[T]) place(k Key, now time.Time) bool {
	j := w.jobs[k]
	if w.running >= w.o.Concurrency || j != nil && (j.running || now.Before(j.notYet)) {
		return false
	}
	if j == nil {
		j = &job[T]{rec: Record[T]{Key: k}}
		w.jobs[k] = j
	}
	j.running = true
	w.running++
	return true
}
