package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// RebaseOptions are what 'bus rebase' was asked for.
type RebaseOptions struct {
	Config        *config.Config
	Actor, Reason string
	DryRun        bool
}

func (a *app) busRebaseCommand() *cobra.Command {
	var o RebaseOptions
	var configPath string
	var yes bool
	c := &cobra.Command{
		Use:   "rebase --config FILE",
		Short: "Declare the present log to be the truth, after events were lost",
		Long: `Make everything follow the log that is there, after acknowledged events of it
were lost: the bus's data is gone, was replaced, or was restored from a backup
that is older than what is known of it. Processes refuse to start then.

First try to restore the data. A rebase can't bring events back: handlers go on
from what they know, what they still had to publish is published again, and the
reconciliation with the cluster and the provider does the rest. What was done is
recorded as log.rebased with your name and reason.

Stop every process first. It may be run again at any time, also after it was
interrupted.`,
		Example: "  k3s-autoscaler bus rebase --config config.yaml --dry-run\n" +
			"  k3s-autoscaler bus rebase --config config.yaml --yes --reason 'the SD card died, restored last night'",
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if !yes && !o.DryRun {
				return usagef("expected --yes, or --dry-run to see what it would do")
			}
			if o.Reason == "" && !o.DryRun {
				return usagef("--reason: is missing: it is recorded why events are given up")
			}
			cfg, err := a.loadConfig(configPath, false)
			if err != nil {
				return err
			}
			o.Config, o.Actor = cfg, a.actor()
			r, err := a.BusRebase(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.show(r, func(w io.Writer) error { return rebaseText(w, r, o.DryRun) })
		}),
	}
	c.Flags().StringVar(&configPath, "config", "", "configuration file (required)")
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what it would do, and change nothing")
	c.Flags().StringVar(&o.Reason, "reason", "", "why, for the record")
	_ = c.MarkFlagRequired("config") // the flag exists
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	return a.listing(c)
}

func rebaseText(w io.Writer, r bus.Rebased, dryRun bool) error {
	if r.Nothing() {
		_, err := fmt.Fprintln(w, "Nothing to do: everything that is known follows the present log.")
		return err
	}
	var b strings.Builder
	would := func(does, woulds string) string {
		if dryRun {
			return woulds
		}
		return does
	}
	fmt.Fprintf(&b, "Known of the log:  %s, up to sequence %d\n", r.Previous, r.Known)
	switch {
	case r.Made:
		fmt.Fprintf(&b, "Present log:       none; a new one %s made\n", would("was", "would be"))
	case r.Renamed:
		fmt.Fprintf(&b, "Present log:       the same, up to sequence %d; it %s a new incarnation\n", r.Shared, would("got", "would get"))
	default:
		fmt.Fprintf(&b, "Present log:       %s, the same up to sequence %d\n", r.Incarnation, r.Shared)
	}
	if lost := r.Known - min(r.Shared, r.Known); lost > 0 {
		fmt.Fprintf(&b, "Given up:          %d events, sequences %d to %d; those that the audit recorded stay there\n", lost, r.Shared+1, r.Known)
	}
	for _, h := range slices.Sorted(maps.Keys(r.Records)) {
		fmt.Fprintf(&b, "Records:           %d of %s %s the present log\n", r.Records[h], h, would("follow", "would follow"))
	}
	if r.Owed > 0 {
		fmt.Fprintf(&b, "Owed events:       %d, which %s published again\n", r.Owed, would("are", "would be"))
	}
	if len(r.Consumers) > 0 {
		fmt.Fprintf(&b, "Readers:           %d %s back to the end of the log\n", len(r.Consumers), would("went", "would go"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
