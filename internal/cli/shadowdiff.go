package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// explained is how many differences 'shadow diff' explains; -o json has all.
const explained = 10

func (a *app) shadowDiffCommand() *cobra.Command {
	var cluster, since string
	c := &cobra.Command{
		Use: "diff", Short: "Where the candidate policy decides otherwise, and why both do",
		Long: `Show where the candidate policy decides otherwise than the one in force, side by
side and with both explanations, and what that adds up to.

A difference lasts until both agree again; its nodes count once, at their most.
What the candidate would have done next, in the world that it would have made,
nobody knows: it is judged in the present one. -o json has both decisions of
each difference with every rule.`,
		Example: "  k3s-autoscaler shadow diff --since 2h",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var d api.ShadowDiff
			if err := cl.get(cmd.Context(), "/v1/shadows/diff", query("cluster", cluster, "since", since), &d); err != nil {
				return err
			}
			return a.show(d, func(w io.Writer) error { return a.diffText(w, d) })
		}),
	}
	shadowFlags(c, &cluster, nil)
	c.Flags().StringVar(&since, "since", "", "only differences that lasted until then or began later: a time, or how long ago, e.g. 2h (default: all)")
	return a.listing(c)
}

func (a *app) diffText(w io.Writer, d api.ShadowDiff) error {
	var l lines
	s := d.Shadow
	l.wrap(0, fmt.Sprintf("candidate: %s (%s) in cluster %s, started %s by %s: %s", file(s.File), brief(s.Digest), s.Cluster, a.ago(s.StartedAt), s.Actor, s.Reason))
	if s.Waiting != "" {
		l.wrap(0, "Nothing is compared yet: "+s.Waiting)
	} else {
		l.add(0, "compared for %s: %s of %s differ", span(s.ComparedUntil.Sub(s.ComparedSince)), strconv.Itoa(s.Differing), plural(s.Evaluations, "evaluation"))
	}
	if len(s.NewPools) > 0 {
		l.wrap(0, "new to the running configuration: pool "+strings.Join(s.NewPools, ", "))
	}
	if s.Corrected > 0 {
		l.wrap(0, fmt.Sprintf("%s the shadow had another state than decision and took decision's: what was compared just before may be wrong.", howOften(s.Corrected)))
	}
	when := ""
	if !d.Since.IsZero() {
		when = " since " + d.Since.Local().Format("2006-01-02 15:04:05")
	}
	if len(d.Differences) == 0 {
		l.add(0, "no differences%s", when)
		_, err := io.WriteString(w, l.String())
		return err
	}
	l.add(0, "%s%s: it would have %s", plural(len(d.Differences), "difference"), when, totals(d.ShadowTotals, d.Other))
	l.WriteByte('\n')
	t := newColumns(&l, "SINCE", "LASTED", "POOL", "DIFFERENCE", "CANDIDATE", "IN FORCE")
	for _, x := range d.Differences {
		lasted := "still, " + a.age(x.Since)
		if !x.Until.IsZero() {
			lasted = span(x.Until.Sub(x.Since))
		}
		t.row(x.Since.Local().Format("Jan 2 15:04:05"), lasted, x.Pool, wouldDo(x.Effect, x.Nodes, x.Live), inShort(x.Candidate), inShort(x.Live))
	}
	if err := t.flush(""); err != nil {
		return err
	}
	last := d.Differences[max(0, len(d.Differences)-explained):]
	l.WriteByte('\n')
	if len(last) < len(d.Differences) {
		l.add(0, "Why, of the last %d (-o json has all)", len(last))
	} else {
		l.add(0, "Why")
	}
	for _, x := range last {
		l.add(2, "%s, pool %s: it %s", x.Since.Local().Format("Jan 2 15:04:05"), x.Pool, wouldDo(x.Effect, x.Nodes, x.Live))
		sideText(&l, "candidate", x.Candidate)
		sideText(&l, "in force", x.Live)
	}
	_, err := io.WriteString(w, l.String())
	return err
}

func sideText(l *lines, who string, d *events.Decision) {
	if d == nil {
		return
	}
	text := fmt.Sprintf("%s: %s: %s", who, inShort(d), d.Reason.Message)
	if len(d.Nodes) > 0 {
		text += " (" + strings.Join(d.Nodes, ", ") + ")"
	}
	l.wrap(4, text)
	for _, g := range d.Guards {
		if !strings.Contains(d.Reason.Message, g.Message) {
			l.wrap(6, g.Guard+": "+g.Message)
		}
	}
}

func inShort(d *events.Decision) string {
	if d == nil {
		return ""
	}
	return strings.TrimSpace(d.Verdict+" "+signed(d.Delta)) + " (" + d.Reason.Code + ")"
}

// wouldDo is a difference in words.
func wouldDo(effect string, nodes int, live *events.Decision) string {
	acts := live != nil && live.Delta != 0
	n := plural(nodes, "node")
	if acts {
		n = strings.Replace(n, " ", " more ", 1)
	}
	switch effect {
	case events.EffectAdd:
		return "would add " + n
	case events.EffectRemove:
		return "would remove " + n
	case events.EffectHold:
		if live != nil && live.Delta < 0 {
			return "would keep " + plural(nodes, "node")
		}
		return "would not add " + plural(nodes, "node")
	case events.EffectNone:
		return "agrees again"
	}
	return "would remove other nodes"
}

// differenceLine is a shadow.decided in one line.
func differenceLine(e events.Event) string {
	p, err := events.Decode[events.ShadowDecided](e)
	if err != nil {
		return err.Error()
	}
	text := p.Pool + " · the candidate " + wouldDo(p.Effect, p.Nodes, p.Live)
	if p.Candidate != nil && p.Live != nil {
		text += ": " + p.Candidate.Reason.Message + "; in force: " + p.Live.Reason.Message
	}
	return text
}

func totals(t api.ShadowTotals, other int) string {
	text := fmt.Sprintf("added %s, removed %d, held %d", plural(t.Added, "node"), t.Removed, t.Held)
	if other > 0 {
		text += fmt.Sprintf(", and removed other ones %s", howOften(other))
	}
	return text
}

func howOften(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// shadowLine is what 'status' says of a candidate.
func (a *app) shadowLine(s api.Shadow) string {
	text := fmt.Sprintf("  SHADOW: the policy of %s is judged for %s: ", file(s.File), a.age(s.StartedAt))
	if s.Waiting != "" {
		return text + "nothing is compared yet: " + s.Waiting
	}
	text += plural(s.Differences, "difference")
	if s.Open > 0 {
		text += fmt.Sprintf(", %d at present", s.Open)
	}
	if s.Differences > 0 {
		text += "; it would have " + totals(s.ShadowTotals, 0)
	}
	return text + "; see 'k3s-autoscaler shadow diff'"
}

func promotedLine(p api.Promoted) string {
	return fmt.Sprintf("  PROMOTED: the policy in force was promoted by %s (%s) and is not the configuration file's; put %s in its place", p.Actor, p.Reason, file(p.File))
}
