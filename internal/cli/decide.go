package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// DecideOptions are what 'replay --decisions' was asked for.
type DecideOptions struct {
	// Config names the stream; nil: Replay has it, of the process that runs or of a
	// bundle.
	Config *config.Config
	Replay replay.DecisionOptions
}

// decideAgain is 'replay --decisions'.
func (a *app) decideAgain(cmd *cobra.Command, from, to, cluster string, at place) error {
	o := DecideOptions{Replay: replay.DecisionOptions{Cluster: cluster}}
	var err error
	var now time.Time
	if o.Config, o.Replay.Log, now, err = a.log(at); err != nil {
		return err
	}
	if o.Replay.From, err = position("--from", from, now); err != nil {
		return err
	}
	if o.Replay.To, err = position("--to", to, now); err != nil {
		return err
	}
	r, err := a.Decide(cmd.Context(), o)
	if err != nil {
		return err
	}
	if err := a.show(decided{r, r.Equal()}, func(w io.Writer) error { return decidedText(w, r) }); err != nil {
		return err
	}
	if !r.Equal() {
		return errSilent
	}
	return nil
}

// decided is a report with its verdict.
type decided struct {
	replay.DecisionReport
	Equal bool `json:"equal"`
}

func decidedText(w io.Writer, r replay.DecisionReport) error {
	var l lines
	l.add(0, "stream   %s, sequences %d to %d", r.Incarnation, r.StreamFirst, r.StreamLast)
	for _, c := range r.Clusters {
		l.add(0, "cluster  %s, from the checkpoint of snapshot %d (%s) to %d (%s)", c.Cluster, c.From, c.Since.Format(time.RFC3339), c.To, c.Until.Format(time.RFC3339))
		l.add(2, "decided on %s again", plural(c.Inputs, "event"))
		l.add(2, "compared   %s: %s, %s of the whole state, and what follows from them", plural(c.Compared, "event"), plural(c.Decisions, "decision"), plural(c.Checkpoints, "checkpoint"))
		if c.Open > 0 {
			l.add(2, "open       %s that the log does not hold yet", plural(c.Open, "event"))
		}
		l.add(2, "decided by version %s", strings.Join(c.Versions, ", "))
		if c.Differences == 0 {
			l.add(2, "equal: every decision is what it was, byte for byte")
			continue
		}
		f := c.First
		l.add(2, "different in %s; the first:", plural(c.Differences, "place"))
		l.add(4, "%s %s: %s", f.Type, f.EventID, f.What)
		switch {
		case f.Input > 0 && f.Sequence > 0:
			l.add(4, "decided on the event at sequence %d, recorded at %d", f.Input, f.Sequence)
		case f.Input > 0:
			l.add(4, "decided on the event at sequence %d", f.Input)
		default:
			l.add(4, "recorded at sequence %d", f.Sequence)
		}
		for line := range strings.Lines(f.Diff) {
			l.add(4, "%s", strings.TrimSuffix(line, "\n"))
		}
	}
	_, err := fmt.Fprint(w, l.String())
	return err
}
