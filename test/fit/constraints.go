package fit

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Constraint is one of the rules by which pods go on nodes.
type Constraint struct {
	Name string
	// Strip takes it off a case, as if the simulation did not know it.
	Strip func(c *Case)
	share float64 // of the cases that have it
}

// Constraints are all that the fit simulation knows.
var Constraints = []Constraint{
	{"requests", eachPod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = without(p.Spec.Containers[0].Resources.Requests)
	}), 1},
	{"init containers", eachPod(func(p *corev1.Pod) { p.Spec.InitContainers = containers(p, true) }), 0.3},
	{"sidecars", eachPod(func(p *corev1.Pod) { p.Spec.InitContainers = containers(p, false) }), 0.3},
	{"overhead", eachPod(func(p *corev1.Pod) { p.Spec.Overhead = nil }), 0.3},
	{"extended resources", eachPod(func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Requests, gpu) }), 0.3},
	{"ephemeral storage", eachPod(func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Requests, disk) }), 0.25},
	{"node selectors", eachPod(func(p *corev1.Pod) { p.Spec.NodeSelector = nil }), 0.3},
	{"node affinity", eachPod(func(p *corev1.Pod) {
		if p.Spec.Affinity != nil && !ofDaemonSet(p) {
			p.Spec.Affinity.NodeAffinity = nil
		}
	}), 0.3},
	{"taints", func(c *Case) {
		for _, n := range c.Nodes {
			n.Spec.Taints = nil
		}
		for i := range c.Pools {
			c.Pools[i].Taints = nil
		}
	}, 0.35},
	{"host ports", eachPod(func(p *corev1.Pod) {
		for _, cs := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
			for i := range cs {
				cs[i].Ports = nil
			}
		}
	}), 0.32},
	{"pod affinity", eachPod(func(p *corev1.Pod) {
		if p.Spec.Affinity != nil {
			p.Spec.Affinity.PodAffinity = nil
		}
	}), 0.3},
	{"pod anti-affinity", eachPod(func(p *corev1.Pod) {
		if p.Spec.Affinity != nil {
			p.Spec.Affinity.PodAntiAffinity = nil
		}
	}), 0.3},
	{"topology spread", eachPod(func(p *corev1.Pod) { p.Spec.TopologySpreadConstraints = nil }), 0.3},
	{"volumes by node", func(c *Case) {
		for _, v := range c.Volumes {
			v.Spec.NodeAffinity = nil
		}
	}, 0.2},
	{"volume zones", func(c *Case) {
		for _, v := range c.Volumes {
			v.Labels = nil
		}
	}, 0.2},
	{"allowed topologies", func(c *Case) {
		for _, s := range c.StorageClasses {
			s.AllowedTopologies = nil
		}
	}, 0.2},
	{"max pods", func(c *Case) {
		for _, n := range c.Nodes {
			n.Status.Allocatable[corev1.ResourcePods] = *resource.NewQuantity(110, resource.DecimalSI)
		}
		for i := range c.Pools {
			c.Pools[i].Size.Pods = 110
		}
	}, 0.5},
	{"DaemonSets", func(c *Case) { c.DaemonSets = nil }, 0.35},
	{"scheduling gates", eachPod(func(p *corev1.Pod) { p.Spec.SchedulingGates = nil }), 0.36},
	{"other schedulers", eachPod(func(p *corev1.Pod) { p.Spec.SchedulerName = corev1.DefaultSchedulerName }), 0.2},
	{"nominated nodes", eachPod(func(p *corev1.Pod) {
		if p.Status.NominatedNodeName != "" {
			p.Status.Phase = corev1.PodSucceeded // nobody makes room for it
		}
	}), 0.35},
	{"expendable pods", eachPod(func(p *corev1.Pod) { p.Spec.Priority = new(int32(0)) }), 0.55},
}

// eachPod applies to the pods of DaemonSets yet to come as well.
func eachPod(strip func(*corev1.Pod)) func(*Case) {
	return func(c *Case) {
		for _, p := range c.Pods {
			strip(p)
		}
		for _, d := range c.DaemonSets {
			p := corev1.Pod{Spec: d.Spec.Template.Spec}
			strip(&p)
			d.Spec.Template.Spec = p.Spec
		}
	}
}

func without(l corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for k, v := range l {
		if k != corev1.ResourceCPU && k != corev1.ResourceMemory {
			out[k] = v
		}
	}
	return out
}

// containers returns the init containers that are sidecars, or those that are not.
func containers(p *corev1.Pod, sidecars bool) []corev1.Container {
	var out []corev1.Container
	for _, c := range p.Spec.InitContainers {
		if (c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways) == sidecars {
			out = append(out, c)
		}
	}
	return out
}

// Stripped returns the case as the simulation would see it if it did not know the
// constraint.
func (k Constraint) Stripped(c *Case) *Case {
	out := c.Clone()
	k.Strip(out)
	return out
}
