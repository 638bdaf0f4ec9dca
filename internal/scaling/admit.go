package scaling

import (
	"fmt"
	"slices"
	"strings"
)

// expendable reports whether pods of the class give way to any other.
func (w *world) expendable(c *PodClass) bool { return c.Priority < w.expendableBelow }

// occupy takes the room of a pod of the class on the node, and vacate gives it
// back. What expendable pods hold is kept apart: see takes.
func (w *world) occupy(c *PodClass, n *simNode) { w.hold(c, n, 1, false) }
func (w *world) vacate(c *PodClass, n *simNode) { w.hold(c, n, -1, false) }

func (w *world) hold(c *PodClass, n *simNode, by int, deleting bool) {
	if n.shared && len(c.Requests.Extended) > 0 {
		n.free, n.expendable, n.shared = n.free.clone(), n.expendable.clone(), false
	}
	if w.expendable(c) {
		n.expendable.apply(c.Requests, int64(by))
		if by > 0 {
			n.lowly = append(n.lowly, lowly{c, deleting})
		} else if i := slices.Index(n.lowly, lowly{c, deleting}); i >= 0 {
			n.lowly = slices.Delete(n.lowly, i, i+1)
		}
	} else {
		n.free.apply(c.Requests, -int64(by))
		for _, p := range c.HostPorts {
			if by > 0 {
				n.ports = append(n.ports, p)
			} else if i := slices.Index(n.ports, p); i >= 0 {
				n.ports = slices.Delete(n.ports, i, i+1)
			}
		}
	}
	if n.attached {
		w.topology.count(c, n, by, deleting)
	}
}

// lowly is an expendable pod that is on a node.
type lowly struct {
	class    *PodClass
	deleting bool
}

// distribute puts up to n pods of a class on nodes, first fit, calls put for
// each before it is counted, and returns how many found a place.
func (w *world) distribute(c *PodClass, nodes []*simNode, n int, put func(*simNode)) int {
	left := n
	again := !c.rules.monotone() // nodes may take more once others have
	for moved := true; moved && left > 0; moved = moved && again {
		moved = false
		for _, node := range nodes {
			for left > 0 && !node.leaves && w.admits(c, node) {
				put(node)
				w.take(c, node)
				if node.kind != kindReady {
					c.rules.promise(c, node)
				}
				left--
				moved = true
			}
			if left == 0 {
				break
			}
		}
	}
	return n - left
}

// room names the resource that the node lacks for a pod of the class, or "",
// whatever has to give way.
func (w *world) room(c *PodClass, n *simNode) string {
	if !c.NeverPreempts {
		return c.Requests.lacks(n.free)
	}
	return c.Requests.lacks(n.unused())
}

// unused is what neither expendable nor other pods hold.
func (n *simNode) unused() Resources {
	if len(n.lowly) == 0 {
		return n.free
	}
	free := n.free.clone()
	free.sub(n.expendable)
	return free
}

// admits reports whether the scheduler could put a pod of the class on the
// node as it is in the simulation.
func (w *world) admits(c *PodClass, n *simNode) bool {
	if len(n.lowly) == 0 { // nothing could give way
		return c.Requests.lacks(n.free) == "" && w.allowed(c, n) && w.refusal(c, n).why == admitted
	}
	return w.room(c, n) == "" && w.allowed(c, n) && (w.takes(c, n) || w.pushes(c, n))
}

// takes reports whether the node has a place for a pod of the class beside all
// that is on it, expendable pods included.
func (w *world) takes(c *PodClass, n *simNode) bool {
	return c.Requests.lacks(n.unused()) == "" && w.refusal(c, n).why == admitted
}

// pushes reports whether there is one when the expendable pods of the node are
// gone: as in the scheduler's preemption, they still count everywhere else, and
// a pod that goes where they are does not push them off.
func (w *world) pushes(c *PodClass, n *simNode) bool {
	if c.NeverPreempts || len(n.lowly) == 0 {
		return false
	}
	gone := w.pushOff(n)
	defer w.putBack(n, gone)
	return w.takes(c, n)
}

// take puts a pod of the class on a node that admits it, and returns the
// expendable pods that it pushes off.
func (w *world) take(c *PodClass, n *simNode) (gone []lowly) {
	if !w.takes(c, n) {
		gone = w.pushOff(n)
	}
	w.occupy(c, n)
	return gone
}

// pushOff takes the expendable pods off the node, and putBack undoes it.
func (w *world) pushOff(n *simNode) []lowly {
	gone := slices.Clone(n.lowly)
	for _, l := range gone {
		w.hold(l.class, n, -1, l.deleting)
	}
	n.pushed = len(gone) > 0
	return gone
}

func (w *world) putBack(n *simNode, gone []lowly) {
	for _, l := range gone {
		w.hold(l.class, n, 1, l.deleting)
	}
	if len(gone) > 0 {
		n.pushed = false
	}
}

// verdicts are what was said of classes, by their number.
type verdicts []verdict

type verdict struct {
	known bool
	*misfit
}

// of is what judge said of the class, which it is asked once.
func (v *verdicts) of(c *PodClass, judge func() *misfit) *misfit {
	*v = atLeast(*v, c.rules.topology.classes)
	said := &(*v)[c.rules.number]
	if !said.known {
		*said = verdict{true, judge()}
	}
	return said.misfit
}

// refusal is why what is on the nodes keeps a pod away, without the words.
type refusal struct {
	why refused
	key string // topology key
	num int
}

type refused int

const (
	admitted refused = iota
	refusedPort
	refusedRepelled
	refusedAnti
	refusedAffinity
	refusedSpread
	refusedNoKey
)

// refusal follows the filters of the scheduler's plugins NodePorts,
// InterPodAffinity and PodTopologySpread.
func (w *world) refusal(c *PodClass, n *simNode) refusal {
	for _, p := range c.HostPorts {
		if slices.ContainsFunc(n.ports, p.conflicts) ||
			slices.ContainsFunc(n.lowly, func(o lowly) bool { return slices.ContainsFunc(o.class.HostPorts, p.conflicts) }) {
			return refusal{why: refusedPort, num: int(p.Port)}
		}
	}
	r := c.rules
	if n.domains == nil {
		w.topology.locate(n)
	}
	for _, s := range r.spread {
		if n.domains[s.number] == noDomain {
			return refusal{why: refusedNoKey, key: s.Key}
		}
		if s.skew(n) > s.maxSkew {
			return refusal{why: refusedSpread, key: s.Key, num: s.maxSkew}
		}
	}
	for _, counter := range r.anti {
		if counter.here(n) {
			return refusal{why: refusedAnti, key: counter.name}
		}
	}
	for _, counter := range r.who.repelled {
		if counter.here(n) {
			return refusal{why: refusedRepelled, key: counter.name}
		}
	}
	return r.attracted(n)
}

// attracted checks the affinity to other pods. The first pod of a group that
// wants to be together may go anywhere: nobody is there yet.
func (r *classRules) attracted(n *simNode) refusal {
	all, anywhere := true, 0
	for _, counter := range r.affinity {
		if n.domains[counter.number] == noDomain {
			return refusal{why: refusedNoKey, key: counter.name}
		}
		all = all && counter.here(n)
		anywhere += counter.total
	}
	if all || anywhere == 0 && r.selfish {
		return refusal{}
	}
	return refusal{why: refusedAffinity, key: r.affinity[0].name}
}

func (r refusal) misfit() *misfit {
	switch r.why {
	case refusedPort:
		return &misfit{code: "HostPort", message: fmt.Sprintf("host port %d is taken", r.num),
			fix: fmt.Sprintf("take host port %d off the pod, or let it have nodes of its own", r.num)}
	case refusedRepelled:
		return &misfit{code: "PodAntiAffinityOfOthers", message: fmt.Sprintf("the anti-affinity of a pod in the same %s keeps it away", r.key),
			fix: "relax the anti-affinity of the other pod, or add a node in another " + r.key}
	case refusedAnti:
		return &misfit{code: "PodAntiAffinity", message: fmt.Sprintf("its anti-affinity keeps it away from a pod in the same %s", r.key),
			fix: "relax the pod's anti-affinity, or add a node in another " + r.key}
	case refusedAffinity:
		return &misfit{code: "PodAffinity", message: fmt.Sprintf("its affinity asks for a pod in the same %s, and there is none", r.key),
			fix: "relax the pod's affinity, or make room where the other pod is"}
	case refusedSpread:
		return &misfit{code: "TopologySpread", message: fmt.Sprintf("its spread over %s would be uneven by more than %d", r.key, r.num),
			fix: fmt.Sprintf("raise maxSkew, or let a pool make nodes in the %s with the fewest pods", r.key)}
	case refusedNoKey:
		return &misfit{code: "TopologyKey", message: fmt.Sprintf("the node has no label %s, by which the pod goes to or spreads among others", r.key),
			fix: fmt.Sprintf("give the pool the label %s", r.key)}
	}
	return nil
}

// onTemplate says why no node of the pool, however empty the cluster, would
// take a pod of the class, or nil.
func (e *evaluation) onTemplate(p *poolRun, c *PodClass) *misfit {
	return p.judged.of(c, func() *misfit {
		if p.blank == nil {
			p.blank = p.template.instance(p.Name+"-new", kindNew)
		}
		if m := e.world.placeable(c, p.blank); m != nil {
			return m
		}
		return shortage(c, p.Name, p.blank.free)
	})
}

// newNode says why a new node of the pool would not take a pod of the class
// with everything where it is now, or nil.
func (e *evaluation) newNode(p *poolRun, c *PodClass) *misfit {
	return e.newNodes(p, []*PodClass{c})[0]
}

// newNodes is newNode for each of the classes, each by itself.
func (e *evaluation) newNodes(p *poolRun, classes []*PodClass) []*misfit {
	out := make([]*misfit, len(classes))
	var trial *simNode // one for all
	for i, c := range classes {
		if out[i] = e.onTemplate(p, c); out[i] != nil {
			continue
		}
		if trial == nil {
			trial = p.template.instance(p.Name+"-new", kindNew)
		}
		if e.upsets(p, c, trial) {
			out[i] = &misfit{code: "UpsetsSpread", message: "a new node would upset the topology spread of pods that are not on their nodes yet and can't use it",
				fix: "wait until they are, or relax their topology spread"}
		}
	}
	if trial == nil {
		return out
	}
	e.world.attach(trial)
	defer e.world.detach(trial)
	for i, c := range classes {
		if out[i] == nil {
			out[i] = e.world.refusal(c, trial).misfit()
		}
	}
	return out
}

// settle puts pods that go where others are, or spread among them, on nodes
// that have become possible since.
func (e *evaluation) settle(groups []*group) {
	var open []*group
	for _, g := range groups {
		if len(g.pods) > 0 && !g.class.rules.monotone() {
			open = append(open, g)
		}
	}
	if len(open) > 0 {
		e.fill(open, e.world.targets(append(slices.Clone(soon), kindNew)...))
	}
}

// nowhere says why none of the targets takes a pod of the class, in detail as
// long as a decision has room for it.
func (e *evaluation) nowhere(c *PodClass, not *simNode, targets []*simNode) *misfit {
	m := &misfit{code: "NoOtherNodeFits", message: "fits on none of the nodes that stay",
		fix: "free room on other nodes, lower the requests, or relax what keeps the pod off them"}
	if len(e.pool(not.pool).rejected) < maxNamed {
		m.message += e.world.refusals(c, not, targets)
	}
	return m
}

// refusals counts the nodes by what keeps a pod of the class off them.
func (w *world) refusals(c *PodClass, not *simNode, targets []*simNode) string {
	n, by := 0, map[string]int{}
	for _, t := range targets {
		if t == not || t.leaves {
			continue
		}
		n++
		if !w.allowed(c, t) {
			by[w.placeable(c, t).code]++
		} else if m := w.refusal(c, t).misfit(); m != nil {
			by[m.code]++
		} else if r := w.room(c, t); r != "" {
			by["Insufficient"+title(r)]++
		}
	}
	var parts []string
	for _, code := range sortedKeys(by) {
		parts = append(parts, fmt.Sprintf("%s on %d", code, by[code]))
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf(": of %d, %s", n, strings.Join(parts, ", "))
}
