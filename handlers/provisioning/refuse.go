package provisioning

import (
	"context"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// observedEvents are what an observation asks of the record. That a Node object is
// gone or a machine has ended is a suspicion that is looked into, or follows from a
// clean-up: it is never impossible.
var observedEvents = map[string]lifecycle.NodeEvent{
	events.ObservedRegistered: lifecycle.OnRegistered,
	events.ObservedReady:      lifecycle.OnReady,
	events.ObservedUnready:    lifecycle.OnUnready,
}

// refuse publishes that a message says what can't happen in the state of the
// record, for the audit and for explain: nobody acts on it. What is no news is not
// said. It returns what is to be logged once that is written.
func (h *Handler) refuse(ctx context.Context, t *bus.Turn[lifecycle.Node], d bus.Delivery, on lifecycle.NodeEvent, what string) (func(), error) {
	n := *t.State
	if on == "" || !n.Phase.Impossible(on) {
		return nil, nil
	}
	reason := events.Reason{Code: events.ReasonImpossible,
		Message: fmt.Sprintf("%s, but the record says %s since %s", what, n.Phase, n.Since.UTC().Format(time.RFC3339))}
	return func() {
			h.log.WarnContext(ctx, "impossible transition of a node refused, nothing was changed", "node", n.Name, "pool", n.Pool, "claim", n.ClaimID,
				"state", n.Phase, "event", on, "message", reason.Message, "event_id", d.Event.ID(), "correlation_id", n.CorrelationID)
		}, emit(t, events.NodeTransitionRefused{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, State: string(n.Phase), Event: string(on),
			EventID: d.Event.ID(), Reason: reason, At: t.Now})
}
