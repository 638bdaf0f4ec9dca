package collector

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// podTerms returns the required terms of an affinity or anti-affinity to other
// pods. The API server has merged matchLabelKeys into their selectors.
func podTerms(ts []corev1.PodAffinityTerm) []events.PodAffinityTerm {
	var out []events.PodAffinityTerm
	for _, t := range ts {
		out = append(out, events.PodAffinityTerm{TopologyKey: t.TopologyKey, Selector: selectorOrNil(t.LabelSelector),
			Namespaces: slices.Clone(nilIfNone(t.Namespaces)), NamespaceSelector: selectorOrNil(t.NamespaceSelector)})
	}
	return out
}

// selectorOrNil keeps the difference between no selector, which selects
// nothing, and an empty one, which selects everything.
func selectorOrNil(s *metav1.LabelSelector) *events.Selector {
	if s == nil {
		return nil
	}
	out := selector(s)
	return &out
}

func affinityTerms(p *corev1.Pod) (to, from []events.PodAffinityTerm) {
	a := p.Spec.Affinity
	if a == nil {
		return nil, nil
	}
	if a.PodAffinity != nil {
		to = podTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
	}
	if a.PodAntiAffinity != nil {
		from = podTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
	}
	return to, from
}

// topologySpread returns the constraints that keep a pod off a node. The values
// of matchLabelKeys are those of the pod, as the PodTopologySpread plugin merges
// them; API servers from 1.34 on have done so already.
func topologySpread(p *corev1.Pod) []events.TopologySpread {
	var out []events.TopologySpread
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable != corev1.DoNotSchedule {
			continue
		}
		s := events.TopologySpread{TopologyKey: c.TopologyKey, MaxSkew: c.MaxSkew, Selector: selectorOrNil(c.LabelSelector),
			IgnoreNodeAffinity: c.NodeAffinityPolicy != nil && *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore,
			HonorTaints:        c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor}
		if c.MinDomains != nil && *c.MinDomains > 1 {
			s.MinDomains = *c.MinDomains
		}
		for _, k := range c.MatchLabelKeys {
			v, ok := p.Labels[k]
			if !ok || s.Selector == nil {
				continue
			}
			r := events.Requirement{Key: k, Operator: string(metav1.LabelSelectorOpIn), Values: []string{v}}
			if !slices.ContainsFunc(s.Selector.MatchExpressions, func(o events.Requirement) bool {
				return o.Key == r.Key && o.Operator == r.Operator && slices.Equal(o.Values, r.Values)
			}) {
				s.Selector.MatchExpressions = append(s.Selector.MatchExpressions, r)
			}
		}
		out = append(out, s)
	}
	return out
}

// hostPorts returns the ports of the node that the pod takes for as long as it
// runs: those of its containers and its sidecars, as the NodePorts plugin counts.
func hostPorts(p *corev1.Pod) []events.HostPort {
	var out []events.HostPort
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort <= 0 {
				continue
			}
			hp := events.HostPort{IP: port.HostIP, Protocol: string(port.Protocol), Port: port.HostPort}
			if hp.IP == "0.0.0.0" {
				hp.IP = ""
			}
			if hp.Protocol == string(corev1.ProtocolTCP) {
				hp.Protocol = ""
			}
			out = append(out, hp)
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if r := p.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			add(&p.Spec.InitContainers[i])
		}
	}
	slices.SortFunc(out, func(a, b events.HostPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.IP, b.IP))
	})
	return slices.Compact(out)
}

// numbers reports whether a selector looks at labels that classes leave out
// because they differ from pod to pod: a class can't say whom it selects.
func numbers(s *events.Selector) bool {
	if s == nil {
		return false
	}
	return slices.ContainsFunc(numberingLabels, func(l string) bool {
		_, ok := s.MatchLabels[l]
		return ok || slices.ContainsFunc(s.MatchExpressions, func(r events.Requirement) bool { return r.Key == l })
	})
}

func anyNumbers(ts []events.PodAffinityTerm) bool {
	return slices.ContainsFunc(ts, func(t events.PodAffinityTerm) bool { return numbers(t.Selector) })
}

// unsimulated names the hard constraints that the class does not spell out.
// Preferences are no constraints.
func unsimulated(p *corev1.Pod, c *events.PodClass, v podVolumes) []string {
	var out []string
	if anyNumbers(c.PodAffinity) {
		out = append(out, events.ConstraintPodAffinity)
	}
	if anyNumbers(c.PodAntiAffinity) {
		out = append(out, events.ConstraintPodAntiAffinity)
	}
	if slices.ContainsFunc(c.TopologySpread, func(s events.TopologySpread) bool { return numbers(s.Selector) }) {
		out = append(out, events.ConstraintTopologySpread)
	}
	if v.unsimulated {
		out = append(out, events.ConstraintVolumes)
	}
	if len(p.Spec.ResourceClaims) > 0 {
		out = append(out, events.ConstraintResourceClaims)
	}
	if s := p.Spec.SchedulerName; s != "" && s != corev1.DefaultSchedulerName {
		out = append(out, events.ConstraintForeignScheduler)
	}
	return out
}
