package scaling

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// reconcile brings what was decided earlier together with what is observed:
// claims that became nodes or failed, drains that ended or were undone. Then
// it gives every node of the world its place.
func (e *evaluation) reconcile() {
	for _, node := range slices.Sorted(maps.Keys(e.s.Claims)) {
		e.reconcileClaim(e.s.Claims[node])
	}
	for _, node := range slices.Sorted(maps.Keys(e.s.Drains)) {
		e.reconcileDrain(e.s.Drains[node])
	}
	for _, p := range slices.Clone(e.pools) {
		p.template = e.world.newTemplate(e.obs.Cluster, p.Pool)
	}
	e.place()
}

// recordsPast reports whether the node records are known as of later than t:
// what is not in them then did not happen before t.
func (e *evaluation) recordsPast(t time.Time) bool { return e.obs.Freshness[KindRecord].After(t) }

func (e *evaluation) reconcileClaim(c Claim) {
	rec := e.world.records[c.Node]
	p := e.pool(c.Pool)
	if rec == nil || rec.ClaimID != c.ID {
		switch {
		case c.Seen:
			p.fail(e.now, c, "its record is gone before it was Ready")
		case e.recordsPast(c.NotAfter) && !e.policy.DryRun:
			p.fail(e.now, c, fmt.Sprintf("nobody took it up by %s", c.NotAfter.Format(time.RFC3339)))
		case e.recordsPast(c.NotAfter):
		default:
			return
		}
		delete(e.s.Claims, c.Node)
		return
	}
	switch rec.Phase {
	case PhaseClaimed, PhaseCreated, PhaseRegistered:
		c.Seen = true
		e.s.Claims[c.Node] = c
		return
	case PhaseFailed, PhaseLost:
		p.fail(e.now, c, rec.Failure)
	}
	delete(e.s.Claims, c.Node)
}

// fail counts a failed claim. The failures of claims that were made before the
// last one is known are one incident: thirty claims that fail for one reason
// double the backoff once.
func (p *poolRun) fail(now time.Time, c Claim, message string) {
	if message == "" {
		message = "no reason is known"
	}
	b := &p.st.Backoff
	switch {
	case b.Since.IsZero() || now.Sub(b.Since) > p.BackoffReset:
		*b = Backoff{Duration: p.BackoffInitial, Failures: 1}
	case c.ClaimedAt.Before(b.Since):
		b.Message = fmt.Sprintf("node %s: %s", c.Node, message)
		return
	default:
		b.Duration, b.Failures = min(2*b.Duration, p.BackoffMax), b.Failures+1
	}
	b.Since, b.Until = now, now.Add(b.Duration)
	b.Message = fmt.Sprintf("node %s: %s", c.Node, message)
}

func (e *evaluation) reconcileDrain(d Drain) {
	rec := e.world.records[d.Node]
	p := e.pool(d.Pool)
	undone := func() {
		if d.CancelledAt.IsZero() && !e.policy.DryRun {
			p.st.RemovalFailedAt = e.now
			e.unnoteRemoval(d.DecidedAt)
		}
		if e.policy.DryRun { // nobody acts: as if it had come to pass
			p.shrunk(d)
		}
		delete(e.s.Drains, d.Node)
	}
	if rec == nil || rec.Phase == PhaseRemoved || rec.Phase == PhaseLost || rec.Phase == PhaseFailed {
		p.shrunk(d)
		delete(e.s.Drains, d.Node)
		return
	}
	taken := rec.Drain != nil && (d.Seen || rec.Drain.RequestID != d.Previous)
	switch {
	case rec.Phase == PhaseRemoving, taken && rec.Drain.final():
		if !d.CancelledAt.IsZero() { // too late to call it off
			e.noteRemoval(d.DecidedAt)
		}
		d.Seen, d.CancelledAt = true, time.Time{}
		e.s.Drains[d.Node] = d
	case taken && !rec.Drain.active(), d.Seen && rec.Drain == nil:
		undone()
	case taken:
		d.Seen = true
		e.s.Drains[d.Node] = d
	case e.recordsPast(d.NotAfter):
		undone()
	}
}

// place gives the nodes of the world their kind and adds those to come.
func (e *evaluation) place() {
	for i, n := range e.world.order {
		e.world.order[i] = e.placeNode(n)
	}
	for _, rec := range e.world.index.withoutNode() {
		if rec.inFlight() {
			n := e.pool(rec.Pool).instance(rec.Name, kindInFlight, e)
			n.record = rec
			e.world.add(n)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.s.Claims)) {
		if _, there := e.world.nodes[name]; !there && e.world.records[name] == nil {
			e.world.add(e.pool(e.s.Claims[name].Pool).instance(name, kindInFlight, e))
		}
	}
	for _, n := range e.world.order {
		if !n.leaves {
			e.world.attach(n)
		}
	}
}

// instance makes a node of the pool; a pool that the policy no longer has
// makes one without room.
func (p *poolRun) instance(name string, k kind, e *evaluation) *simNode {
	if p.template == nil {
		p.template = e.world.newTemplate(e.obs.Cluster, p.Pool)
	}
	return p.template.instance(name, k)
}

func (r *Record) inFlight() bool {
	return r.Phase == PhaseClaimed || r.Phase == PhaseCreated || r.Phase == PhaseRegistered
}

func (r *Record) gone() bool {
	return r.Phase == PhaseFailed || r.Phase == PhaseLost || r.Phase == PhaseRemoved || r.Phase == PhaseRenamed
}

// placeNode gives a node its kind, and returns what stands for it from now on.
func (e *evaluation) placeNode(n *simNode) *simNode {
	_, claimed := e.s.Claims[n.name]
	d, drained := e.s.Drains[n.name]
	var dr *DrainRecord
	if n.record != nil {
		dr = n.record.Drain
	}
	switch {
	case n.record != nil && n.record.gone():
		n.kind = kindIdle
	case n.record != nil && n.record.Phase == PhaseRemoving, drained && d.CancelledAt.IsZero():
		n.kind, n.leaves = kindIdle, true
	case drained, dr.undoing():
		e.restore(n)
	case dr.removes():
		n.kind, n.leaves = kindIdle, true
	case dr.active(): // cordoned or drained on request: it stays, and takes no pods
		n.kind = kindIdle
	case n.kind != kindReady && (n.record != nil && n.record.inFlight() || n.record == nil && claimed):
		return e.beginning(n)
	default:
		e.starting(n)
	}
	return n
}

// restore makes a node that is being drained capacity again.
func (e *evaluation) restore(n *simNode) {
	n.leaves = false
	defer e.world.attach(n)
	if n.node == nil || !n.node.Ready || n.node.Deleting {
		n.kind = kindIdle
		return
	}
	n.kind = kindRestoring
	taints := make([]corev1.Taint, 0, len(n.taints))
	for _, t := range n.taints {
		if t.Key != corev1.TaintNodeUnschedulable {
			taints = append(taints, t)
		}
	}
	n.setTaints(taints)
}

// beginning makes a node that has registered but is not Ready yet what it will
// be: its taints and its size are still those of a kubelet that starts.
func (e *evaluation) beginning(n *simNode) *simNode {
	t := e.pool(n.pool).instance(n.name, kindInFlight, e)
	t.node, t.record, t.owned, t.pods, t.nominated, t.census, t.asked = n.node, n.record, n.owned, n.pods, n.nominated, n.census, n.asked
	t.template = nil // its labels are its own
	maps.Copy(t.labels, n.labels)
	t.daemons = slices.DeleteFunc(t.daemons, func(d *DaemonSet) bool { return d.on(n) })
	for _, p := range t.pods {
		if c, ok := e.world.classes[p.Class]; ok && p.OwnerKind != "DaemonSet" {
			e.world.hold(c, t, 1, p.Deleting)
		}
	}
	e.world.put(t)
	return t
}

// measure counts the nodes of each pool and looks at the health of the cluster.
func (e *evaluation) measure() {
	all, unready := 0, 0
	for _, n := range e.world.order {
		if n.node != nil && n.kind != kindInFlight && !n.leaves && (n.record == nil || !n.record.gone()) {
			all++
			if !n.node.Ready {
				unready++
			}
		}
		if n.pool == "" || n.record != nil && n.record.gone() {
			continue
		}
		p := e.pool(n.pool)
		p.physical++
		_, claimed := e.s.Claims[n.name]
		switch {
		case n.record == nil && !claimed: // an orphan: it takes a place, but is not ours to count on
		case n.leaves:
			p.leaving++
		case n.kind == kindInFlight:
			p.inFlight++
			p.size++
		default:
			p.size++
			// One whose removal is being undone may turn out to be drained already,
			// and one that starts may never finish.
			if n.node != nil && n.node.Ready && n.kind != kindRestoring && n.kind != kindStarting {
				p.ready++
			}
		}
	}
	for _, rec := range e.world.index.withoutNode() {
		if _, there := e.world.nodes[rec.Name]; there || rec.gone() {
			continue
		}
		p := e.pool(rec.Pool) // a record whose Node object is missing still takes its place
		p.physical++
		_, drained := e.s.Drains[rec.Name]
		if rec.Phase == PhaseRemoving || drained || rec.Drain.removes() {
			p.leaving++
		} else {
			p.size++
		}
	}
	for _, p := range e.pools {
		p.before = p.size
		p.budget(e.now)
	}
	if unready > e.policy.MaxUnreadyCount && float64(unready) > e.policy.MaxUnreadyFraction*float64(all) {
		e.unready = &Guard{Guard: "too_many_unready", code: CodeTooManyUnready, Value: fmt.Sprintf("%d of %d", unready, all),
			Message: fmt.Sprintf("%d of %d nodes are not Ready: more than %d and %s", unready, all, e.policy.MaxUnreadyCount,
				percent(int64(e.policy.MaxUnreadyFraction*1000+0.5))),
			Lifts: "when enough nodes are Ready again"}
		for _, p := range e.pools {
			if p.known { // whatever it asks for, it is told
				p.guard(*e.unready)
			}
		}
	}
}
