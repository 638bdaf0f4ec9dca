package scaling

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// weight orders what holds a pool by how much a reader wants to know it: what
// a person waits for, then what keeps nodes from being added, then what keeps
// them from going.
var weight = []string{
	CodeStaleSnapshot, CodeUnknownPool, CodeRequestRefused, CodeRequestExpired, CodeRequestDeferred, CodeTooManyUnready,
	CodePaused, CodeBackoff, CodeAtMax, CodeNoPoolFits, CodeCooldown, CodeClaimsInFlight, CodeRemovalsInFlight, CodeBudget,
	CodeAlert, CodeMetricUnknown, CodeMetric, CodeStartupGrace, CodeFlapping, CodeRemovalsPerHour, CodeStabilizing, CodeWouldReturn, CodeUnneededTime, CodeMinLifetime, CodeHeadroom, CodeAtMin, CodeNoRemovableNode, CodeSteady,
}

func rank(code string) int {
	if i := slices.Index(weight, code); i >= 0 {
		return i
	}
	return len(weight)
}

// conclude turns what was gathered into one decision a pool.
func (e *evaluation) conclude() Result {
	pools := map[string]PoolState{}
	res := Result{Claims: e.claims, Drains: e.drains, Cancels: e.cancels, PendingPods: e.pending, Placements: e.placed}
	for _, p := range e.pools {
		if !p.known && len(p.answered)+len(p.deferred) == 0 && len(p.restored) == 0 {
			continue
		}
		d := e.decide(p)
		fingerprint, unserved := d.fingerprint(p), d.nameUnserved()
		d.Changed = d.Verdict != Held || len(p.answered) > 0 || fingerprint != p.st.Verdict || e.newcomers(p, unserved)
		p.st.Verdict = fingerprint
		p.st.nameUnserved(unserved, d.Changed, e.now)
		res.Decisions = append(res.Decisions, d)
		if p.known {
			pools[p.Name] = p.st
			res.Pools = append(res.Pools, PoolSize{Pool: p.Name, Nodes: max(p.physical, p.size), Ready: p.ready})
		}
	}
	e.s.Pools = pools
	res.State = e.s
	res.NextAt = e.next(res.Decisions)
	return res
}

// next is when the earliest of what ends by itself does.
func (e *evaluation) next(decisions []Decision) time.Time {
	var first time.Time
	ends := func(at time.Time) {
		if at.After(e.now) && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	for _, d := range decisions {
		for _, g := range d.Guards {
			ends(g.Until)
		}
	}
	for _, p := range e.pools {
		for _, at := range append(p.turns(e.now), e.givesUp(p)...) {
			ends(at)
		}
		// What this evaluation did begins intervals that it met no more as guards.
		if p.upAlert {
			ends(p.st.AlertUpAt.Add(p.ScaleUpCooldown))
		}
		// Not when a value gets too old: snapshots come more often, and without them
		// nothing is removed anyway.
		if p.upMetric {
			ends(p.st.MetricUpAt.Add(p.ScaleUpCooldown))
		}
		ends(p.st.RemovedAt.Add(p.ScaleDownCooldown))
	}
	for _, at := range e.repairs {
		ends(at)
	}
	if e.world != nil {
		for _, n := range e.world.order {
			if n.kind == kindStarting {
				ends(n.startsUntil())
			}
		}
	}
	for _, a := range e.s.Alerts {
		if !a.Resolved {
			ends(a.ExpiresAt)
		}
	}
	for _, p := range e.s.Pauses {
		ends(p.Until)
	}
	for _, r := range e.s.Requests {
		ends(r.ExpiresAt)
	}
	for _, h := range e.s.Holds {
		ends(h.Until)
	}
	for _, c := range e.s.Claims {
		ends(c.NotAfter)
	}
	return first
}

// decide puts the verdict on a pool together. Up beats down beats held; what
// was beaten stays as overruled.
func (e *evaluation) decide(p *poolRun) Decision {
	d := Decision{ID: e.decisionID(p), Pool: p.Name, Size: p.before, Min: p.Min, Max: p.Max, Rules: p.rules,
		Guards: p.guards, Rejected: dedupe(p.rejected), Overruled: p.overruled, WouldChange: p.would,
		Pods: p.pods, Inputs: p.inputs, Requests: slices.Concat(p.answered, p.deferred), Actor: p.actor, TriggerSince: p.since}
	for i := range d.Rules {
		if d.Rules[i].Kind == RuleUnschedulable && d.Rules[i].Verdict == Up {
			d.PodCount = len(p.pods)
			if n := e.podsOn(p); n > d.PodCount {
				d.PodCount = n
			}
		}
	}
	slices.SortStableFunc(p.holds, func(a, b Reason) int { return rank(a.Code) - rank(b.Code) })
	switch {
	case len(p.added)+len(p.restored) > 0:
		d.Verdict, d.Delta = Up, len(p.added)+len(p.restored)
		d.Nodes = slices.Concat(p.restored, p.added)
		d.Reason = e.upReason(p)
		d.Overruled = append(d.Overruled, p.holds...)
		d.Overruled = append(d.Overruled, p.downs...) // a person's removal beside it
	case len(p.removed) > 0:
		d.Verdict, d.Delta, d.Nodes = Down, -len(p.removed), p.removed
		d.Reason = combine(p.downs)
		d.Overruled = append(d.Overruled, p.holds...)
	case len(p.replies) > 0: // a person waits for it: it comes first
		d.Verdict, d.Reason = Held, p.replies[0]
		d.Overruled = append(d.Overruled, p.holds...)
	case len(p.holds) > 0:
		d.Verdict, d.Reason = Held, p.holds[0]
	case p.inFlight > 0:
		d.Verdict, d.Reason = Held, Reason{CodeClaimsInFlight, agree(p.inFlight, "new node is", "new nodes are") + " on the way"}
	case p.leaving > 0:
		d.Verdict, d.Reason = Held, Reason{CodeRemovalsInFlight, agree(p.leaving, "node is", "nodes are") + " leaving"}
	default:
		d.Verdict, d.Reason = Held, Reason{CodeSteady, "nothing asks for more nodes and none is unneeded"}
	}
	if slices.ContainsFunc(d.Rejected, func(a Alternative) bool { return !a.quiet }) && d.Verdict == Held && d.Reason.Code == CodeSteady {
		d.Reason = Reason{CodeNoRemovableNode, "nothing asks for more nodes, and the unneeded ones are not removable"}
	}
	// What follows from an event has to fit one message.
	d.Rules, d.Guards, d.Rejected, d.Inputs = first(d.Rules), first(d.Guards), first(d.Rejected), first(d.Inputs)
	d.Overruled, d.WouldChange = first(compact(d.Overruled)), first(compact(d.WouldChange))
	return d
}

// podsOn counts the pods on the nodes that are new in this evaluation.
func (e *evaluation) podsOn(p *poolRun) int {
	n := 0
	for _, name := range p.added {
		if node := e.world.nodes[name]; node != nil {
			n += len(node.coming) + len(node.due)
		}
	}
	return n
}

func (e *evaluation) upReason(p *poolRun) Reason {
	r := combine(p.upReason)
	if slices.ContainsFunc(p.upReason, func(r Reason) bool { return r.Code == CodeUnschedulablePods }) {
		r.Message = fmt.Sprintf("%s %s: %s", agree(e.podsOn(p), "pod needs", "pods need"), count(len(p.added)+len(p.restored), "node"), r.Message)
	}
	return r
}

// combine makes one reason of several: the code of the first, the sentences of all.
func combine(rs []Reason) Reason {
	out := rs[0]
	texts := make([]string, 0, len(rs))
	for _, r := range rs {
		if !slices.Contains(texts, r.Message) {
			texts = append(texts, r.Message)
		}
	}
	out.Message = strings.Join(texts[:min(len(texts), 10)], "; ")
	return out
}

// fingerprint is what has to differ for a held verdict to be worth saying
// again: the code, the guards, the candidates that were turned down, the
// requests that wait, the schedules that are open; not the numbers in the sentences.
func (d Decision) fingerprint(p *poolRun) string {
	parts := []string{d.Verdict, d.Reason.Code}
	if d.Verdict != Held {
		parts = append(parts, d.ID)
	}
	var rest []string
	for _, g := range d.Guards {
		rest = append(rest, "guard "+g.Guard)
	}
	for _, a := range d.Rejected {
		if !a.quiet {
			rest = append(rest, a.Subject+" "+a.Reason.Code)
		}
	}
	for _, id := range p.deferred {
		rest = append(rest, "waits "+id)
	}
	for _, o := range p.open {
		rest = append(rest, "open "+o.Name)
	}
	for _, r := range d.Rules {
		if r.Kind == RuleHold || r.Kind == RuleMetric && r.Verdict == Unknown {
			rest = append(rest, r.Rule)
		}
	}
	slices.Sort(rest)
	sum := hash(strings.Join(slices.Compact(rest), "\n"))
	return strings.Join(append(parts, sum), " ")
}

func dedupe(as []Alternative) []Alternative {
	seen := map[string]bool{}
	out := make([]Alternative, 0, len(as))
	for _, a := range as {
		key := a.Subject + "\x00" + a.Reason.Code + "\x00" + a.Reason.Message
		if !seen[key] {
			seen[key] = true
			out = append(out, a)
		}
	}
	return out
}

// first keeps as many as a decision names.
func first[T any](in []T) []T { return in[:min(len(in), maxNamed)] }

func compact[T comparable](in []T) []T {
	var out []T
	for _, v := range in {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
