package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// reconcileTimeout is how long an answer is waited for: a sweep that was asked for
// takes at most 20 s.
const reconcileTimeout = 40 * time.Second

func (a *app) reconcileCommand() *cobra.Command {
	var cluster, reason string
	var dryRun bool
	c := &cobra.Command{
		Use: "reconcile", Short: "Compare machines, Node objects and records now",
		Long: `Compares machines, Node objects and records now, as happens every minute, and
prints what differs and what is done about it. Differences that are younger than
reconcile.grace are acted on when they are older.

With --dry-run nothing is done. Exit code 1 if something could not be compared.`,
		Example: "  k3s-autoscaler reconcile --dry-run",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			r, err := a.askReconcile(cmd.Context(), cl, cluster, events.ReconcileRequested{DryRun: dryRun, Actor: a.actor(), Reason: reason})
			if err != nil {
				return err
			}
			if err := a.show(r, func(w io.Writer) error { return a.reconcileTable(w, r) }); err != nil {
				return err
			}
			if len(r.Unknown) > 0 {
				return errSilent
			}
			return nil
		}),
	}
	clusterFlag(c, &cluster)
	c.Flags().StringVar(&reason, "reason", "", "why, for those who read the audit")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be done")
	return a.listing(c)
}

// askReconcile asks for a sweep and waits for its report.
func (a *app) askReconcile(ctx context.Context, cl *client, cluster string, p events.ReconcileRequested) (events.ReconcileReported, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, reconcileTimeout, errTimeout)
	defer cancel()
	var report events.ReconcileReported
	id := strings.ToLower(rand.Text())
	body, err := a.event(id, cluster, p)
	if err != nil {
		return report, err
	}
	q := query("cluster", cluster)
	q["type"] = []string{"reconcile.reported"}
	err = a.follow(ctx, cl, q, func() error {
		var got api.Accepted
		return cl.post(ctx, body, &got)
	}, func(e api.Entry) (bool, error) {
		var ev events.Event
		if err := json.Unmarshal(e.Event, &ev); err != nil {
			return false, fmt.Errorf("read the report: %w", err)
		}
		r, err := events.Decode[events.ReconcileReported](ev)
		if err != nil {
			return false, fmt.Errorf("read the report: %w", err)
		}
		if r.RequestID != id {
			return true, nil // somebody else's
		}
		report = r
		return false, nil
	})
	if errors.Is(context.Cause(ctx), errTimeout) {
		return report, fmt.Errorf("nobody answered within %s: no process with the role provisioning runs (a dry run has none), or the request waits; it stays: k3s-autoscaler events list --type 'reconcile.*'", reconcileTimeout)
	}
	return report, err
}

func (a *app) reconcileTable(w io.Writer, r events.ReconcileReported) error {
	if len(r.Differences) > 0 {
		t := newColumns(w, "NODE", "POOL", "KIND", "SINCE", "WHAT", "THEN")
		for _, d := range r.Differences {
			t.row(d.Node, d.Pool, d.Kind, a.ago(d.Since), d.Detail, a.then(r, d))
		}
		if err := t.flush(""); err != nil {
			return err
		}
	}
	for _, u := range r.Unknown {
		if _, err := fmt.Fprintln(w, "not compared: "+u); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, reconcileSummary(r))
	return err
}

// then is what happens to a difference, and when.
func (a *app) then(r events.ReconcileReported, d events.Difference) string {
	text := d.Action
	if d.Kind != "" && d.Due.After(r.At) {
		text += ", if it is still so after " + span(d.Due.Sub(r.At))
	}
	return text
}

func reconcileSummary(r events.ReconcileReported) string {
	n := len(r.Differences) + r.More
	text := fmt.Sprintf("%s compared, %s", plural(r.Nodes, "node"), plural(n, "difference"))
	if n == 0 {
		text = fmt.Sprintf("%s compared: machines, Node objects and records agree", plural(r.Nodes, "node"))
		if len(r.Unknown) > 0 {
			text += " as far as they are known"
		}
	}
	if r.More > 0 {
		text += fmt.Sprintf(" (%d of them not listed)", r.More)
	}
	if r.DryRun && n > 0 {
		text += "; nothing was done, this was a dry run"
	}
	return text
}
