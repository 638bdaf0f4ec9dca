package cli

import (
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// nodeState writes where a node is, since and until when, and what comes next.
func (a *app) nodeState(l *lines, n api.Node) {
	if p := n.Position; p != nil && p.Phase != "" {
		text := "State: " + p.Phase
		if !p.Since.IsZero() {
			text += " since " + clockTime(p.Since) + " (" + a.age(p.Since) + ")"
		}
		if !p.Until.IsZero() {
			text += ", " + a.until(p.Until)
		}
		l.wrap(2, text+".")
		if note := a.nodeNote(n); note != "" {
			l.wrap(2, "Next: "+note+".")
		}
		return
	}
	if note := a.nodeNote(n); note != "" {
		l.wrap(2, "State: "+note+".")
	}
}

// life writes the points of a node's life.
func (a *app) life(l *lines, stages []api.LifeStage) error {
	if len(stages) == 0 {
		return nil
	}
	l.WriteByte('\n')
	l.add(0, "Its life")
	t := newColumns(l, "POINT", "AT", "TOOK", "WHY")
	for i, s := range stages {
		took := ""
		if i > 0 {
			took = tookText(time.Duration(s.Seconds * float64(time.Second)))
		}
		t.row(s.Name, s.At.Local().Format("Jan 2 15:04:05"), took, s.Why)
	}
	return t.flush("  ")
}

// tookText is a duration, below a second in milliseconds.
func tookText(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return span(d)
}
