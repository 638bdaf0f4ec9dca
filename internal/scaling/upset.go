package scaling

import (
	"maps"
	"slices"
)

// A spread is even when a pod is put on its node, and only then. A new node of
// another domain that comes meanwhile, and that the pod can't use, would be a
// domain with fewer pods than any: the pod would wait for good. So such a node
// is decided when the pods are where they were to go.

// promise notes how many pods the domains of a spread must have at least, for
// the pod of the class that was put on a node that is yet to come.
func (r *classRules) promise(c *PodClass, n *simNode) {
	for _, s := range r.spread {
		if d := s.here(n); d != nil && n.counts[s.index] && d.pods > s.maxSkew {
			if s.promised == nil {
				s.promised = map[*PodClass]int{}
			}
			s.promised[c] = max(s.promised[c], d.pods-s.maxSkew)
		}
	}
}

// promises are what is noted of every spread, to go back to it.
func (t *topology) promises() []map[*PodClass]int {
	out := make([]map[*PodClass]int, len(t.spreadList))
	for i, s := range t.spreadList {
		out[i] = maps.Clone(s.promised)
	}
	return out
}

func (t *topology) restorePromises(was []map[*PodClass]int) {
	for i, s := range t.spreadList {
		s.promised = was[i]
	}
}

// upsets reports whether a node of the pool's template, made for pods of the
// class, would be such a domain.
func (e *evaluation) upsets(p *poolRun, c *PodClass, n *simNode) bool {
	if !e.turnsDown(p) {
		return false
	}
	for _, s := range e.world.topology.spreadList {
		if len(s.promised) == 0 {
			continue
		}
		if n.domains == nil {
			e.world.topology.locate(n)
		}
		if s.here(n) != nil || !s.over(e.world, n) {
			continue
		}
		here := 0
		if s.pods.selects(e.world.topology, c.Namespace, c.rules.who.labels) {
			here = 1
		}
		for o, least := range s.promised {
			if least > here && e.onTemplate(p, o) != nil {
				return true
			}
		}
	}
	return false
}

// turnsDown reports whether the pool's nodes are of no use to pods of any class that
// is spread. Mostly they are not, and nothing else need be asked.
func (e *evaluation) turnsDown(p *poolRun) bool {
	if !p.spreadKnown {
		p.spreadKnown = true
		p.spreadDown = slices.ContainsFunc(e.world.topology.spreading, func(c *PodClass) bool { return e.onTemplate(p, c) != nil })
	}
	return p.spreadDown
}
