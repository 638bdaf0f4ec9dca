package collector

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// noProvisioner is the provisioner of storage classes whose volumes people make.
const noProvisioner = "kubernetes.io/no-provisioner"

// annSelectedNode is on an unbound claim whose volume is being provisioned.
const annSelectedNode = "volume.kubernetes.io/selected-node"

// claimState is what counts of a claim.
type claimState struct {
	local     bool   // says so itself
	volume    string // empty: not bound
	class     string // storage class; empty: none
	node      string // on which its volume is being provisioned
	exclusive bool   // ReadWriteOncePod
	deleting  bool
}

func convertClaim(c *corev1.PersistentVolumeClaim) claimState {
	s := claimState{local: kube.LocalClaim(c), volume: c.Spec.VolumeName, node: c.Annotations[annSelectedNode],
		exclusive: slices.Contains(c.Spec.AccessModes, corev1.ReadWriteOncePod), deleting: c.DeletionTimestamp != nil}
	if name, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		s.class = name
	} else if c.Spec.StorageClassName != nil {
		s.class = *c.Spec.StorageClassName
	}
	return s
}

// volumeState is what counts of a volume.
type volumeState struct {
	local bool
	from  []events.VolumeTopology // from which nodes it can be used
}

func convertVolume(v *corev1.PersistentVolume) volumeState {
	s := volumeState{local: kube.LocalVolume(v)}
	if a := v.Spec.NodeAffinity; a != nil && a.Required != nil {
		s.from = append(s.from, events.VolumeTopology{Kind: events.VolumeNodeAffinity, Terms: selectorTerms(a.Required.NodeSelectorTerms)})
	}
	if terms := zoneTerms(v.Labels); len(terms) > 0 {
		s.from = append(s.from, events.VolumeTopology{Kind: events.VolumeZone, Terms: terms})
	}
	return s
}

// zoneLabels are the labels of a volume that the VolumeZone plugin looks at,
// with the present name of each.
var zoneLabels = []struct{ label, present string }{
	{corev1.LabelFailureDomainBetaZone, corev1.LabelTopologyZone}, {corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyRegion},
	{corev1.LabelTopologyZone, corev1.LabelTopologyZone}, {corev1.LabelTopologyRegion, corev1.LabelTopologyRegion},
}

// zoneTerms puts the rules of the VolumeZone plugin into node selector terms: a
// node without any zone or region fits; any other has to be in those of the
// volume, where a node may carry the present name of an old label.
func zoneTerms(labels map[string]string) []events.NodeSelectorTerm {
	var none events.NodeSelectorTerm
	matches := []events.NodeSelectorTerm{{}}
	found := false
	for _, z := range zoneLabels {
		none.MatchExpressions = append(none.MatchExpressions, events.Requirement{Key: z.label, Operator: string(corev1.NodeSelectorOpDoesNotExist)})
		value, ok := labels[z.label]
		if !ok {
			continue
		}
		found = true
		values := strings.Split(value, "__")
		slices.Sort(values)
		in := func(key string) events.Requirement {
			return events.Requirement{Key: key, Operator: string(corev1.NodeSelectorOpIn), Values: values}
		}
		var next []events.NodeSelectorTerm
		for _, m := range matches {
			next = append(next, with(m, in(z.label)))
			if z.present != z.label {
				next = append(next, with(m, events.Requirement{Key: z.label, Operator: string(corev1.NodeSelectorOpDoesNotExist)}, in(z.present)))
			}
		}
		matches = next
	}
	if !found {
		return nil
	}
	return append(matches, none)
}

func with(t events.NodeSelectorTerm, more ...events.Requirement) events.NodeSelectorTerm {
	t.MatchExpressions = slices.Concat(t.MatchExpressions, more)
	return t
}

func selectorTerms(ts []corev1.NodeSelectorTerm) []events.NodeSelectorTerm {
	var out []events.NodeSelectorTerm
	for _, t := range ts {
		out = append(out, events.NodeSelectorTerm{MatchExpressions: requirements(t.MatchExpressions), MatchFields: requirements(t.MatchFields)})
	}
	return out
}

// storageState is what counts of a storage class.
type storageState struct {
	waits      bool // for the first consumer
	provisions bool
	allowed    []events.NodeSelectorTerm // empty: any node
}

func convertStorageClass(c *storagev1.StorageClass) storageState {
	s := storageState{provisions: c.Provisioner != noProvisioner,
		waits: c.VolumeBindingMode != nil && *c.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer}
	for _, t := range c.AllowedTopologies {
		var term events.NodeSelectorTerm
		for _, r := range t.MatchLabelExpressions {
			term.MatchExpressions = append(term.MatchExpressions, events.Requirement{Key: r.Key, Operator: string(corev1.NodeSelectorOpIn), Values: slices.Clone(r.Values)})
		}
		s.allowed = append(s.allowed, term)
	}
	return s
}

// podVolumes is what the claims of a pod mean for where it can go.
type podVolumes struct {
	from        []events.VolumeTopology
	problem     string // which claim keeps the pod from being scheduled at all
	unsimulated bool
}

// volumesOf follows the rules of the plugins VolumeBinding, VolumeZone and
// VolumeRestrictions. Volumes that people make for a class without a
// provisioner, and claims for one pod alone, are not simulated.
func (m *model) volumesOf(p *corev1.Pod) podVolumes {
	var out podVolumes
	for i := range p.Spec.Volumes {
		if name := kube.ClaimName(p, &p.Spec.Volumes[i]); name != "" {
			m.addClaim(&out, p.Namespace+"/"+name)
		}
	}
	// Pods whose volumes are alike are of one class in whatever order they name them.
	slices.SortFunc(out.from, func(a, b events.VolumeTopology) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return out
}

func (m *model) addClaim(out *podVolumes, key string) {
	problem := func(format string, args ...any) {
		if out.problem == "" {
			out.problem = "claim " + key + " " + fmt.Sprintf(format, args...)
		}
	}
	add := func(t events.VolumeTopology) {
		if !slices.ContainsFunc(out.from, func(o events.VolumeTopology) bool { return reflect.DeepEqual(o, t) }) {
			out.from = append(out.from, t)
		}
	}
	c, ok := m.claims[key]
	switch {
	case !ok:
		problem("does not exist")
		return
	case c.deleting:
		problem("is being deleted")
		return
	}
	out.unsimulated = out.unsimulated || c.exclusive
	if c.volume != "" {
		v, known := m.volumes[c.volume]
		out.unsimulated = out.unsimulated || !known
		for _, t := range v.from {
			add(t)
		}
		return
	}
	s, known := m.storage[c.class]
	switch {
	case c.class == "":
		problem("is not bound and names no storage class")
	case !known:
		problem("is not bound, and its storage class %s does not exist", c.class)
	case !s.waits:
		problem("is not bound, and its storage class %s does not wait for a pod", c.class)
	case !s.provisions:
		out.unsimulated = true
	case c.node != "":
		add(events.VolumeTopology{Kind: events.VolumeSelectedNode, Terms: []events.NodeSelectorTerm{{
			MatchFields: []events.Requirement{{Key: "metadata.name", Operator: string(corev1.NodeSelectorOpIn), Values: []string{c.node}}}}}})
	case len(s.allowed) > 0:
		add(events.VolumeTopology{Kind: events.VolumeAllowed, Terms: s.allowed})
	}
}
