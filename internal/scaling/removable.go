package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// candidate is a node of ours that could be removed.
type candidate struct {
	n     *simNode
	p     *poolRun
	share int64 // max(cpu, memory) of requests / allocatable in thousandths
	moves int   // pods that would have to move; for RemoveCheapest
}

// candidates are our Ready nodes that take pods, those of each pool in its order.
// Cordoned nodes are not among them: somebody wants them as they are.
func (e *evaluation) candidates() []candidate {
	x := e.world.index
	out := make([]candidate, 0, len(x.order))
	ordered := map[*poolRun][]candidate{} // of pools with an order of their own
	for _, entry := range x.newestFirst() {
		n := e.world.nodes[entry.name] // the index's own, or what stands for it now
		if !n.owned || n.leaves || n.kind != kindReady || n.record.inFlight() || n.record.gone() {
			continue
		}
		if p := e.pool(n.pool); p.known {
			c := candidate{n: n, p: p, share: e.world.utilization(n)}
			out = append(out, c)
			if p.RemovalOrder == RemoveLeastUtilized || p.RemovalOrder == RemoveCheapest {
				ordered[p] = append(ordered[p], c)
			}
		}
	}
	for p, cs := range ordered {
		if p.RemovalOrder == RemoveCheapest {
			for i := range cs {
				cs[i].moves = len(e.world.toMove(cs[i].n))
			}
		}
		slices.SortStableFunc(cs, func(a, b candidate) int { // of equals the newest first
			return cmp.Or(cmp.Compare(a.moves, b.moves), cmp.Compare(a.share, b.share))
		})
	}
	// Each pool keeps the places of its nodes among those of the others.
	for i, c := range out {
		if cs := ordered[c.p]; len(cs) > 0 {
			out[i], ordered[c.p] = cs[0], cs[1:]
		}
	}
	return out
}

// utilization is max(cpu, memory) of the requests of a node's pods over its
// allocatable, in thousandths; DaemonSet pods count, as the scheduler counts them.
func (w *world) utilization(n *simNode) int64 {
	used := n.asked
	for _, p := range n.coming {
		if c, ok := w.classes[p.Class]; ok {
			used.CPUMilli += c.Requests.CPUMilli
			used.MemoryBytes += c.Requests.MemoryBytes
		}
	}
	return used.share(n.alloc)
}

// blockers are the reasons for which the node must not be removed, whatever
// its utilisation, each with its remedy. auto is a removal that we decide: a
// disruption budget without disruptions left forbids it. A person's removal
// goes ahead in that case; the drain waits for the budget and reports it.
func (e *evaluation) blockers(n *simNode, auto bool) []Alternative {
	var out []Alternative
	block := func(code, message, fix string) {
		if len(out) < maxNamed {
			out = append(out, Alternative{Subject: "node " + n.name, Reason: Reason{code, message}, Fix: fix})
		}
	}
	if slices.Contains(e.policy.ProtectedNodes, n.name) {
		block("Protected", "is in protected_nodes", "take it off protected_nodes")
	}
	if n.node.Annotations[AnnotationScaleDownDisabled] == "true" {
		block("ScaleDownDisabled", "carries the annotation "+AnnotationScaleDownDisabled, "remove the annotation from the node")
	}
	if n.node.Annotations[AnnotationDoNotDisrupt] == "true" {
		block("DoNotDisrupt", "carries the annotation "+AnnotationDoNotDisrupt, "remove the annotation from the node")
	}
	for _, p := range n.pods {
		if !p.Mirror && p.OwnerKind != "DaemonSet" && !p.Deleting && !e.pool(n.pool).lets(p) {
			e.podBlockers(p, e.pool(n.pool).Evicts, auto, block)
		}
	}
	return out
}

func (e *evaluation) podBlockers(p *Pod, policy evictable.Policy, auto bool, block func(code, message, fix string)) {
	c := e.world.classes[p.Class]
	if c == nil {
		block("UnknownClass", fmt.Sprintf("the requests of pod %s are unknown", p.Ref()), "wait for the next snapshot")
		return
	}
	subject := evictable.Pod{Namespace: p.Namespace, Labels: c.Labels, Annotations: p.Annotations, OwnerKind: p.OwnerKind, Local: p.LocalStorage,
		Budgeted: p.Namespace == evictable.SystemNamespace && len(e.world.budgetsOf(c)) > 0}
	for _, r := range policy.Keeps(subject) {
		block(r.Code, fmt.Sprintf("pod %s %s", p.Ref(), r.Message), r.Fix)
	}
	if !auto {
		return
	}
	var budgets []string
	for _, b := range e.world.budgetsOf(c) {
		budgets = append(budgets, b.Namespace+"/"+b.Name)
		if b.DisruptionsAllowed <= 0 {
			block("PodDisruptionBudget", fmt.Sprintf("the budget %s/%s allows no disruption of pod %s", b.Namespace, b.Name, p.Ref()),
				"add a replica or relax the budget")
		}
	}
	if len(budgets) > 1 {
		block("SeveralBudgets", fmt.Sprintf("pod %s is covered by the budgets %s: the API server evicts no such pod", p.Ref(), strings.Join(budgets, ", ")),
			"leave the pod to one budget")
	}
}

// leftover is a pod that finds no other place, and why.
type leftover struct {
	pod *Pod
	misfit
}

// rehome finds a place on the targets for every pod that has to leave the node,
// largest first, and takes that room. nil means that all of them fit together;
// otherwise nothing is taken and the pod that is left over is returned.
func (e *evaluation) rehome(n *simNode, targets []*simNode) *leftover {
	pods := e.byShare(e.world.toMove(n))
	moved := &moves{w: e.world}
	from := map[*PodClass]int{} // see home
	undo := func() {
		for _, m := range moved.done {
			m.to.coming = m.to.coming[:len(m.to.coming)-1]
		}
		moved.undo(0)
	}
	for len(pods) > 0 {
		var waiting []*Pod // for others to be where they want to go
		var first *leftover
		for _, pod := range pods {
			c := e.world.classes[pod.Class]
			if c != nil && e.world.expendable(c) {
				continue
			}
			why := e.unmovable(pod, c)
			if why == nil {
				to := e.world.home(c, n, targets, from)
				if to != nil {
					moved.put(c, to)
					to.coming = append(to.coming, pod)
					continue
				}
				why = e.nowhere(c, n, targets)
			}
			if first == nil {
				first = &leftover{pod, *why}
			}
			if c == nil || c.rules.monotone() {
				undo()
				return &leftover{pod, *why}
			}
			waiting = append(waiting, pod)
		}
		if len(waiting) == len(pods) {
			undo()
			return first
		}
		pods = waiting
	}
	return nil
}

// byShare sorts the pods by what they take of the largest node, those of equal
// size by name.
func (e *evaluation) byShare(pods []*Pod) []*Pod {
	all := e.reference()
	slices.SortStableFunc(pods, func(a, b *Pod) int {
		if d := e.world.podShare(b, all) - e.world.podShare(a, all); d != 0 {
			return int(d)
		}
		return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name)
	})
	return pods
}

// moves are placements that can be undone.
type moves struct {
	w    *world
	done []move
}

// move is a pod that found another place, and the expendable ones that made it.
type move struct {
	class *PodClass
	to    *simNode
	gone  []lowly
}

func (m *moves) put(c *PodClass, to *simNode) {
	m.done = append(m.done, move{c, to, m.w.take(c, to)})
}

// undo takes back what came after the first n placements.
func (m *moves) undo(n int) {
	for _, x := range slices.Backward(m.done[n:]) {
		m.w.vacate(x.class, x.to)
		m.w.putBack(x.to, x.gone)
	}
	m.done = m.done[:n]
}

// unmovable says why the simulation can't tell where the pod would go, or nil.
func (e *evaluation) unmovable(p *Pod, c *PodClass) *misfit {
	switch {
	case c == nil:
		return &misfit{code: "UnknownClass", message: "its requests are unknown", fix: "wait for the next snapshot"}
	case p.VolumeProblem != "":
		return &misfit{code: "VolumeNotReady", message: "would wait for a volume: " + p.VolumeProblem, fix: "have the claim bound"}
	}
	return unsimulated(c)
}

func (w *world) podShare(p *Pod, all Resources) int64 {
	if c := w.classes[p.Class]; c != nil {
		return c.Requests.share(all)
	}
	return 0
}

// home is the first of the targets that takes a pod of the class. from keeps
// where the search for the next one of the class begins: nodes that took none
// before take none now, unless where the others are makes a difference.
func (w *world) home(c *PodClass, not *simNode, targets []*simNode, from map[*PodClass]int) *simNode {
	for i := from[c]; i < len(targets); i++ {
		if t := targets[i]; t != not && !t.leaves && w.admits(c, t) {
			if c.rules.monotone() {
				from[c] = i
			}
			return t
		}
	}
	return nil
}
