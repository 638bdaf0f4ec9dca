package bus_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	clocktest "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

func TestASlowHandlerKeepsItsMessage(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	other := make(chan struct{}, 10)
	release := make(chan struct{})
	var calls atomic.Int32
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		if d.Event.ID() != "slow" {
			other <- struct{}{}
			return nil
		}
		calls.Add(1)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}})
	begin := time.Now()
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "slow"), observed(t, "home", "n2", "quick")))
	<-other
	eventually(t, func() bool { return time.Since(begin) > 3*bustest.Times().AckWait }, "time passes")
	close(release)
	eventually(t, func() bool {
		n, err := b.Pending(ctxT(t), events.HandlerProvisioning)
		return err == nil && n == 0
	}, "it is acknowledged")
	require.Equal(t, int32(1), calls.Load(), "signs of life kept it from being delivered again")
}

func TestAHandlerWithoutAnEndIsStopped(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.Times.Handle = 100 * time.Millisecond; o.MaxAttempts = 2 })
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, _ bus.Delivery) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	eventually(t, func() bool { return len(recorded(t, b)) == 1 }, "it is set aside")
	require.Contains(t, deadLetters(t, b)[0].Reason, "deadline exceeded")
}

func TestAProcessHandlesNoMoreThanItsLimitAtOnce(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	var all record
	var now, most [2]atomic.Int32
	var buses [2]*bus.Bus
	release := make(chan struct{})
	for i := range buses {
		buses[i] = bustest.Open(t, server, func(o *bus.Options) { o.InFlight = 2 })
		run(t, buses[i], handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
			n := now[i].Add(1)
			defer now[i].Add(-1)
			for m := most[i].Load(); n > m && !most[i].CompareAndSwap(m, n); m = most[i].Load() {
			}
			<-release
			all.add(d)
			return nil
		}})
	}
	for i := range 200 {
		require.NoError(t, buses[0].Publish(ctxT(t), observed(t, "home", "n"+num(i%40), "e"+num(i))))
	}
	eventually(t, func() bool { return now[0].Load() == 2 && now[1].Load() == 2 }, "both processes are full")
	close(release)
	eventually(t, func() bool { return all.len() == 200 }, "all are handled")
	for i := range most {
		require.Equal(t, int32(2), most[i].Load())
	}
	require.Empty(t, deadLetters(t, buses[0]), "what was given back for want of room is no failure")
}

func TestHandlersShareAConnectionAndEndByThemselves(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	var got record
	stop := run(t, b, handler{events.HandlerDecision, func(context.Context, bus.Delivery) error { return nil }})
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "a")))
	eventually(t, func() bool { return got.len() == 1 }, "it works")
	stop()
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "b")))
	eventually(t, func() bool { return got.len() == 2 }, "the other one is not disturbed")
	require.NoError(t, b.Ready(ctxT(t)))
}

func TestStoppingHandsTheMessageToAnotherProcessAtOnce(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	patient := func(o *bus.Options) { o.Times.AckWait = time.Hour; o.Times.Shutdown = 100 * time.Millisecond }
	first, second := bustest.Open(t, server, patient), bustest.Open(t, server, patient)
	began := make(chan struct{})
	stop := run(t, first, handler{events.HandlerProvisioning, func(ctx context.Context, _ bus.Delivery) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}})
	require.NoError(t, first.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	<-began
	var got record
	run(t, second, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	stop()
	eventually(t, func() bool { return got.len() == 1 }, "another process has it, without waiting for AckWait")
	require.Equal(t, 1, got.ds[0].Attempt, "a stop is no failure")
}

func TestAHandlerThatIgnoresItsContextDoesNotKeepTheProcess(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.Times.Shutdown = 100 * time.Millisecond })
	began, release := make(chan struct{}), make(chan struct{})
	stop := run(t, b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error {
		close(began)
		<-release
		return nil
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	<-began
	stop()
	close(release)
}

func TestARestartedServerLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := freeAddr(t)
	var server *embedded.Server
	begin := func() {
		var err error
		server, err = embedded.Start(embedded.Options{Dir: dir, Listen: addr, Token: token})
		require.NoError(t, err)
	}
	begin()
	t.Cleanup(func() { server.Shutdown() }) // the last thing
	o := bus.Options{URL: "nats://" + addr, Connect: []nats.Option{nats.Token(token), nats.ReconnectWait(20 * time.Millisecond)}, Times: bustest.Times(), MaxBytes: 256 << 20}
	b, err := bus.Open(ctxT(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() })
	st, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		return st.Apply(ctx, d, func(turn *bus.Turn[counter]) error {
			turn.State.Trail = append(turn.State.Trail, d.Event.ID())
			return nil
		})
	}})
	ledger := &ledger{}
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, ledger) })
	background(t, b.RunTimers)
	var worked atomic.Int32
	background(t, func(ctx context.Context) error {
		return st.RunWorker(ctx, bus.WorkerOptions[counter]{
			Due: func(_ bus.Key, c counter, _ time.Time) (bool, time.Time) { return c.Text == "work", time.Time{} },
			Step: func(ctx context.Context, l *bus.Lease[counter]) error {
				if err := l.Commit(ctx, "step", func(turn *bus.Turn[counter]) error { turn.State.Text = "done"; return nil }); err != nil {
					return err
				}
				worked.Add(1)
				return nil
			},
		})
	})
	require.NoError(t, st.Amend(ctxT(t), bus.Key{Cluster: "home", Name: "before"}, "begin", func(turn *bus.Turn[counter]) error {
		turn.State.Text = "work"
		return nil
	}))
	eventually(t, func() bool { return worked.Load() == 1 }, "the worker works")
	var want []string
	for i := range 60 {
		if i == 30 {
			server.Shutdown()
			require.ErrorIs(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e30")), bus.ErrUnavailable)
			require.ErrorIs(t, b.Ready(ctxT(t)), bus.ErrUnavailable)
			begin()
		}
		id := "e" + num(i)
		want = append(want, id)
		eventually(t, func() bool {
			err := b.Publish(ctxT(t), observed(t, "home", "n1", id))
			if err != nil {
				require.ErrorIs(t, err, bus.ErrUnavailable)
			}
			return err == nil
		}, "publishing works again")
	}
	require.NoError(t, st.Amend(ctxT(t), bus.Key{Cluster: "home", Name: "after"}, "begin", func(turn *bus.Turn[counter]) error {
		turn.State.Text = "work"
		return nil
	}))
	eventually(t, func() bool { return worked.Load() == 2 }, "the worker sees what changed after the restart")
	k := bus.Key{Cluster: "home", Name: "n1"}
	eventually(t, func() bool {
		r, _, err := st.Get(ctxT(t), k)
		return err == nil && len(r.State.Trail) >= 60
	}, "all are handled")
	r, _, err := st.Get(ctxT(t), k)
	require.NoError(t, err)
	require.Equal(t, want, r.State.Trail, "each once, in order")
	eventually(t, func() bool { return ledger.length() == 60 }, "and all are in the batches")
	require.NoError(t, b.Ready(ctxT(t)))
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ports, err := freeport.Take(1)
	require.NoError(t, err)
	return "127.0.0.1:" + strconv.Itoa(ports[0])
}

func TestADeletedRecordIsForgottenAfterADay(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	clk := clocktest.NewFakeClock(time.Now())
	b := bustest.Open(t, server, func(o *bus.Options) { o.Clock = clk })
	st, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		return st.Apply(ctx, d, func(turn *bus.Turn[counter]) error {
			if d.Event.ID() == "end" {
				turn.Delete()
			}
			return nil
		})
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "begin"), observed(t, "home", "n1", "end"), observed(t, "home", "n2", "other")))
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	eventually(t, func() bool {
		n, err := b.Pending(ctxT(t), events.HandlerProvisioning)
		_, ok, err2 := st.Get(ctxT(t), bus.Key{Cluster: "home", Name: "n2"})
		return err == nil && err2 == nil && ok && n == 0
	}, "all are handled")
	kv, err := js.KeyValue(ctxT(t), "k3sas-provisioning")
	require.NoError(t, err)
	_, err = kv.Get(ctxT(t), "record.home.n1")
	require.NoError(t, err, "its position is kept for now")
	eventually(t, func() bool {
		clk.Step(25 * time.Hour)
		_, err := kv.Get(ctxT(t), "record.home.n1")
		return errors.Is(err, jetstream.ErrKeyNotFound)
	}, "it is forgotten")
	_, ok, err := st.Get(ctxT(t), bus.Key{Cluster: "home", Name: "n2"})
	require.NoError(t, err)
	require.True(t, ok, "a live record is not")
}

func TestAnotherStreamUnderTheSameNameIsNoticed(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	require.NoError(t, js.DeleteStream(ctxT(t), bus.StreamName))
	require.ErrorIs(t, b.Ready(ctxT(t)), bus.ErrUnavailable)
	_, err = bus.Rebase(ctxT(t), bus.Options{Server: server, Times: bustest.Times(), MaxBytes: 64 << 20}, bus.LogPosition{}, false)
	require.NoError(t, err)
	again := bustest.Open(t, server)
	require.NotEqual(t, b.Incarnation(), again.Incarnation())
	require.ErrorIs(t, b.Ready(ctxT(t)), bus.ErrIncarnation)
	require.NoError(t, again.Ready(ctxT(t)))
}

func TestWrongHandlersAreRefused(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	nop := func(context.Context, bus.Delivery) error { return nil }
	require.ErrorContains(t, b.Run(ctxT(t)), "no handlers")
	require.ErrorContains(t, b.Run(ctxT(t), handler{"unknown", nop}), "reads no event")
	require.ErrorContains(t, b.Run(ctxT(t), handler{"No Name", nop}), "DNS label")
	require.ErrorContains(t, b.Run(ctxT(t), handler{"decision", nop}, handler{"decision", nop}), "two handlers")
	_, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: "No Name"})
	require.ErrorContains(t, err, "DNS label")
	s, err := bus.NewSubscriber(b, bus.SubscriberOptions{Handler: "x", Suffixes: []string{"node.observed"}})
	require.NoError(t, err)
	_, err = s.Subscribe(ctxT(t), "No Cluster")
	require.Error(t, err)
	require.NoError(t, s.Close())
	_, err = s.Subscribe(ctxT(t), "home")
	require.ErrorContains(t, err, "closed")
}

func TestAnEmittedEventCarriesItsOptions(t *testing.T) {
	t.Parallel()
	s := newState(t)
	require.NoError(t, s.st.Amend(ctxT(t), s.key, "op", func(turn *bus.Turn[counter]) error {
		err := turn.EmitTo("n2", events.NodeObserved{Node: "n2", What: events.ObservedReady, At: turn.Now},
			bus.Correlation("life"), bus.Causation("cause"), bus.DryRun(true))
		require.Len(t, turn.Emitted(), 1)
		return err
	}))
	d, ok, err := s.b.Last(ctxT(t), bus.Key{Cluster: "home", Name: "n2"}, events.TypeNodeObserved)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "life", events.Extension(d.Event, events.ExtCorrelationID))
	require.Equal(t, "cause", events.Extension(d.Event, events.ExtCausationID))
	require.True(t, events.IsDryRun(d.Event))
	require.True(t, strings.HasPrefix(d.Event.Source(), "/k3s-autoscaler/home/"))
}

func TestWithoutAServerEverythingWaitsAndEndsWhenTold(t *testing.T) {
	t.Parallel()
	server := startServer(t, t.TempDir())
	b := bustest.Open(t, server, func(o *bus.Options) { o.Times.Request = shortRequest })
	server.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), 3*shortRequest)
	defer cancel()
	nop := func(context.Context, bus.Delivery) error { return nil }
	ends := make(chan error, 3)
	go func() { ends <- b.Run(ctx, handler{events.HandlerProvisioning, nop}) }()
	go func() { ends <- b.RunBatch(ctx, &ledger{}) }()
	go func() { ends <- b.RunTimers(ctx) }()
	for range 3 {
		require.NoError(t, <-ends)
	}
	require.Error(t, ctx.Err(), "they waited for it")
}
