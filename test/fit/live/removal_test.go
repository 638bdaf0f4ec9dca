//go:build e2e

package live

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// TestEvictedPodsFindAPlaceOfTheirOwn removes the nodes that may go in FIT_REMOVALS
// cases from FIT_SEED on: their pods are evicted, made again as by their controller,
// and have to find a place. The budgets of the pods are kept all the time.
func TestEvictedPodsFindAPlaceOfTheirOwn(t *testing.T) {
	clusters := newClusters(t)
	first, n := firstSeed(t), number(t, "FIT_REMOVALS", 50)
	var sum removals
	unjudged, cases := 0, 0
	// A case in which nothing may go says nothing.
	for seed := uint64(first); sum.cases < n && cases < 4*n; {
		var seeds []uint64
		for range min(max(n-sum.cases, len(clusters)), 4*n-cases, 100) {
			seeds = append(seeds, seed)
			seed++
		}
		cases += len(seeds)
		results, errs := each(t, clusters, seeds, remove)
		for i, r := range results {
			if errs[i] != nil {
				unjudged++
				continue
			}
			sum.add(r)
			for _, what := range slices.Concat(r.stranded, r.violated) {
				t.Logf("seed %d: %s", seeds[i], what)
			}
		}
	}
	t.Logf("%d clusters, %d of them not judged, %d with removals: %d nodes removed, %d drains given up; %d pods moved, %d of them stranded (%.2f %%); %d budgets, %d evictions refused by them, %d violated",
		cases, unjudged, sum.cases, sum.nodes, sum.aborted, sum.moved, len(sum.stranded), share(len(sum.stranded), sum.moved), sum.budgets, sum.refused, len(sum.violated))
	assert.GreaterOrEqual(t, sum.cases, n, "clusters with removals")
	assert.LessOrEqual(t, unjudged, fit.Tolerated(cases, 0.001), "clusters that could not be judged")
	assert.Empty(t, sum.stranded, "evicted pods that found no place")
	assert.Empty(t, sum.violated, "budgets")
	require.Positive(t, sum.moved)
	require.Positive(t, sum.budgets)
}

// removals is what became of the removals of a case, or of many.
type removals struct {
	cases, nodes, moved, budgets int
	aborted                      int // nodes that stay since a budget waits for a pod that has no place before the node is gone
	refused                      int // evictions, by a budget
	stranded, violated           []string
}

func (r *removals) add(o removals) {
	if o.nodes > 0 {
		r.cases++
	}
	r.nodes += o.nodes
	r.moved += o.moved
	r.budgets += o.budgets
	r.aborted += o.aborted
	r.refused += o.refused
	r.stranded = append(r.stranded, o.stranded...)
	r.violated = append(r.violated, o.violated...)
}

// withdrawal is a case whose nodes go.
type withdrawal struct {
	*trial
	removals
	again map[string]string // pods that were evicted, by the one that was made for each
	must  map[string]bool   // of these, those that were promised a place
}

func remove(ctx context.Context, k *cluster, seed uint64) (removals, error) {
	w := &withdrawal{trial: newTrial(k, seed), again: map[string]string{}, must: map[string]bool{}}
	// Nodes and pods as they come about when the pool has grown.
	c, err := fit.Settle(k.framework, w.c)
	if err != nil {
		return w.removals, err
	}
	if _, err := fit.Compare(k.framework, c, func(c *fit.Case) *fit.Case { return c }); err != nil {
		return w.removals, err
	}
	w.c, w.records = fit.Thin(c, 0.3), nil
	for _, r := range w.c.Records {
		w.records = append(w.records, record(r.Pool, r.Name, r.ClaimID))
	}
	k.ready = true
	defer func() { k.ready = false }()
	if err := k.create(ctx, w.c); err != nil {
		return w.removals, fmt.Errorf("create the case: %w", err)
	}
	k.held = false
	if err := w.protect(ctx); err != nil {
		return w.removals, err
	}
	if err := k.settle(ctx); err != nil {
		return w.removals, err
	}
	now, err := w.look(ctx)
	if err != nil {
		return w.removals, err
	}
	for _, p := range now.Pods {
		if metav1.GetControllerOf(p) == nil { // the test will make it again
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "of-" + p.Labels["app"], UID: "of", Controller: new(true)}}
		}
	}
	nodes, err := fit.Removals(now)
	if err != nil || len(nodes) == 0 {
		return w.removals, err
	}
	err = w.withdraw(ctx, nodes) // which changes the sum
	return w.removals, err
}

// protect gives some of the pods a budget: one fewer than there are must be up.
func (w *withdrawal) protect(ctx context.Context) error {
	g := rand.New(rand.NewPCG(w.c.Seed, 2029))
	now, err := w.k.see(ctx)
	if err != nil {
		return err
	}
	up := map[string]int{} // by app
	for _, p := range now.Pods {
		if app := p.Labels["app"]; p.Namespace == "shop" && p.Spec.NodeName != "" && p.DeletionTimestamp == nil && app != "" && metav1.GetControllerOf(p) == nil {
			up[app]++
		}
	}
	for _, app := range []string{"web", "db", "cache", "batch"} {
		if up[app] == 0 || g.Float64() < 0.4 {
			continue
		}
		least := intstr.FromInt32(int32(up[app] - 1)) //nolint:gosec // few
		b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: app},
			Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &least, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}}
		if b, err = w.k.PolicyV1().PodDisruptionBudgets("shop").Create(ctx, b, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create budget %s: %w", app, err)
		}
		w.k.view.wrote(w.k.view.budgets, b)
		w.budgets++
	}
	return w.k.eventually(ctx, "the budgets are counted", func() (bool, error) {
		now, err := w.k.see(ctx)
		if err != nil {
			return false, err
		}
		if _, err := w.k.steps(ctx, now); err != nil { // the pods become Ready
			return false, err
		}
		for _, b := range of[*policyv1.PodDisruptionBudget](w.k.view.budgets) {
			if b.Status.ObservedGeneration == 0 || b.Status.CurrentHealthy <= b.Status.DesiredHealthy && b.Status.DisruptionsAllowed == 0 && b.Status.CurrentHealthy < b.Status.ExpectedPods {
				return false, nil
			}
		}
		return true, nil
	})
}

// withdraw drains the nodes and deletes them.
func (w *withdrawal) withdraw(ctx context.Context, nodes []string) error {
	if err := all(nodes, func(n string) error { return w.cordon(ctx, n, true) }); err != nil {
		return err
	}
	stay, err := w.evict(ctx, nodes)
	if err != nil {
		return err
	}
	w.aborted = len(stay)
	if err := all(stay, func(n string) error { return w.cordon(ctx, n, false) }); err != nil {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return slices.Contains(stay, n) })
	w.nodes = len(gone)
	now, err := w.k.see(ctx)
	if err != nil {
		return err
	}
	if err := all(gone, func(n string) error { return w.k.deleteNode(ctx, now, n) }); err != nil {
		return err
	}
	if err := all(now.Pods, func(p *corev1.Pod) error { // of DaemonSets, or about to end
		if !slices.Contains(gone, p.Spec.NodeName) {
			return nil
		}
		return w.k.end(ctx, p)
	}); err != nil {
		return err
	}
	if err := w.k.settle(ctx); err != nil {
		return err
	}
	if now, err = w.k.see(ctx); err != nil {
		return err
	}
	for ref := range w.must {
		w.moved++
		if p := find(now, ref); p == nil || p.Spec.NodeName == "" {
			w.stranded = append(w.stranded, fmt.Sprintf("pod %s for %s has no place without %v: %s", ref, w.again[ref], gone, fate(now, ref)))
		}
	}
	return nil
}

func find(c *fit.Case, ref string) *corev1.Pod {
	i := slices.IndexFunc(c.Pods, func(p *corev1.Pod) bool { return fit.Ref(p) == ref })
	if i < 0 {
		return nil
	}
	return c.Pods[i]
}

func (w *withdrawal) cordon(ctx context.Context, node string, cordoned bool) error {
	return w.k.changeNode(ctx, node, func(n *corev1.Node) { n.Spec.Unschedulable = cordoned })
}

// evict evicts the pods of the nodes until none is left, and returns the nodes on
// which budgets keep some although nothing moves any more.
func (w *withdrawal) evict(ctx context.Context, nodes []string) (stay []string, err error) {
	for blocked := 0; ; {
		now, err := w.k.see(ctx)
		if err != nil {
			return nil, err
		}
		stay, evicted := map[string]bool{}, false
		for _, p := range now.Pods {
			if !slices.Contains(nodes, p.Spec.NodeName) || p.DeletionTimestamp != nil || metav1.GetControllerOf(p) != nil {
				continue
			}
			done, err := w.evictOne(ctx, p)
			if err != nil {
				return nil, err
			}
			if !done {
				stay[p.Spec.NodeName] = true
			}
			evicted = evicted || done
		}
		if len(stay) == 0 {
			return nil, nil
		}
		if blocked++; evicted {
			blocked = 0
		}
		// The budgets are counted anew a moment after the pods are up.
		const rounds = 10
		if blocked == rounds {
			var out []string
			for n := range stay {
				out = append(out, n)
			}
			return out, nil
		}
		if err := w.k.settle(ctx); err != nil {
			return nil, err
		}
		if blocked > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// evictOne evicts a pod unless a budget forbids it, ends it as its kubelet would, and
// makes it again as its controller would.
func (w *withdrawal) evictOne(ctx context.Context, p *corev1.Pod) (bool, error) {
	err := w.k.CoreV1().Pods(p.Namespace).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}})
	switch {
	case apierrors.IsTooManyRequests(err):
		w.refused++
		return false, nil
	case err != nil:
		return false, fmt.Errorf("evict pod %s: %w", fit.Ref(p), err)
	}
	if err := w.budgetsAreKept(ctx); err != nil {
		return false, err
	}
	if err := w.k.end(ctx, p); err != nil {
		return false, err
	}
	again := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + "-again", Labels: p.Labels}, Spec: *p.Spec.DeepCopy()}
	again.Spec.NodeName = ""
	again.Spec.Tolerations = slices.DeleteFunc(again.Spec.Tolerations, func(t corev1.Toleration) bool { return t.TolerationSeconds != nil })
	again.Spec.Priority, again.Spec.PreemptionPolicy, again.Spec.Overhead = nil, nil, nil // admission gives them
	for i := range again.Spec.TopologySpreadConstraints {
		unmerge(&again.Spec.TopologySpreadConstraints[i])
	}
	if again, err = w.k.CoreV1().Pods(p.Namespace).Create(ctx, again, metav1.CreateOptions{}); err != nil {
		return false, fmt.Errorf("make pod %s again: %w", fit.Ref(p), err)
	}
	w.k.view.wrote(w.k.view.pods, again)
	w.again[fit.Ref(again)] = fit.Ref(p)
	if *p.Spec.Priority > fit.Expendable {
		w.must[fit.Ref(again)] = true
	}
	return true, nil
}

// budgetsAreKept counts the pods of each budget that are up.
func (w *withdrawal) budgetsAreKept(ctx context.Context) error {
	now, err := w.k.see(ctx)
	if err != nil {
		return err
	}
	for _, b := range of[*policyv1.PodDisruptionBudget](w.k.view.budgets) {
		up, selector := 0, labels.SelectorFromSet(b.Spec.Selector.MatchLabels)
		for _, p := range now.Pods {
			if p.Namespace == b.Namespace && p.DeletionTimestamp == nil && isUp(p) && selector.Matches(labels.Set(p.Labels)) {
				up++
			}
		}
		if up < b.Spec.MinAvailable.IntValue() {
			w.violated = append(w.violated, fmt.Sprintf("budget %s wants %d pods, %d are up", b.Name, b.Spec.MinAvailable.IntValue(), up))
		}
	}
	return nil
}

// isUp reports whether the pod counts for its budget.
func isUp(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
