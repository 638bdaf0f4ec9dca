package bus_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// These figures answer three questions: what an event costs to publish and to
// handle, how long one is on its way, and what the handlers' machinery costs
// against bare consumers of the same partitions.

func BenchmarkEncode(b *testing.B) {
	e := observed(b, "home", "n1", "e")
	for b.Loop() {
		if _, err := bus.EncodeEvent(e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	m := mustEncode(b, observed(b, "home", "n1", "e"))
	for b.Loop() {
		if _, err := bus.DecodeEvent(m.Header, m.Data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, synced := range []bool{true, false} {
		name := map[bool]string{true: "synced", false: "unsynced"}[synced]
		b.Run(name, func(b *testing.B) {
			s, err := embedded.Start(embedded.Options{Dir: b.TempDir(), Unsynced: !synced})
			require.NoError(b, err)
			b.Cleanup(s.Shutdown)
			bb := bustest.Open(b, s)
			n := 0
			for b.Loop() {
				n++
				if err := bb.Publish(context.Background(), observed(b, "home", "n1", num(n))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// fill publishes b.N events over 40 nodes.
func fill(b *testing.B, bb *bus.Bus) {
	b.Helper()
	for from := 0; from < b.N; from += 400 {
		es := make([]events.Event, 0, 400)
		for i := from; i < min(from+400, b.N); i++ {
			es = append(es, observed(b, "home", "n"+num(i%40), num(i)))
		}
		require.NoError(b, bb.Publish(context.Background(), es...))
	}
}

func BenchmarkHandle(b *testing.B) {
	bb := bustest.New(b, func(o *bus.Options) { o.InFlight = 2 * bus.Partitions })
	fill(b, bb)
	var n atomic.Int64
	done := make(chan struct{})
	b.ResetTimer()
	run(b, bb, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error {
		if n.Add(1) == int64(b.N) {
			close(done)
		}
		return nil
	}})
	<-done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkHandleRaw is the ceiling: the same partitions, each with one message
// in flight, without anything around them.
func BenchmarkHandleRaw(b *testing.B) {
	server := bustest.Server(b)
	bb := bustest.Open(b, server)
	fill(b, bb)
	nc, err := server.Connect()
	require.NoError(b, err)
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(b, err)
	var n atomic.Int64
	done := make(chan struct{})
	b.ResetTimer()
	for p := range bus.Partitions {
		c, err := js.CreateConsumer(ctxT(b), bus.StreamName, jetstream.ConsumerConfig{
			Durable: "raw-" + num(p), FilterSubject: "p." + num(p) + ".>", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1,
		})
		require.NoError(b, err)
		cc, err := c.Consume(func(m jetstream.Msg) {
			_ = m.Ack()
			if n.Add(1) == int64(b.N) {
				close(done)
			}
		})
		require.NoError(b, err)
		b.Cleanup(cc.Stop)
	}
	<-done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkPublishToHandler measures how long one event is on its way.
func BenchmarkPublishToHandler(b *testing.B) {
	bb := bustest.New(b)
	got := make(chan time.Time, 1)
	run(b, bb, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error {
		got <- time.Now()
		return nil
	}})
	var took []time.Duration
	n := 0
	for b.Loop() {
		n++
		begin := time.Now()
		if err := bb.Publish(context.Background(), observed(b, "home", "n"+num(n%40), num(n))); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-got).Sub(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func BenchmarkApply(b *testing.B) {
	bb := bustest.New(b)
	st, err := bus.OpenState(ctxT(b), bb, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(b, err)
	e := observed(b, "home", "n1", "e")
	k := bus.Key{Cluster: "home", Name: "n1"}
	seq := uint64(0)
	for b.Loop() {
		seq++
		d := bus.Delivery{Event: e, Key: k, Sequence: seq, Incarnation: bb.Incarnation(), StreamTime: start}
		if err := st.Apply(context.Background(), d, count); err != nil {
			b.Fatal(err)
		}
	}
}
