package draining

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Kinds of blocker, besides the codes of package evictable.
const (
	blockBudget      = "PodDisruptionBudget"
	blockBudgets     = "SeveralBudgets"
	blockRefused     = "Refused"
	blockTerminating = "Terminating"
	blockGrace       = "GracePeriod" // foreseen only
)

// moves reports whether a pod has to leave a node that is drained. DaemonSet
// pods would come back at once, mirror pods are the kubelet's, and nothing runs
// in finished ones.
func moves(p Pod) bool { return !p.DaemonSet && !p.Mirror && !p.Finished }

// leavesLast reports whether a pod is evicted only when no other is left: others
// may need it until then.
func leavesLast(p Pod) bool { return p.Critical || p.Namespace == evictable.SystemNamespace }

// spared returns the pods that the drain does not evict, each with what would help.
// It is the decision's own judgement, on the pods as they are now.
func (h *Handler) spared(ctx context.Context, c Evictor, d lifecycle.Drain, pods []Pod) ([]lifecycle.Blocker, error) {
	if !slices.ContainsFunc(pods, func(p Pod) bool { return p.Namespace == evictable.SystemNamespace && !p.Deleting }) {
		return spare(d, pods, nil, true), nil
	}
	budgets, known, err := h.budgets(ctx, c, d)
	return spare(d, pods, budgets, known), err
}

func spare(d lifecycle.Drain, pods []Pod, budgets []Budget, known bool) []lifecycle.Blocker {
	policy := evictable.Policy{DeleteLocal: d.DeleteLocal, DeleteUnmanaged: d.DeleteUnmanaged}
	var out []lifecycle.Blocker
	for _, p := range pods {
		if p.Deleting {
			continue
		}
		for _, r := range policy.Keeps(evictable.Pod{Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, OwnerKind: p.OwnerKind,
			Local: p.Local, Budgeted: !known || len(covering(budgets, p)) > 0}) {
			out = append(out, lifecycle.Blocker{Kind: r.Code, Pod: p.Ref(), Message: "it " + r.Message, Fix: r.Fix})
		}
	}
	return inOrder(out)
}

// budgets reads the disruption budgets. They are not known where the credential
// does not let it: evictions are refused by them all the same, only later.
func (h *Handler) budgets(ctx context.Context, c Evictor, d lifecycle.Drain) (budgets []Budget, known bool, err error) {
	budgets, err = c.Budgets(ctx)
	switch {
	case errors.Is(err, ErrForbidden):
		if d.Round == 0 {
			h.log.WarnContext(ctx, "disruption budgets can't be read, so what they forbid shows only when an eviction is refused; apply deploy/kubernetes/rbac.yaml",
				"node", d.Node, "error", err)
		}
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("list disruption budgets: %w", err)
	}
	return budgets, true, nil
}

func covering(budgets []Budget, p Pod) []Budget {
	var out []Budget
	for _, b := range budgets {
		if b.covers(p) {
			out = append(out, b)
		}
	}
	return out
}

// foresee looks at everything that could keep the node before anything is changed.
// refused can't change while the cluster is as it is; foreseen may have changed by the
// time it matters.
func (h *Handler) foresee(ctx context.Context, c Evictor, d lifecycle.Drain, pods []Pod) (refused, foreseen []lifecycle.Blocker, err error) {
	if len(pods) == 0 {
		return nil, nil, nil
	}
	budgets, known, err := h.budgets(ctx, c, d)
	if err != nil {
		return nil, nil, err
	}
	refused = spare(d, pods, budgets, known)
	for _, p := range pods {
		if p.Deleting {
			continue
		}
		if p.Grace > d.Within {
			foreseen = append(foreseen, lifecycle.Blocker{Kind: blockGrace, Pod: p.Ref(),
				Message: fmt.Sprintf("it may take %s to leave, the drain %s", events.Duration(p.Grace), events.Duration(d.Within)),
				Fix:     "a shorter terminationGracePeriodSeconds of the pod, or a longer drain.deadline of the pool"})
		}
		if b, never := budgeted(p, covering(budgets, p)); never {
			refused = append(refused, b)
		} else if b.Kind != "" {
			foreseen = append(foreseen, b)
		}
	}
	return inOrder(refused), inOrder(foreseen), nil
}

// budgeted is what the budgets of a pod say of its eviction, by the rules of the
// eviction API: never says that the replicas there are don't suffice, whatever
// happens to them. Pods that are not Ready have rules of their own, and are tried.
func budgeted(p Pod, covering []Budget) (b lifecycle.Blocker, never bool) {
	switch {
	case !p.Ready || len(covering) == 0:
		return lifecycle.Blocker{}, false
	case len(covering) > 1:
		var refs []string
		for _, b := range covering {
			refs = append(refs, b.Ref())
		}
		slices.Sort(refs)
		return lifecycle.Blocker{Kind: blockBudgets, Name: strings.Join(refs, ", "), Pod: p.Ref(),
			Message: "more than one budget covers it: the API server evicts no such pod", Fix: "leave the pod to one budget"}, true
	}
	is := covering[0]
	b = lifecycle.Blocker{Kind: blockBudget, Name: is.Ref(), Pod: p.Ref()}
	switch {
	case is.Current && is.Allowed <= 0 && is.Expected > 0 && is.Desired >= is.Expected:
		b.Message = fmt.Sprintf("the budget needs %d healthy pods and covers %d: it never allows an eviction", is.Desired, is.Expected)
		b.Fix = fmt.Sprintf("run more than %d replicas, or let the budget %s allow a disruption", is.Desired, is.Ref())
		return b, true
	case is.Allowed <= 0:
		b.Message = fmt.Sprintf("the budget allows no eviction now: it needs %d healthy pods and has %d", is.Desired, is.Healthy)
		b.Fix = fmt.Sprintf("run more healthy replicas, or let the budget %s allow a disruption", is.Ref())
		return b, false
	}
	return lifecycle.Blocker{}, false
}

// inOrder sorts blockers by pod and kind.
func inOrder(bs []lifecycle.Blocker) []lifecycle.Blocker {
	slices.SortFunc(bs, func(a, b lifecycle.Blocker) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Kind, b.Kind))
	})
	return bs
}
