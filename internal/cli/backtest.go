package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/backtest"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

func (a *app) backtestCommand() *cobra.Command {
	var policy, since, until, cluster string
	var at place
	o := backtest.Options{}
	c := &cobra.Command{
		Use:   "backtest --policy FILE",
		Short: "Try a policy on the log: what it would have cost, and who would have waited",
		Long: `Try the policy of a configuration on what happened: node-hours, cost, how long pods
waited, nodes added, removed and added again, pods moved. No cluster is needed and
nothing is acted upon.

Decisions are taken by the program's own code. With another policy there are other
nodes, so the nodes of the pools are simulated; pods, other nodes, alerts, signals
and requests are those of the log. The recorded policy goes through the same
simulation: compare the last two columns with each other, and the first two to see
how far the simulation is from what happened.

The policy is that of the clusters of the same name in FILE, a whole configuration;
files that it names, such as a kubeconfig, need not be there. The log is that of the
process at --server, of --config, or of a file that 'export' wrote (--bundle).`,
		Example: "  k3s-autoscaler backtest --policy new.yaml --since 7d\n  k3s-autoscaler backtest --policy new.yaml --bundle incident.tar.zst -o json",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if policy == "" {
				return usagef("--policy: is missing, expected the configuration whose policy to try")
			}
			if o.Differences < 0 || min(o.Otherwise.Ready, o.Otherwise.Drained, o.Otherwise.Removed) <= 0 {
				return usagef("--differences, --ready-after, --drained-after, --removed-after: expected more than 0")
			}
			var err error
			if o.Policies, err = a.candidates(policy, cluster); err != nil {
				return err
			}
			r, done, err := a.stored(cmd.Context(), at, since, until, cluster)
			if err != nil {
				return err
			}
			defer done()
			now := r.Manifest().LastTime
			if at.bundle != "" {
				if o.From, err = timeOf(r, "--since", since, now); err != nil {
					return err
				}
				if o.Until, err = timeOf(r, "--until", until, now); err != nil {
					return err
				}
			}
			o.Log = r
			report, err := backtest.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.show(report, func(w io.Writer) error { return backtestText(w, report) })
		}),
	}
	f := c.Flags()
	f.StringVar(&policy, "policy", "", "the configuration whose policy to try")
	f.StringVar(&since, "since", "", "begin with the last checkpoint before: a time, how long ago, e.g. 7d, or a sequence (default: the oldest)")
	f.StringVar(&until, "until", "", "end before: a time or how long ago (default: the newest event)")
	clusterFlag(c, &cluster)
	f.StringVar(&at.config, "config", "", "open the stream of this configuration, instead of asking a process")
	bundleFlag(c, &at.bundle)
	f.IntVar(&o.Differences, "differences", 10, "show so many of the decisions that differ")
	f.DurationVar(&o.Otherwise.Ready, "ready-after", backtest.DefaultDelays.Ready, "from a claim to a Ready node, for pools of which the log shows none")
	f.DurationVar(&o.Otherwise.Drained, "drained-after", backtest.DefaultDelays.Drained, "from the decision to an empty node, for pools of which the log shows none")
	f.DurationVar(&o.Otherwise.Removed, "removed-after", backtest.DefaultDelays.Removed, "from an empty node to its end, for pools of which the log shows none")
	_ = c.MarkFlagFilename("policy", "yaml", "yml") // the flags exist
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	c.MarkFlagsMutuallyExclusive("config", "bundle")
	return a.listing(c)
}

// candidates are the policies of a configuration, by cluster.
func (a *app) candidates(path, cluster string) (map[string]backtest.Policy, error) {
	cfg, err := config.LoadPolicy(path)
	if cfg, err = a.loaded(path, cfg, err); err != nil {
		return nil, err
	}
	out := map[string]backtest.Policy{}
	var names []string
	for _, c := range cfg.Clusters {
		names = append(names, c.Name)
		if cluster != "" && c.Name != cluster {
			continue
		}
		p := cfg.Policy(c.Name)
		digest, err := config.Digest(p, false)
		if err != nil {
			return nil, err
		}
		out[c.Name] = backtest.Policy{Digest: digest, Policy: p}
	}
	if len(out) == 0 {
		return nil, usagef("--cluster: %s has no cluster %q, expected one of %s", path, cluster, strings.Join(names, ", "))
	}
	return out, nil
}

// stored is a log in a file: the bundle that is named, or one that is made of the log
// of a process and that done takes away. The log is read several times, and goes on
// meanwhile.
func (a *app) stored(ctx context.Context, at place, since, until, cluster string) (r *bundle.Reader, done func(), err error) {
	if at.bundle != "" {
		r, err = bundle.Open(at.bundle)
		return r, func() {}, err
	}
	o := ExportOptions{Export: bundle.ExportOptions{Cluster: cluster, Version: a.Version}}
	var now time.Time
	if o.Config, o.Export.Log, now, err = a.log(at); err != nil {
		return nil, nil, err
	}
	if o.Export.From, err = position("--since", since, now); err != nil {
		return nil, nil, err
	}
	if o.Export.To, err = position("--until", until, now); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "k3s-autoscaler-backtest-")
	if err != nil {
		return nil, nil, fmt.Errorf("make a folder for the log: %w", err)
	}
	done = func() { _ = os.RemoveAll(dir) } // a temporary folder
	o.Export.Path = filepath.Join(dir, "log.tar.zst")
	if _, err = a.Export(ctx, o); err == nil {
		r, err = bundle.Open(o.Export.Path)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return r, done, nil
}

// timeOf is a place in a bundle as a time.
func timeOf(r *bundle.Reader, flag, s string, now time.Time) (time.Time, error) {
	p, err := position(flag, s, now)
	if err != nil || p.Sequence == 0 {
		return p.Time, err
	}
	return r.TimeOf(p.Sequence)
}

// figure is one line of the report.
type figure struct {
	name   string
	value  func(f backtest.Figures) float64
	digits int
}

var figures = []figure{
	{"node-hours", func(f backtest.Figures) float64 { return f.NodeHours }, 2},
	{"cost", func(f backtest.Figures) float64 { return f.Cost }, 2},
	{"pods waited, seconds in all", func(f backtest.Figures) float64 { return f.PendingSeconds }, 0},
	{"nodes added", func(f backtest.Figures) float64 { return float64(f.Additions) }, 0},
	{"nodes removed", func(f backtest.Figures) float64 { return float64(f.Removals) }, 0},
	{"pods evicted", func(f backtest.Figures) float64 { return float64(f.Evictions) }, 0},
	{"changes of direction within 10m", func(f backtest.Figures) float64 { return float64(f.Flaps) }, 0},
	{"added, and no pod within 10m", func(f backtest.Figures) float64 { return float64(f.Unused) }, 0},
	{"removed, and needed within 10m", func(f backtest.Figures) float64 { return float64(f.Regretted) }, 0},
}

func backtestText(w io.Writer, r backtest.Report) error {
	var l lines
	l.add(0, "stream   %s", r.Incarnation)
	for _, c := range r.Clusters {
		l.add(0, "cluster  %s, %s to %s, sequences %d to %d", c.Cluster, c.Since.Format(time.RFC3339), c.Until.Format(time.RFC3339), c.From, c.To)
		l.add(0, "policy   recorded %s; new %.12s", shortDigests(c.RecordedPolicies), c.Policy)
		l.WriteByte('\n')
		t := newColumns(&l, "", "RECORDED", "RECORDED POLICY, SIMULATED", "NEW POLICY, SIMULATED", "CHANGE")
		for _, f := range figures {
			t.row(f.name, f.text(c.Recorded), f.text(c.Simulated), f.text(c.Candidate), change(f.value(c.Simulated), f.value(c.Candidate)))
		}
		for _, p := range poolRows(c) {
			t.row(p...)
		}
		if err := t.flush("  "); err != nil {
			return err
		}
		l.WriteByte('\n')
		l.add(2, "Simulated with, in seconds (of how many nodes in the log; 0: assumed)")
		t = newColumns(&l, "POOL", "CLAIM TO READY", "DECISION TO EMPTY", "EMPTY TO GONE")
		for _, d := range c.Delays {
			t.row(d.Pool, delay(d.Ready, d.ReadyCount), delay(d.Drained, d.DrainedCount), delay(d.Removed, d.RemovedCount))
		}
		if err := t.flush("  "); err != nil {
			return err
		}
		l.WriteByte('\n')
		differences(&l, c)
	}
	_, err := io.WriteString(w, l.String())
	return err
}

func (f figure) text(x backtest.Figures) string { return fmt.Sprintf("%.*f", f.digits, f.value(x)) }

// poolRows are the node-hours of each pool, where there are several.
func poolRows(c backtest.Cluster) [][]string {
	sides := []backtest.Figures{c.Recorded, c.Simulated, c.Candidate}
	var names []string
	for _, f := range sides {
		for _, p := range f.Pools {
			if !slices.Contains(names, p.Pool) {
				names = append(names, p.Pool)
			}
		}
	}
	if len(names) < 2 {
		return nil
	}
	slices.Sort(names)
	var out [][]string
	for _, name := range names {
		row, hours := []string{"node-hours of pool " + name}, []float64{0, 0, 0}
		for i, f := range sides {
			for _, p := range f.Pools {
				if p.Pool == name {
					hours[i] = p.NodeHours
				}
			}
			row = append(row, fmt.Sprintf("%.2f", hours[i]))
		}
		out = append(out, append(row, change(hours[1], hours[2])))
	}
	return out
}

func change(from, to float64) string {
	switch from {
	case to:
		return ""
	case 0:
		return "new"
	}
	return fmt.Sprintf("%+.0f %%", (to-from)/from*100)
}

func delay(seconds float64, nodes int) string { return fmt.Sprintf("%.3g (%d)", seconds, nodes) }

func shortDigests(ds []string) string {
	var out []string
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%.12s", d))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func differences(l *lines, c backtest.Cluster) {
	if c.Differences == 0 {
		l.add(2, "The two policies decide alike.")
		return
	}
	l.add(2, "The simulated policies decide differently %s; the first %d:", times(c.Differences), len(c.First))
	for _, d := range c.First {
		l.add(4, "%s pool %s", d.At.Format(time.RFC3339), d.Pool)
		said(l, "recorded", d.Simulated)
		said(l, "new", d.Candidate)
	}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func said(l *lines, who string, s *backtest.Said) {
	if s == nil {
		l.add(6, "%-9s nothing said of it yet", who)
		return
	}
	text := strings.TrimSpace(s.Decision.Verdict + " " + signed(s.Decision.Delta))
	if s.Stands {
		text = fmt.Sprintf("nothing; since %s: %s", s.At.Format(time.RFC3339), text)
	}
	text += ": " + s.Decision.Reason.Message
	for _, g := range s.Decision.Guards {
		if !strings.Contains(text, g.Message) {
			text += "; " + g.Message
		}
	}
	l.add(6, "%-9s %s", who, text)
}
