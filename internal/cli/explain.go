package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func (a *app) explainCommand() *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use:   "explain SUBJECT",
		Short: "Why something is as it is: a pool, node, pod, alert, decision or request",
		Long: `Say why something is as it is. SUBJECT is a pool, a node, pod/<namespace>/<name>,
alert/<name or fingerprint>, or the id of a decision, a request or any event.
Where a name is both a pool and a node: pool/<name>, node/<name>.`,
		Example: "  k3s-autoscaler explain workers\n  k3s-autoscaler explain pod/default/web-0     # why is it still pending?\n  k3s-autoscaler explain alert/QueueBacklog",
		Args:    cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var x api.Explanation
			if err := cl.get(cmd.Context(), "/v1/explain", query("subject", args[0], "cluster", cluster), &x); err != nil {
				return err
			}
			return a.show(x, func(w io.Writer) error { return a.explanation(w, x) })
		}),
	}
	clusterFlag(c, &cluster)
	return a.listing(c)
}

// lines collects text; it is written at once.
type lines struct{ strings.Builder }

func (l *lines) add(indent int, format string, args ...any) {
	l.WriteString(strings.Repeat(" ", indent))
	fmt.Fprintf(&l.Builder, format, args...)
	l.WriteByte('\n')
}

// wrap breaks a text at 88 characters.
func (l *lines) wrap(indent int, text string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && indent+len(line)+1+len(word) > 88 {
			l.add(indent, "%s", line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	if line != "" {
		l.add(indent, "%s", line)
	}
}

func (a *app) explanation(w io.Writer, x api.Explanation) error {
	var l lines
	title := x.Kind + " " + strings.TrimPrefix(x.Subject, x.Kind+"/")
	if x.Cluster != "" {
		title += " in cluster " + x.Cluster
	}
	l.add(0, "%s", title)
	l.wrap(2, x.Summary)
	if x.Pool != nil {
		if state := a.poolState(*x.Pool); state != "ok" {
			l.wrap(2, "State: "+state+".")
		}
		for _, m := range x.Pool.Metrics {
			l.wrap(2, fmt.Sprintf("Metric rule %s (%s): %s.", m.Rule, m.Source, a.metric(m)))
		}
		if len(x.Pool.Guards) > 0 {
			l.WriteByte('\n')
			l.add(2, "Held or limited now by")
			for _, g := range x.Pool.Guards {
				l.wrap(4, a.guardText(g))
			}
		}
	}
	if x.Node != nil {
		a.nodeState(&l, *x.Node)
	}
	if x.Pod != nil {
		l.add(2, "It asks for %s.", amounts(x.Pod.Requests))
	}
	for i, d := range x.Decisions {
		if i < 2 || x.Kind == api.KindDecision {
			l.WriteByte('\n')
		}
		if i == 0 || x.Kind == api.KindDecision {
			if err := a.decision(&l, d); err != nil {
				return err
			}
			continue
		}
		if i == 1 {
			l.add(0, "Before that")
		}
		l.wrap(2, fmt.Sprintf("%s %s: %s (%s)", clockTime(d.StreamTime), strings.TrimSpace(d.Verdict+" "+signed(d.Delta)), d.Reason.Message, d.ID))
	}
	if err := a.life(&l, x.Life); err != nil {
		return err
	}
	if len(x.Timeline) > 0 {
		l.WriteByte('\n')
		l.add(0, "What happened")
		head := []string{"TIME", "EVENT", "NODE", "WHAT, WHO AND WHY"}
		if x.Kind == api.KindNode {
			head = slices.Delete(head, 2, 3)
		}
		t := newColumns(&l, head...)
		for _, r := range x.Timeline {
			cells := []string{clockTime(r.StreamTime), short(r.Type), nodeOf(r.Key), whoWhy(r)}
			if x.Kind == api.KindNode {
				cells = slices.Delete(cells, 2, 3)
			}
			t.row(cells...)
		}
		if err := t.flush("  "); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, l.String())
	return err
}

func nodeOf(key string) string {
	if key == events.ClusterKey {
		return ""
	}
	return key
}

// whoWhy is what the event itself says, or else what the audit keeps of it.
func whoWhy(r api.AuditRecord) string {
	if len(r.Event) > 0 {
		return parse(api.Entry{Event: r.Event}).what
	}
	text := r.Reason
	if r.Message != "" {
		text = strings.TrimPrefix(text+": ", ": ") + r.Message
	}
	if r.Actor != "" {
		text = strings.TrimSuffix(r.Actor+": "+text, ": ")
	}
	return text
}

func amounts(r events.Resources) string {
	return fmt.Sprintf("%.3g CPU and %d MiB of memory", float64(r.CPUMilli)/1000, r.MemoryBytes>>20)
}

// decision writes one decision with everything that led to it.
func (a *app) decision(l *lines, d api.DecisionRecord) error {
	head := fmt.Sprintf("Decision %s, %s (%s)", d.ID, d.StreamTime.Local().Format("2006-01-02 15:04:05"), a.ago(d.StreamTime))
	if d.DryRun {
		head += ", dry run"
	}
	l.add(0, "%s", head)
	verdict := map[string]string{events.VerdictUp: "scale up", events.VerdictDown: "scale down", events.VerdictHeld: "leave as it is"}[d.Verdict]
	if d.Delta != 0 {
		verdict += fmt.Sprintf(" by %d", max(d.Delta, -d.Delta))
	}
	l.add(2, "Pool      %s, %s, limits %d to %d", d.Pool, plural(d.Size, "node"), d.Min, d.Max)
	l.add(2, "Verdict   %s", verdict)
	l.add(2, "Reason    %s (%s)", d.Reason.Message, d.Reason.Code)
	if len(d.Nodes) > 0 {
		l.add(2, "Nodes     %s", strings.Join(d.Nodes, ", "))
	}
	if d.Actor != "" {
		l.add(2, "Actor     %s", d.Actor)
	}
	if len(d.Pods) > 0 {
		l.add(2, "Pods      %s", some(d.Pods, max(d.PodCount, len(d.Pods))))
	}
	if err := ruleTable(l, d.Rules); err != nil {
		return err
	}
	if len(d.Guards) > 0 {
		l.WriteByte('\n')
		l.add(2, "Held or limited by")
		for _, g := range d.Guards {
			l.wrap(4, a.guardText(g))
		}
	}
	for _, o := range d.Overruled {
		l.add(2, "Overruled %s (%s)", o.Message, o.Code)
	}
	if len(d.Rejected) > 0 {
		l.WriteByte('\n')
		l.add(2, "Not chosen")
		for _, r := range d.Rejected {
			text := r.Subject + ": "
			if n := len(r.Pods) - 1; n > 0 {
				text = fmt.Sprintf("%s and %d like it: each ", r.Subject, n)
			}
			text += r.Reason.Message
			if r.Fix != "" {
				text += ". To change that: " + r.Fix
			}
			l.wrap(4, text)
		}
	}
	if len(d.WouldChange) > 0 {
		l.WriteByte('\n')
		l.add(2, "What would change it")
		for _, c := range d.WouldChange {
			l.wrap(4, c)
		}
	}
	return nil
}

// guardText is what a guard says, its value, and when or how it lifts.
func (a *app) guardText(g events.GuardResult) string {
	text := g.Guard + ": " + g.Message
	if g.Value != "" {
		text += " (" + g.Value + ")"
	}
	switch {
	case !g.Until.IsZero():
		text += "; lifts by itself " + a.at(g.Until)
		// Beside the time: what else would lift it, or would have kept it away.
		if more, itself := strings.CutPrefix(g.Lifts, "by itself"); itself {
			text += more
		} else if more != "" {
			text += ", or " + more
		}
	case g.Lifts != "":
		text += "; lifts " + g.Lifts
	}
	return text
}

func ruleTable(l *lines, rules []events.RuleResult) error {
	if len(rules) == 0 {
		return nil
	}
	l.WriteByte('\n')
	t := newColumns(l, "RULE", "VALUE", "THRESHOLD", "SAYS", "BECAUSE")
	for _, r := range rules {
		says := r.Verdict
		if r.Delta != 0 {
			says += " " + signed(r.Delta)
		}
		name := r.Rule
		if r.Kind != "" && r.Kind != r.Rule && !strings.HasPrefix(r.Rule, r.Kind) {
			name += " (" + r.Kind + ")"
		}
		t.row(name, r.Value, r.Threshold, says, r.Message)
	}
	return t.flush("  ")
}

// some names the first few of many.
func some(names []string, count int) string {
	const shown = 5
	if len(names) <= shown && count <= len(names) {
		return strings.Join(names, ", ")
	}
	n := min(shown, len(names))
	return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), count-n)
}
