package draining

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// forced asks for a removal that goes on past its deadline.
func forced(p *events.NodeDrainRequested) { p.OnDeadline = events.DeadlineForce }

// overdue lets the deadline of the drain under way pass.
func overdue(t *testing.T, p *process) {
	t.Helper()
	require.NoError(t, p.h.state.Amend(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, "overdue", func(t *turn) error {
		t.State.Deadline = t.Now
		return nil
	}))
}

// spared adds pods that a drain spares. They come when the drain is under way:
// before, it would have been refused for them.
func spared(w *world) {
	w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" })
	w.add("default", "db", func(p *worldPod) { p.Local = []evictable.Volume{{Name: "data", Kind: evictable.EmptyDir}} })
	w.add("ci", "build", job, func(p *worldPod) { p.Annotations = map[string]string{evictable.SafeToEvict: "false"} })
}

// begun is a removal that has begun to evict, with those pods left.
func begun(t *testing.T, left func(w *world), mods ...func(*events.NodeDrainRequested)) (*testBundle, *process) {
	t.Helper()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.lingers, p.DeletionDeadline = true, time.Now().Add(time.Hour) })
	p := b.open(nil)
	b.request(events.GoalRemove, mods...)
	require.NoError(t, workAgain(t, b, p))
	b.world.change(func(w *world) { w.remove("default/web-1"); left(w) })
	require.NoError(t, workAgain(t, b, p))
	return b, p
}

func TestPastItsDeadlineARemovalIsForcedWhereThePoolSaysSo(t *testing.T) {
	t.Parallel()
	b, p := begun(t, spared, forced)
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainDraining, d.Phase)
	require.Len(t, d.Blockers, 3)
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	d, _ = b.record()
	require.Equal(t, lifecycle.DrainForcing, d.Phase, "the last pods are asked to leave, then it is looked again")
	require.Equal(t, time.Minute, d.Deadline.Sub(d.Since), "as long again")
	require.NoError(t, workAgain(t, b, p))

	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, 4, drained.Evicted)
	reasons := map[string]string{}
	for _, f := range drained.Forced {
		reasons[f.Pod] = f.Reason.Code
		require.NotEmpty(t, f.Reason.Message)
	}
	require.Equal(t, map[string]string{"default/bare": evictable.CodeUnmanaged, "default/db": evictable.CodeLocalStorage, "ci/build": evictable.CodeNotSafeToEvict}, reasons)
	var told []events.ForcedPod
	var until []time.Time
	for _, e := range find[events.NodeDrainProgressed](b) {
		told = append(told, e.Forced...)
		if !e.ForcingUntil.IsZero() {
			until = append(until, e.ForcingUntil.UTC())
		}
	}
	require.ElementsMatch(t, drained.Forced, told, "each is told once")
	require.Equal(t, []time.Time{d.Deadline}, until, "and that it goes on by force")
	require.Equal(t, []string{"node.cordoned", "node.drain.blocked", "node.drained"}, b.published())
	require.InDelta(t, 1, testutil.ToFloat64(p.h.metrics.drains.WithLabelValues("remove", outcomeForced)), 0)
	requireOnce(t, b)
}

func TestWithoutForceTheDeadlineIsTheEnd(t *testing.T) {
	t.Parallel()
	b, p := begun(t, spared)
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.Equal(t, ReasonDeadline, await[events.NodeUncordoned](b, 1).Reason.Code)
	require.Equal(t, []string{"default/bare", "default/db", "ci/build"}, b.world.refs())
}

func TestForceNeverOverrulesABudget(t *testing.T) {
	t.Parallel()
	t.Run("beside other pods", func(t *testing.T) {
		t.Parallel()
		b, p := begun(t, func(w *world) {
			w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" })
			w.add("default", "web-2", func(p *worldPod) { p.budget = "default/web" })
		}, forced)
		overdue(t, p)
		require.NoError(t, workAgain(t, b, p))
		require.NoError(t, workAgain(t, b, p))
		require.Equal(t, []string{"default/web-2"}, b.world.refs(), "what may be forced was")
		overdue(t, p)
		require.NoError(t, workAgain(t, b, p))
		undone := await[events.NodeUncordoned](b, 1)
		require.Equal(t, ReasonDeadline, undone.Reason.Code)
		require.Contains(t, undone.Reason.Message, "as long again by force")
		require.Contains(t, undone.Reason.Message, "default/web-2")
		require.False(t, b.world.node(testNode).unschedulable)
		require.Empty(t, find[events.NodeDrained](b))
	})
	t.Run("when budgets alone keep the node", func(t *testing.T) {
		t.Parallel()
		b, p := begun(t, func(w *world) {
			w.add("default", "web-2", func(p *worldPod) { p.budget = "default/web" })
			w.add("default", "web-3", func(p *worldPod) { p.noBudget = true })
		}, forced)
		overdue(t, p)
		require.NoError(t, workAgain(t, b, p))
		undone := await[events.NodeUncordoned](b, 1)
		require.NotContains(t, undone.Reason.Message, "by force", "nothing would be gained")
		require.Len(t, b.world.refs(), 2)
	})
}

func TestAPodThatOutlivedItsGraceIsLeftToTheEndOfItsMachine(t *testing.T) {
	t.Parallel()
	stuck := func(w *world) {
		w.add("default", "stuck", func(p *worldPod) { p.Deleting, p.DeletionDeadline = true, time.Now().Add(-time.Hour) })
		w.add("kube-system", "coredns-1")
	}
	b, p := begun(t, stuck, forced)
	d, _ := b.record()
	require.Equal(t, blockTerminating, d.Blockers[0].Kind, "before, it keeps the node")
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, "default/stuck", drained.Forced[0].Pod)
	require.Equal(t, blockTerminating, drained.Forced[0].Reason.Code)
	require.Contains(t, drained.Forced[0].Reason.Message, "ends with its machine")
	require.Equal(t, []string{"default/stuck"}, b.world.refs(), "it is not deleted: another one of its name must not start while it may run")
	require.Equal(t, []string{"default/web-1", "kube-system/coredns-1"}, b.world.evictions())
}

func TestForceWaitsForGracePeriods(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "slow", func(p *worldPod) { p.Deleting, p.DeletionDeadline = true, time.Now().Add(time.Hour) })
	}, forced)
	d, _ := b.record()
	require.Equal(t, blockTerminating, d.Blockers[0].Kind)
	require.Contains(t, d.Blockers[0].Message, "after the drain's deadline")
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	require.Empty(t, find[events.NodeDrained](b))
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.Contains(t, await[events.NodeUncordoned](b, 1).Reason.Message, "default/slow")
}

func TestAPodThatLeavesInItsTimeIsNoBlocker(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "slow", func(p *worldPod) { p.Deleting, p.DeletionDeadline = true, time.Now().Add(10*time.Second) })
	})
	require.NoError(t, workAgain(t, b, p))
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainDraining, d.Phase)
	require.Equal(t, 1, d.Remaining)
	require.Empty(t, d.Blockers)
}

func TestADrainThatLeavesTheNodeIsNotForced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.lingers, p.DeletionDeadline = true, time.Now().Add(-time.Hour) })
	p := b.open(nil)
	b.request(events.GoalDrain, forced)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.Equal(t, ReasonDeadline, await[events.NodeUncordoned](b, 1).Reason.Code, "its machine does not end")
}

func TestAForcedRemovalIsCalledOffLikeAnyOther(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "bare", func(p *worldPod) { p.OwnerKind, p.lingers, p.DeletionDeadline = "", true, time.Now().Add(time.Hour) })
	}, forced)
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	b.cancel("")
	require.NoError(t, workAgain(t, b, p))
	require.Equal(t, "NewDemand", await[events.NodeUncordoned](b, 1).Reason.Code)
	require.False(t, b.world.node(testNode).unschedulable)
	require.Empty(t, find[events.NodeDrained](b))
}

func TestAskedForAgainAForcedRemovalStillSaysWhatItForced(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" })
		w.add("default", "web-2", func(p *worldPod) { p.budget = "default/web" })
	}, forced)
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	b.world.change(func(w *world) { w.pod("default/web-2").budget = "" })
	b.request(events.GoalRemove, by("anna"))
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, "default/bare", drained.Forced[0].Pod)
}

// Reasons of one pod are told together.
func TestAPodThatWasSparedForSeveralReasonsIsForcedOnce(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "bare", func(p *worldPod) {
			p.OwnerKind, p.Local = "", []evictable.Volume{{Name: "data", Kind: evictable.EmptyDir}}
		})
	}, forced)
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	f := await[events.NodeDrained](b, 1).Forced
	require.Len(t, f, 1)
	require.Contains(t, f[0].Reason.Message, "no controller")
	require.Contains(t, f[0].Reason.Message, "data (emptyDir)")
}

func TestThePoolSaysWhatIsEvicted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pod    func(p *worldPod)
		option func(p *events.NodeDrainRequested)
	}{
		"local storage": {func(p *worldPod) { p.Local = []evictable.Volume{{Name: "data", Kind: evictable.EmptyDir}} },
			func(p *events.NodeDrainRequested) { p.LocalStorage = events.PodsDelete }},
		"no controller": {func(p *worldPod) { p.OwnerKind = "" },
			func(p *events.NodeDrainRequested) { p.Unmanaged = events.PodsDelete }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "one", c.pod)
			p := b.open(nil)
			b.request(events.GoalRemove)
			require.NoError(t, workAgain(t, b, p))
			require.Equal(t, ReasonNotDrainable, await[events.NodeUncordoned](b, 1).Reason.Code)

			b.request(events.GoalRemove, c.option)
			require.NoError(t, workAgain(t, b, p))
			require.NoError(t, workAgain(t, b, p))
			drained := await[events.NodeDrained](b, 1)
			require.Equal(t, 1, drained.Evicted)
			require.Empty(t, drained.Forced, "it is the rule of the pool, not force")
		})
	}
}

// Jobs that had their time are forced when evicting them is what keeps the node.
func TestJobsThatAreNeverEvictedAreForcedWhenTheyHadTheirTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("ci", "build-1", job, func(p *worldPod) {
		p.Annotations, p.Local = map[string]string{evictable.DoNotDisrupt: "true"}, []evictable.Volume{{Name: "workspace", Kind: evictable.EmptyDir}}
	})
	p := b.open(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour), forced)
	require.NoError(t, workAgain(t, b, p))
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainFinishing, d.Phase)
	require.NoError(t, p.h.state.Amend(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, "time is up", func(t *turn) error {
		t.State.JobsUntil = t.Now
		return nil
	}))
	require.NoError(t, workAgain(t, b, p))
	require.Empty(t, b.world.evictions(), "it is spared until the drain's own deadline")
	overdue(t, p)
	require.NoError(t, workAgain(t, b, p))
	require.NoError(t, workAgain(t, b, p))
	require.Equal(t, evictable.CodeDoNotDisrupt, await[events.NodeDrained](b, 1).Forced[0].Reason.Code)
}
