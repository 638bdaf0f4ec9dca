package lifecycle

import (
	"fmt"
	"strings"
	"time"
)

// Position is where a life is, for whoever looks at it.
type Position struct {
	// Phase is the node's, or that of its drain while one is under way.
	Phase string
	Since time.Time
	Until time.Time // zero: it may last
	Next  string    // what comes next; empty: nothing that is known
	Retry *Retry    // nil: nothing failed
}

// Retry is what failed and is tried again.
type Retry struct {
	Of      string // what is tried
	Attempt int    // failed so far, in a row
	Error   string // of the last attempt
	NextAt  time.Time
}

func retryOf(of string, attempt int, lastError string, nextAt time.Time) *Retry {
	if attempt == 0 && lastError == "" {
		return nil
	}
	return &Retry{Of: of, Attempt: attempt, Error: lastError, NextAt: nextAt}
}

// steps says what a step of a removal does, in the words of what comes next.
var steps = map[string]string{
	"instance-stopped": "its machine is stopped", "node-deleted": "its Node object is deleted",
	"secret-deleted": "its password secret is deleted", "instance-deleted": "its machine is deleted",
}

// Where says where a life is by its records; either may be nil, and a drain that
// is over is none.
func Where(n *Node, d *Drain) Position {
	if d != nil && d.Phase != "" && d.Phase != DrainDone && (n == nil || n.Phase == "" || n.Phase.Live()) {
		return d.position()
	}
	if n == nil {
		return Position{}
	}
	p := Position{Phase: string(n.Phase), Since: n.Since, Until: n.Deadline, Next: describe(nodeStates, string(n.Phase), "").Next}
	switch {
	case n.Suspicion != nil:
		s := n.Suspicion
		p.Next = fmt.Sprintf("a report about it is checked (%s)", strings.TrimPrefix(s.Kind+": "+s.Detail, ": "))
		p.Retry = retryOf("check the report", s.Attempt, "", s.NextAt)
	case n.Phase == Claimed && n.Creation != nil:
		c := n.Creation
		if c.Starting {
			p.Next = "its machine is started"
		}
		p.Retry = retryOf("create the machine", c.Attempt, c.LastError, c.NextAt)
	case n.Removal.Next() != "":
		r := n.Removal
		p.Next = steps[r.Next()]
		p.Retry = retryOf(r.Next(), r.Attempt, r.LastError, r.NextAt)
	case n.Phase.Ended():
		p.Next = describe(nodeStates, string(Removed), "").Next
	}
	return p
}

func (d *Drain) position() Position {
	p := Position{Phase: string(d.Phase), Since: d.Since, Next: describe(drainStates, string(d.Phase), d.Goal).Next}
	if d.Active() {
		p.Until = d.Deadline
	}
	switch d.Phase {
	case DrainRequested:
		p.Phase = "drain requested"
	case DrainFinishing:
		p.Until = d.JobsUntil
	case DrainDraining, DrainForcing:
		switch d.Remaining {
		case 0:
		case 1:
			p.Next = "1 pod leaves"
		default:
			p.Next = fmt.Sprintf("%d pods leave", d.Remaining)
		}
	case DrainCordoned, DrainDrained, DrainUncordoning, DrainDone:
	}
	if d.Goal == GoalRemove && d.Phase != DrainDrained && d.Phase != DrainUncordoning {
		p.Next += ", then it is removed"
	}
	if d.Attempt > 0 || d.LastError != "" {
		// A refused eviction is an attempt without an error: its blockers say why.
		p.Retry = retryOf(map[DrainPhase]string{DrainRequested: "cordon", DrainDraining: "evict", DrainForcing: "evict", DrainUncordoning: "uncordon"}[d.Phase],
			d.Attempt, d.LastError, d.NextAt)
	}
	return p
}
