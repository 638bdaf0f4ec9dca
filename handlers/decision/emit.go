package decision

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// emit publishes what an evaluation came to: the decisions first, then what
// follows from them.
func (h *Handler) emit(d bus.Delivery, t *bus.Turn[Record], before scaling.State, res scaling.Result, v *view) error {
	rec := t.State
	dry := bus.DryRun(rec.DryRun())
	var from, to string
	for _, dec := range res.Decisions {
		if !dec.Changed {
			continue
		}
		if from == "" {
			from, to = before.Digest(), res.State.Digest()
		}
		p := payload(dec)
		p.Inputs = inputs(d, dec)
		p.Policy, p.StateBefore, p.StateAfter, p.EvaluatedAt, p.Version = rec.policyDigest(), from, to, res.State.Now, h.version
		if err := t.Emit(verdict(p), dry); err != nil {
			return err
		}
	}
	since, reasons := decided(res)
	for _, c := range res.Claims {
		pool, ok := rec.pool(c.Pool)
		if !ok {
			return bus.Terminal(fmt.Errorf("claim %s: the policy has no pool %s", c.ID, c.Pool))
		}
		p := events.NodeClaimed{ClaimID: c.ID, Node: c.Node, Pool: c.Pool, Provider: pool.Provider, DecisionID: c.DecisionID,
			Reason: reasons[c.DecisionID].reason, Actor: reasons[c.DecisionID].actor, Size: pool.Size, Labels: pool.Labels,
			Taints:    slices.Concat(pool.Taints, pool.StartupTaints),
			ClaimedAt: c.ClaimedAt, NotAfter: c.NotAfter, RegisterDeadline: pool.RegisterDeadline, TriggerSince: since[c.DecisionID]}
		if err := t.EmitTo(c.Node, p, dry, bus.Correlation(correlation(c.ID))); err != nil {
			return err
		}
	}
	for _, o := range res.Cancels {
		p := events.NodeDrainCancelled{Node: o.Node, DecisionID: o.DecisionID, RequestID: o.RequestID, Reason: events.Reason(o.Reason), Actor: o.Actor}
		if err := t.EmitTo(o.Node, p, dry, bus.Correlation(v.correlation(o))); err != nil {
			return err
		}
	}
	for _, o := range res.Drains {
		p := events.NodeDrainRequested{Node: o.Node, Pool: o.Pool, ClaimID: o.ClaimID, Goal: o.Goal, DecisionID: o.DecisionID,
			RequestID: o.RequestID, Reason: events.Reason(o.Reason), Actor: o.Actor, DecidedAt: res.State.Now, NotAfter: o.NotAfter,
			Deadline: events.Duration(o.Deadline), JobsDeadline: events.Duration(o.JobsDeadline), Unready: o.Unready}
		if o.Force {
			p.OnDeadline = events.DeadlineForce
		}
		if o.Evicts.DeleteLocal {
			p.LocalStorage = events.PodsDelete
		}
		if o.Evicts.DeleteUnmanaged {
			p.Unmanaged = events.PodsDelete
		}
		if err := t.EmitTo(o.Node, p, dry, bus.Correlation(v.correlation(o))); err != nil {
			return err
		}
	}
	return nil
}

// inputs are the events that a decision rests on, the one that it followed first.
func inputs(d bus.Delivery, dec scaling.Decision) []string {
	return append([]string{d.Event.ID()}, without(dec.Inputs, d.Event.ID())...)
}

// correlation is the one value of a node's life, chosen at its claim.
func correlation(claimID string) string { return events.ID("life", claimID) }

// correlation is the one that the node's record carries, or the one that was
// chosen at its claim.
func (v *view) correlation(o scaling.Order) string {
	if r, ok := v.fold.Records()[o.Node]; ok && r.CorrelationID != "" {
		return r.CorrelationID
	}
	return correlation(o.ClaimID)
}

type because struct {
	reason events.Reason
	actor  string
}

// decided gathers by decision when its need arose, and its reason.
func decided(res scaling.Result) (map[string]time.Time, map[string]because) {
	since, why := map[string]time.Time{}, map[string]because{}
	for _, d := range res.Decisions {
		since[d.ID], why[d.ID] = d.TriggerSince, because{events.Reason(d.Reason), d.Actor}
	}
	return since, why
}

func without(ids []string, id string) []string {
	var out []string
	for _, o := range ids {
		if o != id {
			out = append(out, o)
		}
	}
	return out
}

// payload is a decision in the words of the catalogue.
func payload(d scaling.Decision) events.Decision {
	out := events.Decision{ID: d.ID, Pool: d.Pool, Verdict: d.Verdict, Reason: events.Reason(d.Reason), Delta: d.Delta, Nodes: d.Nodes,
		Size: d.Size, Min: d.Min, Max: d.Max, WouldChange: d.WouldChange, Pods: d.Pods, PodCount: d.PodCount, Requests: d.Requests,
		Actor: d.Actor, TriggerSince: d.TriggerSince}
	for _, r := range d.Rules {
		out.Rules = append(out.Rules, events.RuleResult(r))
	}
	for _, g := range d.Guards {
		out.Guards = append(out.Guards, events.GuardResult{Guard: g.Guard, Value: g.Value, Message: g.Message, Until: g.Until, Lifts: g.Lifts})
	}
	for _, a := range d.Rejected {
		out.Rejected = append(out.Rejected, events.Alternative{Subject: a.Subject, Reason: events.Reason(a.Reason), Fix: a.Fix, Pods: a.Pods})
	}
	for _, r := range d.Overruled {
		out.Overruled = append(out.Overruled, events.Reason(r))
	}
	return out
}

func verdict(d events.Decision) events.Payload {
	switch d.Verdict {
	case events.VerdictUp:
		return events.ScaleupDecided{Decision: d}
	case events.VerdictDown:
		return events.ScaledownDecided{Decision: d}
	}
	return events.ScaleHeld{Decision: d}
}

// checkpoint publishes the full state after a full snapshot: a replay starts
// there.
func (h *Handler) checkpoint(t *bus.Turn[Record]) error {
	rec := t.State
	raw, err := json.Marshal(rec)
	if err != nil {
		return bus.Terminal(fmt.Errorf("encode the checkpoint of cluster %s: %w", t.Key.Cluster, err))
	}
	p := events.DecisionCheckpointed{State: raw, StateDigest: rec.Core.Digest(), Snapshot: rec.Full, Policy: rec.policyDigest(),
		At: t.Now, Version: h.version}
	if rec.Config != nil {
		p.Config = rec.Config.Sequence
	}
	return t.Emit(p, bus.DryRun(rec.DryRun()))
}
