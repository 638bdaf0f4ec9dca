package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Hold is what is left of a request for nodes that says for how long: until then
// the pool keeps at least as many as it had then, like a minimum. When it ends,
// they go as all others do.
type Hold struct {
	ID    string    `json:"id"` // of the request
	Pool  string    `json:"pool"`
	Nodes int       `json:"nodes"` // added to Base; in all when Whole
	Base  int       `json:"base,omitempty"`
	Whole bool      `json:"whole,omitempty"`
	Until time.Time `json:"until"`
	Actor string    `json:"actor"`
	// Reason is what the person gave.
	Reason string `json:"reason"`
}

// String says what is kept, and for whom.
func (h Hold) String() string {
	what := count(h.Nodes, "node")
	if !h.Whole {
		what = fmt.Sprintf("%s more than %d", what, h.Base)
	}
	return fmt.Sprintf("%s, for %s: %s", what, h.Actor, h.Reason)
}

// HoldsOf are the holds of a pool that count at an instant, the first to end first.
func (s State) HoldsOf(pool string, now time.Time) []Hold {
	var out []Hold
	for _, h := range s.Holds {
		if h.Pool == pool && h.Until.After(now) {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, func(a, b Hold) int { return cmp.Or(a.Until.Compare(b.Until), cmpString(a.ID, b.ID)) })
	return out
}

// Floor is how many nodes the holds of a pool keep. What several people added adds
// up; of numbers in all the highest counts.
func Floor(holds []Hold) int {
	base, added, whole := 0, 0, 0
	for _, h := range holds {
		if h.Whole {
			whole = max(whole, h.Nodes)
		} else {
			base, added = max(base, h.Base), added+h.Nodes
		}
	}
	if added > 0 {
		whole = max(whole, base+added)
	}
	return whole
}

// keepHeld raises the minimum of the pool to what its holds keep; never above max.
func (e *evaluation) keepHeld(p *poolRun) {
	holds := e.s.HoldsOf(p.Name, e.now)
	floor := min(Floor(holds), p.Max)
	if floor <= p.Min {
		return
	}
	first := holds[0]
	p.Min, p.minLifts = floor, time.Time{}
	if Floor(holds[1:]) < floor {
		p.minLifts = first.Until
	}
	p.minUntil = fmt.Sprintf(" until %s (kept for %s: %s)", instant(first.Until, e.now, time.UTC), first.Actor, first.Reason)
}

// heldRules writes a rule for each hold of the pool.
func (e *evaluation) heldRules(p *poolRun) {
	for _, h := range e.s.HoldsOf(p.Name, e.now) {
		p.rules = append(p.rules, Rule{Rule: "hold " + h.ID, Kind: RuleHold, Value: count(Floor([]Hold{h}), "node"), Verdict: None,
			Message: fmt.Sprintf("%s, until %s", h, instant(h.Until, e.now, time.UTC))})
	}
}

// hold keeps what a request brought, if it says for how long. A request that is
// served in parts has one hold.
func (e *evaluation) hold(p *poolRun, r Request, nodes int) {
	if r.HoldUntil.IsZero() {
		return
	}
	i := slices.IndexFunc(e.s.Holds, func(h Hold) bool { return h.ID == r.ID })
	switch {
	case i >= 0 && r.Action == ActionUp:
		e.s.Holds[i].Nodes += nodes
	case i < 0:
		h := Hold{ID: r.ID, Pool: r.Pool, Nodes: nodes, Whole: r.Action == ActionTo, Until: r.HoldUntil, Actor: r.Actor, Reason: r.Reason}
		if !h.Whole {
			// What others added is theirs and ends with them.
			h.Base = p.size - nodes
			for _, o := range e.s.HoldsOf(p.Name, e.now) {
				if !o.Whole {
					h.Base -= o.Nodes
				}
			}
			h.Base = max(h.Base, 0)
		}
		e.s.Holds = append(e.s.Holds, h)
	}
	e.keepHeld(p)
}

// release ends the holds of a pool: a later word about fewer nodes, or about how
// many it has in all, is the last one.
func (s *State) release(r Request) {
	if r.Action == ActionDown || r.Action == ActionTo {
		s.Holds = slices.DeleteFunc(slices.Clone(s.Holds), func(h Hold) bool { return h.Pool == r.Pool })
	}
}
