package scaling

import (
	"fmt"
	"slices"
	"time"
)

// growForMetrics adds nodes for the metric rules of a pool. Of several that want
// more the one that asks for most counts. What it asks for is a number in all, so
// what others have added in this evaluation, and claims in flight, are part of it.
func (e *evaluation) growForMetrics(p *poolRun) {
	var most *judged
	for i := range p.metrics {
		j := &p.metrics[i]
		if j.verdict != Up {
			continue
		}
		p.input(j.event)
		switch {
		case most == nil:
			most = j
		case *j.nodes > *most.nodes:
			p.overruled = append(p.overruled, Reason{CodeMetric, most.text()})
			most = j
		default:
			p.overruled = append(p.overruled, Reason{CodeMetric, j.text()})
		}
	}
	if most == nil {
		return
	}
	p.proposed = true
	why := Reason{CodeMetric, most.text()}
	if g := e.upGuard(p, false); g != nil {
		p.held(g, why)
		return
	}
	if g := e.cooling("scale_up_cooldown", p.st.MetricUpAt, p.ScaleUpCooldown, "nodes were added for a metric"); g != nil {
		p.held(g, why)
		return
	}
	since := most.since
	if cooled := p.st.MetricUpAt.Add(p.ScaleUpCooldown); !p.st.MetricUpAt.IsZero() && cooled.After(since) {
		since = cooled
	}
	want := *most.nodes - p.size
	if want <= 0 { // a request, the minimum or an alert has brought them
		p.st.MetricUpAt = e.now
		p.overruled = append(p.overruled, why)
		return
	}
	got := e.grow(p, want, CauseMetric, why)
	if got > 0 {
		p.st.MetricUpAt = e.now
		p.trigger(since)
	}
	if got < want {
		p.capped(why, want, got)
	}
}

// shrinkForMetrics removes nodes while every metric rule of the pool that may
// remove asks for fewer: of several the one that asks for most counts, and one
// that is unknown or content keeps them all. Like an alert it waits for no
// unneeded time, but the highest number of the stabilization window counts, and
// only nodes go whose pods fit elsewhere.
func (e *evaluation) shrinkForMetrics(p *poolRun, all []candidate) {
	var removing []judged
	for _, j := range p.metrics {
		if j.MayRemove {
			removing = append(removing, j)
		}
	}
	if len(removing) == 0 {
		p.st.MetricNeeds = nil
		return
	}
	need := p.size
	down := !slices.ContainsFunc(removing, func(j judged) bool { return j.verdict != Down })
	if down {
		need = max(p.floor.nodes, p.Min)
		for _, j := range removing {
			need = max(need, *j.nodes)
			p.input(j.event)
		}
	}
	if len(p.st.MetricNeeds) == 0 {
		need = max(need, p.size) // at the first look all that is there is needed
	}
	p.st.MetricNeeds = noteNeed(p.st.MetricNeeds, e.now, p.Stabilization, need)
	if !down {
		return
	}
	first := slices.MaxFunc(removing, func(a, b judged) int { return *a.nodes - *b.nodes })
	text := first.text()
	if len(removing) > 1 {
		text += fmt.Sprintf(", most of the rules %s", metricNames(removing))
	}
	why := Reason{CodeMetric, text}
	if g := e.downGuard(p, RuleMetric, false); g != nil {
		p.held(g, why)
		return
	}
	if g := p.metricGuard(false, false); g != nil { // a rule that may not remove asks for them
		p.held(g, why)
		return
	}
	highest := p.st.MetricNeeds[0]
	if p.size <= highest.Nodes {
		p.held(e.stabilizing(p, highest), why)
		return
	}
	room := min(p.size-highest.Nodes, p.mayLeave-p.leaving)
	if room <= 0 {
		g := p.removalsGuard()
		p.held(&g, why)
		return
	}
	got, stop := e.take(p, all, room, Request{Reason: text, code: CodeMetric})
	if got == 0 {
		p.held(&stop, why)
		return
	}
	p.trigger(first.since)
}

// stabilizing is the guard of a need within the stabilization window.
func (e *evaluation) stabilizing(p *poolRun, highest Need) *Guard {
	return &Guard{Guard: "stabilization", code: CodeStabilizing, Value: fmt.Sprint(highest.Nodes), Until: highest.At.Add(p.Stabilization),
		Message: fmt.Sprintf("pool %s needed %s within the last %s", p.Name, count(highest.Nodes, "node"), lasts(p.Stabilization)), Lifts: "by itself"}
}

// noteNeed appends a need and drops those that no longer count: older than the
// window, or not higher than this one. The first is then the highest.
func noteNeed(needs []Need, now time.Time, window time.Duration, n int) []Need {
	needs = slices.DeleteFunc(slices.Clone(needs), func(o Need) bool {
		return !o.At.After(now.Add(-window)) || o.Nodes <= n
	})
	return append(needs, Need{At: now, Nodes: n})
}
