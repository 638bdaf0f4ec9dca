package kube

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Pod is what draining needs to know of a pod on a node.
type Pod struct {
	Namespace, Name, UID string
	// OwnerKind and OwnerName are of the controller; empty when there is none.
	OwnerKind, OwnerName string
	DaemonSet            bool // its controller would put it back on the node at once
	Mirror               bool // a static pod: the kubelet's, not the API server's
	Phase                string
	Finished             bool // Succeeded or Failed: nothing runs any more
	Ready                bool // disruption budgets count it as healthy
	Critical             bool // of a priority from system-cluster-critical on
	Deleting             bool
	// DeletionDeadline is when the pod's grace ends; zero unless Deleting.
	DeletionDeadline time.Time
	// Grace is how long the pod may take to leave.
	Grace time.Duration
	// LocalStorage holds the volumes whose data is lost with the node.
	LocalStorage []events.LocalVolume
	Labels       map[string]string
	Annotations  map[string]string
}

// Ref returns "namespace/name".
func (p Pod) Ref() string { return p.Namespace + "/" + p.Name }

func newPod(p *corev1.Pod, localClaim func(claim string) bool) Pod {
	out := Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Phase: string(p.Status.Phase),
		Mirror: Mirror(p), Finished: Finished(p), Deleting: p.DeletionTimestamp != nil,
		Ready:        ready(p),
		Critical:     p.Spec.Priority != nil && *p.Spec.Priority >= systemCriticalPriority,
		Grace:        corev1.DefaultTerminationGracePeriodSeconds * time.Second,
		LocalStorage: LocalStorage(p, localClaim),
		Labels:       p.Labels,
		Annotations:  p.Annotations,
	}
	if c := metav1.GetControllerOf(p); c != nil {
		out.OwnerKind, out.OwnerName = c.Kind, c.Name
		out.DaemonSet = c.Kind == "DaemonSet"
	}
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		out.Grace = time.Duration(*s) * time.Second
	}
	if p.DeletionTimestamp != nil {
		// The server sets it to the end of the grace period.
		out.DeletionDeadline = p.DeletionTimestamp.UTC()
	}
	return out
}

// systemCriticalPriority is the value of the PriorityClass system-cluster-critical,
// the lower of the two that Kubernetes keeps for its own pods (2 × HighestUserDefinable,
// as its scheduling API has it).
const systemCriticalPriority = 2_000_000_000

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Finished reports whether all containers of a pod have ended for good.
func Finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Mirror reports whether a pod is the API server's image of a static pod.
func Mirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// LocalStorage returns the volumes of a pod that live on its node: hostPath,
// emptyDir that is not memory, and claims that localClaim says are local.
func LocalStorage(p *corev1.Pod, localClaim func(claim string) bool) []events.LocalVolume {
	var out []events.LocalVolume
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.HostPath != nil:
			out = append(out, events.LocalVolume{Name: v.Name, Kind: events.LocalHostPath})
		case v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault:
			out = append(out, events.LocalVolume{Name: v.Name, Kind: events.LocalEmptyDir})
		default:
			if claim := ClaimName(p, v); claim != "" && localClaim(claim) {
				out = append(out, events.LocalVolume{Name: v.Name, Kind: events.LocalPersisted})
			}
		}
	}
	return out
}

// ClaimName returns the name of the PersistentVolumeClaim behind a volume of a
// pod; empty when there is none. A generic ephemeral volume has one that is
// named after pod and volume.
func ClaimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

// localPathProvisioner is the one that k3s ships with.
const localPathProvisioner = "rancher.io/local-path"

// LocalClaim reports whether a claim says by itself that its volume is local:
// the local-path provisioner of k3s makes it. Of any other, ask its volume.
func LocalClaim(c *corev1.PersistentVolumeClaim) bool {
	return c.Annotations["volume.kubernetes.io/storage-provisioner"] == localPathProvisioner ||
		c.Annotations["volume.beta.kubernetes.io/storage-provisioner"] == localPathProvisioner
}

// LocalVolume reports whether a volume lives on one node: its source is a
// folder of the node, the local-path provisioner made it, or it can only be
// used from nodes of a given host name.
func LocalVolume(v *corev1.PersistentVolume) bool {
	if v.Spec.Local != nil || v.Spec.HostPath != nil ||
		v.Annotations["pv.kubernetes.io/provisioned-by"] == localPathProvisioner {
		return true
	}
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return false
	}
	return slices.ContainsFunc(v.Spec.NodeAffinity.Required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		named := func(r corev1.NodeSelectorRequirement) bool {
			return r.Operator == corev1.NodeSelectorOpIn && (r.Key == corev1.LabelHostname || r.Key == metav1.ObjectNameField)
		}
		return slices.ContainsFunc(t.MatchExpressions, named) || slices.ContainsFunc(t.MatchFields, named)
	})
}
