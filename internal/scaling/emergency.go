package scaling

import (
	"fmt"
	"time"
)

// missing are the nodes of a pool that are not Ready for so long that the minimum
// no longer counts on them. They still take their place below max, and count again
// when they come back.
func (e *evaluation) missing(p *poolRun) int {
	missing := 0
	for _, at := range e.givesUp(p) {
		if !at.After(e.now) {
			missing++
		}
	}
	return missing
}

// givesUp are the times at which the minimum stops to count on nodes of the pool
// that are not Ready and stay.
func (e *evaluation) givesUp(p *poolRun) []time.Time {
	if p.ReplaceUnreadyAfter <= 0 || e.world == nil {
		return nil
	}
	var out []time.Time
	for _, n := range e.world.order {
		if n.pool == p.Name && n.owned && !n.leaves && n.record.Phase == PhaseUnready && !n.node.Ready {
			out = append(out, n.record.Since.Add(p.ReplaceUnreadyAfter))
		}
	}
	return out
}

// emergency brings a pool to its minimum when nodes are lost, or not Ready for too
// long, and most of the rest may be unhealthy as well. That so many are is a reason
// to remove none and to follow no load: the fault may be elsewhere, and pods and
// metrics lie then. It is none to leave a pool without the nodes that it must have:
// what is missing is a fact of its own, and a few new nodes do no harm if it was
// not. So it is done in small steps: no more on their way than may be unready
// without a fault, and none while a pause or a backoff says so, or above max.
func (e *evaluation) emergency(p *poolRun, missing int) {
	have := p.size - missing
	want := p.Min - have
	step := max(e.policy.MaxUnreadyCount, 1)
	rule := Rule{Rule: RuleEmergency, Kind: RuleMinimum, Value: fmt.Sprint(have), Threshold: fmt.Sprint(p.Min), Verdict: Up, Delta: want}
	text := fmt.Sprintf("pool %s has %s", p.Name, count(have, "node"))
	if missing > 0 {
		text += fmt.Sprintf(" beside %s for longer than %s", agree(missing, "that is not Ready", "that are not Ready"), lasts(p.ReplaceUnreadyAfter))
	}
	why := Reason{CodeEmergency, fmt.Sprintf("%s, its minimum is %d%s", text, p.Min, p.minUntil)}
	rule.Message = fmt.Sprintf("at most %d at a time", step)
	if e.unready != nil {
		rule.Message += ", although " + e.unready.Message
	}
	p.rules = append(p.rules, rule)
	p.proposed = true
	switch room := step - p.inFlight - len(p.added); {
	case e.emergencyGuard(p) != nil:
		p.held(e.emergencyGuard(p), why)
	case room <= 0:
		p.held(&Guard{Guard: "claims_in_flight", code: CodeClaimsInFlight, Value: fmt.Sprint(p.inFlight + len(p.added)),
			Message: fmt.Sprintf("%s in pool %s, in an emergency at most %d are at a time", agree(p.inFlight+len(p.added), "new node is on the way", "new nodes are on the way"), p.Name, step),
			Lifts:   "when they are Ready or have failed"}, why)
	default:
		ask := min(want, room)
		if got := e.grow(p, ask, CauseMinimum, why); got < ask {
			p.capped(why, ask, got)
		}
	}
}

// emergencyGuard is upGuard without the unready nodes.
func (e *evaluation) emergencyGuard(p *poolRun) *Guard {
	unready := e.unready
	e.unready = nil
	defer func() { e.unready = unready }()
	return e.upGuard(p, false)
}
