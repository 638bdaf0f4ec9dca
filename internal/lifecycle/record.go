package lifecycle

import "time"

// Taint is a taint that a node registers with.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

// Spec is the node that a claim asks for.
type Spec struct {
	CPUMilli    int64             `json:"cpu_milli"`    // allocatable, thousandths of a core
	MemoryBytes int64             `json:"memory_bytes"` // allocatable, bytes
	MaxPods     int64             `json:"max_pods,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []Taint           `json:"taints,omitempty"`
}

// Node is what provisioning knows of one node: its record.
type Node struct {
	Name     string `json:"name"`
	Pool     string `json:"pool"`
	ClaimID  string `json:"claim_id"`
	Provider string `json:"provider,omitempty"`
	Spec     Spec   `json:"spec,omitzero"`
	// Epoch identifies the log that the claim is recorded in. It is empty for a
	// node that provisioning learned of by its drain alone.
	Epoch string `json:"epoch,omitempty"`

	CorrelationID string `json:"correlation_id,omitempty"`
	CausationID   string `json:"causation_id,omitempty"` // the event that the work under way follows from
	DecisionID    string `json:"decision_id,omitempty"`
	Reason        Reason `json:"reason,omitzero"` // of the claim
	Actor         string `json:"actor,omitempty"`

	Phase    Phase     `json:"phase"`
	Since    time.Time `json:"since,omitzero"`    // in this phase
	Deadline time.Time `json:"deadline,omitzero"` // of this phase

	TriggerSince time.Time `json:"trigger_since,omitzero"` // when the need arose
	DecidedAt    time.Time `json:"decided_at,omitzero"`
	ClaimedAt    time.Time `json:"claimed_at,omitzero"` // when the claim was taken up
	CreatedAt    time.Time `json:"created_at,omitzero"` // when the machine was started
	RegisteredAt time.Time `json:"registered_at,omitzero"`
	ReadyAt      time.Time `json:"ready_at,omitzero"` // first time
	RemovedAt    time.Time `json:"removed_at,omitzero"`

	NotAfter       time.Time     `json:"not_after,omitzero"`
	RegisterWithin time.Duration `json:"register_within,omitempty"`

	// What exists.
	Instance string `json:"instance,omitempty"` // the provider's id of the machine
	Host     string `json:"host,omitempty"`
	Image    string `json:"image,omitempty"`
	UID      string `json:"uid,omitempty"` // of the Node object
	// Early is what the API server said before the start was recorded: the
	// process that started the machine died in between.
	Early *Early `json:"early,omitempty"`

	Creation *Creation `json:"creation,omitempty"`
	// Naming is how far the claim is with a Node that the provider has named, and
	// ClaimedAs under which name the claim of such a node began.
	Naming    *Naming `json:"naming,omitempty"`
	ClaimedAs string  `json:"claimed_as,omitempty"`
	// Suspicion is a report that has to be checked against the world before
	// anything is done about it.
	Suspicion *Suspicion  `json:"suspicion,omitempty"`
	Failure   *Failure    `json:"failure,omitempty"`
	Drained   *AfterDrain `json:"drained,omitempty"`
	Removal   *Removal    `json:"removal,omitempty"`
}

// Creation is the intent to create the machine, written before anything is done.
type Creation struct {
	Operation string    `json:"operation"` // deterministic, one for each claim
	Attempt   int       `json:"attempt"`   // failed so far
	NextAt    time.Time `json:"next_at,omitzero"`
	Starting  bool      `json:"starting,omitempty"` // the machine exists and may have been started
	Adopted   bool      `json:"adopted,omitempty"`
	LastError string    `json:"last_error,omitempty"`
	// Host was chosen for the machine before anything was made there.
	Host string `json:"host,omitempty"`
	// Lease is the epoch of the lease that was taken with the claim, in one write with
	// this intent: its holder knows that nothing has been done yet.
	Lease uint64 `json:"lease,omitempty"`
}

// Naming is a Node object that turned out to be the claim's, by the provider's id.
type Naming struct {
	Node       string    `json:"node"`
	ProviderID string    `json:"provider_id"`
	Said       bool      `json:"said,omitempty"` // the event that makes its record was published
	Attempt    int       `json:"attempt,omitempty"`
	NextAt     time.Time `json:"next_at,omitzero"`
}

// Early is what the API server said before the start was recorded.
type Early struct {
	UID          string    `json:"uid"`
	RegisteredAt time.Time `json:"registered_at,omitzero"`
	ReadyAt      time.Time `json:"ready_at,omitzero"`
}

// Suspicion is a report that has to be checked.
type Suspicion struct {
	Kind     string    `json:"kind"`
	Detail   string    `json:"detail,omitempty"`
	Instance string    `json:"instance,omitempty"`
	At       time.Time `json:"at"`
	Attempt  int       `json:"attempt,omitempty"` // checks that failed so far
	NextAt   time.Time `json:"next_at,omitzero"`
}

// Failure is why a claim failed.
type Failure struct {
	Stage  Phase     `json:"stage"` // in which state
	Reason Reason    `json:"reason"`
	Log    string    `json:"log,omitempty"`
	At     time.Time `json:"at"`
}

// AfterDrain is the drain that a removal follows.
type AfterDrain struct {
	RequestID  string    `json:"request_id"`
	DecisionID string    `json:"decision_id,omitempty"`
	Reason     Reason    `json:"reason,omitzero"`
	Actor      string    `json:"actor,omitempty"`
	DecidedAt  time.Time `json:"decided_at,omitzero"`
	CordonedAt time.Time `json:"cordoned_at,omitzero"`
	DrainedAt  time.Time `json:"drained_at,omitzero"`
}

// Removal is the progress of a removal or clean-up.
type Removal struct {
	Operation string    `json:"operation"` // deterministic: claim and round
	Round     int       `json:"round"`     // 1, and one more each time that something turns up again
	Reason    Reason    `json:"reason,omitzero"`
	StartedAt time.Time `json:"started_at,omitzero"`
	Done      []Stage   `json:"done,omitempty"` // steps done, in order
	DoneAt    time.Time `json:"done_at,omitzero"`
	Attempt   int       `json:"attempt,omitempty"` // of the next step, failed so far
	NextAt    time.Time `json:"next_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

// Object is the name of the node's Node object.
func (n *Node) Object() string {
	if n.Naming != nil {
		return n.Naming.Node
	}
	return n.Name
}

// Steps of a removal, in this order: a restart of the machine in between would
// register the node again, so it is stopped first.
var Steps = []string{"instance-stopped", "node-deleted", "secret-deleted", "instance-deleted"}

// Next returns the step that has to be done next, or "" when all are done.
func (r *Removal) Next() string {
	if r == nil || len(r.Done) >= len(Steps) {
		return ""
	}
	return Steps[len(r.Done)]
}

// Settled reports whether nothing is left to be done for the node, ever: it
// ended, and what it had created is gone.
func (n *Node) Settled() bool {
	return n.Phase.Ended() && n.Suspicion == nil && n.Removal.Next() == ""
}

// SettledAt is since when nothing is left to be done.
func (n *Node) SettledAt() time.Time {
	if n.Removal != nil && n.Removal.DoneAt.After(n.Since) {
		return n.Removal.DoneAt
	}
	return n.Since
}
