package lifecycle

import "time"

// Phase is the state of a node.
type Phase string

// The states of a node. The zero Phase is a node without a record.
const (
	Claimed    Phase = "claimed"    // asked for; no machine was started
	Created    Phase = "created"    // its machine was started
	Registered Phase = "registered" // its Node object exists
	Ready      Phase = "ready"
	Unready    Phase = "unready"
	Failed     Phase = "failed" // the claim failed; what it created is cleaned up
	Lost       Phase = "lost"   // vanished unasked; what is left is cleaned up
	Removing   Phase = "removing"
	Removed    Phase = "removed"
	Renamed    Phase = "renamed" // its life goes on under the name that the provider gave the node
)

// NodeEvent is what moves a node on.
type NodeEvent string

// What moves a node on.
const (
	OnClaimed    NodeEvent = "claimed"    // decision asked for it
	OnStarted    NodeEvent = "started"    // its machine was started
	OnRegistered NodeEvent = "registered" // its Node object appeared
	OnReady      NodeEvent = "ready"
	OnUnready    NodeEvent = "unready"
	OnFailed     NodeEvent = "failed"   // permanent error, deadline, machine ended before Ready
	OnLost       NodeEvent = "lost"     // machine or Node object vanished after Ready
	OnDrained    NodeEvent = "drained"  // emptied in order to be removed
	OnOrphaned   NodeEvent = "orphaned" // found without a live record
	OnRemoved    NodeEvent = "removed"  // nothing of it is left
	OnAdopted    NodeEvent = "adopted"  // found Ready, with its machine, without a record
	OnRenamed    NodeEvent = "renamed"  // another record took the claim over, by the name of its Node
)

type nodeRow struct {
	from     Phase
	on       NodeEvent
	to       Phase
	deadline Deadline // of the state reached
	undo     Undo     // of the state reached
}

// nodes is the one table of what can happen to a node:
//
//	              started          registered        ready
//	(claim) claimed ────► created ────► registered ────► ready ◄────► unready
//	           │             │   └──────── ready ────────► │             │
//	           │ failed      │ failed       │ failed       ├─── lost ────┤
//	           ▼             ▼              ▼              ▼             │
//	         failed ◄────────┴──────────────┘            lost            │
//	                                                                     │
//	 claimed, created, registered, ready, unready ── drained ─► removing ◄┘
//	 (no record) ─────────────────────────────────── orphaned ──► │
//	 (no record) ── adopted ─► ready                              │
//	                                                   removed    ▼
//	                                                            removed
//
//	 created ── renamed ─► renamed: where the provider names the node, the claim
//	 begins under our name, and goes on as created in a record of the node's.
//
// A node that is emptied in order to be removed may be in any state before
// removing: provisioning may learn of its registration later than draining
// finished. Failed and lost are final; their clean-up is the same removal, and
// runs inside the state.
var nodes = []nodeRow{
	{"", OnClaimed, Claimed, DeadlineNotAfter, UndoNothing},
	{"", OnFailed, Failed, DeadlineNone, UndoNothing}, // the claim came too late
	{"", OnDrained, Removing, DeadlineNone, UndoNothing},
	{"", OnOrphaned, Removing, DeadlineNone, UndoNothing},
	{"", OnAdopted, Ready, DeadlineNone, UndoNothing},

	{Claimed, OnStarted, Created, DeadlineRegister, UndoCleanUp},
	{Claimed, OnFailed, Failed, DeadlineNone, UndoNothing},
	{Claimed, OnDrained, Removing, DeadlineNone, UndoNothing},

	{Created, OnRegistered, Registered, DeadlineKeep, UndoCleanUp},
	{Created, OnReady, Ready, DeadlineNone, UndoNothing},
	{Created, OnRenamed, Renamed, DeadlineNone, UndoNothing},
	{Created, OnFailed, Failed, DeadlineNone, UndoNothing},
	{Created, OnDrained, Removing, DeadlineNone, UndoNothing},

	{Registered, OnReady, Ready, DeadlineNone, UndoNothing},
	{Registered, OnFailed, Failed, DeadlineNone, UndoNothing},
	{Registered, OnDrained, Removing, DeadlineNone, UndoNothing},

	{Ready, OnUnready, Unready, DeadlineNone, UndoNothing},
	{Ready, OnLost, Lost, DeadlineNone, UndoNothing},
	{Ready, OnDrained, Removing, DeadlineNone, UndoNothing},

	{Unready, OnReady, Ready, DeadlineNone, UndoNothing},
	{Unready, OnLost, Lost, DeadlineNone, UndoNothing},
	{Unready, OnDrained, Removing, DeadlineNone, UndoNothing},

	{Removing, OnRemoved, Removed, DeadlineNone, UndoNothing},
}

func nodeTransition(p Phase, e NodeEvent) (nodeRow, bool) {
	for _, r := range nodes {
		if r.from == p && r.on == e {
			return r, true
		}
	}
	return nodeRow{}, false
}

// Can reports whether e is possible in p.
func (p Phase) Can(e NodeEvent) bool {
	_, ok := nodeTransition(p, e)
	return ok
}

// Undo says what is done when a node leaves p without reaching its goal.
func (p Phase) Undo() Undo {
	for _, r := range nodes {
		if r.to == p {
			return r.undo
		}
	}
	return UndoNothing
}

// Waiting reports whether a started machine still has to become Ready.
func (p Phase) Waiting() bool { return p == Created || p == Registered }

// Live reports whether the node is or is going to be capacity.
func (p Phase) Live() bool {
	return p == Claimed || p == Created || p == Registered || p == Ready || p == Unready
}

// Ended reports whether the state is final. What is left may still have to be
// cleaned up, see Node.Settled.
func (p Phase) Ended() bool { return p == Failed || p == Lost || p == Removed || p == Renamed }

// On moves the node on: it sets Phase, Since, Deadline and the time of the
// point reached. Impossible events return a *TransitionError and change
// nothing.
func (n *Node) On(e NodeEvent, at time.Time) error {
	r, ok := nodeTransition(n.Phase, e)
	if !ok {
		return &TransitionError{Of: "node", State: string(n.Phase), Event: string(e)}
	}
	n.Phase, n.Since = r.to, at
	switch r.deadline {
	case DeadlineNotAfter:
		n.Deadline = n.NotAfter
	case DeadlineRegister:
		n.Deadline = at.Add(n.RegisterWithin)
	case DeadlineKeep:
	case DeadlineNone, DeadlineDrain:
		n.Deadline = time.Time{}
	}
	switch e {
	case OnClaimed:
		n.ClaimedAt = at
	case OnStarted:
		n.CreatedAt = at
	case OnRegistered:
		n.RegisteredAt = at
	case OnReady:
		if n.RegisteredAt.IsZero() {
			n.RegisteredAt = at
		}
		if n.ReadyAt.IsZero() {
			n.ReadyAt = at
		}
	case OnRemoved:
		n.RemovedAt = at
	case OnUnready, OnFailed, OnLost, OnDrained, OnOrphaned, OnAdopted, OnRenamed:
	}
	return nil
}
