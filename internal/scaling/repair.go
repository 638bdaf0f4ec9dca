package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Unwell is for how long a node has not been Ready. Stretches that follow each other
// closely add up: a node that is Ready for a moment in between is not well.
type Unwell struct {
	For     time.Duration `json:"for,omitempty"`     // of earlier stretches
	Since   time.Time     `json:"since,omitzero"`    // of the present one; zero: it is Ready
	ReadyAt time.Time     `json:"ready_at,omitzero"` // since when it is Ready again
}

// At is how long the node has not been Ready at an instant.
func (u Unwell) At(now time.Time) time.Duration {
	if u.Since.IsZero() {
		return u.For
	}
	return u.For + max(0, now.Sub(u.Since))
}

// wellAfter is how long a node must be Ready at a stretch for what was before to be
// forgotten: a fifth of the time after which it is repaired. So one that is Ready
// most of the time is never repaired for a moment here and there, and one that is
// Ready for moments only is.
func (p Pool) wellAfter() time.Duration { return p.RepairAfter / 5 }

// RepairsAt is when the node is to be repaired if it stays not Ready; zero: it is
// Ready, or the pool repairs none.
func (p Pool) RepairsAt(u Unwell) time.Time {
	if p.RepairAfter <= 0 || u.Since.IsZero() {
		return time.Time{}
	}
	return u.Since.Add(p.RepairAfter - u.For)
}

// ailing is a node that is not Ready, or was not a moment ago.
type ailing struct {
	n *simNode
	p *poolRun
	u Unwell
}

// repair removes nodes that have not been Ready for too long. Such a node is no
// capacity: neither utilization nor the minimum keeps it, its pods are not moved, and
// the minimum and the pods find a new one in this evaluation or the next. What is
// unknown repairs nothing and forgets nothing.
func (e *evaluation) repair() {
	if e.notForRemoval() != nil {
		return
	}
	sick := e.examine()
	slices.SortStableFunc(sick, func(a, b ailing) int { return cmp.Compare(b.u.At(e.now), a.u.At(e.now)) })
	for _, s := range sick {
		at := s.p.RepairsAt(s.u)
		if at.IsZero() {
			continue
		}
		rule := Rule{Rule: "readiness of " + s.n.name, Kind: RuleRepair, Value: lasts(s.u.At(e.now).Truncate(time.Second)),
			Threshold: lasts(s.p.RepairAfter), Verdict: None}
		if at.After(e.now) {
			rule.Message = "is not Ready; unless it becomes so it is removed at " + at.Format(time.RFC3339)
			s.p.rule(rule)
			e.repairs = append(e.repairs, at)
			continue
		}
		rule.Verdict, rule.Delta = Down, -1
		why := Reason{CodeUnready, fmt.Sprintf("node %s has not been Ready for %s, longer than repair.after of pool %s, %s: it is removed without waiting for its pods, whose kubelet answers nobody",
			s.n.name, lasts(s.u.At(e.now).Truncate(time.Second)), s.p.Name, lasts(s.p.RepairAfter))}
		if g := e.repairGuard(s); g != nil {
			s.p.held(g, why)
			rule.Message = g.Message
		} else if e.remove(s.n, s.p, why, Request{repair: true}) {
			e.drains[len(e.drains)-1].Unready = true
			// A node that comes in its place is no sign that too many were removed.
			d := e.s.Drains[s.n.name]
			d.Counted = true
			e.s.Drains[s.n.name] = d
			s.p.trigger(at)
		}
		s.p.rule(rule)
	}
}

// examine brings what is remembered of the nodes' health up to date.
func (e *evaluation) examine() []ailing {
	var out []ailing
	keep := map[string]Unwell{}
	for _, n := range e.world.order {
		if !n.owned || n.leaves || n.node == nil || n.record.Phase != PhaseReady && n.record.Phase != PhaseUnready {
			continue
		}
		p := e.pool(n.pool)
		if !p.known || p.RepairAfter <= 0 {
			continue
		}
		u, was := e.s.Unready[n.name]
		if n.node.Ready && !was {
			continue
		}
		if u = u.now(e.now, n, p.wellAfter()); u == (Unwell{}) {
			continue
		}
		keep[n.name] = u
		out = append(out, ailing{n, p, u})
	}
	e.s.Unready = keep
	return out
}

// now is what was known of the node before, and what is seen of it now.
func (u Unwell) now(now time.Time, n *simNode, well time.Duration) Unwell {
	changed := n.node.ReadySince // when the condition changed last, to Ready or away from it
	if n.node.Ready {
		if changed.After(now) || changed.Before(u.Since) {
			changed = now
		}
		if !u.Since.IsZero() {
			u = Unwell{For: u.For + max(0, changed.Sub(u.Since)), ReadyAt: changed}
		}
		if now.Sub(u.ReadyAt) >= well {
			return Unwell{}
		}
		return u
	}
	// Both the API server and the record say since when. The later counts: the earlier
	// may be of a stretch whose end nobody saw.
	since := changed
	if n.record.Phase == PhaseUnready && n.record.Since.After(since) {
		since = n.record.Since
	}
	if since.IsZero() || since.After(now) { // nobody says: since it was seen so
		if since = u.Since; since.IsZero() {
			since = now
		}
	}
	switch {
	case !u.ReadyAt.IsZero() && since.Sub(u.ReadyAt) >= well:
		return Unwell{Since: since}
	case u.Since.IsZero() || since.After(u.Since):
		return Unwell{For: u.For, Since: since}
	}
	return u
}

// repairGuard is what keeps a node from being repaired, or nil. Budgets with a window
// are no reason: they keep what works from being disturbed.
func (e *evaluation) repairGuard(s ailing) *Guard {
	p := s.p
	switch g := e.paused(p); {
	case e.unready != nil: // the fault is elsewhere
		return e.unready
	case g != nil:
		return g
	}
	if g := e.cooling("startup_grace", e.s.StartedAt, e.policy.StartupGrace, "the program started"); g != nil {
		g.code = CodeStartupGrace
		return g
	}
	if b := p.st.Backoff; b.Until.After(e.now) { // what can't make nodes may be why this one is not Ready
		return &Guard{Guard: "backoff", code: CodeBackoff, Value: lasts(b.Duration), Until: b.Until,
			Message: fmt.Sprintf("pool %s backs off: no other node could come in the place of %s", p.Name, s.n.name),
			Lifts:   "by itself, or when the backoff of the pool is reset"}
	}
	if most := max(p.MaxRemovals, 1); p.leaving >= most {
		return &Guard{Guard: "max_removals", code: CodeRemovalsInFlight, Value: fmt.Sprintf("%d of %d", p.leaving, most),
			Message: fmt.Sprintf("%s of pool %s, at most %d may leave at a time", agree(p.leaving, "node is leaving", "nodes are leaving"), p.Name, most),
			Lifts:   "when a removal is over"}
	}
	if g := e.blastGuard(); g != nil {
		return g
	}
	if bs := e.irreparable(s.n); len(bs) > 0 {
		p.rejected = append(p.rejected, bs...)
		return &Guard{Guard: "repair", code: CodeNoRemovableNode, Value: s.n.name,
			Message: fmt.Sprintf("node %s is not Ready and stays: it %s", s.n.name, bs[0].Reason.Message), Lifts: bs[0].Fix}
	}
	return nil
}

// irreparable says what would be lost with a node that is not Ready, or who forbids
// its removal. Kubernetes itself takes pods off such a node after five minutes,
// whatever their annotations; data that outlives pods is another matter.
func (e *evaluation) irreparable(n *simNode) []Alternative {
	var out []Alternative
	block := func(code, message, fix string) {
		if len(out) < maxNamed {
			out = append(out, Alternative{Subject: "node " + n.name, Reason: Reason{code, message}, Fix: fix})
		}
	}
	if slices.Contains(e.policy.ProtectedNodes, n.name) {
		block("Protected", "is in protected_nodes", "take it off protected_nodes")
	}
	for annotation, code := range map[string]string{AnnotationScaleDownDisabled: "ScaleDownDisabled", AnnotationDoNotDisrupt: "DoNotDisrupt"} {
		if n.node.Annotations[annotation] == "true" {
			block(code, "carries the annotation "+annotation, "remove the annotation from the node")
		}
	}
	for _, p := range n.pods {
		c := e.world.classes[p.Class]
		if p.Mirror || p.OwnerKind == "DaemonSet" || p.Annotations[evictable.SafeToEvict] == "true" {
			continue
		}
		if c == nil {
			block("UnknownClass", fmt.Sprintf("runs pod %s, of which nothing is known", p.Ref()), "wait for the next snapshot")
			continue
		}
		for _, v := range evictable.Lasting(evictable.Pod{Namespace: p.Namespace, Labels: c.Labels, Annotations: p.Annotations, Local: p.LocalStorage}) {
			if v.Kind != evictable.EmptyDir {
				block("LocalStorage", fmt.Sprintf("keeps data of pod %s in volume %s (%s)", p.Ref(), v.Name, v.Kind),
					"bring the node back, or annotate the pod "+evictable.SafeToEvict+"=true, or remove the node by hand")
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Alternative) int { return cmpString(a.Reason.Code, b.Reason.Code) })
	return out
}
