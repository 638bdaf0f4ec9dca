package draining

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// outcome is what became of one eviction.
type outcome struct {
	pod     Pod
	blocked *Blocked
	err     error
	gone    bool
}

// occupants reads the pods that have to leave the node. settled says that the node is gone,
// or another of the same name: that is recorded, and nothing is left to do.
func (h *Handler) occupants(ctx context.Context, l *lease) (c Cluster, here []Pod, settled bool, err error) {
	d := l.Record()
	if c, err = h.cluster(l.Key().Cluster); err != nil {
		return nil, nil, false, err
	}
	node, err := c.Node(ctx, d.Node)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil, true, h.gone(ctx, l)
	case err != nil:
		return nil, nil, false, fmt.Errorf("look at the node: %w", err)
	case d.ClaimID != "" && node.ClaimID != d.ClaimID:
		return nil, nil, true, h.notOurs(ctx, l, node)
	case d.Unready && node.Ready:
		return nil, nil, true, h.recovered(ctx, l)
	}
	here, err = moving(ctx, c, d.Node)
	return c, here, false, err
}

// evictRound looks at the node and asks for what can leave to leave. It commits
// which evictions it is about to ask for, asks, and commits what came of it.
func (h *Handler) evictRound(ctx context.Context, l *lease) error {
	d := l.Record()
	c, here, settled, err := h.occupants(ctx, l)
	if err != nil || settled {
		return err
	}
	here, behind := h.leaveBehind(d, here)
	if len(here) == 0 {
		if here, err = h.lookAgain(ctx, l, c); err != nil {
			return err
		}
		here, behind = h.leaveBehind(d, here)
	}
	if len(here) == 0 {
		return h.drained(ctx, l, h.leftBehind(behind))
	}
	spared, err := h.spared(ctx, c, d, here)
	if err != nil {
		return err
	}
	var forcing []lifecycle.Forced
	if d.Phase == lifecycle.DrainForcing {
		forcing, spared = forcedOf(here, spared), nil
	}
	try := candidates(here, spared)
	// A process that died may have left an intent: what it named is still to be
	// told, what is asked for now joins it.
	refs := union(d.Evicting, refsOf(try))
	forcing = join(d.Forcing, among(forcing, refs))
	if len(refs)+len(forcing) > len(d.Evicting)+len(d.Forcing) {
		moved, err := commit(ctx, l, fmt.Sprintf("intent/%s/%s/%d", d.RequestID, d.Phase, d.Round), func(t *turn) error {
			if !same(*t.State, d) {
				return errMoved
			}
			t.State.Evicting, t.State.Forcing = refs, forcing
			return nil
		})
		if err != nil || moved {
			return err
		}
	}
	outcomes := h.evictAll(ctx, c, try)
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.record(ctx, l, here, spared, outcomes)
}

// moving returns the pods on a node that have to leave it.
func moving(ctx context.Context, c Evictor, node string) ([]Pod, error) {
	pods, err := c.Pods(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("list the node's pods: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return !moves(p) }), nil
}

// lookAgain lists the pods of a node that seems empty once more, behind a
// cordon that is known to be in place: if somebody lifted it meanwhile, pods
// may have been bound. To end a drain, people cancel it.
func (h *Handler) lookAgain(ctx context.Context, l *lease, c Cluster) ([]Pod, error) {
	d := l.Record()
	if err := h.effect(ctx, "recordon", func(ctx context.Context) error {
		_, err := c.Cordon(ctx, d.Node, d.RequestID)
		return err
	}); err != nil {
		return nil, err
	}
	return moving(ctx, c, d.Node)
}

// candidates are the pods to evict now: those that leave last only when no other is
// there any more.
func candidates(here []Pod, spared []lifecycle.Blocker) []Pod {
	var last, others []Pod
	waiting := false
	for _, p := range here {
		switch {
		case p.Deleting:
			waiting = waiting || !leavesLast(p)
		case slices.ContainsFunc(spared, func(b lifecycle.Blocker) bool { return b.Pod == p.Ref() }):
			waiting = waiting || !leavesLast(p)
		case leavesLast(p):
			last = append(last, p)
		default:
			others = append(others, p)
		}
	}
	if len(others) > 0 || waiting {
		return others
	}
	return last
}

// evictAll asks for all evictions, a bounded number at a time.
func (h *Handler) evictAll(ctx context.Context, c Evictor, pods []Pod) []outcome {
	out := make([]outcome, len(pods))
	slots := make(chan struct{}, h.opts.Evictions)
	var wg sync.WaitGroup
	for i, p := range pods {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = h.evict(ctx, c, p)
		})
	}
	wg.Wait()
	return out
}

func (h *Handler) evict(ctx context.Context, c Evictor, p Pod) outcome {
	err := h.effect(ctx, "evict", func(ctx context.Context) error { return c.Evict(ctx, p) })
	var blocked *Blocked
	result := "accepted"
	o := outcome{pod: p}
	switch {
	case err == nil:
	case errors.Is(err, ErrNotFound):
		o.gone, result = true, "gone"
	case errors.As(err, &blocked):
		o.blocked, result = blocked, "blocked"
	default:
		o.err, result = err, "failed"
	}
	h.metrics.evictions.WithLabelValues(result).Inc()
	return o
}

// record commits what a round came to, and when the next is.
func (h *Handler) record(ctx context.Context, l *lease, here []Pod, spared []lifecycle.Blocker, outcomes []outcome) error {
	was := l.Record()
	blockers := slices.Clone(spared)
	left := map[string]bool{}
	var failed []error
	refused := false
	for _, o := range outcomes {
		switch {
		case o.blocked != nil:
			refused = true
			blockers = append(blockers, budgetBlocker(o.pod, o.blocked))
		case o.err != nil:
			failed = append(failed, o.err)
		default:
			left[o.pod.Ref()] = true
		}
	}
	for _, p := range here {
		if p.Deleting {
			left[p.Ref()] = true
			blockers = append(blockers, h.terminating(was, p)...)
		}
	}
	// What the intent named and is on its way or gone was evicted, also when the
	// process that asked died before it could say so.
	var evicted []string
	for _, r := range was.Evicting {
		if present := slices.ContainsFunc(here, func(p Pod) bool { return p.Ref() == r }); !present || left[r] {
			evicted = append(evicted, r)
		}
	}
	blockers = inOrder(blockers)
	forced := among(was.Forcing, evicted)
	_, err := commit(ctx, l, fmt.Sprintf("round/%s/%d", was.RequestID, was.Round), func(t *turn) error {
		st := t.State
		if !same(*st, was) {
			return errMoved
		}
		changed := !slices.Equal(keys(st.Blockers), keys(blockers))
		st.Round++
		st.Evicting, st.Evicted, st.Remaining, st.Blockers = nil, st.Evicted+len(evicted), len(here), blockers
		st.Forcing, st.Forced = nil, join(st.Forced, forced)
		st.LastError = ""
		if err := errors.Join(failed...); err != nil {
			st.LastError = err.Error()
		}
		st.NextAt = t.Now.Add(h.opts.Times.Poll)
		if refused || len(failed) > 0 {
			st.Attempt++
			st.NextAt = t.Now.Add(h.backoff(st.Attempt))
		} else {
			st.Attempt = 0
		}
		var told []error
		if len(evicted) > 0 {
			told = append(told, emit(t, events.NodeDrainProgressed{DrainRef: ref(t), Evicted: evicted, Remaining: len(here), Forced: forcedPods(forced)}))
		}
		if changed && len(blockers) > 0 {
			told = append(told, emit(t, events.NodeDrainBlocked{DrainRef: ref(t), Blockers: eventBlockers(blockers), Deadline: st.Deadline}))
		}
		return errors.Join(told...)
	})
	if err != nil {
		return fmt.Errorf("record evictions: %w", err)
	}
	if len(evicted) > 0 || len(blockers) > 0 {
		h.log.InfoContext(ctx, "drain goes on", "node", was.Node, "evicted", len(evicted), "remaining", len(here),
			"blockers", names(blockers), "deadline", was.Deadline, "correlation_id", was.CorrelationID)
	}
	if len(forced) > 0 {
		h.log.WarnContext(ctx, "pods were evicted by force, past the drain's deadline", "node", was.Node, "pods", forcedNames(forced), "correlation_id", was.CorrelationID)
	}
	if err := errors.Join(failed...); err != nil {
		h.log.WarnContext(ctx, "evictions failed and will be asked for again", "node", was.Node, "error", err)
	}
	return nil
}

// terminating says why a pod that was evicted holds the drain up, if it does: it
// outlived its grace period, or has one that ends after the drain.
func (h *Handler) terminating(d lifecycle.Drain, p Pod) []lifecycle.Blocker {
	b := lifecycle.Blocker{Kind: blockTerminating, Pod: p.Ref()}
	if past := h.outlived(p); past > 0 {
		b.Message = fmt.Sprintf("it is still there %s after its grace period ended", past.Round(time.Second))
		b.Fix = "look at its finalizers and at the kubelet of the node"
		return []lifecycle.Blocker{b}
	}
	if !d.Deadline.IsZero() && p.DeletionDeadline.After(d.Deadline) {
		b.Message = fmt.Sprintf("its grace period ends at %s, after the drain's deadline", p.DeletionDeadline.UTC().Format(time.RFC3339))
		b.Fix = "a shorter terminationGracePeriodSeconds of the pod, or a longer drain.deadline of the pool"
		return []lifecycle.Blocker{b}
	}
	return nil
}

// drained commits that the node is empty: with goal remove, the point of no
// return. behind are pods that end with their machine.
func (h *Handler) drained(ctx context.Context, l *lease, behind []lifecycle.Forced) error {
	d := l.Record()
	if err := h.settle(ctx, l, lifecycle.OnEmptied, func(t *turn) error {
		st := t.State
		untold := join(among(st.Forcing, st.Evicting), behind)
		var told error
		if len(st.Evicting)+len(untold) > 0 { // of a process that died before it could say so, and what stays
			told = emit(t, events.NodeDrainProgressed{DrainRef: ref(t), Evicted: slices.Concat([]string{}, st.Evicting), Forced: forcedPods(untold)})
		}
		st.Evicted, st.Evicting, st.Forcing = st.Evicted+len(st.Evicting), nil, nil
		st.Forced = join(st.Forced, untold)
		st.Remaining, st.Blockers = 0, nil
		return errors.Join(told, emit(t, events.NodeDrained{DrainRef: ref(t), DecisionID: st.DecisionID, Reason: events.Reason(st.Reason),
			Actor: st.Actor, Evicted: st.Evicted, DecidedAt: st.DecidedAt, Forced: forcedPods(st.Forced)}))
	}); err != nil {
		return err
	}
	now := l.Record()
	if len(now.Forced) > 0 {
		h.ended(d, outcomeForced)
		h.log.WarnContext(ctx, "node drained by force", "node", d.Node, "evicted", now.Evicted, "forced", forcedNames(now.Forced), "request", d.RequestID,
			"correlation_id", d.CorrelationID)
		return nil
	}
	h.ended(d, outcomeDrained)
	h.log.InfoContext(ctx, "node drained", "node", d.Node, "goal", d.Goal, "evicted", now.Evicted, "request", d.RequestID, "correlation_id", d.CorrelationID)
	return nil
}

func budgetBlocker(p Pod, b *Blocked) lifecycle.Blocker {
	if b.Budget == "" {
		return lifecycle.Blocker{Kind: blockRefused, Pod: p.Ref(), Message: b.Message, Fix: "see the message"}
	}
	return lifecycle.Blocker{Kind: blockBudget, Name: b.Budget, Pod: p.Ref(), Message: b.Message,
		Fix: fmt.Sprintf("run more healthy replicas, or let the budget %s allow a disruption", b.Budget)}
}

func refsOf(pods []Pod) []string {
	out := make([]string, len(pods))
	for i, p := range pods {
		out[i] = p.Ref()
	}
	slices.Sort(out)
	return out
}

// union returns the names of both, once each, in order.
func union(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// keys tell whether a set of blockers is another one; their messages count
// seconds and replicas.
func keys(bs []lifecycle.Blocker) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = b.Kind + " " + b.Name + " " + b.Pod
	}
	return out
}

func names(bs []lifecycle.Blocker) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = strings.TrimSpace(b.Kind + " " + b.Name + " for pod " + b.Pod)
	}
	return out
}

func eventBlockers(bs []lifecycle.Blocker) []events.Blocker {
	var out []events.Blocker
	for _, b := range bs {
		out = append(out, events.Blocker(b))
	}
	return out
}
