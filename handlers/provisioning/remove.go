package provisioning

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// What a removal step found, where it did nothing.
const (
	alreadyGone = "was already gone"
	notOurs     = "left alone: it belongs to another claim"
)

// errAgain says that what was removed is there again: the machine was started
// by hand, or the deletion waits for a finalizer. The removal begins anew, in
// its order.
var errAgain = errors.New("the Node object is there again, although its machine was stopped; the removal begins anew")

// beginRemoval writes the intent to remove all that belongs to the node. Each
// time that something turns up again is a new round.
func beginRemoval(n *lifecycle.Node, reason lifecycle.Reason, now time.Time) {
	round := 1
	if n.Removal != nil {
		round = n.Removal.Round + 1
	}
	n.Removal = &lifecycle.Removal{
		Operation: fmt.Sprintf("%s/%d", n.ClaimID, round), Round: round, Reason: reason, StartedAt: now,
	}
}

// remove takes the next step of a removal or clean-up. What is gone already is
// success; anything else is tried again until it is done.
func (h *Handler) remove(ctx context.Context, l *lease) error {
	n := l.Record()
	step := n.Removal.Next()
	detail, err := h.removeStep(l.Context(), l.Key(), n, step)
	switch {
	case err == nil:
	case abandoned(l.Context(), err):
		return fmt.Errorf("%s: %w", step, err)
	default:
		return h.retryRemove(ctx, l, step, fmt.Errorf("%s: %w", step, err))
	}
	var stages []events.Stage
	removed := false
	moved, err := commit(ctx, l, step+"/"+n.Removal.Operation, func(t *bus.Turn[lifecycle.Node]) error {
		removed = false
		now := t.State
		r := now.Removal
		if r == nil || r.Operation != n.Removal.Operation || r.Next() != step {
			return errMoved
		}
		r.Done = append(r.Done, lifecycle.Stage{Name: step, At: t.Now})
		r.Attempt, r.NextAt, r.LastError = 0, time.Time{}, ""
		if err := emit(t, events.NodeRemovalProgressed{Node: now.Name, Pool: now.Pool, ClaimID: now.ClaimID,
			Step: step, Detail: detail, At: t.Now}); err != nil {
			return err
		}
		if r.Next() != "" {
			return nil
		}
		r.DoneAt = t.Now
		if now.On(lifecycle.OnRemoved, t.Now) != nil {
			return nil // failed and lost stay what they are
		}
		removed = true
		stages = removalStages(now)
		return emitRemoved(t, stages)
	})
	if err != nil {
		return fmt.Errorf("record that %s: %w", step, err)
	}
	if moved {
		return nil
	}
	h.log.InfoContext(ctx, "removal step done", "node", n.Name, "pool", n.Pool, "claim", n.ClaimID, "step", step,
		"detail", detail, "correlation_id", n.CorrelationID)
	if removed {
		if n.Drained != nil {
			h.metrics.stages("down", stages)
		}
		h.log.InfoContext(ctx, "node removed", "node", n.Name, "pool", n.Pool, "claim", n.ClaimID,
			"reason", n.Removal.Reason.Code, "correlation_id", n.CorrelationID)
	}
	return nil
}

func emitRemoved(t *bus.Turn[lifecycle.Node], stages []events.Stage) error {
	n := t.State
	p := events.NodeRemoved{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, DecisionID: n.DecisionID,
		Reason: events.Reason(n.Removal.Reason), At: t.Now, Stages: stages}
	if n.Drained != nil {
		p.DecisionID = n.Drained.DecisionID
	}
	return emit(t, p)
}

// removalStages tells how long each part took since the decision.
func removalStages(n *lifecycle.Node) []events.Stage {
	var points []lifecycle.Stage
	if d := n.Drained; d != nil {
		points = append(points, lifecycle.Stage{At: d.DecidedAt},
			lifecycle.Stage{Name: "cordoned", At: d.CordonedAt}, lifecycle.Stage{Name: "drained", At: d.DrainedAt})
	} else {
		points = append(points, lifecycle.Stage{At: n.Removal.StartedAt})
	}
	return stages(append(points, n.Removal.Done...))
}

// removeStep does one step. detail says what was found where there was nothing
// to do.
func (h *Handler) removeStep(ctx context.Context, k bus.Key, n lifecycle.Node, step string) (detail string, err error) {
	do := func(name string, f func(ctx context.Context) error) error {
		return h.effect(ctx, name, h.times.Call, f)
	}
	switch step {
	case events.StepInstanceStopped:
		return h.removeMachine(k, n, "stop", do, Machines.Stop)
	case events.StepInstanceDeleted:
		return h.removeMachine(k, n, "delete-machine", do, Machines.Delete)
	}
	nodes, err := h.nodes(k.Cluster)
	if err != nil {
		return "", err
	}
	object, err := nodes.GetNode(ctx, n.Object())
	exists := err == nil
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return "", fmt.Errorf("read Node object: %w", err)
	case exists && object.ClaimID != n.ClaimID:
		return notOurs, nil
	case step == events.StepNodeDeleted && !exists:
		return alreadyGone, nil
	case step == events.StepNodeDeleted:
		err = do("delete-node", func(ctx context.Context) error { return nodes.DeleteNode(ctx, n.Object(), object.UID) })
	case exists:
		return "", errAgain
	default:
		err = do("delete-secret", func(ctx context.Context) error { return nodes.DeleteNodePassword(ctx, n.Object()) })
	}
	if errors.Is(err, ErrNotFound) {
		return alreadyGone, nil
	}
	return "", err
}

// removeMachine stops or deletes the machine, if it is ours.
func (h *Handler) removeMachine(k bus.Key, n lifecycle.Node, name string, do func(string, func(context.Context) error) error,
	act func(Machines, context.Context, string) error,
) (detail string, err error) {
	m, err := h.machines(k.Cluster, n.Pool)
	if err != nil {
		return "", fmt.Errorf("%w; configure it again, or remove the machine by hand and let the pool go", err)
	}
	err = do(name, func(ctx context.Context) error {
		found, err := get(ctx, m, n)
		if errors.Is(err, errUnknownHost) {
			detail, err = h.letGo(ctx, k, n, err)
			return err
		}
		if err != nil {
			return err
		}
		if !owns(k, n, found) {
			detail = notOurs
			return nil
		}
		return act(m, ctx, n.Name)
	})
	if errors.Is(err, ErrNotFound) {
		return alreadyGone, nil
	}
	return detail, err
}

// retryRemove commits when the step is tried again.
func (h *Handler) retryRemove(ctx context.Context, l *lease, step string, cause error) error {
	n := l.Record()
	try := n.Removal.Attempt + 1
	_, err := commit(ctx, l, fmt.Sprintf("%s-retry/%s/%d", step, n.Removal.Operation, try), func(t *bus.Turn[lifecycle.Node]) error {
		r := t.State.Removal
		if r == nil || r.Operation != n.Removal.Operation || r.Next() != step {
			return errMoved
		}
		if errors.Is(cause, errAgain) {
			beginRemoval(t.State, r.Reason, t.Now)
			r = t.State.Removal
		}
		r.Attempt, r.LastError = try, cause.Error()
		r.NextAt = t.Now.Add(h.backoff(n.Name, try))
		return nil
	})
	if err != nil {
		return errors.Join(cause, fmt.Errorf("record next attempt: %w", err))
	}
	return fmt.Errorf("attempt %d: %w", try, cause)
}
