package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// RebaseOptions say whose word it is that the present log is the truth.
type RebaseOptions struct {
	Config        *config.Config
	Actor, Reason string
	DryRun        bool // change nothing, only say what would be
	Logger        *slog.Logger
	Times         bus.Times // zero values: the defaults
}

// Rebase makes everything follow the present stream of record after events of it
// were lost, and records that as log.rebased in every cluster. It may be run
// again at any time. No process may run meanwhile.
func Rebase(ctx context.Context, o RebaseOptions) (_ bus.Rebased, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	recorded, err := recordedUpTo(ctx, o.Config)
	if err != nil {
		return bus.Rebased{}, err
	}
	bo := busOptions(o.Config.Bus, Options{Logger: o.Logger, Times: o.Times})
	if o.Config.Bus.URL == "" {
		server, err := embedded.Start(embedded.Options{Dir: o.Config.Bus.Embedded.Dir, Logger: o.Logger})
		if errors.Is(err, embedded.ErrInUse) {
			return bus.Rebased{}, fmt.Errorf("%w: stop the autoscaler first", err)
		}
		if err != nil {
			return bus.Rebased{}, fmt.Errorf("start the embedded bus: %w", err)
		}
		defer server.Shutdown()
		bo.Server = server
	}
	r, err := bus.Rebase(ctx, bo, recorded, o.DryRun)
	if err != nil || o.DryRun || r.Previous == "" || r.Previous == r.Incarnation {
		return r, err
	}
	b, err := bus.Open(ctx, bo)
	if err != nil {
		return r, fmt.Errorf("open the bus: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	records := 0
	for _, n := range r.Records {
		records += n
	}
	now := time.Now().UTC()
	for _, c := range o.Config.Clusters {
		e, err := events.New(events.Meta{
			Cluster: c.Name, Publisher: "app", Time: now,
			ID: events.ID("log.rebased", c.Name, r.Previous, r.Incarnation), // run again after a kill, it is the same event
		}, events.LogRebased{
			Actor: o.Actor, Reason: o.Reason, Previous: r.Previous, Known: r.Known, Incarnation: r.Incarnation, Shared: r.Shared,
			Records: records, Owed: r.Owed, At: now,
		})
		if err != nil {
			return r, fmt.Errorf("record the rebase: %w", err)
		}
		if err := b.Publish(ctx, e); err != nil {
			return r, fmt.Errorf("record the rebase: %w", err)
		}
	}
	return r, nil
}

// recordedUpTo is how far the audit store goes; the zero value where there is none.
func recordedUpTo(ctx context.Context, c *config.Config) (_ bus.LogPosition, err error) {
	path := c.Audit.SQLite.Path
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return bus.LogPosition{}, nil
	}
	store, err := sqlite.Open(ctx, sqlite.Options{Path: path})
	if err != nil {
		return bus.LogPosition{}, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	incarnation, high, err := store.High(ctx)
	if err != nil {
		return bus.LogPosition{}, fmt.Errorf("read the high-water mark of the audit store: %w", err)
	}
	return bus.LogPosition{Incarnation: incarnation, Sequence: high}, nil
}
