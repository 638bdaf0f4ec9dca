package events

import (
	"fmt"
	"time"
)

// Types of the events that sources publish.
const (
	TypeAlertReceived    = TypePrefix + "alert.received.v1"
	TypeSignalReceived   = TypePrefix + "signal.received.v1"
	TypeScaleRequested   = TypePrefix + "scale.requested.v1"
	TypePoolPaused       = TypePrefix + "pool.paused.v1"
	TypePoolResumed      = TypePrefix + "pool.resumed.v1"
	TypePoolBackoffReset = TypePrefix + "pool.backoff.reset.v1"
	TypeConfigApplied    = TypePrefix + "config.applied.v1"
	TypeConfigRejected   = TypePrefix + "config.rejected.v1"
	TypeAccessRefused    = TypePrefix + "access.refused.v1"
)

// Alert statuses, as Alertmanager writes them.
const (
	AlertFiring   = "firing"
	AlertResolved = "resolved"
)

// AlertReceived is one alert of an Alertmanager webhook. A body is never the
// full state of Alertmanager, so each alert stands alone and is level state
// until it is resolved or expires.
type AlertReceived struct {
	Status       string            `json:"status"` // firing or resolved
	Fingerprint  string            `json:"fingerprint"`
	StartsAt     time.Time         `json:"starts_at"`
	EndsAt       time.Time         `json:"ends_at,omitzero"` // absent while firing
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	GeneratorURL string            `json:"generator_url,omitempty"`
	GroupKey     string            `json:"group_key,omitempty"`
	Receiver     string            `json:"receiver,omitempty"`
	ReceivedAt   time.Time         `json:"received_at"`
	ExpiresAt    time.Time         `json:"expires_at"`
	// TruncatedAlerts is how many alerts of the same body Alertmanager left out.
	TruncatedAlerts int `json:"truncated_alerts,omitempty"`
}

// EventType implements Payload.
func (AlertReceived) EventType() string { return TypeAlertReceived }

// Validate implements Payload.
func (p AlertReceived) Validate() error {
	var r required
	r.oneOf("status", p.Status, AlertFiring, AlertResolved)
	r.text("fingerprint", p.Fingerprint)
	r.instant("starts_at", p.StartsAt)
	r.instant("received_at", p.ReceivedAt)
	r.instant("expires_at", p.ExpiresAt)
	return r.err()
}

// Actions of a scale.requested.
const (
	ActionUp       = "up"       // add Count nodes to Pool
	ActionDown     = "down"     // remove Count nodes from Pool
	ActionTo       = "to"       // bring Pool to Count nodes
	ActionDrain    = "drain"    // cordon and empty Node, leave it
	ActionRemove   = "remove"   // drain Node and remove it
	ActionCordon   = "cordon"   // make Node unschedulable, leave its pods
	ActionUncordon = "uncordon" // undo a cordon or drain of Node
)

// ScaleRequested is a manual action. It is an input of decision, which checks
// min, max, budget and pauses; the event's id identifies the request.
type ScaleRequested struct {
	Action    string    `json:"action"`
	Pool      string    `json:"pool,omitempty"`
	Node      string    `json:"node,omitempty"`
	Count     int       `json:"count,omitempty"`
	Actor     string    `json:"actor"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // of the request: when it is dropped if it is not met; default an hour after it was made
	// HoldUntil is of the effect, for up and to: until then the pool keeps the
	// nodes. Absent: they go as soon as nobody needs them.
	HoldUntil time.Time `json:"hold_until,omitzero"`
	// Override asks to act despite a pause or a cooldown; min and max always hold.
	Override bool `json:"override,omitempty"`
}

// EventType implements Payload.
func (ScaleRequested) EventType() string { return TypeScaleRequested }

// Validate implements Payload.
func (p ScaleRequested) Validate() error {
	var r required
	r.oneOf("action", p.Action, ActionUp, ActionDown, ActionTo, ActionDrain, ActionRemove, ActionCordon, ActionUncordon)
	switch p.Action {
	case ActionUp, ActionDown:
		r.check(ValidatePool(p.Pool))
		r.atLeast("count", int64(p.Count), 1)
	case ActionTo:
		r.check(ValidatePool(p.Pool))
		r.atLeast("count", int64(p.Count), 0)
	case ActionDrain, ActionRemove, ActionCordon, ActionUncordon:
		_, err := EncodeKey(p.Node)
		r.check(err)
	}
	r.text("actor", p.Actor)
	r.text("reason", p.Reason)
	if !p.HoldUntil.IsZero() && p.Action != ActionUp && p.Action != ActionTo {
		r.check(fmt.Errorf("hold_until: is for the actions %s and %s", ActionUp, ActionTo))
	}
	return r.err()
}

// PoolPaused stops every change of a pool until it is resumed or Until.
type PoolPaused struct {
	Pool   string    `json:"pool"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until,omitzero"` // absent: until resumed
}

// EventType implements Payload.
func (PoolPaused) EventType() string { return TypePoolPaused }

// Validate implements Payload.
func (p PoolPaused) Validate() error { return poolAction(p.Pool, p.Actor, p.Reason) }

// PoolResumed ends a pause.
type PoolResumed struct {
	Pool   string `json:"pool"`
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
}

// EventType implements Payload.
func (PoolResumed) EventType() string { return TypePoolResumed }

// Validate implements Payload.
func (p PoolResumed) Validate() error { return poolAction(p.Pool, p.Actor, p.Reason) }

// PoolBackoffReset ends a pool's backoff.
type PoolBackoffReset struct {
	Pool   string `json:"pool"`
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
}

// EventType implements Payload.
func (PoolBackoffReset) EventType() string { return TypePoolBackoffReset }

// Validate implements Payload.
func (p PoolBackoffReset) Validate() error { return poolAction(p.Pool, p.Actor, p.Reason) }

func poolAction(pool, actor, reason string) error {
	var r required
	r.check(ValidatePool(pool))
	r.text("actor", actor)
	r.text("reason", reason)
	return r.err()
}

// Matcher is one label matcher in Alertmanager's terms.
type Matcher struct {
	Label string `json:"label"`
	Op    string `json:"op"` // =, !=, =~ (anchored RE2) or !~
	Value string `json:"value"`
}

// AlertRule says what an alert asks for.
type AlertRule struct {
	Name      string    `json:"name"`
	Matchers  []Matcher `json:"matchers"`
	Pool      string    `json:"pool"`
	Direction string    `json:"direction"` // up or down
	Amount    int       `json:"amount"`    // nodes to add while the alert fires; for down, how many may go at a time
}

// RemovalBudget is how many nodes of a pool may leave at a time, always or within
// windows.
type RemovalBudget struct {
	Nodes    string   `json:"nodes"`              // a number, or a share such as 10%
	Schedule string   `json:"schedule,omitempty"` // when a window begins, as cron writes it; absent: always
	Duration Duration `json:"duration,omitempty"` // of a window
	Timezone string   `json:"timezone,omitempty"` // of the schedule; absent: UTC
}

// Headroom is room that a pool keeps for pods that are to come.
type Headroom struct {
	Pods    int       `json:"pods,omitempty"` // of size Pod that fit beside all others
	Pod     Resources `json:"pod"`
	Percent int       `json:"percent,omitempty"` // of the pool's allocatable CPU and memory that are free
}

// PoolSchedule sets limits of a pool within windows. Of several open ones the
// highest min and the lowest max count.
type PoolSchedule struct {
	Name     string   `json:"name"`
	Schedule string   `json:"schedule"`           // when a window begins, as cron writes it
	Duration Duration `json:"duration"`           // of a window
	Timezone string   `json:"timezone,omitempty"` // of the schedule; absent: UTC
	Min      *int     `json:"min,omitempty"`      // absent: the pool's
	Max      *int     `json:"max,omitempty"`
	// Headroom is instead of the pool's; of several open schedules each is kept.
	Headroom *Headroom `json:"headroom,omitempty"`
}

// PoolPolicy is the policy of one pool. Every duration is positive; the
// defaults are the configuration's.
type PoolPolicy struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
	// RenamedFrom are names that the pool had: nodes of these are its nodes.
	RenamedFrom []string          `json:"renamed_from,omitempty"`
	Min         int               `json:"min"`
	Max         int               `json:"max"`
	Size        Resources         `json:"size"`               // allocatable of a new node
	Priority    int               `json:"priority,omitempty"` // rank among pools, higher is preferred
	Price       float64           `json:"price,omitempty"`    // of a node, an hour, in any currency
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []Taint           `json:"taints,omitempty"`
	// Headroom is room for pods that are to come; absent: none.
	Headroom *Headroom `json:"headroom,omitempty"`
	// Schedules set other limits within windows.
	Schedules []PoolSchedule `json:"schedules,omitempty"`
	// StartupTaints are taints that nodes register with, too, and that something
	// on them takes away when it is ready.
	StartupTaints []Taint `json:"startup_taints,omitempty"`

	ScaleUpCooldown Duration `json:"scale_up_cooldown"` // between two scale-ups by alert
	// ReplaceUnreadyAfter is when the minimum no longer counts on a node that is
	// not Ready; absent: never.
	ReplaceUnreadyAfter Duration `json:"replace_unready_after,omitempty"`
	// RepairAfter is when a node that is not Ready is removed; absent: never.
	RepairAfter          Duration `json:"repair_after,omitempty"`
	ScaleDownAfterAdd    Duration `json:"scale_down_after_add"`  // no removal this long after an addition
	ScaleDownAfterFail   Duration `json:"scale_down_after_fail"` // no removal this long after a failed removal
	ScaleDownCooldown    Duration `json:"scale_down_cooldown"`   // between two removals
	Stabilization        Duration `json:"stabilization"`         // the highest need of this window counts
	UtilizationThreshold float64  `json:"utilization_threshold"` // 0..1, below it a node is unneeded
	Unneeded             Duration `json:"unneeded"`              // how long it must stay so
	MinLifetime          Duration `json:"min_lifetime"`          // of a node, from Ready
	MaxRemovals          int      `json:"max_removals"`          // nodes of the pool leaving at a time
	// RemovalOrder is which node goes first: newest (also when absent),
	// least-utilized or cheapest-to-move.
	RemovalOrder string `json:"removal_order,omitempty"`
	// RemovalBudgets limit further how many nodes leave at a time; the lowest counts.
	RemovalBudgets []RemovalBudget `json:"removal_budgets,omitempty"`
	// FlapCount times within FlapFreeze that a node is needed within FlapWithin of
	// a removal end removals for FlapFreeze; 0 or absent: never.
	FlapCount        int      `json:"flap_count,omitempty"`
	FlapWithin       Duration `json:"flap_within,omitempty"`
	FlapFreeze       Duration `json:"flap_freeze,omitempty"`
	RegisterDeadline Duration `json:"register_deadline"` // from the start of the machine to Ready
	ClaimExpiry      Duration `json:"claim_expiry"`      // a claim not taken up by then is void
	DrainDeadline    Duration `json:"drain_deadline"`    // then see DrainOnDeadline
	// DrainOnDeadline, DrainLocalStorage and DrainUnmanaged are as in NodeDrainRequested.
	DrainOnDeadline   string `json:"drain_on_deadline,omitempty"`
	DrainLocalStorage string `json:"drain_local_storage,omitempty"`
	DrainUnmanaged    string `json:"drain_unmanaged,omitempty"`
	// JobsDeadline is how long pods of Jobs may go on on a node that is to be removed;
	// absent: they are evicted like all others.
	JobsDeadline   Duration `json:"jobs_deadline,omitempty"`
	BackoffInitial Duration `json:"backoff_initial"` // after a failed claim, doubled each time
	BackoffMax     Duration `json:"backoff_max"`
	BackoffReset   Duration `json:"backoff_reset"` // without failure, back to the initial value
}

// Policy is everything of the configuration that decision reads.
type Policy struct {
	Pools      []PoolPolicy `json:"pools"`
	AlertRules []AlertRule  `json:"alert_rules,omitempty"`
	// MetricRules say how many nodes metrics ask for.
	MetricRules []MetricRule `json:"metric_rules,omitempty"`
	// ProtectedNodes are node names that are never drained or removed.
	ProtectedNodes []string `json:"protected_nodes,omitempty"`
	// StartupGrace is how long after start nothing is scaled down.
	StartupGrace Duration `json:"startup_grace"`
	// StaleAfter is the age from which a snapshot no longer counts for scale-down.
	StaleAfter Duration `json:"stale_after"`
	// MaxUnreadyFraction (0..1) and MaxUnreadyCount: above both, nothing is scaled.
	MaxUnreadyFraction float64 `json:"max_unready_fraction"`
	MaxUnreadyCount    int     `json:"max_unready_count"`
	// ExpendableBelow is the priority under which a pod neither asks for a node
	// nor keeps one; absent (earlier versions): -10.
	ExpendableBelow *int32 `json:"expendable_below,omitempty"`
	// MaxRemovalsPerHour limits removals in the whole cluster; 0 or absent: any number.
	MaxRemovalsPerHour int `json:"max_removals_per_hour,omitempty"`
	// PoolChoice chooses between pools that could serve the same pods.
	PoolChoice []string `json:"pool_choice,omitempty"`
}

// ConfigApplied is the policy of one cluster from this event on. It is
// published at every start and change; its id derives from the digest and the
// sequence of the previous one, so that A, B, A are three events.
type ConfigApplied struct {
	Digest   string    `json:"digest"`   // of Policy and DryRun
	Previous uint64    `json:"previous"` // sequence of the config.applied it follows, 0 for the first
	DryRun   bool      `json:"dry_run,omitempty"`
	Version  string    `json:"version"` // of the program
	Start    time.Time `json:"start"`   // when the process that applied it started
	Policy   Policy    `json:"policy"`
	// Promotion is why the policy is another than the configuration file's; absent:
	// it is the file's.
	Promotion *Promotion `json:"promotion,omitempty"`
}

// EventType implements Payload.
func (ConfigApplied) EventType() string { return TypeConfigApplied }

// Validate implements Payload.
func (p ConfigApplied) Validate() error {
	var r required
	r.text("digest", p.Digest)
	r.instant("start", p.Start)
	return r.err()
}

// ConfigProblem is one error in a configuration file.
type ConfigProblem struct {
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Key      string `json:"key,omitempty"`
	Value    string `json:"value,omitempty"`
	Expected string `json:"expected,omitempty"`
	Message  string `json:"message"`
}

// ConfigRejected is a configuration that was refused.
type ConfigRejected struct {
	Problems []ConfigProblem `json:"problems"`
}

// EventType implements Payload.
func (ConfigRejected) EventType() string { return TypeConfigRejected }

// Validate implements Payload.
func (p ConfigRejected) Validate() error {
	var r required
	r.atLeast("problems", int64(len(p.Problems)), 1)
	return r.err()
}

// AccessRefused counts the refused calls of one kind within an interval.
type AccessRefused struct {
	Reason  string    `json:"reason"` // e.g. "no token", "unknown token"
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Remotes []string  `json:"remotes"` // addresses, at most ten
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// EventType implements Payload.
func (AccessRefused) EventType() string { return TypeAccessRefused }

// Validate implements Payload.
func (p AccessRefused) Validate() error {
	var r required
	r.text("reason", p.Reason)
	r.atLeast("count", int64(p.Count), 1)
	return r.err()
}
