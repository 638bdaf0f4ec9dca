package collector

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/resource"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Labels that number the pods of one controller. They would make a class of
// each pod, and no budget selects by them.
var numberingLabels = []string{
	appsv1.StatefulSetPodNameLabel, appsv1.PodIndexLabel, "batch.kubernetes.io/job-completion-index",
}

// classOf returns what the scheduler sees of a pod.
func classOf(p *corev1.Pod, v podVolumes) (events.PodClass, error) {
	c := events.PodClass{
		Namespace: p.Namespace, Labels: nilIfEmpty(p.Labels),
		// Status amounts count as the scheduler counts them: a pod that is being
		// resized holds the larger of what it had and what it asks for.
		Requests:     resources(resource.PodRequests(p, resource.PodResourcesOptions{UseStatusResources: true})),
		NodeSelector: nilIfEmpty(p.Spec.NodeSelector), NodeAffinity: nodeAffinity(p),
		Tolerations: tolerations(p.Spec.Tolerations), TopologySpread: topologySpread(p), HostPorts: hostPorts(p), Volumes: v.from,
		NeverPreempts: p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever,
	}
	c.PodAffinity, c.PodAntiAffinity = affinityTerms(p)
	c.Unsimulated = unsimulated(p, &c, v)
	for _, l := range numberingLabels {
		delete(c.Labels, l)
	}
	c.Labels = nilIfEmpty(c.Labels)
	if p.Spec.Priority != nil {
		c.Priority = *p.Spec.Priority
	}
	if s := p.Spec.SchedulerName; s != "" && s != corev1.DefaultSchedulerName {
		c.SchedulerName = s
	}
	content, err := json.Marshal(c)
	if err != nil {
		return c, fmt.Errorf("class of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	c.ID = events.ID("class", string(content))[:16]
	return c, nil
}

// nodeAffinity returns the required terms. A DaemonSet pins each pod to its
// node by name; once it is there, that only tells pods of one kind apart.
func nodeAffinity(p *corev1.Pod) []events.NodeSelectorTerm {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	owner := metav1.GetControllerOf(p)
	pinned := p.Spec.NodeName != "" && owner != nil && owner.Kind == "DaemonSet"
	var out []events.NodeSelectorTerm
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		term := events.NodeSelectorTerm{MatchExpressions: requirements(t.MatchExpressions)}
		if !pinned {
			term.MatchFields = requirements(t.MatchFields)
		} else if len(term.MatchExpressions) == 0 {
			continue
		}
		out = append(out, term)
	}
	return out
}

func requirements(rs []corev1.NodeSelectorRequirement) []events.Requirement {
	var out []events.Requirement
	for _, r := range rs {
		out = append(out, events.Requirement{Key: r.Key, Operator: string(r.Operator), Values: nilIfNone(r.Values)})
	}
	return out
}

func tolerations(ts []corev1.Toleration) []events.Toleration {
	var out []events.Toleration
	for _, t := range ts {
		out = append(out, events.Toleration{Key: t.Key, Operator: string(t.Operator), Value: t.Value, Effect: string(t.Effect)})
	}
	return out
}

// systemPriorities are of the two classes that every cluster has. The priority
// of any other class is not resolved in a template, and counts as 0.
var systemPriorities = map[string]int32{"system-cluster-critical": 2000000000, "system-node-critical": 2000001000}

// convertDaemonSet returns a DaemonSet with the class of the pods that it puts
// on a new node: its template, with the tolerations that its controller adds
// (k8s.io/kubernetes, pkg/controller/daemon/util).
func convertDaemonSet(d *appsv1.DaemonSet) (events.SnapshotDaemonSet, error) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, Labels: maps.Clone(d.Spec.Template.Labels)},
		Spec:       d.Spec.Template.Spec,
	}
	if v, ok := systemPriorities[p.Spec.PriorityClassName]; ok && p.Spec.Priority == nil {
		p.Spec.Priority = &v
	}
	always := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	}
	if p.Spec.HostNetwork {
		always = append(always, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	p.Spec.Tolerations = append(slices.Clone(p.Spec.Tolerations), always...)
	class, err := classOf(p, podVolumes{})
	if err != nil {
		return events.SnapshotDaemonSet{}, fmt.Errorf("daemonset %s/%s: %w", d.Namespace, d.Name, err)
	}
	return events.SnapshotDaemonSet{Namespace: d.Namespace, Name: d.Name, Class: class}, nil
}
