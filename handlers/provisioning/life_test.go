package provisioning

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

func TestStepsOfARemovalAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{events.StepInstanceStopped, events.StepNodeDeleted, events.StepSecretDeleted, events.StepInstanceDeleted}, lifecycle.Steps)
}

func TestOptionsAreCheckedTogether(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Options{})
	require.ErrorContains(t, err, "bus is required")
	require.ErrorContains(t, err, "clusters is required")
}

func TestClaimBecomesAReadyNodeAndADrainedNodeIsRemovedInOrder(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	claim := b.publish("decision", b.claim())

	ready, e := await[events.NodeReady](b)
	require.True(t, ready.First)
	require.Equal(t, "life-1", events.Extension(e, events.ExtCorrelationID))
	names := []string{}
	for _, s := range ready.Stages {
		names = append(names, s.Name)
		require.GreaterOrEqual(t, s.Seconds, 0.0)
	}
	require.Equal(t, []string{"decided", "claimed", "created", "registered", "ready"}, names)
	require.InDelta(t, 2.0, ready.Stages[0].Seconds, 0.5, "decided two seconds after the need arose")
	created, e := await[events.NodeCreated](b)
	require.Equal(t, events.NodeCreated{Node: testNode, Pool: testPool, ClaimID: testClaim, Instance: "id-" + testNode,
		Host: "host-1", Image: "rancher/k3s:v1.34.4-k3s1", At: created.At}, created)
	require.Equal(t, claim.ID(), events.Extension(e, events.ExtCausationID))
	n := b.phase(p, lifecycle.Ready)
	require.Equal(t, "uid-1", n.UID)
	require.Zero(t, n.Deadline)
	require.Equal(t, b.bus.Incarnation(), n.Epoch)
	require.Equal(t, int64(2000), n.Spec.CPUMilli)
	require.Equal(t, []lifecycle.Taint{{Key: "batch", Effect: "NoSchedule"}}, n.Spec.Taints)

	b.drain()
	removed, e := await[events.NodeRemoved](b)
	require.Equal(t, "life-1", events.Extension(e, events.ExtCorrelationID))
	require.Equal(t, "decision-2", removed.DecisionID)
	require.Equal(t, events.Reason{Code: "Unneeded", Message: "idle for 10m"}, removed.Reason)
	names = nil
	for _, s := range removed.Stages {
		names = append(names, s.Name)
	}
	require.Equal(t, and([]string{"cordoned", "drained"}, cleanUp...), names)
	b.says(and([]string{"node.created", "node.registered", "node.ready"}, and(cleanUp, "node.removed")...)...)
	require.Equal(t, 1, b.world.runs[testClaim])
	b.nothingLeft()
	var effects []string
	b.world.do(func(w *fakeWorld) {
		for _, c := range w.calls {
			switch c {
			case "stop " + testNode, "deletenode " + testNode, "deletesecret " + testNode, "delete " + testNode:
				effects = append(effects, c)
			}
		}
	})
	require.Equal(t, []string{"stop " + testNode, "deletenode " + testNode, "deletesecret " + testNode, "delete " + testNode}, effects)
	require.Equal(t, lifecycle.Removed, b.settled(p).Phase)

	require.Equal(t, 1, testutil.CollectAndCount(p.reg, "autoscaler_node_registration_time_seconds"))
	// Counted once the record is written:
	// decided, claimed, created, registered, ready, total; cordoned, drained, four steps, total.
	require.Eventually(t, func() bool { return testutil.CollectAndCount(p.reg, "autoscaler_scaling_duration_seconds") == 13 }, patience, 5*time.Millisecond)
}

func TestReadyBeforeRegisteredIsBoth(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.onStart = func(name string) { b.observe(events.ObservedReady, b.world.register(name, true)) }
	b.start(nil)
	b.publish("decision", b.claim())
	await[events.NodeReady](b)
	b.says("node.created", "node.registered", "node.ready")
}

func TestNodeThatIsNotReadyForAWhileIsReportedBothWays(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	n := b.phase(p, lifecycle.Ready)

	b.publish("collector", events.NodeObserved{Node: testNode, What: events.ObservedUnready, UID: n.UID, Reason: "KubeletStopped", Message: "no heartbeat", At: time.Now()})
	unready, _ := await[events.NodeUnready](b)
	require.Equal(t, events.Reason{Code: "KubeletStopped", Message: "no heartbeat"}, unready.Reason)
	b.phase(p, lifecycle.Unready)
	b.observe(events.ObservedUnready, NodeObject{UID: n.UID})
	b.observe(events.ObservedReady, NodeObject{UID: n.UID})
	ready, _ := awaitWhere(b, func(p events.NodeReady) bool { return !p.First })
	require.Empty(t, ready.Stages)
	b.observe(events.ObservedUnready, NodeObject{UID: n.UID})
	unready, _ = awaitWhere(b, func(p events.NodeUnready) bool { return p.Reason.Code != "KubeletStopped" })
	require.Equal(t, ReasonNotReady, unready.Reason.Code)
	b.says("node.created", "node.registered", "node.ready", "node.unready", "node.ready", "node.unready")
	require.Equal(t, 1, testutil.CollectAndCount(p.reg, "autoscaler_node_registration_time_seconds"))

	b.drain()
	await[events.NodeRemoved](b)
	b.nothingLeft()
}

func TestOnlyANodeThatCarriesTheClaimRegistersForIt(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Created)
	b.observe(events.ObservedRegistered, NodeObject{UID: "uid-9", ClaimID: "claim-of-another"})
	b.observe(events.ObservedReady, NodeObject{UID: "uid-9", ClaimID: "claim-of-another"})
	b.observe(events.ObservedRegistered, NodeObject{UID: "uid-9"})
	b.observe(events.ObservedRegistered, NodeObject{})
	b.observe(events.ObservedRegistered, NodeObject{UID: "uid-1", ClaimID: testClaim})
	await[events.NodeRegistered](b)
	require.Equal(t, "uid-1", b.phase(p, lifecycle.Registered).UID)
	b.says("node.created", "node.registered")

	b.observe(events.ObservedRegistered, NodeObject{UID: "uid-2", ClaimID: testClaim})
	n := b.record(p, "known by its new UID", func(n lifecycle.Node, _ bool) bool { return n.UID == "uid-2" })
	require.Equal(t, lifecycle.Registered, n.Phase, "registered again: the same life")
}

func TestCordonAndDrainThatLeaveTheNodeRemoveNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Ready)
	ref := events.DrainRef{Node: testNode, ClaimID: testClaim, Goal: events.GoalDrain, RequestID: "request-0", At: time.Now()}
	b.publish("draining", events.NodeCordoned{DrainRef: ref, Reason: events.Reason{Code: "Maintenance"}})
	require.Equal(t, "request-0", b.record(p, "cordoned", func(n lifecycle.Node, _ bool) bool { return n.Drained != nil }).Drained.RequestID)
	b.publish("draining", events.NodeDrainProgressed{DrainRef: ref})
	b.publish("draining", events.NodeDrainBlocked{DrainRef: ref, Blockers: []events.Blocker{{Kind: "PodDisruptionBudget"}}})
	b.publish("draining", events.NodeDrained{DrainRef: ref})
	other := ref
	other.RequestID = "request-before"
	b.publish("draining", events.NodeUncordoned{DrainRef: other, Reason: events.Reason{Code: "Cancelled"}})
	e := b.publish("draining", events.NodeUncordoned{DrainRef: ref, Reason: events.Reason{Code: "Cancelled"}})
	b.handled(p, e)
	n := b.phase(p, lifecycle.Ready)
	require.Nil(t, n.Drained)
	require.Zero(t, b.world.made("stop"))
	b.says("node.created", "node.registered", "node.ready")
}

func TestDrainedNodeOfAnotherClaimIsNotRemoved(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Ready)
	ref := events.DrainRef{Node: testNode, Pool: testPool, ClaimID: "claim-of-another", Goal: events.GoalRemove, RequestID: "request-1", At: time.Now()}
	b.publish("draining", events.NodeCordoned{DrainRef: ref, Reason: events.Reason{Code: "Unneeded"}})
	e := b.publish("draining", events.NodeDrained{DrainRef: ref})
	b.handled(p, e)
	require.Equal(t, lifecycle.Ready, b.phase(p, lifecycle.Ready).Phase)
	require.Zero(t, b.world.made("stop"))
}

func TestDrainedNodeWithoutARecordIsRemovedByItsClaim(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.machines[testNode] = &Machine{Name: testNode, ID: "m", Cluster: testCluster, Pool: testPool, ClaimID: testClaim, Epoch: "an older log", State: MachineRunning}
	b.world.register(testNode, true)
	p := b.start(nil)
	b.drain()
	removed, _ := await[events.NodeRemoved](b)
	require.Equal(t, "Unneeded", removed.Reason.Code)
	b.says(and(cleanUp, "node.removed")...)
	b.nothingLeft()

	// Drained once more: it is gone.
	e := b.publish("draining", events.NodeDrained{DrainRef: events.DrainRef{Node: testNode, Pool: testPool, ClaimID: testClaim,
		Goal: events.GoalRemove, RequestID: "request-2", At: time.Now()}})
	b.handled(p, e)
	b.says(and(cleanUp, "node.removed")...)
}

func TestEventsOfNodesWithoutARecordLeaveNoTrace(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.handler(nil)
	for _, payload := range []events.Payload{
		events.NodeObserved{Node: testNode, What: events.ObservedReady, At: time.Now()},
		events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, At: time.Now()},
		events.NodeDiverged{Node: testNode, Kind: events.DivergedOrphanNode, At: time.Now()},
		events.TimerFired{Handler: events.HandlerProvisioning, DueAt: time.Now()},
	} {
		require.NoError(t, p.h.Handle(t.Context(), b.delivery(b.event("collector", payload), 7)))
	}
	_, exists, err := p.h.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
	require.NoError(t, err)
	require.False(t, exists)
}

func TestWhatIsNotUnderstoodIsSetAside(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.handler(nil)
	require.Equal(t, events.HandlerProvisioning, p.h.Name())

	broken := b.event("decision", b.claim())
	require.NoError(t, broken.SetData("application/json", map[string]string{"node": testNode}))
	require.True(t, bus.IsTerminal(p.h.Handle(t.Context(), b.delivery(broken, 1))))

	foreign := b.event("decision", events.NodeDrainCancelled{Node: testNode, Reason: events.Reason{Code: "x"}})
	require.True(t, bus.IsTerminal(p.h.Handle(t.Context(), b.delivery(foreign, 2))))

	unclaimed := b.event("draining", events.NodeDrained{DrainRef: events.DrainRef{Node: testNode, Goal: events.GoalRemove, RequestID: "r"}})
	err := p.h.Handle(t.Context(), b.delivery(unclaimed, 3))
	require.True(t, bus.IsTerminal(err))
	require.ErrorContains(t, err, "not ours to remove")
}

// delivery is an event as the bus would hand it over.
func (b *testBundle) delivery(e events.Event, seq uint64) bus.Delivery {
	return bus.Delivery{Event: e, Key: bus.Key{Cluster: testCluster, Name: testNode}, Sequence: seq,
		Incarnation: b.bus.Incarnation(), StreamTime: time.Now().UTC(), Attempt: 1}
}
