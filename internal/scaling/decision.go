package scaling

import (
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Result is everything that an evaluation leads to. Slices are in a fixed
// order: decisions by pool, the rest by the order in which it was decided.
type Result struct {
	State     State      `json:"state"`
	Decisions []Decision `json:"decisions,omitempty"`
	Claims    []Claim    `json:"claims,omitempty"`
	Drains    []Order    `json:"drains,omitempty"`
	Cancels   []Order    `json:"cancels,omitempty"`
	Pools     []PoolSize `json:"pools,omitempty"`
	// Placements are where the simulation put the pods that wait, in its order:
	// each is possible once those before it have come to pass. They explain the
	// decisions and bind nobody; the scheduler may choose otherwise.
	Placements []Placement `json:"-"`
	// PendingPods counts the pods that wait for a node, those that no node of
	// ours could help included.
	PendingPods int `json:"pending_pods"`
	// NextAt is the earliest instant at which something ends by itself: a guard, an
	// alert, a pause, a request, a claim. An evaluation then may say something
	// else, though no fact arrived. Zero: nothing does.
	NextAt time.Time `json:"next_at,omitzero"`
}

// Placement is a pending pod on a node that exists or is to come.
type Placement struct{ Pod, Node string }

// PoolSize is how large a pool is after the evaluation.
type PoolSize struct {
	Pool  string `json:"pool"`
	Nodes int    `json:"nodes"` // existing ones, leaving ones and claims in flight included
	Ready int    `json:"ready"` // those of them that are Ready and stay
}

// Order asks for the cordon or drain of a node, or calls one off.
type Order struct {
	Node       string        `json:"node"`
	Pool       string        `json:"pool,omitempty"`
	ClaimID    string        `json:"claim_id,omitempty"`
	Goal       string        `json:"goal,omitempty"` // of a drain
	DecisionID string        `json:"decision_id"`
	RequestID  string        `json:"request_id,omitempty"`
	Reason     Reason        `json:"reason"`
	Actor      string        `json:"actor,omitempty"`
	NotAfter   time.Time     `json:"not_after,omitzero"`
	Deadline   time.Duration `json:"deadline,omitempty"` // from the start of the drain
	// JobsDeadline is how long pods of Jobs may go on before that.
	JobsDeadline time.Duration `json:"jobs_deadline,omitempty"`
	// Force has a removal go on past the deadline with what is left on the node,
	// budgets aside. Evicts is what may be evicted before.
	Force  bool             `json:"force,omitempty"`
	Evicts evictable.Policy `json:"evicts,omitzero"`
	// Unready says that the node is removed because it is not Ready for too long.
	Unready bool `json:"unready,omitempty"`
}

// Reason is a code for programs and a sentence for people.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Codes of reasons.
const (
	CodeUnschedulablePods  = "UnschedulablePods"  // pods need nodes
	CodeAlert              = "AlertFiring"        // an alert asks
	CodeMetric             = "Metric"             // a metric rule asks
	CodeMetricUnknown      = "MetricUnknown"      // nobody knows what a metric rule asks for
	CodeBelowMin           = "BelowMin"           // the pool is below its minimum
	CodeEmergency          = "Emergency"          // it is because nodes are lost or not Ready for too long
	CodeRequest            = "Requested"          // a person or tool asked
	CodeUnneeded           = "NodeUnneeded"       // utilisation is low and the pods fit elsewhere
	CodeUnready            = "NodeUnready"        // it has not been Ready for too long
	CodeHeadroom           = "Headroom"           // less is free than the pool keeps for pods to come
	CodeNewDemand          = "NewDemand"          // a drain is called off because the node is needed
	CodeSteady             = "Steady"             // nothing proposes anything
	CodeAtMax              = "AtMax"              // more is needed than max allows
	CodeAtMin              = "AtMin"              // less is possible than min allows
	CodePaused             = "Paused"             //
	CodeBackoff            = "Backoff"            // claims failed lately
	CodeCooldown           = "Cooldown"           //
	CodeClaimsInFlight     = "ClaimsInFlight"     // what was asked for is on its way
	CodeRemovalsInFlight   = "RemovalsInFlight"   // as many nodes leave as may at a time
	CodeStabilizing        = "Stabilizing"        // the need was higher within the window
	CodeBudget             = "RemovalBudget"      // a budget of the pool lets no more nodes leave
	CodeFlapping           = "Flapping"           // nodes are needed again soon after a removal
	CodeWouldReturn        = "WouldReturn"        // without the node one would be added again
	CodeRemovalsPerHour    = "RemovalsPerHour"    // as many nodes were removed as may be within an hour
	CodeUnneededTime       = "UnneededTime"       // not unneeded for long enough
	CodeMinLifetime        = "MinLifetime"        // the node is too young
	CodeStartupGrace       = "StartupGrace"       // the program started lately
	CodeTooManyUnready     = "TooManyUnready"     // the fault is elsewhere
	CodeStaleSnapshot      = "StaleSnapshot"      // the picture is incomplete or too old
	CodeNoPoolFits         = "NoPoolFits"         // pods that no pool's node could hold
	CodeNoRemovableNode    = "NoRemovableNode"    // nothing can be removed
	CodeRequestRefused     = "RequestRefused"     // a request that can't come to pass
	CodeRequestDeferred    = "RequestDeferred"    // a request that waits
	CodeRequestExpired     = "RequestExpired"     //
	CodeUnknownPool        = "UnknownPool"        //
	CodeSchedulerUndecided = "SchedulerUndecided" // not marked unschedulable yet
)

// Kinds of rule.
const (
	RuleUnschedulable = "unschedulable"
	RuleAlert         = "alert"
	RuleMetric        = "metric"
	RuleUtilization   = "utilization"
	RuleMinimum       = "minimum"
	RuleRequest       = "request"
	RuleSchedule      = "schedule"
	RuleHeadroom      = "headroom"
	RuleHold          = "hold"
	RuleEmergency     = "emergency"
	RuleRepair        = "repair"
)

// Verdicts of a rule besides Up and Down.
const (
	None    = "none"
	Unknown = "unknown"
)

// Rule is what one rule said.
type Rule struct {
	Rule      string `json:"rule"`
	Kind      string `json:"kind"`
	Value     string `json:"value,omitempty"`
	Threshold string `json:"threshold,omitempty"`
	Verdict   string `json:"verdict"`
	Delta     int    `json:"delta,omitempty"`
	Message   string `json:"message,omitempty"`
}

// Guard is what holds a proposal back, or capped it.
type Guard struct {
	Guard   string    `json:"guard"`
	Value   string    `json:"value,omitempty"`
	Message string    `json:"message"`
	Until   time.Time `json:"until,omitzero"`  // when it lifts by itself
	Lifts   string    `json:"lifts,omitempty"` // how it lifts otherwise
	code    string
}

// Alternative is a candidate that was not taken, and why.
type Alternative struct {
	Subject string `json:"subject"` // "node NAME", "pod NS/NAME" or "pool NAME"
	Reason  Reason `json:"reason"`
	Fix     string `json:"fix,omitempty"`
	// Pods are the pending pods of which it is said, the subject among them: they
	// are alike for the scheduler. A decision names at most maxNamed.
	Pods  []string `json:"pods,omitempty"`
	quiet bool     // its coming and going is not worth saying by itself
}

// Decision is the verdict on one pool with everything that led to it.
type Decision struct {
	ID           string        `json:"id"`
	Pool         string        `json:"pool,omitempty"`
	Verdict      string        `json:"verdict"`
	Reason       Reason        `json:"reason"`
	Delta        int           `json:"delta,omitempty"`
	Nodes        []string      `json:"nodes,omitempty"`
	Size         int           `json:"size"` // before, claims in flight included
	Min          int           `json:"min"`
	Max          int           `json:"max"`
	Rules        []Rule        `json:"rules,omitempty"`
	Guards       []Guard       `json:"guards,omitempty"`
	Rejected     []Alternative `json:"rejected,omitempty"`
	Overruled    []Reason      `json:"overruled,omitempty"`
	WouldChange  []string      `json:"would_change,omitempty"`
	Pods         []string      `json:"pods,omitempty"`
	PodCount     int           `json:"pod_count,omitempty"`
	Inputs       []string      `json:"inputs,omitempty"` // ids of the events it rests on
	Requests     []string      `json:"requests,omitempty"`
	Actor        string        `json:"actor,omitempty"`
	TriggerSince time.Time     `json:"trigger_since,omitzero"`
	// Changed says that this verdict differs from the last one of the pool, or
	// answers a request: it is to be published. Up and down always are.
	Changed bool `json:"changed,omitempty"`
}
