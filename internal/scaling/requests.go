package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// describe says in a few words what was asked for.
func (r Request) describe() string {
	kept := ""
	if !r.HoldUntil.IsZero() {
		kept = ", to be kept until " + r.HoldUntil.Format(time.RFC3339)
	}
	switch r.Action {
	case ActionUp, ActionDown:
		return fmt.Sprintf("scale %s of pool %s by %d%s", r.Action, r.Pool, r.Count, kept)
	case ActionTo:
		return fmt.Sprintf("scaling pool %s to %d%s", r.Pool, r.Count, kept)
	}
	return fmt.Sprintf("%s of node %s", r.Action, r.Node)
}

func (r Request) onNode() bool {
	return r.Action == ActionDrain || r.Action == ActionRemove || r.Action == ActionCordon || r.Action == ActionUncordon
}

// because is the reason of whatever follows from a request.
func (r Request) because() Reason {
	return Reason{CodeRequest, fmt.Sprintf("%s, asked for by %s: %s", r.describe(), r.Actor, r.Reason)}
}

// poolOf is the run of the pool that a request concerns.
func (e *evaluation) poolOf(r Request) *poolRun {
	if r.onNode() && e.world != nil {
		if n := e.world.nodes[r.Node]; n != nil {
			return e.pool(n.pool)
		}
		if rec := e.world.records[r.Node]; rec != nil {
			return e.pool(rec.Pool)
		}
	}
	return e.pool(r.Pool)
}

// answer says what became of a request and closes it.
func (e *evaluation) answer(r Request, reason Reason) {
	p := e.poolOf(r)
	p.answered = append(p.answered, r.ID)
	p.input(r.ID)
	if reason.Code == CodeRequest {
		p.replies = append(p.replies, reason)
		p.actor = cmp.Or(p.actor, r.Actor)
	} else { // what is refused comes first
		p.replies = slices.Insert(p.replies, 0, reason)
		p.overruled = append(p.overruled, reason)
	}
	p.rules = append(p.rules, Rule{Rule: "request " + r.ID, Kind: RuleRequest, Value: r.describe(), Verdict: None, Message: reason.Message})
	e.s.Requests = slices.DeleteFunc(slices.Clone(e.s.Requests), func(o Request) bool { return o.ID == r.ID })
}

// defer_ keeps a request for a later evaluation and says what it waits for.
func (e *evaluation) defer_(r Request, reason Reason) {
	p := e.poolOf(r)
	p.deferred = append(p.deferred, r.ID)
	p.input(r.ID)
	p.hold(CodeRequestDeferred, fmt.Sprintf("%s by %s waits: %s", r.describe(), r.Actor, reason.Message))
	p.overruled = append(p.overruled, Reason{reason.Code, fmt.Sprintf("%s by %s waits until %s at most: %s",
		r.describe(), r.Actor, r.ExpiresAt.Format(time.RFC3339), reason.Message)})
}

func (e *evaluation) refuse(r Request, code, format string, args ...any) {
	e.answer(r, Reason{code, fmt.Sprintf("%s by %s is refused: ", r.describe(), r.Actor) + fmt.Sprintf(format, args...)})
}

// nodeRequests serves what people asked for single nodes. A named node is a
// person's judgement: neither cooldowns nor low utilisation are asked for, and
// a disruption budget is left to the drain, which reports it as a blocker and
// gives up at its deadline. Ownership, protection, the minimum and pods that
// would be lost are never waived.
func (e *evaluation) nodeRequests() {
	for _, r := range slices.Clone(e.s.Requests) {
		if r.onNode() {
			e.nodeRequest(r)
		}
	}
}

func (e *evaluation) nodeRequest(r Request) {
	n, rec := e.world.nodes[r.Node], e.world.records[r.Node]
	switch {
	case n == nil && rec == nil:
		e.refuse(r, CodeRequestRefused, "there is no node of this name")
		return
	case n == nil || !n.owned:
		e.refuse(r, CodeRequestRefused, "the node is not ours: only a Ready or registered node with the label %s and a node record is touched", LabelClaim)
		return
	}
	p := e.pool(n.pool)
	active := n.record.Drain.active()
	switch r.Action {
	case ActionUncordon:
		e.uncordon(r, n, p, active)
		return
	case ActionCordon:
		switch {
		case n.leaves:
			e.refuse(r, CodeRequestRefused, "the node is being removed")
		case active:
			e.answer(r, Reason{CodeRequest, fmt.Sprintf("node %s is cordoned already", n.name)})
		default:
			e.order(r, n, p, GoalCordon)
		}
		return
	}
	switch {
	case slices.Contains(e.policy.ProtectedNodes, n.name):
		e.refuse(r, CodeRequestRefused, "the node is protected: take it off protected_nodes first")
	case n.leaves:
		e.answer(r, Reason{CodeRequest, fmt.Sprintf("node %s is being removed already", n.name)})
	case r.Action == ActionRemove && !p.known:
		e.refuse(r, CodeUnknownPool, "its pool %s is not configured, so nobody knows how to remove its machine: name it in renamed_from of a pool, or configure it again", n.pool)
	case n.kind == kindInFlight:
		e.refuse(r, CodeRequestRefused, "the node is not Ready yet; if it fails it is removed by itself")
	case e.notForRemoval() != nil:
		e.defer_(r, Reason{CodeStaleSnapshot, e.notForRemoval().Message})
	case e.paused(p) != nil && !r.Override:
		p.guard(*e.paused(p))
		e.defer_(r, Reason{CodePaused, e.paused(p).Message})
	case len(e.blockers(n, false)) > 0:
		bs := e.blockers(n, false)
		p.rejected = append(p.rejected, bs...)
		texts := make([]string, 0, len(bs))
		for _, b := range bs {
			texts = append(texts, b.Reason.Message+" ("+b.Fix+")")
		}
		e.refuse(r, CodeRequestRefused, "%s", strings.Join(texts, "; "))
	case r.Action == ActionDrain && active && n.record.Drain.Goal == GoalDrain:
		e.answer(r, Reason{CodeRequest, fmt.Sprintf("node %s is being drained, or is drained, already", n.name)})
	case r.Action == ActionDrain:
		e.order(r, n, p, GoalDrain)
	case e.belowMin(p, n):
		p.guard(p.minGuard())
		e.refuse(r, CodeAtMin, "pool %s has %s Ready and %d in all, its minimum is %d%s: lower min or add a node first",
			p.Name, count(p.ready, "node"), p.size, p.Min, p.minUntil)
	case p.leaving >= p.mayLeave && !r.Override:
		p.guard(p.removalsGuard())
		e.defer_(r, Reason{p.removalsGuard().code, p.removalsGuard().Message})
	case e.blastGuard() != nil && !r.Override:
		g := *e.blastGuard()
		p.guard(g)
		e.defer_(r, Reason{g.code, g.Message})
	default:
		e.remove(n, p, r.because(), r)
		e.answer(r, r.because())
	}
}

func (e *evaluation) uncordon(r Request, n *simNode, p *poolRun, active bool) {
	_, drained := e.s.Drains[n.name]
	switch {
	case n.record.Phase == PhaseRemoving, n.record.Drain.final():
		e.refuse(r, CodeRequestRefused, "the node is drained for its removal, which is past the point of no return")
	case !active && !drained:
		e.refuse(r, CodeRequestRefused, "the node is not cordoned by us")
	default:
		if drained {
			e.callOff(n, p)
		}
		e.cancel(n, p, r.because(), r)
		e.answer(r, r.because())
	}
}

// belowMin reports whether the pool would have fewer nodes than its minimum,
// or fewer Ready ones, without this one. Claims in flight don't count: they
// may fail.
func (e *evaluation) belowMin(p *poolRun, n *simNode) bool {
	ready := p.ready
	if n.node != nil && n.node.Ready {
		ready--
	} else if p.size-1 >= p.Min {
		return false // not Ready: its going leaves the Ready ones as they are
	}
	return ready < p.Min
}

// order asks for the cordon or drain of a node that stays.
func (e *evaluation) order(r Request, n *simNode, p *poolRun, goal string) {
	e.drains = append(e.drains, Order{Node: n.name, Pool: n.pool, ClaimID: n.record.ClaimID, Goal: goal,
		DecisionID: e.decisionID(p), RequestID: r.ID, Reason: r.because(), Actor: r.Actor,
		NotAfter: e.now.Add(p.ClaimExpiry), Deadline: p.DrainDeadline, JobsDeadline: p.jobsDeadline(goal, r), Evicts: p.Evicts})
	n.kind = kindIdle
	delete(e.s.Unneeded, n.name)
	e.answer(r, r.because())
}

func (e *evaluation) decisionID(p *poolRun) string {
	return e.seed.ID("decision", e.seed.Event, p.Name)
}

// remove decides the removal of a node. The caller has checked every guard;
// what can't be waived is checked once more here, so that no path around it
// exists: it must be ours and not protected, and the pool must keep its minimum,
// on which a node that is to be repaired does not count.
func (e *evaluation) remove(n *simNode, p *poolRun, why Reason, r Request) bool {
	if !n.owned || n.leaves || slices.Contains(e.policy.ProtectedNodes, n.name) || !r.repair && e.belowMin(p, n) {
		return false
	}
	d := Drain{Node: n.name, Pool: n.pool, DecisionID: e.decisionID(p), RequestID: r.ID, DecidedAt: e.now,
		NotAfter: e.now.Add(p.ClaimExpiry)}
	if n.record.Drain != nil {
		d.Previous = n.record.Drain.RequestID
	}
	e.s.Drains[n.name] = d
	delete(e.s.Unneeded, n.name)
	e.drains = append(e.drains, Order{Node: n.name, Pool: n.pool, ClaimID: n.record.ClaimID, Goal: GoalRemove,
		DecisionID: d.DecisionID, RequestID: r.ID, Reason: why, Actor: r.Actor, NotAfter: d.NotAfter, Deadline: p.DrainDeadline,
		JobsDeadline: p.jobsDeadline(GoalRemove, r), Force: p.ForceRemovals, Evicts: p.Evicts})
	if n.node.Ready {
		p.ready--
	}
	p.size--
	p.leaving++
	p.removed = append(p.removed, n.name)
	p.downs = append(p.downs, why)
	p.st.RemovedAt = e.now
	e.noteRemoval(e.now)
	n.kind, n.leaves = kindIdle, true
	e.world.detach(n)
	return true
}

// cancel calls a drain off.
func (e *evaluation) cancel(n *simNode, p *poolRun, why Reason, r Request) {
	e.cancels = append(e.cancels, Order{Node: n.name, Pool: n.pool, ClaimID: n.record.ClaimID, DecisionID: e.decisionID(p),
		RequestID: r.ID, Reason: why, Actor: r.Actor})
	delete(e.s.Unneeded, n.name)
}

// callOff calls the removal of a node off. It counts among those that stay; as
// Ready only when it is uncordoned.
func (e *evaluation) callOff(n *simNode, p *poolRun) {
	d := e.s.Drains[n.name]
	if d.CancelledAt.IsZero() {
		e.unnoteRemoval(d.DecidedAt)
	}
	d.CancelledAt = e.now
	e.s.Drains[n.name] = d
	e.restore(n)
	p.leaving--
	p.size++
	p.st.AddedAt = e.now
}
