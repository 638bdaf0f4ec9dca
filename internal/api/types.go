package api

import (
	"encoding/json"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Cluster is the state of one cluster.
type Cluster struct {
	Name          string    `json:"name"`
	DryRun        bool      `json:"dry_run,omitempty" doc:"Decisions are recorded and nothing acts on them"`
	ServerVersion string    `json:"server_version,omitempty"`
	Nodes         int       `json:"nodes"`
	ReadyNodes    int       `json:"ready_nodes"`
	Pods          int       `json:"pods"`
	PendingPods   int       `json:"pending_pods" doc:"Pods that the scheduler finds no node for"`
	SnapshotAt    time.Time `json:"snapshot_at,omitzero" doc:"When the state was last known to be current; absent: never"`
	Stale         bool      `json:"stale" doc:"The state is too old to scale down by"`
	StaleAfter    string    `json:"stale_after,omitempty"`
	GraceUntil    time.Time `json:"grace_until,omitzero" doc:"Until then nothing is scaled down after a start"`
	Policy        string    `json:"policy,omitempty" doc:"Digest of the policy in force"`
	PolicyAt      time.Time `json:"policy_at,omitzero"`
	Problem       string    `json:"problem,omitempty" doc:"Why the state is not known"`
	Parked        []Parked  `json:"parked,omitempty" doc:"Nodes that a handler does not act on"`
	Removals      *Removals `json:"removals,omitempty" doc:"Absent: any number of nodes may be removed within an hour"`
	Promoted      *Promoted `json:"promoted,omitempty" doc:"Why the policy in force is another than the configuration file's"`
	Shadow        *Shadow   `json:"shadow,omitempty" doc:"The candidate policy that is judged beside the one in force"`
}

// Removals is how much of policy.max_removals_per_hour is used.
type Removals struct {
	Count int       `json:"count" doc:"Nodes removed, or being removed, within an hour; none that was called off"`
	Limit int       `json:"limit"`
	Until time.Time `json:"until,omitzero" doc:"When the first of them is an hour ago"`
}

// Flaps is how often a pool needed a node again soon after it had removed one.
type Flaps struct {
	Count       int       `json:"count" doc:"Within freeze"`
	Limit       int       `json:"limit" doc:"So many end removals"`
	Within      string    `json:"within" doc:"How soon after a removal"`
	Freeze      string    `json:"freeze" doc:"How long they count, and how long a frozen pool removes none by itself"`
	LastAt      time.Time `json:"last_at,omitzero"`
	FrozenUntil time.Time `json:"frozen_until,omitzero" doc:"Absent: not frozen"`
}

// Promoted is a policy that a person promoted and that the configuration file does
// not say.
type Promoted struct {
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
	File   string `json:"file,omitempty" doc:"Where the candidate was read: its policy belongs into the configuration file"`
}

// Pool is the state of one node pool.
type Pool struct {
	Cluster   string   `json:"cluster"`
	Name      string   `json:"name"`
	Unknown   bool     `json:"unknown,omitempty" doc:"It has nodes, and the policy has no pool of this name: they are capacity, and nothing adds, removes, replaces or cleans up any"`
	Provider  string   `json:"provider"`
	Min       int      `json:"min" doc:"At present, with the schedules that are open and what people asked to be kept"`
	Max       int      `json:"max" doc:"At present, with the schedules that are open"`
	Size      int      `json:"size" doc:"Nodes that count: ready ones and those on their way, not those that leave"`
	Ready     int      `json:"ready"`
	Claims    int      `json:"claims" doc:"Nodes on their way"`
	Leaving   int      `json:"leaving" doc:"Nodes being drained for removal or removed"`
	Schedules []string `json:"schedules,omitempty" doc:"What each open schedule sets, and until when"`
	Holds     []Hold   `json:"holds,omitempty" doc:"What people asked to be kept, and until when"`
	Metrics   []Metric `json:"metrics,omitempty" doc:"Its metric rules, and what they say"`
	Pause     *Pause   `json:"pause,omitempty"`
	Flaps     *Flaps   `json:"flaps,omitempty" doc:"Absent: none lately"`
	// Guards are those of an evaluation of the present, not of the last decision
	// that was published: their times change without being news.
	Guards  []events.GuardResult `json:"guards,omitempty" doc:"What keeps nodes from being added or removed now, with its value and when it lifts"`
	Backoff *Backoff             `json:"backoff,omitempty"`
	Last    *DecisionLine        `json:"last_decision,omitempty"`
}

// Hold is what the pool keeps because somebody asked for it: part of min.
type Hold struct {
	RequestID string    `json:"request_id"`
	Nodes     int       `json:"nodes" doc:"More than there were, or in all"`
	Whole     bool      `json:"whole,omitempty" doc:"Nodes is in all"`
	Until     time.Time `json:"until"`
	Actor     string    `json:"actor"`
	Reason    string    `json:"reason"`
}

// Metric is what a metric rule says.
type Metric struct {
	Rule       string    `json:"rule"`
	Source     string    `json:"source" doc:"What it looks at"`
	Value      *float64  `json:"value" doc:"The last known one; null: none was ever known"`
	MeasuredAt time.Time `json:"measured_at,omitzero" doc:"When that was measured"`
	Unknown    string    `json:"unknown,omitempty" doc:"Why there is no value now"`
	Nodes      *int      `json:"nodes,omitempty" doc:"How many it asks for, or last asked for; absent: none in particular"`
	Verdict    string    `json:"verdict" enum:"up,down,none,unknown"`
	Since      time.Time `json:"since,omitzero" doc:"Since when the verdict is this"`
}

// Pause is why nothing is changed in a pool.
type Pause struct {
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero" doc:"Absent: until it is resumed"`
}

// Backoff is why no node is added to a pool after failures.
type Backoff struct {
	Until    time.Time `json:"until"`
	Failures int       `json:"failures"`
	Message  string    `json:"message,omitempty" doc:"Of the last failure"`
}

// DecisionLine is a decision in one line.
type DecisionLine struct {
	ID      string        `json:"id"`
	EventID string        `json:"event_id"`
	Verdict string        `json:"verdict" enum:"up,down,held"`
	Delta   int           `json:"delta,omitempty"`
	Reason  events.Reason `json:"reason"`
	At      time.Time     `json:"at"`
}

// Node is the state of one node, ours or not.
type Node struct {
	Cluster       string              `json:"cluster"`
	Name          string              `json:"name"`
	Pool          string              `json:"pool,omitempty" doc:"Absent: not ours, capacity only"`
	Phase         string              `json:"phase,omitempty" doc:"Of a node of ours: claimed, created, registered, ready, ..."`
	Since         time.Time           `json:"since,omitzero" doc:"In this phase"`
	Ready         string              `json:"ready,omitempty" doc:"What the API server says: True, False or Unknown; absent: it does not know the node"`
	Unschedulable bool                `json:"unschedulable,omitempty"`
	Pods          int                 `json:"pods"`
	CPURequested  float64             `json:"cpu_requested,omitempty" doc:"Requests / allocatable, 0..1"`
	MemRequested  float64             `json:"memory_requested,omitempty" doc:"Requests / allocatable, 0..1"`
	Version       string              `json:"version,omitempty"`
	CreatedAt     time.Time           `json:"created_at,omitzero"`
	Deadline      time.Time           `json:"deadline,omitzero" doc:"Of this phase"`
	ClaimID       string              `json:"claim_id,omitempty"`
	CorrelationID string              `json:"correlation_id,omitempty"`
	Failure       *events.Failure     `json:"failure,omitempty"`
	Drain         *events.DrainRecord `json:"drain,omitempty"`
	Parked        []Parked            `json:"parked,omitempty" doc:"Handlers that do not act on it"`
	Position      *Position           `json:"position,omitempty" doc:"Where its life is; absent: not ours"`
}

// Position is where the life of a node is: its phase, or that of its drain while one
// is under way.
type Position struct {
	Phase string    `json:"phase" doc:"As in the table of states (docs/reference/lifecycle.md)"`
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero" doc:"Absent: it may last"`
	Next  string    `json:"next,omitempty" doc:"What comes next"`
	Retry *Retry    `json:"retry,omitempty" doc:"What failed and is tried again"`
}

// Retry is a step that failed and is tried again.
type Retry struct {
	Of      string    `json:"of"`
	Attempt int       `json:"attempt" doc:"Failed so far, in a row"`
	Error   string    `json:"error,omitempty" doc:"Of the last attempt"`
	NextAt  time.Time `json:"next_at,omitzero"`
}

// LifeStage is a point that the life of a node has reached.
type LifeStage struct {
	Name    string    `json:"name" doc:"claimed, created, registered, ready, cordoned, drained, removed, ..."`
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds" doc:"Since the point before; 0 for the first"`
	Why     string    `json:"why,omitempty" doc:"Reason, who asked, what was in the way"`
}

// Pod is what the snapshot knows of one pod.
type Pod struct {
	Cluster            string           `json:"cluster"`
	Namespace          string           `json:"namespace"`
	Name               string           `json:"name"`
	Phase              string           `json:"phase"`
	Node               string           `json:"node,omitempty"`
	CreatedAt          time.Time        `json:"created_at,omitzero"`
	UnschedulableSince time.Time        `json:"unschedulable_since,omitzero"`
	Message            string           `json:"message,omitempty" doc:"What the scheduler says"`
	Requests           events.Resources `json:"requests"`
}

// Entry is one event of the log.
type Entry struct {
	Sequence    uint64          `json:"sequence"`
	Incarnation string          `json:"incarnation,omitempty" doc:"Of the stream: sequences of two of them can't be compared"`
	StreamTime  time.Time       `json:"stream_time"`
	Event       json.RawMessage `json:"event" doc:"CloudEvent in JSON"`
	Truncated   bool            `json:"truncated,omitempty" doc:"The data is left out: it is large; ask with full=true"`
}

// LogInfo is what the stream of record holds, and how much of it is audited.
type LogInfo struct {
	Incarnation string    `json:"incarnation"`
	First       uint64    `json:"first" doc:"Sequence of the oldest event that is stored"`
	Last        uint64    `json:"last"`
	FirstTime   time.Time `json:"first_time,omitzero"`
	LastTime    time.Time `json:"last_time,omitzero"`
	Events      uint64    `json:"events"`
	Bytes       uint64    `json:"bytes"`
	Audited     struct {
		Incarnation string `json:"incarnation,omitempty"`
		Sequence    uint64 `json:"sequence" doc:"Everything up to it is in the audit store, or recorded as lost"`
	} `json:"audited"`
}

// Gap is a part of the log that was lost before it was audited.
type Gap struct {
	Incarnation string    `json:"incarnation"`
	From        uint64    `json:"from"`
	To          uint64    `json:"to"`
	At          time.Time `json:"at" doc:"When that was found"`
}

// AuditRecord is one event as the audit store has it.
type AuditRecord struct {
	Incarnation   string          `json:"incarnation"`
	Sequence      uint64          `json:"sequence"`
	StreamTime    time.Time       `json:"stream_time"`
	ID            string          `json:"id"`
	Source        string          `json:"source"`
	Redrive       string          `json:"redrive,omitempty" doc:"Of a copy that was redriven: handler/round/number/sequence where the event first stood"`
	Type          string          `json:"type"`
	Cluster       string          `json:"cluster"`
	Key           string          `json:"key"`
	Pool          string          `json:"pool,omitempty"`
	CorrelationID string          `json:"correlation_id,omitempty"`
	CausationID   string          `json:"causation_id,omitempty"`
	Actor         string          `json:"actor,omitempty"`
	Reason        string          `json:"reason,omitempty"`
	Message       string          `json:"message,omitempty"`
	Event         json.RawMessage `json:"event,omitempty" doc:"CloudEvent in JSON"`
}

// DecisionRecord is a decision with its place in the log.
type DecisionRecord struct {
	events.Decision
	EventID       string    `json:"event_id"`
	Cluster       string    `json:"cluster"`
	CorrelationID string    `json:"correlation_id,omitempty"`
	DryRun        bool      `json:"dry_run,omitempty"`
	StreamTime    time.Time `json:"stream_time"`
}

// Page is one page of a listing. Next, given as cursor, is the following one;
// absent: there is none.
type Page[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty"`
}

// Accepted says which events are durably stored.
type Accepted struct {
	IDs []string `json:"ids"`
}

// Kinds of things that can be explained.
const (
	KindDecision = "decision"
	KindNode     = "node"
	KindPool     = "pool"
	KindPod      = "pod"
	KindAlert    = "alert"
	KindRequest  = "request"
	KindEvent    = "event"
)

// Explanation is everything that is known about why something is as it is.
type Explanation struct {
	Subject   string           `json:"subject"`
	Kind      string           `json:"kind"`
	Cluster   string           `json:"cluster,omitempty"`
	Summary   string           `json:"summary" doc:"The answer in a sentence or two"`
	Pool      *Pool            `json:"pool,omitempty"`
	Node      *Node            `json:"node,omitempty"`
	Pod       *Pod             `json:"pod,omitempty"`
	Decisions []DecisionRecord `json:"decisions,omitempty" doc:"Newest first"`
	Timeline  []AuditRecord    `json:"timeline,omitempty" doc:"What happened, oldest first"`
	Life      []LifeStage      `json:"life,omitempty" doc:"Of a node: the points of its life, oldest first, with how long each took"`
}
