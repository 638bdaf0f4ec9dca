package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// tombstoneAge is how long the position of a deleted record is kept: a message
// that is still redelivered after that finds no record, as a new one would.
const tombstoneAge = 24 * time.Hour

// keep implements keeper: it repairs what a killed process left behind. At its
// start it arms every timer; then, and every Times.Sweep, it publishes events
// that work still owes, wakes overdue records, and forgets old tombstones.
func (s *State[T]) keep(ctx context.Context) {
	if s.readOnly || !s.keeping.CompareAndSwap(false, true) {
		return
	}
	defer s.keeping.Store(false)
	tick := s.b.opts.Clock.NewTicker(s.b.opts.Times.Sweep)
	defer tick.Stop()
	for first := true; ctx.Err() == nil; first = false {
		if err := s.sweep(ctx, first); err != nil && ctx.Err() == nil {
			s.b.metrics.failed("bus")
			s.b.opts.Logger.WarnContext(ctx, "sweep of the records incomplete, it will be repeated", "handler", s.opts.Handler, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C():
		}
	}
}

func (s *State[T]) sweep(ctx context.Context, armAll bool) error {
	var errs []error
	err := s.each(ctx, func(k Key, e entry, rev uint64) error {
		if err := s.sweepOne(ctx, k, e, rev, armAll); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k, err))
			if errors.Is(err, ErrUnavailable) {
				return err // the rest would fail, too
			}
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

func (s *State[T]) sweepOne(ctx context.Context, k Key, e entry, rev uint64, armAll bool) error {
	now := s.b.opts.Clock.Now().UTC()
	if e.owesWork() {
		if err := s.flush(ctx, k); err != nil {
			return fmt.Errorf("publish owed events: %w", err)
		}
	}
	switch {
	case !e.Due.IsZero() && !now.Before(e.Due):
		ev, err := timer{Handler: s.opts.Handler, Cluster: k.Cluster, Key: k.Name, DueAt: e.Due}.firedEvent()
		if err != nil {
			return fmt.Errorf("wake overdue record: %w", err)
		}
		if err := s.b.Publish(ctx, ev); err != nil {
			return fmt.Errorf("wake overdue record: %w", err)
		}
	case !e.Due.IsZero() && armAll:
		return s.arm(ctx, k, e.Due)
	case !e.exists() && e.Last.Sequence > 0 && len(e.Outbox) == 0 && !e.Lease.held(now) && now.Sub(e.Now) > tombstoneAge:
		acked, err := s.b.acknowledged(ctx, s.opts.Handler, k, e.Last.Sequence)
		if err != nil || !acked {
			return err
		}
		return s.forget(ctx, k, rev)
	}
	return nil
}

func (s *State[T]) forget(ctx context.Context, k Key, rev uint64) error {
	name, err := bucketKey(k)
	if err != nil {
		return err
	}
	ctx, cancel := s.b.bound(ctx)
	defer cancel()
	err = s.kv.Purge(ctx, name, jetstream.LastRevision(rev))
	if isWrongLast(err) {
		return nil // it lives again
	}
	if err != nil {
		return fmt.Errorf("forget deleted record: %w", unavailable(err))
	}
	return nil
}

// acknowledged reports whether a handler has acknowledged the message with that
// sequence of the key's partition. A handler without consumer has not.
func (b *Bus) acknowledged(ctx context.Context, handler string, k Key, seq uint64) (bool, error) {
	p, err := PartitionOf(k)
	if err != nil {
		return false, err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	c, err := b.stream.Consumer(ctx, consumerName(handler, p)) // reads its info
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("consumer %s: %w", consumerName(handler, p), unavailable(err))
	}
	return c.CachedInfo().AckFloor.Stream >= seq, nil
}
