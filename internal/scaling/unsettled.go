package scaling

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// unsettled are the pods that have no node while removals are looked at: those that
// leaving nodes leave behind, and those that wait and could go on a node that is
// there. Where they go, and in which order, is up to the scheduler. So none of
// them is on a node here, and a removal is right if each pod that has to move is
// certain to find a place, wherever all the others are.
type unsettled struct {
	e     *evaluation
	all   []*roamer // in the order in which they were met
	by    map[*PodClass]*roamer
	lowly []*PodClass // whose pods may be pushed off their nodes
	// domains says that nodes are to come: until they are there the scheduler does not
	// count them in a spread, and then it does.
	domains bool

	benches benches // for what everywhere looks at
	crowd   []move  // likewise for crowded
}

// roamer is a class with unsettled pods.
type roamer struct {
	class *PodClass
	index int  // in unsettled.all
	pods  int  // all of them
	must  int  // those that must find a place
	one   *Pod // of these, for an explanation
	// What is remembered of the nodes that take it, what all unsettled pods contribute
	// to block these, and what one pod of each class does.
	seats *seats
	load  burden
	each  []burden
	// failed counts the candidates in a row for which the class was looked at anew
	// in vain.
	failed int
}

// maxFailed is how many candidates in a row a class is looked at anew for, each of
// which asks every node. Where that many were in vain room is short as such, and what
// is remembered is enough to go by until fewer pods are on their way: only nodes that
// might have gone stay. It is more than most clusters have nodes.
const maxFailed = 64

// unsettle takes the pods that are to come off the nodes where the simulation has
// put them. Those of nodes that leave already and those that wait must still find a
// place, where the simulation found one on a node that is there; others are only in
// the way.
func (e *evaluation) unsettle() {
	u := &unsettled{e: e, by: map[*PodClass]*roamer{}}
	e.unsettled = u
	for _, id := range sortedKeys(e.world.classes) {
		if c := e.world.classes[id]; e.world.expendable(c) {
			u.lowly = append(u.lowly, c)
		}
	}
	for _, d := range e.world.daemons {
		if e.world.expendable(d.class) {
			u.lowly = append(u.lowly, d.class)
		}
	}
	placed := map[*Pod]bool{}
	for _, n := range e.world.order {
		for _, p := range n.coming {
			placed[p] = n.kind == kindReady
			e.world.vacate(e.world.classes[p.Class], n)
		}
		n.due, n.coming = n.coming, nil
		e.world.pullBack(n)
		u.domains = u.domains || !n.leaves && n.kind != kindReady && n.kind != kindIdle
	}
	targets := e.world.targets(kindReady)
	reach := map[*PodClass]bool{}
	for _, p := range e.world.pods {
		c := e.world.classes[p.Class]
		if c == nil || !p.awaits() {
			continue
		}
		if n := e.world.nodes[p.NominatedNode]; n != nil && !n.leaves {
			continue // it holds its room there
		}
		if _, known := reach[c]; !known {
			reach[c] = u.reaches(c, targets)
		}
		if !reach[c] {
			continue
		}
		r := u.add(c, 1)
		if placed[p] {
			r.must, r.one = r.must+1, p
		}
	}
	for _, n := range e.world.order {
		if !n.leaves && !e.emptied(n) {
			continue
		}
		for _, p := range e.world.toMove(n) {
			c := e.world.classes[p.Class]
			if c == nil || p.awaits() {
				continue
			}
			r := u.add(c, 1)
			if placed[p] {
				r.must, r.one = r.must+1, p
			}
		}
	}
}

// awaits reports whether the scheduler is to find a node for the pod.
func (p *Pod) awaits() bool {
	return p.Node == "" && p.Phase == string(corev1.PodPending) && !p.Deleting && !p.Gated && p.OwnerKind != "DaemonSet"
}

// emptied reports whether the node stays, but its pods go: a person has it drained.
func (e *evaluation) emptied(n *simNode) bool {
	if n.record != nil && n.record.Drain.active() && !n.record.Drain.undoing() && n.record.Drain.Goal == GoalDrain {
		return true
	}
	return slices.ContainsFunc(e.drains, func(o Order) bool { return o.Node == n.name && o.Goal == GoalDrain })
}

// pullBack puts the expendable pods back that gave way to pods that were to come.
func (w *world) pullBack(n *simNode) {
	if !n.pushed {
		return
	}
	n.pushed = false
	for _, pods := range [][]*Pod{n.pods, n.nominated} {
		for _, p := range pods {
			if c := w.classes[p.Class]; c != nil && w.expendable(c) {
				w.hold(c, n, 1, p.Deleting)
			}
		}
	}
	for _, d := range n.daemons {
		if w.expendable(d.class) {
			w.hold(d.class, n, 1, false)
		}
	}
}

// reaches reports whether one of the nodes could ever take a pod of the class. What
// is free only becomes less.
func (u *unsettled) reaches(c *PodClass, nodes []*simNode) bool {
	return slices.ContainsFunc(nodes, func(n *simNode) bool { return u.e.world.room(c, n) == "" && u.e.world.allowed(c, n) })
}

// add counts pods of a class, or takes them back.
func (u *unsettled) add(c *PodClass, n int) *roamer {
	r := u.by[c]
	if r == nil {
		r = &roamer{class: c, index: len(u.all)}
		u.by[c] = r
		u.all = append(u.all, r)
	}
	r.pods += n
	for _, o := range u.all {
		if o.seats != nil {
			o.load = o.load.plus(u.contributes(o, r), int64(n))
		}
	}
	return r
}

// contributes is what one pod of o does at most to block the seats of r.
func (u *unsettled) contributes(r, o *roamer) burden {
	for len(r.each) <= o.index {
		x := u.all[len(r.each)].class
		r.each = append(r.each, r.seats.of(x, u.e.world.expendable(x)))
	}
	return r.each[o.index]
}

// remember keeps the seats of a class for the removals that are looked at next.
func (u *unsettled) remember(r *roamer, s *seats) {
	r.seats, r.load, r.each = s, burden{}, nil
	for _, o := range u.all {
		r.load = r.load.plus(u.contributes(r, o), int64(o.pods))
	}
}

// relocate adds the pods of the node to the unsettled ones if all that have to move
// are certain to find a place then; otherwise nothing changes, and a pod that might
// be left over is returned.
func (e *evaluation) relocate(n *simNode) *leftover {
	u := e.unsettled
	pods := e.byShare(e.world.toMove(n))
	for _, p := range pods {
		c := e.world.classes[p.Class]
		if c != nil && e.world.expendable(c) {
			continue
		}
		if why := e.unmovable(p, c); why != nil {
			return &leftover{p, *why}
		}
	}
	was := n.attached
	e.world.detach(n)
	own := u.count(n, pods, 1)
	ones := make([]*Pod, 0, len(u.all))
	for _, r := range u.all {
		ones = append(ones, r.one)
	}
	for _, p := range pods {
		if r := u.by[e.world.classes[p.Class]]; r.must > 0 {
			r.one = p
		}
	}
	left := u.uncertain(n, own)
	if left != nil {
		u.count(n, pods, -1)
		for i, r := range u.all {
			r.one = ones[i]
		}
		if was {
			e.world.attach(n)
		}
	}
	return left
}

// count adds the pods of the node, or takes them back, and returns the classes of
// those that must find a place.
func (u *unsettled) count(n *simNode, pods []*Pod, by int) []*roamer {
	var own []*roamer
	for _, p := range pods {
		c := u.e.world.classes[p.Class]
		if p.awaits() { // those are among them already
			continue
		}
		r := u.add(c, by)
		if !u.e.world.expendable(c) {
			r.must += by
			if !slices.Contains(own, r) {
				own = append(own, r)
			}
		}
	}
	return own
}

// uncertain returns a pod that might be left over when n is gone, or nil: then the
// node is gone. own are the classes of its pods.
func (u *unsettled) uncertain(n *simNode, own []*roamer) *leftover {
	targets := slices.DeleteFunc(u.e.world.targets(kindReady), func(t *simNode) bool { return t == n })
	fresh := map[*roamer]*seats{}
	var first *roamer
	check := func(r *roamer) {
		if _, done := fresh[r]; done || first != nil || r.must == 0 || u.certain(r, n) {
			return
		}
		if r.failed >= maxFailed {
			first = r
			return
		}
		if u.domains && len(r.class.rules.spread) > 0 {
			first = r
			return
		}
		s, ok := u.surely(r, targets)
		if fresh[r] = s; ok {
			r.failed = 0
		} else {
			r.failed++
			first = r
		}
	}
	for _, r := range slices.Concat(own, u.all) {
		check(r)
	}
	if first != nil {
		stuck, known := u.search(targets)
		switch {
		case known && stuck != nil:
			first = stuck
		case known:
			first = nil
		}
	}
	if first == nil {
		for _, r := range u.all {
			switch s := fresh[r]; {
			case s != nil:
				u.remember(r, s)
			case r.seats != nil && u.shakes(r.class, n):
				r.seats = nil
			case r.seats != nil:
				r.seats.drop(n)
			}
		}
		return nil
	}
	for r, s := range fresh {
		// Without this node they are fewer; with it the others' pods on it count, too.
		if s != nil && r.class.rules.alone() {
			u.remember(r, s)
		}
	}
	if len(u.e.pool(n.pool).rejected) < maxNamed {
		if left := u.crowded(n, targets); left != nil {
			return left
		}
	}
	return &leftover{first.one, u.doubt(first.class, targets)}
}

// crowded returns a pod that is left over even if the largest come first, or nil:
// then it is not the order alone that matters.
func (u *unsettled) crowded(n *simNode, targets []*simNode) *leftover {
	placed := &moves{w: u.e.world, done: u.crowd}
	defer func() {
		placed.undo(0)
		u.crowd = placed.done
	}()
	all := u.e.reference()
	order := slices.Clone(u.all)
	slices.SortStableFunc(order, func(a, b *roamer) int {
		return cmp.Or(cmp.Compare(b.class.Requests.share(all), a.class.Requests.share(all)), cmpString(a.class.ID, b.class.ID))
	})
	left := make([]int, len(u.all))
	for _, r := range order {
		left[r.index] = r.pods
	}
	for moved := true; moved; {
		moved = false
		for _, r := range order {
			for _, t := range targets {
				for ; left[r.index] > 0 && u.e.world.admits(r.class, t); left[r.index]-- {
					placed.put(r.class, t)
					moved = true
				}
			}
		}
	}
	for _, r := range order {
		if left[r.index] > 0 && r.must > 0 {
			return &leftover{r.one, *u.e.nowhere(r.class, n, targets)}
		}
	}
	return nil
}

// doubt says that a pod of the class may be left over.
func (u *unsettled) doubt(c *PodClass, targets []*simNode) misfit {
	nodes, others := 0, 0
	for _, n := range targets {
		if u.reaches(c, []*simNode{n}) {
			nodes++
		}
	}
	u.others(c, func(_ *roamer, n int64) { others += int(n) })
	return misfit{code: "PlaceNotCertain",
		message: fmt.Sprintf("%s room for it, but the scheduler may put %s so that none is left",
			agree(nodes, "other node has", "other nodes have"), agree(others, "pod that moves or waits beside it", "pods that move or wait beside it")),
		fix: "free room on the nodes that stay, or let pods that move and wait find their nodes first"}
}
