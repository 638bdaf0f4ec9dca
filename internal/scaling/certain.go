package scaling

import "slices"

// certain reports whether a pod of the roamer's class is sure to find a place on
// the nodes that stay, by what is remembered of its seats. What it denies may be so
// all the same: see surely.
func (u *unsettled) certain(r *roamer, gone *simNode) bool {
	if r.seats == nil || u.shakes(r.class, gone) || u.follows(r.class) || u.pushed(r.class.rules.spreadsAmong) {
		return false
	}
	rest := r.seats.sum.plus(r.seats.on(gone), -1)
	return r.load.plus(u.contributes(r, r), -1).below(rest)
}

// shakes reports whether a class may have fewer seats when the node is gone: others
// lack what attracted it to them, or are too high in a spread then. A domain that
// goes as a whole makes none of the others too high.
func (u *unsettled) shakes(c *PodClass, gone *simNode) bool {
	var spreads []spreadRule
	for _, s := range c.rules.spread {
		if s.minDomains > 1 {
			return true
		}
		if s.here(gone) != nil {
			spreads = append(spreads, s)
		}
	}
	if len(spreads)+len(c.rules.affinity) == 0 {
		return false
	}
	moves := func(o *PodClass) bool {
		return c.rules.attracts(o) || slices.ContainsFunc(spreads, func(s spreadRule) bool { return slices.Contains(o.rules.who.spreads, s.spread) })
	}
	for _, pods := range [][]*Pod{gone.pods, gone.nominated} {
		for _, p := range pods {
			if o := u.e.world.classes[p.Class]; o != nil && moves(o) {
				return true
			}
		}
	}
	return slices.ContainsFunc(gone.daemons, func(d *DaemonSet) bool { return moves(d.class) })
}

// surely is certain with everything looked at anew, without the node that is gone.
func (u *unsettled) surely(r *roamer, targets []*simNode) (*seats, bool) {
	c := r.class
	if u.follows(c) {
		return nil, false
	}
	w := u.e.world
	s := seatsOn(c, targets, nil, func(n *simNode) bool { return w.admits(c, n) })
	if !u.pushed(c.rules.spreadsAmong) && u.enough(s) {
		return s, true
	}
	return s, u.everywhere(c, targets)
}

// everywhere reports whether there is a place in every domain of a spread: the one
// with the fewest pods always takes one more, and which it will be nobody knows.
func (u *unsettled) everywhere(c *PodClass, targets []*simNode) bool {
	const few = 16 // domains; among more of them the others find room for all they are
	if len(c.rules.spread) != 1 {
		return false
	}
	r := c.rules.spread[0]
	if r.live < r.minDomains || r.live == 0 || r.live > few {
		return false
	}
	alone, rules := *c, *c.rules
	rules.spread = nil
	alone.rules = &rules
	w := u.e.world
	s := seatsOn(&alone, targets, &u.benches, func(n *simNode) bool {
		return w.room(c, n) == "" && w.allowed(c, n) && (w.takes(&alone, n) || w.pushes(&alone, n))
	})
	for number, d := range r.domains {
		in := func(n *simNode) bool { return n.counts[r.index] && n.domains[r.number] == number }
		if d.nodes > 0 && !u.enough(s.part(&u.benches, in)) {
			return false
		}
	}
	return true
}

// enough reports whether the others can't block all of the seats.
func (u *unsettled) enough(s *seats) bool {
	if len(s.list) == 0 {
		return false
	}
	nodes := make([]*simNode, 0, len(s.list))
	for _, x := range s.list {
		nodes = append(nodes, x.node)
	}
	var all, near burden
	u.others(s.class, func(o *roamer, n int64) {
		b := s.of(o.class, u.e.world.expendable(o.class))
		all = all.plus(b, n)
		if len(conflicts(s.class, o.class)) > 0 || u.reaches(o.class, nodes) {
			near = near.plus(b, n)
		}
	})
	return all.below(s.sum) || near.below(s.sum) || u.oneTakesAll(s)
}

// oneTakesAll reports whether one of the nodes has room for all the others that may
// go there, and for the pod.
func (u *unsettled) oneTakesAll(s *seats) bool {
	const few = 200 // pods, about as many as a node takes
	pods := int64(0)
	u.others(s.class, func(_ *roamer, n int64) { pods += n })
	if pods > few {
		return false
	}
	return slices.ContainsFunc(s.list, func(x seat) bool {
		left, fits := slices.Clone(x.slack), true
		u.others(s.class, func(o *roamer, n int64) {
			fits = fits && len(conflicts(s.class, o.class)) == 0
			if !fits || u.e.world.expendable(o.class) && !s.class.NeverPreempts || !u.reaches(o.class, []*simNode{x.node}) {
				return
			}
			for i, r := range s.asks {
				left[i] -= n * o.class.Requests.amount(r)
				fits = fits && left[i] >= 0
			}
		})
		return fits
	})
}

// others calls do for the unsettled classes beside one pod of c, with how many there
// are.
func (u *unsettled) others(c *PodClass, do func(o *roamer, n int64)) {
	for _, o := range u.all {
		n := o.pods
		if o.class.ID == c.ID {
			n--
		}
		if n > 0 {
			do(o, int64(n))
		}
	}
}

// follows reports whether the class goes where pods of its group are, and where these
// will be is open.
func (u *unsettled) follows(c *PodClass) bool {
	if len(c.rules.affinity) == 0 {
		return false
	}
	if u.pushed(c.rules.attracts) {
		return true
	}
	for _, t := range c.rules.affinity {
		if t.total > 0 {
			return false
		}
	}
	found := false
	u.others(c, func(o *roamer, _ int64) { found = found || c.rules.attracts(o.class) })
	return found
}

// pushed reports whether pods of such a class may be pushed off the nodes where they
// are.
func (u *unsettled) pushed(is func(*PodClass) bool) bool { return slices.ContainsFunc(u.lowly, is) }
