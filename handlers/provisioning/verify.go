package provisioning

import (
	"context"
	"errors"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// world is what verify found.
type world struct {
	machines      Machines // of the pool
	machine       Machine
	machineExists bool
	node          NodeObject
	nodeExists    bool // and carries the claim
}

// verify looks whether a reported difference is there, and only then acts: what
// was reported may have been repaired, or misread, since.
func (h *Handler) verify(ctx context.Context, l *lease) error {
	n := l.Record()
	w, err := h.look(l.Context(), l.Key(), n)
	switch {
	case err == nil:
	case abandoned(l.Context(), err):
		return fmt.Errorf("check report %s: %w", n.Suspicion.Kind, err)
	default:
		return h.retryVerify(ctx, l, fmt.Errorf("check report %s: %w", n.Suspicion.Kind, err))
	}
	switch {
	case n.Suspicion.Kind == suspectNamed && w.nodeExists && w.machineExists && w.machine.State != MachineExited:
		return h.catchUp(ctx, l, w)
	case n.Phase.Waiting():
		return h.verifyWaiting(ctx, l, w)
	case n.Phase == lifecycle.Ready || n.Phase == lifecycle.Unready:
		return h.verifyReady(ctx, l, w)
	case n.Phase == lifecycle.Removing || n.Phase.Ended():
		return h.verifyOrphan(ctx, l, w)
	}
	return h.dismiss(ctx, l)
}

// look reads machine and Node object of a record.
func (h *Handler) look(ctx context.Context, k bus.Key, n lifecycle.Node) (world, error) {
	var w world
	m, err := h.machines(k.Cluster, n.Pool)
	if err != nil {
		return w, err
	}
	w.machines = m
	nodes, err := h.nodes(k.Cluster)
	if err != nil {
		return w, err
	}
	err = h.effect(ctx, "inspect", h.times.Call, func(ctx context.Context) error {
		var err error
		w.machine, err = get(ctx, m, n)
		unseen := err
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, errUnknownHost) {
			return fmt.Errorf("inspect machine: %w", err)
		}
		w.machineExists = err == nil && owns(k, n, w.machine)
		w.node, err = nodes.GetNode(ctx, n.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("read Node object: %w", err)
		}
		w.nodeExists = err == nil && w.node.ClaimID == n.ClaimID
		if w.nodeExists && w.node.Ready && errors.Is(unseen, errUnknownHost) {
			return fmt.Errorf("its node is Ready, but nobody can look at its machine: %w", unseen)
		}
		return nil
	})
	return w, err
}

// verifyWaiting ends a claim whose machine ended or vanished, or whose Node
// object was deleted, before it was Ready.
func (h *Handler) verifyWaiting(ctx context.Context, l *lease, w world) error {
	n := l.Record()
	waiting := func(now lifecycle.Node) bool { return now.Phase.Waiting() }
	switch {
	case !w.machineExists:
		return h.fail(ctx, l, failure{code: ReasonMachineGone, cleanUp: true,
			message: "the machine vanished before its node was Ready"}, waiting)
	case w.machine.State == MachineExited:
		return h.failEnded(ctx, l, w.machines, w.machine)
	case n.Phase == lifecycle.Registered && !w.nodeExists:
		return h.fail(ctx, l, failure{code: ReasonNodeDeleted, cleanUp: true,
			message: "the Node object was deleted before the node was Ready; a running agent does not register again"}, waiting)
	}
	return h.dismiss(ctx, l)
}

// verifyReady declares a node lost whose machine ended or vanished, or whose
// Node object was deleted, and cleans up what is left.
func (h *Handler) verifyReady(ctx context.Context, l *lease, w world) error {
	n := l.Record()
	var reason lifecycle.Reason
	switch {
	case !w.machineExists:
		reason = lifecycle.Reason{Code: ReasonMachineGone, Message: "the machine vanished without being asked to"}
	case !w.nodeExists:
		reason = lifecycle.Reason{Code: ReasonNodeDeleted,
			Message: "the Node object was deleted without being asked to; a running agent does not register again"}
	case w.machine.State == MachineExited && !w.node.Ready:
		reason = lifecycle.Reason{Code: ReasonMachineExited,
			Message: fmt.Sprintf("the machine ended with exit code %d and did not come back", w.machine.ExitCode)}
	default:
		return h.dismiss(ctx, l)
	}
	moved, err := commit(ctx, l, "lost/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		now := t.State
		if now.Suspicion == nil || now.On(lifecycle.OnLost, t.Now) != nil {
			return errMoved
		}
		now.Suspicion = nil
		beginRemoval(now, reason, t.Now)
		return emit(t, events.NodeLost{Node: now.Name, Pool: now.Pool, ClaimID: now.ClaimID, Reason: events.Reason(reason), At: t.Now})
	})
	if err != nil {
		return fmt.Errorf("record loss: %w", err)
	}
	if moved {
		return nil
	}
	h.metrics.ended(reason.Code)
	h.log.ErrorContext(ctx, "node lost, cleaning up what is left", "node", n.Name, "pool", n.Pool, "claim", n.ClaimID,
		"reason", reason.Code, "message", reason.Message, "correlation_id", n.CorrelationID)
	return nil
}

// verifyOrphan removes what turned up of a node that is gone, or that no record
// tells of. A Ready node without a record is left alone: pods run on it, and
// nobody decided to remove it. The next sweep finds it unrecorded.
func (h *Handler) verifyOrphan(ctx context.Context, l *lease, w world) error {
	n := l.Record()
	unknown := n.Phase == lifecycle.Removing
	act := w.machineExists || w.nodeExists
	if unknown && w.nodeExists && w.node.Ready {
		act = false
		h.log.WarnContext(ctx, "a Ready node of ours has no record and is not removed; the next sweep looks whether it can be adopted",
			"node", n.Name, "pool", n.Pool, "claim", n.ClaimID)
	}
	reason := lifecycle.Reason{Code: ReasonOrphanInstance, Message: n.Suspicion.Detail}
	if n.Suspicion.Kind == events.DivergedOrphanNode {
		reason.Code = ReasonOrphanNode
	}
	// Events are derived from the operation: each round needs its own.
	round := 1
	if n.Removal != nil {
		round = n.Removal.Round + 1
	}
	_, err := commit(ctx, l, fmt.Sprintf("orphan/%s/%d", n.ClaimID, round), func(t *bus.Turn[lifecycle.Node]) error {
		now := t.State
		switch {
		case now.Suspicion == nil || now.Phase != n.Phase:
			return errMoved
		case !act && unknown:
			t.Delete()
			return nil
		}
		now.Suspicion = nil
		if act {
			beginRemoval(now, reason, t.Now)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record orphan: %w", err)
	}
	return nil
}

// dismiss forgets a report that turned out wrong.
func (h *Handler) dismiss(ctx context.Context, l *lease) error {
	n := l.Record()
	moved, err := commit(ctx, l, "dismissed/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		if t.State.Suspicion == nil {
			return errMoved
		}
		t.State.Suspicion = nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("dismiss report: %w", err)
	}
	if moved || n.Suspicion.Kind == events.DivergedUnrecorded {
		return nil // what was adopted is as it was reported
	}
	h.log.InfoContext(ctx, "report about a node turned out wrong", "node", n.Name, "kind", n.Suspicion.Kind, "detail", n.Suspicion.Detail)
	return nil
}

// retryVerify commits when the report is checked again.
func (h *Handler) retryVerify(ctx context.Context, l *lease, cause error) error {
	n := l.Record()
	try := n.Suspicion.Attempt + 1
	_, err := commit(ctx, l, fmt.Sprintf("check-retry/%s/%d", n.ClaimID, try), func(t *bus.Turn[lifecycle.Node]) error {
		s := t.State.Suspicion
		if s == nil {
			return errMoved
		}
		s.Attempt, s.NextAt = try, t.Now.Add(h.backoff(n.Name, try))
		return nil
	})
	if err != nil {
		return errors.Join(cause, fmt.Errorf("record next check: %w", err))
	}
	return fmt.Errorf("attempt %d: %w", try, cause)
}
