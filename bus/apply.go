package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// casAttempts is how often a write is tried again after somebody else changed
// the record in between.
const casAttempts = 50

// incarnationDelay is how long a message waits whose stream is not the one that
// the record knows: nothing but an operator's rebase helps.
const incarnationDelay = 30 * time.Second

// Apply changes the record of d's key for d, and publishes what follows from it.
// It returns nil when all of that is acknowledged: the handler may return nil,
// too. fn must be repeatable: it is called again when the record was changed
// meanwhile, and its error changes nothing.
//
// A delivery that was applied already (sequence == last) publishes its events
// again, without fn; an older one does nothing; one of another incarnation of
// the stream is given back with ErrIncarnation.
func (s *State[T]) Apply(ctx context.Context, d Delivery, fn func(t *Turn[T]) error) error {
	u := &takeUp[T]{s: s, key: d.Key}
	defer u.end()
	err := s.retryConflicts(ctx, d.Key, func() error { return s.applyOnce(ctx, d, u, fn) })
	if errors.Is(err, ErrTooLarge) {
		err = Terminal(err) // it is as large the next time
	}
	return err
}

func (s *State[T]) applyOnce(ctx context.Context, d Delivery, u *takeUp[T], fn func(t *Turn[T]) error) error {
	e, rev, err := s.load(ctx, d.Key)
	if err != nil {
		return err
	}
	switch {
	case e.Last.Incarnation != "" && e.Last.Incarnation != d.Incarnation:
		return RetryAfter(fmt.Errorf("apply event %d to %s: %w: is %s, expected %s", d.Sequence, d.Key, ErrIncarnation, d.Incarnation, e.Last.Incarnation), incarnationDelay)
	case d.Sequence < e.Last.Sequence:
		return nil
	case d.Sequence == e.Last.Sequence:
		return s.again(ctx, d.Key, e, rev)
	}
	u.lease = nil
	t, next, err := take(d.Key, e, turnTime(s.opts.Handler, d, e), messageOrigin(s.opts.Handler, d), func(t *Turn[T]) error {
		t.take = func() (uint64, bool) { return u.offer(e) }
		return fn(t)
	})
	if err != nil {
		return err
	}
	if u.lease != nil {
		next.Lease = u.lease.holder()
	}
	next.Last = position{Incarnation: d.Incarnation, Sequence: d.Sequence}
	// The message of an older event is acknowledged, so that event is published.
	next.Outbox = slices.DeleteFunc(slices.Clone(e.Outbox), func(o owed) bool { return !o.fromWork() })
	kept := len(next.Outbox)
	next, rev, err = s.commit(ctx, commitment[T]{turn: t, before: e, rev: rev, next: next, step: s.opts.Handler, stored: u.stored})
	if err != nil || kept == 0 {
		return err
	}
	_, err = s.clear(ctx, d.Key, next, rev)
	return err
}

// turnTime is the time of a delivery's turn: that of the stream. A timer of the
// record's deadline is never early, though the clock that published it may have
// been ahead of the stream's: JetStream would take the next one for a copy, and
// the deadline would not be met for as long as it remembers message ids.
func turnTime(handler string, d Delivery, e entry) time.Time {
	if d.Event.Type() != events.TypeTimerFired || e.Due.IsZero() {
		return d.StreamTime
	}
	p, err := events.Decode[events.TimerFired](d.Event)
	if err != nil || p.Handler != handler || !p.DueAt.Equal(e.Due) {
		return d.StreamTime
	}
	return later(d.StreamTime, e.Due)
}

// again publishes what a message led to that was applied before.
func (s *State[T]) again(ctx context.Context, k Key, e entry, rev uint64) error {
	if broken.outbox {
		return nil
	}
	if err := s.announce(ctx, k, e, !e.Due.IsZero()); err != nil {
		return err
	}
	s.b.opts.OnStep(s.opts.Handler + "/publish/after")
	if !e.owesWork() {
		return nil
	}
	_, err := s.clear(ctx, k, e, rev)
	return err
}

// settle implements keeper.
func (s *State[T]) settle(ctx context.Context, d Delivery) (bool, error) {
	e, rev, err := s.load(ctx, d.Key)
	if err != nil || e.Last.Incarnation != d.Incarnation || e.Last.Sequence < d.Sequence {
		return false, err
	}
	if e.Last.Sequence == d.Sequence {
		err = s.again(ctx, d.Key, e, rev)
	}
	return err == nil, err
}

// Amend changes the record of k outside a message. op identifies the operation:
// the same op on the same key emits the same event ids. fn must be repeatable.
// Events of earlier turns that may not be published yet go first.
func (s *State[T]) Amend(ctx context.Context, k Key, op string, fn func(t *Turn[T]) error) error {
	return s.retryConflicts(ctx, k, func() error {
		e, rev, err := s.load(ctx, k)
		if err != nil {
			return err
		}
		_, _, err = s.work(ctx, k, op, e, rev, nil, fn)
		return err
	})
}

// work is one attempt of the work path. lease, if not nil, changes the lease in
// the entry that is written. It returns the entry and its revision afterwards.
func (s *State[T]) work(ctx context.Context, k Key, op string, e entry, rev uint64, lease func(*holder, time.Time), fn func(*Turn[T]) error) (entry, uint64, error) {
	t, next, err := take(k, e, s.b.opts.Clock.Now(), workOrigin(s.opts.Handler, op), fn)
	if err != nil {
		return e, rev, err
	}
	if next.Outbox, err = s.stillOwed(ctx, k, e); err != nil {
		return e, rev, err
	}
	if lease != nil {
		lease(&next.Lease, s.b.opts.Clock.Now().UTC())
	} else if len(t.out) == 0 && len(next.Outbox) == 0 && bytes.Equal(next.State, e.State) {
		return e, rev, nil // nothing to write
	}
	next, rev, err = s.commit(ctx, commitment[T]{turn: t, before: e, rev: rev, next: next, step: s.opts.Handler + "/" + opName(op)})
	if err != nil {
		return e, rev, err
	}
	// Without this, a later start would publish the events again when JetStream no
	// longer recognises them.
	if rev, err = s.clear(ctx, k, next, rev); err != nil {
		return e, rev, err
	}
	next.Outbox = nil
	return next, rev, nil
}

// opName is the kind of an operation: "create:node-1" is "create".
func opName(op string) string {
	if i := strings.IndexAny(op, ":/"); i >= 0 {
		return op[:i]
	}
	return op
}

// commitment is a turn on its way into the bucket.
type commitment[T any] struct {
	turn   *Turn[T]
	before entry
	rev    uint64
	next   entry // without the events of the turn
	step   string
	stored func(e entry, rev uint64, err error) // told how the write went; nil: nobody is
}

// commit writes the entry, arms its timer, and publishes its outbox. It returns
// the entry and its revision.
func (s *State[T]) commit(ctx context.Context, c commitment[T]) (entry, uint64, error) {
	k := c.turn.Key
	for _, e := range c.turn.out {
		// What can't be published must not get into an outbox.
		if _, err := s.b.encode(ctx, e); err != nil {
			err = fmt.Errorf("emit for %s: %w", k, err)
			if errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
				return c.next, 0, err // its data could not be stored apart
			}
			return c.next, 0, Terminal(err)
		}
		c.next.Outbox = append(c.next.Outbox, owed{Sequence: c.turn.origin.sequence, Event: e})
	}
	if err := s.opts.deadline(k, &c.next, c.turn.written()); err != nil {
		return c.next, 0, err
	}
	s.b.opts.OnStep(c.step + "/write/before")
	rev, err := s.store(ctx, k, c.next, c.rev)
	if err == nil {
		s.b.opts.OnStep(c.step + "/write/after")
	}
	if c.stored != nil {
		c.stored(c.next, rev, err)
	}
	if err != nil {
		return c.next, 0, err
	}
	if err := s.announce(ctx, k, c.next, !c.next.Due.Equal(c.before.Due)); err != nil {
		return c.next, 0, err
	}
	s.b.opts.OnStep(c.step + "/publish/after")
	return c.next, rev, nil
}

// announce arms the timer of an entry that is written, if arm says so, and publishes
// its outbox. They are two streams and side by side: neither means anything to the
// other, and whoever comes after a killed process does both again.
func (s *State[T]) announce(ctx context.Context, k Key, e entry, arm bool) error {
	if !arm {
		return s.b.Publish(ctx, e.owedEvents()...)
	}
	if len(e.Outbox) == 0 {
		return s.arm(ctx, k, e.Due)
	}
	armed := make(chan error, 1)
	go func() { armed <- s.arm(ctx, k, e.Due) }()
	err := s.b.Publish(ctx, e.owedEvents()...)
	return errors.Join(err, <-armed)
}

// stillOwed returns the events of e that are not known to be published. Those of
// a message that is acknowledged are.
func (s *State[T]) stillOwed(ctx context.Context, k Key, e entry) ([]owed, error) {
	if !slices.ContainsFunc(e.Outbox, func(o owed) bool { return !o.fromWork() }) {
		return slices.Clone(e.Outbox), nil
	}
	acked, err := s.b.acknowledged(ctx, s.opts.Handler, k, e.Last.Sequence)
	if err != nil {
		return nil, err
	}
	if !acked {
		return slices.Clone(e.Outbox), nil
	}
	return slices.DeleteFunc(slices.Clone(e.Outbox), func(o owed) bool { return !o.fromWork() }), nil
}

// flush publishes and empties the outbox of a record whose writer was killed in
// between.
func (s *State[T]) flush(ctx context.Context, k Key) error {
	e, rev, err := s.load(ctx, k)
	if err != nil || !e.owesWork() {
		return err
	}
	if e.Outbox, err = s.stillOwed(ctx, k, e); err != nil {
		return err
	}
	if err := s.b.Publish(ctx, e.owedEvents()...); err != nil {
		return err
	}
	_, err = s.clear(ctx, k, e, rev)
	return err
}

// clear empties the outbox that was read with rev and is published, and returns
// the new revision. If somebody changed the record meanwhile, they have taken
// the outbox over.
func (s *State[T]) clear(ctx context.Context, k Key, e entry, rev uint64) (uint64, error) {
	if len(e.Outbox) == 0 {
		return rev, nil
	}
	e.Outbox = nil
	now, err := s.store(ctx, k, e, rev)
	if errors.Is(err, ErrConflict) {
		return rev, nil
	}
	if err != nil {
		return rev, fmt.Errorf("note that the events are published: %w", err)
	}
	return now, nil
}

func (s *State[T]) retryConflicts(ctx context.Context, k Key, once func() error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	for range casAttempts {
		err := once()
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("write record of %s: %w: changed by others %d times in a row", k, ErrUnavailable, casAttempts)
}
