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

// create brings a claim from nothing to a started machine:
//
//	intent ─► Place ─► its host ─► Create ─► starting (CAS: still ours) ─► Start ─► created
//
// The intent is written with the claim itself when this process has room for it.
// An owner that died anywhere in between left the intent. The next one looks
// for the machine first: a running one was started already, one that ended or
// vanished after "starting" ends the claim, anything else goes on.
func (h *Handler) create(ctx context.Context, l *lease) error {
	n := l.Record()
	intended := n.Creation != nil && n.Creation.Lease == l.Epoch() && n.Creation.Attempt == 0 && !n.Creation.Starting
	resumed := n.Creation != nil && !intended
	m, err := h.machines(l.Key().Cluster, n.Pool)
	if err != nil {
		return h.fail(ctx, l, failure{code: ReasonUnknownPool, cleanUp: resumed,
			message: err.Error() + "; the claim can't be fulfilled"}, isClaimed)
	}
	if resumed {
		done, err := h.resume(ctx, l, m)
		if done || err != nil {
			return err
		}
	} else if h.clock.Now().After(n.NotAfter) {
		return h.expire(ctx, l, false)
	}
	if n.Creation == nil {
		moved, err := commit(ctx, l, "create-intent/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
			if !isClaimed(*t.State) || t.State.Creation != nil {
				return errMoved
			}
			t.State.Creation = &lifecycle.Creation{Operation: createOperation(n.ClaimID)}
			return nil
		})
		if err != nil {
			return fmt.Errorf("record intent to create: %w", err)
		}
		if moved {
			return nil
		}
	}

	var made Machine
	spec := Spec{Cluster: l.Key().Cluster, Pool: n.Pool, Name: n.Name, ClaimID: n.ClaimID, Epoch: n.Epoch, Node: n.Spec}
	host, moved, err := h.place(ctx, l, m, spec)
	if moved {
		return nil
	}
	if err == nil {
		spec.Host = host
		err = h.effect(l.Context(), "create", h.times.Create, func(ctx context.Context) error {
			var err error
			made, err = m.Create(ctx, spec)
			return err
		})
	}
	switch {
	case err == nil:
	case abandoned(l.Context(), err), errors.Is(err, errUnrecorded):
		return fmt.Errorf("create machine: %w", err)
	case errors.Is(err, ErrNoRoom):
		// Not tried again inside the claim: the pool rests, and another one may get
		// the node meanwhile.
		return h.fail(ctx, l, failure{code: ReasonNoRoom, message: fmt.Sprintf("create machine: %v", err), cleanUp: resumed}, isClaimed)
	case errors.Is(err, ErrNameTaken):
		// It is someone else's: there is nothing of ours to clean up.
		return h.fail(ctx, l, failure{code: ReasonNameTaken, message: fmt.Sprintf("create machine: %v", err)}, isClaimed)
	case errors.Is(err, ErrNoSpace):
		return h.fail(ctx, l, failure{code: ReasonNoSpace, message: fmt.Sprintf("create machine: %v", err), cleanUp: true}, isClaimed)
	case errors.Is(err, ErrImage):
		return h.fail(ctx, l, failure{code: ReasonImage, message: fmt.Sprintf("create machine: %v", err), cleanUp: true}, isClaimed)
	case errors.Is(err, ErrRefused):
		return h.fail(ctx, l, failure{code: ReasonRefused, message: fmt.Sprintf("create machine: %v", err), cleanUp: true}, isClaimed)
	default:
		return h.retryCreate(ctx, l, fmt.Errorf("create machine: %w", err))
	}
	if made.State == MachineExited {
		return h.failEnded(ctx, l, m, made)
	}
	return h.start(ctx, l, m, made)
}

// start starts a machine that exists. Nothing starts one that the record does
// not say is being started by the holder of the lease.
func (h *Handler) start(ctx context.Context, l *lease, m Machines, made Machine) error {
	n := l.Record()
	moved, err := commit(ctx, l, "starting/"+n.ClaimID+"/"+fmt.Sprint(attempt(n)), func(t *bus.Turn[lifecycle.Node]) error {
		c := t.State.Creation
		if !isClaimed(*t.State) || c == nil {
			return errMoved
		}
		c.Starting = true
		t.State.Instance, t.State.Host, t.State.Image = made.ID, made.Host, made.Image
		return nil
	})
	if err != nil {
		return fmt.Errorf("confirm ownership before start: %w", err)
	}
	if moved {
		return nil
	}
	if err := l.Confirm(ctx); err != nil {
		return fmt.Errorf("confirm ownership before start: %w", err)
	}
	err = h.effect(l.Context(), "start", h.times.Call, func(ctx context.Context) error {
		return judge(l.Record(), m.Start(ctx, n.Name))
	})
	switch {
	case err == nil:
	case abandoned(l.Context(), err):
		return fmt.Errorf("start machine: %w", err)
	case errors.Is(err, ErrNotFound):
		return h.fail(ctx, l, failure{code: ReasonMachineGone, cleanUp: true,
			message: "the machine vanished before it was started"}, isClaimed)
	case errors.Is(err, ErrNoSpace):
		return h.fail(ctx, l, failure{code: ReasonNoSpace, message: fmt.Sprintf("start machine: %v", err), cleanUp: true}, isClaimed)
	case errors.Is(err, ErrRefused), errors.Is(err, ErrImage):
		return h.fail(ctx, l, failure{code: ReasonRefused, message: fmt.Sprintf("start machine: %v", err), cleanUp: true}, isClaimed)
	default:
		return h.retryCreate(ctx, l, fmt.Errorf("start machine: %w", err))
	}
	return h.started(ctx, l)
}

// started records and publishes that the machine runs, and what the API server
// said of it before that could be recorded.
func (h *Handler) started(ctx context.Context, l *lease) error {
	var after func()
	moved, err := commit(ctx, l, "created/"+l.Record().ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		after = nil
		n := t.State
		if !isClaimed(*n) || n.Creation == nil {
			return errMoved
		}
		if err := n.On(lifecycle.OnStarted, t.Now); err != nil {
			return err
		}
		if err := emit(t, events.NodeCreated{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, Instance: n.Instance,
			Host: n.Host, Image: n.Image, Adopted: n.Creation.Adopted, At: t.Now}); err != nil {
			return err
		}
		n.Creation.LastError, n.Creation.NextAt = "", time.Time{}
		early := n.Early
		if n.Early = nil; early == nil {
			return nil
		}
		if err := registerNode(t, early.UID); err != nil || early.ReadyAt.IsZero() {
			return err
		}
		var err error
		after, err = h.readyNode(t)
		return err
	})
	if err != nil {
		return fmt.Errorf("record start: %w", err)
	}
	if moved {
		return nil
	}
	n := l.Record()
	h.log.InfoContext(ctx, "machine started", "node", n.Name, "pool", n.Pool, "claim", n.ClaimID, "instance", n.Instance,
		"host", n.Host, "image", n.Image, "correlation_id", n.CorrelationID)
	if after != nil {
		after()
	}
	return nil
}

// resume goes on with a claim whose earlier attempt failed or died. done says
// that nothing is left for create to do.
func (h *Handler) resume(ctx context.Context, l *lease, m Machines) (done bool, err error) {
	n := l.Record()
	var found Machine
	err = h.effect(l.Context(), "inspect", h.times.Call, func(ctx context.Context) error {
		var err error
		found, err = get(ctx, m, n)
		return err
	})
	late := h.clock.Now().After(n.NotAfter)
	switch {
	case errors.Is(err, ErrNotFound) && n.Creation.Starting:
		return true, h.fail(ctx, l, failure{code: ReasonMachineGone, cleanUp: true,
			message: "the machine vanished while it was being started; it may have run"}, isClaimed)
	case errors.Is(err, ErrNotFound):
		if late {
			return true, h.expire(ctx, l, true)
		}
		return false, nil
	case err != nil && abandoned(l.Context(), err):
		return true, fmt.Errorf("inspect machine: %w", err)
	case err != nil && late && !n.Creation.Starting:
		return true, h.expire(ctx, l, true)
	case err != nil:
		// A machine that may run is never given up unseen.
		return true, h.retryCreate(ctx, l, fmt.Errorf("inspect machine: %w", err))
	case !owns(l.Key(), n, found):
		return true, h.fail(ctx, l, failure{code: ReasonNameTaken,
			message: fmt.Sprintf("machine %s belongs to claim %q of log %q", found.Name, found.ClaimID, found.Epoch)}, isClaimed)
	case found.State == MachineExited:
		return true, h.failEnded(ctx, l, m, found)
	case found.State != MachineRunning && late:
		return true, h.expire(ctx, l, true)
	}
	// Ours, from an attempt that was cut short.
	moved, err := commit(ctx, l, "adopted/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		if !isClaimed(*t.State) || t.State.Creation == nil {
			return errMoved
		}
		t.State.Creation.Adopted = true
		t.State.Instance, t.State.Host, t.State.Image = found.ID, found.Host, found.Image
		if found.State == MachineRunning {
			t.State.Creation.Starting = true
		}
		return nil
	})
	if err != nil {
		return true, fmt.Errorf("record adoption: %w", err)
	}
	if moved {
		return true, nil
	}
	if found.State == MachineRunning {
		return true, h.started(ctx, l)
	}
	return false, nil
}

// expire ends a claim that was not started before its end.
func (h *Handler) expire(ctx context.Context, l *lease, cleanUp bool) error {
	n := l.Record()
	msg := fmt.Sprintf("not started before the claim's end at %s", n.NotAfter.UTC().Format(time.RFC3339))
	if n.Creation != nil && n.Creation.LastError != "" {
		msg += fmt.Sprintf(", %d attempts; the last: %s", n.Creation.Attempt, n.Creation.LastError)
	}
	return h.fail(ctx, l, failure{code: ReasonClaimExpired, message: msg, cleanUp: cleanUp}, isClaimed)
}

// failEnded ends a claim whose machine ended before the node was Ready.
func (h *Handler) failEnded(ctx context.Context, l *lease, m Machines, found Machine) error {
	n := l.Record()
	log := h.logs(l.Context(), m, n.Name)
	if err := l.Context().Err(); err != nil {
		return fmt.Errorf("capture log: %w", err)
	}
	return h.fail(ctx, l, failure{code: ReasonMachineExited, cleanUp: true,
		message: fmt.Sprintf("the machine ended with exit code %d before its node was Ready; see its log", found.ExitCode),
	}.explainBy(log), func(now lifecycle.Node) bool { return isClaimed(now) || now.Phase.Waiting() })
}

// retryCreate commits when the claim is tried again: by then, or when it ends.
func (h *Handler) retryCreate(ctx context.Context, l *lease, cause error) error {
	n := l.Record()
	try := attempt(n) + 1
	_, err := commit(ctx, l, fmt.Sprintf("create-retry/%s/%d", n.ClaimID, try), func(t *bus.Turn[lifecycle.Node]) error {
		c := t.State.Creation
		if !isClaimed(*t.State) || c == nil {
			return errMoved
		}
		c.Attempt, c.LastError = try, cause.Error()
		c.NextAt = t.Now.Add(h.backoff(n.Name, try))
		if end := n.NotAfter.Add(time.Millisecond); !c.Starting && c.NextAt.After(end) && end.After(t.Now) {
			c.NextAt = end
		}
		return nil
	})
	if err != nil {
		return errors.Join(cause, fmt.Errorf("record next attempt: %w", err))
	}
	return fmt.Errorf("attempt %d: %w", try, cause)
}

func attempt(n lifecycle.Node) int {
	if n.Creation == nil {
		return 0
	}
	return n.Creation.Attempt
}

// createOperation identifies the one machine that a claim may lead to.
func createOperation(claim string) string { return "create/" + claim }

func isClaimed(n lifecycle.Node) bool { return n.Phase == lifecycle.Claimed }

// owns reports whether a machine belongs to the record's claim.
func owns(k bus.Key, n lifecycle.Node, m Machine) bool {
	return m.ClaimID == n.ClaimID && n.ClaimID != "" && (m.Cluster == "" || m.Cluster == k.Cluster) &&
		(n.Epoch == "" || m.Epoch == "" || m.Epoch == n.Epoch)
}
