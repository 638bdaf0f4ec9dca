package scaling

import "fmt"

// stock is what a reserve is made of while removals are looked at. It is counted
// before any of their pods moves, and what those take is taken off at the worst:
// wherever the scheduler puts them, the headroom has to be there still. Otherwise a
// removal would lead to a new node.
type stock struct {
	reserve
	nodes map[string]spare // what each of them has
	left  spare
	tight bool // on some node the number of pods is what limits them
	// What moved pods take, in thousandths of a place: all together, and each
	// rounded up to whole places.
	moved, whole int64
}

// survey counts the stocks of all pools, and notes where the pods are.
func (e *evaluation) survey() {
	e.settled = map[string]int{}
	for name, n := range e.world.nodes {
		if len(n.coming) > 0 {
			e.settled[name] = len(n.coming)
		}
	}
	for _, p := range e.pools {
		p.stocks = nil
		for _, h := range p.reserves {
			s := &stock{reserve: h, nodes: map[string]spare{}}
			for _, n := range e.world.order {
				name := n.name
				if p.hosts(n, false) {
					h.count(&s.left, n)
					s.nodes[name] = h.of(n)
					s.tight = s.tight || int64(s.nodes[name].pods) == n.free.Pods
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
		share := max(thousandths(r.CPUMilli, s.Pod.CPUMilli), thousandths(r.MemoryBytes, s.Pod.MemoryBytes))
		if s.tight {
			share = max(share, 1000)
		}
		s.moved += share
		s.whole += (share + 999) / 1000
	}
	return &s
}

// thousandths is a/b in thousandths, rounded up; nothing where b does not count.
func thousandths(a, b int64) int64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return (a*1000 + b - 1) / b
}

// worst is the spare when the moved pods lie as badly as they can. Pods cost at
// most a place for each part of one that they take. Many small ones on one node
// cost no more than all together, rounded up, and that happens on no more nodes
// than have a place.
func (s *stock) worst(gone string) spare {
	out := s.left
	nodes := int64(0)
	for name, has := range s.nodes {
		if has.pods > 0 && name != gone {
			nodes++
		}
	}
	out.pods -= int(min(s.whole, (s.moved+999)/1000+nodes))
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
// to nodes of the pool. Those that came from another node since are counted there.
func (e *evaluation) mayMoveTo(p *poolRun, n *simNode) []Resources {
	var out []Resources
	pods := e.world.toMove(n)
	for _, pod := range pods[:len(pods)-len(n.coming)+min(e.settled[n.name], len(n.coming))] {
		if c := e.world.classes[pod.Class]; c != nil && !e.world.expendable(c) && e.onTemplate(p, c) == nil {
			out = append(out, c.Requests)
		}
	}
	return out
}
