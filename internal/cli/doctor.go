package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
)

// DoctorOptions are what 'doctor' was asked for. The configuration is checked.
type DoctorOptions struct {
	Config            *config.Config
	NetworkKubeconfig string
	NetworkImage      string
	NetworkLimit      time.Duration
}

func (a *app) doctorCommand() *cobra.Command {
	var o DoctorOptions
	var path string
	c := &cobra.Command{
		Use: "doctor --config FILE", Short: "Look for what is wrong, and say how to mend it",
		Long: `Looks for what is wrong with the configuration, the bus, the API servers and what
the autoscaler may do there, the hosts of the pools, clocks and Prometheus, from
where it runs, and prints each finding with its fix. If the autoscaler runs, it
also prints where machines, Node objects and records differ, and what is done.

With --network-kubeconfig, which names a credential that may create pods in the
namespace default, it tries the pod network: a short-lived pod on the oldest node
that is not ours asks one on the newest of ours.

Exit code 1 if something is wrong.`,
		Example: "  k3s-autoscaler doctor --config config.yaml\n  k3s-autoscaler doctor --config config.yaml --network-kubeconfig /etc/rancher/k3s/k3s.yaml",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			r, names := a.examine(cmd.Context(), path, o)
			if len(names) > 0 {
				r.Add(a.running(cmd.Context(), names)...)
			}
			if err := a.show(r, func(w io.Writer) error { return doctorTable(w, r) }); err != nil {
				return err
			}
			if r.Problems > 0 {
				return errSilent
			}
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&path, "config", "", "configuration file (required)")
	f.StringVar(&o.NetworkKubeconfig, "network-kubeconfig", "", "kubeconfig that may create pods, to try the pod network with")
	f.StringVar(&o.NetworkImage, "network-image", doctor.DefaultNetworkImage, "image of the two pods; it needs sh, httpd and wget")
	f.DurationVar(&o.NetworkLimit, "network-limit", time.Minute, "how long the try may take, images included")
	_ = c.MarkFlagRequired("config") // the flag exists
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	return a.listing(c)
}

// examine looks at the configuration and, if it is valid, at all that it names.
func (a *app) examine(ctx context.Context, path string, o DoctorOptions) (r doctor.Report, clusters []string) {
	r.Results = []doctor.Result{}
	cfg, err := config.Load(path)
	if err == nil {
		err = cfg.CheckRun()
	}
	var wrong *config.Errors
	switch {
	case errors.As(err, &wrong):
		for _, p := range wrong.Problems {
			r.Add(doctor.Result{Check: "configuration", Target: path, Status: doctor.Problem, Detail: p.String(), Fix: "mend it; 'k3s-autoscaler config check' looks at it alone"})
		}
		return r, nil
	case err != nil:
		r.Add(doctor.Result{Check: "configuration", Target: path, Status: doctor.Problem, Detail: err.Error(), Fix: "name the file with --config"})
		return r, nil
	}
	r.Add(doctor.Result{Check: "configuration", Target: path, Status: doctor.OK, Detail: "is valid"})
	for _, w := range cfg.Warnings() {
		r.Add(doctor.Result{Check: "configuration", Target: path, Status: doctor.Warning, Detail: w.String(), Fix: "see docs/reference/config.md"})
	}
	for _, c := range cfg.Clusters {
		clusters = append(clusters, c.Name)
	}
	o.Config = cfg
	found := a.Doctor(ctx, o)
	r.Add(found.Results...)
	return r, clusters
}

// running asks the autoscaler, if it runs, where things differ.
func (a *app) running(ctx context.Context, clusters []string) []doctor.Result {
	cl, err := a.connect()
	if err == nil {
		var info struct{}
		err = cl.get(ctx, "/v1/log", nil, &info)
	}
	if err != nil {
		return []doctor.Result{{Check: "autoscaler", Status: doctor.Warning, Detail: err.Error(), Fix: "start it, or name it with --server and --token-file; without it nothing is known of differences"}}
	}
	out := []doctor.Result{{Check: "autoscaler", Target: cl.base.Redacted(), Status: doctor.OK, Detail: "answers"}}
	for _, name := range clusters {
		r, err := a.askReconcile(ctx, cl, name, events.ReconcileRequested{DryRun: true, Actor: a.actor(), Reason: "doctor"})
		if err != nil {
			out = append(out, doctor.Result{Check: "reconcile", Target: name, Status: doctor.Problem, Detail: err.Error(), Fix: "see the log of the process that provisions"})
			continue
		}
		out = append(out, a.differences(name, r)...)
	}
	return out
}

// differences are the findings of a sweep.
func (a *app) differences(cluster string, r events.ReconcileReported) []doctor.Result {
	var out []doctor.Result
	for _, u := range r.Unknown {
		out = append(out, doctor.Result{Check: "reconcile", Target: cluster, Status: doctor.Problem, Detail: "not compared: " + u, Fix: "let the process that provisions reach it"})
	}
	for _, d := range r.Differences {
		x := doctor.Result{Check: "reconcile", Target: cluster + "/" + d.Node, Status: doctor.Warning, Detail: d.Detail, Fix: "nothing: " + a.then(r, d)}
		if d.Kind == "" {
			x.Fix = d.Action
		}
		out = append(out, x)
	}
	if r.More > 0 {
		out = append(out, doctor.Result{Check: "reconcile", Target: cluster, Status: doctor.Warning, Detail: plural(r.More, "more difference"), Fix: "k3s-autoscaler reconcile"})
	}
	if len(out) == 0 {
		out = append(out, doctor.Result{Check: "reconcile", Target: cluster, Status: doctor.OK, Detail: reconcileSummary(r)})
	}
	return out
}

func doctorTable(w io.Writer, r doctor.Report) error {
	t := newColumns(w, "STATUS", "CHECK", "TARGET", "FINDING")
	// What needs a look comes last, where people read on.
	rank := []doctor.Status{doctor.OK, doctor.Skipped, doctor.Warning, doctor.Problem}
	sorted := slices.Clone(r.Results)
	slices.SortStableFunc(sorted, func(a, b doctor.Result) int { return slices.Index(rank, a.Status) - slices.Index(rank, b.Status) })
	for _, x := range sorted {
		t.row(string(x.Status), x.Check, x.Target, x.Detail)
		if x.Fix != "" {
			t.row(" ", " ", " ", "→ "+x.Fix)
		}
	}
	if err := t.flush(""); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s, %s\n", plural(r.Problems, "problem"), plural(r.Warnings, "warning"))
	return err
}
