package bus_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// takeUpBundle is a state with a worker whose steps wait to be let go.
type takeUpBundle struct {
	*stateBundle
	begun chan uint64 // epochs of the steps that began
	goOn  chan struct{}
	mu    sync.Mutex
	steps []string // of the message and the work path, in order
}

func newTakeUp(t *testing.T, concurrency int) *takeUpBundle {
	s := &takeUpBundle{stateBundle: &stateBundle{key: bus.Key{Cluster: "home", Name: "n1"}}, begun: make(chan uint64, 100), goOn: make(chan struct{}, 100)}
	s.b = bustest.New(t, func(o *bus.Options) {
		o.OnStep = func(step string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.steps = append(s.steps, step)
		}
	})
	var err error
	s.st, err = bus.OpenState(ctxT(t), s.b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{Due: toThree, Concurrency: concurrency, Step: func(ctx context.Context, l *bus.Lease[counter]) error {
			s.begun <- l.Epoch()
			select {
			case <-s.goOn:
			case <-ctx.Done():
				return ctx.Err()
			}
			return l.Commit(ctx, "step:"+num(l.Record().N), func(turn *bus.Turn[counter]) error {
				turn.State.N = 3
				return turn.Emit(events.NodeObserved{Node: turn.Key.Name, What: events.ObservedReady, Reason: "done", At: turn.Now})
			})
		}})
	})
	return s
}

// offered waits until the worker gives a place to a record of that name, which stays
// as it was.
func (s *takeUpBundle) offered(t *testing.T, name string) {
	t.Helper()
	d := s.delivery(t, 1)
	d.Key.Name = name
	refused := errors.New("only asked")
	eventually(t, func() bool {
		got := false
		err := s.st.Apply(ctxT(t), d, func(turn *bus.Turn[counter]) error {
			_, got = turn.TakeUp()
			return refused
		})
		require.ErrorIs(t, err, refused)
		return got
	}, "the worker gives a place, and gets it back")
}

func TestAMessageIsTakenUpInTheWriteThatRecordsIt(t *testing.T) {
	t.Parallel()
	s := newTakeUp(t, 1)
	s.offered(t, "other")
	var epoch uint64
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		var ok bool
		epoch, ok = turn.TakeUp()
		require.True(t, ok)
		turn.State.Text = "intent"
		return count(turn)
	}))
	require.Equal(t, epoch, <-s.begun)
	rec, _, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.EqualValues(t, 1, rec.Revision, "nothing but the message's write came before the step")
	require.Equal(t, s.b.Instance(), rec.LeaseOwner)

	// The only place is taken: the next one waits for the worker to see it.
	other := s.delivery(t, 2)
	other.Key.Name = "n2"
	require.NoError(t, s.st.Apply(ctxT(t), other, func(turn *bus.Turn[counter]) error {
		_, ok := turn.TakeUp()
		require.False(t, ok)
		turn.State.Text = "work"
		return nil
	}))
	s.goOn <- struct{}{}
	s.goOn <- struct{}{}
	eventually(t, func() bool {
		all, err := s.st.All(ctxT(t))
		require.NoError(t, err)
		return len(all) == 2 && !slices.ContainsFunc(all, func(r bus.Record[counter]) bool { return r.State.N != 3 || r.LeaseOwner != "" })
	}, "both are done, and their leases given back")
	require.Equal(t, []string{"1", "done", "done"}, s.emitted(t))
}

// An owner that wrote first would have the message arm an older timer after its own,
// and publish an older event.
func TestAStepWritesWhenTheMessageThatItWasTakenUpWithHasPublished(t *testing.T) {
	t.Parallel()
	s := newTakeUp(t, 1)
	s.offered(t, "other")
	s.goOn <- struct{}{}
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		_, ok := turn.TakeUp()
		require.True(t, ok)
		return count(turn)
	}))
	eventually(t, func() bool { return s.get(t).N == 3 }, "the step commits")
	s.mu.Lock()
	defer s.mu.Unlock()
	published, wrote := slices.Index(s.steps, "provisioning/publish/after"), slices.Index(s.steps, "provisioning/step/write/before")
	require.GreaterOrEqual(t, published, 0)
	require.Greater(t, wrote, published)
}

func TestNothingIsTakenUpWithoutAWorkerOrUnderALease(t *testing.T) {
	t.Parallel()
	s := newState(t)
	asked := func(turn *bus.Turn[counter]) error {
		_, ok := turn.TakeUp()
		require.False(t, ok)
		return increment(turn)
	}
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), asked), "no worker runs here")
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "by hand", asked), "not in the message path")

	w := newTakeUp(t, 4)
	w.offered(t, "other")
	l, err := w.st.Acquire(ctxT(t), w.key, time.Hour)
	require.NoError(t, err)
	require.NoError(t, w.st.Apply(ctxT(t), w.delivery(t, 1), asked), "somebody holds the lease")
	require.NoError(t, l.Commit(ctxT(t), "mine", increment), "which is still theirs")
	require.Empty(t, w.begun)
}

func TestARecordThatChangedMeanwhileIsTakenUpAsItIs(t *testing.T) {
	t.Parallel()
	s := newTakeUp(t, 1)
	s.offered(t, "other")
	tries := 0
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		_, ok := turn.TakeUp()
		require.True(t, ok)
		if tries++; tries == 1 {
			require.NoError(t, s.st.Amend(ctxT(t), s.key, "meanwhile", increment))
		}
		return increment(turn)
	}))
	require.Equal(t, 2, tries)
	require.EqualValues(t, 1, <-s.begun)
	rec, _, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.Equal(t, 2, rec.State.N)
	require.EqualValues(t, 2, rec.Revision)
	s.goOn <- struct{}{}
	eventually(t, func() bool { return s.get(t).N == 3 }, "the step commits")
}
