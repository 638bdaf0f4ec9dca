package scaling

import (
	"fmt"
	"time"
)

// paused is the guard of a pause, or nil.
func (e *evaluation) paused(p *poolRun) *Guard {
	pause, ok := e.s.Pauses[p.Name]
	if !ok {
		return nil
	}
	return &Guard{Guard: "pause", code: CodePaused, Value: "paused by " + pause.Actor, Until: pause.Until,
		Message: fmt.Sprintf("pool %s is paused by %s since %s: %s", p.Name, pause.Actor, pause.Since.Format(time.RFC3339), pause.Reason),
		Lifts:   "when the pool is resumed"}
}

// upGuard is what keeps nodes from being added to the pool, or nil. An
// override passes a pause and nothing else.
func (e *evaluation) upGuard(p *poolRun, override bool) *Guard {
	if g := e.paused(p); g != nil && !override {
		return g
	}
	if e.unready != nil {
		return e.unready
	}
	if b := p.st.Backoff; b.Until.After(e.now) {
		return &Guard{Guard: "backoff", code: CodeBackoff, Value: lasts(b.Duration), Until: b.Until,
			Message: fmt.Sprintf("pool %s backs off for %s after %s: %s", p.Name, lasts(b.Duration), agree(b.Failures, "failed attempt", "failed attempts in a row"), b.Message),
			Lifts:   "by itself, or when the backoff of the pool is reset"}
	}
	return nil
}

// maxClaims is how many nodes of a pool one evaluation claims at most: what
// follows from an event has to fit one message. The next event goes on.
const maxClaims = 300

// slots is how many nodes the pool may still get. Nodes that are leaving take
// their place until they are gone.
func (p *poolRun) slots() int { return max(min(p.Max-p.physical, maxClaims-len(p.added)), 0) }

// maxGuard is what slots ran into.
func (p *poolRun) maxGuard() Guard {
	if p.physical < p.Max {
		return Guard{Guard: "batch", code: CodeClaimsInFlight, Value: fmt.Sprint(maxClaims),
			Message: fmt.Sprintf("%d nodes of pool %s are claimed at a time", maxClaims, p.Name), Lifts: "with the next event"}
	}
	return Guard{Guard: "max", code: CodeAtMax, Value: fmt.Sprintf("%d of %d", p.physical, p.Max),
		Message: fmt.Sprintf("pool %s has %s, claims in flight and leaving nodes included, of at most %d%s", p.Name, count(p.physical, "node"), p.Max, p.maxUntil),
		Until:   p.maxLifts, Lifts: "when max is raised or a node has left"}
}

func (p *poolRun) minGuard() Guard {
	return Guard{Guard: "min", code: CodeAtMin, Value: fmt.Sprintf("%d of %d", p.ready, p.Min),
		Message: fmt.Sprintf("pool %s keeps %s Ready, its minimum is %d%s", p.Name, count(p.ready, "node"), p.Min, p.minUntil),
		Until:   p.minLifts, Lifts: "when min is lowered or the pool grows"}
}

// notForRemoval says why the observation does not count for removals, or nil.
// Unknown is not zero: what is missing or old never removes a node.
func (e *evaluation) notForRemoval() *Guard {
	for _, kind := range removalKinds {
		at, ok := e.obs.Freshness[kind]
		if !ok {
			return &Guard{Guard: "stale_data", code: CodeStaleSnapshot, Value: kind,
				Message: fmt.Sprintf("objects of kind %s are unknown", kind), Lifts: "when a snapshot holds them"}
		}
		if g := e.tooOld(kind, at); g != nil {
			return g
		}
	}
	return e.tooOld("snapshot", e.obs.CapturedAt)
}

func (e *evaluation) tooOld(what string, at time.Time) *Guard {
	if age := e.now.Sub(at); age > e.policy.StaleAfter {
		return &Guard{Guard: "stale_data", code: CodeStaleSnapshot, Value: what,
			Message: fmt.Sprintf("the %s is of %s and older than %s", what, at.UTC().Format(time.RFC3339), lasts(e.policy.StaleAfter)),
			Lifts:   "with the next snapshot"}
	}
	return nil
}

// cooling is the guard of an interval that began at since, or nil.
func (e *evaluation) cooling(name string, since time.Time, d time.Duration, after string) *Guard {
	until := since.Add(d)
	if since.IsZero() || !until.After(e.now) {
		return nil
	}
	return &Guard{Guard: name, code: CodeCooldown, Value: lasts(d), Until: until,
		Message: fmt.Sprintf("%s at %s, less than %s ago", after, since.Format(time.RFC3339), lasts(d)), Lifts: "by itself"}
}

// downGuard is what keeps nodes of the pool from being removed, or nil. by is
// RuleRequest, RuleAlert, RuleMetric or RuleUtilization; an override passes a pause and the
// cooldowns.
func (e *evaluation) downGuard(p *poolRun, by string, override bool) *Guard {
	if e.unready != nil {
		return e.unready
	}
	if g := e.paused(p); g != nil && !override {
		return g
	}
	if by != RuleRequest {
		if g := e.cooling("startup_grace", e.s.StartedAt, e.policy.StartupGrace, "the program started"); g != nil {
			g.code = CodeStartupGrace
			return g
		}
		if g := p.opposed(); g != nil {
			return g
		}
		if g := e.frozen(p); g != nil {
			return g
		}
		if p.inFlight+len(p.added) > 0 {
			return &Guard{Guard: "claims_in_flight", code: CodeClaimsInFlight, Value: fmt.Sprint(p.inFlight + len(p.added)),
				Message: fmt.Sprintf("pool %s waits for %s", p.Name, count(p.inFlight+len(p.added), "new node")), Lifts: "when they are Ready or have failed"}
		}
	} else if (p.upAlert || p.upMetric) && !override {
		return p.opposed()
	}
	if override {
		return nil
	}
	for _, g := range []*Guard{
		e.cooling("scale_down_after_add", p.st.AddedAt, p.ScaleDownAfterAdd, "a node was added"),
		e.cooling("scale_down_after_fail", p.st.RemovalFailedAt, p.ScaleDownAfterFail, "a removal was undone"),
		e.cooling("scale_down_cooldown", p.st.RemovedAt, p.ScaleDownCooldown, "a node was removed"),
	} {
		if g != nil {
			return g
		}
	}
	return nil
}

// opposed is the guard of someone who wants more nodes: up beats down.
func (p *poolRun) opposed() *Guard {
	switch {
	case p.upAlert:
		return &Guard{Guard: "alert", code: CodeAlert, Message: fmt.Sprintf("an alert asks for more nodes in pool %s", p.Name),
			Lifts: "when the alert is resolved or expires"}
	case p.upMetric:
		return &Guard{Guard: "metric", code: CodeMetric, Message: fmt.Sprintf("a metric asks for more nodes in pool %s", p.Name),
			Lifts: "when it asks for no more"}
	case p.upOpen:
		return &Guard{Guard: "request", code: CodeRequestDeferred, Message: fmt.Sprintf("a request for more nodes in pool %s waits", p.Name),
			Lifts: "when the request is served or expires"}
	}
	return nil
}

// tooYoung is the guard of a node's minimum lifetime, or nil.
func (e *evaluation) tooYoung(n *simNode, p *poolRun) *Guard {
	g := e.cooling("min_lifetime", n.readyAt(), p.MinLifetime, "node "+n.name+" became Ready")
	if g != nil {
		g.code, g.Value = CodeMinLifetime, n.name
	}
	return g
}

// readyAt is when the node became Ready for the first time, as far as is known.
func (n *simNode) readyAt() time.Time {
	switch {
	case n.record != nil && !n.record.ReadyAt.IsZero():
		return n.record.ReadyAt
	case n.node != nil && !n.node.ReadySince.IsZero():
		return n.node.ReadySince
	case n.node != nil:
		return n.node.CreatedAt
	}
	return time.Time{}
}
