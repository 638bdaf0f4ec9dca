package provisioning

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

func TestANodeThatBecomesReadyAfterItsClaimFailedIsRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim(func(c *events.NodeClaimed) { c.NotAfter = time.Now().Add(-time.Second) }))
	before := b.phase(p, lifecycle.Failed)

	b.observe(events.ObservedReady, NodeObject{Name: testNode, UID: "uid", ClaimID: testClaim, Ready: true})
	refused, e := await[events.NodeTransitionRefused](b)
	require.Equal(t, []string{"failed", "ready", events.ReasonImpossible}, []string{refused.State, refused.Event, refused.Reason.Code})
	require.Contains(t, refused.Reason.Message, "the API server says it is ready, but the record says failed since")
	require.Equal(t, testClaim, refused.ClaimID)
	require.Equal(t, refused.EventID, events.Extension(e, events.ExtCausationID))
	require.Equal(t, before, b.phase(p, lifecycle.Failed))

	// What a clean-up brings about is no news.
	b.observe(events.ObservedUnready, NodeObject{Name: testNode, UID: "uid", ClaimID: testClaim})
	last := b.publish("collector", events.NodeObserved{Node: testNode, What: events.ObservedDeleted, UID: "uid", At: time.Now(),
		Labels: map[string]string{events.LabelClaim: testClaim}})
	b.handled(p, last)
	b.says("node.failed", "node.transition.refused")
}

func TestADrainedNodeWhoseRecordSaysLostIsRefusedAndRecorded(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Ready)
	b.world.do(func(w *fakeWorld) { delete(w.machines, testNode) })
	b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	b.phase(p, lifecycle.Lost)
	b.drain()
	refused, _ := await[events.NodeTransitionRefused](b)
	require.Equal(t, []string{"lost", "drained"}, []string{refused.State, refused.Event})
	require.Equal(t, lifecycle.Lost, b.settled(p).Phase)
}

// The record alone says what is done next: every state of the table has its work.
func TestEveryStateOfTheTableIsWorkedOn(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.handler(nil)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, s := range lifecycle.NodeTable().States {
		n := lifecycle.Node{Phase: lifecycle.Phase(s.Name), Deadline: at, Removal: &lifecycle.Removal{NextAt: at}}
		due, again := p.h.due(bus.Key{Cluster: testCluster, Name: testNode}, n, at.Add(-time.Second))
		switch s.Effect {
		case lifecycle.EffectCreate:
			require.True(t, due, s.Name)
		case lifecycle.EffectWatch, lifecycle.EffectRemove:
			require.Equal(t, at, again, s.Name)
			due, _ = p.h.due(bus.Key{Cluster: testCluster, Name: testNode}, n, at)
			require.True(t, due, s.Name)
		case lifecycle.EffectNone:
			require.False(t, due, s.Name)
			require.Zero(t, again, s.Name)
		case lifecycle.EffectForget, lifecycle.EffectCordon, lifecycle.EffectEmpty, lifecycle.EffectEvict, lifecycle.EffectUncordon, lifecycle.EffectLook:
			require.Fail(t, "provisioning does not do this", "%s: %s", s.Name, s.Effect)
		}
	}
}
