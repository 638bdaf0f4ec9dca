package draining

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// kindJob is the owner of pods that end by themselves.
const kindJob = "Job"

func ofJob(p Pod) bool { return p.OwnerKind == kindJob }

// finishJobs waits on a cordoned node until the pods of Jobs have ended, where the
// request gives them time, or begins to evict. As long as it waits nothing is
// evicted: the node may be needed again, and then nothing has to come back.
func (h *Handler) finishJobs(ctx context.Context, l *lease) error {
	d := l.Record()
	if d.JobsWithin <= 0 {
		return h.beginEvicting(ctx, l)
	}
	_, here, settled, err := h.occupants(ctx, l)
	if err != nil || settled {
		return err
	}
	jobs := refsOf(slices.DeleteFunc(slices.Clone(here), func(p Pod) bool { return !ofJob(p) || p.Deleting }))
	timeIsUp := !d.JobsUntil.IsZero() && !h.opts.Clock.Now().Before(d.JobsUntil)
	if len(jobs) == 0 || timeIsUp {
		if timeIsUp && len(jobs) > 0 {
			h.log.WarnContext(ctx, "pods of Jobs have not ended in time and are evicted", "node", d.Node, "pods", jobs,
				"within", d.JobsWithin, "request", d.RequestID, "correlation_id", d.CorrelationID)
		}
		return h.beginEvicting(ctx, l)
	}
	return h.awaitJobs(ctx, l, jobs, len(here))
}

// awaitJobs records which pods are waited for, and when to look again.
func (h *Handler) awaitJobs(ctx context.Context, l *lease, jobs []string, here int) error {
	was := l.Record()
	news := was.Phase != lifecycle.DrainFinishing || !slices.Equal(was.WaitingFor, jobs)
	tell := func(t *turn) error {
		st := t.State
		st.WaitingFor, st.Remaining, st.Attempt, st.LastError = jobs, here, 0, ""
		st.NextAt = earlier(t.Now.Add(h.opts.Times.Jobs), st.JobsUntil)
		if !news {
			return nil
		}
		return emit(t, events.NodeDrainProgressed{DrainRef: ref(t), Evicted: []string{}, Remaining: here, WaitingFor: jobs, WaitUntil: st.JobsUntil})
	}
	var err error
	if was.Phase == lifecycle.DrainFinishing {
		_, err = commit(ctx, l, fmt.Sprintf("jobs/%s/%d", was.RequestID, h.opts.Clock.Now().UnixNano()), func(t *turn) error {
			if !same(*t.State, was) {
				return errMoved
			}
			return tell(t)
		})
	} else {
		err = h.settle(ctx, l, lifecycle.OnWaiting, tell)
	}
	if err != nil {
		return fmt.Errorf("record which Jobs are waited for: %w", err)
	}
	if news {
		h.log.InfoContext(ctx, "node waits for pods of Jobs to end", "node", was.Node, "pods", jobs, "until", l.Record().JobsUntil,
			"request", was.RequestID, "correlation_id", was.CorrelationID)
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (h *Handler) beginEvicting(ctx context.Context, l *lease) error {
	return h.settle(ctx, l, lifecycle.OnEvicting, func(t *turn) error {
		t.State.WaitingFor = nil
		return nil
	})
}
