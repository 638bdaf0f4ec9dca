package provisioning

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// unrecorded is a Ready node with its machine that no record tells of.
func (b *testBundle) unrecorded() NodeObject {
	m := b.machine(MachineRunning)
	m.Host, m.Image, m.CreatedAt = "host-1", "rancher/k3s:v1.34.4-k3s1", time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b.world.machines[testNode] = m
	return b.world.register(testNode, true)
}

func TestAReadyNodeWithoutARecordIsAdoptedAfterTheGrace(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	o := b.unrecorded()
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	s.run()
	s.clock.Step(time.Minute)
	s.run()
	require.Empty(t, b.diverged(), "its record may be about to be written")
	require.InDelta(t, 1, testutil.ToFloat64(s.h.metrics.differences.WithLabelValues(events.DivergedUnrecorded)), 0)
	s.clock.Step(time.Minute)
	s.run()
	require.Equal(t, []string{events.DivergedUnrecorded}, b.diverged())
	adopted, e := await[events.NodeAdopted](b)
	require.Equal(t, testPool, adopted.Pool)
	require.Equal(t, testClaim, adopted.ClaimID)
	require.Equal(t, testClaim, events.Extension(e, events.ExtCorrelationID))
	require.Equal(t, events.FoundMachine{Host: "host-1", Image: "rancher/k3s:v1.34.4-k3s1", Epoch: b.bus.Incarnation(), UID: o.UID,
		CreatedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, adopted.Machine)
	n := b.record(p, "checked", func(n lifecycle.Node, _ bool) bool { return n.Phase == lifecycle.Ready && n.Suspicion == nil })
	require.Equal(t, adopted.Machine.CreatedAt, n.ReadyAt)
	require.Zero(t, b.world.made("stop")+b.world.made("delete")+b.world.made("deletenode"))

	// From now on it is like any other.
	s.clock.Step(time.Minute)
	s.run()
	require.Len(t, b.diverged(), 1)
	require.Zero(t, testutil.ToFloat64(s.h.metrics.differences.WithLabelValues(events.DivergedUnrecorded)))
	b.drain()
	b.settled(p)
	b.says(and([]string{"node.adopted"}, and(cleanUp, "node.removed")...)...)
	b.nothingLeft()
}

func TestWhatVanishedWhileItWasAdoptedIsLost(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedUnrecorded, ClaimID: testClaim, Pool: testPool, At: time.Now(),
		Machine: &events.FoundMachine{Epoch: b.bus.Incarnation()}})
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonMachineGone, lost.Reason.Code)
	require.False(t, b.settled(p).ReadyAt.IsZero())
}

func TestAReportOfAnUnrecordedNodeThatIsOldOrTooLateAdoptsNothing(t *testing.T) {
	t.Parallel()
	machine := &events.FoundMachine{UID: "u"}
	for _, c := range []struct {
		name   string
		report func(b *testBundle) bus.Delivery
	}{
		{"it is old", func(b *testBundle) bus.Delivery {
			d := b.delivery(b.event("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedUnrecorded, ClaimID: testClaim, Machine: machine}), 1)
			d.StreamTime = time.Now().Add(-time.Hour)
			return d
		}},
		{"it names no claim", func(b *testBundle) bus.Delivery {
			return b.delivery(b.event("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedUnrecorded, Machine: machine}), 1)
		}},
		{"it names no machine", func(b *testBundle) bus.Delivery {
			return b.delivery(b.event("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedUnrecorded, ClaimID: testClaim}), 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			p := b.handler(nil)
			require.NoError(t, p.h.Handle(t.Context(), c.report(b)))
			_, exists, err := p.h.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
			require.NoError(t, err)
			require.False(t, exists)
		})
	}
	t.Run("it has a record by now", func(t *testing.T) {
		t.Parallel()
		b := newBundle(t)
		p := b.start(nil)
		b.ready(p)
		e := b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedUnrecorded, ClaimID: testClaim, Machine: machine})
		b.handled(p, e)
		b.says("node.created", "node.registered", "node.ready")
	})
}

// What a log that this one continues has made is ours, see bus rebase.
func TestMachinesOfALogThatThisOneContinuesAreOurs(t *testing.T) {
	t.Parallel()
	v := &view{listed: map[string]bool{testPool: true}, nodes: map[string]NodeObject{},
		log: bus.LogState{Incarnation: "now", Ancestors: []bus.Ancestor{{Incarnation: "before"}}}}
	for epoch, ours := range map[string]bool{"now": true, "before": true, "": true, "another": false} {
		why := v.leave(Machine{Name: testNode, Pool: testPool, ClaimID: testClaim, Epoch: epoch, State: MachineRunning}, false)
		require.Equal(t, ours, why == "", "epoch %q: %s", epoch, why)
	}
}

func TestNothingIsSaidOfAMachineWhileTheAPIServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	v := &view{listed: map[string]bool{testPool: true}, log: bus.LogState{Incarnation: "now"}}
	require.Contains(t, v.leave(Machine{Name: testNode, Pool: testPool, ClaimID: testClaim, Epoch: "now"}, false), "the API server does not say")
}
