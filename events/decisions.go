package events

import "time"

// Types of the events that decision publishes about a whole cluster.
const (
	TypeScaleupDecided       = TypePrefix + "scaleup.decided.v1"
	TypeScaledownDecided     = TypePrefix + "scaledown.decided.v1"
	TypeScaleHeld            = TypePrefix + "scale.held.v1"
	TypePoolFrozen           = TypePrefix + "pool.frozen.v1"
	TypePolicyPromoted       = TypePrefix + "policy.promoted.v1"
	TypeDecisionCheckpointed = TypePrefix + "decision.checkpointed.v1"
)

// Reason is a code for programs and a sentence for people.
type Reason struct {
	Code    string `json:"code"` // CamelCase, e.g. "UnschedulablePods", "AtMax"
	Message string `json:"message"`
}

// RuleResult is what one rule said.
type RuleResult struct {
	Rule      string `json:"rule"` // its name in the configuration, or the trigger's
	Kind      string `json:"kind"` // unschedulable, alert, utilization, minimum, request, schedule, headroom, hold
	Value     string `json:"value,omitempty"`
	Threshold string `json:"threshold,omitempty"`
	Verdict   string `json:"verdict"` // up, down, none or unknown
	Delta     int    `json:"delta,omitempty"`
	Message   string `json:"message,omitempty"`
}

// GuardResult is a guard that holds a decision back, or capped it.
type GuardResult struct {
	Guard   string    `json:"guard"` // min, max, cooldown, stabilization, ...
	Value   string    `json:"value,omitempty"`
	Message string    `json:"message"`
	Until   time.Time `json:"until,omitzero"` // when it lifts by itself
	Lifts   string    `json:"lifts,omitempty"`
}

// Alternative is a candidate that was not taken, and why.
type Alternative struct {
	Subject string `json:"subject"` // node, pod or pool
	Reason  Reason `json:"reason"`
	Fix     string `json:"fix,omitempty"` // what would have to change
	// Pods are the pending pods of which it is said, ns/name: alike for the
	// scheduler, the subject among them. A decision names at most 50.
	Pods []string `json:"pods,omitempty"`
}

// Decision is the verdict on one pool with everything that led to it.
type Decision struct {
	ID           string        `json:"id"`
	Pool         string        `json:"pool"`
	Verdict      string        `json:"verdict"` // up, down or held
	Reason       Reason        `json:"reason"`
	Delta        int           `json:"delta,omitempty"` // nodes added (positive) or removed (negative)
	Nodes        []string      `json:"nodes,omitempty"` // the nodes claimed or to be removed
	Size         int           `json:"size"`            // of the pool before, claims in flight included
	Min          int           `json:"min"`
	Max          int           `json:"max"`
	Rules        []RuleResult  `json:"rules,omitempty"`
	Guards       []GuardResult `json:"guards,omitempty"`
	Rejected     []Alternative `json:"rejected,omitempty"`
	Overruled    []Reason      `json:"overruled,omitempty"` // proposals that a stronger one or a cap overruled
	WouldChange  []string      `json:"would_change,omitempty"`
	Pods         []string      `json:"pods,omitempty"` // the pods it serves, ns/name, at most 50
	PodCount     int           `json:"pod_count,omitempty"`
	Inputs       []string      `json:"inputs,omitempty"` // ids of the events it rests on
	Requests     []string      `json:"requests,omitempty"`
	Actor        string        `json:"actor,omitempty"` // of the request it follows
	Policy       string        `json:"policy"`          // digest of the policy
	StateBefore  string        `json:"state_before"`    // digests of decision's state
	StateAfter   string        `json:"state_after"`
	EvaluatedAt  time.Time     `json:"evaluated_at"` // stream time
	Version      string        `json:"version,omitempty"`
	TriggerSince time.Time     `json:"trigger_since,omitzero"` // when the need arose, for latencies
}

func (d Decision) validate(verdict string) error {
	var r required
	r.text("id", d.ID)
	// A refused request may name a node that belongs to no pool.
	if d.Pool != "" || verdict != VerdictHeld || len(d.Requests) == 0 {
		r.check(ValidatePool(d.Pool))
	}
	r.oneOf("verdict", d.Verdict, verdict)
	r.text("reason.code", d.Reason.Code)
	r.text("reason.message", d.Reason.Message)
	r.instant("evaluated_at", d.EvaluatedAt)
	return r.err()
}

// Verdicts of a Decision.
const (
	VerdictUp   = "up"
	VerdictDown = "down"
	VerdictHeld = "held"
)

// ScaleupDecided says that nodes are added to a pool.
type ScaleupDecided struct{ Decision }

// EventType implements Payload.
func (ScaleupDecided) EventType() string { return TypeScaleupDecided }

// Validate implements Payload.
func (p ScaleupDecided) Validate() error { return p.validate(VerdictUp) }

// ScaledownDecided says that nodes of a pool are drained and removed.
type ScaledownDecided struct{ Decision }

// EventType implements Payload.
func (ScaledownDecided) EventType() string { return TypeScaledownDecided }

// Validate implements Payload.
func (p ScaledownDecided) Validate() error { return p.validate(VerdictDown) }

// ScaleHeld says that a pool stays as it is. It is published when the reason
// changes, not at every evaluation.
type ScaleHeld struct{ Decision }

// EventType implements Payload.
func (ScaleHeld) EventType() string { return TypeScaleHeld }

// Validate implements Payload.
func (p ScaleHeld) Validate() error { return p.validate(VerdictHeld) }

// PoolFrozen says that a pool flaps and nothing is changed until Until.
type PoolFrozen struct {
	Pool   string    `json:"pool"`
	Reason Reason    `json:"reason"`
	Until  time.Time `json:"until,omitzero"`
}

// EventType implements Payload.
func (PoolFrozen) EventType() string { return TypePoolFrozen }

// Validate implements Payload.
func (p PoolFrozen) Validate() error { return ValidatePool(p.Pool) }

// PolicyPromoted says that a shadow policy became the active one.
type PolicyPromoted struct {
	Digest string `json:"digest"`
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
	// Shadow is the id of the shadow that it was, Replaced the digest of the policy
	// before.
	Shadow   string `json:"shadow,omitempty"`
	Replaced string `json:"replaced,omitempty"`
}

// EventType implements Payload.
func (PolicyPromoted) EventType() string { return TypePolicyPromoted }

// Validate implements Payload.
func (p PolicyPromoted) Validate() error {
	var r required
	r.text("digest", p.Digest)
	r.text("actor", p.Actor)
	return r.err()
}

// DecisionCheckpointed is the full state of decision.
type DecisionCheckpointed struct {
	State       Raw       `json:"state"`
	StateDigest string    `json:"state_digest"`
	Snapshot    uint64    `json:"snapshot"` // sequence of the full snapshot it follows
	Config      uint64    `json:"config"`   // sequence of the config.applied in force
	Policy      string    `json:"policy"`   // its digest
	At          time.Time `json:"at"`       // stream time
	Version     string    `json:"version"`  // of the program
}

// EventType implements Payload.
func (DecisionCheckpointed) EventType() string { return TypeDecisionCheckpointed }

// Validate implements Payload.
func (p DecisionCheckpointed) Validate() error {
	var r required
	r.text("state_digest", p.StateDigest)
	r.instant("at", p.At)
	r.atLeast("state", int64(len(p.State)), 2)
	return r.err()
}
