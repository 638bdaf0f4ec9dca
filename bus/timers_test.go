package bus_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func fired(t testing.TB, b *bus.Bus) []bus.Delivery {
	t.Helper()
	var out []bus.Delivery
	for d, err := range b.Read(ctxT(t), bus.ReadOptions{Types: []string{events.TypeTimerFired}}) {
		require.NoError(t, err)
		out = append(out, d)
	}
	return out
}

func due(at time.Time) func(*bus.Turn[counter]) error {
	return func(turn *bus.Turn[counter]) error { turn.State.Due = at; return nil }
}

func TestADeadlineBecomesAnEventForItsHandler(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) { o.Times.Sweep = time.Hour })
	background(t, s.b.RunTimers)
	var got record
	run(t, s.b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	at := time.Now().Add(300 * time.Millisecond).UTC()
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "op", due(at)))
	eventually(t, func() bool { return got.len() == 1 }, "the timer fires")
	d := got.ds[0]
	p, err := events.Decode[events.TimerFired](d.Event)
	require.NoError(t, err)
	require.Equal(t, events.HandlerProvisioning, p.Handler)
	require.True(t, at.Equal(p.DueAt))
	require.Equal(t, s.key, d.Key)
	require.False(t, d.StreamTime.Before(at), "never early")
}

func TestADeadlineThatMovesOrGoesReplacesItsTimer(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) { o.Times.Sweep = time.Hour })
	background(t, s.b.RunTimers)
	ctx := ctxT(t)
	gone := bus.Key{Cluster: "home", Name: "gone"}
	soon := time.Now().Add(5 * time.Second)
	require.NoError(t, s.st.Amend(ctx, s.key, "a", due(soon)))
	require.NoError(t, s.st.Amend(ctx, gone, "a", due(soon)))
	later := soon.Add(700 * time.Millisecond).UTC()
	require.NoError(t, s.st.Amend(ctx, s.key, "b", due(later)))
	require.NoError(t, s.st.Amend(ctx, gone, "b", due(time.Time{})))
	eventually(t, func() bool { return len(fired(t, s.b)) > 0 }, "the later timer fires")
	all := fired(t, s.b)
	require.Len(t, all, 1, "the former one and the disarmed one did not")
	p, err := events.Decode[events.TimerFired](all[0].Event)
	require.NoError(t, err)
	require.True(t, later.Equal(p.DueAt))
}

func TestATimerSurvivesARestartOfTheServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st, _, end := openDir(t, dir)
	at := time.Now().Add(700 * time.Millisecond)
	require.NoError(t, st.Amend(ctxT(t), bus.Key{Cluster: "home", Name: "n1"}, "a", due(at)))
	end()
	_, b, _ := openDir(t, dir)
	background(t, b.RunTimers)
	eventually(t, func() bool { return len(fired(t, b)) == 1 }, "it fires after the restart")
}

func TestTheSweepWakesAnOverdueRecordWhoseTimerWasLost(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) { o.Times.Sweep = 200 * time.Millisecond })
	// No relay runs: as if it had lost every timer.
	run(t, s.b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error { return nil }})
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "a", due(time.Now().Add(-time.Minute))))
	eventually(t, func() bool { return len(fired(t, s.b)) == 1 }, "the sweep wakes it")
}

func TestTheSweepArmsTimersAtItsStart(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) { o.Times.Sweep = time.Hour })
	// Killed between the write and the timer.
	at := time.Now().Add(500 * time.Millisecond)
	s.k.dying(t, "provisioning/a/write/after", func() error { return s.st.Amend(ctxT(t), s.key, "a", due(at)) })
	background(t, s.b.RunTimers)
	run(t, s.b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error { return nil }})
	eventually(t, func() bool { return len(fired(t, s.b)) == 1 }, "it is armed again, and fires")
}

func TestARedeliveryArmsTheTimerAgain(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) { o.Times.Sweep = time.Hour })
	background(t, s.b.RunTimers)
	fn := due(time.Now().Add(500 * time.Millisecond))
	s.k.dying(t, "provisioning/write/after", func() error { return s.st.Apply(ctxT(t), s.delivery(t, 1), fn) })
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), fn))
	eventually(t, func() bool { return len(fired(t, s.b)) == 1 }, "it fires")
}

// openDir opens a state on a server over dir; end closes both.
func openDir(t *testing.T, dir string) (*bus.State[counter], *bus.Bus, func()) {
	t.Helper()
	server := startServer(t, dir)
	b, err := bus.Open(ctxT(t), bus.Options{Server: server, Times: bustest.Times(), MaxBytes: 256 << 20})
	require.NoError(t, err)
	st, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{
		Handler:  events.HandlerProvisioning,
		Deadline: func(_ bus.Key, c counter) time.Time { return c.Due },
	})
	require.NoError(t, err)
	end := func() {
		_ = b.Close()
		server.Shutdown()
	}
	t.Cleanup(end)
	return st, b, end
}

func TestATimerThatCantBeReadIsDropped(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	_, err = nc.Request("k3sas-fired.provisioning.home.n1", []byte("garbage"), 5*time.Second)
	require.NoError(t, err)
	_, err = nc.Request("k3sas-fired.provisioning.home.n2", []byte(`{"handler":"provisioning","cluster":"home","key":"n2","due_at":"2026-03-01T12:00:00Z"}`), 5*time.Second)
	require.NoError(t, err)
	background(t, b.RunTimers)
	eventually(t, func() bool { return len(fired(t, b)) == 1 }, "the next one is relayed")
	require.Equal(t, "n2", fired(t, b)[0].Key.Name)
}

// ahead is the clock of a machine that is ahead of all others.
type ahead struct {
	clock.RealClock
	by time.Duration
}

func (a ahead) Now() time.Time { return time.Now().Add(a.by) }

func TestADeadlineIsMetOnceThoughTheClockThatSweptRanAhead(t *testing.T) {
	t.Parallel()
	s := newState(t, func(o *bus.Options) {
		o.Times.Sweep = 200 * time.Millisecond
		o.Clock = ahead{by: 10 * time.Minute}
	})
	var met, early atomic.Int64
	run(t, s.b, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		return s.st.Apply(ctx, d, func(turn *bus.Turn[counter]) error {
			switch {
			case d.Event.Type() != events.TypeTimerFired:
				turn.State.Due = turn.Now.Add(5 * time.Minute) // by the time of the stream
			case turn.Now.Before(turn.State.Due):
				early.Add(1)
			default:
				turn.State.Due = time.Time{}
				met.Add(1)
			}
			return nil
		})
	}})
	require.NoError(t, s.b.Publish(ctxT(t), observed(t, s.key.Cluster, s.key.Name, "first")))
	// JetStream takes a second timer.fired of one deadline for a copy. If the first
	// were too early for its handler, nothing would wake the record for ten minutes.
	eventually(t, func() bool { return met.Load()+early.Load() > 0 }, "the sweep wakes the record")
	require.EqualValues(t, 1, met.Load())
	require.Len(t, fired(t, s.b), 1)
}

func TestATimerOfAnotherDeadlineDoesNotMoveTheTime(t *testing.T) {
	t.Parallel()
	s := newState(t)
	far := start.AddDate(1, 0, 0)
	require.NoError(t, s.st.Apply(ctxT(t), s.delivery(t, 1), due(far)))
	d := s.delivery(t, 2)
	var err error
	d.Event, err = events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "bus", ID: "old", Time: start},
		events.TimerFired{Handler: events.HandlerProvisioning, DueAt: far.Add(time.Hour)})
	require.NoError(t, err)
	require.NoError(t, s.st.Apply(ctxT(t), d, func(turn *bus.Turn[counter]) error {
		require.Equal(t, d.StreamTime, turn.Now)
		return nil
	}))
}
