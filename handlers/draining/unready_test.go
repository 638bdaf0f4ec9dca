package draining

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

func unready(p *events.NodeDrainRequested) {
	p.Unready, p.Reason = true, events.Reason{Code: "NodeUnready", Message: "it has not been Ready for 10m"}
}

func TestANodeThatIsNotReadyIsDrainedWithItsPodsOnIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.change(func(w *world) {
		w.nodes[testNode].unready = true
		w.pods = []*worldPod{
			{Pod: Pod{Namespace: "default", Name: "web", OwnerKind: "ReplicaSet"}, node: testNode, budget: "default/web"},
			{Pod: Pod{Namespace: "default", Name: "alone"}, node: testNode},
			{Pod: Pod{Namespace: "kube-system", Name: "proxy", OwnerKind: "DaemonSet", DaemonSet: true}, node: testNode},
		}
	})
	p := b.start(nil)
	b.request(lifecycle.GoalRemove, unready)
	d := await[events.NodeDrained](b, 1)
	require.True(t, d.Unready)
	require.Equal(t, []string{"default/alone", "default/web"}, d.Left)
	require.Equal(t, "NodeUnready", d.Reason.Code)
	require.Zero(t, d.Evicted)
	b.counted(p, outcomeUnready)
	require.Empty(t, b.world.evictions(), "nobody would confirm them")
	require.True(t, b.world.node(testNode).unschedulable, "it is cordoned first")
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
}

func TestANodeThatIsReadyAfterAllStays(t *testing.T) {
	t.Parallel()
	for name, ready := range map[string]string{"before it is cordoned": "node", "behind its cordon": "pods"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.change(func(w *world) { w.nodes[testNode].unready = ready != "node" })
			p := b.start(func(step string, _ func()) {
				if step == "draining/cordon/after" {
					b.world.change(func(w *world) { w.nodes[testNode].unready = false })
				}
			})
			b.request(lifecycle.GoalRemove, unready)
			u := await[events.NodeUncordoned](b, 1)
			require.Equal(t, ReasonRecovered, u.Reason.Code)
			b.settled(p)
			require.False(t, b.world.node(testNode).unschedulable)
			require.Empty(t, find[events.NodeDrained](b))
		})
	}
}

func TestANodeThatVanishesOrIsAnothersBehindItsCordonIsLeftAlone(t *testing.T) {
	t.Parallel()
	for code, change := range map[string]func(w *world){
		ReasonNodeGone: func(w *world) { delete(w.nodes, testNode) },
		ReasonNotOurs:  func(w *world) { w.nodes[testNode].claim = "another" },
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.change(func(w *world) { w.nodes[testNode].unready = true })
			b.start(func(step string, _ func()) {
				if step == "draining/cordon/after" {
					b.world.change(change)
				}
			})
			b.request(lifecycle.GoalRemove, unready)
			require.Equal(t, code, await[events.NodeUncordoned](b, 1).Reason.Code)
			require.Empty(t, find[events.NodeDrained](b))
		})
	}
}

func TestOnlyARemovalLeavesPodsBehind(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := events.NodeDrainRequested{Node: testNode, ClaimID: testClaim, Goal: events.GoalDrain, Reason: events.Reason{Code: "x"}, NotAfter: now, Deadline: 1, Unready: true}
	require.ErrorContains(t, p.Validate(), `unready: is true with goal "drain", expected "remove"`)
}
