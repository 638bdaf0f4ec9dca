package bus_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// small is the least that a stream of record may hold.
const small = 1 << 20

// bulky is an event of about 6 KiB that nobody but a batch handler reads.
func bulky(t testing.TB, cluster, id string) events.Event {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "api", ID: id, Time: start},
		events.PoolPaused{Pool: "burst", Actor: "anna", Reason: noise(1, 6<<10)})
	require.NoError(t, err)
	return e
}

// fillTo publishes until the stream of record holds a share of small.
func fillTo(t testing.TB, b *bus.Bus, prefix string, share float64) {
	t.Helper()
	for i := 0; ; i++ {
		st, err := b.LogState(ctxT(t))
		require.NoError(t, err)
		if float64(st.Bytes) >= share*small {
			require.Equal(t, uint64(1), st.First, "nothing is discarded yet")
			return
		}
		require.NoError(t, b.Publish(ctxT(t), bulky(t, "home", prefix+num(i))))
	}
}

// used is autoscaler_bus_retention_used_ratio of a handler, -1 when it is not there.
func used(t testing.TB, reg *prometheus.Registry, handler string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "autoscaler_bus_retention_used_ratio" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == handler {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func TestAReaderThatIsAboutToLoseEventsIsMeasuredLoggedAndNotReady(t *testing.T) {
	t.Parallel()
	reg, log := prometheus.NewRegistry(), &bustest.Log{}
	b := bustest.New(t, func(o *bus.Options) {
		o.MaxBytes, o.Registerer, o.Logger = small, reg, log.Logger()
	})
	release := make(chan struct{})
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, _ bus.Delivery) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "slow")))
	fillTo(t, b, "half-", 0.5)
	eventually(t, func() bool { u := used(t, reg, events.HandlerProvisioning); return u > 0.4 && u < 0.6 }, "half of the retention is used")
	require.NoError(t, b.Ready(ctxT(t)))
	fillTo(t, b, "full-", 0.9)
	eventually(t, func() bool { return used(t, reg, events.HandlerProvisioning) > 0.85 }, "most of it is")
	err := b.Ready(ctxT(t))
	require.ErrorContains(t, err, "provisioning-")
	require.ErrorContains(t, err, "event 1 of ")
	require.ErrorContains(t, err, "max_bytes 1048576")
	var entry map[string]any
	eventually(t, func() bool {
		entry = log.Find(t, "a handler is about to lose events that it has not read; find out why it is late, or raise bus.max_age or bus.max_bytes")
		return entry != nil
	}, "it is logged")
	require.Equal(t, "ERROR", entry["level"])
	require.Equal(t, events.HandlerProvisioning, entry["handler"])
	require.InDelta(t, 1, entry["oldest_sequence"], 0)
	close(release)
	eventually(t, func() bool { return used(t, reg, events.HandlerProvisioning) == 0 }, "it has caught up")
	require.NoError(t, b.Ready(ctxT(t)))
	eventually(t, func() bool { return log.Find(t, "a handler is no longer about to lose events") != nil }, "that is logged, too")
}

// A partition where nothing happened for long has an old position, but the events
// that it waits for are new.
func TestAHandlerThatHadNothingToReadForLongIsNotLate(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := bustest.New(t, func(o *bus.Options) { o.MaxBytes, o.Registerer = small, reg })
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "first")))
	began, release := make(chan struct{}), make(chan struct{})
	var handled record
	stop := run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { handled.add(d); return nil }})
	eventually(t, func() bool {
		n, err := b.Pending(ctxT(t), events.HandlerProvisioning)
		return err == nil && n == 0 && handled.len() == 1
	}, "it is handled")
	stop()
	fillTo(t, b, "other-", 0.9)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "second")))
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, _ bus.Delivery) error {
		close(began)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}})
	<-began
	require.NoError(t, b.Ready(ctxT(t)))
	eventually(t, func() bool { u := used(t, reg, events.HandlerProvisioning); return u > 0 && u < 0.1 }, "what it has not read is new")
	close(release)
}

func TestAHandlerOfAnEventThatIsGoneHasNothingToLose(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server, func(o *bus.Options) { o.MaxBytes = small })
	began, release := make(chan struct{}), make(chan struct{})
	run(t, b, handler{events.HandlerProvisioning, func(ctx context.Context, _ bus.Delivery) error {
		close(began)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}})
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "lost")))
	<-began
	for i := range 300 {
		require.NoError(t, b.Publish(ctxT(t), bulky(t, "home", "bulk-"+num(i))))
	}
	st, err := b.LogState(ctxT(t))
	require.NoError(t, err)
	require.Greater(t, st.First, uint64(1), "the event in flight is discarded")
	require.NoError(t, b.Ready(ctxT(t)), "it is being handled: nothing else can be lost")
	close(release)
	js := jetStream(t, server)
	eventually(t, func() bool {
		p, err := bus.PartitionOf(bus.Key{Cluster: "home", Name: "n1"})
		require.NoError(t, err)
		c, err := js.Consumer(ctxT(t), bus.StreamName, events.HandlerProvisioning+"-"+num(p))
		return err == nil && c.CachedInfo().NumAckPending == 0
	}, "it ends as any other")
}

func jetStream(t testing.TB, server *embedded.Server) jetstream.JetStream {
	t.Helper()
	nc, err := server.Connect()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}
