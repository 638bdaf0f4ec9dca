package provisioning

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// patience is how long a test waits for what has to come.
const patience = bustest.Patience

const (
	testCluster = "home"
	testPool    = "small"
	testNode    = "small-aaaaaaaaaa"
	testClaim   = "claim-1"
)

// testBundle is a server, a world, and any number of processes between them.
type testBundle struct {
	t      *testing.T
	server *embedded.Server
	world  *fakeWorld
	bus    *bus.Bus // the test's own
	times  Times
	clock  clock.WithTicker
	pools  map[string]Machines
	apart  bool // messages are handled by one process, and worked on by another

	mu   sync.Mutex
	seen []bus.Delivery // about the test's node, as they come
}

func newBundle(t *testing.T) *testBundle {
	t.Helper()
	s := bustest.Server(t)
	w := newWorld()
	b := &testBundle{t: t, server: s, world: w, bus: bustest.Open(t, s), times: shortTimes(), clock: clock.RealClock{},
		pools: map[string]Machines{testPool: fakeMachines{w}}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for d, err := range b.bus.Read(ctx, bus.ReadOptions{Cluster: testCluster, Node: testNode, Follow: true}) {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.seen = append(b.seen, d)
			b.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b
}

// followed returns what was seen so far.
func (b *testBundle) followed() []bus.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.seen)
}

// process is one running instance of the handler.
type process struct {
	h    *Handler
	bus  *bus.Bus
	reg  *prometheus.Registry
	stop func()
}

// handler opens the handler without running it.
func (b *testBundle) handler(onStep func(string)) *process {
	b.t.Helper()
	own := bustest.Open(b.t, b.server, func(o *bus.Options) { o.OnStep = onStep })
	p := &process{bus: own, reg: prometheus.NewRegistry(), stop: func() {}}
	var err error
	p.h, err = New(b.t.Context(), Options{
		Bus: own, Times: b.times, Clock: b.clock, Registerer: p.reg, OnStep: onStep, Logger: slog.New(slog.DiscardHandler),
		Clusters: func() map[string]Cluster {
			return map[string]Cluster{testCluster: {Nodes: fakeNodes{b.world}, Pools: b.pools}}
		},
	})
	require.NoError(b.t, err)
	return p
}

// start runs a process. It ends with the test, or by stop.
func (b *testBundle) start(onStep func(step string, kill func())) *process {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var hook func(string)
	if onStep != nil {
		hook = func(step string) { onStep(step, func() { cancel(); panic("killed at " + step) }) }
	}
	p := b.handler(hook)
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.bus.Run(ctx, p.h) })
	worker := p
	if b.apart {
		worker = b.handler(hook) // p ends with it
	}
	wg.Go(func() { _ = worker.h.Run(ctx) })
	p.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(p.stop)
	return p
}

func (b *testBundle) claim(mod ...func(*events.NodeClaimed)) events.NodeClaimed {
	now := time.Now().UTC()
	p := events.NodeClaimed{ClaimID: testClaim, Node: testNode, Pool: testPool, Provider: "fake", DecisionID: "decision-1",
		Reason: events.Reason{Code: "UnschedulablePods", Message: "2 pods pend"}, Actor: "decision",
		Size:   events.Resources{CPUMilli: 2000, MemoryBytes: 4 << 30, Pods: 110},
		Labels: map[string]string{"tier": "batch"}, Taints: []events.Taint{{Key: "batch", Effect: "NoSchedule"}},
		ClaimedAt: now, NotAfter: now.Add(time.Minute), RegisterDeadline: events.Duration(time.Minute), TriggerSince: now.Add(-2 * time.Second)}
	for _, m := range mod {
		m(&p)
	}
	return p
}

var eventIDs atomic.Int64

// event builds an event as another role would publish it.
func (b *testBundle) event(publisher string, p events.Payload, mod ...func(*events.Meta)) events.Event {
	b.t.Helper()
	m := events.Meta{Cluster: testCluster, Node: testNode, Publisher: publisher, Time: time.Now(), CorrelationID: "life-1",
		ID: events.ID("test", b.t.Name(), strconv.FormatInt(eventIDs.Add(1), 10))}
	for _, f := range mod {
		f(&m)
	}
	e, err := events.New(m, p)
	require.NoError(b.t, err)
	return e
}

func (b *testBundle) publish(publisher string, p events.Payload, mod ...func(*events.Meta)) events.Event {
	b.t.Helper()
	e := b.event(publisher, p, mod...)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(b.t, b.bus.Publish(ctx, e))
	return e
}

// observe publishes what the collector sees of the test's node.
func (b *testBundle) observe(what string, o NodeObject) {
	b.t.Helper()
	p := events.NodeObserved{Node: testNode, What: what, UID: o.UID, At: time.Now()}
	if o.ClaimID != "" {
		p.Labels = map[string]string{events.LabelClaim: o.ClaimID}
	}
	b.publish("collector", p)
}

// agent makes machines register and become Ready as soon as they are started.
func (b *testBundle) agent() {
	b.world.onStart = func(name string) {
		o := b.world.register(name, true)
		b.observe(events.ObservedRegistered, o)
		b.observe(events.ObservedReady, o)
	}
}

// drain publishes that the test's node was emptied for its removal.
func (b *testBundle) drain() {
	b.t.Helper()
	ref := events.DrainRef{Node: testNode, Pool: testPool, ClaimID: testClaim, Goal: events.GoalRemove, RequestID: "request-1", At: time.Now()}
	b.publish("draining", events.NodeCordoned{DrainRef: ref, Reason: events.Reason{Code: "Unneeded"}})
	b.publish("draining", events.NodeDrained{DrainRef: ref, DecisionID: "decision-2", Evicted: 3, DecidedAt: time.Now().Add(-time.Second),
		Reason: events.Reason{Code: "Unneeded", Message: "idle for 10m"}})
}

// events returns what is in the stream about the test's node, in order.
func (b *testBundle) events() []bus.Delivery {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out []bus.Delivery
	for d, err := range b.bus.Read(ctx, bus.ReadOptions{Cluster: testCluster, Node: testNode}) {
		require.NoError(b.t, err)
		out = append(out, d)
	}
	return out
}

func typeOf(e events.Event) string {
	s := strings.TrimSuffix(strings.TrimPrefix(e.Type(), events.TypePrefix), ".v1")
	if e.Type() == events.TypeNodeRemovalProgressed {
		p, _ := events.Decode[events.NodeRemovalProgressed](e)
		s = p.Step
	}
	return s
}

// said returns the types of what provisioning published about the test's node,
// without what its sweep and watch saw; of a removal's progress, the steps.
func (b *testBundle) said() []string {
	b.t.Helper()
	return saidIn(b.events())
}

func saidIn(ds []bus.Delivery) []string {
	out := []string{}
	for _, d := range ds {
		watched := d.Event.Type() == events.TypeNodeObserved || d.Event.Type() == events.TypeNodeDiverged
		if strings.HasSuffix(d.Event.Source(), "/provisioning") && !watched {
			out = append(out, typeOf(d.Event))
		}
	}
	return out
}

// says waits until provisioning has said as much, and requires that it was this.
// Events follow the record that they come from.
func (b *testBundle) says(want ...string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return len(saidIn(b.followed())) >= len(want) }, patience, 5*time.Millisecond,
		"said %v, expected %v", saidIn(b.followed()), want)
	require.Equal(b.t, want, b.said())
}

// await waits for an event of provisioning about the test's node and returns it.
func await[P events.Payload](b *testBundle) (P, events.Event) {
	b.t.Helper()
	return awaitWhere(b, func(P) bool { return true })
}

func awaitWhere[P events.Payload](b *testBundle, ok func(P) bool) (P, events.Event) {
	b.t.Helper()
	var p P
	var e events.Event
	require.Eventually(b.t, func() bool {
		for _, d := range b.followed() {
			if d.Event.Type() != p.EventType() || !strings.HasSuffix(d.Event.Source(), "/provisioning") {
				continue
			}
			found, err := events.Decode[P](d.Event)
			require.NoError(b.t, err)
			if ok(found) {
				p, e = found, d.Event
				return true
			}
		}
		return false
	}, patience, 10*time.Millisecond, "no %s", p.EventType())
	return p, e
}

// record waits until the record of the test's node is as wanted.
func (b *testBundle) record(p *process, what string, ok func(n lifecycle.Node, exists bool) bool) lifecycle.Node {
	b.t.Helper()
	var n lifecycle.Node
	require.Eventually(b.t, func() bool {
		r, exists, err := p.h.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
		require.NoError(b.t, err)
		n = r.State
		return ok(n, exists)
	}, patience, 10*time.Millisecond, "record is never %s", what)
	return n
}

func (b *testBundle) phase(p *process, want lifecycle.Phase) lifecycle.Node {
	b.t.Helper()
	return b.record(p, string(want), func(n lifecycle.Node, _ bool) bool { return n.Phase == want })
}

func (b *testBundle) settled(p *process) lifecycle.Node {
	b.t.Helper()
	return b.record(p, "settled", func(n lifecycle.Node, _ bool) bool { return n.Settled() })
}

// handled waits until provisioning has handled an event.
func (b *testBundle) handled(p *process, e events.Event) {
	b.t.Helper()
	var seq uint64
	for _, d := range b.events() {
		if d.Event.ID() == e.ID() {
			seq = d.Sequence
		}
	}
	require.NotZero(b.t, seq)
	require.Eventually(b.t, func() bool {
		r, _, err := p.h.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
		require.NoError(b.t, err)
		return r.Last >= seq
	}, patience, 10*time.Millisecond, "event is never handled")
}

// nothingLeft requires that machine, Node object and secret are gone.
func (b *testBundle) nothingLeft() {
	b.t.Helper()
	machines, objects, secrets := b.world.left(b.t)
	require.Empty(b.t, machines)
	require.Empty(b.t, objects)
	require.Empty(b.t, secrets)
}

var cleanUp = slices.Clone(lifecycle.Steps)

func and(a []string, more ...string) []string { return append(slices.Clone(a), more...) }
