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

// removalLook is how often a node that is being removed is looked for.
const removalLook = 5 * time.Second

// due says whether a record has work open, else when to look again.
func (h *Handler) due(_ bus.Key, d lifecycle.Drain, now time.Time) (bool, time.Time) {
	at, open := h.nextWork(d)
	switch {
	case !open:
		return false, time.Time{}
	case at.After(now):
		return false, at
	}
	return true, time.Time{}
}

// nextWork returns when the next step is to be taken; the zero time is at once.
func (h *Handler) nextWork(d lifecycle.Drain) (time.Time, bool) {
	switch d.Phase {
	case "":
		return time.Time{}, false
	case lifecycle.DrainDone:
		return d.Since.Add(h.opts.Times.Keep), true
	}
	if d.Active() {
		if overdue := d.Deadline; !overdue.IsZero() && overdue.Before(d.NextAt) {
			return overdue, true
		}
		return d.NextAt, true
	}
	// It stays as it is, but its node may vanish.
	if d.NextAt.After(d.Since) {
		return d.NextAt, true
	}
	return d.Since.Add(h.look(d)), true
}

func (h *Handler) look(d lifecycle.Drain) time.Duration {
	if d.Goal == lifecycle.GoalRemove {
		return min(removalLook, h.opts.Times.Look)
	}
	return h.opts.Times.Look
}

// work takes one step of the record that l holds.
func (h *Handler) work(ctx context.Context, l *lease) error {
	d := l.Record()
	var err error
	switch effect := d.Effect(); {
	case d.Active() && h.expired(d):
		err = h.expire(ctx, l)
	case effect == lifecycle.EffectCordon:
		err = h.cordon(ctx, l)
	case effect == lifecycle.EffectEmpty && d.Unready:
		err = h.abandon(ctx, l)
	case effect == lifecycle.EffectEmpty:
		err = h.finishJobs(ctx, l)
	case effect == lifecycle.EffectEvict:
		err = h.evictRound(ctx, l)
	case effect == lifecycle.EffectUncordon:
		err = h.uncordon(ctx, l)
	case effect == lifecycle.EffectLook:
		err = h.lookFor(ctx, l)
	case effect == lifecycle.EffectForget:
		err = h.forget(ctx, l)
	default: // else it would be looked at without end
		err = fmt.Errorf("this program does not know what is done in the state %q", d.Phase)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("node %s (%s, goal %s): %w", d.Node, d.Phase, d.Goal, err)
	if abandoned(ctx, err) {
		return err
	}
	return h.retry(ctx, l, err)
}

func (h *Handler) expired(d lifecycle.Drain) bool {
	return !d.Deadline.IsZero() && !h.opts.Clock.Now().Before(d.Deadline)
}

// abandoned reports whether an error only says that this process no longer
// owns the step: nothing is recorded, the next owner repeats it.
func abandoned(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, bus.ErrLeaseLost)
}

// retry commits when the step is tried again: the deadline ends it.
func (h *Handler) retry(ctx context.Context, l *lease, cause error) error {
	was := l.Record()
	_, err := commit(ctx, l, fmt.Sprintf("retry/%s/%s/%d", was.RequestID, was.Phase, was.Attempt+1), func(t *turn) error {
		if !same(*t.State, was) {
			return errMoved
		}
		t.State.Attempt++
		t.State.LastError = cause.Error()
		t.State.NextAt = t.Now.Add(h.backoff(t.State.Attempt))
		return nil
	})
	return errors.Join(cause, err)
}

// backoff doubles from RetryBase to RetryMax.
func (h *Handler) backoff(attempt int) time.Duration {
	d := h.opts.Times.RetryMax
	if shift := attempt - 1; shift < 16 {
		d = min(d, h.opts.Times.RetryBase<<max(0, shift))
	}
	return d
}

// errMoved aborts a change: a message moved the record on while the step ran.
// The worker decides anew on the record as it is.
var errMoved = errors.New("the record moved on")

// same reports whether a record is still the one that a step looked at.
func same(now, was lifecycle.Drain) bool {
	return now.Phase == was.Phase && now.RequestID == was.RequestID && now.Round == was.Round
}

// commit is the lease's Commit. moved says that fn returned errMoved and
// nothing was changed.
func commit(ctx context.Context, l *lease, op string, fn func(t *turn) error) (moved bool, err error) {
	err = l.Commit(ctx, op, func(t *turn) error {
		err := fn(t)
		if moved = errors.Is(err, errMoved); moved {
			t.Unchanged()
			return nil
		}
		return err
	})
	return moved, err
}

// settle commits a transition with its event.
func (h *Handler) settle(ctx context.Context, l *lease, on lifecycle.DrainEvent, change func(t *turn) error) error {
	was := l.Record()
	_, err := commit(ctx, l, fmt.Sprintf("%s/%s/%d", on, was.RequestID, was.Round), func(t *turn) error {
		if !same(*t.State, was) {
			return errMoved
		}
		if err := t.State.On(on, t.Now); err != nil {
			return err
		}
		t.State.NextAt, t.State.Attempt, t.State.LastError = time.Time{}, 0, ""
		return change(t)
	})
	if err != nil {
		return fmt.Errorf("record that the drain is %s: %w", on, err)
	}
	return nil
}

// abort begins the undo, with its reason.
func (h *Handler) abort(ctx context.Context, l *lease, on lifecycle.DrainEvent, code, message string) error {
	return h.settle(ctx, l, on, func(t *turn) error {
		t.State.UndoReason = lifecycle.Reason{Code: code, Message: message}
		t.State.Evicting, t.State.Forcing = nil, nil
		return nil
	})
}

func (h *Handler) expire(ctx context.Context, l *lease) error {
	d := l.Record()
	if mayForce(d) {
		return h.force(ctx, l)
	}
	message := fmt.Sprintf("not empty within %s", events.Duration(d.Within))
	if d.Phase == lifecycle.DrainForcing {
		message += ", and as long again by force"
	}
	for _, b := range d.Blockers {
		message += fmt.Sprintf("; pod %s: %s", b.Pod, b.Message)
	}
	if len(d.Blockers) == 0 && d.LastError != "" {
		message += "; " + d.LastError
	}
	return h.abort(ctx, l, lifecycle.OnExpired, ReasonDeadline, message)
}

// gone ends the drain of a node that does not exist any more.
func (h *Handler) gone(ctx context.Context, l *lease) error {
	d := l.Record()
	announce := d.Active() // a removal that was drained ends so
	if err := h.settle(ctx, l, lifecycle.OnGone, func(t *turn) error {
		if !announce {
			return nil
		}
		return emit(t, events.NodeUncordoned{DrainRef: ref(t), Reason: events.Reason{
			Code: ReasonNodeGone, Message: "the Node object does not exist any more; there is nothing left to drain"}})
	}); err != nil {
		return err
	}
	if announce {
		h.ended(d, outcomeGone)
	}
	return nil
}

func (h *Handler) notOurs(ctx context.Context, l *lease, node Node) error {
	return h.abort(ctx, l, lifecycle.OnCancelled, ReasonNotOurs,
		fmt.Sprintf("the node's claim label is %q, the request's claim %q; only nodes of ours are touched", node.ClaimID, l.Record().ClaimID))
}

// cordon looks at everything that could forbid the drain, before it changes
// anything, then cordons.
func (h *Handler) cordon(ctx context.Context, l *lease) error {
	d := l.Record()
	c, err := h.cluster(l.Key().Cluster)
	if err != nil {
		return h.abort(ctx, l, lifecycle.OnCancelled, reasonUnknownCluster, err.Error())
	}
	node, err := c.Node(ctx, d.Node)
	switch {
	case errors.Is(err, ErrNotFound):
		return h.gone(ctx, l)
	case err != nil:
		return fmt.Errorf("look at the node: %w", err)
	case node.ClaimID == "" || d.ClaimID != "" && node.ClaimID != d.ClaimID:
		return h.notOurs(ctx, l, node)
	}
	if d.Unready && node.Ready {
		return h.recovered(ctx, l)
	}
	var foreseen []lifecycle.Blocker
	if d.Goal != lifecycle.GoalCordon && !d.Unready {
		pods, err := moving(ctx, c, d.Node)
		if err != nil {
			return err
		}
		if d.JobsWithin > 0 { // these may end by themselves
			pods = slices.DeleteFunc(pods, ofJob)
		}
		var refused []lifecycle.Blocker
		if refused, foreseen, err = h.foresee(ctx, c, d, pods); err != nil {
			return err
		}
		if len(refused) > 0 {
			return h.refuseBlocked(ctx, l, refused)
		}
	}
	var ours bool
	if err := h.effect(ctx, "cordon", func(ctx context.Context) error {
		ours, err = c.Cordon(ctx, d.Node, d.RequestID)
		return err
	}); err != nil {
		if errors.Is(err, ErrNotFound) {
			return h.gone(ctx, l)
		}
		return err
	}
	if err := h.settle(ctx, l, lifecycle.OnCordoned, func(t *turn) error {
		t.State.CordonOurs, t.State.Followed = ours, nil // the mark is this request's by now
		return emit(t, events.NodeCordoned{DrainRef: ref(t), Reason: events.Reason(t.State.Reason), Foreseen: eventBlockers(foreseen)})
	}); err != nil {
		return err
	}
	h.log.InfoContext(ctx, "node cordoned", "node", d.Node, "goal", d.Goal, "foreseen", names(foreseen), "reason", d.Reason.Code, "request", d.RequestID, "correlation_id", d.CorrelationID)
	return nil
}

// refuseBlocked ends a drain that can't succeed, before anything was changed.
func (h *Handler) refuseBlocked(ctx context.Context, l *lease, blockers []lifecycle.Blocker) error {
	d := l.Record()
	err := h.settle(ctx, l, lifecycle.OnCancelled, func(t *turn) error {
		t.State.Blockers = blockers
		t.State.UndoReason = lifecycle.Reason{Code: ReasonNotDrainable, Message: "what runs on the node can't be evicted; nothing was changed"}
		return emit(t, events.NodeDrainBlocked{DrainRef: ref(t), Blockers: eventBlockers(blockers)})
	})
	if err == nil {
		h.log.WarnContext(ctx, "drain refused, what runs on the node can't be evicted", "node", d.Node, "blockers", names(blockers), "request", d.RequestID)
	}
	return err
}

// uncordon undoes our cordon.
func (h *Handler) uncordon(ctx context.Context, l *lease) error {
	d := l.Record()
	c, err := h.cluster(l.Key().Cluster)
	if err != nil {
		return err
	}
	requests := slices.Concat(d.Followed, []string{d.RequestID})
	err = h.effect(ctx, "uncordon", func(ctx context.Context) error { return c.Uncordon(ctx, d.Node, requests, d.UndoAnyone) })
	if errors.Is(err, ErrNotFound) {
		return h.gone(ctx, l)
	}
	if err != nil {
		return err
	}
	if err := h.settle(ctx, l, lifecycle.OnUncordoned, func(t *turn) error {
		return emit(t, events.NodeUncordoned{DrainRef: ref(t), Reason: events.Reason(t.State.UndoReason), Blockers: eventBlockers(t.State.Blockers)})
	}); err != nil {
		return err
	}
	h.ended(d, undoOutcome(d))
	h.log.WarnContext(ctx, "drain undone, the node is capacity again", "node", d.Node, "goal", d.Goal, "reason", d.UndoReason.Code,
		"message", d.UndoReason.Message, "request", d.RequestID, "correlation_id", d.CorrelationID)
	return nil
}

// ended counts a drain that ended.
func (h *Handler) ended(d lifecycle.Drain, outcome string) {
	h.metrics.drains.WithLabelValues(d.Goal, outcome).Inc()
}

func undoOutcome(d lifecycle.Drain) string {
	switch {
	case d.UndoReason.Code == ReasonDeadline:
		return outcomeDeadline
	case d.CordonedAt.IsZero():
		return outcomeRefused
	}
	return outcomeCancelled
}

// lookFor ends the record of a node that stayed cordoned or drained, or was
// removed, once it is gone.
func (h *Handler) lookFor(ctx context.Context, l *lease) error {
	d := l.Record()
	c, err := h.cluster(l.Key().Cluster)
	if err != nil {
		return err
	}
	_, err = c.Node(ctx, d.Node)
	if errors.Is(err, ErrNotFound) {
		return h.gone(ctx, l)
	}
	if err != nil {
		return fmt.Errorf("look for the node: %w", err)
	}
	_, err = commit(ctx, l, fmt.Sprintf("look/%s/%d", d.RequestID, h.opts.Clock.Now().Unix()), func(t *turn) error {
		if !same(*t.State, d) {
			return errMoved
		}
		t.State.NextAt = t.Now.Add(h.look(*t.State))
		return nil
	})
	return err
}

// forget deletes the record of a drain that ended long ago.
func (h *Handler) forget(ctx context.Context, l *lease) error {
	was := l.Record()
	_, err := commit(ctx, l, "forget/"+was.RequestID, func(t *turn) error {
		if !same(*t.State, was) {
			return errMoved
		}
		t.Delete()
		return nil
	})
	return err
}
