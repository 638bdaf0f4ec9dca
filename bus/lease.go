package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// leaseMargin is the share of a lease after which its owner stops without a
// renewal. The rest is for the difference between the clocks of two machines.
const leaseMargin = 0.8

// Lease is the right to work on a record for a while. It is part of the record:
// taking, renewing and using it are compare-and-swaps, so that an owner that was
// frozen can't write after somebody else took over.
type Lease[T any] struct {
	s      *State[T]
	key    Key
	owner  string
	epoch  uint64
	ttl    time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
	after  <-chan struct{} // closed when the owner may write; nil: it may

	mu      sync.Mutex // one change at a time
	renewed time.Time
	entry   entry     // as last read or written
	rec     Record[T] // the same, for others
	changed bool      // since then, by somebody else
	commit  int       // how many commits succeeded
}

// Acquire takes the lease of k's record for ttl; ErrLeased when another owner
// holds it. The record need not exist. The lease's context derives from ctx.
func (s *State[T]) Acquire(ctx context.Context, k Key, ttl time.Duration) (*Lease[T], error) {
	l := &Lease[T]{s: s, key: k, owner: s.b.opts.Instance, ttl: ttl}
	err := s.retryConflicts(ctx, k, func() error {
		e, rev, err := s.load(ctx, k)
		if err != nil {
			return err
		}
		now := s.b.opts.Clock.Now().UTC()
		if e.Lease.held(now) && !s.b.abandoned(e.Lease.Owner) && !s.left.is(k, e.Lease) && !broken.lease {
			s.left.forget(k)
			return fmt.Errorf("lease of %s: %w: %s until %s", k, ErrLeased, e.Lease.Owner, e.Lease.Until.Format(time.RFC3339))
		}
		l.epoch, l.renewed = e.Lease.Epoch+1, now
		e.Lease = holder{Owner: l.owner, Epoch: l.epoch, Until: now.Add(ttl)}
		if rev, err = s.store(ctx, k, e, rev); err != nil {
			if !errors.Is(err, ErrConflict) {
				s.left.asked(k, e.Lease)
			}
			return err
		}
		s.left.forget(k)
		return l.remember(e, rev)
	})
	if err != nil {
		return nil, err
	}
	l.begin(ctx)
	return l, nil
}

// begin starts the time of a lease that was written.
func (l *Lease[T]) begin(ctx context.Context) {
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	go l.expire()
}

// abandoned reports whether the owner of a lease can't be alive.
func (b *Bus) abandoned(owner string) bool { return b.opts.Sole && owner != b.opts.Instance }

// Key is the key of the record.
func (l *Lease[T]) Key() Key { return l.key }

// Epoch is a fencing token: every owner of the record's lease has a higher one
// than all before it. A world that can compare refuses a lower one.
func (l *Lease[T]) Epoch() uint64 { return l.epoch }

// Record is the state as of the last read or commit.
func (l *Lease[T]) Record() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec.State
}

// Context ends when the lease was lost, released, or not renewed for 0.8 of its
// duration: effects must use it.
func (l *Lease[T]) Context() context.Context { return l.ctx }

// Confirm renews the lease, and brings Record up to date: what an owner does right
// before an effect. ErrLeaseLost means that somebody else may have taken over.
func (l *Lease[T]) Confirm(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return l.lost()
	}
	return l.change(ctx, func(e entry, rev uint64) error {
		now := l.s.b.opts.Clock.Now().UTC()
		e.Lease.Until = now.Add(l.ttl)
		rev, err := l.s.store(ctx, l.key, e, rev)
		if err != nil {
			return err
		}
		l.renewed = now
		return l.remember(e, rev)
	})
}

// Commit is Amend by the owner of the lease, and renews it. ErrLeaseLost means
// that nothing was written, because the lease was taken over.
func (l *Lease[T]) Commit(ctx context.Context, op string, fn func(t *Turn[T]) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(ctx, func(e entry, rev uint64) error {
		var renewed time.Time
		renew := func(h *holder, now time.Time) {
			h.Until = now.Add(l.ttl)
			renewed = now
		}
		var refused error
		e, now, err := l.s.work(ctx, l.key, op, e, rev, renew, func(t *Turn[T]) error {
			refused = fn(t)
			return refused
		})
		if refused != nil {
			return l.judge(ctx, rev, refused)
		}
		if err != nil {
			return err
		}
		l.commit++
		l.renewed = renewed // not before it is written: others count from what they read
		return l.remember(e, now)
	})
}

// judge returns why nothing was written to the record of a revision, or ErrConflict
// when that was not its last one any more.
func (l *Lease[T]) judge(ctx context.Context, rev uint64, why error) error {
	if err := l.reload(ctx); err != nil {
		return err
	}
	if l.rec.Revision != rev {
		return fmt.Errorf("%w: %w", ErrConflict, why)
	}
	return why
}

func (l *Lease[T]) commits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commit
}

// Release gives the lease back; the context ends. A lease that was lost is
// released already. After an error this process may take it again at once, others
// when it expires.
func (l *Lease[T]) Release(ctx context.Context) error {
	l.cancel(context.Canceled)
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.change(ctx, func(e entry, rev uint64) error {
		// The epoch stays: the next owner's is higher.
		e.Lease.Owner, e.Lease.Until = "", time.Time{}
		rev, err := l.s.store(ctx, l.key, e, rev)
		if err != nil {
			return err
		}
		return l.remember(e, rev)
	})
	if errors.Is(err, ErrLeaseLost) {
		return nil
	}
	if err != nil {
		l.s.left.given(l.key, l.owner, l.epoch)
	}
	return err
}

// change writes the entry as its owner, by compare-and-swap: first as this process
// knows it, and when somebody else has changed it, as it is.
func (l *Lease[T]) change(ctx context.Context, write func(e entry, rev uint64) error) error {
	if l.after != nil {
		// The message that it was taken with arms the timer and publishes its events first.
		select {
		case <-l.after:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.s.retryConflicts(ctx, l.key, func() error {
		if l.changed {
			if err := l.reload(ctx); err != nil {
				return err
			}
		}
		err := write(l.entry, l.rec.Revision)
		// After any error it may be written, or not.
		l.changed = err != nil
		return err
	})
}

// reload reads the entry and makes sure that the lease is still ours. That it
// expired does not matter as long as nobody took it: the write is a
// compare-and-swap.
func (l *Lease[T]) reload(ctx context.Context) error {
	e, rev, err := l.s.load(ctx, l.key)
	switch {
	case err != nil:
		return err
	case rev < l.rec.Revision:
		// Whoever answered does not know yet what we wrote, our lease perhaps.
		return fmt.Errorf("read record of %s: %w: revision %d, expected at least %d", l.key, ErrUnavailable, rev, l.rec.Revision)
	case (e.Lease.Owner != l.owner || e.Lease.Epoch != l.epoch) && !broken.lease:
		l.cancel(ErrLeaseLost)
		return l.lost()
	}
	l.changed = false
	return l.remember(e, rev)
}

func (l *Lease[T]) lost() error { return fmt.Errorf("lease of %s: %w", l.key, ErrLeaseLost) }

func (l *Lease[T]) remember(e entry, rev uint64) error {
	r, err := l.s.record(l.key, e, rev)
	if err == nil {
		l.entry, l.rec = e, r
	}
	return err
}

func (l *Lease[T]) record() Record[T] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

// expire ends the context when the lease was not renewed in time.
func (l *Lease[T]) expire() {
	clk := l.s.b.opts.Clock
	limit := time.Duration(leaseMargin * float64(l.ttl))
	timer := clk.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-timer.C():
		}
		l.mu.Lock()
		rest := limit - clk.Since(l.renewed)
		l.mu.Unlock()
		if rest <= 0 {
			l.cancel(ErrLeaseLost)
			return
		}
		timer.Reset(rest)
	}
}
