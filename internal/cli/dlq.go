package cli

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// letterFlags select dead letters; all that is given must hold.
type letterFlags struct {
	cluster, handler, node, older, newer string
	types                                []string
}

func (f *letterFlags) add(c *cobra.Command) {
	clusterFlag(c, &f.cluster)
	c.Flags().StringVar(&f.handler, "handler", "", "only of this handler")
	c.Flags().StringVar(&f.node, "node", "", "only of this node, or _cluster")
	c.Flags().StringArrayVar(&f.types, "type", nil, "only of this event type, e.g. node.ready or node.* (repeatable)")
	c.Flags().StringVar(&f.older, "older-than", "", "only those set aside before: a time, or how long ago, e.g. 1h")
	c.Flags().StringVar(&f.newer, "newer-than", "", "only those set aside since: a time, or how long ago")
}

func (f *letterFlags) given() bool {
	return f.cluster != "" || f.handler != "" || f.node != "" || f.older != "" || f.newer != "" || len(f.types) > 0
}

func (f *letterFlags) query() url.Values {
	q := query("cluster", f.cluster, "handler", f.handler, "node", f.node, "older_than", f.older, "newer_than", f.newer)
	for _, t := range f.types {
		q.Add("type", t)
	}
	return q
}

func (a *app) dlqCommand() *cobra.Command {
	var f letterFlags
	list := &cobra.Command{
		Use: "list", Short: "Events that could not be handled, newest first", Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var p api.Page[api.DeadLetter]
			if err := cl.get(cmd.Context(), "/v1/deadletters", f.query(), &p); err != nil {
				return err
			}
			return a.show(p.Items, func(w io.Writer) error { return a.deadTable(w, p.Items) })
		}),
	}
	f.add(list)
	show := &cobra.Command{
		Use: "show ID", Short: "One dead letter, whole", Long: "Show one dead letter with its reason, stack and event. The beginning of an id is enough.",
		Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var d api.DeadLetter
			if err := cl.get(cmd.Context(), "/v1/deadletters/"+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			return a.show(d, func(w io.Writer) error { return a.deadText(w, d) })
		}),
	}
	return parent("dlq", "Events that could not be handled (dead letters)", a.listing(list), a.listing(show),
		a.settleCommand("redrive", "Let a handler try its dead letters again", `Publish dead letters again, for the handler that set them aside and no other.
The events of a node have one order: if one of its dead letters is named, all
of them go, in that order, and what comes meanwhile stays behind them. Then the
handler acts on the node again. One that fails again is set aside again.`),
		a.settleCommand("drop", "Delete dead letters: their events are never handled", `Delete dead letters. Their events stay in the audit, but the handler never
handles them: see 'dlq show' for what that means for the node. When none is left
of a node, the handler acts on it again.`))
}

// settleCommand is dlq redrive or dlq drop.
func (a *app) settleCommand(action, short, long string) *cobra.Command {
	var f letterFlags
	var reason string
	var all, dryRun, yes bool
	c := &cobra.Command{
		Use: action + " [ID...]", Short: short, Long: long,
		Example: fmt.Sprintf("  k3s-autoscaler dlq %s 3k9f --reason \"token renewed\"\n  k3s-autoscaler dlq %s --node n1 --handler draining --dry-run", action, action),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !f.given() && !all {
				return usagef("nothing is selected: name ids, a filter such as --node or --handler, or --all")
			}
			if all && (len(args) > 0 || f.given()) {
				return usagef("--all selects every dead letter: leave out ids and filters")
			}
			if action == "drop" && len(args) == 0 && !yes && !dryRun {
				return usagef("this deletes every dead letter that is selected: look with --dry-run, then repeat it with --yes")
			}
			r := api.LetterRequest{IDs: args, All: all, Cluster: f.cluster, Handler: f.handler, Types: f.types, Node: f.node, OlderThan: f.older, NewerThan: f.newer,
				Actor: a.actor(), Reason: (&actFlags{reason: reason}).because(), DryRun: dryRun, Key: strings.ToLower(rand.Text())}
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var plan api.LetterPlan
			if err := cl.postJSON(cmd.Context(), "/v1/deadletters/"+action, r, &plan); err != nil {
				return err
			}
			return a.show(plan, func(w io.Writer) error { return planText(w, plan) })
		}),
	}
	f.add(c)
	c.Flags().StringVar(&reason, "reason", "", "why, for those who read the audit")
	c.Flags().BoolVar(&all, "all", false, "every dead letter")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what it would do")
	if action == "drop" {
		c.Flags().BoolVar(&yes, "yes", false, "delete what the filters select, without ids")
	}
	return a.listing(c)
}

func planText(w io.Writer, p api.LetterPlan) error {
	var l lines
	if p.DryRun {
		l.add(0, "dry run: nothing was asked for")
	}
	for _, s := range p.Steps {
		about := "node " + s.Key
		if nodeOf(s.Key) == "" {
			about = "cluster " + s.Cluster
		}
		l.add(0, "%s, %s: %s", s.Handler, about, plural(len(s.DeadLetters), "dead letter"))
		if s.Problem != "" {
			l.wrap(2, "nothing happens: "+s.Problem)
			continue
		}
		l.wrap(2, s.Effect)
		if s.RequestID != "" {
			l.add(2, "what comes of it: k3s-autoscaler explain %s", s.RequestID)
		}
	}
	_, err := io.WriteString(w, l.String())
	return err
}

func (a *app) deadTable(w io.Writer, ds []api.DeadLetter) error {
	if len(ds) == 0 {
		_, err := fmt.Fprintln(w, "no dead letters")
		return err
	}
	t := newColumns(w, "ID", "AGE", "HANDLER", "EVENT", "ABOUT", "ATTEMPTS", "PARKED", "REASON")
	for _, d := range ds {
		about, parked := d.Key, ""
		if nodeOf(d.Key) == "" {
			about = d.Cluster
		}
		if d.Parked {
			parked = "yes"
		}
		reason, _, _ := strings.Cut(d.Reason, "\n")
		if d.Type == "" {
			d.Type = "(no event)"
		}
		t.row(d.ID, a.age(d.At), d.Handler, short(d.Type), about, strconv.Itoa(d.Attempts), parked, reason)
	}
	return t.flush("")
}

func (a *app) deadText(w io.Writer, d api.DeadLetter) error {
	var l lines
	what, after := short(d.Type), "after "+plural(d.Attempts, "attempt")
	if d.Type == "" {
		what = "a message that is no event"
	}
	if d.Attempts == 0 {
		after = "untried: an event before it failed"
	}
	l.add(0, "dead letter %s", d.ID)
	l.add(0, "%s about %s/%s: set aside by %s %s, %s", what, d.Cluster, d.Key, d.Handler, a.ago(d.At), after)
	if d.Origin != 0 && d.Origin != d.Sequence {
		l.add(0, "sequence %d, redriven as %d", d.Origin, d.Sequence)
	} else {
		l.add(0, "sequence %d", d.Sequence)
	}
	l.add(0, "reason")
	l.wrap(2, d.Reason)
	if d.Parked {
		l.wrap(0, "Later events of this node follow it to the dead letters, in order: nothing acts on a node whose history has a gap.")
	}
	l.add(0, "what to do")
	if d.DropOnly != "" {
		l.wrap(2, "It can only be dropped: "+d.DropOnly)
	} else {
		l.add(2, "try it again:  k3s-autoscaler dlq redrive %s --reason WHY", d.ID)
	}
	l.add(2, "give it up:    k3s-autoscaler dlq drop %s --reason WHY", d.ID)
	if d.Stack != "" {
		l.add(0, "stack")
		for line := range strings.Lines(d.Stack) {
			l.add(2, "%s", strings.TrimRight(line, "\n"))
		}
	}
	eventData(&l, d.Event)
	if d.Raw != "" {
		l.add(0, "message")
		l.add(2, "%s", strings.TrimSpace(d.Raw))
	}
	_, err := io.WriteString(w, l.String())
	return err
}
