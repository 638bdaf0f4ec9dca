package events

import (
	"cmp"
	"fmt"
	"time"
)

// Goals of a drain.
const (
	GoalCordon = "cordon" // no new pods; the node stays
	GoalDrain  = "drain"  // emptied; the node stays
	GoalRemove = "remove" // emptied and removed
)

// NodeDrainRequested asks for a node to be cordoned, drained, or drained and
// removed. Its event id identifies the drain.
type NodeDrainRequested struct {
	Node       string    `json:"node"`
	Pool       string    `json:"pool,omitempty"`
	ClaimID    string    `json:"claim_id,omitempty"`
	Goal       string    `json:"goal"`
	DecisionID string    `json:"decision_id"`
	RequestID  string    `json:"request_id,omitempty"` // the scale.requested it follows
	Reason     Reason    `json:"reason"`
	Actor      string    `json:"actor,omitempty"`
	DecidedAt  time.Time `json:"decided_at"` // stream time
	NotAfter   time.Time `json:"not_after"`  // draining refuses it later
	// Deadline is how long the drain may take from its start; then it is undone.
	Deadline Duration `json:"deadline"`
	// JobsDeadline is how long pods of Jobs may go on before they are evicted, from
	// the cordon; the deadline counts from then. Absent: not at all.
	JobsDeadline Duration `json:"jobs_deadline,omitempty"`
	// OnDeadline is what happens then: DeadlineUncordon (also when absent) or, of a
	// removal, DeadlineForce.
	OnDeadline string `json:"on_deadline,omitempty"`
	// LocalStorage and Unmanaged say what becomes of pods whose data is lost with the
	// node, and of those that nothing would create again: PodsBlock (also when absent)
	// or PodsDelete.
	LocalStorage string `json:"local_storage,omitempty"`
	Unmanaged    string `json:"unmanaged,omitempty"`
	// Unready says that the node is removed because it has not been Ready for too
	// long: nobody confirms that its pods end, so they are left to Kubernetes, which
	// takes them away with the Node object. If it is Ready after all, it stays.
	Unready bool `json:"unready,omitempty"`
}

// What happens at the deadline of a drain.
const (
	DeadlineUncordon = "uncordon" // it is undone, and nothing is removed
	DeadlineForce    = "force"    // what is left is evicted, never against a budget
)

// What becomes of pods that something would be lost of.
const (
	PodsBlock  = "block"  // the node stays
	PodsDelete = "delete" // they are evicted like all others
)

// EventType implements Payload.
func (NodeDrainRequested) EventType() string { return TypeNodeDrainRequested }

// Validate implements Payload.
func (p NodeDrainRequested) Validate() error {
	var r required
	_, err := EncodeKey(p.Node)
	r.check(err)
	r.oneOf("goal", p.Goal, GoalCordon, GoalDrain, GoalRemove)
	r.text("reason.code", p.Reason.Code)
	r.instant("not_after", p.NotAfter)
	r.atLeast("deadline", int64(p.Deadline), 1)
	r.atLeast("jobs_deadline", int64(p.JobsDeadline), 0)
	r.oneOf("on_deadline", cmp.Or(p.OnDeadline, DeadlineUncordon), DeadlineUncordon, DeadlineForce)
	r.oneOf("local_storage", cmp.Or(p.LocalStorage, PodsBlock), PodsBlock, PodsDelete)
	r.oneOf("unmanaged", cmp.Or(p.Unmanaged, PodsBlock), PodsBlock, PodsDelete)
	if p.Goal == GoalRemove {
		// A node without a claim is not ours to remove.
		r.text("claim_id", p.ClaimID)
	} else if p.Unready {
		r.check(fmt.Errorf("unready: is true with goal %q, expected %q: only a removal leaves pods behind", p.Goal, GoalRemove))
	}
	return r.err()
}

// NodeDrainCancelled asks for a drain or cordon to be undone.
type NodeDrainCancelled struct {
	Node       string `json:"node"`
	DecisionID string `json:"decision_id"`
	RequestID  string `json:"request_id,omitempty"`
	Reason     Reason `json:"reason"`
	Actor      string `json:"actor,omitempty"`
}

// EventType implements Payload.
func (NodeDrainCancelled) EventType() string { return TypeNodeDrainCancelled }

// Validate implements Payload.
func (p NodeDrainCancelled) Validate() error { return nodeReason(p.Node, p.Reason) }

func nodeReason(node string, reason Reason) error {
	var r required
	_, err := EncodeKey(node)
	r.check(err)
	r.text("reason.code", reason.Code)
	return r.err()
}

func nodeOnly(node string) error {
	_, err := EncodeKey(node)
	return err
}
