package events

import (
	"fmt"
	"time"
)

// MaxSignalName is how long the name of a signal may be, in bytes.
const MaxSignalName = 100

// Where the value of a SignalReceived comes from.
const (
	SignalPushed  = "push"  // also when the source is absent
	SignalQueried = "query" // the collector asked Prometheus; the name is that of a rule that has the query
)

// SignalReceived is one value of a metric. A nil value is unknown, not zero.
type SignalReceived struct {
	Name       string            `json:"name"`
	Value      *float64          `json:"value"`
	Reason     string            `json:"reason,omitempty"` // why it is unknown
	Source     string            `json:"source,omitempty"` // push (also when absent) or query
	Labels     map[string]string `json:"labels,omitempty"`
	Actor      string            `json:"actor,omitempty"` // who pushed it
	ObservedAt time.Time         `json:"observed_at"`     // when it was measured
	ExpiresAt  time.Time         `json:"expires_at"`      // from then on it is unknown
	// Query is the QueryDigest of what it answers, and Epoch that of the collector
	// which asked: of two that ask, the one with the higher epoch counts.
	Query string `json:"query,omitempty"`
	Epoch int64  `json:"epoch,omitempty"`
}

// EventType implements Payload.
func (SignalReceived) EventType() string { return TypeSignalReceived }

// Validate implements Payload.
func (p SignalReceived) Validate() error {
	var r required
	r.check(ValidateSignal(p.Name))
	if p.Source != "" {
		r.oneOf("source", p.Source, SignalPushed, SignalQueried)
	}
	if p.Source == SignalQueried {
		r.text("query", p.Query)
		r.atLeast("epoch", p.Epoch, 1)
		if p.Value == nil {
			r.text("reason", p.Reason)
		}
	}
	r.instant("observed_at", p.ObservedAt)
	r.instant("expires_at", p.ExpiresAt)
	return r.err()
}

// QueryDigest tells queries apart, in 12 characters. The same query at another
// interval is another one: rules that count its answers would count too many.
func QueryDigest(query string, interval Duration) string {
	return ID("query", query, interval.String())[:12]
}

// ValidateSignal checks the name of a signal: letters, digits and "_.:/-", so that
// names of Prometheus and of most other systems are.
func ValidateSignal(name string) error {
	expected := fmt.Sprintf("expected letters, digits and any of _.:/-, at most %d of them", MaxSignalName)
	if name == "" || len(name) > MaxSignalName {
		return fmt.Errorf("name: is %q, %s", name[:min(len(name), 2*MaxSignalName)], expected)
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '_', c == '.', c == ':', c == '/', c == '-':
		default:
			return fmt.Errorf("name: is %q, %s", name, expected)
		}
	}
	return nil
}

// MetricRule makes a number of nodes of a metric. Exactly one of Metric, Signal and
// Query is its source, and exactly one of the strategies is set.
type MetricRule struct {
	Name        string   `json:"name"`
	Pool        string   `json:"pool"`
	Metric      string   `json:"metric,omitempty"`       // of the snapshot: cpu-requests, memory-requests, cpu-usage, memory-usage or pending-pods
	Signal      string   `json:"signal,omitempty"`       // name of a pushed value
	Query       string   `json:"query,omitempty"`        // PromQL, which the collector asks
	Interval    Duration `json:"interval"`               // between two queries, or two points of a metric
	StaleAfter  Duration `json:"stale_after"`            // an older value is unknown
	MayAdd      bool     `json:"may_add,omitempty"`      // nodes
	MayRemove   bool     `json:"may_remove,omitempty"`   //
	PassThrough bool     `json:"pass_through,omitempty"` // as many nodes as the metric says
	Fixed       *int     `json:"fixed,omitempty"`        // so many nodes, whatever it says
	// TargetValue: ceil(nodes × metric / target).
	TargetValue *TargetValue `json:"target_value,omitempty"`
	// Threshold: while enough points lie within bounds.
	Threshold *MetricThreshold `json:"threshold,omitempty"`
}

// TargetValue keeps a metric at a target.
type TargetValue struct {
	Target   float64 `json:"target"`
	DeadBand float64 `json:"dead_band"` // share by which the metric may differ from it
}

// MetricThreshold acts while Points of the last Of points are at least AtLeast and
// below Below. One of Delta, Percent and Nodes says what it asks for.
type MetricThreshold struct {
	AtLeast *float64 `json:"at_least,omitempty"`
	Below   *float64 `json:"below,omitempty"`
	Points  int      `json:"points"`
	Of      int      `json:"of"`
	Delta   *int     `json:"delta,omitempty"`   // nodes more, or fewer
	Percent *float64 `json:"percent,omitempty"` // of the nodes that there are, more or fewer
	Nodes   *int     `json:"nodes,omitempty"`   // in all
}
