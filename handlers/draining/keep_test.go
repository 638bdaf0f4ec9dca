package draining

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// web makes a pod one that the budgets of the tests cover.
func web(p *worldPod) { p.Labels = map[string]string{"app": "web"} }

// budget covers the pods of web in default: of expected pods desired have to be
// healthy, and healthy are.
func budget(name string, expected, desired, healthy int32) Budget {
	return Budget{Namespace: "default", Name: name, Selector: labels.SelectorFromSet(labels.Set{"app": "web"}), Current: true,
		Allowed: max(healthy-desired, 0), Expected: expected, Desired: desired, Healthy: healthy}
}

func TestABudgetThatCanNeverAllowAnEvictionRefusesTheDrainBeforeAnythingIsChanged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		budgets []Budget
		kind    string
		says    string
	}{
		"as many as there are":   {[]Budget{budget("web", 2, 2, 2)}, blockBudget, "needs 2 healthy pods and covers 2: it never allows an eviction"},
		"more than there are":    {[]Budget{budget("web", 2, 5, 2)}, blockBudget, "never"},
		"some are down, besides": {[]Budget{budget("web", 2, 2, 1)}, blockBudget, "never"},
		"two budgets":            {[]Budget{budget("web", 3, 1, 3), budget("also", 3, 1, 3)}, blockBudgets, "evicts no such pod"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1", web)
			b.world.budgets = c.budgets
			p := b.open(nil)
			b.request(events.GoalRemove, by("anna"))
			require.NoError(t, workAgain(t, b, p))
			undone := await[events.NodeUncordoned](b, 1)
			require.Equal(t, ReasonNotDrainable, undone.Reason.Code)
			require.Len(t, undone.Blockers, 1)
			require.Equal(t, c.kind, undone.Blockers[0].Kind)
			require.Contains(t, undone.Blockers[0].Name, "default/web")
			require.Contains(t, undone.Blockers[0].Message, c.says)
			require.NotEmpty(t, undone.Blockers[0].Fix)
			cordons, uncordons, evictions := b.world.acts()
			require.Zero(t, cordons+uncordons+evictions)
		})
	}
}

func TestABudgetThatIsUsedUpNowIsForeseenAndTried(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		budget Budget
		pod    func(p *worldPod)
		want   []string
	}{
		"used up":                        {budget("web", 3, 2, 2), web, []string{blockBudget}},
		"of a specification that is new": {Budget{Namespace: "default", Name: "web", Selector: labels.Everything(), Expected: 2, Desired: 2}, web, []string{blockBudget}},
		"of which nothing is known yet":  {budget("web", 0, 0, 0), web, []string{blockBudget}},
		"that allows one":                {budget("web", 3, 2, 3), web, nil},
		"of other pods":                  {budget("web", 2, 2, 2), func(*worldPod) {}, nil},
		"of another namespace":           {Budget{Namespace: "shop", Name: "web", Selector: labels.Everything(), Current: true, Expected: 2, Desired: 2}, web, nil},
		"of a pod that is not Ready":     {budget("web", 2, 2, 1), func(p *worldPod) { web(p); p.Ready = false }, nil},
		"and a grace period that is too long": {budget("web", 3, 2, 3), func(p *worldPod) { web(p); p.Grace = time.Hour },
			[]string{blockGrace}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1", c.pod)
			b.world.budgets = []Budget{c.budget}
			p := b.open(nil)
			b.request(events.GoalRemove)
			require.NoError(t, workAgain(t, b, p))
			var kinds []string
			for _, f := range await[events.NodeCordoned](b, 1).Foreseen {
				kinds = append(kinds, f.Kind)
				require.NotEmpty(t, f.Message)
				require.NotEmpty(t, f.Fix)
			}
			require.Equal(t, c.want, kinds)
			require.Equal(t, []string{"default/web-1"}, b.world.evictions(), "whether it is refused, the API server says")
		})
	}
}

func TestPodsThatEndByThemselvesAndThoseThatAreLeavingAreNotForeseen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", web, job)
	b.world.add("default", "web-2", web, func(p *worldPod) { p.Deleting, p.DeletionDeadline = true, time.Now().Add(time.Hour) })
	b.world.budgets = []Budget{budget("web", 2, 2, 2)}
	p := b.open(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	require.NoError(t, workAgain(t, b, p))
	require.Empty(t, await[events.NodeCordoned](b, 1).Foreseen)
}

func TestWithoutTheRightToReadBudgetsTheDrainGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", web)
	b.world.add("kube-system", "dashboard", func(p *worldPod) { p.Labels = nil }) // as decision has judged
	b.world.fail = func(call string) error {
		if call == "budgets" {
			return ErrForbidden
		}
		return nil
	}
	p := b.open(nil)
	b.request(events.GoalRemove)
	for range 3 {
		require.NoError(t, workAgain(t, b, p))
	}
	require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
}

func TestASystemPodIsSparedUnlessItHasABudget(t *testing.T) {
	t.Parallel()
	for _, budgeted := range []bool{false, true} {
		b, p := begun(t, func(w *world) {
			w.add("kube-system", "dashboard", func(p *worldPod) { p.Labels = map[string]string{"app": "dashboard"} })
			if budgeted {
				w.budgets = []Budget{{Namespace: "kube-system", Name: "dashboard", Selector: labels.Everything(), Current: true, Allowed: 1, Expected: 2, Desired: 1, Healthy: 2}}
			}
		})
		require.NoError(t, workAgain(t, b, p))
		d, _ := b.record()
		if budgeted {
			require.Equal(t, 2, await[events.NodeDrained](b, 1).Evicted)
			continue
		}
		require.Equal(t, evictable.CodeKubeSystem, d.Blockers[0].Kind)
	}
}

func TestAFailureToReadBudgetsIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("kube-system", "coredns-1")
	p := b.open(nil)
	b.request(events.GoalRemove)
	b.world.atCall("budgets", 1, func() error { return errAPI })
	require.ErrorIs(t, workAgain(t, b, p), errAPI)
	cordons, _, _ := b.world.acts()
	require.Zero(t, cordons)
	b.world.atCall("budgets", 2, func() error { return errAPI }) // of the round
	require.ErrorIs(t, workAgain(t, b, p), errAPI)
	d, _ := b.record()
	require.Contains(t, d.LastError, "list disruption budgets")
	for range 2 {
		require.NoError(t, workAgain(t, b, p))
	}
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
}

func TestWhatTheClusterNeedsLeavesLast(t *testing.T) {
	t.Parallel()
	b := setup(t)
	critical := func(p *worldPod) { p.Critical = true }
	b.world.add("default", "router", critical)
	b.world.add("kube-system", "coredns-1")
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.world.add("default", "web-2")
	b.world.add("default", "web-3")
	p := b.open(nil)
	b.request(events.GoalRemove)
	for range 3 {
		require.NoError(t, workAgain(t, b, p))
	}
	evicted := b.world.evictions()
	slices.Sort(evicted)
	require.Equal(t, []string{"default/web-2", "default/web-3"}, evicted, "one that is refused keeps no other of its kind, and all of those that leave last")
	b.world.change(func(w *world) { w.pod("default/web-1").budget = "" })
	for range 3 {
		require.NoError(t, workAgain(t, b, p))
	}
	require.Equal(t, 5, await[events.NodeDrained](b, 1).Evicted)
	evicted = b.world.evictions()
	require.Equal(t, "default/web-1", evicted[2])
}

// A pod that is spared keeps the node; those that leave last are not evicted for nothing.
func TestAPodThatIsSparedKeepsThoseThatLeaveLast(t *testing.T) {
	t.Parallel()
	b, p := begun(t, func(w *world) {
		w.add("default", "bare", func(p *worldPod) { p.OwnerKind = "" })
		w.add("kube-system", "coredns-1")
	})
	require.NoError(t, workAgain(t, b, p))
	require.Equal(t, []string{"default/web-1"}, b.world.evictions())
}
