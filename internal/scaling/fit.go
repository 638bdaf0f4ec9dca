package scaling

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// misfit says why a pod does not go on a node, and what would have to change.
type misfit struct {
	code, message, fix string
}

// placeable reports whether the scheduler would consider the node for pods of
// the class at all, its free resources aside: node selector, required node
// affinity, taints. nil means yes.
func placeable(c *PodClass, n *simNode) *misfit {
	for _, k := range slices.Sorted(maps.Keys(c.NodeSelector)) {
		if v, ok := n.labels[k]; !ok || v != c.NodeSelector[k] {
			return &misfit{code: "NodeSelector",
				message: fmt.Sprintf("node selector %s=%s is not met", k, c.NodeSelector[k]),
				fix:     fmt.Sprintf("give the pool the label %s=%s, or take the node selector off the pod", k, c.NodeSelector[k])}
		}
	}
	if len(c.NodeAffinity) > 0 {
		affinity := nodeaffinity.NewRequiredNodeAffinity(nil, &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: c.NodeAffinity}}})
		ok, err := affinity.Match(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: n.labels}})
		if err != nil {
			return &misfit{code: "NodeAffinity", message: "the required node affinity is malformed: " + err.Error(),
				fix: "correct the pod's node affinity"}
		}
		if !ok {
			return &misfit{code: "NodeAffinity", message: "the required node affinity is not met",
				fix: "give the pool the labels that the pod's node affinity asks for, or relax it"}
		}
	}
	for _, t := range n.taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule || tolerated(t, c.Tolerations) {
			continue
		}
		return &misfit{code: "Taint",
			message: fmt.Sprintf("taint %s=%s:%s is not tolerated", t.Key, t.Value, t.Effect),
			fix:     fmt.Sprintf("add a toleration of %s to the pod, or take the taint off the pool", t.Key)}
	}
	return nil
}

// tolerated follows the rules of corev1.Toleration.ToleratesTaint with the
// comparison operators off, which is the scheduler's default. (The original
// wants a logger, which the core does not have.)
func tolerated(t corev1.Taint, ts []corev1.Toleration) bool {
	for _, o := range ts {
		if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
			continue
		}
		switch o.Operator {
		case "", corev1.TolerationOpEqual:
			if o.Value == t.Value {
				return true
			}
		case corev1.TolerationOpExists:
			return true
		}
	}
	return false
}

// shortage says that a node of this size can't hold a pod of the class even
// when it is empty, or nil.
func shortage(c *PodClass, pool string, free Resources) *misfit {
	r := c.Requests.lacks(free)
	if r == "" {
		return nil
	}
	return &misfit{code: "Insufficient" + title(r),
		message: fmt.Sprintf("asks for %s of %s, an empty node of pool %s has %s left beside its DaemonSets",
			format(r, c.Requests.amount(r)), r, pool, format(r, max(free.amount(r), 0))),
		fix: fmt.Sprintf("raise the pool's %s, or lower the pod's request", r)}
}

func title(resource string) string {
	switch resource {
	case "cpu":
		return "CPU"
	case "memory":
		return "Memory"
	case "pods":
		return "Pods"
	}
	return "Resource"
}

// selects reports whether a budget covers the pods of a class. A selector that
// can't be read covers every pod of its namespace: what is not understood
// protects.
func (b Budget) selects(c *PodClass) bool {
	if b.Namespace != c.Namespace {
		return false
	}
	sel, err := metav1.LabelSelectorAsSelector(&b.Selector)
	if err != nil {
		return true
	}
	return sel.Matches(labels.Set(c.Labels))
}

// unsimulated says which of a pod's constraints the simulation does not know.
func unsimulated(c *PodClass) *misfit {
	names := slices.Clone(c.Unsimulated)
	if c.SchedulerName != "" && c.SchedulerName != corev1.DefaultSchedulerName && !slices.Contains(names, "schedulerName") {
		names = append(names, "schedulerName")
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if slices.Contains(names, "schedulerName") {
		return &misfit{code: "ForeignScheduler",
			message: fmt.Sprintf("is left to the scheduler %q, whose rules are not known", c.SchedulerName),
			fix:     "use the default scheduler, or add nodes by a request or an alert"}
	}
	return &misfit{code: "ConstraintNotSimulated",
		message: "carries constraints that are not simulated: " + strings.Join(names, ", "),
		fix:     "take " + strings.Join(names, ", ") + " off the pod, or add nodes by a request or an alert"}
}
