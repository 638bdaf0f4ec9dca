package scaling

import (
	"fmt"
	"math"
)

// stock is what a reserve is made of while removals are looked at. It is counted
// before any of their pods moves, and what those take is taken off at the worst:
// wherever the scheduler puts them, the headroom has to be there still. Otherwise a
// removal would lead to a new node.
type stock struct {
	reserve
	nodes map[string]spare // what each of them has
	left  spare
	slots int64 // how many small pods may come to any node before their number is what limits it
	// What moved pods take, in thousandths of a place: all together, and each
	// rounded up to whole places.
	moved, whole int64
	came         int64 // how many they are
}

// survey counts the stocks of all pools.
func (e *evaluation) survey() {
	for _, p := range e.pools {
		p.stocks = nil
		for _, h := range p.reserves {
			s := &stock{reserve: h, nodes: map[string]spare{}, slots: math.MaxInt64}
			for _, n := range e.world.order {
				name := n.name
				if p.hosts(n, false) {
					h.count(&s.left, n)
					s.nodes[name] = h.of(n)
					if has := int64(s.nodes[name].pods); has > 0 {
						s.slots = min(s.slots, n.free.Pods-has)
					}
				}
			}
			p.stocks = append(p.stocks, s)
		}
	}
}

// without is the stock after the node n has gone, whose pods may come here.
func (s stock) without(n *simNode, pods []Resources) *stock {
	has := s.nodes[n.name] // nothing, if it is none of them
	s.left.pods -= has.pods
	s.left.free.sub(has.free)
	s.left.all.sub(has.all)
	for _, r := range pods {
		s.left.free.CPUMilli -= r.CPUMilli
		s.left.free.MemoryBytes -= r.MemoryBytes
		s.moved += s.Pod.costs(r)
		s.whole += (s.size().costs(r) + 999) / 1000
		s.came++
	}
	return &s
}

// worst is the spare when the moved pods lie as badly as they can. Pods cost at
// most a place for each part of one that they take. Many small ones on one node
// cost no more than all together, rounded up, and that happens on no more nodes
// than have a place; unless they are so many that there is no slot left for others.
func (s *stock) worst(gone string) spare {
	out := s.left
	nodes := int64(0)
	for name, has := range s.nodes {
		if has.pods > 0 && name != gone {
			nodes++
		}
	}
	lost := s.whole
	if s.came <= s.slots {
		lost = min(lost, (s.moved+999)/1000+nodes)
	}
	out.pods -= int(lost)
	return out
}

// headroomGuard is the guard of a headroom that might not be kept without the node, in its
// own pool or in one where its pods may go; or nil.
func (e *evaluation) headroomGuard(n *simNode) *Guard {
	for _, p := range e.pools {
		for _, s := range p.stocks {
			pods := e.mayMoveTo(p, n)
			if n.pool != p.Name && len(pods) == 0 {
				continue
			}
			if rest := s.without(n, pods).worst(n.name); s.lacks(rest) {
				rest.pods = max(rest.pods, 0)
				return &Guard{Guard: "headroom", code: CodeHeadroom, Value: s.has(rest),
					Message: fmt.Sprintf("without node %s pool %s may be left with room for %s, its headroom is %s%s", n.name, p.Name, s.has(rest), s.Headroom, s.until),
					Lifts:   "when the pool has more room, or with a lower headroom"}
			}
		}
	}
	return nil
}

// depart takes the node out of the stocks: it may go, and the next one is judged
// without it.
func (e *evaluation) depart(n *simNode) {
	for _, p := range e.pools {
		for i, s := range p.stocks {
			p.stocks[i] = s.without(n, e.mayMoveTo(p, n))
			delete(p.stocks[i].nodes, n.name)
		}
	}
}

// mayMoveTo are the requests of the pods that have to leave the node and could go
// to nodes of the pool.
func (e *evaluation) mayMoveTo(p *poolRun, n *simNode) []Resources {
	var out []Resources
	for _, pod := range e.world.toMove(n) {
		if c := e.world.classes[pod.Class]; c != nil && !e.world.expendable(c) && e.onTemplate(p, c) == nil {
			out = append(out, c.Requests)
		}
	}
	return out
}
