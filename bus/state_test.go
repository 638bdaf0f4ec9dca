package bus_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

type counter struct {
	N     int       `json:"n"`
	Trail []string  `json:"trail,omitempty"`
	Due   time.Time `json:"due,omitzero"`
	Text  string    `json:"text,omitempty"`
}

type killed struct{ step string }

// killer ends the current call at a named step, once.
type killer struct{ at string }

func (k *killer) step(s string) {
	if s == k.at {
		k.at = ""
		panic(killed{s})
	}
}

// dying calls fn and requires that it is killed at step.
func (k *killer) dying(t *testing.T, step string, fn func() error) {
	t.Helper()
	k.at = step
	require.PanicsWithValue(t, killed{step}, func() { _ = fn() }, "the step is reached")
}

type stateBundle struct {
	b   *bus.Bus
	st  *bus.State[counter]
	k   *killer
	key bus.Key
}

func newState(t *testing.T, opts ...func(*bus.Options)) *stateBundle {
	t.Helper()
	s := &stateBundle{k: &killer{}, key: bus.Key{Cluster: "home", Name: "n1"}}
	s.b = bustest.New(t, append(opts, func(o *bus.Options) { o.OnStep = s.k.step })...)
	var err error
	s.st, err = bus.OpenState(ctxT(t), s.b, bus.StateOptions[counter]{
		Handler:  events.HandlerProvisioning,
		Deadline: func(_ bus.Key, c counter) time.Time { return c.Due },
	})
	require.NoError(t, err)
	return s
}

func (s *stateBundle) delivery(t *testing.T, seq uint64) bus.Delivery {
	return bus.Delivery{Event: observed(t, "home", "n1", "in-"+num(int(seq))), Key: s.key, Sequence: seq,
		Incarnation: s.b.Incarnation(), StreamTime: start.Add(time.Duration(seq) * time.Second), Attempt: 1}
}

// count counts, and emits one event that says to what.
func count(t *bus.Turn[counter]) error {
	t.State.N++
	return t.Emit(events.NodeObserved{Node: t.Key.Name, What: events.ObservedReady, Reason: num(t.State.N), At: t.Now})
}

func increment(t *bus.Turn[counter]) error {
	t.State.N++
	return nil
}

// emitted returns the reasons of what count published, in stream order.
func (s *stateBundle) emitted(t *testing.T) []string {
	t.Helper()
	var out []string
	for d, err := range s.b.Read(ctxT(t), bus.ReadOptions{Types: []string{events.TypeNodeObserved}}) {
		require.NoError(t, err)
		p, err := events.Decode[events.NodeObserved](d.Event)
		require.NoError(t, err)
		out = append(out, p.Reason)
	}
	return out
}

func (s *stateBundle) get(t *testing.T) counter {
	t.Helper()
	r, ok, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.True(t, ok)
	return r.State
}

func TestApplyWritesStateAndPublishesWhatFollows(t *testing.T) {
	t.Parallel()
	s := newState(t)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		require.False(t, turn.Exists)
		require.Equal(t, start.Add(time.Second), turn.Now)
		return count(turn)
	}))
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 2), func(turn *bus.Turn[counter]) error {
		require.True(t, turn.Exists)
		return count(turn)
	}))
	require.Equal(t, 2, s.get(t).N)
	require.Equal(t, []string{"1", "2"}, s.emitted(t))
	d, ok, err := s.b.Last(ctxT(t), s.key, events.TypeNodeObserved)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "in-2", events.Extension(d.Event, events.ExtCausationID))
	require.Equal(t, "life-n1", events.Extension(d.Event, events.ExtCorrelationID))
	require.Equal(t, "/k3s-autoscaler/home/provisioning", d.Event.Source())
}

func TestARedeliveryPublishesAgainAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := newState(t)
	calls := 0
	fn := func(turn *bus.Turn[counter]) error { calls++; return count(turn) }
	for range 3 {
		require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 5), fn))
	}
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 4), fn), "an older one does nothing")
	require.Equal(t, 1, calls)
	require.Equal(t, []string{"1"}, s.emitted(t))
}

func TestKilledAnywhereInTheMessagePathNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"provisioning/write/before", "provisioning/write/after", "provisioning/publish/after"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newState(t)
			require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), count))
			s.k.dying(t, step, func() error { return s.st.Apply(ctxT(t), s.delivery(t, 2), count) })
			require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 2), count), "redelivered")
			require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 3), count))
			require.Equal(t, 3, s.get(t).N)
			require.Equal(t, []string{"1", "2", "3"}, s.emitted(t))
		})
	}
}

func TestEventsOfWorkSurviveAKillAndALaterMessage(t *testing.T) {
	t.Parallel()
	s := newState(t)
	s.k.dying(t, "provisioning/create/write/after", func() error { return s.st.Amend(ctxT(t), s.key, "create:n1", count) })
	require.Empty(t, s.emitted(t), "killed between write and publication")
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), count))
	require.Equal(t, []string{"1", "2"}, s.emitted(t), "the message publishes what work owed, first")
}

func TestTheSweepPublishesWhatWorkOwes(t *testing.T) {
	t.Parallel()
	s := newState(t)
	s.k.dying(t, "provisioning/create/write/after", func() error { return s.st.Amend(ctxT(t), s.key, "create:n1", count) })
	background(t, func(ctx context.Context) error {
		return s.st.RunWorker(ctx, bus.WorkerOptions[counter]{
			Due:  func(bus.Key, counter, time.Time) (bool, time.Time) { return false, time.Time{} },
			Step: func(context.Context, *bus.Lease[counter]) error { return nil },
		})
	})
	eventually(t, func() bool { return len(s.emitted(t)) == 1 }, "the owed event is published")
}

func TestWorkKeepsWhatAMessageHasNotPublished(t *testing.T) {
	t.Parallel()
	s := newState(t)
	s.k.dying(t, "provisioning/write/after", func() error { return s.st.Apply(ctxT(t), s.delivery(t, 1), count) })
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "step/2", count))
	require.Equal(t, []string{"1", "2"}, s.emitted(t))
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), count), "redelivered")
	require.Equal(t, []string{"1", "2"}, s.emitted(t))
	require.Equal(t, 2, s.get(t).N)
}

func TestAnAmendWithTheSameOperationEmitsTheSameIDs(t *testing.T) {
	t.Parallel()
	s := newState(t)
	for range 2 {
		require.NoError(t, s.st.Amend(ctxT(t), s.key, "create:n1", count))
	}
	require.Equal(t, 2, s.get(t).N, "the state is the handler's own concern")
	require.Equal(t, []string{"1"}, s.emitted(t))
}

func TestAConflictingWriteIsTriedAgainOnTheNewState(t *testing.T) {
	t.Parallel()
	s := newState(t)
	calls := 0
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		if calls++; calls == 1 {
			require.NoError(t, s.st.Amend(ctxT(t), s.key, "other", count))
		}
		return count(turn)
	}))
	require.Equal(t, 2, calls)
	require.Equal(t, 2, s.get(t).N)
	require.Equal(t, []string{"1", "2"}, s.emitted(t))
}

func TestAFailedTurnChangesNothing(t *testing.T) {
	t.Parallel()
	s := newState(t)
	boom := errors.New("boom")
	err := s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		require.NoError(t, count(turn))
		return boom
	})
	require.ErrorIs(t, err, boom)
	_, ok, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.False(t, ok)
	require.Empty(t, s.emitted(t))
}

func TestUnchangedAndDeletedRecordsKeepTheirPosition(t *testing.T) {
	t.Parallel()
	s := newState(t)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error { turn.Unchanged(); return nil }))
	r, ok, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.False(t, ok, "there is no record")
	require.Equal(t, uint64(1), r.Last)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 2), count))
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 3), func(turn *bus.Turn[counter]) error { turn.Delete(); return nil }))
	r, ok, err = s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.False(t, ok)
	require.True(t, r.Deleted)
	require.Equal(t, uint64(3), r.Last)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 2), count), "an old message does not bring it back")
	_, ok, err = s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.False(t, ok)
}

func TestTimeOfARecordNeverGoesBack(t *testing.T) {
	t.Parallel()
	s := newState(t)
	d := s.delivery(t, 1)
	require.NoError(t, s.st.Apply(ctxT(t), d, count))
	late := s.delivery(t, 2)
	late.StreamTime = d.StreamTime.Add(-time.Minute)
	require.NoError(t, s.st.Apply(ctxT(t), late, func(turn *bus.Turn[counter]) error {
		require.Equal(t, d.StreamTime, turn.Now)
		return nil
	}))
}

func TestAnotherIncarnationIsRefused(t *testing.T) {
	t.Parallel()
	s := newState(t)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 7), count))
	d := s.delivery(t, 1)
	d.Incarnation = "another"
	err := s.st.Apply(ctxT(t), d, count)
	require.ErrorIs(t, err, bus.ErrIncarnation)
	_, later := bus.RetryDelay(err)
	require.True(t, later, "it keeps the head of the line until an operator rebases")
}

func TestALargeRecordIsCompressedAndATooLargeOneRefused(t *testing.T) {
	t.Parallel()
	s := newState(t)
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "a", func(turn *bus.Turn[counter]) error {
		turn.State.Text = strings.Repeat("a node that waits ", 200_000)
		return nil
	}))
	require.Len(t, s.get(t).Text, 18*200_000)
	fill := func(turn *bus.Turn[counter]) error {
		var b strings.Builder
		x := uint64(1)
		for range 2 << 20 {
			x = x*6364136223846793005 + 1442695040888963407
			b.WriteByte('A' + byte(x>>59))
		}
		turn.State.Text = b.String()
		return nil
	}
	require.ErrorIs(t, s.st.Amend(ctxT(t), s.key, "b", fill), bus.ErrTooLarge)
	err := s.st.Apply(ctxT(t), s.delivery(t, 1), fill)
	require.ErrorIs(t, err, bus.ErrTooLarge)
	require.True(t, bus.IsTerminal(err))
}

func TestReadersSeeRecordsAndCantWrite(t *testing.T) {
	t.Parallel()
	s := newState(t)
	ctx := ctxT(t)
	for _, n := range []string{"n1", "pi4.lan", events.ClusterKey} {
		require.NoError(t, s.st.Amend(ctx, bus.Key{Cluster: "home", Name: n}, "op", increment))
	}
	r, err := bus.ReadState[counter](ctx, s.b, events.HandlerProvisioning)
	require.NoError(t, err)
	all, err := r.All(ctx)
	require.NoError(t, err)
	names := map[string]int{}
	for _, rec := range all {
		names[rec.Key.Name] = rec.State.N
	}
	require.Equal(t, map[string]int{"n1": 1, "pi4.lan": 1, events.ClusterKey: 1}, names)
	require.ErrorIs(t, r.Amend(ctx, s.key, "op", count), bus.ErrReadOnly)
	require.ErrorIs(t, r.RunWorker(ctx, bus.WorkerOptions[counter]{}), bus.ErrReadOnly)

	wctx, stop := context.WithCancel(ctx)
	ch, err := r.Watch(wctx)
	require.NoError(t, err)
	for range 3 {
		require.Equal(t, 1, (<-ch).State.N)
	}
	require.NoError(t, s.st.Amend(ctx, s.key, "op2", increment))
	require.Equal(t, 2, (<-ch).State.N)
	require.NoError(t, s.st.Amend(ctx, s.key, "op3", func(turn *bus.Turn[counter]) error { turn.Delete(); return nil }))
	require.True(t, (<-ch).Deleted)
	stop()
	eventually(t, func() bool { _, open := <-ch; return !open }, "the channel is closed")
}

func TestAnEventThatCantBePublishedIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	s := newState(t)
	err := s.st.Apply(ctxT(t), s.delivery(t, 1), func(turn *bus.Turn[counter]) error {
		return turn.Emit(events.NodeObserved{Node: "n1", What: "nonsense"})
	})
	require.True(t, bus.IsTerminal(err), "%v", err)
	_, ok, err := s.st.Get(ctxT(t), s.key)
	require.NoError(t, err)
	require.False(t, ok)
}
