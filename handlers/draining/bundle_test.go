package draining

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

const (
	testCluster = "home"
	testPool    = "burst"
	testNode    = "burst-aaaaaaaaaa"
	testClaim   = "claim-1"
	testLife    = "life-1"
)

// patience is how long a test waits for what must happen.
const patience = bustest.Patience

// testBundle is a server, a world, and any number of processes between them.
type testBundle struct {
	t      *testing.T
	server *embedded.Server
	world  *world
	bus    *bus.Bus // the test's own
	times  Times
	events int
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	s := bustest.Server(t)
	return &testBundle{t: t, server: s, world: newWorld(), bus: bustest.Open(t, s), times: Times{
		Poll: 10 * time.Millisecond, RetryBase: 10 * time.Millisecond, RetryMax: 40 * time.Millisecond,
		Jobs: 10 * time.Millisecond, Look: 50 * time.Millisecond, Lease: 3 * time.Second, Stuck: 100 * time.Millisecond,
	}}
}

type process struct {
	h    *Handler
	bus  *bus.Bus
	reg  *prometheus.Registry
	stop func()
}

// open opens the handler without running it.
func (b *testBundle) open(onStep func(string)) *process {
	b.t.Helper()
	own := bustest.Open(b.t, b.server, func(o *bus.Options) { o.OnStep = onStep })
	p := &process{bus: own, reg: prometheus.NewRegistry(), stop: func() {}}
	var err error
	p.h, err = New(b.t.Context(), Options{
		Bus: own, Times: b.times, Registerer: p.reg, OnStep: onStep, Logger: slog.New(slog.DiscardHandler),
		Clusters: func() map[string]Cluster { return map[string]Cluster{testCluster: b.world} },
	})
	require.NoError(b.t, err)
	return p
}

// start runs a process. It ends with the test, or by stop, or when onStep
// calls kill: then it does nothing more.
func (b *testBundle) start(onStep func(step string, kill func())) *process {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var hook func(string)
	if onStep != nil {
		hook = func(step string) {
			onStep(step, func() {
				cancel()
				// Evictions run in goroutines of their own, where a panic would end
				// the test: the ended context stops them.
				if !strings.HasPrefix(step, "draining/evict/") {
					panic("killed at " + step)
				}
			})
		}
	}
	p := b.open(hook)
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.bus.Run(ctx, p.h) })
	wg.Go(func() { _ = p.h.Run(ctx) })
	p.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(p.stop)
	return p
}

func (b *testBundle) publish(p events.Payload, mod ...func(*events.Meta)) events.Event {
	b.t.Helper()
	b.events++
	m := events.Meta{Cluster: testCluster, Node: testNode, Publisher: "decision", Time: time.Now(), CorrelationID: testLife,
		ID: events.ID("test", b.t.Name(), fmt.Sprint(b.events))}
	for _, f := range mod {
		f(&m)
	}
	e, err := events.New(m, p)
	require.NoError(b.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(b.t, b.bus.Publish(ctx, e))
	return e
}

// request asks for a drain of the test's node within a minute.
func (b *testBundle) request(goal string, mod ...func(*events.NodeDrainRequested)) events.Event {
	b.t.Helper()
	now := time.Now().UTC()
	p := events.NodeDrainRequested{Node: testNode, Pool: testPool, ClaimID: testClaim, Goal: goal, DecisionID: "decision-1",
		Reason: events.Reason{Code: "Unneeded", Message: "the node is 10 % used"}, DecidedAt: now,
		NotAfter: now.Add(time.Minute), Deadline: events.Duration(time.Minute)}
	for _, m := range mod {
		m(&p)
	}
	return b.publish(p)
}

func within(d time.Duration) func(*events.NodeDrainRequested) {
	return func(p *events.NodeDrainRequested) { p.Deadline = events.Duration(d) }
}

func by(actor string) func(*events.NodeDrainRequested) {
	return func(p *events.NodeDrainRequested) { p.Actor = actor }
}

func (b *testBundle) cancel(actor string) events.Event {
	b.t.Helper()
	return b.publish(events.NodeDrainCancelled{Node: testNode, DecisionID: "decision-2", Actor: actor,
		Reason: events.Reason{Code: "NewDemand", Message: "3 pods pend"}})
}

// log returns everything on the test's node, in order.
func (b *testBundle) log() []bus.Delivery {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out []bus.Delivery
	for d, err := range b.bus.Read(ctx, bus.ReadOptions{Node: testNode}) {
		require.NoError(b.t, err)
		out = append(out, d)
	}
	return out
}

// published returns what draining published, in order, without progress.
func (b *testBundle) published() []string {
	var out []string
	for _, d := range b.log() {
		if typ := d.Event.Type(); strings.HasSuffix(d.Event.Source(), "/draining") && typ != events.TypeNodeDrainProgressed {
			out = append(out, strings.TrimSuffix(strings.TrimPrefix(typ, events.TypePrefix), ".v1"))
		}
	}
	return out
}

func find[P events.Payload](b *testBundle) []P {
	b.t.Helper()
	var zero P
	var out []P
	for _, d := range b.log() {
		if d.Event.Type() == zero.EventType() {
			p, err := events.Decode[P](d.Event)
			require.NoError(b.t, err)
			out = append(out, p)
		}
	}
	return out
}

// await waits for the n-th event of a type, and returns it.
func await[P events.Payload](b *testBundle, n int) P {
	b.t.Helper()
	var all []P
	require.Eventually(b.t, func() bool { all = find[P](b); return len(all) >= n }, patience, 10*time.Millisecond,
		"no %T came: %v", *new(P), b.published())
	return all[n-1]
}

func (b *testBundle) record() (lifecycle.Drain, bool) {
	b.t.Helper()
	s, err := bus.ReadState[lifecycle.Drain](b.t.Context(), b.bus, events.HandlerDraining)
	require.NoError(b.t, err)
	r, ok, err := s.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
	require.NoError(b.t, err)
	return r.State, ok
}

func (b *testBundle) awaitPhase(phase lifecycle.DrainPhase) lifecycle.Drain {
	b.t.Helper()
	var d lifecycle.Drain
	require.Eventually(b.t, func() bool { d, _ = b.record(); return d.Phase == phase }, patience, 10*time.Millisecond)
	return d
}

// counted waits until a process has counted the one removal, which it does when
// its outcome is published, and makes sure that it counts it once.
func (b *testBundle) counted(p *process, outcome string) {
	b.t.Helper()
	n := func() float64 { return testutil.ToFloat64(p.h.metrics.drains.WithLabelValues("remove", outcome)) }
	require.Eventually(b.t, func() bool { return n() > 0 }, patience, 10*time.Millisecond)
	require.InDelta(b.t, 1, n(), 0)
}

// settled waits until the handler has taken in everything that was published,
// and has nothing left to do.
func (b *testBundle) settled(p *process) {
	b.t.Helper()
	log := b.log()
	require.Eventually(b.t, func() bool {
		r, ok, err := p.h.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
		require.NoError(b.t, err)
		last := uint64(0)
		for _, d := range log {
			if def, _ := events.Lookup(d.Event.Type()); slices.Contains(def.Readers, events.HandlerDraining) {
				last = d.Sequence
			}
		}
		return r.Last >= last && (!ok || !r.State.Active())
	}, patience, 10*time.Millisecond)
}
