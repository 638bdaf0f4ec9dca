package decision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	testCluster     = "home"
	testIncarnation = "incarnation-1"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// memoryLog is a stream of record whose times and sequences the test chooses.
type memoryLog struct {
	deliveries []bus.Delivery
	reads      int
	err        error
	lost       uint64 // events up to this sequence are no longer kept
}

func (l *memoryLog) Read(_ context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	l.reads++
	return func(yield func(bus.Delivery, error) bool) {
		if l.err != nil {
			yield(bus.Delivery{}, l.err)
			return
		}
		for _, d := range l.deliveries {
			if d.Sequence <= l.lost || d.Sequence < o.FromSequence || d.Sequence > o.UntilSequence || len(o.Types) > 0 && !slices.Contains(o.Types, d.Event.Type()) {
				continue
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// testBundle is a cluster as its events tell of it, and a handler that reads them.
type testBundle struct {
	t       *testing.T
	server  *embedded.Server
	bus     *bus.Bus
	handler *Handler
	reg     *prometheus.Registry
	log     *memoryLog
	now     time.Time
	fold    *events.Fold // the collector's
	objects events.SnapshotObjects
	epoch   int64
	onStep  func(string)
}

func newBundle(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{t: t, server: bustest.Server(t), log: &memoryLog{}, now: t0, fold: events.NewFold(), epoch: 1}
	b.bus = bustest.Open(t, b.server, func(o *bus.Options) {
		o.OnStep = func(s string) {
			if b.onStep != nil {
				b.onStep(s)
			}
		}
	})
	b.handler = b.open()
	return b
}

// open starts another process: a handler that has nothing in memory.
func (b *testBundle) open() *Handler {
	b.t.Helper()
	b.reg = prometheus.NewRegistry()
	h, err := New(b.t.Context(), Options{Bus: b.bus, Version: "v-test", Logger: slog.New(slog.DiscardHandler), Registerer: b.reg,
		Clock: clocktesting.NewFakePassiveClock(t0)})
	require.NoError(b.t, err)
	h.history = b.log
	return h
}

// deliver puts an event on the log and returns it as delivered now.
func (b *testBundle) deliver(p events.Payload) bus.Delivery {
	b.t.Helper()
	seq := uint64(10 * (len(b.log.deliveries) + 1)) // other clusters have the rest
	e, err := events.New(events.Meta{Cluster: testCluster, Publisher: "test", ID: fmt.Sprint("input-", seq), Time: b.now}, p)
	require.NoError(b.t, err)
	d := bus.Delivery{Event: e, Key: bus.Key{Cluster: testCluster, Name: events.ClusterKey}, Sequence: seq, Incarnation: testIncarnation,
		StreamTime: b.now, Attempt: 1}
	b.log.deliveries = append(b.log.deliveries, d)
	return d
}

// publish has the handler handle an event.
func (b *testBundle) publish(p events.Payload) bus.Delivery {
	b.t.Helper()
	d := b.deliver(p)
	require.NoError(b.t, b.handler.Handle(b.t.Context(), d))
	return d
}

func (b *testBundle) freshness() map[string]time.Time {
	out := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindRecord} {
		out[k] = b.now
	}
	return out
}

// full is a full snapshot of the objects.
func (b *testBundle) full() events.SnapshotCaptured {
	b.t.Helper()
	diff, _, err := events.NewFold().Diff(b.objects)
	require.NoError(b.t, err)
	s := events.SnapshotCaptured{Epoch: b.epoch, Digest: diff.Digest, CapturedAt: b.now, Freshness: b.freshness(), Objects: b.objects}
	require.NoError(b.t, b.fold.Capture(s))
	return s
}

// delta is what changed since the last snapshot.
func (b *testBundle) delta() events.SnapshotChanged {
	b.t.Helper()
	d, _, err := b.fold.Diff(b.objects)
	require.NoError(b.t, err)
	d.Epoch, d.CapturedAt, d.Freshness = b.epoch, b.now, b.freshness()
	require.NoError(b.t, b.fold.Change(d))
	return d
}

// pass lets time go by with a snapshot every ten seconds.
func (b *testBundle) pass(d time.Duration) {
	b.t.Helper()
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(10 * time.Second)
		b.publish(b.delta())
	}
}

func testPolicy() events.Policy {
	min := events.Duration(time.Minute)
	return events.Policy{
		Pools: []events.PoolPolicy{{Name: "a", Provider: "p", Max: 5, Size: events.Resources{CPUMilli: 1000, MemoryBytes: 1 << 30, Pods: 110},
			Labels:          map[string]string{"tier": "batch"},
			Taints:          []events.Taint{{Key: "soft", Effect: "PreferNoSchedule"}},
			StartupTaints:   []events.Taint{{Key: "cni", Effect: "NoSchedule"}},
			ScaleUpCooldown: min, ScaleDownAfterAdd: 10 * min, ScaleDownAfterFail: 3 * min, ScaleDownCooldown: min, Stabilization: 5 * min,
			UtilizationThreshold: 0.5, Unneeded: 5 * min, MinLifetime: 10 * min, MaxRemovals: 1, RegisterDeadline: 2 * min, ClaimExpiry: min,
			DrainDeadline: 2 * min, BackoffInitial: min, BackoffMax: 10 * min, BackoffReset: 60 * min}},
		AlertRules:   []events.AlertRule{{Name: "busy", Pool: "a", Direction: "up", Amount: 1, Matchers: []events.Matcher{{Label: "alertname", Op: "=", Value: "Busy"}}}},
		StartupGrace: 10 * min, StaleAfter: events.Duration(30 * time.Second), MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3,
	}
}

func (b *testBundle) configure(edit ...func(*events.ConfigApplied)) {
	b.t.Helper()
	c := events.ConfigApplied{Digest: "policy-1", Version: "v-test", Start: b.now, Policy: testPolicy()}
	for _, e := range edit {
		e(&c)
	}
	b.publish(c)
}

func (b *testBundle) alert(status string) events.AlertReceived {
	return events.AlertReceived{Status: status, Fingerprint: "f", StartsAt: b.now, Labels: map[string]string{"alertname": "Busy"},
		ReceivedAt: b.now, ExpiresAt: b.now.Add(15 * time.Minute)}
}

// node adds a Ready node of ours that has been there for a day.
func (b *testBundle) node(name string) {
	at := b.now.Add(-24*time.Hour + time.Duration(len(b.objects.Nodes))*time.Minute)
	size := testPolicy().Pools[0].Size
	b.objects.Nodes = append(b.objects.Nodes, events.SnapshotNode{Name: name, UID: "uid-" + name, CreatedAt: at, Ready: "True", ReadySince: at,
		Labels: map[string]string{events.LabelCluster: testCluster, events.LabelPool: "a", events.LabelClaim: "claim-" + name}, Capacity: size, Allocatable: size})
	b.objects.Records = append(b.objects.Records, events.NodeRecord{Name: name, Pool: "a", ClaimID: "claim-" + name, Phase: "ready",
		CorrelationID: "life-of-" + name, ClaimedAt: at, ReadyAt: at})
}

// pods adds pending pods that take half a node each and more.
func (b *testBundle) pods(n int) {
	if len(b.objects.Classes) == 0 {
		b.objects.Classes = []events.PodClass{{ID: "web", Namespace: "ns", Requests: events.Resources{CPUMilli: 600, MemoryBytes: 1 << 20},
			NodeSelector: map[string]string{"tier": "batch"},
			NodeAffinity: []events.NodeSelectorTerm{{MatchExpressions: []events.Requirement{{Key: "tier", Operator: "Exists"}}}},
			Tolerations:  []events.Toleration{{Key: "x", Operator: "Exists"}}}}
	}
	for range n {
		b.objects.Pods = append(b.objects.Pods, events.SnapshotPod{Namespace: "ns", Name: fmt.Sprint("web-", len(b.objects.Pods)), UID: "u",
			Class: "web", Phase: "Pending", CreatedAt: b.now, Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: "web"}, UnschedulableSince: b.now})
	}
}

// emitted is everything that decision has published, in order.
func (b *testBundle) emitted() []events.Event {
	b.t.Helper()
	var out []events.Event
	for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: testCluster}) {
		require.NoError(b.t, err)
		out = append(out, d.Event)
	}
	return out
}

func payloads[T events.Payload](b *testBundle) []T {
	b.t.Helper()
	var zero T
	var out []T
	for _, e := range b.emitted() {
		if e.Type() == zero.EventType() {
			p, err := events.Decode[T](e)
			require.NoError(b.t, err)
			out = append(out, p)
		}
	}
	return out
}

// encoded is events as they are on the wire, sorted: the order between nodes is
// nobody's promise.
func encoded(t *testing.T, es []events.Event) []string {
	t.Helper()
	var out []string
	for _, e := range es {
		raw, err := json.Marshal(e)
		require.NoError(t, err)
		out = append(out, string(raw))
	}
	slices.Sort(out)
	return out
}

var errBroken = errors.New("the stream can't be read")
