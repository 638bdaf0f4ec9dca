package draining

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// mayForce reports whether a drain whose deadline has passed goes on: a removal whose
// pool says so, unless budgets alone refuse what is left. They are never overruled,
// and the time that is left to them would be lost for the node.
func mayForce(d lifecycle.Drain) bool {
	if !d.Force || !d.Can(lifecycle.OnForced) {
		return false
	}
	refused := map[string]bool{}
	for _, b := range d.Blockers {
		if b.Kind == blockBudget || b.Kind == blockBudgets || b.Kind == blockRefused {
			refused[b.Pod] = true
		}
	}
	return d.Remaining == 0 || d.Remaining > len(refused)
}

// force goes on past the deadline, for as long again: pods that were spared are
// evicted, through the eviction API like all others, so that budgets and grace periods
// hold.
func (h *Handler) force(ctx context.Context, l *lease) error {
	d := l.Record()
	if err := h.settle(ctx, l, lifecycle.OnForced, func(t *turn) error {
		return emit(t, events.NodeDrainProgressed{DrainRef: ref(t), Evicted: []string{}, Remaining: t.State.Remaining, ForcingUntil: t.State.Deadline})
	}); err != nil {
		return err
	}
	h.log.WarnContext(ctx, "drain is past its deadline and goes on by force, as its pool says", "node", d.Node, "blockers", names(d.Blockers),
		"until", l.Record().Deadline, "request", d.RequestID, "correlation_id", d.CorrelationID)
	return nil
}

// leaveBehind tells the pods of a forced removal that outlived their grace period from
// those that still have to leave. Nothing ends the former but the end of their machine,
// which the removal brings. They are not deleted from the API server: as long as they
// may run, no StatefulSet starts another of the name, and the Node object takes them
// with it when it goes.
func (h *Handler) leaveBehind(d lifecycle.Drain, pods []Pod) (here, behind []Pod) {
	if d.Phase != lifecycle.DrainForcing {
		return pods, nil
	}
	for _, p := range pods {
		if h.outlived(p) > 0 {
			behind = append(behind, p)
		} else {
			here = append(here, p)
		}
	}
	return here, behind
}

// outlived is for how long a pod is there past its grace period and the time that a
// kubelet needs to say so; 0: it is not.
func (h *Handler) outlived(p Pod) time.Duration {
	if past := h.opts.Clock.Now().Sub(p.DeletionDeadline); p.Deleting && past > h.opts.Times.Stuck {
		return past
	}
	return 0
}

// leftBehind records pods that are left to the end of their machine.
func (h *Handler) leftBehind(pods []Pod) []lifecycle.Forced {
	var out []lifecycle.Forced
	for _, p := range pods {
		out = append(out, lifecycle.Forced{Pod: p.Ref(), Reason: lifecycle.Reason{Code: blockTerminating,
			Message: fmt.Sprintf("it is still there %s after its grace period ended, and ends with its machine", h.outlived(p).Round(time.Second))}})
	}
	return out
}

// forcedOf are those of the pods that were spared so far, and what spared them.
func forcedOf(pods []Pod, spared []lifecycle.Blocker) []lifecycle.Forced {
	var out []lifecycle.Forced
	for _, p := range pods {
		f := lifecycle.Forced{Pod: p.Ref()}
		for _, b := range spared {
			switch {
			case b.Pod != f.Pod:
			case f.Reason.Code == "":
				f.Reason = lifecycle.Reason{Code: b.Kind, Message: b.Message}
			default:
				f.Reason.Message += "; " + b.Message
			}
		}
		if f.Reason.Code != "" {
			out = append(out, f)
		}
	}
	return out
}

// join adds those of more that are not there yet.
func join(forced, more []lifecycle.Forced) []lifecycle.Forced {
	out := slices.Clone(forced)
	for _, f := range more {
		if !slices.ContainsFunc(out, func(o lifecycle.Forced) bool { return o.Pod == f.Pod }) {
			out = append(out, f)
		}
	}
	return out
}

// among are those of forced whose pods are named.
func among(forced []lifecycle.Forced, refs []string) []lifecycle.Forced {
	var out []lifecycle.Forced
	for _, f := range forced {
		if slices.Contains(refs, f.Pod) {
			out = append(out, f)
		}
	}
	return out
}

func forcedNames(forced []lifecycle.Forced) []string {
	out := make([]string, len(forced))
	for i, f := range forced {
		out[i] = f.Pod + ": " + f.Reason.Message
	}
	return out
}

func forcedPods(forced []lifecycle.Forced) []events.ForcedPod {
	var out []events.ForcedPod
	for _, f := range forced {
		out = append(out, events.ForcedPod{Pod: f.Pod, Reason: events.Reason(f.Reason)})
	}
	return out
}
