package scaling

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// newTemplate is an empty node of the pool as it would come into the world, with
// its DaemonSets already counted. Where a Ready node of the pool turned out
// smaller than the policy says, its size counts: otherwise a pod that fits on
// paper would ask for one node after the other.
func (w *world) newTemplate(cluster string, p Pool) *simNode {
	_, taints := splitStartup(p.Taints, p.StartupTaints)
	t := &simNode{pool: p.Name, kind: kindNew, memo: &memo{}, taints: taints, alloc: p.Size.clone()}
	if t.alloc.Pods <= 0 {
		t.alloc.Pods = defaultMaxPods
	}
	t.labels = map[string]string{corev1.LabelOSStable: "linux"}
	if model, siblings := w.index.model(p.Name); model != nil {
		t.alloc.CPUMilli = min(t.alloc.CPUMilli, model.alloc.CPUMilli)
		t.alloc.MemoryBytes = min(t.alloc.MemoryBytes, model.alloc.MemoryBytes)
		t.alloc.Pods = min(t.alloc.Pods, model.alloc.Pods)
		t.alloc.Extended = maps.Clone(model.alloc.Extended)
		maps.Copy(t.labels, siblings.agreedLabels(model))
		for _, k := range learnedLabels {
			if v, ok := model.labels[k]; ok {
				t.labels[k] = v
			}
		}
		t.taints = siblings.withAgreedTaints(t.taints, model)
	} else {
		w.learnCommon(t)
	}
	maps.Copy(t.labels, p.Labels)
	t.labels[LabelCluster], t.labels[LabelPool] = cluster, p.Name
	t.free = t.alloc.clone()
	w.reserveDaemons(t)
	return t
}

// learnedLabels are set by the kubelet, not by the pool: a new node will carry
// what its siblings carry. Zone and region are not among them: they say where
// the machine is, and nodes that are elsewhere say nothing of that.
var learnedLabels = []string{
	corev1.LabelOSStable, corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
	corev1.LabelInstanceTypeStable,
}

// learnCommon gives a template the system's labels on which all nodes agree,
// and the disk space of the smallest node: a pool says nothing about either.
func (w *world) learnCommon(t *simNode) {
	if w.common == nil {
		w.common = w.agreed()
	}
	maps.Copy(t.labels, w.common.labels)
	disk, found := w.common.alloc.Extended[ephemeralStorage]
	if _, ok := t.alloc.Extended[ephemeralStorage]; found && !ok {
		t.alloc.add(Resources{Extended: map[string]int64{ephemeralStorage: disk}})
	}
}

// agreed is what learnCommon learns.
func (w *world) agreed() *simNode {
	out := &simNode{labels: map[string]string{}}
	for _, k := range learnedLabels {
		values := map[string]bool{}
		for _, n := range w.order {
			if v, ok := n.labels[k]; ok {
				values[v] = true
			}
		}
		if len(values) == 1 {
			out.labels[k] = slices.Collect(maps.Keys(values))[0]
		}
	}
	least, found := int64(0), false
	for _, n := range w.order {
		if v, ok := n.alloc.Extended[ephemeralStorage]; ok && (!found || v < least) {
			least, found = v, true
		}
	}
	if found {
		out.alloc.Extended = map[string]int64{ephemeralStorage: least}
	}
	return out
}

// instance is a node made from a template.
func (n *simNode) instance(name string, k kind) *simNode {
	out := n.copied()
	out.name, out.kind, out.alloc = name, k, n.alloc.clone()
	out.domains, out.counts = nil, nil
	out.labels = maps.Clone(n.labels)
	out.labels[corev1.LabelHostname] = name
	return &out
}

// copied is an empty node like the template, with what pods change its own.
func (n *simNode) copied() simNode {
	out := *n
	out.free, out.expendable = n.free.clone(), n.expendable.clone()
	out.ports, out.daemons, out.lowly = slices.Clone(n.ports), slices.Clone(n.daemons), slices.Clone(n.lowly)
	out.trial, out.attached, out.template, out.memo = nil, false, n, nil
	return out
}

// trial is the pool's new node number i, empty: it is put to the test for every
// choice between pools, and made once.
func (p *poolRun) trial(i int) *simNode {
	if i == len(p.trials) {
		p.trials = append(p.trials, p.template.instance(fmt.Sprintf("%s-new-%d", p.Name, i), kindNew))
	}
	n := p.trials[i]
	empty := p.template.copied()
	empty.name, empty.kind, empty.alloc, empty.labels = n.name, n.kind, n.alloc, n.labels
	empty.domains, empty.counts, empty.trial = n.domains, n.counts, n.trial[:0]
	*n = empty
	return n
}
