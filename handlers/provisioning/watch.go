package provisioning

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// watch looks at the machines that have yet to become Ready, and publishes
// node.observed when one ended or vanished: the deadline need not be waited for.
func (h *Handler) watch(ctx context.Context) error {
	ticker := h.clock.NewTicker(h.times.Watch)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := h.watchOnce(ctx); err != nil && ctx.Err() == nil {
			h.metrics.failed()
			h.log.ErrorContext(ctx, "machines can't be watched, trying again", "error", err)
		}
	}
}

func (h *Handler) watchOnce(ctx context.Context) error {
	records, err := h.state.All(ctx)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	var errs []error
	names := h.newNames()
	for _, r := range records {
		n := r.State
		if !n.Phase.Waiting() || n.Suspicion != nil {
			continue
		}
		m, err := h.machines(r.Key.Cluster, n.Pool)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var found Machine
		err = h.effect(ctx, "inspect", h.times.Call, func(ctx context.Context) (err error) {
			found, err = get(ctx, m, n)
			return err
		})
		p := events.NodeObserved{Node: n.Name, What: events.ObservedExited, At: h.clock.Now()}
		switch {
		case errors.Is(err, ErrNotFound):
			p.Reason, p.Message = ReasonMachineGone, "the machine is gone"
		case err != nil:
			errs = append(errs, fmt.Errorf("inspect machine %s: %w", n.Name, err))
			continue
		case found.State != MachineExited:
			errs = append(errs, names.look(ctx, r, found))
			continue
		default:
			p.Reason, p.Message = ReasonMachineExited, fmt.Sprintf("the machine ended with exit code %d", found.ExitCode)
		}
		// Once in a minute, should the report be dismissed.
		window := strconv.FormatInt(p.At.Truncate(time.Minute).Unix(), 10)
		errs = append(errs, h.publish(ctx, events.Meta{Cluster: r.Key.Cluster, Node: n.Name, CorrelationID: n.CorrelationID, Time: p.At,
			ID: events.ID("exited", r.Key.Cluster, n.Name, n.ClaimID, window)}, p))
	}
	return errors.Join(errs...)
}
