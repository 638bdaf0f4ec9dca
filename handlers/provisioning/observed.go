package provisioning

import (
	"cmp"
	"context"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// observed moves the record on with what the API server or the provider say.
func (h *Handler) observed(ctx context.Context, d bus.Delivery, p events.NodeObserved) error {
	if p.What == events.ObservedNamed {
		return h.named(ctx, d, p)
	}
	var after func()
	err := h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		after = nil
		n := t.State
		if claim := p.Labels[events.LabelClaim]; p.What != events.ObservedExited && !concerns(n, claim, p.UID) {
			after = func() {
				h.log.WarnContext(ctx, "observation ignored, the Node object does not carry this claim",
					"node", n.Name, "what", p.What, "claim", n.ClaimID, "found", claim)
			}
			t.Unchanged()
			return nil
		}
		var changed bool
		var err error
		switch p.What {
		case events.ObservedRegistered:
			changed, err = h.onRegistered(t, p)
		case events.ObservedReady:
			changed, after, err = h.onReady(t, p)
		case events.ObservedUnready:
			changed, err = onUnready(t, p)
		case events.ObservedDeleted:
			changed = onDeleted(t, p)
		case events.ObservedExited:
			changed = onExited(t, p)
		}
		switch {
		case !changed && err == nil:
			t.Unchanged()
			after, err = h.refuse(ctx, t, d, observedEvents[p.What], "the API server says it is "+p.What)
		case !changed:
		case n.Suspicion != nil:
			n.CausationID = d.Event.ID() // of what the worker finds
		}
		return err
	})
	if err == nil && after != nil {
		after()
	}
	return err
}

// concerns reports whether a Node object is this claim's: by its label, or,
// where an observation carries none, by the UID it registered with.
func concerns(n *lifecycle.Node, claim, uid string) bool {
	if claim != "" || uid == "" {
		return claim == n.ClaimID
	}
	return uid == n.UID || n.Early != nil && uid == n.Early.UID
}

func (h *Handler) onRegistered(t *bus.Turn[lifecycle.Node], p events.NodeObserved) (bool, error) {
	n := t.State
	switch {
	case n.Phase == lifecycle.Claimed && n.Creation != nil:
		// The start is not recorded yet: its owner died, or is about to record it.
		if n.Early != nil && n.Early.UID == p.UID {
			return false, nil
		}
		n.Early = &lifecycle.Early{UID: p.UID, RegisteredAt: t.Now}
		return true, nil
	case n.Phase.Can(lifecycle.OnRegistered):
		return true, registerNode(t, p.UID)
	case n.Phase.Live() && n.Phase != lifecycle.Claimed && p.UID != "" && p.UID != n.UID:
		n.UID = p.UID // the machine was restarted and registered again
		return true, nil
	}
	return false, nil
}

// registerNode records and publishes that the Node object exists.
func registerNode(t *bus.Turn[lifecycle.Node], uid string) error {
	n := t.State
	if err := n.On(lifecycle.OnRegistered, t.Now); err != nil {
		return err
	}
	n.UID = uid
	return emit(t, events.NodeRegistered{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, UID: n.UID, At: t.Now})
}

func (h *Handler) onReady(t *bus.Turn[lifecycle.Node], p events.NodeObserved) (changed bool, after func(), err error) {
	n := t.State
	switch n.Phase {
	case lifecycle.Claimed:
		if n.Creation == nil {
			return false, nil, nil
		}
		if n.Early == nil || n.Early.UID != p.UID {
			n.Early = &lifecycle.Early{UID: p.UID, RegisteredAt: t.Now}
		}
		if !n.Early.ReadyAt.IsZero() {
			return false, nil, nil
		}
		n.Early.ReadyAt = t.Now
		return true, nil, nil
	case lifecycle.Created:
		if err := registerNode(t, p.UID); err != nil {
			return false, nil, err
		}
	case lifecycle.Registered, lifecycle.Unready:
	case "", lifecycle.Ready, lifecycle.Failed, lifecycle.Lost, lifecycle.Removing, lifecycle.Removed, lifecycle.Renamed:
		return false, nil, nil
	}
	after, err = h.readyNode(t)
	return true, after, err
}

// readyNode records and publishes that the node is Ready. What it returns is
// to be called once that is written.
func (h *Handler) readyNode(t *bus.Turn[lifecycle.Node]) (func(), error) {
	n := t.State
	first := n.ReadyAt.IsZero()
	if err := n.On(lifecycle.OnReady, t.Now); err != nil {
		return nil, err
	}
	p := events.NodeReady{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, At: t.Now, First: first}
	if first {
		p.Stages = stages([]lifecycle.Stage{
			{Name: "", At: n.TriggerSince}, {Name: "decided", At: n.DecidedAt}, {Name: "claimed", At: n.ClaimedAt},
			{Name: "created", At: n.CreatedAt}, {Name: "registered", At: n.RegisteredAt}, {Name: "ready", At: n.ReadyAt},
		})
	}
	took, node := n.ReadyAt.Sub(n.CreatedAt), *n
	return func() {
		if first {
			h.metrics.registration.Observe(took.Seconds())
			h.metrics.stages("up", p.Stages)
		}
		h.log.Info("node is ready", "node", node.Name, "pool", node.Pool, "claim", node.ClaimID, "first", first,
			"since_start_seconds", took.Seconds(), "correlation_id", node.CorrelationID)
	}, emit(t, p)
}

func onUnready(t *bus.Turn[lifecycle.Node], p events.NodeObserved) (bool, error) {
	n := t.State
	if n.Phase == lifecycle.Claimed && n.Early != nil && !n.Early.ReadyAt.IsZero() {
		n.Early.ReadyAt = time.Time{}
		return true, nil
	}
	if !n.Phase.Can(lifecycle.OnUnready) {
		return false, nil
	}
	if err := n.On(lifecycle.OnUnready, t.Now); err != nil {
		return false, err
	}
	reason := events.Reason{Code: p.Reason, Message: p.Message}
	if reason.Code == "" {
		reason.Code = ReasonNotReady
	}
	return true, emit(t, events.NodeUnready{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, Reason: reason, At: t.Now})
}

func onDeleted(t *bus.Turn[lifecycle.Node], p events.NodeObserved) bool {
	n := t.State
	if n.Phase == lifecycle.Claimed && n.Early != nil {
		n.Early = nil
		return true
	}
	if !n.Phase.Live() || n.UID == "" || p.UID != "" && p.UID != n.UID || n.Suspicion != nil {
		return false
	}
	n.Suspicion = &lifecycle.Suspicion{Kind: events.DivergedNodeLost, Detail: "the Node object was deleted", At: t.Now}
	return true
}

// onExited takes note of a machine that ended before its node was Ready. Later
// its end shows as a node that is not Ready, and the sweep looks whether the
// machine came back: a host that restarts its machines needs that time.
func onExited(t *bus.Turn[lifecycle.Node], p events.NodeObserved) bool {
	n := t.State
	if !n.Phase.Waiting() || n.Suspicion != nil {
		return false
	}
	n.Suspicion = &lifecycle.Suspicion{Kind: suspectExited, Detail: p.Message, At: t.Now}
	return true
}

// emit publishes an event of the node's life. Without a message that causes it,
// the cause is the one that the work follows from.
func emit(t *bus.Turn[lifecycle.Node], p events.Payload) error {
	n := t.State
	return t.Emit(p, bus.Correlation(n.CorrelationID), func(m *events.Meta) { m.CausationID = cmp.Or(m.CausationID, n.CausationID) })
}

// stages turns points in time into durations. The first point is where it
// begins; points that are unknown are left out.
func stages(points []lifecycle.Stage) []events.Stage {
	var last time.Time
	var out []events.Stage
	for _, p := range points {
		if p.At.IsZero() {
			continue
		}
		if !last.IsZero() && p.Name != "" {
			out = append(out, events.Stage{Name: p.Name, Seconds: max(0, p.At.Sub(last).Seconds())})
		}
		last = p.At
	}
	return out
}
