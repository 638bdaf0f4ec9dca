package provisioning

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

type lease = bus.Lease[lifecycle.Node]

// due says whether a record has work open, else when to look again.
func (h *Handler) due(_ bus.Key, n lifecycle.Node, now time.Time) (bool, time.Time) {
	at, open := nextWork(n)
	switch {
	case !open:
		return false, time.Time{}
	case at.After(now):
		return false, at
	}
	return true, time.Time{}
}

// nextWork returns when the record's next step is to be taken; the zero time
// is at once.
func nextWork(n lifecycle.Node) (time.Time, bool) {
	switch {
	case n.Phase == "":
		return time.Time{}, false
	case n.Suspicion != nil:
		return n.Suspicion.NextAt, true
	case naming(n):
		return n.Naming.NextAt, true
	}
	switch effect := n.Phase.Effect(); {
	case effect == lifecycle.EffectCreate && n.Creation == nil:
		return time.Time{}, true
	case effect == lifecycle.EffectCreate:
		return n.Creation.NextAt, true
	case effect == lifecycle.EffectWatch:
		return n.Deadline, true
	case effect == lifecycle.EffectRemove && n.Removal.Next() != "":
		return n.Removal.NextAt, true
	}
	return time.Time{}, false
}

// work takes one step of the record that l holds.
func (h *Handler) work(ctx context.Context, l *lease) error {
	n := l.Record()
	var err error
	switch effect := n.Phase.Effect(); {
	case n.Phase == "":
		return nil
	case n.Suspicion != nil:
		err = h.verify(ctx, l)
	case naming(n):
		err = h.handOver(ctx, l)
	case effect == lifecycle.EffectCreate:
		err = h.create(ctx, l)
	case effect == lifecycle.EffectWatch:
		err = h.overdue(ctx, l)
	case effect == lifecycle.EffectRemove && n.Removal.Next() != "":
		err = h.remove(ctx, l)
	}
	if err != nil {
		return fmt.Errorf("node %s of pool %s (%s): %w", n.Name, n.Pool, n.Phase, err)
	}
	return nil
}

// backoff is how long to wait after the given number of failed attempts:
// doubling from RetryBase to RetryMax, spread by ±20 % over the names so that
// what failed together is not tried again together.
func (h *Handler) backoff(name string, attempt int) time.Duration {
	d := h.times.RetryMax
	if shift := attempt - 1; shift < 20 {
		d = min(d, h.times.RetryBase<<max(0, shift))
	}
	sum := fnv.New32a()
	fmt.Fprintf(sum, "%s/%d", name, attempt)
	return d*4/5 + d*2/5*time.Duration(sum.Sum32()%1000)/1000
}

// errMoved aborts a change: a message moved the record on while the step ran.
// The worker decides anew on the record as it is.
var errMoved = errors.New("the record moved on")

// commit is the lease's Commit. moved says that fn returned errMoved and nothing
// was changed.
func commit(ctx context.Context, l *lease, op string, fn func(t *bus.Turn[lifecycle.Node]) error) (moved bool, err error) {
	err = l.Commit(ctx, op, func(t *bus.Turn[lifecycle.Node]) error {
		err := fn(t)
		if moved = errors.Is(err, errMoved); moved {
			t.Unchanged()
			return nil
		}
		return err
	})
	return moved, err
}

// abandoned reports whether an error only says that this process no longer
// owns the step: nothing is to be recorded, the next owner repeats it.
func abandoned(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, bus.ErrLeaseLost)
}

// failure is why a claim fails.
type failure struct {
	code, message string
	log           string
	// cleanUp says that something may exist that has to be removed.
	cleanUp bool
}

// failNode records and publishes that the claim failed. Its clean-up follows.
func (h *Handler) failNode(t *bus.Turn[lifecycle.Node], f failure) error {
	n := t.State
	stage := n.Phase
	if stage == "" {
		stage = lifecycle.Claimed
	}
	if err := n.On(lifecycle.OnFailed, t.Now); err != nil {
		return err
	}
	reason := lifecycle.Reason{Code: f.code, Message: f.message}
	n.Failure = &lifecycle.Failure{Stage: stage, Reason: reason, Log: f.log, At: t.Now}
	n.Suspicion = nil
	if f.cleanUp || stage.Undo() == lifecycle.UndoCleanUp {
		beginRemoval(n, reason, t.Now)
	}
	return emit(t, events.NodeFailed{Node: n.Name, Pool: n.Pool, ClaimID: n.ClaimID, Failure: events.Failure{
		Stage: string(stage), Reason: events.Reason(reason), Log: f.log, At: t.Now,
	}})
}

// fail commits that the claim failed, if still applies to the record.
func (h *Handler) fail(ctx context.Context, l *lease, f failure, still func(n lifecycle.Node) bool) error {
	moved, err := commit(ctx, l, "failed/"+l.Record().ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		if !still(*t.State) || !t.State.Phase.Can(lifecycle.OnFailed) {
			return errMoved
		}
		return h.failNode(t, f)
	})
	if err != nil {
		return fmt.Errorf("record failure %s: %w", f.code, err)
	}
	if moved {
		return nil
	}
	h.metrics.failed()
	h.metrics.ended(f.code)
	n := l.Record()
	h.log.ErrorContext(ctx, "node claim failed", "node", n.Name, "pool", n.Pool, "reason", f.code,
		"message", f.message, "claim", n.ClaimID, "correlation_id", n.CorrelationID)
	return nil
}

// logs returns the end of the machine's output, or why it can't be had.
func (h *Handler) logs(ctx context.Context, m Machines, name string) string {
	var log string
	err := h.effect(ctx, "logs", h.times.Call, func(ctx context.Context) error {
		var err error
		log, err = m.Logs(ctx, name, MaxLog)
		return err
	})
	switch {
	case errors.Is(err, ErrNotFound):
		return ""
	case err != nil:
		log = "(the machine's log could not be read: " + err.Error() + ")"
	}
	if len(log) > MaxLog {
		log = log[len(log)-MaxLog:]
	}
	return log
}

// overdue ends a claim whose node was not Ready at the deadline.
func (h *Handler) overdue(ctx context.Context, l *lease) error {
	n := l.Record()
	f := failure{cleanUp: true}
	switch n.Phase {
	case lifecycle.Registered:
		f.code = ReasonNotReady
		f.message = fmt.Sprintf("the node registered but was not Ready %s after the start of its machine", n.RegisterWithin)
	default:
		f.code = ReasonNotRegistered
		f.message = fmt.Sprintf("no node of this claim registered within %s of the start of its machine; see its log", n.RegisterWithin)
	}
	m, err := h.machines(l.Key().Cluster, n.Pool)
	if err != nil {
		f.log = "(the machine's log could not be read: " + err.Error() + ")"
	} else {
		f = f.explainBy(h.logs(l.Context(), m, n.Name))
	}
	if err := l.Context().Err(); err != nil {
		return fmt.Errorf("capture log: %w", err)
	}
	return h.fail(ctx, l, f, func(now lifecycle.Node) bool {
		return now.Phase == n.Phase && now.Deadline.Equal(n.Deadline)
	})
}
