package collector

import (
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// What a snapshot holds must read back as it was written, or digests would
// differ: times are UTC, texts valid UTF-8, empty maps and slices nil.

// maxMessage bounds what a snapshot holds of the scheduler's explanation, in bytes.
const maxMessage = 512

func convertNode(n *corev1.Node) events.SnapshotNode {
	out := events.SnapshotNode{
		Name: n.Name, UID: string(n.UID), CreatedAt: n.CreationTimestamp.UTC(),
		Labels: nilIfEmpty(n.Labels), Annotations: annotations(n.Annotations),
		Unschedulable: n.Spec.Unschedulable, Deleting: n.DeletionTimestamp != nil,
		Ready:    string(corev1.ConditionUnknown),
		Capacity: resources(n.Status.Capacity), Allocatable: resources(n.Status.Allocatable),
		KubeletVersion: n.Status.NodeInfo.KubeletVersion,
	}
	for _, t := range n.Spec.Taints {
		out.Taints = append(out.Taints, events.Taint{Key: t.Key, Value: t.Value, Effect: string(t.Effect)})
	}
	if c := readyCondition(n); c != nil {
		out.Ready, out.ReadySince = string(c.Status), c.LastTransitionTime.UTC()
	}
	return out
}

func readyCondition(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeReady {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// resources turns amounts into thousandths of a core, bytes and counts. What is
// zero is left out.
func resources(l corev1.ResourceList) events.Resources {
	var out events.Resources
	for name, q := range l {
		switch name {
		case corev1.ResourceCPU:
			out.CPUMilli = q.MilliValue()
		case corev1.ResourceMemory:
			out.MemoryBytes = q.Value()
		case corev1.ResourcePods:
			out.Pods = q.Value()
		default:
			if v := q.Value(); v != 0 {
				if out.Extended == nil {
					out.Extended = map[string]int64{}
				}
				out.Extended[string(name)] = v
			}
		}
	}
	return out
}

func convertPod(p *corev1.Pod, class string, localClaim func(claim string) bool) events.SnapshotPod {
	out := events.SnapshotPod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Class: class,
		Node: p.Spec.NodeName, NominatedNode: p.Status.NominatedNodeName, Phase: string(p.Status.Phase),
		CreatedAt: p.CreationTimestamp.UTC(), Deleting: p.DeletionTimestamp != nil,
		Mirror: kube.Mirror(p), Gated: len(p.Spec.SchedulingGates) > 0, Annotations: annotations(p.Annotations),
		LocalStorage: kube.LocalStorage(p, localClaim),
	}
	if out.Phase == "" {
		out.Phase = string(corev1.PodPending)
	}
	if c := metav1.GetControllerOf(p); c != nil {
		out.Owner = &events.OwnerRef{Kind: c.Kind, Name: c.Name}
	}
	if p.Spec.NodeName != "" {
		return out
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			out.UnschedulableSince = c.LastTransitionTime.UTC()
			out.UnschedulableMessage = text(c.Message)
			if out.UnschedulableSince.IsZero() {
				out.UnschedulableSince = out.CreatedAt
			}
		}
	}
	return out
}

func text(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage]
	}
	return strings.ToValidUTF8(s, "")
}

// convertPDB returns a budget, and whether it covers any pod: one without a
// selector covers none.
func convertPDB(b *policyv1.PodDisruptionBudget) (events.SnapshotPDB, bool) {
	if b.Spec.Selector == nil {
		return events.SnapshotPDB{}, false
	}
	out := events.SnapshotPDB{
		Namespace: b.Namespace, Name: b.Name, Selector: selector(b.Spec.Selector),
		DisruptionsAllowed: b.Status.DisruptionsAllowed,
		CurrentHealthy:     b.Status.CurrentHealthy, DesiredHealthy: b.Status.DesiredHealthy,
	}
	if b.Status.ObservedGeneration < b.Generation {
		// The eviction API refuses too, until the status is of the present spec.
		out.DisruptionsAllowed = 0
	}
	return out, true
}

func selector(s *metav1.LabelSelector) events.Selector {
	out := events.Selector{MatchLabels: nilIfEmpty(s.MatchLabels)}
	for _, r := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions,
			events.Requirement{Key: r.Key, Operator: string(r.Operator), Values: slices.Clip(nilIfNone(r.Values))})
	}
	return out
}

func nilIfEmpty(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func nilIfNone(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s
}

// earliest returns the earlier of two times, where zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
