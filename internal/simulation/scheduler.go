package simulation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// free is what a node has left.
type free struct {
	node *corev1.Node
	left corev1.ResourceList
	pods int64
}

// schedule binds pending pods by requests, node selector and affinity, and
// taints, the oldest first; among the nodes that fit it takes the emptiest, as
// the scheduler's default score does.
func (w *World) schedule() {
	pods := w.store.pods()
	nodes := w.freeNodes(pods)
	var pending []*corev1.Pod
	for _, p := range pods {
		if p.Spec.NodeName == "" && p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodPending &&
			p.Spec.SchedulerName == corev1.DefaultSchedulerName && len(p.Spec.SchedulingGates) == 0 {
			pending = append(pending, p)
		}
	}
	slices.SortStableFunc(pending, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(priority(b), priority(a)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time))
	})
	for _, p := range pending {
		if w.elapsed("schedule/"+string(p.UID), w.o.Delays.Schedule) {
			w.scheduleOne(p, nodes)
		}
	}
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

func (w *World) freeNodes(pods []*corev1.Pod) []*free {
	var nodes []*free
	byName := map[string]*free{}
	for _, n := range w.store.nodes() {
		f := &free{node: n, left: n.Status.Allocatable.DeepCopy(), pods: n.Status.Allocatable.Pods().Value()}
		nodes = append(nodes, f)
		byName[n.Name] = f
	}
	for _, p := range pods {
		if f := byName[p.Spec.NodeName]; f != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			f.take(p)
		}
	}
	return nodes
}

func (f *free) take(p *corev1.Pod) {
	f.pods--
	for name, amount := range requests(p) {
		if left, ok := f.left[name]; ok {
			left.Sub(amount)
			f.left[name] = left
		}
	}
}

func requests(p *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
}

func (w *World) scheduleOne(p *corev1.Pod, nodes []*free) {
	var best *free
	var bestShare float64
	reasons := map[string]int{}
	for _, f := range nodes {
		if why := f.refuses(p); len(why) > 0 {
			for _, r := range why {
				reasons[r]++
			}
			continue
		}
		if share := f.share(); best == nil || share > bestShare {
			best, bestShare = f, share
		}
	}
	if best == nil {
		w.store.modifyPod(p, func(p *corev1.Pod) {
			setPodCondition(p, corev1.PodCondition{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
				Message: unschedulable(len(nodes), reasons), LastTransitionTime: w.now(),
			})
		})
		return
	}
	best.take(p)
	name := best.node.Name
	w.store.modifyPod(p, func(p *corev1.Pod) {
		p.Spec.NodeName = name
		setPodCondition(p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: w.now()})
	})
}

// share is how much of the scarcest resource is left, 0 to 1.
func (f *free) share() float64 {
	least := 1.0
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		left, all := f.left[name], f.node.Status.Allocatable[name]
		if total := all.AsApproximateFloat64(); total > 0 {
			least = min(least, left.AsApproximateFloat64()/total)
		}
	}
	return least
}

// refuses says why a pod can't be on a node, in the scheduler's words.
func (f *free) refuses(p *corev1.Pod) []string {
	if f.node.Spec.Unschedulable && !schedulinghelper.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations,
		&corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}, false) {
		return []string{"node(s) were unschedulable"}
	}
	hard := func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}
	if t, found := schedulinghelper.FindMatchingUntoleratedTaint(klog.Background(), f.node.Spec.Taints, p.Spec.Tolerations, hard, false); found {
		return []string{fmt.Sprintf("node(s) had untolerated taint {%s: %s}", t.Key, t.Value)}
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(f.node); err != nil || !ok {
		return []string{"node(s) didn't match Pod's node affinity/selector"}
	}
	var why []string
	if f.pods < 1 {
		why = append(why, "Too many pods")
	}
	for name, amount := range requests(p) {
		left, offered := f.left[name]
		if amount.Sign() > 0 && (!offered || left.Cmp(amount) < 0) {
			why = append(why, "Insufficient "+string(name))
		}
	}
	return why
}

func unschedulable(nodes int, reasons map[string]int) string {
	if nodes == 0 {
		return "no nodes available to schedule pods"
	}
	var parts []string
	for r, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, r))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", nodes, strings.Join(parts, ", "))
}
