package scaling

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// judged is what a metric rule says now.
type judged struct {
	MetricRule
	reading
	verdict string
	since   time.Time
	nodes   *int   // it asks for; nil: none in particular, or unknown
	why     string // how it comes to them
	change  string // what would make it say something else
}

// text is what it says, for people.
func (j judged) text() string {
	return fmt.Sprintf("metric rule %s (%s) is %s: it asks for %s", j.Name, j.Source(), number(*j.value), j.asks())
}

func (j judged) asks() string {
	if j.nodes == nil {
		return "no number of nodes in particular"
	}
	return count(*j.nodes, "node")
}

// judgeMetrics reads every metric rule, before anything is added or removed: all
// of them speak of the same instant.
func (e *evaluation) judgeMetrics() {
	rules := e.policy.metricRules()
	for _, r := range rules {
		p := e.pool(r.Pool)
		if !p.known {
			continue
		}
		j := e.judge(p, r)
		p.metrics = append(p.metrics, j)
		if j.verdict == Up {
			p.upMetric = true
		}
		if j.verdict == Unknown {
			message := fmt.Sprintf("metric rule %s (%s) is unknown: %s", r.Name, r.Source(), j.unknown)
			p.hold(CodeMetricUnknown, message)
		}
		p.rules = append(p.rules, j.rule(p, e.now))
	}
	for _, p := range e.pools {
		p.floors(e.s.Metrics)
	}
}

// forgetMetrics drops what no rule of the policy looks at. Should one come to,
// the next value brings it back.
func (e *evaluation) forgetMetrics() {
	if len(e.policy.Pools) == 0 {
		return
	}
	rules, signals := map[string]bool{}, map[string]bool{}
	for _, r := range e.policy.MetricRules {
		rules[r.Name], signals[r.signal()] = true, true
	}
	maps.DeleteFunc(e.s.Metrics, func(name string, _ MetricState) bool { return !rules[name] })
	maps.DeleteFunc(e.s.Signals, func(key string, _ Signal) bool { return !signals[key] })
}

// judge reads one rule and notes what it says.
func (e *evaluation) judge(p *poolRun, r MetricRule) judged {
	st := e.s.Metrics[r.Name]
	if st.Source != r.of() {
		st = MetricState{Source: r.of()}
	}
	var last time.Time
	if n := len(st.Points); n > 0 {
		last = st.Points[n-1].At
	}
	j := judged{MetricRule: r, reading: e.read(p, r, last)}
	if t := r.Threshold; t != nil && j.sampled {
		st.Points = keepPoint(st.Points, Point{j.at, j.value}, r)
	}
	if j.value == nil {
		j.verdict = Unknown
		j.change = "a value not older than " + lasts(r.StaleAfter)
		st.Unknown = j.unknown
	} else {
		if r.TargetValue == nil {
			st.Counted = nil
		} else if st.Counted == nil || st.Value == nil || *st.Value != *j.value || !st.At.Equal(j.at) {
			st.Counted = &Counted{Nodes: p.size - p.inFlight, Ready: p.ready}
		}
		j.weigh(p, st)
		st.Unknown, st.Value, st.At, st.Nodes = "", j.value, j.at, j.nodes
	}
	if st.Verdict != j.verdict || st.Since.IsZero() {
		st.Verdict, st.Since = j.verdict, e.now
		if j.value != nil && j.at.Before(e.now) {
			st.Since = j.at
		}
	}
	j.since = st.Since
	e.s.Metrics[r.Name] = st
	return j
}

// MaxPoints is how many points of a rule are kept at most.
const MaxPoints = 100

// keepPoint appends a point and drops those that no longer count. After a gap
// nobody knows where the value was: the points before it say nothing about now.
func keepPoint(points []Point, p Point, r MetricRule) []Point {
	points = slices.Clone(points)
	if n := len(points); n > 0 && p.At.Sub(points[n-1].At) > max(r.StaleAfter, 2*r.Interval) {
		points = nil
	}
	points = append(points, p)
	return points[max(0, len(points)-min(max(r.Threshold.Of, r.Threshold.Points), MaxPoints)):]
}

// weigh finds out how many nodes the value asks for, and what that means.
func (j *judged) weigh(p *poolRun, st MetricState) {
	switch {
	case j.TargetValue != nil:
		j.byTarget(*st.Counted)
	case j.Threshold != nil:
		j.byThreshold(p, st.Points)
	case j.Fixed != nil:
		j.nodes, j.why = new(*j.Fixed), "fixed"
		j.change = "another number in the rule"
	default:
		j.nodes, j.why = new(whole(*j.value)), "as many as the metric says"
		j.change = fmt.Sprintf("more above %d, fewer at %d or less", *j.nodes, max(*j.nodes-1, 0))
	}
	j.verdict = None
	switch {
	case j.nodes == nil:
	case *j.nodes > p.size && j.MayAdd:
		j.verdict = Up
	case *j.nodes > p.size:
		j.why += "; it may not add"
	case max(*j.nodes, p.Min) < p.size && j.MayRemove:
		j.verdict = Down
	case max(*j.nodes, p.Min) < p.size:
		j.why += "; it may not remove"
	case *j.nodes < p.Min:
		j.why += fmt.Sprintf("; min is %d%s", p.Min, p.minUntil)
	}
}

// byTarget is ceil(nodes × metric / target), and nothing within the dead band.
// Which nodes count is on the side of caution, as the horizontal pod autoscaler
// does it: those that are not Ready take none of the load, so they are no reason
// for more nodes, and their absence none for fewer. Of a pool without nodes the
// metric is taken as that of one. A value is multiplied with the nodes that it was
// measured with: what it has brought since must not be multiplied again.
func (j *judged) byTarget(c Counted) {
	t := j.TargetValue
	if t.Target <= 0 { // the configuration refuses it
		j.why = "its target is not positive"
		return
	}
	factor := *j.value / t.Target
	settled := c.Nodes
	n := settled
	switch {
	case settled == 0:
		j.nodes = new(whole(factor))
		j.why = fmt.Sprintf("ceil(%s / %s), there is none yet", number(*j.value), number(t.Target))
		j.change = fmt.Sprintf("more above %s", number(float64(max(*j.nodes, 0))*t.Target))
		return
	case math.Abs(factor-1) <= t.DeadBand+1e-9: // noise of the last bits aside
		j.nodes, j.why = new(settled), fmt.Sprintf("within %s %% of the target", number(t.DeadBand*100))
	case factor > 1:
		n = min(max(c.Ready, 1), settled)
		j.nodes = new(max(whole(float64(n)*factor), settled))
	default:
		j.nodes = new(whole(float64(n) * factor))
	}
	if j.why == "" {
		j.why = fmt.Sprintf("ceil(%d × %s / %s)", n, number(*j.value), number(t.Target))
	}
	j.change = "more above " + number(t.Target*max(float64(*j.nodes)/float64(n), 1+t.DeadBand))
	if *j.nodes > 0 {
		j.change += ", fewer at " + number(t.Target*min(float64(*j.nodes-1)/float64(n), 1-t.DeadBand)) + " or less"
	}
}

// byThreshold asks for nodes while enough points lie within the bounds.
func (j *judged) byThreshold(p *poolRun, points []Point) {
	t := j.Threshold
	in := t.inBounds(points)
	j.why = fmt.Sprintf("%d of the last %s within bounds", in, count(len(points), "point"))
	if in < max(t.Points, 1) {
		j.change = fmt.Sprintf("%d of %d points within bounds", t.Points, t.Of)
		return
	}
	j.change = fmt.Sprintf("less than %d of %d points within bounds", t.Points, t.Of)
	settled := p.size - p.inFlight
	delta := 0
	switch {
	case t.Nodes != nil:
		j.nodes = new(*t.Nodes)
		return
	case t.Delta != nil:
		delta = *t.Delta
		j.why += fmt.Sprintf(": %+d", delta)
	case t.Percent != nil:
		share := float64(settled) * math.Abs(*t.Percent) / 100
		if *t.Percent > 0 {
			delta = max(whole(share), 1)
		} else {
			delta = -max(int(share), 1)
		}
		j.why += fmt.Sprintf(": %+d (%s %%)", delta, number(*t.Percent))
	default: // likewise
		return
	}
	if delta < 0 {
		settled += p.leaving // those that go already are of the same word
	}
	j.nodes = new(max(settled+delta, 0))
}

// rule is the line of a decision.
func (j judged) rule(p *poolRun, now time.Time) Rule {
	out := Rule{Rule: "metric " + j.Name, Kind: RuleMetric, Threshold: j.threshold(), Verdict: j.verdict}
	if j.value == nil {
		out.Message = fmt.Sprintf("%s: %s; it takes %s", j.Source(), j.unknown, j.change)
		return out
	}
	out.Value = number(*j.value)
	if j.verdict == Up || j.verdict == Down {
		out.Delta = *j.nodes - p.size
	}
	out.Message = fmt.Sprintf("%s, %s old, asks for %s: %s; to change that: %s", j.Source(), lasts(now.Sub(j.at).Round(time.Second)), j.asks(), j.why, j.change)
	return out
}

// floor is what a metric rule keeps of a pool.
type floor struct {
	nodes int
	guard *Guard // nil: no rule does
}

// floors finds out how many nodes the rules of the pool keep, whatever removes
// others: what a rule asks for, and while it is unknown, what it last asked for.
// One that was never known keeps all. A person is held by what is known alone.
func (p *poolRun) floors(states map[string]MetricState) {
	for _, j := range p.metrics {
		g := Guard{Guard: "metric", code: CodeMetric, Lifts: "when it asks for fewer"}
		n := 0
		switch st := states[j.Name]; {
		case j.value != nil && j.nodes == nil, j.value == nil && st.Value != nil && st.Nodes == nil:
			continue
		case j.value != nil:
			n, g.Message = *j.nodes, j.text()
		case st.Value != nil:
			n = *st.Nodes
			g.code = CodeMetricUnknown
			g.Message = fmt.Sprintf("metric rule %s is unknown (%s), and last asked for %s", j.Name, j.unknown, count(n, "node"))
			g.Lifts = "when its value is known again"
		default:
			n = p.size
			g.code = CodeMetricUnknown
			g.Message = fmt.Sprintf("metric rule %s was never known (%s): nobody knows how many nodes it needs", j.Name, j.unknown)
			g.Lifts = "when its value is known"
		}
		g.Value = fmt.Sprint(n)
		if n > p.floor.nodes {
			p.floor = floor{n, &g}
		}
		if j.value != nil && n > p.knownFloor.nodes {
			p.knownFloor = floor{n, &g}
		}
	}
}

// metricGuard is the guard of the metric rules that keep the pool at its size, or nil.
// person says that somebody asks for the removal, override that he insists.
func (p *poolRun) metricGuard(person, override bool) *Guard {
	f := p.floor
	if person {
		f = p.knownFloor
	}
	if override || f.guard == nil || p.size > f.nodes {
		return nil
	}
	return f.guard
}

// metricNames are the rules in a sentence.
func metricNames(js []judged) string {
	out := make([]string, 0, len(js))
	for _, j := range js {
		out = append(out, j.Name)
	}
	return strings.Join(out, ", ")
}
