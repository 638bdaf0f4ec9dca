package scaling

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// State is what one evaluation leaves to the next. The zero value is the state
// of a cluster nothing is known of. It is a value: Apply and Evaluate return
// a new one and leave the old one alone.
type State struct {
	Now time.Time `json:"now,omitzero"` // of the last input; never goes back
	// StartedAt is when the program started, for the startup grace.
	StartedAt time.Time `json:"started_at,omitzero"`
	// TrustedAt is the last evaluation whose data counted for scale-down. After
	// a gap the unneeded clocks start again.
	TrustedAt time.Time `json:"trusted_at,omitzero"`

	Alerts map[string]Alert `json:"alerts,omitempty"` // by fingerprint
	// Signals are the last words about values that a metric rule looks at, by source
	// and name; Metrics is what is remembered of the rules, by name.
	Signals  map[string]Signal      `json:"signals,omitempty"`
	Metrics  map[string]MetricState `json:"metrics,omitempty"`
	Requests []Request              `json:"requests,omitempty"` // in the order they were made
	Holds    []Hold                 `json:"holds,omitempty"`    // in the order they began
	Pauses   map[string]Pause       `json:"pauses,omitempty"`   // by pool
	Claims   map[string]Claim       `json:"claims,omitempty"`   // in flight, by node
	Drains   map[string]Drain       `json:"drains,omitempty"`   // in flight, by node
	Unneeded map[string]time.Time   `json:"unneeded,omitempty"` // since when, by node
	Pools    map[string]PoolState   `json:"pools,omitempty"`
	// Unready is for how long nodes have not been Ready, by node: see repair.
	Unready map[string]Unwell `json:"unready,omitempty"`
	// Removals are when the removals of nodes were decided within the last hour,
	// oldest first, as many as count. What was called off is not among them.
	Removals []time.Time `json:"removals,omitempty"`
}

// PoolState is what is remembered of one pool.
type PoolState struct {
	AlertUpAt       time.Time `json:"alert_up_at,omitzero"`       // last scale-up by alert
	MetricUpAt      time.Time `json:"metric_up_at,omitzero"`      // last scale-up by metric
	AddedAt         time.Time `json:"added_at,omitzero"`          // last addition
	RemovedAt       time.Time `json:"removed_at,omitzero"`        // last removal decided
	RemovalFailedAt time.Time `json:"removal_failed_at,omitzero"` // last removal that was undone
	// ShrunkAt is when the last removal that is over was decided without anybody
	// asking for it, as long as the pool needed no node again.
	ShrunkAt    time.Time `json:"shrunk_at,omitzero"`
	Flaps       []Flap    `json:"flaps,omitempty"` // oldest first
	FrozenUntil time.Time `json:"frozen_until,omitzero"`
	Backoff     Backoff   `json:"backoff,omitzero"`
	// Needs are the nodes that the pool needed within the stabilization window,
	// oldest first, each lower than the one before: the first is the highest.
	Needs []Need `json:"needs,omitempty"`
	// MetricNeeds are those that its metric rules that may remove asked for.
	MetricNeeds []Need `json:"metric_needs,omitempty"`
	// Verdict is what was last said of the pool, to say the next only when it differs.
	Verdict string `json:"verdict,omitempty"`
	// Unserved are the pods of which was last said why they get no node here: to
	// say it of others when they come. UnservedAt is when.
	Unserved   []string  `json:"unserved,omitempty"`
	UnservedAt time.Time `json:"unserved_at,omitzero"`
}

// Flap is a need for a node soon after a removal.
type Flap struct {
	At    time.Time     `json:"at"`
	After time.Duration `json:"after"` // the removal
}

// Need is how many nodes a pool needed at an instant.
type Need struct {
	At    time.Time `json:"at"`
	Nodes int       `json:"nodes"`
}

// Backoff holds a pool back after failed claims.
type Backoff struct {
	Since    time.Time     `json:"since,omitzero"` // of the last failure
	Until    time.Time     `json:"until,omitzero"`
	Duration time.Duration `json:"duration,omitempty"`
	Failures int           `json:"failures,omitempty"` // in a row
	Message  string        `json:"message,omitempty"`  // of the last failure
}

// Alert is an alert as level state: it fires until it is resolved or expires.
type Alert struct {
	Labels    map[string]string `json:"labels"`
	StartsAt  time.Time         `json:"starts_at"`
	ExpiresAt time.Time         `json:"expires_at"`
	EventID   string            `json:"event_id"`
	// Resolved alerts are kept until they expire, so that a late copy of the
	// firing one does not fire again.
	Resolved bool `json:"resolved,omitempty"`
}

// Request is what a person or tool asked for and what has not come to pass yet.
type Request struct {
	ID        string    `json:"id"`
	Action    string    `json:"action"`
	Pool      string    `json:"pool,omitempty"`
	Node      string    `json:"node,omitempty"`
	Count     int       `json:"count,omitempty"` // what is left of it, for up and down
	Actor     string    `json:"actor"`
	Reason    string    `json:"reason"`
	Override  bool      `json:"override,omitempty"`
	At        time.Time `json:"at"`
	ExpiresAt time.Time `json:"expires_at"`          // of the request: by then it has come to pass or is dropped
	HoldUntil time.Time `json:"hold_until,omitzero"` // of its effect, for up and to: until then the nodes are kept

	code   string // of the reason, where nobody asked; empty: CodeAlert
	repair bool   // of a node that is not Ready: the minimum does not count on it
}

// Pause stops every change of a pool.
type Pause struct {
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // zero: until resumed
}

// Why a claim was made.
const (
	CauseRequest  = "request"
	CausePods     = "unschedulable"
	CauseAlert    = "alert"
	CauseMetric   = "metric"
	CauseMinimum  = "minimum"
	CauseHeadroom = "headroom"
)

// Claim is a node that was asked for and is not Ready yet: capacity, until its
// record says otherwise or it expires.
type Claim struct {
	ID         string    `json:"id"`
	Node       string    `json:"node"`
	Pool       string    `json:"pool"`
	DecisionID string    `json:"decision_id"`
	Cause      string    `json:"cause"`
	ClaimedAt  time.Time `json:"claimed_at"`
	NotAfter   time.Time `json:"not_after"`
	Seen       bool      `json:"seen,omitempty"` // its record has been seen
}

// Drain is a removal that was asked for and is not over yet. Cordons and
// drains that leave the node are not kept: their record says all.
type Drain struct {
	Node       string    `json:"node"`
	Pool       string    `json:"pool"`
	DecisionID string    `json:"decision_id"`
	RequestID  string    `json:"request_id,omitempty"` // of the person, who alone calls it off
	DecidedAt  time.Time `json:"decided_at"`
	NotAfter   time.Time `json:"not_after"`
	// Previous is the request id that the drain record bore when this one was
	// decided: as long as it still does, this drain has not been taken up.
	Previous string `json:"previous,omitempty"`
	Seen     bool   `json:"seen,omitempty"`
	// CancelledAt is when it was called off; the node is then about to be
	// capacity again.
	CancelledAt time.Time `json:"cancelled_at,omitzero"`
	// Counted says that a node was needed again since: see neededAgain.
	Counted bool `json:"counted,omitempty"`
}

func (s State) clone() State {
	s.Alerts = cloneMap(s.Alerts)
	s.Signals = cloneMap(s.Signals)
	s.Metrics = cloneMap(s.Metrics)
	s.Requests = slices.Clone(s.Requests)
	s.Holds = slices.Clone(s.Holds)
	s.Pauses = cloneMap(s.Pauses)
	s.Claims = cloneMap(s.Claims)
	s.Drains = cloneMap(s.Drains)
	s.Unneeded = cloneMap(s.Unneeded)
	s.Unready = cloneMap(s.Unready)
	s.Pools = cloneMap(s.Pools)
	s.Removals = slices.Clone(s.Removals)
	for name, p := range s.Pools {
		p.Needs, p.MetricNeeds, p.Flaps = slices.Clone(p.Needs), slices.Clone(p.MetricNeeds), slices.Clone(p.Flaps)
		s.Pools[name] = p
	}
	return s
}

func cloneMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// advance returns the instant that counts: time never goes back, whatever the
// clocks of the machines that stamped the events say.
func (s State) advance(now time.Time) time.Time {
	now = now.UTC().Round(0)
	if now.Before(s.Now) {
		return s.Now
	}
	return now
}

// Encode returns the state as canonical JSON: keys sorted, times in UTC.
func (s State) Encode() ([]byte, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return data, nil
}

// Digest identifies the state: the SHA-256 of its canonical JSON in hex. It is
// empty for a state that cannot be encoded, such as a time beyond the year 9999.
func (s State) Digest() string {
	data, err := s.Encode()
	if err != nil {
		return ""
	}
	return hash(string(data))
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
