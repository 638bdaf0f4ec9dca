// K3s-autoscaler adds and removes worker nodes of k3s clusters.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	_ "time/tzdata" // budgets name time zones; images have none

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app/demo"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/cli"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/telemetry"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(execute()) }

func execute() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Execute(ctx, cli.Options{Version: version, Run: run, Demo: show, Replay: again, Decide: decide, Export: export, Doctor: examine, BusProvision: provision, BusPermissions: permissions, BusRebase: rebase}, os.Args[1:])
}

func run(ctx context.Context, o cli.RunOptions) (err error) {
	t := o.Config.Telemetry
	log, err := telemetry.NewLogger(o.Stderr, telemetry.LogOptions{Level: t.LogLevel, Format: t.LogFormat})
	if err != nil {
		return err
	}
	reg, err := telemetry.NewRegistry(o.Version)
	if err != nil {
		return err
	}
	if o.DryRun && len(o.Roles) == len(cli.Roles) {
		o.Roles = nil // every role that a dry run may have
	}
	a, err := app.New(ctx, app.Options{
		Config: o.Config, Version: o.Version, Roles: o.Roles, DryRun: o.DryRun, Logger: log, Registry: reg,
	})
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // told to stop while it waited for the bus
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return a.Run(ctx)
}

func decide(ctx context.Context, o cli.DecideOptions) (replay.DecisionReport, error) {
	return app.Decide(ctx, app.DecideOptions{Config: o.Config, Options: o.Replay})
}

func export(ctx context.Context, o cli.ExportOptions) (bundle.Manifest, error) {
	return app.Export(ctx, app.ExportOptions{Config: o.Config, Options: o.Export})
}

func examine(ctx context.Context, o cli.DoctorOptions) doctor.Report {
	return app.Doctor(ctx, app.DoctorOptions{Config: o.Config, NetworkKubeconfig: o.NetworkKubeconfig, NetworkImage: o.NetworkImage, NetworkLimit: o.NetworkLimit})
}

func again(ctx context.Context, o cli.ReplayOptions) (replay.Report, error) {
	return app.Replay(ctx, app.ReplayOptions{Config: o.Config, Into: o.Into, Options: o.Replay})
}

func show(ctx context.Context, o cli.DemoOptions) error {
	d := demo.Options{Out: o.Stdout, Version: o.Version, Serve: o.Serve, Listen: o.Listen, Speed: o.Speed}
	if o.Verbose {
		d.Log = o.Stderr
	}
	return demo.Run(ctx, d)
}

func provision(ctx context.Context, o cli.ProvisionOptions) error {
	t := o.Config.Telemetry
	log, err := telemetry.NewLogger(o.Stderr, telemetry.LogOptions{Level: "warn", Format: t.LogFormat})
	if err != nil {
		return err
	}
	made, err := app.Provision(ctx, o.Config.Bus, app.Options{Logger: log})
	w := tabwriter.NewWriter(o.Stdout, 0, 0, 2, ' ', 0)
	for _, p := range made {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Kind, p.Name, p.Action)
	}
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	if err == nil {
		fmt.Fprintln(o.Stdout, "\nWhat the NATS user of each role needs, and no more: k3s-autoscaler bus permissions")
	}
	return err
}

func permissions(o cli.PermissionsOptions) error {
	return app.WritePermissions(o.Stdout, o.Format, o.Users)
}

func rebase(ctx context.Context, o cli.RebaseOptions) (bus.Rebased, error) {
	log, err := telemetry.NewLogger(os.Stderr, telemetry.LogOptions{Level: "warn", Format: "text"})
	if err != nil {
		return bus.Rebased{}, err
	}
	return app.Rebase(ctx, app.RebaseOptions{Config: o.Config, Actor: o.Actor, Reason: o.Reason, DryRun: o.DryRun, Logger: log})
}
