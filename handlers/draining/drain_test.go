package draining

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// busy fills the node: two pods that move, one of the system that moves, and
// three that belong to the node.
func busy(w *world) {
	w.add("kube-system", "coredns-1")
	w.add("default", "web-1")
	w.add("default", "web-2")
	w.add("kube-system", "flannel", func(p *worldPod) { p.OwnerKind, p.DaemonSet = "DaemonSet", true })
	w.add("kube-system", "static", func(p *worldPod) { p.OwnerKind, p.Mirror = "Node", true })
	w.add("default", "job", func(p *worldPod) { p.OwnerKind, p.Finished = "Job", true })
}

func TestRemovalEmptiesANodeInOrderAndSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	p := b.start(nil)
	request := b.request(events.GoalRemove)

	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
	require.Equal(t, events.GoalRemove, drained.Goal)
	require.Equal(t, request.ID(), drained.RequestID)
	require.Equal(t, testClaim, drained.ClaimID)
	require.Equal(t, testPool, drained.Pool)
	require.Equal(t, "decision-1", drained.DecisionID)
	require.Equal(t, "Unneeded", drained.Reason.Code)
	require.Equal(t, 3, drained.Evicted)

	evicted := b.world.evictions()
	require.ElementsMatch(t, []string{"default/web-1", "default/web-2", "kube-system/coredns-1"}, evicted)
	require.Equal(t, "kube-system/coredns-1", evicted[2], "what the cluster needs leaves last")
	require.Equal(t, []string{"kube-system/flannel", "kube-system/static", "default/job"}, b.world.refs())
	require.True(t, b.world.node(testNode).unschedulable, "drained nodes stay cordoned")

	var told []string
	for _, e := range find[events.NodeDrainProgressed](b) {
		told = append(told, e.Evicted...)
	}
	require.ElementsMatch(t, evicted, told, "each eviction is told once")
	for _, d := range b.log() {
		require.Equal(t, testLife, events.Extension(d.Event, events.ExtCorrelationID), d.Event.Type())
		if strings.HasSuffix(d.Event.Source(), "/draining") {
			require.Equal(t, request.ID(), events.Extension(d.Event, events.ExtCausationID), d.Event.Type())
		}
	}
	require.InDelta(t, 3, testutil.ToFloat64(p.h.metrics.evictions.WithLabelValues("accepted")), 0)
	b.counted(p, "drained")

	b.world.change(func(w *world) { delete(w.nodes, testNode) })
	b.awaitPhase(lifecycle.DrainDone)
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published(), "that a removed node is gone is no news")
}

func TestCordonLeavesThePods(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	b.world.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" }) // a drain would refuse
	p := b.start(nil)
	b.request(events.GoalCordon, by("anna"))
	require.Equal(t, events.GoalCordon, await[events.NodeCordoned](b, 1).Goal)
	b.settled(p)
	require.Equal(t, []string{"node.cordoned"}, b.published())
	require.Empty(t, b.world.evictions())
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainCordoned, d.Phase)
	require.Zero(t, d.Deadline, "a cordon lasts until a person lifts it")
}

func TestDrainByHandEmptiesTheNodeAndLeavesItUntilCancelled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	p := b.start(nil)
	b.request(events.GoalDrain, by("anna"))
	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, events.GoalDrain, drained.Goal)
	require.Equal(t, "anna", drained.Actor)
	b.settled(p)
	require.True(t, b.world.node(testNode).unschedulable)

	b.cancel("anna")
	undone := await[events.NodeUncordoned](b, 1)
	require.Equal(t, "NewDemand", undone.Reason.Code)
	require.False(t, b.world.node(testNode).unschedulable)
}

func TestAnEmptyNodeIsDrainedAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.start(nil)
	b.request(events.GoalRemove)
	require.Zero(t, await[events.NodeDrained](b, 1).Evicted)
	require.Empty(t, find[events.NodeDrainProgressed](b))
}

func TestEverythingIsCheckedBeforeTheFirstSideEffect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		world   func(w *world)
		request func(p *events.NodeDrainRequested)
		node    string
		reason  string
		kind    string // of the blocker
	}{
		"a request that comes too late": {
			request: func(p *events.NodeDrainRequested) { p.NotAfter = time.Now().Add(-time.Second) }, reason: ReasonRequestExpired},
		"a node that does not exist": {world: func(w *world) { delete(w.nodes, testNode) }, reason: ReasonNodeGone},
		"a node that is not ours":    {world: func(w *world) { w.nodes[testNode].claim = "" }, reason: ReasonNotOurs},
		"a node of another claim":    {world: func(w *world) { w.nodes[testNode].claim = "claim-2" }, reason: ReasonNotOurs},
		"a pod without a controller": {
			world:  func(w *world) { w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" }) },
			reason: ReasonNotDrainable, kind: evictable.CodeUnmanaged},
		"a pod with local storage": {
			world: func(w *world) {
				w.add("default", "db", func(p *worldPod) { p.Local = []evictable.Volume{{Name: "data", Kind: evictable.EmptyDir}} })
			},
			reason: ReasonNotDrainable, kind: evictable.CodeLocalStorage},
		"a pod that is not safe to evict": {
			world: func(w *world) {
				w.add("default", "a", func(p *worldPod) { p.Annotations = map[string]string{evictable.SafeToEvict: "false"} })
			},
			reason: ReasonNotDrainable, kind: evictable.CodeNotSafeToEvict},
		"a pod that asks not to be disrupted": {
			world: func(w *world) {
				w.add("default", "a", func(p *worldPod) { p.Annotations = map[string]string{evictable.DoNotDisrupt: "true"} })
			},
			reason: ReasonNotDrainable, kind: evictable.CodeDoNotDisrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			busy(b.world)
			if c.world != nil {
				c.world(b.world)
			}
			b.start(nil)
			mods := []func(*events.NodeDrainRequested){}
			if c.request != nil {
				mods = append(mods, c.request)
			}
			request := b.request(events.GoalRemove, mods...)
			undone := await[events.NodeUncordoned](b, 1)
			require.Equal(t, c.reason, undone.Reason.Code)
			require.NotEmpty(t, undone.Reason.Message)
			require.Equal(t, request.ID(), undone.RequestID)
			cordons, uncordons, evictions := b.world.acts()
			require.Zero(t, cordons+uncordons+evictions, "nothing was touched")
			if c.kind == "" {
				require.Equal(t, []string{"node.uncordoned"}, b.published())
				return
			}
			require.Equal(t, []string{"node.drain.blocked", "node.uncordoned"}, b.published())
			blocked := await[events.NodeDrainBlocked](b, 1)
			require.Len(t, blocked.Blockers, 1)
			require.Equal(t, c.kind, blocked.Blockers[0].Kind)
			require.NotEmpty(t, blocked.Blockers[0].Fix)
			require.Equal(t, blocked.Blockers, undone.Blockers)
		})
	}
}

func TestAClusterThatIsNotConfiguredHereIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.start(nil)
	p.stop()
	p.h.opts.Clusters = func() map[string]Cluster { return nil }
	b.request(events.GoalRemove)
	// Without an API server there is nothing to undo either: the record waits
	// for a configuration that knows the cluster.
	require.ErrorContains(t, workOnce(t, b, p), "not configured here")
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainUncordoning, d.Phase)
	require.Equal(t, reasonUnknownCluster, d.UndoReason.Code)
	b.start(nil)
	require.Equal(t, reasonUnknownCluster, await[events.NodeUncordoned](b, 1).Reason.Code)
}

func TestWhatIsAnnotatedAsSafeIsEvictedWhateverItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "c", func(p *worldPod) { p.OwnerKind, p.Annotations = "", map[string]string{evictable.SafeToEvict: "true"} })
	b.world.add("default", "d", func(p *worldPod) {
		p.Local, p.Annotations = []evictable.Volume{{Name: "cache", Kind: evictable.EmptyDir}}, map[string]string{evictable.SafeToEvict: "true"}
	})
	b.start(nil)
	b.request(events.GoalDrain)
	require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
}

// Decision refuses the request of a person for such a node; that the pod came in
// between makes no difference.
func TestAPersonsDrainSparesWhatAnyDrainSpares(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "a", func(p *worldPod) { p.Annotations = map[string]string{evictable.SafeToEvict: "false"} })
	b.start(nil)
	b.request(events.GoalDrain, by("anna"))
	require.Equal(t, ReasonNotDrainable, await[events.NodeUncordoned](b, 1).Reason.Code)
	require.Empty(t, b.world.evictions())
}

func TestAPodThatMayNotBeEvictedAndComesLaterBlocksUntilTheDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.lingers = true })
	b.start(nil)
	b.request(events.GoalRemove, within(10*time.Second))
	await[events.NodeDrainProgressed](b, 1)
	b.world.change(func(w *world) {
		w.remove("default/web-1")
		w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" })
	})
	undone := await[events.NodeUncordoned](b, 1)
	require.Equal(t, ReasonDeadline, undone.Reason.Code)
	require.Equal(t, evictable.CodeUnmanaged, undone.Blockers[0].Kind)
	require.Equal(t, []string{"default/bare"}, b.world.refs())
}

func TestABudgetIsNamedOnceAndRespectedUntilItAllows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.world.add("default", "web-2")
	p := b.start(nil)
	b.request(events.GoalRemove)
	blocked := await[events.NodeDrainBlocked](b, 1)
	require.Equal(t, []events.Blocker{{Kind: blockBudget, Name: "default/web", Pod: "default/web-1",
		Message: "The disruption budget web needs 6 healthy pods and has 6 currently",
		Fix:     "run more healthy replicas, or let the budget default/web allow a disruption"}}, blocked.Blockers)
	require.False(t, blocked.Deadline.IsZero())

	refused := func() float64 { return testutil.ToFloat64(p.h.metrics.evictions.WithLabelValues("blocked")) }
	require.Eventually(t, func() bool { return refused() >= 5 }, patience, 10*time.Millisecond, "it is tried again")
	require.Len(t, find[events.NodeDrainBlocked](b), 1, "the same blockers are no news")
	d, _ := b.record()
	require.Equal(t, "default/web", d.Blockers[0].Name)
	require.Equal(t, 1, d.Remaining)

	b.world.change(func(w *world) { w.pod("default/web-1").noBudget = true })
	blocked = await[events.NodeDrainBlocked](b, 2)
	require.Equal(t, blockRefused, blocked.Blockers[0].Kind, "other blockers are news")

	b.world.change(func(w *world) { p := w.pod("default/web-1"); p.budget, p.noBudget = "", false })
	require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
	d, _ = b.record()
	require.Empty(t, d.Blockers)
}

func TestAtTheDeadlineTheDrainIsUndoneAndNothingIsRemoved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	p := b.start(nil)
	b.request(events.GoalRemove, within(10*time.Second))
	undone := await[events.NodeUncordoned](b, 1)
	require.Equal(t, ReasonDeadline, undone.Reason.Code)
	require.Contains(t, undone.Reason.Message, "default/web-1")
	require.Equal(t, "default/web", undone.Blockers[0].Name)
	require.False(t, b.world.node(testNode).unschedulable)
	require.Equal(t, []string{"default/web-1"}, b.world.refs())
	b.settled(p)
	require.Equal(t, []string{"node.cordoned", "node.drain.blocked", "node.uncordoned"}, b.published())
	b.counted(p, "deadline")
}

func TestTheCordonOfSomebodyElseIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.nodes[testNode].unschedulable = true
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.start(nil)
	b.request(events.GoalRemove, within(300*time.Millisecond))
	await[events.NodeUncordoned](b, 1)
	require.True(t, b.world.node(testNode).unschedulable)
	d, _ := b.record()
	require.False(t, d.CordonOurs)
}

func TestTerminatingPodsAreWaitedForAndNamedWhenTheyAreStuck(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) {
		p.lingers, p.DeletionDeadline = true, time.Now().Add(-time.Hour)
	})
	b.world.add("kube-system", "coredns-1")
	b.start(nil)
	b.request(events.GoalRemove)
	blocked := await[events.NodeDrainBlocked](b, 1)
	require.Equal(t, blockTerminating, blocked.Blockers[0].Kind)
	require.Equal(t, "default/web-1", blocked.Blockers[0].Pod)
	require.Equal(t, []string{"default/web-1"}, b.world.evictions(), "the system's pods stay until the others are gone")
	require.Empty(t, find[events.NodeDrained](b))
	b.world.change(func(w *world) { w.remove("default/web-1") })
	require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
}

func TestThePodThatComesAtTheLastMomentIsNotLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	once := false
	b.world.onPods = func(w *world) {
		// Somebody lifted the cordon, and a pod was bound right after the node
		// was seen empty.
		if n := w.nodes[testNode]; n.unschedulable && !once && len(w.pods) == 0 {
			once = true
			n.unschedulable, n.cordonedBy = false, ""
			w.add("default", "late")
		}
	}
	b.start(nil)
	b.request(events.GoalRemove)
	require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
	require.Equal(t, []string{"default/web-1", "default/late"}, b.world.evictions())
	require.True(t, b.world.node(testNode).unschedulable)
}

func TestANodeThatBecameAnotherClaimsIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.start(nil)
	b.request(events.GoalRemove)
	await[events.NodeDrainBlocked](b, 1)
	b.world.change(func(w *world) { w.nodes[testNode].claim = "claim-2"; w.pods = nil })
	require.Equal(t, ReasonNotOurs, await[events.NodeUncordoned](b, 1).Reason.Code)
	require.Empty(t, find[events.NodeDrained](b))
}

func TestANodeThatVanishesEndsItsDrain(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(b *testBundle){
		"while its pods are evicted": func(b *testBundle) {
			b.request(events.GoalRemove)
			await[events.NodeDrainBlocked](b, 1)
			b.world.change(func(w *world) { delete(w.nodes, testNode) })
		},
		"between the look and the cordon": func(b *testBundle) {
			b.world.change(func(w *world) {
				w.fail = func(call string) error {
					if call == "cordon" {
						delete(w.nodes, testNode)
					}
					return nil
				}
			})
			b.request(events.GoalRemove)
		},
		"before it is uncordoned": func(b *testBundle) {
			b.request(events.GoalRemove)
			await[events.NodeDrainBlocked](b, 1)
			b.world.change(func(w *world) {
				w.fail = func(call string) error {
					if call == "uncordon" {
						delete(w.nodes, testNode)
					}
					return nil
				}
			})
			b.cancel("")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
			b.start(nil)
			when(b)
			undone := await[events.NodeUncordoned](b, 1)
			require.Equal(t, ReasonNodeGone, undone.Reason.Code)
			b.awaitPhase(lifecycle.DrainDone)
			require.Empty(t, find[events.NodeDrained](b), "nothing was drained")
		})
	}
}

func TestFailedCallsAreTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	failures := map[string]int{"node": 2, "pods": 2, "cordon": 2, "evict default/web-1": 2}
	b.world.fail = func(call string) error {
		if failures[call] > 0 {
			failures[call]--
			return errAPI
		}
		return nil
	}
	p := b.start(nil)
	b.request(events.GoalRemove)
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
	require.InDelta(t, 2, testutil.ToFloat64(p.h.metrics.evictions.WithLabelValues("failed")), 0)
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
}

func TestAnAPIServerThatStaysAwayEndsInAnUndoThatNamesIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	away := true
	b.world.fail = func(call string) error {
		if away && (call == "evict default/web-1" || call == "uncordon") {
			return errAPI
		}
		return nil
	}
	b.start(nil)
	b.request(events.GoalRemove, within(10*time.Second))
	d := b.awaitPhase(lifecycle.DrainUncordoning)
	require.Contains(t, d.UndoReason.Message, errAPI.Error())
	require.Eventually(t, func() bool { d, _ = b.record(); return d.Attempt > 2 }, patience, 10*time.Millisecond)
	b.world.change(func(*world) { away = false })
	require.Equal(t, ReasonDeadline, await[events.NodeUncordoned](b, 1).Reason.Code)
	require.False(t, b.world.node(testNode).unschedulable)
}

func TestEvictionsAreAskedForABoundedNumberAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, n := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		b.world.add("default", n)
	}
	b.start(nil)
	b.request(events.GoalDrain)
	require.Equal(t, 12, await[events.NodeDrained](b, 1).Evicted)
	evicted := b.world.evictions()
	slices.Sort(evicted)
	require.Len(t, slices.Compact(evicted), 12)
}
