package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// ExportOptions are what 'export' was asked for.
type ExportOptions struct {
	// Config names the stream; nil: Export has it, of the process that runs.
	Config *config.Config
	Export bundle.ExportOptions
}

func (a *app) exportCommand() *cobra.Command {
	var since, until, cluster, configPath, path string
	c := &cobra.Command{
		Use:   "export -o FILE",
		Short: "Write a range of the log into one file, to look into it elsewhere",
		Long: `Write the events of a range of the log into one file: an incident bundle. It begins
with the last checkpoint before the range, so that every decision in it can be taken
again, and holds a manifest and digests. No configuration, token or credential is in
it; where an event holds what looks like a secret, that is taken out.

'import' checks such a file and says what is in it. 'events list', 'replay
--decisions' and 'backtest' look into it with --bundle; none of them needs a server.
It is a tar archive, compressed with zstd: tar, sha256sum and jq read it, too.

The log is that of the process at --server. With --config it is opened directly:
that of bus.url, or the embedded bus's directory while no process uses it.`,
		Example: "  k3s-autoscaler export --since 2h -o incident.tar.zst\n  k3s-autoscaler export --since 2026-03-01T08:00:00Z --until 2026-03-01T09:00:00Z --cluster home -o incident.tar.zst",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				return usagef("--output: is missing, expected the file to write, e.g. -o incident.tar.zst")
			}
			o := ExportOptions{Export: bundle.ExportOptions{Path: path, Cluster: cluster, Version: a.Version}}
			var err error
			var now time.Time
			if o.Config, o.Export.Log, now, err = a.log(place{config: configPath}); err != nil {
				return err
			}
			if o.Export.From, err = position("--since", since, now); err != nil {
				return err
			}
			if o.Export.To, err = position("--until", until, now); err != nil {
				return err
			}
			m, err := a.Export(cmd.Context(), o)
			if err != nil {
				return err
			}
			return manifestText(a.Stdout, path, m)
		}),
	}
	f := c.Flags()
	f.StringVarP(&path, "output", "o", "", "the file to write, which must not exist")
	f.StringVar(&since, "since", "", "not before: a time, how long ago, e.g. 2h, or a sequence (default: the oldest event)")
	f.StringVar(&until, "until", "", "before: a time or how long ago; or the last sequence (default: the newest event)")
	clusterFlag(c, &cluster)
	f.StringVar(&configPath, "config", "", "open the stream of this configuration, instead of asking a process")
	_ = c.MarkFlagFilename("config", "yaml", "yml") // the flag exists
	return c
}

func (a *app) importCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Check a file that 'export' wrote, and say what is in it",
		Long: `Check all of an incident bundle, and say what is in it and how to look into it. A
file that is truncated, that was changed, or that nothing of ours made is exit code 1.

Nothing is kept and no server is needed: 'events list', 'replay --decisions' and
'backtest' read the file itself, with --bundle, and check it as well.`,
		Example: "  k3s-autoscaler import incident.tar.zst\n  k3s-autoscaler events list --bundle incident.tar.zst --since 30m",
		Args:    cobra.ExactArgs(1),
		RunE: do(func(_ *cobra.Command, args []string) error {
			r, err := bundle.Open(args[0])
			if err != nil {
				return err
			}
			return a.show(r.Manifest(), func(w io.Writer) error { return manifestText(w, args[0], r.Manifest()) })
		}),
	}
	return a.listing(c)
}

func manifestText(w io.Writer, path string, m bundle.Manifest) error {
	var l lines
	of := "all clusters"
	if m.Cluster != "" {
		of = "cluster " + m.Cluster + " alone"
	}
	l.add(0, "bundle   %s, of %s, by version %s", path, of, m.Version)
	l.add(0, "stream   %s", m.Incarnation)
	l.add(0, "events   %d, sequences %d to %d", m.Events, m.First, m.Last)
	l.add(0, "         %s to %s", m.FirstTime.Format(time.RFC3339), m.LastTime.Format(time.RFC3339))
	if m.First < m.RangeFirst {
		l.add(0, "         those before %d are there to take decisions again", m.RangeFirst)
	}
	l.add(0, "digest   sha256 %s", m.Digest)
	for _, c := range m.Clusters {
		l.add(0, "cluster  %s, %s", c.Cluster, plural(c.Events, "event"))
		if c.Checkpoint > 0 {
			l.add(2, "decisions can be taken again from the checkpoint of snapshot %d on", c.Snapshot)
		} else {
			l.add(2, "no decision can be taken again: there is no checkpoint with its snapshot")
		}
		for _, p := range c.Policies {
			dry := ""
			if p.DryRun {
				dry = ", dry run"
			}
			l.add(2, "policy %.12s, applied at %d%s", p.Digest, p.Sequence, dry)
		}
		if len(c.Versions) > 0 {
			l.add(2, "decided by version %s", strings.Join(c.Versions, ", "))
		}
	}
	if n := len(m.Redacted); n > 0 {
		l.add(0, "redacted %s: what looked like a secret was taken out", plural(n, "event"))
	}
	l.add(0, "look into it: k3s-autoscaler events list --bundle %s", path)
	_, err := io.WriteString(w, l.String())
	return err
}

// place is where a command reads a log: at a running process unless it names another.
type place struct{ config, bundle string }

// bundleFlag adds --bundle to a command that reads a log.
func bundleFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "bundle", "", "read this file, which 'export' wrote, instead of asking a process")
	_ = c.MarkFlagFilename("bundle", "zst") // the flag exists
}

// log is the log at a place: what a configuration names, or one that can be read. now
// is what "how long ago" is counted from: in a bundle, its end.
func (a *app) log(at place) (*config.Config, replay.Log, time.Time, error) {
	if at.bundle != "" {
		r, err := bundle.Open(at.bundle)
		if err != nil {
			return nil, nil, time.Time{}, err
		}
		return nil, r, r.Manifest().LastTime, nil
	}
	c, cl, err := a.source(at.config)
	if err != nil || cl == nil {
		return c, nil, a.Clock.Now(), err
	}
	return nil, remoteLog{a, cl}, a.Clock.Now(), nil
}

// bundled lists events of a bundle as the API lists those of a process.
func (f *logFlags) bundled(ctx context.Context, limit int) ([]api.Entry, error) {
	if limit < 1 {
		return nil, usagef("--limit: is %d, expected at least 1", limit)
	}
	r, err := bundle.Open(f.bundle)
	if err != nil {
		return nil, err
	}
	now := r.Manifest().LastTime
	o := bus.ReadOptions{Cluster: f.cluster, Node: f.node}
	from, err := position("--since", f.since, now)
	if err != nil {
		return nil, err
	}
	to, err := position("--until", f.until, now)
	if err != nil {
		return nil, err
	}
	if o.Types, err = f.kinds(); err != nil {
		return nil, err
	}
	o.FromSequence, o.Since, o.UntilSequence, o.Until = from.Sequence, from.Time, to.Sequence, to.Time
	newest := f.since == ""
	if !newest {
		o.Limit = limit
	}
	out := []api.Entry{}
	for d, err := range r.Read(ctx, o) {
		if err != nil {
			return nil, err
		}
		e, err := api.EntryOf(d, f.full)
		if err != nil {
			return nil, fmt.Errorf("read event %d: %w", d.Sequence, err)
		}
		if out = append(out, e); newest && len(out) > limit {
			out = out[1:]
		}
	}
	return out, nil
}

// kinds are the types that are asked for, nil for all.
func (f *logFlags) kinds() ([]string, error) {
	switch {
	case len(f.types) > 0:
		types, err := api.MatchTypes(f.types)
		if err != nil {
			return nil, usagef("--type: %w", err)
		}
		return types, nil
	case f.all:
		return nil, nil
	}
	hidden, err := api.MatchTypes(quiet)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range events.Catalog() {
		if !slices.Contains(hidden, d.Type) {
			out = append(out, d.Type)
		}
	}
	return out, nil
}
