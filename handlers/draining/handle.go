package draining

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Codes of the reasons that draining gives.
const (
	ReasonRequestExpired = "RequestExpired" // read after its end; nothing was changed
	ReasonNotOurs        = "NotOurs"        // the node does not carry the claim
	ReasonNotDrainable   = "NotDrainable"   // pods that can't be evicted; nothing was changed
	ReasonDeadline       = "DrainDeadline"  // not empty in time
	ReasonNodeGone       = "NodeGone"       // the Node object does not exist any more
	ReasonNoReturn       = "PastNoReturn"   // a cancel or request for a node that is being removed
	ReasonUndoing        = "BeingUndone"    // a request while an earlier one is being undone
	ReasonRecovered      = "Recovered"      // a node that was to be removed as not Ready is Ready
	reasonUnknownCluster = "UnknownCluster" // not configured here
)

// Handle implements bus.Handler.
func (h *Handler) Handle(ctx context.Context, d bus.Delivery) error {
	switch d.Event.Type() {
	case events.TypeNodeDrainRequested:
		return handle(ctx, h, d, h.requested)
	case events.TypeNodeDrainCancelled:
		return handle(ctx, h, d, h.cancelled)
	case events.TypeTimerFired:
		return handle(ctx, h, d, h.timer)
	}
	return bus.Terminal(fmt.Errorf("event type %q is not for draining", d.Event.Type()))
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

// requested takes a request up. The worker does what it asks for.
func (h *Handler) requested(ctx context.Context, d bus.Delivery, p events.NodeDrainRequested) error {
	outcome := ""
	err := h.state.Apply(ctx, d, func(t *turn) error {
		st := t.State
		if st.RequestID == d.Event.ID() {
			outcome = "drain request is known already"
			t.Unchanged()
			return nil
		}
		if t.Now.After(p.NotAfter) {
			outcome = "drain request came too late, nothing was changed"
			t.Unchanged()
			return refuse(t, d, p, ReasonRequestExpired, fmt.Sprintf("the request ended at %s and was read at %s; nothing was changed",
				p.NotAfter.UTC().Format(time.RFC3339), t.Now.Format(time.RFC3339)))
		}
		var jobsUntil time.Time // of a drain under way, whose Jobs had their time
		if st.Active() && p.JobsDeadline > 0 {
			jobsUntil = st.JobsUntil
		}
		if st.Request(p.Goal, p.Deadline.Std(), t.Now) != nil {
			t.Unchanged()
			if st.Phase == lifecycle.DrainUncordoning {
				outcome = "drain request refused, an earlier one is being undone"
				return refuse(t, d, p, ReasonUndoing, "request "+st.RequestID+" is being undone; ask again when the node is uncordoned")
			}
			// A removal under way outranks what came later.
			outcome = "drain request refused, the node is being removed"
			return refuse(t, d, p, ReasonNoReturn, "the node is past the point of no return of request "+st.RequestID)
		}
		outcome = "drain request taken up"
		var followed []string
		if st.RequestID != "" && st.Phase != lifecycle.DrainDone {
			followed = slices.Concat(st.Followed, []string{st.RequestID})
		}
		var forced []lifecycle.Forced
		if st.Active() {
			forced = st.Forced
		}
		*st = lifecycle.Drain{
			Node: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Goal: st.Goal, RequestID: d.Event.ID(), ScaleRequestID: p.RequestID,
			DecisionID: p.DecisionID, Reason: lifecycle.Reason(p.Reason), Actor: p.Actor,
			CorrelationID: events.Extension(d.Event, events.ExtCorrelationID),
			Phase:         st.Phase, Since: st.Since, Deadline: st.Deadline, Within: st.Within,
			DecidedAt: p.DecidedAt, RequestedAt: st.RequestedAt, NotAfter: p.NotAfter,
			JobsWithin: p.JobsDeadline.Std(), JobsUntil: jobsUntil, Followed: followed, Forced: forced, Unready: p.Unready,
			Force:       p.OnDeadline == events.DeadlineForce,
			DeleteLocal: p.LocalStorage == events.PodsDelete, DeleteUnmanaged: p.Unmanaged == events.PodsDelete,
		}
		return nil
	})
	if err == nil {
		h.log.InfoContext(ctx, "drain request handled", "outcome", outcome, "node", p.Node, "goal", p.Goal, "reason", p.Reason.Code,
			"message", p.Reason.Message, "actor", p.Actor, "request", d.Event.ID(), "correlation_id", events.Extension(d.Event, events.ExtCorrelationID))
	}
	return err
}

// refuse publishes that a request changed nothing: the node stays capacity.
func refuse(t *turn, d bus.Delivery, p events.NodeDrainRequested, code, message string) error {
	return t.Emit(events.NodeUncordoned{
		DrainRef: events.DrainRef{Node: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Goal: p.Goal, RequestID: d.Event.ID(), At: t.Now},
		Reason:   events.Reason{Code: code, Message: message},
	})
}

// cancelled begins the undo of a drain or cordon. A person may also ask for a
// node that has no drain: then any cordon is undone.
func (h *Handler) cancelled(ctx context.Context, d bus.Delivery, p events.NodeDrainCancelled) error {
	outcome := ""
	err := h.state.Apply(ctx, d, func(t *turn) error {
		st := t.State
		var begun error
		switch {
		case st.Can(lifecycle.OnCancelled):
		case st.Phase == lifecycle.DrainDrained:
			outcome = "cancel refused, the node is past the point of no return"
			t.Unchanged()
			return emit(t, events.NodeCancelRefused{DrainRef: ref(t), CancelID: d.Event.ID(), Reason: events.Reason{
				Code: ReasonNoReturn, Message: "the node was drained in order to be removed, and is being removed"}})
		case p.Actor == "" || st.Phase == lifecycle.DrainUncordoning:
			outcome = "cancel ignored, there is nothing to undo"
			t.Unchanged()
			return nil
		default:
			*st = lifecycle.Drain{Node: p.Node, RequestID: d.Event.ID(), DecisionID: p.DecisionID,
				CorrelationID: events.Extension(d.Event, events.ExtCorrelationID)}
			begun = st.Request(lifecycle.GoalCordon, 0, t.Now)
		}
		outcome = "drain is being undone"
		st.UndoReason = lifecycle.Reason(p.Reason)
		st.NextAt, st.Attempt, st.Evicting, st.Forcing, st.WaitingFor = time.Time{}, 0, nil, nil, nil
		if p.Actor != "" {
			st.Actor, st.ScaleRequestID = p.Actor, p.RequestID
			st.UndoAnyone = true
		}
		return errors.Join(begun, st.On(lifecycle.OnCancelled, t.Now))
	})
	if err == nil {
		h.log.InfoContext(ctx, "drain cancel handled", "outcome", outcome, "node", p.Node, "reason", p.Reason.Code, "actor", p.Actor)
	}
	return err
}

// timer is a wake-up: writing the position wakes the worker, which compares the
// deadline itself.
func (h *Handler) timer(ctx context.Context, d bus.Delivery, _ events.TimerFired) error {
	return h.state.Apply(ctx, d, func(t *turn) error { t.Unchanged(); return nil })
}

// ref names the drain of a record in its events.
func ref(t *turn) events.DrainRef {
	st := t.State
	return events.DrainRef{Node: st.Node, Pool: st.Pool, ClaimID: st.ClaimID, Goal: st.Goal, RequestID: st.RequestID, At: t.Now}
}

// emit publishes with the correlation of the node's life.
func emit(t *turn, p events.Payload) error {
	return t.Emit(p, bus.Correlation(t.State.CorrelationID), bus.Causation(t.State.RequestID))
}
