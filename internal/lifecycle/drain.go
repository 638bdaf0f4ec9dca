package lifecycle

import (
	"slices"
	"time"
)

// DrainPhase is the state of a drain.
type DrainPhase string

// The states of a drain. The zero DrainPhase is a node that was never drained.
const (
	DrainRequested   DrainPhase = "requested" // not yet cordoned
	DrainCordoned    DrainPhase = "cordoned"
	DrainFinishing   DrainPhase = "finishing" // pods of Jobs are left to end by themselves
	DrainDraining    DrainPhase = "draining"  // pods are being evicted
	DrainForcing     DrainPhase = "forcing"   // past the deadline, so is what is never evicted otherwise
	DrainDrained     DrainPhase = "drained"   // nothing is left that had to move
	DrainUncordoning DrainPhase = "uncordoning"
	DrainDone        DrainPhase = "done"
)

// Goals of a drain.
const (
	GoalCordon = "cordon" // no new pods; the node stays
	GoalDrain  = "drain"  // emptied; the node stays
	GoalRemove = "remove" // emptied and removed
)

// DrainEvent is what moves a drain on.
type DrainEvent string

// What moves a drain on.
const (
	OnDrainRequested DrainEvent = "requested"  // decision asked for it, or for another goal
	OnCordoned       DrainEvent = "cordoned"   // the node takes no new pods
	OnWaiting        DrainEvent = "waiting"    // pods of Jobs are there, and may end by themselves
	OnEvicting       DrainEvent = "evicting"   // the first eviction is about to be tried
	OnEmptied        DrainEvent = "emptied"    // no pod is left that has to move
	OnCancelled      DrainEvent = "cancelled"  // decision asked to undo it
	OnExpired        DrainEvent = "expired"    // its deadline passed
	OnForced         DrainEvent = "forced"     // its deadline passed, and the pool says to go on
	OnUncordoned     DrainEvent = "uncordoned" // the node is schedulable again
	OnGone           DrainEvent = "gone"       // the Node object does not exist any more
)

type drainRow struct {
	from     DrainPhase
	on       DrainEvent
	goals    []string // nil: any
	to       DrainPhase
	deadline Deadline // of the state reached
	undo     Undo     // of the state reached
}

var (
	emptying = []string{GoalDrain, GoalRemove}
	removing = []string{GoalRemove}
	staying  = []string{GoalCordon, GoalDrain}
)

// drains is the one table of what can happen to a drain:
//
//	         requested ─► cordoned ─► draining ─► drained ─► done
//	             │      (goal cordon:  │             │    (removed)
//	             │        stays here)  │             │
//	             │            │ ▲      │             │
//	             │    waiting ▼ │ jobs have ended, or time is up
//	             │         finishing   │             │
//	             │            │        ├─► forcing ──┤ (goal remove, where the
//	cancelled,   │            │        │      │      │  pool says so: expired)
//	expired      ▼            ▼        ▼      ▼      ▼ cancelled (not with goal remove)
//	         uncordoning ◄────┴────────┴──────┴──────┘
//	             │ uncordoned
//	             ▼
//	           done          from everywhere: gone ─► done
//
// With goal remove, drained is the point of no return. With goals cordon and
// drain, the last state is kept until a person cancels it or asks for more.
var drains = []drainRow{
	{"", OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},

	{DrainRequested, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainRequested, OnCordoned, []string{GoalCordon}, DrainCordoned, DeadlineNone, UndoNothing},
	{DrainRequested, OnCordoned, emptying, DrainCordoned, DeadlineKeep, UndoUncordon},
	{DrainRequested, OnCancelled, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainRequested, OnExpired, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainRequested, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainCordoned, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainCordoned, OnWaiting, emptying, DrainFinishing, DeadlineNone, UndoUncordon},
	{DrainCordoned, OnEvicting, emptying, DrainDraining, DeadlineKeep, UndoUncordon},
	{DrainCordoned, OnEmptied, emptying, DrainDrained, DeadlineNone, UndoNothing},
	{DrainCordoned, OnCancelled, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainCordoned, OnExpired, emptying, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainCordoned, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainFinishing, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainFinishing, OnEvicting, emptying, DrainDraining, DeadlineDrain, UndoUncordon},
	{DrainFinishing, OnCancelled, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainFinishing, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainDraining, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainDraining, OnEmptied, emptying, DrainDrained, DeadlineNone, UndoNothing},
	{DrainDraining, OnCancelled, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainDraining, OnExpired, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainDraining, OnForced, removing, DrainForcing, DeadlineDrain, UndoUncordon},
	{DrainDraining, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainForcing, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainForcing, OnEmptied, removing, DrainDrained, DeadlineNone, UndoNothing},
	{DrainForcing, OnCancelled, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainForcing, OnExpired, nil, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainForcing, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainDrained, OnDrainRequested, staying, DrainRequested, DeadlineDrain, UndoUncordon},
	{DrainDrained, OnCancelled, staying, DrainUncordoning, DeadlineNone, UndoNothing},
	{DrainDrained, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainUncordoning, OnUncordoned, nil, DrainDone, DeadlineNone, UndoNothing},
	{DrainUncordoning, OnGone, nil, DrainDone, DeadlineNone, UndoNothing},

	{DrainDone, OnDrainRequested, nil, DrainRequested, DeadlineDrain, UndoUncordon},
}

func drainTransition(p DrainPhase, goal string, e DrainEvent) (drainRow, bool) {
	for _, r := range drains {
		if r.from == p && r.on == e && (r.goals == nil || slices.Contains(r.goals, goal)) {
			return r, true
		}
	}
	return drainRow{}, false
}

// Drain is what draining knows of one node: its record.
type Drain struct {
	Node    string `json:"node"`
	Pool    string `json:"pool,omitempty"`
	ClaimID string `json:"claim_id,omitempty"`

	Goal      string `json:"goal"`
	RequestID string `json:"request_id"` // event id of the node.drain.requested
	// ScaleRequestID is the scale.requested that the request follows, if any.
	ScaleRequestID string `json:"scale_request_id,omitempty"`
	DecisionID     string `json:"decision_id,omitempty"`
	Reason         Reason `json:"reason,omitzero"`
	Actor          string `json:"actor,omitempty"`
	CorrelationID  string `json:"correlation_id,omitempty"`

	Phase       DrainPhase    `json:"phase"`
	Since       time.Time     `json:"since,omitzero"`    // in this phase
	Deadline    time.Time     `json:"deadline,omitzero"` // when the drain is undone
	Within      time.Duration `json:"within,omitempty"`  // how long the drain may take
	DecidedAt   time.Time     `json:"decided_at,omitzero"`
	RequestedAt time.Time     `json:"requested_at,omitzero"`
	CordonedAt  time.Time     `json:"cordoned_at,omitzero"`
	DrainedAt   time.Time     `json:"drained_at,omitzero"`
	NotAfter    time.Time     `json:"not_after,omitzero"`

	// JobsWithin is how long pods of Jobs may go on once the node is cordoned; 0:
	// they are evicted like any other. JobsUntil is when that ends, WaitingFor those
	// that are waited for, ns/name.
	JobsWithin time.Duration `json:"jobs_within,omitempty"`
	JobsUntil  time.Time     `json:"jobs_until,omitzero"`
	WaitingFor []string      `json:"waiting_for,omitempty"`

	// Force has a removal go on past its deadline. DeleteLocal and DeleteUnmanaged
	// have pods evicted that would keep the node otherwise.
	Force           bool `json:"force,omitempty"`
	DeleteLocal     bool `json:"delete_local,omitempty"`
	DeleteUnmanaged bool `json:"delete_unmanaged,omitempty"`

	// Cordon is ours: the node was schedulable before, so an undo uncordons it.
	CordonOurs bool `json:"cordon_ours,omitempty"`
	// Followed are earlier requests that this one follows, and that may have left
	// their mark on the node: an undo undoes their cordons, too.
	Followed []string `json:"followed,omitempty"`

	Round     int       `json:"round,omitempty"` // of evictions
	Evicted   int       `json:"evicted,omitempty"`
	Evicting  []string  `json:"evicting,omitempty"` // intent: pods whose eviction was asked for, ns/name
	Forcing   []Forced  `json:"forcing,omitempty"`  // those of them that are never evicted otherwise
	Forced    []Forced  `json:"forced,omitempty"`   // what was forced to leave, or left to the end of the machine
	Remaining int       `json:"remaining,omitempty"`
	Blockers  []Blocker `json:"blockers,omitempty"`
	NextAt    time.Time `json:"next_at,omitzero"` // of the next attempt
	Attempt   int       `json:"attempt,omitempty"`
	LastError string    `json:"last_error,omitempty"`

	// UndoAnyone says that a person asked for the undo: any cordon is undone, not
	// only that of the request.
	UndoAnyone bool `json:"undo_anyone,omitempty"`
	// Unready says that the node has not been Ready for too long: its pods are left to
	// Kubernetes, unless it is Ready after all.
	Unready bool `json:"unready,omitempty"`
	// UndoReason says why an undo is under way: DrainDeadline, Cancelled, ...
	UndoReason Reason `json:"undo_reason,omitzero"`
}

// Blocker is what stands in the way of a drain, and what would help.
type Blocker struct {
	Kind    string `json:"kind"`
	Name    string `json:"name,omitempty"`
	Pod     string `json:"pod,omitempty"`
	Message string `json:"message,omitempty"`
	Fix     string `json:"fix,omitempty"`
}

// Forced is a pod that a removal did not spare, and what would have spared it.
type Forced struct {
	Pod    string `json:"pod"` // ns/name
	Reason Reason `json:"reason"`
}

// Can reports whether e is possible now.
func (d *Drain) Can(e DrainEvent) bool {
	_, ok := drainTransition(d.Phase, d.Goal, e)
	return ok
}

// Undo says what is done when the drain ends now without reaching its goal.
func (d *Drain) Undo() Undo {
	for _, r := range drains {
		if r.to == d.Phase && (r.goals == nil || slices.Contains(r.goals, d.Goal)) {
			return r.undo
		}
	}
	return UndoNothing
}

// Active reports whether the drain has work open, now or at its deadline.
func (d *Drain) Active() bool {
	switch d.Phase {
	case DrainRequested, DrainFinishing, DrainDraining, DrainForcing, DrainUncordoning:
		return true
	case DrainCordoned:
		return d.Goal != GoalCordon
	case DrainDrained, DrainDone:
	}
	return false
}

// Request asks for a goal to be reached within a time. A request for a drain
// under way keeps the earlier deadline. After the point of no return it is a
// *TransitionError and changes nothing.
func (d *Drain) Request(goal string, within time.Duration, at time.Time) error {
	if !d.Can(OnDrainRequested) { // with the goal so far
		return &TransitionError{Of: "drain", State: string(d.Phase), Event: string(OnDrainRequested)}
	}
	deadline := at.Add(within)
	if d.Active() && !d.Deadline.IsZero() && d.Deadline.Before(deadline) {
		deadline = d.Deadline
	}
	d.Goal, d.Within = goal, within
	d.Phase, d.Since, d.RequestedAt, d.Deadline = DrainRequested, at, at, deadline
	return nil
}

// On moves the drain on: it sets Phase, Since, Deadline and the time of the
// point reached. Impossible events return a *TransitionError and change
// nothing. A request goes through Request.
func (d *Drain) On(e DrainEvent, at time.Time) error {
	r, ok := drainTransition(d.Phase, d.Goal, e)
	if !ok {
		return &TransitionError{Of: "drain", State: string(d.Phase), Event: string(e)}
	}
	if e == OnDrainRequested {
		return d.Request(d.Goal, d.Within, at)
	}
	d.Phase, d.Since = r.to, at
	switch r.deadline {
	case DeadlineKeep:
	case DeadlineDrain: // evictions have all of their time after the Jobs, and once more when forced
		d.Deadline = at.Add(d.Within)
	case DeadlineNone, DeadlineNotAfter, DeadlineRegister:
		d.Deadline = time.Time{}
	}
	switch e {
	case OnCordoned:
		d.CordonedAt = at
	case OnWaiting:
		if d.JobsUntil.IsZero() {
			d.JobsUntil = at.Add(d.JobsWithin)
		}
	case OnEmptied:
		d.DrainedAt = at
	case OnDrainRequested, OnEvicting, OnForced, OnCancelled, OnExpired, OnUncordoned, OnGone:
	}
	return nil
}
