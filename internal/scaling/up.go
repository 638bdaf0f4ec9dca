package scaling

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// scaleUp adds nodes for requests, minima, alerts, metrics, pods and headroom, in this order.
// Each looks at the world as the one before has left it, so that a node serves
// as many of them as it can: of an alert that asks for one node and pods that
// need two, two nodes come of it, not three.
func (e *evaluation) scaleUp() {
	e.raiseAlerts()
	e.judgeMetrics()
	for _, r := range slices.Clone(e.s.Requests) {
		if r.Action == ActionUp || r.Action == ActionTo {
			e.upRequest(r)
		}
	}
	for _, p := range e.pools {
		if p.known {
			e.minimum(p)
		}
	}
	for _, p := range e.pools {
		if p.known {
			e.alerts(p)
			e.growForMetrics(p)
		}
	}
	e.serve(e.waiting())
	for _, p := range e.pools {
		if p.known {
			e.keepHeadroom(p)
		}
	}
}

// firing are the alerts that a rule matches, by fingerprint.
func (e *evaluation) firing(r AlertRule) (alerts []Alert, broken error) {
	for _, fp := range slices.Sorted(maps.Keys(e.s.Alerts)) {
		a := e.s.Alerts[fp]
		if a.Resolved {
			continue
		}
		ok, err := r.matches(a.Labels)
		if err != nil {
			return nil, err
		}
		if ok {
			alerts = append(alerts, a)
		}
	}
	return alerts, nil
}

// raiseAlerts notes which pools an alert wants to grow, before anybody looks
// at removals.
func (e *evaluation) raiseAlerts() {
	for _, r := range e.policy.rules() {
		if alerts, _ := e.firing(r); r.Direction == Up && len(alerts) > 0 {
			e.pool(r.Pool).upAlert = true
		}
	}
}

// upRequest serves a request for more nodes. What exceeds max is refused at
// once, so that a request can't lie in wait and undo every later removal; what
// a pause, a backoff or unready nodes hold back waits until it expires.
func (e *evaluation) upRequest(r Request) {
	p := e.pool(r.Pool)
	if !p.known {
		e.refuse(r, CodeUnknownPool, "the policy has no pool of this name")
		return
	}
	want := r.Count
	if r.Action == ActionTo {
		target := min(max(r.Count, p.Min), p.Max)
		if target != r.Count {
			p.overruled = append(p.overruled, Reason{CodeRequest, fmt.Sprintf("%s is bounded by min %d%s and max %d%s: %d", r.describe(), p.Min, p.minUntil, p.Max, p.maxUntil, target)})
		}
		if want = target - p.size; want <= 0 {
			e.hold(p, r, target)
		}
		if want < 0 {
			return // scaleDown sees to it
		}
		if want == 0 {
			if target != r.Count {
				e.refuse(r, boundCode(r.Count, target), "the pool has %s, min is %d%s and max %d%s", count(p.size, "node"), p.Min, p.minUntil, p.Max, p.maxUntil)
				return
			}
			e.answer(r, Reason{CodeRequest, fmt.Sprintf("%s, asked for by %s: it has %s", r.describe(), r.Actor, count(p.size, "node"))})
			return
		}
	}
	p.proposed = true
	if g := e.upGuard(p, r.Override); g != nil {
		p.upOpen = true
		p.guard(*g)
		e.defer_(r, Reason{g.code, g.Message})
		return
	}
	got := e.grow(p, want, CauseRequest, r.because())
	p.trigger(r.At)
	if r.Action == ActionUp && got > 0 { // what has not come to pass is not kept
		e.hold(p, r, got)
	}
	if got < want {
		g := p.maxGuard()
		p.guard(g)
		if g.code != CodeAtMax { // the rest comes with the next event
			for i := range e.s.Requests {
				if e.s.Requests[i].ID == r.ID && r.Action == ActionUp {
					e.s.Requests[i].Count = want - got
				}
			}
			e.defer_(r, Reason{g.code, g.Message})
			return
		}
		capped := Reason{CodeAtMax, fmt.Sprintf("%s by %s asks for %s, max %d%s allows %d", r.describe(), r.Actor, count(want, "node"), p.Max, p.maxUntil, got)}
		if got == 0 {
			e.refuse(r, CodeAtMax, "pool %s has %s, leaving ones included, of at most %d%s", p.Name, count(p.physical, "node"), p.Max, p.maxUntil)
			return
		}
		p.overruled = append(p.overruled, capped)
	}
	if r.Action == ActionTo {
		e.hold(p, r, p.size)
	}
	e.answer(r, r.because())
}

func boundCode(asked, bound int) string {
	if asked > bound {
		return CodeAtMax
	}
	return CodeAtMin
}

// minimum brings a pool to its minimum, load or not.
func (e *evaluation) minimum(p *poolRun) {
	missing := e.missing(p)
	want := p.Min - p.size
	if want+missing > 0 && (e.unready != nil || missing > 0) {
		e.emergency(p, missing)
		return
	}
	rule := Rule{Rule: "minimum", Kind: RuleMinimum, Value: fmt.Sprint(p.size), Threshold: fmt.Sprint(p.Min), Verdict: None}
	if p.minBy != nil {
		rule.Message = fmt.Sprintf("min is %d%s", p.Min, p.minUntil)
	}
	if want > 0 {
		rule.Verdict, rule.Delta = Up, want
		p.proposed = true
		why := Reason{CodeBelowMin, fmt.Sprintf("pool %s has %s, its minimum is %d%s", p.Name, count(p.size, "node"), p.Min, p.minUntil)}
		if g := e.upGuard(p, false); g != nil {
			p.held(g, why)
		} else if got := e.grow(p, want, CauseMinimum, why); got < want {
			p.capped(why, want, got)
		}
	}
	p.rules = append(p.rules, rule)
}

// held notes a guard and what it overrules.
func (p *poolRun) held(g *Guard, why Reason) {
	p.guard(*g)
	p.hold(g.code, g.Message)
	p.overruled = append(p.overruled, why)
}

// capped notes that max allowed fewer nodes than were asked for.
func (p *poolRun) capped(why Reason, want, got int) {
	g := p.maxGuard()
	p.guard(g)
	p.hold(g.code, fmt.Sprintf("%s; %d more needed, pool %s may get %d: %s", why.Message, want, p.Name, got, g.Message))
	p.overruled = append(p.overruled, Reason{g.code, fmt.Sprintf("%d of %s: %s", want-got, count(want, "node"), why.Message)})
	p.would = append(p.would, g.remedy(p))
}

// remedy is what would have to change for a capped need.
func (g Guard) remedy(p *poolRun) string {
	switch g.code {
	case CodeAtMax:
		return fmt.Sprintf("raise max of pool %s above %d%s", p.Name, p.Max, p.maxUntil)
	case CodePaused:
		return fmt.Sprintf("k3s-autoscaler resume %s%s", p.Name, g.orWait())
	case CodeBackoff:
		return fmt.Sprintf("remove the cause and k3s-autoscaler pool reset-backoff %s%s", p.Name, g.orWait())
	}
	return "nothing: it goes on " + g.Lifts
}

// orWait names the time at which a guard lifts by itself, if it does.
func (g Guard) orWait() string {
	if g.Until.IsZero() {
		return ""
	}
	return ", or wait until " + g.Until.Format(time.RFC3339)
}

// alerts adds nodes for the alert rules of a pool. A rule is level state: it
// is active while at least one of its alerts fires, however many there are,
// and an active rule adds its amount once per cooldown. Of several rules the
// one that wants most counts. Claims in flight are taken off: they may be what
// ends the alert.
func (e *evaluation) alerts(p *poolRun) {
	want, since, why := 0, time.Time{}, Reason{}
	var inputs []string
	for _, r := range e.policy.rules() {
		if r.Pool != p.Name {
			continue
		}
		alerts, err := e.firing(r)
		rule := Rule{Rule: r.Name, Kind: RuleAlert, Value: fmt.Sprintf("%d firing", len(alerts)), Threshold: "1 firing", Verdict: None}
		switch {
		case err != nil:
			rule.Verdict, rule.Message = Unknown, err.Error()
		case len(alerts) > 0:
			rule.Verdict, rule.Delta = r.Direction, r.Amount
			if r.Direction == Down {
				rule.Delta = -r.Amount
				break
			}
			first := slices.MinFunc(alerts, func(a, b Alert) int { return a.StartsAt.Compare(b.StartsAt) })
			text := Reason{CodeAlert, fmt.Sprintf("alert rule %s: %s fires since %s, %s", r.Name,
				first.Labels["alertname"], first.StartsAt.Format(time.RFC3339), count(len(alerts), "alert"))}
			if r.Amount > want {
				if want > 0 {
					p.overruled = append(p.overruled, why)
				}
				want, since, why = r.Amount, first.StartsAt, text
			} else {
				p.overruled = append(p.overruled, text)
			}
			for _, a := range alerts {
				inputs = append(inputs, a.EventID)
			}
		}
		p.rules = append(p.rules, rule)
	}
	if want == 0 {
		return
	}
	p.proposed = true
	p.input(inputs...)
	if g := e.upGuard(p, false); g != nil {
		p.held(g, why)
		return
	}
	if g := e.cooling("scale_up_cooldown", p.st.AlertUpAt, p.ScaleUpCooldown, "nodes were added for an alert"); g != nil {
		p.held(g, why)
		return
	}
	if left := want - p.inFlight - len(p.added) - len(p.restored); left > 0 {
		want = left
	} else {
		if len(p.added)+len(p.restored) > 0 {
			// What a request or the minimum brings in this evaluation serves the alert as well.
			p.st.AlertUpAt = e.now
			p.overruled = append(p.overruled, why)
			return
		}
		p.held(&Guard{Guard: "claims_in_flight", code: CodeClaimsInFlight, Value: fmt.Sprint(p.inFlight),
			Message: fmt.Sprintf("%s in pool %s already", agree(p.inFlight, "new node is on the way", "new nodes are on the way"), p.Name),
			Lifts:   "when they are Ready or have failed"}, why)
		return
	}
	if cooled := p.st.AlertUpAt.Add(p.ScaleUpCooldown); !p.st.AlertUpAt.IsZero() && cooled.After(since) {
		since = cooled
	}
	got := e.grow(p, want, CauseAlert, why)
	if got > 0 {
		p.st.AlertUpAt = e.now
		p.trigger(since)
	}
	if got < want {
		p.capped(why, want, got)
	}
}

// grow adds up to n nodes to the pool and returns how many. A node whose
// removal can still be called off comes before a new one.
func (e *evaluation) grow(p *poolRun, n int, cause string, why Reason) int {
	got := 0
	for _, node := range e.revocable(p.Name) {
		if got == n {
			return got
		}
		e.revoke(node, why)
		got++
	}
	for ; got < n && p.slots() > 0; got++ {
		e.claim(p, cause, why)
	}
	return got
}

// claim decides a new node and puts it into the world.
func (e *evaluation) claim(p *poolRun, cause string, why Reason) *simNode {
	decision := e.decisionID(p)
	id := e.seed.ID("claim", e.seed.Event, p.Name, fmt.Sprint(len(p.added)))
	c := Claim{ID: id, Node: e.seed.NodeName(p.Name, id), Pool: p.Name, DecisionID: decision, Cause: cause,
		ClaimedAt: e.now, NotAfter: e.now.Add(p.ClaimExpiry)}
	e.s.Claims[c.Node] = c
	e.claims = append(e.claims, c)
	p.added = append(p.added, c.Node)
	p.size++
	p.physical++
	p.st.AddedAt = e.now
	if cause == CausePods || cause == CauseAlert || cause == CauseMetric || cause == CauseHeadroom {
		e.neededAgain(p)
	}
	p.because(why)
	n := p.instance(c.Node, kindNew, e)
	e.world.add(n)
	return n
}

func (p *poolRun) because(why Reason) {
	if !slices.Contains(p.upReason, why) {
		p.upReason = append(p.upReason, why)
	}
}

// revocable are the nodes of a pool ("" for all) whose removal can still be
// called off: decided by us, not by a person, and not drained yet. The latest
// comes first: least has been done to it.
func (e *evaluation) revocable(pool string) []*simNode {
	var out []*simNode
	for _, n := range e.world.order {
		name := n.name
		d := e.s.Drains[name]
		if !n.leaves || d.Node == "" || d.RequestID != "" || pool != "" && n.pool != pool {
			continue
		}
		if n.record == nil || n.record.Phase == PhaseRemoving || n.node == nil || !n.node.Ready || n.node.Deleting {
			continue
		}
		if n.record.Drain.final() {
			continue // the point of no return
		}
		if slices.Contains(e.pool(n.pool).removed, name) {
			continue // decided in this very evaluation
		}
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b *simNode) int {
		return e.s.Drains[b.name].DecidedAt.Compare(e.s.Drains[a.name].DecidedAt)
	})
	return out
}

// revoke calls a removal off because the node is needed.
func (e *evaluation) revoke(n *simNode, why Reason) {
	p := e.pool(n.pool)
	e.callOff(n, p)
	e.neededAgain(p)
	p.restored = append(p.restored, n.name)
	p.because(Reason{why.Code, "the removal of node " + n.name + " is called off: " + why.Message})
	e.cancel(n, p, Reason{CodeNewDemand, why.Message}, Request{})
}
