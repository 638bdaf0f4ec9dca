package main

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// A yardstick for the number of nodes: first-fit-decreasing in the manner of
// Karpenter's scheduler (Provisioner.Schedule). Pods are tried by falling CPU, then
// memory. A node in the making has no size and no zone yet: it takes pods as long as
// one of the pools could still make it; one with fewer pods is tried first. A pod
// that finds no place is tried again as long as others do.
type ffd struct {
	pools   []events.PoolPolicy
	classes map[string]events.PodClass
	nodes   []*rawNode
	inZone  map[string]map[string]int // pods by zone and label
}

// rawNode is a node in the making.
type rawNode struct {
	pools []events.PoolPolicy // that could make it
	used  events.Resources
	has   map[string]int // pods by label
	order int
}

// firstFitDecreasing returns how many nodes the waiting pods get, and how many pods
// find none.
func firstFitDecreasing(o events.SnapshotObjects, pools []events.PoolPolicy) (nodes, left int) {
	f := &ffd{pools: pools, classes: map[string]events.PodClass{}, inZone: map[string]map[string]int{}}
	for _, p := range pools {
		f.inZone[p.Labels[corev1.LabelTopologyZone]] = map[string]int{}
	}
	for _, c := range o.Classes {
		f.classes[c.ID] = c
	}
	queue := make([]events.PodClass, len(o.Pods))
	for i, p := range o.Pods {
		queue[i] = f.classes[p.Class]
	}
	slices.SortStableFunc(queue, func(a, b events.PodClass) int {
		return cmp.Or(cmp.Compare(b.Requests.CPUMilli, a.Requests.CPUMilli), cmp.Compare(b.Requests.MemoryBytes, a.Requests.MemoryBytes))
	})
	for {
		var again []events.PodClass
		for _, c := range queue {
			if !f.place(c) {
				again = append(again, c)
			}
		}
		if len(again) == 0 || len(again) == len(queue) {
			return len(f.nodes), len(again)
		}
		queue = again
	}
}

// labelOf is the one label of a pod of this benchmark, or of what it selects.
func labelOf(m map[string]string) string {
	for k, v := range m {
		return k + "=" + v
	}
	return ""
}

func (f *ffd) place(c events.PodClass) bool {
	slices.SortFunc(f.nodes, func(a, b *rawNode) int {
		return cmp.Or(cmp.Compare(a.used.Pods, b.used.Pods), cmp.Compare(a.order, b.order))
	})
	for _, n := range f.nodes {
		if f.put(c, n) {
			return true
		}
	}
	n := &rawNode{pools: f.pools, has: map[string]int{}, order: len(f.nodes)}
	if !f.put(c, n) {
		return false
	}
	f.nodes = append(f.nodes, n)
	return true
}

// put puts a pod on a node if the node can still be made then.
func (f *ffd) put(c events.PodClass, n *rawNode) bool {
	if !f.host(c, n) {
		return false
	}
	zones := f.zonesFor(c, n)
	used := events.Resources{CPUMilli: n.used.CPUMilli + c.Requests.CPUMilli, MemoryBytes: n.used.MemoryBytes + c.Requests.MemoryBytes, Pods: n.used.Pods + 1}
	var pools []events.PoolPolicy
	for _, p := range n.pools {
		if zones[p.Labels[corev1.LabelTopologyZone]] && used.CPUMilli <= p.Size.CPUMilli && used.MemoryBytes <= p.Size.MemoryBytes && used.Pods <= p.Size.Pods {
			pools = append(pools, p)
		}
	}
	if len(pools) == 0 {
		return false
	}
	n.pools, n.used = pools, used
	n.has[labelOf(c.Labels)]++
	if z, only := one(pools); only { // a zone counts once it is certain
		f.inZone[z][labelOf(c.Labels)]++
	}
	return true
}

// one is the only zone of the pools.
func one(pools []events.PoolPolicy) (zone string, only bool) {
	for _, p := range pools {
		if z := p.Labels[corev1.LabelTopologyZone]; zone == "" || z == zone {
			zone = z
		} else {
			return "", false
		}
	}
	return zone, true
}

// host reports whether the rules by host let the pod on the node.
func (f *ffd) host(c events.PodClass, n *rawNode) bool {
	for _, t := range c.PodAntiAffinity {
		if n.has[labelOf(t.Selector.MatchLabels)] > 0 {
			return false
		}
	}
	for _, t := range c.PodAffinity {
		own := labelOf(t.Selector.MatchLabels)
		if t.TopologyKey == corev1.LabelHostname && n.has[own] == 0 && slices.ContainsFunc(f.nodes, func(o *rawNode) bool { return o.has[own] > 0 }) {
			return false
		}
	}
	for _, s := range c.TopologySpread {
		if sel := labelOf(s.Selector.MatchLabels); s.TopologyKey == corev1.LabelHostname && n.has[sel]+self(c, sel) > int(s.MaxSkew) {
			return false // an empty node is always to be had
		}
	}
	return true
}

func self(c events.PodClass, selected string) int {
	if labelOf(c.Labels) == selected {
		return 1
	}
	return 0
}

// zonesFor are the zones in which the rules by zone let the pod run: of those that
// are even enough the emptiest, as Karpenter chooses.
func (f *ffd) zonesFor(c events.PodClass, n *rawNode) map[string]bool {
	out := map[string]bool{}
	for z := range f.inZone {
		out[z] = true
	}
	for _, t := range c.PodAffinity {
		own := labelOf(t.Selector.MatchLabels)
		if t.TopologyKey != corev1.LabelTopologyZone {
			continue
		}
		with := maps.Clone(out)
		maps.DeleteFunc(with, func(z string, _ bool) bool { return f.inZone[z][own] == 0 })
		if len(with) > 0 {
			out = with
		} else { // the first of them decides for all
			out = f.emptiest(n, own)
		}
	}
	for _, s := range c.TopologySpread {
		sel := labelOf(s.Selector.MatchLabels)
		if s.TopologyKey != corev1.LabelTopologyZone {
			continue
		}
		lowest := -1
		for z := range f.inZone {
			if v := f.inZone[z][sel]; lowest < 0 || v < lowest {
				lowest = v
			}
		}
		maps.DeleteFunc(out, func(z string, _ bool) bool { return f.inZone[z][sel]+self(c, sel)-lowest > int(s.MaxSkew) })
		if best := f.emptiest(n, sel); len(best) > 0 {
			maps.DeleteFunc(out, func(z string, _ bool) bool { return !best[z] })
		}
	}
	return out
}

// emptiest is the zone of those that the node may still be in with the fewest such pods.
func (f *ffd) emptiest(n *rawNode, label string) map[string]bool {
	best := ""
	for _, z := range slices.Sorted(maps.Keys(f.inZone)) {
		in := slices.ContainsFunc(n.pools, func(p events.PoolPolicy) bool { return p.Labels[corev1.LabelTopologyZone] == z })
		if in && (best == "" || f.inZone[z][label] < f.inZone[best][label]) {
			best = z
		}
	}
	return map[string]bool{best: true}
}
