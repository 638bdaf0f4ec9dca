package provisioning

import (
	"context"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// adoptWithin is how old a report of an unrecorded node may be: the node may have
// gone by all the rules since, and its record with it. The sweep reports again.
const adoptWithin = 10 * time.Minute

// adopt makes a record of a Ready node of ours that has none, from what its labels
// and its machine say. The worker looks for itself before anything else happens
// to it: what vanished meanwhile is lost like any other.
func (h *Handler) adopt(ctx context.Context, d bus.Delivery, p events.NodeDiverged, suspicion *lifecycle.Suspicion) error {
	if p.ClaimID == "" || p.Machine == nil || h.clock.Now().Sub(d.StreamTime) > adoptWithin {
		return nil
	}
	adopted := false
	err := h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		if adopted = n.Phase == ""; !adopted {
			t.Unchanged() // it has a record by now
			return nil
		}
		*n = lifecycle.Node{
			Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Epoch: p.Machine.Epoch,
			Instance: p.Instance, Host: p.Machine.Host, Image: p.Machine.Image, UID: p.Machine.UID,
			CorrelationID: correlation(d, p.ClaimID), CausationID: d.Event.ID(),
			Suspicion: suspicion,
		}
		if err := n.On(lifecycle.OnAdopted, t.Now); err != nil {
			return err
		}
		// When it was Ready first nobody knows: not before its machine was made.
		n.CreatedAt, n.ReadyAt = p.Machine.CreatedAt, p.Machine.CreatedAt
		if n.ReadyAt.IsZero() {
			n.ReadyAt = t.Now
		}
		return emit(t, events.NodeAdopted{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, Instance: n.Instance, Machine: *p.Machine, At: t.Now})
	})
	if err == nil && adopted {
		h.log.WarnContext(ctx, "node adopted: it is Ready, carries our labels, and had no record", "node", p.Node, "pool", p.Pool,
			"claim", p.ClaimID, "instance", p.Instance, "host", p.Machine.Host, "epoch", p.Machine.Epoch)
	}
	return err
}
