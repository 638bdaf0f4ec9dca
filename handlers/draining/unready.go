package draining

import (
	"context"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// maxLeft is how many of the pods that are left on a node an event names.
const maxLeft = 100

// abandon ends the drain of a node that has not been Ready for too long. Its kubelet
// confirms no eviction, so none is asked for: provisioning stops the machine first,
// then deletes the Node object, and with that Kubernetes takes the pods away. It was
// looked at once more behind the cordon; a node that is Ready after all stays.
func (h *Handler) abandon(ctx context.Context, l *lease) error {
	d := l.Record()
	_, here, settled, err := h.occupants(ctx, l)
	if err != nil || settled {
		return err
	}
	left := refsOf(here)
	err = h.settle(ctx, l, lifecycle.OnEmptied, func(t *turn) error {
		st := t.State
		st.Remaining, st.Blockers = len(left), nil
		return emit(t, events.NodeDrained{DrainRef: ref(t), DecisionID: st.DecisionID, Reason: events.Reason(st.Reason), Actor: st.Actor,
			DecidedAt: st.DecidedAt, Unready: true, Left: left[:min(len(left), maxLeft)]})
	})
	if err == nil {
		h.ended(d, outcomeUnready)
		h.log.WarnContext(ctx, "node is not Ready for too long and is removed with its pods on it", "node", d.Node, "pods", len(left),
			"reason", d.Reason.Code, "message", d.Reason.Message, "request", d.RequestID, "correlation_id", d.CorrelationID)
	}
	return err
}

// recovered gives a node back that was to be removed as not Ready.
func (h *Handler) recovered(ctx context.Context, l *lease) error {
	return h.abort(ctx, l, lifecycle.OnCancelled, ReasonRecovered, "the node is Ready again: it stays")
}
