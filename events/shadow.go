package events

import "time"

// Types of the events about a shadow: a candidate policy that is judged beside the
// one in force, and that nobody acts on.
const (
	TypeShadowStarted = TypePrefix + "shadow.started.v1"
	TypeShadowStopped = TypePrefix + "shadow.stopped.v1"
	TypeShadowDecided = TypePrefix + "shadow.decided.v1"
)

// Effects of a difference: what the candidate would do that the policy in force
// does not, or the other way round.
const (
	EffectAdd    = "add"    // it would add nodes, or more of them
	EffectRemove = "remove" // it would remove nodes, or more of them
	EffectHold   = "hold"   // it would not add or remove what is added or removed, or less
	EffectOther  = "other"  // it would remove as many, but other nodes
	EffectNone   = "none"   // they agree again
)

// ShadowStarted is the candidate policy of a cluster from this event on; its id is
// that of the shadow. A shadow that was there before ends with it.
type ShadowStarted struct {
	Digest string `json:"digest"` // of Policy
	Policy Policy `json:"policy"`
	File   string `json:"file,omitempty"` // where it was read, as the person named it
	// NewPools are pools that the running configuration does not have.
	NewPools []string `json:"new_pools,omitempty"`
	// Checkpoint is the sequence of decision's last checkpoint, where the shadow
	// takes up the state of the policy in force. 0: with the next one.
	Checkpoint uint64 `json:"checkpoint,omitempty"`
	Actor      string `json:"actor"`
	Reason     string `json:"reason"`
}

// EventType implements Payload.
func (ShadowStarted) EventType() string { return TypeShadowStarted }

// Validate implements Payload.
func (p ShadowStarted) Validate() error {
	var r required
	r.text("digest", p.Digest)
	r.text("actor", p.Actor)
	r.text("reason", p.Reason)
	r.atLeast("policy.pools", int64(len(p.Policy.Pools)), 1)
	return r.err()
}

// ShadowStopped ends the shadow of a cluster.
type ShadowStopped struct {
	Shadow string `json:"shadow"` // its id
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
}

// EventType implements Payload.
func (ShadowStopped) EventType() string { return TypeShadowStopped }

// Validate implements Payload.
func (p ShadowStopped) Validate() error {
	var r required
	r.text("shadow", p.Shadow)
	r.text("actor", p.Actor)
	r.text("reason", p.Reason)
	return r.err()
}

// ShadowDecided says that a candidate policy decides otherwise about a pool than
// the policy in force does on the same event, or that they agree again. A
// difference has one id from its beginning to its end; in between it is said again
// only when it grows.
type ShadowDecided struct {
	Shadow     string    `json:"shadow"`
	Difference string    `json:"difference"`
	Pool       string    `json:"pool"`
	Effect     string    `json:"effect"`          // add, remove, hold, other, or none: the end
	Nodes      int       `json:"nodes,omitempty"` // how many nodes it is about, at most so far
	Since      time.Time `json:"since"`           // when the difference began
	// Input is the sequence of the event that both decided on.
	Input uint64 `json:"input"`
	// Candidate and Live are both decisions with what led to them; absent at the end.
	Candidate *Decision `json:"candidate,omitempty"`
	Live      *Decision `json:"live,omitempty"`
}

// EventType implements Payload.
func (ShadowDecided) EventType() string { return TypeShadowDecided }

// Validate implements Payload.
func (p ShadowDecided) Validate() error {
	var r required
	r.text("shadow", p.Shadow)
	r.text("difference", p.Difference)
	r.oneOf("effect", p.Effect, EffectAdd, EffectRemove, EffectHold, EffectOther, EffectNone)
	r.instant("since", p.Since)
	return r.err()
}

// Promotion says that a policy is in force because a person promoted it, and not
// because a configuration file says so.
type Promotion struct {
	Shadow string `json:"shadow"` // id of the shadow that it was
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
	// Replaced is the digest of the policy that was in force before.
	Replaced string `json:"replaced"`
	// Source is the file that the candidate was read from, as the person named it.
	Source string `json:"source,omitempty"`
	// File is the digest of the policy that the configuration file had when it was
	// promoted, Text that of the file itself: as long as one of them is the same,
	// the file was not changed since, and the promoted policy stays.
	File string `json:"file"`
	Text string `json:"text,omitempty"`
}
