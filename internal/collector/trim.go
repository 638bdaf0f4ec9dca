package collector

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The caches keep what a snapshot is made of and nothing else: no environment,
// no command lines, no managed fields. Trimming a trimmed object changes
// nothing, which informers rely on.

// annotationPrefix is of our own annotations, all of which are listed.
const annotationPrefix = "k3s-autoscaler.dev/"

// Annotations that people already set for other autoscalers, and that mean the
// same to us.
var listedAnnotations = map[string]bool{
	"cluster-autoscaler.kubernetes.io/safe-to-evict":               true,
	"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": true,
	"cluster-autoscaler.kubernetes.io/scale-down-disabled":         true,
	"karpenter.sh/do-not-disrupt":                                  true,
}

// annotations returns the listed ones; nil when there are none.
func annotations(all map[string]string, also ...string) map[string]string {
	var out map[string]string
	keep := func(k, v string) {
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	for k, v := range all {
		if listedAnnotations[k] || strings.HasPrefix(k, annotationPrefix) {
			keep(k, v)
		}
	}
	for _, k := range also {
		if v, ok := all[k]; ok {
			keep(k, v)
		}
	}
	return out
}

func trimNode(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{ObjectMeta: trimmedMeta(n.ObjectMeta, annotations(n.Annotations)),
		Spec: corev1.NodeSpec{Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable},
		Status: corev1.NodeStatus{Capacity: n.Status.Capacity, Allocatable: n.Status.Allocatable,
			NodeInfo: corev1.NodeSystemInfo{KubeletVersion: n.Status.NodeInfo.KubeletVersion}}}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Status.Conditions = []corev1.NodeCondition{c}
		}
	}
	return out
}

func trimPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: trimmedMeta(p.ObjectMeta, annotations(p.Annotations, corev1.MirrorPodAnnotationKey)),
		Spec: trimPodSpec(&p.Spec),
		Status: corev1.PodStatus{Phase: p.Status.Phase, NominatedNodeName: p.Status.NominatedNodeName,
			Resources: p.Status.Resources, AllocatedResources: p.Status.AllocatedResources,
			ContainerStatuses:     trimStatuses(p.Status.ContainerStatuses),
			InitContainerStatuses: trimStatuses(p.Status.InitContainerStatuses)}}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled || c.Type == corev1.PodResizePending {
			out.Status.Conditions = append(out.Status.Conditions, c)
		}
	}
	return out
}

func trimPodSpec(s *corev1.PodSpec) corev1.PodSpec {
	out := corev1.PodSpec{
		NodeName: s.NodeName, NodeSelector: s.NodeSelector, Affinity: s.Affinity, Tolerations: s.Tolerations,
		Priority: s.Priority, PriorityClassName: s.PriorityClassName, PreemptionPolicy: s.PreemptionPolicy, SchedulerName: s.SchedulerName, SchedulingGates: s.SchedulingGates,
		TopologySpreadConstraints: s.TopologySpreadConstraints, ResourceClaims: s.ResourceClaims,
		Overhead: s.Overhead, Resources: s.Resources, HostNetwork: s.HostNetwork,
		Containers: trimContainers(s.Containers), InitContainers: trimContainers(s.InitContainers),
	}
	for i := range s.Volumes {
		v := corev1.Volume{Name: s.Volumes[i].Name}
		switch from := s.Volumes[i].VolumeSource; {
		case from.HostPath != nil:
			v.HostPath = &corev1.HostPathVolumeSource{}
		case from.EmptyDir != nil:
			v.EmptyDir = &corev1.EmptyDirVolumeSource{Medium: from.EmptyDir.Medium}
		case from.PersistentVolumeClaim != nil:
			v.PersistentVolumeClaim = from.PersistentVolumeClaim
		case from.Ephemeral != nil:
			v.Ephemeral = &corev1.EphemeralVolumeSource{}
		default:
			continue
		}
		out.Volumes = append(out.Volumes, v)
	}
	return out
}

func trimContainers(cs []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range cs {
		c := corev1.Container{Name: cs[i].Name, RestartPolicy: cs[i].RestartPolicy,
			Resources: corev1.ResourceRequirements{Requests: cs[i].Resources.Requests, Limits: cs[i].Resources.Limits}}
		for _, p := range cs[i].Ports {
			if p.HostPort != 0 {
				c.Ports = append(c.Ports, corev1.ContainerPort{HostPort: p.HostPort, HostIP: p.HostIP, Protocol: p.Protocol})
			}
		}
		out = append(out, c)
	}
	return out
}

func trimStatuses(ss []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range ss {
		if ss[i].Resources != nil || ss[i].AllocatedResources != nil {
			out = append(out, corev1.ContainerStatus{Name: ss[i].Name, Resources: ss[i].Resources, AllocatedResources: ss[i].AllocatedResources})
		}
	}
	return out
}

func trimClaim(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: trimmedMeta(c.ObjectMeta, c.Annotations),
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: c.Spec.VolumeName, StorageClassName: c.Spec.StorageClassName, AccessModes: c.Spec.AccessModes}}
}

func trimVolume(v *corev1.PersistentVolume) *corev1.PersistentVolume {
	out := &corev1.PersistentVolume{ObjectMeta: trimmedMeta(v.ObjectMeta, v.Annotations),
		Spec: corev1.PersistentVolumeSpec{NodeAffinity: v.Spec.NodeAffinity}}
	out.Spec.Local, out.Spec.HostPath = v.Spec.Local, v.Spec.HostPath
	return out
}

func trimStorageClass(c *storagev1.StorageClass) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: trimmedMeta(c.ObjectMeta, nil), Provisioner: c.Provisioner,
		VolumeBindingMode: c.VolumeBindingMode, AllowedTopologies: c.AllowedTopologies}
}

func trimNamespace(n *corev1.Namespace) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: trimmedMeta(n.ObjectMeta, nil)}
}

func trimDaemonSet(d *appsv1.DaemonSet) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: trimmedMeta(d.ObjectMeta, nil),
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: d.Spec.Template.Labels}, Spec: trimPodSpec(&d.Spec.Template.Spec)}}}
}

func trimMeta[T metav1.Object](o T) T {
	o.SetManagedFields(nil)
	return o
}

func trimmedMeta(m metav1.ObjectMeta, annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: m.Labels, Annotations: annotations, OwnerReferences: m.OwnerReferences}
}
