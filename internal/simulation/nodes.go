package simulation

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func durationOf(nanoseconds int64) time.Duration { return time.Duration(nanoseconds) }

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// setNodeReady sets the condition, and the taints that the node lifecycle
// controller derives from it.
func setNodeReady(n *corev1.Node, status corev1.ConditionStatus, now metav1.Time) {
	c := corev1.NodeCondition{Type: corev1.NodeReady, Status: status, LastTransitionTime: now, LastHeartbeatTime: now}
	taint := ""
	switch status {
	case corev1.ConditionTrue:
		c.Reason, c.Message = "KubeletReady", "kubelet is posting ready status"
	case corev1.ConditionFalse:
		c.Reason, c.Message = "KubeletNotReady", "container runtime network not ready"
		taint = corev1.TaintNodeNotReady
	case corev1.ConditionUnknown:
		c.Reason, c.Message = "NodeStatusUnknown", "Kubelet stopped posting node status."
		taint = corev1.TaintNodeUnreachable
	}
	n.Status.Conditions = append(slices.DeleteFunc(slices.Clone(n.Status.Conditions), func(o corev1.NodeCondition) bool {
		return o.Type == corev1.NodeReady
	}), c)
	n.Spec.Taints = slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable
	})
	if taint != "" {
		n.Spec.Taints = append(n.Spec.Taints,
			corev1.Taint{Key: taint, Effect: corev1.TaintEffectNoSchedule},
			corev1.Taint{Key: taint, Effect: corev1.TaintEffectNoExecute, TimeAdded: &now})
	}
}

func (w *World) modifyReady(name string, status corev1.ConditionStatus) {
	w.store.modifyNode(name, func(n *corev1.Node) { setNodeReady(n, status, w.now()) })
}

// superviseNodes finds nodes whose agent is gone, and keeps the taint of
// cordoned ones.
func (w *World) superviseNodes() {
	alive := map[string]bool{}
	for _, a := range w.agentsByID() {
		if a.registered {
			alive[a.Name] = true
		}
	}
	for _, n := range w.store.nodes() {
		if !alive[n.Name] && !isUnknown(n) && w.elapsed("lost/"+string(n.UID), w.o.Delays.NodeGrace) {
			w.modifyReady(n.Name, corev1.ConditionUnknown)
			for _, p := range w.store.pods() {
				if p.Spec.NodeName == n.Name {
					w.store.modifyPod(p, func(p *corev1.Pod) { w.setPodReady(p, corev1.ConditionFalse) })
				}
			}
		}
		tainted := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnschedulable })
		if tainted != n.Spec.Unschedulable {
			w.store.modifyNode(n.Name, func(n *corev1.Node) {
				n.Spec.Taints = slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnschedulable })
				if n.Spec.Unschedulable {
					n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
				}
			})
		}
	}
}

func isUnknown(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

// collectGarbage deletes pods whose node or whose owner is gone, and those that
// wait too long on a node that does not answer.
func (w *World) collectGarbage() {
	nodes := map[string]*corev1.Node{}
	for _, n := range w.store.nodes() {
		nodes[n.Name] = n
	}
	owners := w.owners()
	for _, p := range w.store.pods() {
		owner := metav1.GetControllerOf(p)
		now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
		switch n := nodes[p.Spec.NodeName]; {
		case owner != nil && !owners[string(owner.UID)] && p.DeletionTimestamp == nil:
			w.deletePod(p, metav1.DeleteOptions{})
		case p.Spec.NodeName == "":
		case n == nil:
			if w.elapsed("orphan/"+string(p.UID), w.o.Delays.PodGC) {
				w.deletePod(p, now)
			}
		case isUnknown(n) && p.DeletionTimestamp == nil && !daemonPod(p) && w.elapsed("unreachable/"+string(p.UID), w.o.Delays.Unreachable):
			w.deletePod(p, metav1.DeleteOptions{})
		}
	}
}

func (w *World) deletePod(p *corev1.Pod, o metav1.DeleteOptions) {
	o.Preconditions = &metav1.Preconditions{UID: &p.UID}
	if err := w.store.delete(podsResource, keyOf(p), o); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		w.o.Logger.Error("simulated pod could not be deleted", "namespace", p.Namespace, "pod", p.Name, "error", err)
	}
}

func daemonPod(p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	return owner != nil && owner.Kind == "DaemonSet"
}
