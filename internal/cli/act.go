package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// actFlags are what every action has.
type actFlags struct {
	cluster, reason string
	wait            bool
	timeout         time.Duration
}

func (f *actFlags) add(c *cobra.Command, wait bool) {
	c.Flags().StringVar(&f.cluster, "cluster", "", "the cluster, where there are several")
	c.Flags().StringVar(&f.reason, "reason", "", "why, for those who read the audit")
	if wait {
		c.Flags().BoolVar(&f.wait, "wait", false, "follow what comes of it; exit code 1 if it is held or fails")
		c.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long --wait waits")
	}
}

// because is the reason, or that none was given.
func (f *actFlags) because() string {
	if f.reason == "" {
		return "asked for on the command line"
	}
	return f.reason
}

// actor is the user's own name; the server adds the token's.
func (a *app) actor() string {
	for _, k := range []string{"USER", "LOGNAME", "USERNAME"} {
		if u := a.Getenv(k); u != "" {
			return strings.NewReplacer("@", "_", "\n", "_", "\r", "_").Replace(u)
		}
	}
	return ""
}

func (a *app) scaleCommand() *cobra.Command {
	sub := func(action, short string, minimum int) *cobra.Command {
		var f actFlags
		var pool string
		var count int
		var lasts, within time.Duration
		var override bool
		keeps := action != events.ActionDown
		example := fmt.Sprintf("  k3s-autoscaler scale %s --pool workers --count 2 --reason \"load test\" --wait", action)
		if keeps {
			example += fmt.Sprintf("\n  k3s-autoscaler scale %s --pool workers --count 2 --for 2h --reason \"load test\"", action)
		}
		c := &cobra.Command{
			Use: action + " --pool POOL --count N --reason WHY", Short: short, Example: example,
			Args: cobra.NoArgs,
			RunE: do(func(cmd *cobra.Command, _ []string) error {
				if count < minimum {
					return usagef("--count: is %d, expected at least %d", count, minimum)
				}
				if strings.TrimSpace(f.reason) == "" {
					return usagef("--reason: is empty; say why, for those who read the audit")
				}
				now := a.Clock.Now()
				p := events.ScaleRequested{Action: action, Pool: pool, Count: count, Actor: a.actor(), Reason: f.reason, Override: override}
				for _, d := range []struct {
					flag string
					is   time.Duration
					to   *time.Time
				}{{"for", lasts, &p.HoldUntil}, {"within", within, &p.ExpiresAt}} {
					if d.is < 0 || d.is == 0 && cmd.Flags().Changed(d.flag) {
						return usagef("--%s: is %s, expected a positive duration such as 2h", d.flag, d.is)
					}
					if d.is > 0 {
						*d.to = now.Add(d.is).UTC()
					}
				}
				return a.act(cmd.Context(), f, p)
			}),
		}
		f.add(c, true)
		c.Flags().StringVar(&pool, "pool", "", "the pool (required)")
		c.Flags().IntVar(&count, "count", 0, "how many nodes (required)")
		if keeps {
			c.Flags().DurationVar(&lasts, "for", 0, "keep the nodes for so long, needed or not, e.g. 2h; a later 'scale down' or 'scale to' ends it (default: they go when nobody needs them)")
		}
		c.Flags().DurationVar(&within, "within", 0, "drop the request if it is not met within this time, e.g. 10m (default 1h)")
		c.Flags().BoolVar(&override, "override", false, "despite a pause or a cooldown; min and max always hold")
		_ = c.MarkFlagRequired("pool") // the flags exist
		_ = c.MarkFlagRequired("count")
		_ = c.MarkFlagRequired("reason")
		return c
	}
	return parent("scale", "Ask for more or fewer nodes of a pool",
		sub(events.ActionUp, "Add nodes", 1), sub(events.ActionDown, "Remove nodes, those that are easiest to spare", 1), sub(events.ActionTo, "Bring a pool to a number of nodes", 0))
}

func (a *app) nodeCommand(action string) *cobra.Command {
	var f actFlags
	var override bool
	text := map[string][2]string{
		events.ActionCordon:   {"Take no new pods on a node; its pods stay", "Take no new pods on a node. Its pods stay, and so does the node."},
		events.ActionUncordon: {"Undo a cordon or drain", "Undo a cordon or a drain that we made: the node takes pods again. A removal that has passed the point of no return can't be undone."},
		events.ActionDrain:    {"Empty a node and leave it", "Cordon a node and evict its pods, honouring PodDisruptionBudgets. The node stays, empty. At the drain deadline of its pool it is uncordoned."},
		events.ActionRemove:   {"Drain a node and remove it", "Drain a node, then remove it with its machine. The minimum of its pool holds. At the drain deadline it is uncordoned and stays."},
	}[action]
	c := &cobra.Command{
		Use: action + " NODE", Short: text[0], Long: text[1], Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			if _, err := events.EncodeKey(args[0]); err != nil || args[0] == events.ClusterKey {
				return usagef("%q is no name of a node", args[0])
			}
			return a.act(cmd.Context(), f, events.ScaleRequested{Action: action, Node: args[0], Actor: a.actor(), Reason: f.because(), Override: override})
		}),
	}
	f.add(c, true)
	c.Flags().BoolVar(&override, "override", false, "despite a pause or a cooldown; min and max always hold")
	return c
}

func (a *app) pauseCommand() *cobra.Command {
	var f actFlags
	var lasts time.Duration
	c := &cobra.Command{
		Use: "pause POOL", Short: "Change nothing in a pool, for a while or until it is resumed",
		Example: "  k3s-autoscaler pause workers --for 2h --reason maintenance",
		Args:    cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			if lasts < 0 {
				return usagef("--for: is %s, expected a positive duration such as 2h", lasts)
			}
			p := events.PoolPaused{Pool: args[0], Actor: a.actor(), Reason: f.because()}
			if lasts > 0 {
				p.Until = a.Clock.Now().Add(lasts).UTC()
			}
			return a.act(cmd.Context(), f, p)
		}),
	}
	f.add(c, false)
	c.Flags().DurationVar(&lasts, "for", 0, "how long, e.g. 2h (default: until resumed)")
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	var f actFlags
	c := &cobra.Command{
		Use: "resume POOL", Short: "End the pause of a pool", Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), f, events.PoolResumed{Pool: args[0], Actor: a.actor(), Reason: f.because()})
		}),
	}
	f.add(c, false)
	return c
}

func (a *app) poolCommand() *cobra.Command {
	var f actFlags
	c := &cobra.Command{
		Use: "reset-backoff POOL", Short: "Try again at once after failures", Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), f, events.PoolBackoffReset{Pool: args[0], Actor: a.actor(), Reason: f.because()})
		}),
	}
	f.add(c, false)
	return parent("pool", "Act on a pool", c)
}

// act sends an event and says how to follow it, or follows it.
func (a *app) act(ctx context.Context, f actFlags, p events.Payload) error {
	cl, err := a.connect()
	if err != nil {
		return err
	}
	id := strings.ToLower(rand.Text())
	body, err := a.event(id, f.cluster, p)
	if err != nil {
		return err
	}
	if f.wait {
		r, ok := p.(events.ScaleRequested)
		return a.actAndWait(ctx, cl, f, id, ok && r.Node != "", a.accepted(p), body)
	}
	var got api.Accepted
	if err := cl.post(ctx, body, &got); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "accepted as %s\n%swhat comes of it: k3s-autoscaler explain %s\n", id, a.accepted(p), id)
	return err
}

// accepted is a line about how long what was asked for is kept, and how long it is
// waited for, where it says so.
func (a *app) accepted(p events.Payload) string {
	r, ok := p.(events.ScaleRequested)
	if !ok || r.HoldUntil.IsZero() && r.ExpiresAt.IsZero() {
		return ""
	}
	by := map[string]string{events.ActionUp: " more", events.ActionDown: " fewer", events.ActionTo: ""}[r.Action]
	line := fmt.Sprintf("pool %s: %s%s", r.Pool, plural(r.Count, "node"), by)
	if !r.HoldUntil.IsZero() {
		line += ", kept " + a.until(r.HoldUntil)
	}
	if !r.ExpiresAt.IsZero() {
		line += ", dropped if not met " + strings.Replace(a.until(r.ExpiresAt), "until", "by", 1)
	}
	return line + "\n"
}

// event is a structured CloudEvent. The server completes what is left out.
func (a *app) event(id, cluster string, p events.Payload) ([]byte, error) {
	e := map[string]any{
		"specversion": "1.0", "id": id, "source": api.CLISource, "type": p.EventType(),
		"time": a.Clock.Now().UTC().Format(time.RFC3339Nano), "datacontenttype": "application/json", "data": p,
		events.ExtCorrelationID: id,
	}
	if cluster != "" {
		if err := events.ValidateCluster(cluster); err != nil {
			return nil, usagef("--%w", err)
		}
		e[events.ExtPartitionKey] = cluster + "/" + events.ClusterKey
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return b, nil
}

// actAndWait follows the stream from before the request is sent, so that
// nothing is missed.
func (a *app) actAndWait(ctx context.Context, cl *client, f actFlags, id string, onNode bool, accepted string, body []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.timeout, errTimeout)
	defer cancel()
	o := &outcome{id: id, onNode: onNode, nodes: map[string]string{}, say: func(e api.Entry) error {
		x := parse(e)
		_, err := fmt.Fprintln(a.Stdout, strings.TrimRight(fmt.Sprintf("%s  %-23s  %-22s  %s", clockTime(e.StreamTime), x.name, x.about, x.what), " "))
		return err
	}}
	err := a.follow(ctx, cl, query("cluster", f.cluster), func() error {
		var got api.Accepted
		if err := cl.post(ctx, body, &got); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.Stdout, "accepted as %s, waiting\n%s", id, accepted)
		return err
	}, o.take)
	if errors.Is(context.Cause(ctx), errTimeout) {
		return fmt.Errorf("not done after %s; the request stays: k3s-autoscaler explain %s", f.timeout, id)
	}
	if err != nil {
		return err
	}
	if o.failed != "" {
		return fmt.Errorf("%s\nwhy: k3s-autoscaler explain %s", o.failed, id)
	}
	_, err = fmt.Fprintln(a.Stdout, "done")
	return err
}

var errTimeout = errors.New("timeout")
