package scaling

import (
	"fmt"
	"slices"
	"time"
)

// maxNamed is how many pods or candidates a decision names; the rest is counted.
const maxNamed = 50

// group are pending pods of one class: alike for the scheduler.
type group struct {
	class *PodClass
	size  int64  // share of the largest node, for the order of packing
	pods  []*Pod // those the scheduler has not refused yet come first
	// marked of them, the last ones, are unschedulable: only they ask for nodes.
	marked int
}

// waiting gathers the pending pods that count, largest first, and notes those
// that no node would help.
func (e *evaluation) waiting() []*group {
	if _, ok := e.obs.Freshness[KindPod]; !ok {
		for _, p := range e.pools {
			p.rules = append(p.rules, Rule{Rule: RuleUnschedulable, Kind: RuleUnschedulable, Verdict: Unknown,
				Message: "the snapshot holds no pods: they are unknown"})
		}
		return nil
	}
	byClass := map[string]*group{}
	var groups []*group
	hopeless := map[string][]*Pod{}
	why := map[string]*misfit{}
	for _, pod := range e.world.pods {
		if pod.Node != "" || pod.Phase != "Pending" || pod.Deleting || pod.OwnerKind == "DaemonSet" {
			continue
		}
		e.pending++
		if pod.NominatedNode != "" {
			if n, ok := e.world.nodes[pod.NominatedNode]; ok && !n.leaves {
				continue // room is being made for it by preemption
			}
		}
		c := e.world.classes[pod.Class]
		if m := e.notCounted(pod, c); m != nil {
			key := m.code + "\x00" + pod.Class
			hopeless[key], why[key] = append(hopeless[key], pod), m
			continue
		}
		g := byClass[pod.Class]
		if g == nil {
			g = &group{class: c, size: c.Requests.share(e.reference())}
			byClass[pod.Class] = g
			groups = append(groups, g)
		}
		g.pods = append(g.pods, pod)
		if !pod.UnschedulableSince.IsZero() {
			g.marked++
		}
	}
	e.placed = slices.Grow(e.placed, e.pending)
	for _, key := range sortedKeys(hopeless) {
		e.rejectPods(hopeless[key], *why[key], nil)
	}
	for _, g := range groups {
		slices.SortStableFunc(g.pods, func(a, b *Pod) int {
			return boolToInt(!a.UnschedulableSince.IsZero()) - boolToInt(!b.UnschedulableSince.IsZero())
		})
	}
	slices.SortFunc(groups, func(a, b *group) int {
		if a.size != b.size {
			return int(b.size - a.size)
		}
		return cmpStrings(a.class.Namespace, b.class.Namespace, a.class.ID, b.class.ID)
	})
	return groups
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// notCounted says why a pending pod is no reason for a node, or nil.
func (e *evaluation) notCounted(p *Pod, c *PodClass) *misfit {
	switch {
	case p.Gated:
		return &misfit{code: "SchedulingGated", message: "has scheduling gates", fix: "remove its scheduling gates"}
	case c == nil:
		return &misfit{code: "UnknownClass", message: "its requests are unknown", fix: "wait for the next snapshot"}
	case e.world.expendable(c):
		return &misfit{code: "Expendable", message: fmt.Sprintf("has a priority below %d", e.world.expendableBelow), fix: "raise its priority"}
	case p.VolumeProblem != "":
		return &misfit{code: "VolumeNotReady", message: "waits for a volume, not for a node: " + p.VolumeProblem, fix: "have the claim bound"}
	}
	return unsimulated(c)
}

// reference is the size by which pods are compared: the largest pool's node.
func (e *evaluation) reference() Resources {
	var r Resources
	for _, p := range e.pools {
		r.CPUMilli, r.MemoryBytes = max(r.CPUMilli, p.Size.CPUMilli), max(r.MemoryBytes, p.Size.MemoryBytes)
	}
	return r
}

// serve finds places for the waiting pods: on nodes that exist or are on their
// way, by calling removals off, on nodes that were decided for other reasons,
// and at last on new ones. Pods that the scheduler has not refused take room
// too, since they will; but only refused ones ask for nodes.
func (e *evaluation) serve(groups []*group) {
	if len(groups) > 0 {
		e.fill(groups, e.world.targets(soon...))
	}
	e.keepDisplaced()
	if len(groups) > 0 {
		e.fill(groups, e.world.targets(kindRestoring, kindNew))
	}
	for _, n := range e.revocable("") {
		e.revokeFor(groups, n)
	}
	inFlight, undecided := 0, 0
	for _, n := range e.world.order {
		if n.kind == kindInFlight || n.kind == kindRestoring || n.kind == kindStarting {
			inFlight += len(n.coming)
		}
	}
	var open []*group
	for _, g := range groups {
		if u := len(g.pods) - g.marked; u > 0 {
			undecided += u
			g.pods = g.pods[u:]
		}
		if len(g.pods) > 0 {
			open = append(open, g)
		}
	}
	e.pack(open, inFlight, undecided)
}

// fill puts pods on nodes, first fit, and leaves in the groups those that
// found no place. Pods that go where others are, or spread among them, may find
// a place once others have: they are tried until nothing moves any more.
func (e *evaluation) fill(groups []*group, nodes []*simNode) {
	for _, g := range groups {
		e.fillGroup(g, nodes)
	}
	for moved := true; moved; {
		moved = false
		for _, g := range groups {
			if !g.class.rules.monotone() && len(g.pods) > 0 {
				moved = e.fillGroup(g, nodes) > 0 || moved
			}
		}
	}
}

// fillGroup puts pods of one class on nodes and returns how many. Pods of a
// class are alike: a node that does not take one takes none of them, unless
// where the others are makes a difference.
func (e *evaluation) fillGroup(g *group, nodes []*simNode) int {
	before := len(g.pods)
	e.world.distribute(g.class, nodes, len(g.pods), func(n *simNode) {
		n.coming = append(n.coming, g.pods[0])
		e.placed = append(e.placed, Placement{Pod: g.pods[0].Ref(), Node: n.name})
		g.pods = g.pods[1:]
	})
	g.marked = min(g.marked, len(g.pods))
	return before - len(g.pods)
}

// keepDisplaced looks at the pods of nodes that are leaving: they have to find
// a place as well. Where they no longer do, because others came first, the
// removal is called off if it still can be.
func (e *evaluation) keepDisplaced() {
	if _, ok := e.obs.Freshness[KindPod]; !ok {
		return
	}
	revocable := e.revocable("")
	slices.Reverse(revocable) // the oldest removal is the first to find room
	for _, n := range revocable {
		if left := e.rehome(n, e.world.targets(append(slices.Clone(soon), kindNew)...)); left != nil {
			e.revoke(n, Reason{CodeNewDemand, fmt.Sprintf("pod %s would no longer fit elsewhere: %s", left.pod.Ref(), left.message)})
		}
	}
	for _, n := range e.world.order { // and those that leave for good take their room
		if n.leaves && !slices.Contains(revocable, n) {
			e.rehome(n, e.world.targets(kindReady, kindRestoring))
		}
	}
}

// revokeFor calls the removal of n off if one of the waiting pods fits there.
func (e *evaluation) revokeFor(groups []*group, n *simNode) {
	if !n.leaves {
		return
	}
	was := *n
	e.restore(n)
	for _, g := range groups {
		if g.marked > 0 && n.kind == kindRestoring && e.world.admits(g.class, n) {
			e.world.detach(n)
			n.leaves, n.kind, n.taints = was.leaves, was.kind, was.taints
			e.revoke(n, Reason{CodeUnschedulablePods, fmt.Sprintf("pod %s needs it", g.pods[len(g.pods)-1].Ref())})
			p := e.pool(n.pool)
			for _, pod := range g.pods[len(g.pods)-g.marked:] {
				p.trigger(pod.UnschedulableSince)
			}
			e.fill(groups, []*simNode{n})
			return
		}
	}
	e.world.detach(n)
	n.leaves, n.kind, n.taints = was.leaves, was.kind, was.taints
}

// rejectPods notes pods that are no reason for a node of the given pools (nil
// for all), one entry a class.
func (e *evaluation) rejectPods(pods []*Pod, m misfit, in []*poolRun) {
	if in == nil {
		in = e.pools
	}
	for _, p := range in {
		if p.known {
			p.rejected = append(p.rejected, Alternative{Subject: "pod " + pods[0].Ref(), Reason: Reason{m.code, m.message}, Fix: m.fix, Pods: refs(pods)})
		}
	}
}

// oldest is when the first of the pods was found unschedulable.
func oldest(pods []*Pod) time.Time {
	var at time.Time
	for _, p := range pods {
		if s := p.UnschedulableSince; at.IsZero() || s.Before(at) {
			at = s
		}
	}
	return at
}
