package bus_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func deadLetters(t testing.TB, b *bus.Bus) []bus.DeadLetter {
	t.Helper()
	dls, err := b.DeadLetters(ctxT(t))
	require.NoError(t, err)
	return dls
}

func recorded(t testing.TB, b *bus.Bus) []events.DeadletterRecorded {
	t.Helper()
	var out []events.DeadletterRecorded
	for d, err := range b.Read(ctxT(t), bus.ReadOptions{Types: []string{events.TypeDeadletterRecorded}}) {
		require.NoError(t, err)
		p, err := events.Decode[events.DeadletterRecorded](d.Event)
		require.NoError(t, err)
		out = append(out, p)
	}
	return out
}

func TestATerminalErrorSetsTheEventAsideAndParksItsNode(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := bustest.New(t, func(o *bus.Options) { o.Registerer = reg })
	ctx := ctxT(t)
	var calls atomic.Int32
	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		calls.Add(1)
		if d.Event.ID() == "bad" {
			return bus.Terminal(errors.New("no such pool"))
		}
		got.add(d)
		return nil
	}})
	require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "bad"), observed(t, "home", "n1", "after"), observed(t, "home", "n2", "other")))
	eventually(t, func() bool { return len(recorded(t, b)) == 2 && got.len() == 1 }, "both events of n1 are set aside")
	require.Equal(t, []string{"other"}, got.ids(), "another node is not concerned")
	require.Equal(t, int32(2), calls.Load(), "what follows on a parked key does not reach the handler")

	dls := deadLetters(t, b)
	require.Len(t, dls, 2)
	require.Equal(t, "bad", dls[0].Event.ID())
	require.Equal(t, "no such pool", dls[0].Reason)
	require.Equal(t, 1, dls[0].Attempts)
	require.Contains(t, dls[0].Stack, "deadletter_test.go")
	require.True(t, dls[0].Parked)
	require.Equal(t, "after", dls[1].Event.ID(), "in order")
	require.Contains(t, dls[1].Reason, "parked behind dead letter "+dls[0].ID)
	keys, err := b.Parked(ctx, events.HandlerProvisioning)
	require.NoError(t, err)
	require.Len(t, keys, 1)
	require.Equal(t, bus.Key{Cluster: "home", Name: "n1"}, keys[0].Key)
	require.Equal(t, dls[0].ID, keys[0].DeadLetter)
	require.Equal(t, "no such pool", keys[0].Reason)
	rec := recorded(t, b)
	require.Equal(t, "bad", rec[0].EventID)
	require.Equal(t, events.HandlerProvisioning, rec[0].Handler)
	eventually(t, func() bool {
		n, err := testutil.GatherAndCount(reg, "autoscaler_bus_dead_letters_total", "autoscaler_scaling_queue_depth")
		return err == nil && n == 2
	}, "both are counted")
}

func TestADeadEventOfAClusterDoesNotStopTheNextOne(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	var got record
	run(t, b, handler{events.HandlerDecision, func(_ context.Context, d bus.Delivery) error {
		got.add(d)
		if d.Event.ID() == "bad" {
			return bus.Terminal(errors.New("no"))
		}
		return nil
	}})
	require.NoError(t, b.Publish(ctxT(t), paused(t, "bad"), paused(t, "good")))
	eventually(t, func() bool { return got.len() == 2 }, "the second one is handled")
	eventually(t, func() bool { return len(recorded(t, b)) == 1 }, "the first one is recorded")
	require.False(t, recorded(t, b)[0].Parked)
}

func paused(t testing.TB, id string) events.Event {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Publisher: "api", ID: id, Time: start},
		events.PoolPaused{Pool: "workers", Actor: "ann", Reason: "test"})
	require.NoError(t, err)
	return e
}

func TestAFailingEventIsTriedAgainUpToTheLimit(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.MaxAttempts = 3 })
	var attempts record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		attempts.add(d)
		if d.Attempt == 2 {
			panic("at the disco")
		}
		return errors.New("attempt " + num(d.Attempt))
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	eventually(t, func() bool { return len(recorded(t, b)) == 1 }, "it is set aside")
	require.Equal(t, 3, attempts.len())
	dl := deadLetters(t, b)[0]
	require.Equal(t, 3, dl.Attempts)
	require.Equal(t, "attempt 3", dl.Reason)
}

func TestAPanicIsAFailureWithAStack(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.MaxAttempts = 2; o.Times.Retry = 100 * time.Millisecond })
	run(t, b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error { panic("at the disco") }})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	eventually(t, func() bool { return len(recorded(t, b)) == 1 }, "it is set aside")
	dl := deadLetters(t, b)[0]
	require.Equal(t, "panic: at the disco", dl.Reason)
	require.Contains(t, dl.Stack, "deadletter_test.go")
}

func TestRetryAfterKeepsTheLineAndIsNoAttempt(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.MaxAttempts = 3 })
	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		got.add(d)
		if got.len() <= 6 {
			return bus.RetryAfter(errors.New("the host is down"), 10*time.Millisecond)
		}
		return nil
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "first"), observed(t, "home", "n1", "second")))
	eventually(t, func() bool { return got.len() == 8 }, "both are handled in the end")
	require.Equal(t, append(strings.Fields(strings.Repeat("first ", 7)), "second"), got.ids())
	for _, d := range got.ds {
		require.Equal(t, 1, d.Attempt)
	}
	require.Empty(t, deadLetters(t, b))
}

func TestAnUnavailableBusIsNoAttemptEither(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, func(o *bus.Options) { o.MaxAttempts = 2 })
	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		got.add(d)
		if got.len() <= 4 {
			return bus.ErrUnavailable
		}
		return nil
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	eventually(t, func() bool { return got.len() == 5 }, "it is handled in the end")
	require.Empty(t, deadLetters(t, b))
}

func TestAMessageThatIsNoEventIsSetAsideWithItsBytes(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	ctx := ctxT(t)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	subject := "k3sas.home.node.n1.node.observed"
	for _, m := range []*nats.Msg{
		{Subject: subject, Data: []byte("garbage")},
		{Subject: subject, Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"x"}, "ce-source": {"%zz\x7f"}, "ce-type": {"t"}, "ce-time": {"yesterday"}}},
		{Subject: subject, Header: nats.Header{"content-type": {"application/cloudevents+json"}}, Data: []byte(`{"specversion":`)},
		{Subject: subject, Header: nats.Header{"content-encoding": {"zstd"}}, Data: []byte("not compressed")},
	} {
		_, err := nc.RequestMsg(m, 5*time.Second)
		require.NoError(t, err)
	}
	wrong := observed(t, "home", "n2", "wrong-key")
	m, err := bus.EncodeEvent(wrong)
	require.NoError(t, err)
	m.Subject = subject
	_, err = nc.RequestMsg(m, 5*time.Second)
	require.NoError(t, err)
	require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "good")))

	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	eventually(t, func() bool { return got.len() == 1 && len(recorded(t, b)) == 5 }, "the good one is handled, five are recorded")
	require.Equal(t, []string{"good"}, got.ids(), "garbage parks nothing")
	dls := deadLetters(t, b)
	require.Len(t, dls, 5)
	require.Equal(t, "garbage", string(dls[0].Data))
	require.Contains(t, dls[0].Reason, "ce-specversion")
	require.NotEmpty(t, dls[0].Undecodable)
	require.Equal(t, "p."+num(mustPartition(t, "home", "n1"))+"."+subject, dls[0].Subject)
	require.Contains(t, dls[4].Reason, `partitionkey: is "home/n2", the subject says "home/n1"`)

	var bad *bus.UndecodableError
	n := 0
	for d, err := range b.Read(ctx, bus.ReadOptions{Node: "n1", Types: []string{events.TypeNodeObserved}}) {
		n++
		if err != nil {
			require.ErrorAs(t, err, &bad)
			require.Equal(t, d.Sequence, bad.Sequence)
		}
	}
	require.Equal(t, 6, n, "a reader is told and goes on")
}

func mustPartition(t testing.TB, cluster, node string) int {
	p, err := bus.PartitionOf(bus.Key{Cluster: cluster, Name: node})
	require.NoError(t, err)
	return p
}

func TestADeadLetterAtTheSizeLimitKeepsItsBody(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	body := strings.Repeat("x", 1<<20-100)
	_, err = nc.RequestMsg(&nats.Msg{Subject: "k3sas.home.node.n1.node.observed", Data: []byte(body)}, 5*time.Second)
	require.NoError(t, err)
	run(t, b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error { return nil }})
	eventually(t, func() bool { return len(recorded(t, b)) == 1 }, "it is set aside")
	dl := deadLetters(t, b)[0]
	require.NotEmpty(t, dl.Data)
	require.Contains(t, dl.Reason, "ce-specversion")
}

func TestAnAppliedEventIsNotSetAsideWhenItsAttemptsRunOut(t *testing.T) {
	t.Parallel()
	k := &killer{}
	b := bustest.New(t, func(o *bus.Options) { o.MaxAttempts = 2; o.OnStep = k.step })
	ctx := ctxT(t)
	st, err := bus.OpenState(ctx, b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	var attempts atomic.Int32
	follows := make(chan struct{})
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		if events.Extension(d.Event, events.ExtCausationID) != "" {
			close(follows) // what count emitted: the first event is settled
			return nil
		}
		attempts.Add(1)
		if err := st.Apply(ctx, d, count); err != nil {
			return err
		}
		return errors.New("after the effect")
	}})
	require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "e")))
	<-follows
	require.Equal(t, int32(2), attempts.Load())
	require.Empty(t, deadLetters(t, b))
}
