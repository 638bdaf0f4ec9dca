package provisioning

import (
	"context"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Codes of the reasons that provisioning gives.
const (
	ReasonClaimExpired   = "ClaimExpired"     // not started before the claim's end
	ReasonNameTaken      = "NameTaken"        // a machine of that name belongs to someone else
	ReasonImage          = "ImageUnavailable" // the image is missing and can't be pulled
	ReasonRefused        = "ProviderRefused"  // the provider can't ever fulfil the claim
	ReasonNoSpace        = "NoSpace"          // no host of the pool has room on its disk
	ReasonNoRoom         = "NoRoom"           // no host of the pool has room for the machine
	ReasonUnknownPool    = "UnknownPool"      // the pool has no provider
	ReasonNotRegistered  = "NotRegistered"    // no Node object at the deadline
	ReasonNotReady       = "NotReady"         // a Node object that was never Ready, or no longer is
	ReasonMachineExited  = "MachineExited"    // the machine ended
	ReasonMachineGone    = "MachineGone"      // the machine vanished
	ReasonNodeDeleted    = "NodeDeleted"      // someone deleted the Node object
	ReasonOrphanInstance = "OrphanInstance"   // a machine of ours without a live record
	ReasonOrphanNode     = "OrphanNode"       // a Node object of ours without machine and record
)

// Codes that a machine's own log gives in place of NotRegistered, NotReady and
// MachineExited.
const (
	ReasonTokenRejected     = "TokenRejected"        // the server does not accept the join token
	ReasonPasswordRejected  = "NodePasswordRejected" // the server knows the name with another password
	ReasonServerUnreachable = "ServerUnreachable"    // the agent can't reach server_url
	ReasonLabelRefused      = "LabelRefused"         // the kubelet or the server refuses a label of the node
)

// suspectExited is the kind of a suspicion that no divergence stands for.
const suspectExited = "exited"

// Handle implements bus.Handler.
func (h *Handler) Handle(ctx context.Context, d bus.Delivery) error {
	switch d.Event.Type() {
	case events.TypeNodeClaimed:
		return handle(ctx, h, d, h.claimed)
	case events.TypeNodeObserved:
		return handle(ctx, h, d, h.observed)
	case events.TypeNodeDiverged:
		return handle(ctx, h, d, h.diverged)
	case events.TypeNodeCordoned:
		return handle(ctx, h, d, h.cordoned)
	case events.TypeNodeDrained:
		return handle(ctx, h, d, h.drained)
	case events.TypeNodeUncordoned:
		return handle(ctx, h, d, h.uncordoned)
	case events.TypeTimerFired:
		return handle(ctx, h, d, h.timer)
	case events.TypeReconcileRequested:
		return handle(ctx, h, d, h.reconcileRequested)
	case events.TypeNodeDrainProgressed, events.TypeNodeDrainBlocked:
		return nil // draining's own record tells how far a drain is
	}
	return bus.Terminal(fmt.Errorf("event type %q is not for provisioning", d.Event.Type()))
}

func handle[P events.Payload](ctx context.Context, h *Handler, d bus.Delivery, f func(context.Context, bus.Delivery, P) error) error {
	if events.IsDryRun(d.Event) {
		h.log.InfoContext(ctx, "event of a dry run ignored", "node", d.Key.Name, "event", d.Event.ID(), "type", d.Event.Type())
		return nil
	}
	p, err := events.Decode[P](d.Event)
	if err != nil {
		return bus.Terminal(err)
	}
	if err := f(ctx, d, p); err != nil {
		return fmt.Errorf("%s of node %s: %w", d.Event.Type(), d.Key.Name, err)
	}
	return nil
}

// claimed takes a claim up. The machine is created by the worker.
func (h *Handler) claimed(ctx context.Context, d bus.Delivery, p events.NodeClaimed) error {
	outcome := ""
	err := h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		switch {
		case n.Phase == "":
		case n.ClaimID == p.ClaimID:
			outcome = "claim is known already"
			t.Unchanged()
			return nil
		case !n.Settled():
			// Names are derived from claims, so this is a claim made by hand.
			outcome = "claim refused, another claim holds the name"
			return t.Emit(events.NodeFailed{Node: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Failure: events.Failure{
				Stage: string(lifecycle.Claimed), At: t.Now,
				Reason: events.Reason{Code: ReasonNameTaken, Message: fmt.Sprintf("claim %s holds the name %s", n.ClaimID, p.Node)},
			}}, bus.Correlation(correlation(d, p.ClaimID)))
		}
		*n = newNode(d, p)
		if t.Now.After(p.NotAfter) {
			outcome = "claim came too late"
			return h.failNode(t, failure{
				code: ReasonClaimExpired,
				message: fmt.Sprintf("the claim ended at %s and was read at %s; nothing was created",
					p.NotAfter.UTC().Format(time.RFC3339), t.Now.UTC().Format(time.RFC3339)),
			})
		}
		outcome = "claim taken up"
		if epoch, ok := t.TakeUp(); ok {
			n.Creation = &lifecycle.Creation{Operation: createOperation(p.ClaimID), Lease: epoch}
		}
		return n.On(lifecycle.OnClaimed, t.Now)
	})
	if err == nil && outcome != "" {
		h.log.InfoContext(ctx, "node claim handled", "outcome", outcome, "node", p.Node, "pool", p.Pool,
			"claim", p.ClaimID, "reason", p.Reason.Code, "correlation_id", correlation(d, p.ClaimID))
	}
	return err
}

func newNode(d bus.Delivery, p events.NodeClaimed) lifecycle.Node {
	n := lifecycle.Node{
		Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Provider: p.Provider, Epoch: d.Incarnation,
		Spec: lifecycle.Spec{
			CPUMilli: p.Size.CPUMilli, MemoryBytes: p.Size.MemoryBytes, MaxPods: p.Size.Pods, Labels: p.Labels,
		},
		CorrelationID: correlation(d, p.ClaimID), CausationID: d.Event.ID(), DecisionID: p.DecisionID, Actor: p.Actor,
		Reason:       lifecycle.Reason(p.Reason),
		TriggerSince: p.TriggerSince, DecidedAt: p.ClaimedAt,
		NotAfter: p.NotAfter, RegisterWithin: p.RegisterDeadline.Std(),
	}
	for _, t := range p.Taints {
		n.Spec.Taints = append(n.Spec.Taints, lifecycle.Taint(t))
	}
	return n
}

// correlation is the id of the node's life: the event's, or the claim's.
func correlation(d bus.Delivery, claim string) string {
	if id := events.Extension(d.Event, events.ExtCorrelationID); id != "" {
		return id
	}
	return claim
}

// change applies f to the record of a node that has one.
func (h *Handler) change(ctx context.Context, d bus.Delivery, f func(t *bus.Turn[lifecycle.Node]) error) error {
	_, ok, err := h.state.Get(ctx, d.Key)
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if !ok {
		h.log.DebugContext(ctx, "event of a node without a record ignored", "node", d.Key.Name, "type", d.Event.Type())
		return nil
	}
	return h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		if t.State.Phase == "" {
			t.Unchanged()
			return nil
		}
		return f(t)
	})
}

// timer is a wake-up: any change of the record wakes the worker, which
// compares the deadline itself.
func (h *Handler) timer(ctx context.Context, d bus.Delivery, _ events.TimerFired) error {
	return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error { t.Unchanged(); return nil })
}

func (h *Handler) cordoned(ctx context.Context, d bus.Delivery, p events.NodeCordoned) error {
	return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		if !n.Phase.Live() || p.ClaimID != "" && p.ClaimID != n.ClaimID {
			t.Unchanged()
			return nil
		}
		n.Drained = &lifecycle.AfterDrain{RequestID: p.RequestID, CordonedAt: t.Now}
		return nil
	})
}

func (h *Handler) uncordoned(ctx context.Context, d bus.Delivery, p events.NodeUncordoned) error {
	return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		if !n.Phase.Live() || n.Drained == nil || n.Drained.RequestID != p.RequestID {
			t.Unchanged()
			return nil
		}
		n.Drained = nil
		return nil
	})
}

// drained begins the removal of a node that was emptied for it. The node needs
// no record: its claim label is what draining and decision went by, and a
// record can be lost with the log.
func (h *Handler) drained(ctx context.Context, d bus.Delivery, p events.NodeDrained) error {
	if p.Goal != events.GoalRemove {
		return nil // the node stays
	}
	if p.ClaimID == "" {
		return bus.Terminal(fmt.Errorf("node %s was drained for removal without a claim: it is not ours to remove", p.Node))
	}
	outcome := ""
	var refused func()
	err := h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		if n.Phase == "" {
			*n = lifecycle.Node{Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, CorrelationID: correlation(d, p.ClaimID)}
		}
		switch {
		case n.ClaimID != p.ClaimID:
			outcome = "drained node ignored, its name belongs to another claim"
			t.Unchanged()
			return nil
		case n.On(lifecycle.OnDrained, t.Now) != nil:
			outcome = "drained node ignored, it is gone or going already"
			t.Unchanged()
			var err error
			refused, err = h.refuse(ctx, t, d, lifecycle.OnDrained, "it was drained in order to be removed")
			return err
		}
		after := &lifecycle.AfterDrain{
			RequestID: p.RequestID, DecisionID: p.DecisionID, Actor: p.Actor,
			Reason:    lifecycle.Reason(p.Reason),
			DecidedAt: p.DecidedAt, DrainedAt: t.Now,
		}
		if n.Drained != nil && n.Drained.RequestID == p.RequestID {
			after.CordonedAt = n.Drained.CordonedAt
		}
		n.Drained, n.Suspicion, n.CausationID = after, nil, d.Event.ID()
		beginRemoval(n, lifecycle.Reason(p.Reason), t.Now)
		outcome = "removal of drained node begins"
		return nil
	})
	if err == nil && refused != nil {
		refused()
	}
	if err == nil && outcome != "" {
		h.log.InfoContext(ctx, "drained node handled", "outcome", outcome, "node", p.Node, "claim", p.ClaimID,
			"request", p.RequestID, "reason", p.Reason.Code)
	}
	return err
}

// diverged notes what the sweep found. The worker looks for itself before it
// acts.
func (h *Handler) diverged(ctx context.Context, d bus.Delivery, p events.NodeDiverged) error {
	suspicion := &lifecycle.Suspicion{Kind: p.Kind, Detail: p.Detail, Instance: p.Instance, At: d.StreamTime}
	switch p.Kind {
	case events.DivergedStuck:
		return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error { t.Unchanged(); return nil }) // wakes the worker
	case events.DivergedUnrecorded:
		return h.adopt(ctx, d, p, suspicion)
	case events.DivergedNodeLost:
		return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
			if n := t.State; n.ClaimID == p.ClaimID && n.Phase.Live() && n.Suspicion == nil {
				n.Suspicion, n.CausationID = suspicion, d.Event.ID()
				return nil
			}
			t.Unchanged()
			return nil
		})
	}
	if p.ClaimID == "" {
		return nil // without a claim it is not ours
	}
	return h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		switch {
		case n.Phase == "":
			*n = lifecycle.Node{Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Epoch: d.Incarnation,
				CorrelationID: correlation(d, p.ClaimID)}
			if err := n.On(lifecycle.OnOrphaned, t.Now); err != nil {
				return err
			}
		case n.ClaimID != p.ClaimID, !n.Settled():
			t.Unchanged() // it has an owner, or is being cleaned up
			return nil
		}
		n.Suspicion, n.CausationID = suspicion, d.Event.ID()
		return nil
	})
}
