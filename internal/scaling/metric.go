package scaling

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Values that a metric rule takes from the snapshot. The first four are shares
// (0..1) of the allocatable of the pool's Ready nodes; they are unknown for a pool
// that has none.
const (
	MetricCPURequests    = "cpu-requests"    // requests of the pods on them
	MetricMemoryRequests = "memory-requests" //
	MetricCPUUsage       = "cpu-usage"       // live, of metrics.k8s.io
	MetricMemoryUsage    = "memory-usage"    //
	// MetricPendingPods is how many pods the scheduler finds no node for that a new
	// node of the pool could take.
	MetricPendingPods = "pending-pods"
)

// Where the value of a metric rule comes from.
const (
	SourceSnapshot = "snapshot" // the cluster itself
	SourcePush     = "push"     // somebody sends it
	SourceQuery    = "query"    // the collector asks Prometheus
)

// MetricRule makes a number of nodes of a metric. Exactly one of Metric, Signal and
// Query is its source, and exactly one strategy is set. The strategies and their
// defaults are those of Nomad's autoscaler.
type MetricRule struct {
	Name   string
	Pool   string
	Metric string // Metric…: of the snapshot
	Signal string // name of a pushed value
	Query  string // PromQL
	// QueryID tells queries apart, so that an answer is not taken for that of
	// another one.
	QueryID string
	// Interval is the time between two points of a Metric.
	Interval time.Duration
	// StaleAfter is the age from which a value is unknown.
	StaleAfter time.Duration
	// MayAdd and MayRemove say whether it adds nodes, and whether it removes them.
	MayAdd, MayRemove bool

	TargetValue *TargetValue
	Threshold   *Threshold
	PassThrough bool // as many nodes as the metric says, rounded up
	Fixed       *int // so many nodes, whatever the metric says
}

// TargetValue keeps a metric, which falls as nodes are added, at a target: the
// pool gets ceil(nodes × metric / target).
type TargetValue struct {
	Target float64
	// DeadBand is the share by which the metric may differ from the target without
	// anything being done.
	DeadBand float64
}

// Threshold acts while enough of the last points lie within bounds.
type Threshold struct {
	AtLeast, Below *float64 // nil: no bound on that side
	// Points of the last Of have to lie within the bounds.
	Points, Of int
	// One of these: nodes more (or less than zero, fewer), in percent of what
	// there is (at least one node), or in all.
	Delta   *int
	Percent *float64
	Nodes   *int
}

// Signal is the last word of a source about a value: level state, until the next.
type Signal struct {
	Value     *float64  `json:"value,omitempty"`  // nil: unknown
	Reason    string    `json:"reason,omitempty"` // why it is
	At        time.Time `json:"at"`               // when it was measured
	ExpiresAt time.Time `json:"expires_at"`
	EventID   string    `json:"event_id"`
	Query     string    `json:"query,omitempty"` // MetricRule.QueryID of what it answers
	Epoch     int64     `json:"epoch,omitempty"` // of the collector that asked
}

// MetricState is what is remembered of a metric rule.
type MetricState struct {
	// Source is what the rule looks at, and for which pool. What is remembered of
	// another one does not count.
	Source string `json:"source"`
	// Value is the last known one, and At when it was measured.
	Value *float64  `json:"value,omitempty"`
	At    time.Time `json:"at,omitzero"`
	// Unknown says why there is no value now; empty while there is.
	Unknown string `json:"unknown,omitempty"`
	// Nodes is how many it asked for when it was last known; nil: for none in
	// particular, or it was never known.
	Nodes *int `json:"nodes,omitempty"`
	// Verdict is Up, Down, None or Unknown, and Since from when on.
	Verdict string    `json:"verdict"`
	Since   time.Time `json:"since"`
	Points  []Point   `json:"points,omitempty"` // for a threshold, oldest first
	// Counted is, for a target, how many nodes the value is multiplied with.
	Counted *Counted `json:"counted,omitempty"`
}

// Counted is how many nodes a pool had when a value was measured: claims in flight
// and leaving nodes aside, and those of them that were Ready.
type Counted struct {
	Nodes int `json:"nodes"`
	Ready int `json:"ready"`
}

// Point is a value at an instant; nil: it was unknown.
type Point struct {
	At    time.Time `json:"at"`
	Value *float64  `json:"value"`
}

// SignalReceived says what a source says of a value. The Signal's EventID and At
// are required.
type SignalReceived struct {
	Source string // SourcePush or SourceQuery
	Name   string // of a pushed signal
	Signal
}

func (in SignalReceived) apply(s *State) {
	key := signalKey(in.Source, in.Name)
	if in.Source == SourceQuery {
		// Not by the rule's name: a candidate policy may have another query under the
		// same one, and its answers are none to this policy's.
		key = signalKey(in.Source, in.Query)
	}
	old, known := s.Signals[key]
	switch {
	case known && old.EventID == in.EventID:
		return
	case known && in.Epoch < old.Epoch && old.ExpiresAt.After(s.Now):
		return // of a collector that no longer leads
	case known && in.Epoch == old.Epoch && in.At.Before(old.At):
		return // a late copy
	}
	sig := in.Signal
	sig.At, sig.ExpiresAt = sig.At.UTC(), sig.ExpiresAt.UTC()
	if sig.At.After(s.Now) { // of a clock that is ahead: it would never be old
		sig.At = s.Now
	}
	if sig.Value != nil && (math.IsNaN(*sig.Value) || math.IsInf(*sig.Value, 0)) {
		sig.Reason, sig.Value = "it is "+number(*sig.Value), nil
	}
	s.Signals[key] = sig
}

func signalKey(source, name string) string { return source + "/" + name }

// signal is the key of the signal that the rule looks at; "" for a Metric.
func (r MetricRule) signal() string {
	switch {
	case r.Signal != "":
		return signalKey(SourcePush, r.Signal)
	case r.Query != "":
		return signalKey(SourceQuery, r.QueryID)
	}
	return ""
}

// Source says in a few words what the rule looks at.
func (r MetricRule) Source() string {
	switch {
	case r.Signal != "":
		return "signal " + r.Signal
	case r.Query != "":
		return "query " + r.Query
	}
	return r.Metric
}

func (r MetricRule) of() string { return r.Pool + ": " + r.Source() }

// MetricOf is what is remembered of a rule; false when that is of another source,
// or nothing is.
func (s State) MetricOf(r MetricRule) (MetricState, bool) {
	st, ok := s.Metrics[r.Name]
	return st, ok && st.Source == r.of()
}

// threshold is what the rule compares its value with, for people.
func (r MetricRule) threshold() string {
	switch {
	case r.TargetValue != nil:
		return "target " + number(r.TargetValue.Target)
	case r.Threshold != nil:
		return r.Threshold.bounds()
	case r.Fixed != nil:
		return "fixed"
	}
	return "pass-through"
}

func (t *Threshold) bounds() string {
	var out string
	if t.AtLeast != nil {
		out = "at least " + number(*t.AtLeast)
	}
	if t.Below != nil {
		if out != "" {
			out += " and "
		}
		out += "below " + number(*t.Below)
	}
	return fmt.Sprintf("%d of %d %s", t.Points, t.Of, out)
}

func (t *Threshold) holds(v float64) bool {
	return (t.AtLeast == nil || v >= *t.AtLeast) && (t.Below == nil || v < *t.Below)
}

// inBounds counts the points that lie within the bounds. One that is unknown does
// not.
func (t *Threshold) inBounds(points []Point) int {
	n := 0
	for _, p := range points {
		if p.Value != nil && t.holds(*p.Value) {
			n++
		}
	}
	return n
}

// metricRules returns the metric rules in the order of their names. Of two of one
// name the first counts; the configuration refuses them.
func (p Policy) metricRules() []MetricRule {
	out := slices.Clone(p.MetricRules)
	slices.SortStableFunc(out, func(a, b MetricRule) int { return cmpString(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b MetricRule) bool { return a.Name == b.Name })
}

// number writes a value for people: three decimals at most.
func number(v float64) string {
	if math.Abs(v) >= 1e15 || math.IsNaN(v) || v != 0 && math.Abs(v) < 0.001 {
		return strconv.FormatFloat(v, 'g', 4, 64)
	}
	return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64)
}

// whole rounds up to nodes within what a pool could ever have. Noise of the last
// bits makes no node: 3 × (0.2 / 0.1) is 6.
func whole(v float64) int {
	const most = 1 << 20
	return int(math.Ceil(min(max(v, 0), most) - 1e-9))
}
