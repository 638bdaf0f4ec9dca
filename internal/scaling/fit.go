package scaling

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// misfit says why a pod does not go on a node, and what would have to change.
type misfit struct {
	code, message, fix string
}

// affine reports whether the node meets the node selector and the required node
// affinity of the class, as the NodeAffinity plugin does. nil means yes.
func (w *world) affine(c *PodClass, n *simNode) *misfit {
	r := c.rules
	if len(c.NodeSelector) == 0 && r.node == nil {
		return nil
	}
	for _, k := range sortedKeys(c.NodeSelector) {
		if v, ok := n.labels[k]; !ok || v != c.NodeSelector[k] {
			return &misfit{code: "NodeSelector",
				message: fmt.Sprintf("node selector %s=%s is not met", k, c.NodeSelector[k]),
				fix:     fmt.Sprintf("give the pool the label %s=%s, or take the node selector off the pod", k, c.NodeSelector[k])}
		}
	}
	if r.node == nil {
		return nil
	}
	ok, err := r.node.Match(n.object())
	if err != nil {
		return &misfit{code: "NodeAffinity", message: "the required node affinity is malformed: " + err.Error(),
			fix: "correct the pod's node affinity"}
	}
	if !ok {
		return &misfit{code: "NodeAffinity", message: "the required node affinity is not met",
			fix: "give the pool the labels that the pod's node affinity asks for, or relax it"}
	}
	return nil
}

// object is as much of a node as node selectors look at.
func (n *simNode) object() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: n.labels}}
}

// untolerated is the first taint that keeps pods of the class off the node, as
// the TaintToleration plugin finds it, or nil.
func untolerated(c *PodClass, n *simNode) *corev1.Taint {
	for i, t := range n.taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerated(t, c.Tolerations) {
			return &n.taints[i]
		}
	}
	return nil
}

// placeable reports whether the scheduler would consider the node for pods of
// the class at all, whatever else is on it: node selector, required node
// affinity, taints, and where the pod's volumes can be used (VolumeBinding,
// VolumeZone). nil means yes.
func (w *world) placeable(c *PodClass, n *simNode) *misfit {
	if m := w.affine(c, n); m != nil {
		return m
	}
	if t := untolerated(c, n); t != nil {
		return &misfit{code: "Taint",
			message: fmt.Sprintf("taint %s=%s:%s is not tolerated", t.Key, t.Value, t.Effect),
			fix:     fmt.Sprintf("add a toleration of %s to the pod, or take the taint off the pool", t.Key)}
	}
	for _, v := range c.rules.volumes {
		if v.err != nil {
			return &misfit{code: "VolumeTopology", message: "the node affinity of a volume is malformed: " + v.err.Error(),
				fix: "correct the volume's node affinity"}
		}
		if !v.nodes.Match(n.object()) {
			return v.misfit()
		}
	}
	return nil
}

func (v volumeRule) misfit() *misfit {
	switch v.kind {
	case VolumeZone:
		return &misfit{code: "VolumeZone", message: "a volume of the pod is in another zone",
			fix: "give a pool the zone and region labels of the volume, or move the data"}
	case VolumeAllowed:
		return &misfit{code: "VolumeAllowedTopologies", message: "the storage class of an unbound claim does not provide volumes for such a node",
			fix: "give the pool the labels that the storage class's allowedTopologies ask for, or widen them"}
	case VolumeSelectedNode:
		return &misfit{code: "VolumeSelectedNode", message: "a volume of the pod is being provisioned on another node",
			fix: "wait until it is, or delete the claim"}
	}
	return &misfit{code: "VolumeNodeAffinity", message: "a volume of the pod can only be used on other nodes",
		fix: "bring the volume's node back, or move the data and delete the claim"}
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

// budgetsOf are the disruption budgets that cover pods of a class.
func (w *world) budgetsOf(c *PodClass) []Budget {
	if out, known := w.covering[c]; known {
		return out
	}
	var out []Budget
	for _, b := range w.budgets {
		if b.selects(c) {
			out = append(out, b)
		}
	}
	if w.covering == nil {
		w.covering = map[*PodClass][]Budget{}
	}
	w.covering[c] = out
	return out
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
