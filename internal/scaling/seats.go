package scaling

import "slices"

// A pod is left over if every node that could take it is blocked by others. What it
// takes to block a node is known, and so is what each of the others contributes to
// it, on one node only: if all of them contribute less than all nodes take, one node
// at least has a place, whatever the scheduler does (a bound by the duality of
// linear programs). Two units are tried:
//
//   - whole places of the pod's own size: exact for pods that are alike;
//   - parts of the average slack: by the resource of which a pod asks for most, which
//     suits pods that differ.
//
// An other pod never contributes more than the roomiest node takes. One that by
// anti-affinity, spread or a host port may keep the pod off a whole domain
// contributes what the roomiest domain takes.

// parts is the unit of the second kind as an integer: those are the same on every
// architecture.
const parts = 1 << 16

// burden is what it takes to block nodes, or what a pod contributes to it.
type burden struct{ whole, fine int64 }

func (b burden) plus(o burden, times int64) burden {
	return burden{b.whole + times*o.whole, b.fine + times*o.fine}
}

func (b burden) atMost(o burden) burden {
	return burden{min(b.whole, o.whole), min(b.fine, o.fine)}
}

func (b burden) atLeast(o burden) burden {
	return burden{max(b.whole, o.whole), max(b.fine, o.fine)}
}

// below reports whether it is not enough to block what takes o.
func (b burden) below(o burden) bool { return b.whole < o.whole || b.fine < o.fine }

// seats are the nodes that take a pod of a class while no other is on its way, and
// what it takes to block them.
type seats struct {
	class *PodClass
	asks  []string // the resources that it asks for
	unit  []int64  // of each: the average slack
	list  []seat   // by name of the node
	sum   burden   // of all
	most  burden   // of the roomiest node, or more
	wide  map[string]burden
}

type seat struct {
	node  *simNode
	slack []int64 // by resource: what others may take and it fits still
	gone  bool    // the node is: it is not in the sum
	burden
}

// benches is memory for seats that are not kept.
type benches struct {
	list, part []seat
	slack      []int64
}

// seatsOn are those of the nodes that fit, in memory of their own if b is nil.
func seatsOn(c *PodClass, nodes []*simNode, b *benches, fits func(*simNode) bool) *seats {
	if b == nil {
		b = &benches{}
	}
	s := &seats{class: c, asks: c.Requests.asks(), wide: map[string]burden{}}
	s.unit = make([]int64, len(s.asks))
	b.list, b.slack = slices.Grow(b.list[:0], len(nodes)), slices.Grow(b.slack[:0], len(s.asks)*len(nodes))
	s.list = b.list
	all := b.slack[:cap(b.slack)]
	for _, n := range nodes {
		if !fits(n) {
			continue
		}
		free := n.free
		if c.NeverPreempts {
			free = n.unused()
		}
		x := seat{node: n, slack: all[:len(s.asks):len(s.asks)], burden: burden{whole: c.Requests.places(free)}}
		for i, r := range s.asks {
			x.slack[i] = free.amount(r) - c.Requests.amount(r)
		}
		all = all[len(s.asks):]
		s.list = append(s.list, x)
	}
	for i := range s.asks {
		s.unit[i] = 1
		for _, x := range s.list {
			s.unit[i] += x.slack[i] / int64(len(s.list))
		}
	}
	for j := range s.list {
		x := &s.list[j]
		x.fine = 1 << 62
		for i := range s.asks {
			x.fine = min(x.fine, (x.slack[i]+1)*parts/s.unit[i])
		}
		s.sum, s.most = s.sum.plus(x.burden, 1), s.most.atLeast(x.burden)
	}
	return s
}

// on is what it takes to block the node, nothing if it is none of them.
func (s *seats) on(n *simNode) burden {
	if x := s.find(n); x != nil {
		return x.burden
	}
	return burden{}
}

// find is the seat on the node, nil: there is none.
func (s *seats) find(n *simNode) *seat {
	j, ok := slices.BinarySearchFunc(s.list, n.at, func(x seat, at int) int { return x.node.at - at })
	if !ok || s.list[j].gone {
		return nil
	}
	return &s.list[j]
}

// part are those of the seats that count, until the next part.
func (s *seats) part(b *benches, counts func(*simNode) bool) *seats {
	out := *s
	b.part = slices.Grow(b.part[:0], len(s.list))
	out.list, out.sum, out.most, out.wide = b.part, burden{}, burden{}, map[string]burden{}
	for _, x := range s.list {
		if counts(x.node) {
			out.list = append(out.list, x)
			out.sum, out.most = out.sum.plus(x.burden, 1), out.most.atLeast(x.burden)
		}
	}
	return &out
}

// of is what one pod of o contributes at most to block the seats.
func (s *seats) of(o *PodClass, expendable bool) burden {
	b := burden{}
	if !expendable || s.class.NeverPreempts { // expendable pods make room again
		b.whole = (s.class.Requests.costs(o.Requests) + 999) / 1000
		for i, r := range s.asks {
			b.fine = max(b.fine, (o.Requests.amount(r)*parts+s.unit[i]-1)/s.unit[i])
		}
		b = b.atMost(s.most)
	}
	for i, key := range conflicts(s.class, o) {
		if i == 0 {
			b = b.atLeast(s.widest(key))
		} else {
			b = b.plus(s.widest(key), 1)
		}
	}
	return b
}

// widest is what it takes to block the nodes of the roomiest domain, or more.
func (s *seats) widest(key string) burden {
	if b, ok := s.wide[key]; ok {
		return b
	}
	most := s.most
	if key != "" {
		k := s.class.rules.topology.key(key)
		domains := make([]burden, len(k.values))
		for _, x := range s.list {
			if d := x.node.domains[k.number]; d != noDomain {
				domains[d] = domains[d].plus(x.burden, 1)
				most = most.atLeast(domains[d])
			}
		}
	}
	s.wide[key] = most
	return most
}

// conflicts are the topology keys by which a pod of o may keep one of c off the
// nodes of a domain; "" stands for the node itself.
func conflicts(c, o *PodClass) []string {
	var keys []string
	note := func(key string) {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	for _, p := range c.HostPorts {
		if slices.ContainsFunc(o.HostPorts, p.conflicts) {
			note("")
		}
	}
	for _, t := range c.rules.anti {
		if slices.Contains(o.rules.who.counted, t) {
			note(t.name)
		}
	}
	for _, t := range c.rules.who.repelled {
		if slices.Contains(o.rules.holds, t) {
			note(t.name)
		}
	}
	for _, s := range c.rules.spread {
		if slices.Contains(o.rules.who.spreads, s.spread) {
			note(s.Key)
		}
	}
	return keys
}

// alone reports whether other pods make no difference to where those of the class
// may go, but for the room and the ports that they take.
func (r *classRules) alone() bool { return r.monotone() && len(r.anti)+len(r.who.repelled) == 0 }

// attracts reports whether the affinity of the class asks for pods like o.
func (r *classRules) attracts(o *PodClass) bool {
	return slices.ContainsFunc(r.affinity, func(t *tally) bool { return slices.Contains(o.rules.who.counted, t) })
}

// spreadsAmong reports whether a spread of the class counts pods like o.
func (r *classRules) spreadsAmong(o *PodClass) bool {
	return slices.ContainsFunc(r.spread, func(s spreadRule) bool { return slices.Contains(o.rules.who.spreads, s.spread) })
}

// drop takes a node that has gone out of the seats.
func (s *seats) drop(n *simNode) {
	if x := s.find(n); x != nil {
		s.sum, x.gone = s.sum.plus(x.burden, -1), true
	}
}
