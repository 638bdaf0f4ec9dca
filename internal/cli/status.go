package cli

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// clusterFlag adds --cluster.
func clusterFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "cluster", "", "only this cluster")
}

// query leaves out what is empty.
func query(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// overview is what 'status' prints as JSON or YAML.
type overview struct {
	Clusters []api.Cluster `json:"clusters"`
	Pools    []api.Pool    `json:"pools"`
}

func (a *app) statusCommand() *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use: "status", Short: "Clusters and pools: sizes, limits, pauses, backoff, last decision",
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var clusters api.Page[api.Cluster]
			var pools api.Page[api.Pool]
			q := query("cluster", cluster)
			if err := cl.get(cmd.Context(), "/v1/clusters", q, &clusters); err != nil {
				return err
			}
			if err := cl.get(cmd.Context(), "/v1/pools", q, &pools); err != nil {
				return err
			}
			v := overview{Clusters: clusters.Items, Pools: pools.Items}
			if cluster != "" && len(v.Clusters) == 0 {
				return fmt.Errorf("there is no cluster %q", cluster)
			}
			return a.show(v, func(w io.Writer) error { return a.statusTable(w, v) })
		}),
	}
	clusterFlag(c, &cluster)
	return a.listing(c)
}

func (a *app) statusTable(w io.Writer, v overview) error {
	for i, c := range v.Clusters {
		if i > 0 {
			fmt.Fprintln(w)
		}
		for _, line := range a.clusterLines(c) {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		t := newColumns(w, "POOL", "NODES", "MIN", "MAX", "READY", "COMING", "LEAVING", "STATE")
		var held, last []string
		for _, p := range v.Pools {
			if p.Cluster == c.Name {
				for _, m := range p.Metrics {
					last = append(last, fmt.Sprintf("  metric rule %s of %s: %s", m.Rule, p.Name, a.metric(m)))
				}
				t.row(p.Name, strconv.Itoa(p.Size), strconv.Itoa(p.Min), strconv.Itoa(p.Max), strconv.Itoa(p.Ready), strconv.Itoa(p.Claims), strconv.Itoa(p.Leaving), a.poolState(p))
				for _, g := range p.Guards {
					held = append(held, fmt.Sprintf("  %s is held or limited by %s", p.Name, a.guardText(g)))
				}
				if p.Last != nil {
					last = append(last, fmt.Sprintf("  last decision about %s: %s", p.Name, a.lastDecision(p.Last)))
				}
			}
		}
		if len(t.rows) == 1 {
			if _, err := fmt.Fprintln(w, "  no policy yet: decision has not read a configuration"); err != nil {
				return err
			}
			continue
		}
		if err := t.flush("  "); err != nil {
			return err
		}
		for _, line := range append(held, last...) {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) clusterLines(c api.Cluster) []string {
	data := "no data yet"
	if !c.SnapshotAt.IsZero() {
		data = "data " + a.age(c.SnapshotAt) + " old"
	}
	version := ""
	if c.ServerVersion != "" {
		version = c.ServerVersion + ", "
	}
	lines := []string{fmt.Sprintf("%s: %s%d of %d nodes ready, %s, %d pending, %s", c.Name, version, c.ReadyNodes, c.Nodes, plural(c.Pods, "pod"), c.PendingPods, data)}
	if c.DryRun {
		lines = append(lines, "  DRY RUN: decisions are recorded, nothing acts on them")
	}
	if c.Promoted != nil {
		lines = append(lines, promotedLine(*c.Promoted))
	}
	if c.Shadow != nil {
		lines = append(lines, a.shadowLine(*c.Shadow))
	}
	if c.Stale {
		text := "  STALE: nothing is scaled down on data this old"
		if c.SnapshotAt.IsZero() {
			text = "  NO DATA: nothing can be decided"
		} else if c.StaleAfter != "" {
			text += " (limit " + c.StaleAfter + ")"
		}
		if c.Problem != "" {
			text += "; " + c.Problem
		}
		lines = append(lines, text)
	}
	for _, p := range c.Parked {
		if p.Redriving {
			lines = append(lines, fmt.Sprintf("  PARKED: node %s: its dead letters are being redriven for %s", p.Node, p.Handler))
			continue
		}
		reason, _, _ := strings.Cut(p.Reason, "\n")
		lines = append(lines, fmt.Sprintf("  PARKED: node %s: %s has not acted on it for %s: %s; see 'k3s-autoscaler dlq list --node %s', then redrive or drop", p.Node, p.Handler, a.age(p.Since), reason, p.Node))
	}
	if r := c.Removals; r != nil {
		text := fmt.Sprintf("  %d of %d removals this hour", r.Count, r.Limit)
		if !r.Until.IsZero() {
			text += "; the first of them counts " + a.until(r.Until)
		}
		lines = append(lines, text)
	}
	if !c.GraceUntil.IsZero() {
		lines = append(lines, "  just started: nothing is scaled down "+a.until(c.GraceUntil))
	}
	return lines
}

func (a *app) poolState(p api.Pool) string {
	if p.Unknown {
		return "not configured: its nodes are mere capacity; see renamed_from"
	}
	var parts []string
	if p.Pause != nil {
		text := "paused by " + p.Pause.Actor
		if !p.Pause.Until.IsZero() {
			text += " " + a.until(p.Pause.Until)
		}
		parts = append(parts, text+": "+p.Pause.Reason)
	}
	if p.Backoff != nil {
		parts = append(parts, fmt.Sprintf("backing off %s after %s", a.until(p.Backoff.Until), plural(p.Backoff.Failures, "failure")))
	}
	if p.Size >= p.Max {
		parts = append(parts, "at max")
	}
	if p.Size < p.Min {
		parts = append(parts, "below min")
	}
	for _, h := range p.Holds {
		what := plural(h.Nodes, "node")
		if !h.Whole {
			what += " more"
		}
		parts = append(parts, fmt.Sprintf("keeps %s for %s %s: %s", what, h.Actor, a.until(h.Until), h.Reason))
	}
	if f := p.Flaps; f != nil {
		text := fmt.Sprintf("needed a node again within %s of a removal %d of %d times within %s", f.Within, f.Count, f.Limit, f.Freeze)
		if !f.FrozenUntil.IsZero() {
			text = "frozen " + a.until(f.FrozenUntil) + ": " + text
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 && len(p.Schedules) == 0 {
		return "ok"
	}
	return strings.Join(append(parts, p.Schedules...), "; ")
}

func (a *app) lastDecision(d *api.DecisionLine) string {
	text := d.Verdict
	if d.Delta != 0 {
		text += " " + signed(d.Delta)
	}
	return fmt.Sprintf("%s, %s: %s", text, a.ago(d.At), d.Reason.Message)
}

func (a *app) nodesCommand() *cobra.Command {
	var cluster, pool string
	var all bool
	c := &cobra.Command{
		Use: "nodes", Short: "Nodes with their load and phase: since when, until when, what comes next",
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var page api.Page[api.Node]
			if err := cl.get(cmd.Context(), "/v1/nodes", query("cluster", cluster, "pool", pool), &page); err != nil {
				return err
			}
			nodes := []api.Node{}
			for _, n := range page.Items {
				if all || n.Ready != "" || (n.Phase != "removed" && n.Phase != "failed" && n.Phase != "lost") {
					nodes = append(nodes, n)
				}
			}
			return a.show(nodes, func(w io.Writer) error { return a.nodesTable(w, nodes) })
		}),
	}
	clusterFlag(c, &cluster)
	c.Flags().StringVar(&pool, "pool", "", "only this pool")
	c.Flags().BoolVar(&all, "all", false, "also nodes that failed or are gone")
	return a.listing(c)
}

func (a *app) nodesTable(w io.Writer, nodes []api.Node) error {
	if len(nodes) == 0 {
		_, err := fmt.Fprintln(w, "no nodes")
		return err
	}
	t := newColumns(w, "NODE", "POOL", "PHASE", "SINCE", "UNTIL", "READY", "PODS", "CPU", "MEMORY", "AGE", "NEXT")
	for _, n := range nodes {
		pool, phase, since, until := n.Pool, n.Phase, n.Since, n.Deadline
		if p := n.Position; p != nil {
			phase, since, until = p.Phase, p.Since, p.Until
		}
		if pool == "" {
			pool, phase = "(not ours)", "-"
		}
		cpu, memory := "", ""
		if n.Ready != "" {
			cpu, memory = percent(n.CPURequested), percent(n.MemRequested)
		}
		t.row(n.Name, pool, phase, a.age(since), a.clockOf(until), n.Ready, strconv.Itoa(n.Pods), cpu, memory, a.age(n.CreatedAt), a.nodeNote(n))
	}
	return t.flush("")
}

func (a *app) drainNote(d events.DrainRecord) string {
	until := ""
	if !d.Deadline.IsZero() {
		until = " " + a.until(d.Deadline)
	}
	waits := fmt.Sprintf("waits for pods of Jobs (%s)", some(d.WaitingFor, len(d.WaitingFor)))
	switch remove := d.Goal == events.GoalRemove; {
	case len(d.WaitingFor) > 0 && remove:
		return waits + until + ", then to be removed"
	case len(d.WaitingFor) > 0:
		return waits + until + ", then to be drained"
	case remove:
		return d.Phase + ", to be removed" + until
	}
	return d.Phase + until
}

// nodeNote is what comes next for a node, and what is to be known about it.
func (a *app) nodeNote(n api.Node) string {
	var parts []string
	next := ""
	if n.Position != nil {
		next = n.Position.Next
	}
	switch {
	case n.Phase == "removed":
	case n.Drain != nil:
		if next == "" || len(n.Drain.WaitingFor) > 0 {
			next = a.drainNote(*n.Drain)
		}
		for _, b := range n.Drain.Blockers {
			next += "; blocked by " + strings.TrimSpace(b.Kind+" "+b.Name)
		}
	case n.Unschedulable && next == "":
		next = "cordoned"
	}
	if next != "" {
		parts = append(parts, next)
	}
	if n.Failure != nil {
		parts = append(parts, n.Failure.Reason.Message)
	}
	if n.Position != nil && n.Position.Retry != nil {
		parts = append(parts, a.retryText(*n.Position.Retry))
	}
	for _, p := range n.Parked {
		text := "parked by " + p.Handler + ": see dlq list --node " + n.Name
		if p.Redriving {
			text = "redriven for " + p.Handler
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 && !n.Deadline.IsZero() {
		parts = append(parts, "must be ready "+a.until(n.Deadline))
	}
	return strings.Join(parts, "; ")
}

// retryText says what failed, why, and when it is tried again.
func (a *app) retryText(r api.Retry) string {
	text := fmt.Sprintf("%s to %s", plural(r.Attempt, "attempt"), r.Of)
	if r.Of == "" {
		text = plural(r.Attempt, "attempt")
	}
	if r.Error != "" {
		text += " failed, the last: " + r.Error
	} else {
		text += " so far"
	}
	if !r.NextAt.IsZero() {
		text += "; next " + a.at(r.NextAt)
	}
	return text
}

// clockOf is the time of a moment to come, in a table.
func (a *app) clockOf(t time.Time) string {
	switch left := t.Sub(a.Clock.Now()); {
	case t.IsZero():
		return "-"
	case left > 20*time.Hour:
		return t.Local().Format("Jan 2 15:04")
	}
	return clockTime(t)
}
