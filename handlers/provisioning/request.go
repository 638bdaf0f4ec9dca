package provisioning

import (
	"context"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// reconcileRequested sweeps one cluster now and publishes what it found. Handled
// twice it looks twice, and its report has the same id.
func (h *Handler) reconcileRequested(ctx context.Context, d bus.Delivery, p events.ReconcileRequested) error {
	report, err := h.sweeper.asked(ctx, d, p.DryRun)
	if err != nil {
		return err
	}
	h.log.InfoContext(ctx, "reconcile sweep asked for", "cluster", d.Key.Cluster, "actor", p.Actor, "reason", p.Reason, "dry_run", p.DryRun,
		"differences", len(report.Differences)+report.More, "unknown", len(report.Unknown))
	return h.publish(ctx, events.Meta{
		Cluster: d.Key.Cluster, Time: report.At, CorrelationID: correlation(d, d.Event.ID()), CausationID: d.Event.ID(),
		ID: events.ID("reconcile reported", d.Event.ID()),
	}, report)
}

// asked looks at one cluster and, unless it is a dry run, publishes what is due.
// What could not be read is part of the report.
func (s *sweeper) asked(ctx context.Context, d bus.Delivery, dryRun bool) (events.ReconcileReported, error) {
	cluster := d.Key.Cluster
	report := events.ReconcileReported{RequestID: d.Event.ID(), DryRun: dryRun}
	c, ok := s.h.clusters()[cluster]
	if !ok {
		report.At = s.h.clock.Now()
		report.Unknown = []string{"cluster " + cluster + " is not configured in the process that provisions"}
		return report, nil
	}
	looking, cancel := context.WithTimeout(ctx, s.h.times.Asked)
	defer cancel()
	end, err := s.begin(looking)
	if err != nil {
		report.At = s.h.clock.Now()
		report.Unknown = []string{"the sweep that is under way waits for an answer of a provider or the API server; ask again, and see the log of the process that provisions"}
		return report, ctx.Err()
	}
	defer end()
	found, err := s.look(looking, map[string]Cluster{cluster: c})
	if ctx.Err() != nil {
		return report, ctx.Err()
	}
	if err != nil {
		report.Unknown = strings.Split(err.Error(), "\n")
	}
	report.At, report.Nodes, report.Records = found.at, found.nodes, found.records
	for _, d := range found.differences {
		if len(report.Differences) == events.MaxDifferences {
			report.More++
			continue
		}
		report.Differences = append(report.Differences, d.told())
	}
	if dryRun {
		return report, nil
	}
	return report, s.publish(ctx, found)
}
