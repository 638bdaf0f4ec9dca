package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// scaleDown removes nodes for requests, alerts, metrics and low utilisation, in this
// order, the newest first. All of them need room elsewhere for every pod that
// has to move, together with those of all other nodes that leave.
func (e *evaluation) scaleDown() {
	if g := e.notForRemoval(); g != nil {
		for _, p := range e.pools {
			if p.known {
				p.guard(*g)
				p.hold(g.code, g.Message)
				p.rules = append(p.rules, Rule{Rule: RuleUtilization, Kind: RuleUtilization, Verdict: Unknown, Message: g.Message})
			}
		}
		for _, r := range slices.Clone(e.s.Requests) {
			if _, wants := e.wantsFewer(r); wants {
				e.defer_(r, Reason{g.code, g.Message})
			}
		}
		return
	}
	e.trust()
	e.survey()
	all := e.candidates()
	e.unsettle()
	for _, r := range slices.Clone(e.s.Requests) {
		if r.Action == ActionDown || r.Action == ActionTo {
			e.downRequest(r, all)
		}
	}
	for _, p := range e.pools {
		if p.known {
			e.downAlerts(p, all)
			e.shrinkForMetrics(p, all)
		}
	}
	unneeded := e.unneeded(all)
	for _, p := range e.pools {
		if p.known {
			e.shrink(p, unneeded[p.Name])
		}
	}
}

// trust notes that the data counts. After a gap nobody knows whether a node
// stayed unneeded or what was needed: those clocks start again.
func (e *evaluation) trust() {
	if !e.s.TrustedAt.IsZero() && e.now.Sub(e.s.TrustedAt) > e.policy.StaleAfter {
		clear(e.s.Unneeded)
		for _, p := range e.pools {
			p.st.Needs, p.st.MetricNeeds = nil, nil
		}
	}
	e.s.TrustedAt = e.now
}

// wantsFewer returns how many nodes a request wants to go, and whether it is
// such a request at all.
func (e *evaluation) wantsFewer(r Request) (int, bool) {
	p := e.pool(r.Pool)
	switch {
	case r.Action == ActionDown:
		return r.Count, true
	case r.Action == ActionTo && p.known:
		n := p.size - min(max(r.Count, p.Min), p.Max)
		return n, n > 0
	}
	return 0, false
}

// downRequest serves a request for fewer nodes. What min forbids is refused at
// once; what is merely held waits until the request expires.
func (e *evaluation) downRequest(r Request, all []candidate) {
	p := e.pool(r.Pool)
	want, ok := e.wantsFewer(r)
	switch {
	case !ok || slices.Contains(p.deferred, r.ID):
		return
	case !p.known:
		e.refuse(r, CodeUnknownPool, "the policy has no pool of this name")
		return
	case p.size <= p.Min:
		p.guard(p.minGuard())
		e.refuse(r, CodeAtMin, "pool %s has %s, its minimum is %d%s", p.Name, count(p.size, "node"), p.Min, p.minUntil)
		return
	}
	p.input(r.ID)
	if g := e.downGuard(p, RuleRequest, r.Override); g != nil {
		p.guard(*g)
		e.defer_(r, Reason{g.code, g.Message})
		return
	}
	got, why := e.take(p, all, min(want, p.size-p.Min), r)
	left := want - got
	switch {
	case left == 0:
		e.answer(r, r.because())
	case p.size <= p.Min:
		p.guard(p.minGuard())
		p.overruled = append(p.overruled, Reason{CodeAtMin, fmt.Sprintf("%s by %s: %d went, min %d%s keeps the rest", r.describe(), r.Actor, got, p.Min, p.minUntil)})
		e.answer(r, r.because())
	default:
		for i := range e.s.Requests {
			if e.s.Requests[i].ID == r.ID && r.Action == ActionDown {
				e.s.Requests[i].Count = left
			}
		}
		p.guard(why)
		e.defer_(r, Reason{why.code, why.Message})
	}
}

// take removes up to n nodes of the pool for a request or, with one without an id,
// for an alert or a metric: newest first, utilisation aside. The guard says what was in the
// way of more.
func (e *evaluation) take(p *poolRun, all []candidate, n int, r Request) (int, Guard) {
	why := r.because()
	if r.ID == "" {
		why = Reason{cmp.Or(r.code, CodeAlert), r.Reason}
	}
	stop := Guard{Guard: "removable", code: CodeNoRemovableNode, Message: fmt.Sprintf("no other node of pool %s can be removed", p.Name),
		Lifts: "when what blocks its nodes is gone"}
	got := 0
	for _, c := range all {
		if c.p != p || c.n.leaves {
			continue
		}
		switch {
		case got == n:
			return got, stop
		case e.belowMin(p, c.n):
			return got, p.minGuard()
		case p.leaving >= p.mayLeave && !r.Override:
			return got, p.removalsGuard()
		}
		if g := e.blastGuard(); g != nil && !r.Override {
			return got, *g
		}
		if g := p.metricGuard(r.ID != "", r.Override); g != nil {
			return got, *g
		}
		if g := e.tooYoung(c.n, p); g != nil && !r.Override {
			p.guard(*g)
			stop = *g
			continue
		}
		if bs := e.blockers(c.n, true); len(bs) > 0 {
			p.rejected = append(p.rejected, bs...)
			continue
		}
		if g := e.headroomGuard(c.n); g != nil {
			p.guard(*g)
			stop = *g
			continue
		}
		if !r.Override {
			if g := e.kept(c.n, p); g != nil {
				p.guard(*g)
				stop = *g
				continue
			}
		}
		if left := e.relocate(c.n); left != nil {
			p.rejected = append(p.rejected, left.rejects(c.n))
			continue
		}
		e.depart(c.n)
		if e.remove(c.n, p, why, r) {
			got++
			if !r.Override {
				e.returnable = append(e.returnable, c.n.name)
			}
		}
	}
	return got, stop
}

func (l *leftover) rejects(n *simNode) Alternative {
	text := fmt.Sprintf("pod %s has to move: %s", l.pod.Ref(), l.message)
	if l.pod.Node == "" {
		text = fmt.Sprintf("pod %s waits for a node: %s", l.pod.Ref(), l.message)
	}
	return Alternative{Subject: "node " + n.name, Reason: Reason{l.code, text}, Fix: l.fix}
}

// downAlerts removes nodes while an alert asks for it: without waiting for low
// utilisation or an unneeded time, but only nodes whose pods fit elsewhere. The
// largest amount of the firing rules is how many may leave at a time.
func (e *evaluation) downAlerts(p *poolRun, all []candidate) {
	amount, text := 0, ""
	for _, r := range e.policy.rules() {
		if r.Pool != p.Name || r.Direction != Down {
			continue
		}
		alerts, _ := e.firing(r)
		if len(alerts) == 0 {
			continue
		}
		for _, a := range alerts {
			p.input(a.EventID)
		}
		if r.Amount > amount {
			amount, text = r.Amount, fmt.Sprintf("alert rule %s: %s fires, %s", r.Name, alerts[0].Labels["alertname"], count(len(alerts), "alert"))
		}
	}
	if amount == 0 {
		return
	}
	why := Reason{CodeAlert, text}
	if g := e.downGuard(p, RuleAlert, false); g != nil {
		p.held(g, why)
		return
	}
	room := min(amount, p.mayLeave) - p.leaving
	if room <= 0 {
		g := p.removalsGuard()
		p.held(&g, why)
		return
	}
	if got, stop := e.take(p, all, room, Request{Reason: text}); got == 0 {
		p.held(&stop, why)
	}
}

// unneeded finds the nodes that nobody needs: low utilisation, nothing that
// blocks their removal, and room elsewhere for the pods of all of them
// together. Since when is kept in the state; a node that is needed again
// loses it.
func (e *evaluation) unneeded(all []candidate) map[string][]candidate {
	out := map[string][]candidate{}
	keep := map[string]time.Time{}
	for _, c := range all {
		if c.n.leaves {
			continue
		}
		threshold := int64(c.p.UtilizationThreshold*1000 + 0.5)
		if c.share >= threshold {
			c.p.utilizes(c.n, c.share, threshold)
			continue
		}
		rule := utilizationRule(c.n, c.share, threshold)
		if bs := e.blockers(c.n, true); len(bs) > 0 {
			c.p.rejected = append(c.p.rejected, bs...)
			rule.Message = "is not removable: " + bs[0].Reason.Message
			c.p.rule(rule)
			continue
		}
		if g := e.headroomGuard(c.n); g != nil {
			c.p.guard(*g)
			c.p.hold(g.code, g.Message)
			c.p.rejected = append(c.p.rejected, Alternative{Subject: "node " + c.n.name, quiet: true, Reason: Reason{g.code, g.Message}, Fix: g.Lifts})
			rule.Message = g.Message
			c.p.rule(rule)
			continue
		}
		if left := e.relocate(c.n); left != nil {
			c.p.rejected = append(c.p.rejected, left.rejects(c.n))
			rule.Message = "its pods don't fit elsewhere for sure: " + left.pod.Ref()
			c.p.rule(rule)
			continue
		}
		e.depart(c.n)
		// It is not a place for the pods of those that come after it.
		c.n.kind = kindIdle
		rule.Verdict, rule.Delta = Down, -1
		c.p.rule(rule)
		since, ok := e.s.Unneeded[c.n.name]
		if !ok {
			since = e.now
		}
		keep[c.n.name] = since
		out[c.p.Name] = append(out[c.p.Name], c)
	}
	e.s.Unneeded = keep
	return out
}

func utilizationRule(n *simNode, share, threshold int64) Rule {
	return Rule{Rule: "utilization of " + n.name, Kind: RuleUtilization, Value: percent(share), Threshold: percent(threshold), Verdict: None}
}

// utilizes notes that a node is needed, as long as a decision has room for it: of a
// large pool most nodes are.
func (p *poolRun) utilizes(n *simNode, share, threshold int64) {
	if len(p.rules) < maxNamed {
		p.rules = append(p.rules, utilizationRule(n, share, threshold))
	}
	if p.utilized++; p.utilized <= maxNamed {
		p.rejected = append(p.rejected, Alternative{Subject: "node " + n.name, quiet: true,
			Reason: Reason{"Utilized", "uses " + percent(share) + " of " + percent(threshold)}, Fix: "its pods would have to ask for less"})
	}
}

// rule notes a rule about a node, as long as there are not too many of them.
func (p *poolRun) rule(r Rule) {
	if len(p.rules) < maxNamed {
		p.rules = append(p.rules, r)
	}
}

// shrink removes unneeded nodes of a pool as far as its guards allow.
func (e *evaluation) shrink(p *poolRun, unneeded []candidate) {
	need := p.size - len(unneeded)
	need = min(max(need, p.floor.nodes), p.size) // what metrics ask for is needed
	if p.proposed || p.upAlert || p.upMetric || p.upOpen {
		need = p.size // somebody wants more: all that is there is needed
	}
	highest := p.needed(e.now, need)
	if len(unneeded) == 0 {
		return
	}
	why := Reason{CodeUnneeded, fmt.Sprintf("%s in pool %s used below %s, and the pods fit elsewhere", agree(len(unneeded), "node is", "nodes are"), p.Name,
		percent(int64(p.UtilizationThreshold*1000+0.5)))}
	if g := e.downGuard(p, RuleUtilization, false); g != nil {
		p.held(g, why)
		return
	}
	got := 0
	var last *Guard
	for _, c := range unneeded {
		if g := e.shrinkGuard(p, c, highest); g != nil {
			p.guard(*g)
			last = g
			continue
		}
		reason := Reason{CodeUnneeded, fmt.Sprintf("node %s uses %s of its capacity, is unneeded since %s, and its pods fit elsewhere", c.n.name,
			percent(c.share), e.s.Unneeded[c.n.name].Format(time.RFC3339))}
		p.trigger(e.s.Unneeded[c.n.name])
		if e.remove(c.n, p, reason, Request{}) {
			got++
			e.returnable = append(e.returnable, c.n.name)
		}
	}
	if got == 0 && last != nil {
		p.held(last, why)
	}
}

// shrinkGuard is what keeps one unneeded node, or nil.
func (e *evaluation) shrinkGuard(p *poolRun, c candidate, highest int) *Guard {
	if g := e.cooling("unneeded_time", e.s.Unneeded[c.n.name], p.Unneeded, "node "+c.n.name+" became unneeded"); g != nil {
		g.code, g.Value = CodeUnneededTime, c.n.name
		return g
	}
	if g := e.tooYoung(c.n, p); g != nil {
		return g
	}
	if e.belowMin(p, c.n) || p.size <= p.Min {
		g := p.minGuard()
		return &g
	}
	if p.leaving >= p.mayLeave {
		g := p.removalsGuard()
		return &g
	}
	if g := e.blastGuard(); g != nil {
		return g
	}
	if g := p.metricGuard(false, false); g != nil {
		return g
	}
	if p.size <= highest {
		return e.stabilizing(p, p.st.Needs[0])
	}
	return e.kept(c.n, p)
}

// needed notes how many nodes the pool needs now and returns the highest need
// of the stabilization window (as the horizontal pod autoscaler does for
// scale-down). At the first look the need is what is there.
func (p *poolRun) needed(now time.Time, n int) int {
	if len(p.st.Needs) == 0 {
		n = max(n, p.size)
	}
	p.st.Needs = noteNeed(p.st.Needs, now, p.Stabilization, n)
	return p.st.Needs[0].Nodes
}
