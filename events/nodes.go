package events

import (
	"time"
)

// Types of the events of one node's life.
const (
	TypeNodeClaimed           = TypePrefix + "node.claimed.v1"
	TypeNodeDrainRequested    = TypePrefix + "node.drain.requested.v1"
	TypeNodeDrainCancelled    = TypePrefix + "node.drain.cancelled.v1"
	TypeNodeCreated           = TypePrefix + "node.created.v1"
	TypeNodeRegistered        = TypePrefix + "node.registered.v1"
	TypeNodeReady             = TypePrefix + "node.ready.v1"
	TypeNodeUnready           = TypePrefix + "node.unready.v1"
	TypeNodeFailed            = TypePrefix + "node.failed.v1"
	TypeNodeLost              = TypePrefix + "node.lost.v1"
	TypeNodeRemovalProgressed = TypePrefix + "node.removal.progressed.v1"
	TypeNodeRemoved           = TypePrefix + "node.removed.v1"
	TypeNodeObserved          = TypePrefix + "node.observed.v1"
	TypeNodeDiverged          = TypePrefix + "node.diverged.v1"
	TypeNodeCordoned          = TypePrefix + "node.cordoned.v1"
	TypeNodeDrainProgressed   = TypePrefix + "node.drain.progressed.v1"
	TypeNodeDrainBlocked      = TypePrefix + "node.drain.blocked.v1"
	TypeNodeDrained           = TypePrefix + "node.drained.v1"
	TypeNodeUncordoned        = TypePrefix + "node.uncordoned.v1"
	TypeNodeCancelRefused     = TypePrefix + "node.drain.cancel.refused.v1"
	TypeNodeTransitionRefused = TypePrefix + "node.transition.refused.v1"
)

// Labels that we put on our nodes and machines. Only nodes with LabelClaim are
// ever cordoned, drained or removed by a decision.
const (
	LabelCluster = "k3s-autoscaler.dev/cluster"
	LabelPool    = "k3s-autoscaler.dev/pool"
	LabelClaim   = "k3s-autoscaler.dev/claim"
)

// NodeClaimed asks for one node under one name. At most one machine is ever
// started for a claim.
type NodeClaimed struct {
	ClaimID    string            `json:"claim_id"`
	Node       string            `json:"node"`
	Pool       string            `json:"pool"`
	Provider   string            `json:"provider"`
	DecisionID string            `json:"decision_id"`
	Reason     Reason            `json:"reason"`
	Actor      string            `json:"actor,omitempty"`
	Size       Resources         `json:"size"` // allocatable that the node must have
	Labels     map[string]string `json:"labels,omitempty"`
	Taints     []Taint           `json:"taints,omitempty"`
	ClaimedAt  time.Time         `json:"claimed_at"` // stream time
	NotAfter   time.Time         `json:"not_after"`  // provisioning refuses it later
	// RegisterDeadline is how long the machine may take from its start to Ready.
	RegisterDeadline Duration `json:"register_deadline"`
	// TriggerSince is when the need arose, for latencies.
	TriggerSince time.Time `json:"trigger_since,omitzero"`
}

// EventType implements Payload.
func (NodeClaimed) EventType() string { return TypeNodeClaimed }

// Validate implements Payload.
func (p NodeClaimed) Validate() error {
	var r required
	r.text("claim_id", p.ClaimID)
	_, err := EncodeKey(p.Node)
	r.check(err)
	r.check(ValidatePool(p.Pool))
	r.text("provider", p.Provider)
	r.text("reason.code", p.Reason.Code)
	r.instant("not_after", p.NotAfter)
	r.atLeast("register_deadline", int64(p.RegisterDeadline), 1)
	r.atLeast("size.cpu_milli", p.Size.CPUMilli, 1)
	r.atLeast("size.memory_bytes", p.Size.MemoryBytes, 1)
	return r.err()
}

// NodeCreated says that the machine of a claim was created and started.
type NodeCreated struct {
	Node     string    `json:"node"`
	Pool     string    `json:"pool"`
	ClaimID  string    `json:"claim_id"`
	Instance string    `json:"instance"` // the provider's id of the machine
	Host     string    `json:"host,omitempty"`
	Image    string    `json:"image,omitempty"`
	Adopted  bool      `json:"adopted,omitempty"` // it was already there, from an attempt that was cut short
	At       time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeCreated) EventType() string { return TypeNodeCreated }

// Validate implements Payload.
func (p NodeCreated) Validate() error { return nodeOnly(p.Node) }

// NodeRegistered says that the node appeared in the API server.
type NodeRegistered struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	UID     string    `json:"uid"` // of the Node object
	At      time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeRegistered) EventType() string { return TypeNodeRegistered }

// Validate implements Payload.
func (p NodeRegistered) Validate() error { return nodeOnly(p.Node) }

// NodeReady says that the node is Ready.
type NodeReady struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	At      time.Time `json:"at"`
	First   bool      `json:"first"`            // the first time in this life
	Stages  []Stage   `json:"stages,omitempty"` // how long each step took, the first time
}

// Stage is the duration of one step.
type Stage struct {
	Name    string  `json:"name"`    // decided, claimed, created, registered, ready
	Seconds float64 `json:"seconds"` // since the previous stage
}

// EventType implements Payload.
func (NodeReady) EventType() string { return TypeNodeReady }

// Validate implements Payload.
func (p NodeReady) Validate() error { return nodeOnly(p.Node) }

// NodeUnready says that a node was Ready and no longer is.
type NodeUnready struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	Reason  Reason    `json:"reason"`
	At      time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeUnready) EventType() string { return TypeNodeUnready }

// Validate implements Payload.
func (p NodeUnready) Validate() error { return nodeOnly(p.Node) }

// Failure is why a claim failed.
type Failure struct {
	Stage  string    `json:"stage"` // claimed, created, registered
	Reason Reason    `json:"reason"`
	Log    string    `json:"log,omitempty"` // the end of the machine's log, secrets removed, at most 8 KiB
	At     time.Time `json:"at"`
}

// NodeFailed says that a claim failed. What it had created is cleaned up.
type NodeFailed struct {
	Node    string  `json:"node"`
	Pool    string  `json:"pool"`
	ClaimID string  `json:"claim_id"`
	Failure Failure `json:"failure"`
}

// EventType implements Payload.
func (NodeFailed) EventType() string { return TypeNodeFailed }

// Validate implements Payload.
func (p NodeFailed) Validate() error { return nodeReason(p.Node, p.Failure.Reason) }

// NodeLost says that a node vanished without being asked to.
type NodeLost struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	Reason  Reason    `json:"reason"`
	At      time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeLost) EventType() string { return TypeNodeLost }

// Validate implements Payload.
func (p NodeLost) Validate() error { return nodeReason(p.Node, p.Reason) }

// Steps of a removal, in this order: a restart of the machine in between would
// register the node again, so it is stopped first.
const (
	StepInstanceStopped = "instance-stopped"
	StepNodeDeleted     = "node-deleted"
	StepSecretDeleted   = "secret-deleted"
	StepInstanceDeleted = "instance-deleted"
)

// NodeRemovalProgressed says that one step of a removal is done.
type NodeRemovalProgressed struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	Step    string    `json:"step"`
	Detail  string    `json:"detail,omitempty"` // e.g. "was already gone"
	At      time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeRemovalProgressed) EventType() string { return TypeNodeRemovalProgressed }

// Validate implements Payload.
func (p NodeRemovalProgressed) Validate() error {
	var r required
	_, err := EncodeKey(p.Node)
	r.check(err)
	r.oneOf("step", p.Step, StepInstanceStopped, StepNodeDeleted, StepSecretDeleted, StepInstanceDeleted)
	return r.err()
}

// NodeRemoved says that a node and everything that belonged to it is gone.
type NodeRemoved struct {
	Node       string    `json:"node"`
	Pool       string    `json:"pool"`
	ClaimID    string    `json:"claim_id"`
	DecisionID string    `json:"decision_id,omitempty"`
	Reason     Reason    `json:"reason"`
	At         time.Time `json:"at"`
	Stages     []Stage   `json:"stages,omitempty"`
}

// EventType implements Payload.
func (NodeRemoved) EventType() string { return TypeNodeRemoved }

// Validate implements Payload.
func (p NodeRemoved) Validate() error { return nodeReason(p.Node, p.Reason) }

// What a node.observed may report.
const (
	ObservedRegistered = "registered" // the Node object exists
	ObservedReady      = "ready"
	ObservedUnready    = "unready"
	ObservedDeleted    = "deleted" // the Node object is gone
	ObservedExited     = "exited"  // the machine ended
	ObservedNamed      = "named"   // the provider named the node of a claim
)

// NodeObserved is a fact about a node of ours that the API server or the
// provider reported.
type NodeObserved struct {
	Node    string            `json:"node"`
	What    string            `json:"what"`
	UID     string            `json:"uid,omitempty"` // of the Node object
	Reason  string            `json:"reason,omitempty"`
	Message string            `json:"message,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"` // our own labels on the Node object
	// NamedAs is, for a claim that was named, the name of its Node object; ClaimedAs
	// is, for that Node, the name under which its claim began.
	NamedAs    string    `json:"named_as,omitempty"`
	ClaimedAs  string    `json:"claimed_as,omitempty"`
	ProviderID string    `json:"provider_id,omitempty"` // spec.providerID of the Node that was named
	At         time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeObserved) EventType() string { return TypeNodeObserved }

// Validate implements Payload.
func (p NodeObserved) Validate() error {
	var r required
	_, err := EncodeKey(p.Node)
	r.check(err)
	r.oneOf("what", p.What, ObservedRegistered, ObservedReady, ObservedUnready, ObservedDeleted, ObservedExited, ObservedNamed)
	for _, name := range []string{p.NamedAs, p.ClaimedAs} {
		if name != "" {
			_, err := EncodeKey(name)
			r.check(err)
		}
	}
	return r.err()
}

// Kinds of divergence.
const (
	DivergedOrphanInstance = "orphan-instance" // a machine of ours without a live record
	DivergedOrphanNode     = "orphan-node"     // a Node object of ours without machine and record
	DivergedNodeLost       = "node-lost"       // a live record whose machine or Node object is gone
	DivergedStuck          = "stuck"           // a record past its deadline
	DivergedUnrecorded     = "unrecorded"      // a Ready node of ours, with its machine, without a record
)

// NodeDiverged is a difference that the reconcile sweep found. The sweep
// changes nothing; provisioning acts on this event.
type NodeDiverged struct {
	Node     string    `json:"node"`
	Kind     string    `json:"kind"`
	Detail   string    `json:"detail"`
	Instance string    `json:"instance,omitempty"`
	ClaimID  string    `json:"claim_id,omitempty"`
	Pool     string    `json:"pool,omitempty"`
	At       time.Time `json:"at"`
	// Machine is what an unrecorded node runs on.
	Machine *FoundMachine `json:"machine,omitempty"`
}

// FoundMachine is what machine and Node object say of a node without a record.
type FoundMachine struct {
	Host      string    `json:"host,omitempty"`
	Image     string    `json:"image,omitempty"`
	Epoch     string    `json:"epoch,omitempty"` // of the log that it was made by
	UID       string    `json:"uid,omitempty"`   // of the Node object
	CreatedAt time.Time `json:"created_at,omitzero"`
}

// EventType implements Payload.
func (NodeDiverged) EventType() string { return TypeNodeDiverged }

// Validate implements Payload.
func (p NodeDiverged) Validate() error {
	var r required
	_, err := EncodeKey(p.Node)
	r.check(err)
	r.oneOf("kind", p.Kind, DivergedOrphanInstance, DivergedOrphanNode, DivergedNodeLost, DivergedStuck, DivergedUnrecorded)
	return r.err()
}

// ReasonImpossible is the code of what can't happen to a node in its state.
const ReasonImpossible = "ImpossibleTransition"

// NodeTransitionRefused says that something was said of a node that can't happen
// in the state of its record, such as Ready after its claim had failed. Nothing was
// changed, and nothing follows from it.
type NodeTransitionRefused struct {
	Node    string    `json:"node"`
	Pool    string    `json:"pool"`
	ClaimID string    `json:"claim_id"`
	State   string    `json:"state"`    // of the record
	Event   string    `json:"event"`    // what was said: ready, registered, drained, ...
	EventID string    `json:"event_id"` // of the event that said it
	Reason  Reason    `json:"reason"`
	At      time.Time `json:"at"`
}

// EventType implements Payload.
func (NodeTransitionRefused) EventType() string { return TypeNodeTransitionRefused }

// Validate implements Payload.
func (p NodeTransitionRefused) Validate() error {
	var r required
	r.text("state", p.State)
	r.text("event", p.Event)
	r.check(nodeReason(p.Node, p.Reason))
	return r.err()
}
