package bus_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// outage is a bus over the network, whose server can be ended and started again.
type outage struct {
	t    *testing.T
	opts embedded.Options
	srv  *embedded.Server
	b    *bus.Bus
	log  bustest.Log
}

func newOutage(t *testing.T) *outage {
	o := &outage{t: t, opts: embedded.Options{Dir: t.TempDir(), Unsynced: true, Listen: freeAddr(t)}}
	o.start()
	t.Cleanup(func() { o.srv.Shutdown() })
	times := bustest.Times()
	times.Request = shortRequest
	var err error
	o.b, err = bus.Open(ctxT(t), bus.Options{URL: o.srv.URL(), Times: times, MaxBytes: 256 << 20, Logger: slog.New(slog.NewJSONHandler(io.MultiWriter(t.Output(), &o.log), nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, o.b.Close()) })
	return o
}

func (o *outage) start() {
	var err error
	o.srv, err = embedded.Start(o.opts)
	require.NoError(o.t, err)
}

func TestAWorkerThatStartsWhileTheServerIsAwayWaitsForIt(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	st, err := bus.OpenState(ctxT(t), o.b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	o.srv.Shutdown()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctxT(t))
	defer cancel()
	go func() {
		done <- st.RunWorker(ctx, bus.WorkerOptions[counter]{
			Due: func(_ bus.Key, c counter, _ time.Time) (bool, time.Time) { return c.N == 1, time.Time{} },
			Step: func(ctx context.Context, l *bus.Lease[counter]) error {
				return l.Commit(ctx, "step", func(turn *bus.Turn[counter]) error { turn.State.N++; return nil })
			},
		})
	}()
	eventually(t, func() bool { return len(done) > 0 || o.log.Find(t, "waiting for the bus") != nil }, "a request of it has failed")
	require.Empty(t, done, "it gave up")
	o.start()
	key := bus.Key{Cluster: "home", Name: "n1"}
	eventually(t, func() bool {
		return st.Amend(ctx, key, "begin", func(turn *bus.Turn[counter]) error { turn.State.N = max(turn.State.N, 1); return nil }) == nil
	}, "the server is back")
	eventually(t, func() bool { r, _, err := st.Get(ctx, key); return err == nil && r.State.N == 2 }, "the worker did its step")
	cancel()
	require.NoError(t, <-done)
}

func TestWorkThatAnOutageInterruptedGoesOnWithoutWaitingForItsOwnLease(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	st, err := bus.OpenState(ctxT(t), o.b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	begun, away := make(chan struct{}), make(chan struct{})
	steps := 0
	background(t, func(ctx context.Context) error {
		return st.RunWorker(ctx, bus.WorkerOptions[counter]{
			Due: func(_ bus.Key, c counter, _ time.Time) (bool, time.Time) { return c.N == 1, time.Time{} },
			Step: func(ctx context.Context, l *bus.Lease[counter]) error {
				if steps++; steps == 1 {
					close(begun)
					<-away
				}
				return l.Commit(ctx, "step", func(turn *bus.Turn[counter]) error { turn.State.N++; return nil })
			},
			TTL: time.Hour, // whoever waits for it does not end in time
		})
	})
	key := bus.Key{Cluster: "home", Name: "n1"}
	require.NoError(t, st.Amend(ctxT(t), key, "begin", func(turn *bus.Turn[counter]) error { turn.State.N = 1; return nil }))
	<-begun
	o.srv.Shutdown()
	close(away)
	eventually(t, func() bool { return o.log.Find(t, "work step failed, it will be tried again") != nil }, "neither the commit nor the release found a server")
	o.start()
	eventually(t, func() bool { r, _, err := st.Get(ctxT(t), key); return err == nil && r.State.N == 2 }, "the step is done")
}

func TestALeaseThatCouldNotBeGivenBackIsFreeForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	ctx := ctxT(t)
	open := func(b *bus.Bus) *bus.State[counter] {
		st, err := bus.OpenState(ctx, b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
		require.NoError(t, err)
		return st
	}
	b, err := bus.Open(ctx, bus.Options{URL: o.srv.URL(), Times: bustest.Times(), MaxBytes: 256 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	ours, theirs := open(o.b), open(b)
	key := bus.Key{Cluster: "home", Name: "n1"}
	l, err := ours.Acquire(ctx, key, time.Hour)
	require.NoError(t, err)
	o.srv.Shutdown()
	require.Error(t, l.Release(ctx))
	o.start()
	eventually(t, func() bool { _, _, err := theirs.Get(ctx, key); return err == nil }, "the server is back")
	_, err = theirs.Acquire(ctx, key, time.Hour)
	require.ErrorIs(t, err, bus.ErrLeased, "nobody else knows that it is free")
	var again *bus.Lease[counter]
	eventually(t, func() bool { again, err = ours.Acquire(ctx, key, time.Hour); return err == nil }, "its owner takes it")
	require.Greater(t, again.Epoch(), l.Epoch())
	require.ErrorIs(t, l.Commit(ctx, "late", count), bus.ErrLeaseLost)
	_, err = ours.Acquire(ctx, key, time.Hour)
	require.ErrorIs(t, err, bus.ErrLeased, "that one is in use")
	require.NoError(t, again.Release(ctx))
}
