package bus_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clocktest "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestOneOwnerAtATimeHoldsALease(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(start)
	s := newState(t, func(o *bus.Options) { o.Clock = clk })
	ctx := ctxT(t)
	a, err := s.st.Acquire(ctx, s.key, 10*time.Second)
	require.NoError(t, err)
	require.Equal(t, s.key, a.Key())
	_, err = s.st.Acquire(ctx, s.key, 10*time.Second)
	require.ErrorIs(t, err, bus.ErrLeased)
	require.NoError(t, a.Commit(ctx, "create:n1", count))
	require.Equal(t, 1, a.Record().N)
	clk.Step(5 * time.Second)
	require.NoError(t, a.Confirm(ctx), "renewed")
	clk.Step(6 * time.Second)
	_, err = s.st.Acquire(ctx, s.key, 10*time.Second)
	require.ErrorIs(t, err, bus.ErrLeased, "the renewal counts")
	require.NoError(t, a.Release(ctx))
	require.Error(t, a.Context().Err())

	b, err := s.st.Acquire(ctx, s.key, 10*time.Second)
	require.NoError(t, err)
	require.Equal(t, 1, b.Record().N)
	require.ErrorIs(t, a.Commit(ctx, "create:n1", count), bus.ErrLeaseLost)
	require.ErrorIs(t, a.Confirm(ctx), bus.ErrLeaseLost)
	require.NoError(t, a.Release(ctx), "a lost lease is released already")
	require.Equal(t, 1, s.get(t).N)
}

// A server that follows the bucket's leader may answer with what was there before
// the owner's last write: without its lease.
func TestAnOwnerIsNotDeceivedByAServerThatIsLate(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	other, err := bus.OpenState(ctx, s.b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	require.NoError(t, other.Amend(ctx, s.key, "begin", increment))
	end := bus.ReadLate(s.st)
	l, err := s.st.Acquire(ctx, s.key, time.Minute)
	require.NoError(t, err)
	require.NoError(t, l.Confirm(ctx))
	require.NoError(t, l.Commit(ctx, "create:n1", count))
	require.Equal(t, 2, l.Record().N)

	// Somebody else changes the record, and the late server does not know it yet.
	require.NoError(t, other.Amend(ctx, s.key, "more", increment))
	require.ErrorIs(t, l.Confirm(ctx), bus.ErrUnavailable)
	require.NoError(t, l.Context().Err(), "it is still the owner")
	end()
	require.NoError(t, l.Confirm(ctx))
	require.Equal(t, 3, l.Record().N)
	require.NoError(t, l.Commit(ctx, "create:n2", count))
	require.Equal(t, 4, s.get(t).N)
	end = bus.ReadLate(s.st)
	require.NoError(t, l.Release(ctx))
	end()
	rec, _, err := s.st.Get(ctx, s.key)
	require.NoError(t, err)
	require.Empty(t, rec.LeaseOwner, "it is given back")
}

// What an owner's operation refuses is judged by the record as it is.
func TestAnOwnersOperationIsJudgedByTheRecordAsItIs(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	l, err := s.st.Acquire(ctx, s.key, time.Minute)
	require.NoError(t, err)
	require.NoError(t, s.st.Amend(ctx, s.key, "begin", increment))
	tries := 0
	require.NoError(t, l.Commit(ctx, "create:n1", func(turn *bus.Turn[counter]) error {
		if tries++; turn.State.N == 0 {
			return errors.New("not begun")
		}
		return count(turn)
	}))
	require.Equal(t, 2, tries)
	require.Equal(t, 2, l.Record().N)
	require.ErrorContains(t, l.Commit(ctx, "create:n2", func(*bus.Turn[counter]) error { return errors.New("no") }), "no")
	require.Equal(t, 2, s.get(t).N)
}

func TestALeaseEndsBeforeAnotherOwnerCanTakeIt(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(start)
	s := newState(t, func(o *bus.Options) { o.Clock = clk })
	ctx := ctxT(t)
	a, err := s.st.Acquire(ctx, s.key, 10*time.Second)
	require.NoError(t, err)
	eventually(t, clk.HasWaiters, "the lease watches the clock")
	clk.Step(7900 * time.Millisecond)
	require.NoError(t, a.Context().Err())
	clk.Step(200 * time.Millisecond)
	eventually(t, func() bool { return a.Context().Err() != nil }, "0.8 of the lease is over")
	require.ErrorIs(t, context.Cause(a.Context()), bus.ErrLeaseLost)
	require.ErrorIs(t, a.Confirm(ctx), bus.ErrLeaseLost)
	clk.Step(2 * time.Second)
	b, err := s.st.Acquire(ctx, s.key, 10*time.Second)
	require.NoError(t, err, "a dead owner's lease is taken over")
	require.ErrorIs(t, a.Commit(ctx, "late", count), bus.ErrLeaseLost, "the stale owner writes nothing")
	require.NoError(t, b.Release(ctx))
}

func TestTheMessagePathGoesOnUnderALease(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	l, err := s.st.Acquire(ctx, s.key, 10*time.Second)
	require.NoError(t, err)
	require.NoError(t, s.st.Apply(ctx, s.delivery(t, 1), count))
	require.NoError(t, l.Commit(ctx, "step", count), "the owner commits on top of it")
	require.Equal(t, 2, l.Record().N)
	require.Equal(t, []string{"1", "2"}, s.emitted(t))
}

// toThree is work that is due until it counted to three.
func toThree(_ bus.Key, c counter, _ time.Time) (bool, time.Time) { return c.N < 3, time.Time{} }

func TestAWorkerDoesStepAfterStepAndWakesOnEveryChange(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	var mu sync.Mutex
	steps := map[string]int{}
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{Due: toThree, Step: func(ctx context.Context, l *bus.Lease[counter]) error {
			mu.Lock()
			steps[l.Key().Name]++
			mu.Unlock()
			return l.Commit(ctx, "step:"+num(l.Record().N), count)
		}})
	})
	for i := range 20 {
		require.NoError(t, s.st.Amend(ctx, bus.Key{Cluster: "home", Name: "n" + num(i)}, "begin", func(turn *bus.Turn[counter]) error {
			turn.State.Text = "work"
			return nil
		}))
	}
	eventually(t, func() bool {
		all, err := s.st.All(ctx)
		require.NoError(t, err)
		for _, r := range all {
			if r.State.N != 3 || r.LeaseOwner != "" {
				return false
			}
		}
		return len(all) == 20
	}, "all work is done and every lease given back")
	mu.Lock()
	defer mu.Unlock()
	for name, n := range steps {
		require.Equal(t, 3, n, name)
	}
	require.Len(t, s.emitted(t), 60)
}

func TestAFailingStepIsTriedAgainAndAPanicIsAFailure(t *testing.T) {
	t.Parallel()
	s := newState(t)
	calls := make(chan int, 100)
	n := 0
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{Due: toThree, Step: func(ctx context.Context, l *bus.Lease[counter]) error {
			n++
			calls <- n
			switch n {
			case 1:
				return errors.New("the host is down")
			case 2:
				panic("oops")
			case 3:
				return nil // commits nothing: must not spin
			}
			return l.Commit(ctx, "step:"+num(n), count)
		}})
	})
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "begin", func(turn *bus.Turn[counter]) error { turn.State.Text = "work"; return nil }))
	eventually(t, func() bool { return s.get(t).N == 3 }, "the work is done in the end")
	require.Len(t, calls, 6)
}

func TestWorkForLaterWaitsForItsTime(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(start)
	s := newState(t, func(o *bus.Options) { o.Clock = clk })
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "begin", increment))
	done := make(chan time.Time, 1)
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{
			Due: func(_ bus.Key, c counter, now time.Time) (bool, time.Time) {
				at := start.Add(time.Hour)
				return c.N == 1 && !now.Before(at), at
			},
			Step: func(ctx context.Context, l *bus.Lease[counter]) error {
				done <- clk.Now()
				return l.Commit(ctx, "step", increment)
			},
		})
	})
	eventually(t, func() bool {
		select {
		case at := <-done:
			return !at.Before(start.Add(time.Hour))
		default:
			clk.Step(10 * time.Minute)
			return false
		}
	}, "the step runs once its time has come")
}

func TestTheWorkOfADeadProcessIsTakenOver(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	dead := bustest.Open(t, server, func(o *bus.Options) { o.Instance = "dead" })
	alive := bustest.Open(t, server, func(o *bus.Options) { o.Instance = "alive" })
	ctx := ctxT(t)
	open := func(b *bus.Bus) *bus.State[counter] {
		st, err := bus.OpenState(ctx, b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
		require.NoError(t, err)
		return st
	}
	k := bus.Key{Cluster: "home", Name: "n1"}
	was := open(dead)
	require.NoError(t, was.Amend(ctx, k, "begin", func(turn *bus.Turn[counter]) error { turn.State.Text = "work"; return nil }))
	l, err := was.Acquire(ctx, k, 500*time.Millisecond) // and is never heard of again
	require.NoError(t, err)
	st := open(alive)
	background(t, func(ctx context.Context) error {
		return st.RunWorker(ctx, bus.WorkerOptions[counter]{Due: toThree, Step: func(ctx context.Context, l *bus.Lease[counter]) error {
			return l.Commit(ctx, "step:"+num(l.Record().N), count)
		}})
	})
	eventually(t, func() bool {
		r, ok, err := st.Get(ctx, k)
		return err == nil && ok && r.State.N == 3
	}, "another process finishes it")
	require.ErrorIs(t, l.Commit(ctx, "late", count), bus.ErrLeaseLost)
	require.Error(t, l.Context().Err())
}

func TestALongStepKeepsItsLease(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	require.NoError(t, s.st.Amend(ctx, s.key, "begin", increment))
	renewed := make(chan struct{})
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{
			TTL: 300 * time.Millisecond,
			Due: func(_ bus.Key, c counter, _ time.Time) (bool, time.Time) { return c.N == 1, time.Time{} },
			Step: func(ctx context.Context, l *bus.Lease[counter]) error {
				select {
				case <-renewed:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				return l.Commit(ctx, "step", increment)
			},
		})
	})
	var first time.Time
	eventually(t, func() bool {
		r, _, err := s.st.Get(ctx, s.key)
		require.NoError(t, err)
		if first.IsZero() {
			first = r.LeaseUntil
		}
		return r.LeaseUntil.Sub(first) > 600*time.Millisecond
	}, "the lease is renewed beyond twice its duration")
	close(renewed)
	eventually(t, func() bool { return s.get(t).N == 2 }, "the step commits")
}

func TestTheSoleUserOfABusTakesUpTheWorkOfItsDeadFormerSelfAtOnce(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	open := func(instance string) *bus.State[counter] {
		b := bustest.Open(t, server, func(o *bus.Options) { o.Instance, o.Sole = instance, true })
		st, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: events.HandlerDraining})
		require.NoError(t, err)
		return st
	}
	k := bus.Key{Cluster: "home", Name: "n1"}
	former, present := open("before"), open("after")
	old, err := former.Acquire(ctxT(t), k, time.Hour)
	require.NoError(t, err)
	_, err = former.Acquire(ctxT(t), k, time.Hour)
	require.ErrorIs(t, err, bus.ErrLeased, "its own lease counts")
	l, err := present.Acquire(ctxT(t), k, time.Hour)
	require.NoError(t, err)
	require.ErrorIs(t, old.Confirm(ctxT(t)), bus.ErrLeaseLost)
	require.NoError(t, l.Confirm(ctxT(t)))
}
