package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// ReplayOptions say from where to where a replay goes.
type ReplayOptions struct {
	// Config names the stream and the live audit store; nil: Log and Live of
	// Options are given.
	Config *config.Config
	// Into is the file of the audit store to rebuild; "": a temporary one.
	Into string
	// Options without Into.
	Options replay.Options
}

// Replay rebuilds the audit store from the stream of record and compares it with
// the live one. It opens the stream for reading alone: no part of it can publish.
func Replay(ctx context.Context, o ReplayOptions) (_ replay.Report, err error) {
	var ends []func() error
	defer func() {
		for _, end := range ends {
			err = errors.Join(err, end())
		}
	}()
	ro := o.Options
	if ro.Logger == nil {
		ro.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Config != nil {
		log, end, err := openLog(ctx, o.Config.Bus, ro.Logger)
		if err != nil {
			return replay.Report{}, err
		}
		ends = append(ends, end)
		live, err := openLive(ctx, o.Config)
		if err != nil {
			return replay.Report{}, err
		}
		ends = append([]func() error{live.Close}, ends...)
		ro.Log, ro.Live = log, live
	}
	if o.Into == "" {
		dir, err := os.MkdirTemp("", "k3s-autoscaler-replay-")
		if err != nil {
			return replay.Report{}, fmt.Errorf("make a folder for the audit store to rebuild: %w", err)
		}
		ends = append(ends, func() error { return os.RemoveAll(dir) })
		o.Into = filepath.Join(dir, "audit.db")
	}
	into, err := sqlite.Open(ctx, sqlite.Options{Path: o.Into})
	if err != nil {
		return replay.Report{}, err
	}
	ends = append([]func() error{into.Close}, ends...)
	ro.Into = into
	return replay.Audit(ctx, ro)
}

// DecideOptions say which decisions are taken again.
type DecideOptions struct {
	// Config names the stream; nil: Log of Options is given.
	Config  *config.Config
	Options replay.DecisionOptions
}

// Decide takes decisions again and compares them with those of the stream of
// record, which it opens for reading alone.
func Decide(ctx context.Context, o DecideOptions) (_ replay.DecisionReport, err error) {
	do := o.Options
	if do.Logger == nil {
		do.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Config != nil {
		log, end, err := openLog(ctx, o.Config.Bus, do.Logger)
		if err != nil {
			return replay.DecisionReport{}, err
		}
		defer func() { err = errors.Join(err, end()) }()
		do.Log = log
	}
	return replay.Decisions(ctx, do)
}

// ExportOptions say what a bundle is made of.
type ExportOptions struct {
	// Config names the stream; nil: Log of Options is given.
	Config  *config.Config
	Options bundle.ExportOptions
}

// Export writes a bundle of the stream of record, which it opens for reading alone.
func Export(ctx context.Context, o ExportOptions) (_ bundle.Manifest, err error) {
	eo := o.Options
	if o.Config != nil {
		log, end, err := openLog(ctx, o.Config.Bus, slog.New(slog.DiscardHandler))
		if err != nil {
			return bundle.Manifest{}, err
		}
		defer func() { err = errors.Join(err, end()) }()
		eo.Log = log
	}
	return bundle.Export(ctx, eo)
}

// openLog opens the stream of record for reading. An embedded one is started for
// that, without a listener; nobody else may use its directory meanwhile.
func openLog(ctx context.Context, c config.Bus, log *slog.Logger) (*bus.Reader, func() error, error) {
	o := busOptions(c, Options{Logger: log, Roles: []string{RoleGateway}})
	end := func() error { return nil }
	if c.URL == "" {
		if _, err := os.Stat(c.Embedded.Dir); err != nil {
			return nil, nil, fmt.Errorf("open the embedded bus: %w", err)
		}
		server, err := embedded.Start(embedded.Options{Dir: c.Embedded.Dir, Logger: log})
		if errors.Is(err, embedded.ErrInUse) {
			return nil, nil, fmt.Errorf("%w; or leave out --config to ask the running process", err)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("start the embedded bus: %w", err)
		}
		o.Server = server
		end = func() error { server.Shutdown(); return nil }
	}
	r, err := bus.OpenReader(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return r, func() error { return errors.Join(r.Close(), end()) }, nil
}

// openLive opens the audit store that exists.
func openLive(ctx context.Context, c *config.Config) (*sqlite.Store, error) {
	path := c.Audit.SQLite.Path
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the live audit store: %w", err)
	}
	return sqlite.Open(ctx, sqlite.Options{Path: path})
}
