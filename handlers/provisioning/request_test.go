package provisioning

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// ask publishes a request and returns what the handler reported.
func (b *testBundle) ask(p events.ReconcileRequested, cluster string) (events.ReconcileReported, events.Event) {
	b.t.Helper()
	e := b.publish("api", p, func(m *events.Meta) { m.Node, m.Cluster, m.CorrelationID = "", cluster, "" })
	for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: cluster, Follow: true, Types: []string{events.TypeReconcileReported}}) {
		require.NoError(b.t, err)
		r, err := events.Decode[events.ReconcileReported](d.Event)
		require.NoError(b.t, err)
		if r.RequestID == e.ID() {
			require.Equal(b.t, e.ID(), events.Extension(d.Event, events.ExtCausationID))
			return r, d.Event
		}
	}
	return events.ReconcileReported{}, events.Event{}
}

func TestADryRunTellsWhatASweepWouldDoAndDoesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.times.Grace = time.Nanosecond // everything is due
	b.world.machines[testNode] = b.machine(MachineExited)
	b.world.machines["small-bbbbbbbbbb"] = &Machine{Name: "small-bbbbbbbbbb", Pool: testPool, ClaimID: "claim-2", Epoch: "another", State: MachineRunning}
	b.start(nil)
	r, _ := b.ask(events.ReconcileRequested{DryRun: true, Actor: "ada"}, testCluster)
	require.True(t, r.DryRun)
	require.Equal(t, 2, r.Nodes)
	require.Zero(t, r.Records)
	require.Empty(t, r.Unknown)
	require.Len(t, r.Differences, 2)
	require.Equal(t, events.DivergedOrphanInstance, r.Differences[0].Kind)
	require.Equal(t, actions[events.DivergedOrphanInstance], r.Differences[0].Action)
	require.False(t, r.Differences[0].Due.IsZero())
	require.Empty(t, r.Differences[1].Kind)
	require.Contains(t, r.Differences[1].Action, "left alone: it belongs to another log")
	require.Empty(t, b.diverged())
	require.Zero(t, b.world.made("stop")+b.world.made("delete"))
}

func TestARequestSweepsNowAndReportsWhatItFound(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.times.Grace = time.Nanosecond
	p := b.start(nil)
	b.ready(p)
	b.world.do(func(w *fakeWorld) { delete(w.machines, testNode) })
	r, _ := b.ask(events.ReconcileRequested{Actor: "ada", Reason: "a look"}, testCluster)
	require.Equal(t, 1, r.Records)
	require.Len(t, r.Differences, 1)
	require.Equal(t, events.DivergedNodeLost, r.Differences[0].Kind)
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonMachineGone, lost.Reason.Code)
	b.settled(p)
	b.nothingLeft()
}

func TestAReportNamesWhatCouldNotBeRead(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.handler(nil)
	b.world.failNext("list", errors.New("the engine is away"))
	b.world.failNext("listnodes", errors.New("the API server is away"))
	d := b.delivery(b.event("api", events.ReconcileRequested{Actor: "ada"}, func(m *events.Meta) { m.Node = "" }), 1)
	r, err := p.h.sweeper.asked(t.Context(), d, false)
	require.NoError(t, err)
	require.Len(t, r.Unknown, 2)
	require.Contains(t, r.Unknown[0], "the engine is away")
	require.Contains(t, r.Unknown[1], "the API server is away")

	d.Key.Cluster = "office"
	r, err = p.h.sweeper.asked(t.Context(), d, false)
	require.NoError(t, err)
	require.Contains(t, r.Unknown[0], "cluster office is not configured")
}

func TestARequestDoesNotWaitForASweepThatWaits(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.times.Asked = 20 * time.Millisecond
	p := b.handler(nil)
	end, err := p.h.sweeper.begin(t.Context())
	require.NoError(t, err)
	d := b.delivery(b.event("api", events.ReconcileRequested{Actor: "ada"}, func(m *events.Meta) { m.Node = "" }), 1)
	r, err := p.h.sweeper.asked(t.Context(), d, false)
	require.NoError(t, err)
	require.Contains(t, r.Unknown[0], "ask again")
	require.Zero(t, b.world.made("list"))
	end()
	p.h.times.Asked = time.Minute
	r, err = p.h.sweeper.asked(t.Context(), d, false)
	require.NoError(t, err)
	require.Empty(t, r.Unknown)
	require.NotZero(t, b.world.made("list"))
}

func TestAReportListsSoManyDifferencesAndCountsTheRest(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for i := range events.MaxDifferences + 7 {
		m := b.machine(MachineExited)
		m.Name = "small-" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		b.world.machines[m.Name] = m
	}
	p := b.handler(nil)
	d := b.delivery(b.event("api", events.ReconcileRequested{Actor: "ada"}, func(m *events.Meta) { m.Node = "" }), 1)
	r, err := p.h.sweeper.asked(t.Context(), d, true)
	require.NoError(t, err)
	require.Len(t, r.Differences, events.MaxDifferences)
	require.Equal(t, 7, r.More)
}
