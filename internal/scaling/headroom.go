package scaling

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Headroom is room that a pool keeps for pods that are to come. It is what is left
// when every other pod has its place: as virtual pods of the lowest priority would,
// it gives way to all of them, and takes a new node where they take its room.
type Headroom struct {
	// Pods of the size Pod fit beside everything else.
	Pods int
	Pod  Resources
	// Percent of the allocatable CPU and of the memory of the pool are free.
	Percent int
}

// reserve is a headroom that counts now.
type reserve struct {
	Headroom
	rule  string
	until string // ends a sentence about it: until when, and which schedule
}

// spare is what is left on nodes of a pool, in the terms of a reserve.
type spare struct {
	pods      int // of its size
	free, all Resources
}

// reserved finds out which headrooms count: those of the open schedules that set
// one, each of which keeps its word, or else the pool's own.
func (p *poolRun) reserved() []reserve {
	var out []reserve
	set := false
	for _, o := range p.open {
		if o.Headroom != nil {
			set = true
			out = append(out, reserve{*o.Headroom, "headroom of schedule " + o.Name, o.ending})
		}
	}
	if !set && p.Headroom != nil {
		out = append(out, reserve{*p.Headroom, RuleHeadroom, ""})
	}
	return slices.DeleteFunc(out, func(r reserve) bool { return r.Pods <= 0 && r.Percent <= 0 })
}

func (h Headroom) String() string {
	var text string
	if h.Pods > 0 {
		text = fmt.Sprintf("%s of %s CPU and %s", count(h.Pods, "pod"), format("cpu", h.Pod.CPUMilli), format("memory", h.Pod.MemoryBytes))
	}
	if h.Percent > 0 {
		if text != "" {
			text += " and "
		}
		text += fmt.Sprintf("%d%% of CPU and memory", h.Percent)
	}
	if text == "" {
		return "none"
	}
	return text
}

// has says what there is of it.
func (h reserve) has(s spare) string {
	var text string
	if h.Pods > 0 {
		text = count(s.pods, "pod")
	}
	if h.Percent > 0 {
		text = join(text, fmt.Sprintf("%s of CPU and %s of memory free",
			percent(permille(s.free.CPUMilli, s.all.CPUMilli)), percent(permille(s.free.MemoryBytes, s.all.MemoryBytes))))
	}
	return text
}

// places is how many pods of the size an amount has room for.
func (h Headroom) places(free Resources) int { return int(h.size().places(free)) }

// size is that of one pod, which it is, too.
func (h Headroom) size() Resources {
	return Resources{CPUMilli: h.Pod.CPUMilli, MemoryBytes: h.Pod.MemoryBytes, Pods: 1}
}

// count adds a node.
func (h Headroom) count(s *spare, n *simNode) {
	s.pods += h.places(n.free)
	s.free.CPUMilli += max(n.free.CPUMilli, 0)
	s.free.MemoryBytes += max(n.free.MemoryBytes, 0)
	s.all.CPUMilli += n.alloc.CPUMilli
	s.all.MemoryBytes += n.alloc.MemoryBytes
}

// of is what one node has.
func (h Headroom) of(n *simNode) (s spare) {
	h.count(&s, n)
	return s
}

// lacks reports whether the spare is below the headroom.
func (h Headroom) lacks(s spare) bool {
	share := int64(h.Percent)
	return s.pods < h.Pods || 100*s.free.CPUMilli < share*s.all.CPUMilli || 100*s.free.MemoryBytes < share*s.all.MemoryBytes
}

// nodes is how many empty nodes make up for what the spare lacks; false: however
// many could not, because one alone has less than its share free.
func (h Headroom) nodes(s spare, empty *simNode) (int, bool) {
	n := int64(0)
	if missing := int64(h.Pods - s.pods); missing > 0 {
		each := int64(h.places(empty.free))
		if each == 0 {
			return 0, false
		}
		n = (missing + each - 1) / each
	}
	share := int64(h.Percent)
	for _, r := range []struct{ free, all, emptyFree, emptyAll int64 }{
		{s.free.CPUMilli, s.all.CPUMilli, empty.free.CPUMilli, empty.alloc.CPUMilli},
		{s.free.MemoryBytes, s.all.MemoryBytes, empty.free.MemoryBytes, empty.alloc.MemoryBytes},
	} {
		missing, each := share*r.all-100*r.free, 100*r.emptyFree-share*r.emptyAll
		if missing <= 0 {
			continue
		}
		if each <= 0 {
			return 0, false
		}
		n = max(n, (missing+each-1)/each)
	}
	return int(n), true
}

// spare counts what is left on the nodes of the pool that take pods now or soon. A
// node that is not Ready for a moment is neither lost nor back: hopeful counts it,
// so that its absence adds nothing; a removal does not count on it.
func (e *evaluation) spare(p *poolRun, h reserve, hopeful bool) spare {
	var s spare
	for _, n := range e.world.order {
		if p.hosts(n, hopeful) {
			h.count(&s, n)
		}
	}
	return s
}

// hosts reports whether pods that are to come may go on the node.
func (p *poolRun) hosts(n *simNode, hopeful bool) bool {
	if n.pool != p.Name || n.leaves {
		return false
	}
	switch n.kind {
	case kindInFlight, kindNew:
		return true
	case kindReady, kindStarting, kindRestoring:
		return n.owned && !slices.ContainsFunc(n.taints, func(t corev1.Taint) bool {
			return t.Effect != corev1.TaintEffectPreferNoSchedule &&
				!slices.ContainsFunc(p.template.taints, func(o corev1.Taint) bool { return o.MatchTaint(&t) && o.Value == t.Value })
		})
	}
	return hopeful && n.owned && n.node != nil && !n.node.Ready && !n.node.Unschedulable && !n.node.Deleting &&
		!n.record.gone() && !n.record.Drain.active()
}

// keepHeadroom adds nodes until the pool has its headroom. It comes after the pods
// that wait: they take the room that there is.
func (e *evaluation) keepHeadroom(p *poolRun) {
	_, known := e.obs.Freshness[KindPod]
	for _, h := range p.reserves {
		rule := Rule{Rule: h.rule, Kind: RuleHeadroom, Threshold: h.String(), Verdict: None}
		if !known {
			rule.Verdict, rule.Message = Unknown, "the snapshot holds no pods: what is free is unknown"
			p.rules = append(p.rules, rule)
			continue
		}
		s := e.spare(p, h, true)
		rule.Value = h.has(s)
		want, possible := h.nodes(s, p.template)
		switch {
		case !possible:
			rule.Verdict, rule.Message = Unknown, "a new node has no room for it beside its DaemonSets: "+h.has(h.of(p.template))
			p.hold(CodeNoPoolFits, fmt.Sprintf("the headroom of pool %s can't be kept: %s", p.Name, rule.Message))
			p.would = append(p.would, fmt.Sprintf("lower the headroom of pool %s, or make its nodes larger", p.Name))
		case want > 0:
			rule.Verdict, rule.Delta = Up, want
			p.proposed = true
			why := Reason{CodeHeadroom, fmt.Sprintf("pool %s has room for %s, its headroom is %s%s", p.Name, h.has(s), h.Headroom, h.until)}
			if g := e.upGuard(p, false); g != nil {
				p.held(g, why)
				break
			}
			for want > 0 {
				got := e.grow(p, want, CauseHeadroom, why)
				if got < want {
					p.capped(why, want, got)
					break
				}
				// A removal that was called off brings less than an empty node.
				want, _ = h.nodes(e.spare(p, h, true), p.template)
			}
		}
		p.rules = append(p.rules, rule)
	}
}
