package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func (a *app) signalCommand() *cobra.Command {
	var sg api.Signal
	var lasts time.Duration
	c := &cobra.Command{
		Use: "push NAME VALUE", Short: "Tell a metric rule a value",
		Long: "Tell the metric rules that look at the signal NAME its value: a number, or 'unknown', which is not zero and never removes a node.",
		Example: `  k3s-autoscaler signal push ci-queue "$(redis-cli llen ci)"
  k3s-autoscaler signal push ci-queue unknown --reason "redis does not answer"
  k3s-autoscaler signal push ci-queue 12 --valid-for 10m --id build-4711`,
		Args: cobra.ExactArgs(2),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			sg.Name, sg.Value = args[0], nil
			if err := events.ValidateSignal(sg.Name); err != nil {
				return usagef("NAME: %w", err)
			}
			if args[1] != "unknown" {
				v, err := strconv.ParseFloat(strings.TrimSpace(args[1]), 64)
				if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
					return usagef("VALUE: is %q, expected a number or 'unknown'", args[1])
				}
				sg.Value = &v
			}
			if sg.Cluster != "" {
				if err := events.ValidateCluster(sg.Cluster); err != nil {
					return usagef("--%w", err)
				}
			}
			if lasts < 0 || lasts == 0 && cmd.Flags().Changed("valid-for") {
				return usagef("--valid-for: is %s, expected a positive duration such as 10m", lasts)
			}
			sg.ObservedAt = a.Clock.Now().UTC()
			if lasts > 0 {
				sg.ExpiresAt = sg.ObservedAt.Add(lasts)
			}
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var got api.Accepted
			if err := cl.postJSON(cmd.Context(), "/v1/signals", api.SignalRequest{Signals: []api.Signal{sg}}, &got); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "accepted as %s\n", strings.Join(got.IDs, ", "))
			return err
		}),
	}
	c.Flags().StringVar(&sg.Cluster, "cluster", "", "the cluster, where there are several")
	c.Flags().StringVar(&sg.ID, "id", "", "makes it safe to send it again: the same id of a name is one value")
	c.Flags().StringVar(&sg.Reason, "reason", "", "why the value is unknown")
	c.Flags().StringToStringVar(&sg.Labels, "label", nil, "for those who read the audit, e.g. host=ci-1")
	c.Flags().DurationVar(&lasts, "valid-for", 0, "then it is unknown, e.g. 10m (default 24h; stale_after of the rule counts as well)")
	return parent("signal", "Values for metric rules", c)
}

// metric is what a metric rule says, in one line.
func (a *app) metric(m api.Metric) string {
	value := "never known"
	if m.Value != nil {
		value = fmt.Sprintf("%s, %s old", quantity(*m.Value), a.age(m.MeasuredAt))
	}
	asks := "asks for none in particular"
	if m.Nodes != nil {
		asks = "asks for " + plural(*m.Nodes, "node")
	}
	if m.Unknown == "" {
		return value + ", " + asks
	}
	text := "UNKNOWN: " + m.Unknown
	if m.Value == nil {
		return text
	}
	return text + "; last " + value + ", when it " + strings.Replace(asks, "asks", "asked", 1)
}

// quantity writes a value for people, in four digits.
func quantity(v float64) string {
	if math.Abs(v) < 1e9 {
		return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// signalText is a signal.received in one line.
func signalText(e events.Event) string {
	p, err := events.Decode[events.SignalReceived](e)
	if err != nil {
		return err.Error()
	}
	text := p.Name + " is unknown"
	if p.Value != nil {
		text = p.Name + " is " + quantity(*p.Value)
	} else if p.Reason != "" {
		text += ": " + p.Reason
	}
	if p.Actor != "" {
		text += " · " + p.Actor
	}
	return text
}
