package events

import "time"

// DrainRef says which drain of which node an event of draining is about.
type DrainRef struct {
	Node      string    `json:"node"`
	Pool      string    `json:"pool,omitempty"`
	ClaimID   string    `json:"claim_id,omitempty"`
	Goal      string    `json:"goal"`
	RequestID string    `json:"request_id"` // event id of the node.drain.requested
	At        time.Time `json:"at"`
}

func (d DrainRef) validate() error {
	var r required
	_, err := EncodeKey(d.Node)
	r.check(err)
	r.oneOf("goal", d.Goal, GoalCordon, GoalDrain, GoalRemove)
	r.text("request_id", d.RequestID)
	return r.err()
}

// NodeCordoned says that a node takes no new pods.
type NodeCordoned struct {
	DrainRef
	Reason Reason `json:"reason"`
	// Foreseen is what would refuse an eviction now, and may not when its turn comes:
	// disruption budgets that are used up, grace periods longer than the deadline.
	Foreseen []Blocker `json:"foreseen,omitempty"`
}

// EventType implements Payload.
func (NodeCordoned) EventType() string { return TypeNodeCordoned }

// Validate implements Payload.
func (p NodeCordoned) Validate() error { return p.validate() }

// NodeDrainProgressed says that pods were evicted, or that others are waited for.
type NodeDrainProgressed struct {
	DrainRef
	Evicted   []string `json:"evicted"`   // ns/name
	Remaining int      `json:"remaining"` // pods that still have to go
	// WaitingFor are pods of Jobs, ns/name, that may end by themselves until
	// WaitUntil; it is published when they change.
	WaitingFor []string  `json:"waiting_for,omitempty"`
	WaitUntil  time.Time `json:"wait_until,omitzero"`
	// ForcingUntil is set when the deadline has passed and the removal goes on by
	// force: then it is given up.
	ForcingUntil time.Time `json:"forcing_until,omitzero"`
	// Forced are those of Evicted that only a forced removal evicts, and pods that
	// outlived their grace period and are left to the end of the machine.
	Forced []ForcedPod `json:"forced,omitempty"`
}

// ForcedPod is a pod that a removal did not spare, and what would have spared it
// before the deadline.
type ForcedPod struct {
	Pod    string `json:"pod"` // ns/name
	Reason Reason `json:"reason"`
}

// EventType implements Payload.
func (NodeDrainProgressed) EventType() string { return TypeNodeDrainProgressed }

// Validate implements Payload.
func (p NodeDrainProgressed) Validate() error { return p.validate() }

// Blocker is what stands in the way of a drain, and what would help.
type Blocker struct {
	Kind    string `json:"kind"` // PodDisruptionBudget, Terminating, UnmanagedPod, LocalStorage, ...
	Name    string `json:"name"` // of the budget, where there is one: ns/name
	Pod     string `json:"pod"`  // ns/name
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// NodeDrainBlocked says what refuses an eviction. It is published when the
// set of blockers changes, not at every retry.
type NodeDrainBlocked struct {
	DrainRef
	Blockers []Blocker `json:"blockers"`
	Deadline time.Time `json:"deadline,omitzero"` // when the drain is undone
}

// EventType implements Payload.
func (NodeDrainBlocked) EventType() string { return TypeNodeDrainBlocked }

// Validate implements Payload.
func (p NodeDrainBlocked) Validate() error {
	var r required
	r.check(p.validate())
	r.atLeast("blockers", int64(len(p.Blockers)), 1)
	return r.err()
}

// NodeDrained says that no pod is left on the node that had to move. With
// GoalRemove it is the point of no return.
type NodeDrained struct {
	DrainRef
	DecisionID string    `json:"decision_id,omitempty"`
	Reason     Reason    `json:"reason"` // of the request
	Actor      string    `json:"actor,omitempty"`
	Evicted    int       `json:"evicted"`
	DecidedAt  time.Time `json:"decided_at,omitzero"`
	// Forced are all pods that a forced removal did not spare.
	Forced []ForcedPod `json:"forced,omitempty"`
	// Unready says that the node was not Ready for too long, and Left which pods,
	// ns/name, were therefore left on it, at most 100.
	Unready bool     `json:"unready,omitempty"`
	Left    []string `json:"left,omitempty"`
}

// EventType implements Payload.
func (NodeDrained) EventType() string { return TypeNodeDrained }

// Validate implements Payload.
func (p NodeDrained) Validate() error { return p.validate() }

// NodeUncordoned says that a drain or cordon was undone.
type NodeUncordoned struct {
	DrainRef
	Reason   Reason    `json:"reason"` // DrainDeadline, Cancelled, ...
	Blockers []Blocker `json:"blockers,omitempty"`
}

// EventType implements Payload.
func (NodeUncordoned) EventType() string { return TypeNodeUncordoned }

// Validate implements Payload.
func (p NodeUncordoned) Validate() error { return p.validate() }

// NodeCancelRefused says that a cancel came after the point of no return: the
// node is being removed.
type NodeCancelRefused struct {
	DrainRef
	CancelID string `json:"cancel_id"` // event id of the node.drain.cancelled
	Reason   Reason `json:"reason"`
}

// EventType implements Payload.
func (NodeCancelRefused) EventType() string { return TypeNodeCancelRefused }

// Validate implements Payload.
func (p NodeCancelRefused) Validate() error { return p.validate() }
