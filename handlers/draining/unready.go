package draining

import (
	"context"
	"errors"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// maxLeft is how many of the pods that are left on a node an event names.
const maxLeft = 100

// abandon ends the drain of a node that has not been Ready for too long. Its kubelet
// confirms no eviction, so none is asked for: provisioning stops the machine first,
// then deletes the Node object, and with that Kubernetes takes the pods away. It is
// looked at once more behind the cordon; a node that is Ready after all stays.
func (h *Handler) abandon(ctx context.Context, l *lease) error {
	d := l.Record()
	c, err := h.cluster(l.Key().Cluster)
	if err != nil {
		return err
	}
	node, err := c.Node(ctx, d.Node)
	switch {
	case errors.Is(err, ErrNotFound):
		return h.gone(ctx, l)
	case err != nil:
		return fmt.Errorf("look at the node: %w", err)
	case d.ClaimID != "" && node.ClaimID != d.ClaimID:
		return h.notOurs(ctx, l, node)
	case node.Ready:
		return h.recovered(ctx, l)
	}
	here, err := moving(ctx, c, d.Node)
	if err != nil {
		return err
	}
	left := refsOf(here)
	if err := h.settle(ctx, l, lifecycle.OnEmptied, func(t *turn) error {
		st := t.State
		st.Remaining, st.Blockers = len(left), nil
		return emit(t, events.NodeDrained{DrainRef: ref(t), DecisionID: st.DecisionID, Reason: events.Reason(st.Reason), Actor: st.Actor,
			DecidedAt: st.DecidedAt, Unready: true, Left: left[:min(len(left), maxLeft)]})
	}); err != nil {
		return err
	}
	h.ended(d, outcomeUnready)
	h.log.WarnContext(ctx, "node is not Ready for too long and is removed with its pods on it", "node", d.Node, "pods", len(left),
		"reason", d.Reason.Code, "message", d.Reason.Message, "request", d.RequestID, "correlation_id", d.CorrelationID)
	return nil
}

// recovered gives a node back that was to be removed as not Ready.
func (h *Handler) recovered(ctx context.Context, l *lease) error {
	return h.abort(ctx, l, lifecycle.OnCancelled, ReasonRecovered, "the node is Ready again: it stays")
}
