package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

func (a *app) shadowCommand() *cobra.Command {
	return parent("shadow", "Judge a candidate policy beside the one in force",
		a.shadowStartCommand(), a.shadowDiffCommand(), a.shadowPromoteCommand(), a.shadowStopCommand())
}

func (a *app) shadowStartCommand() *cobra.Command {
	var cluster, reason string
	c := &cobra.Command{
		Use: "start FILE", Short: "Begin to judge the policy of another configuration file",
		Long: `Judge the policy of another configuration file beside the one in force, on every
event, without a restart. Nobody acts on it: the role that judges it has neither
a provider nor a credential, and may not publish what makes others act.

FILE is a whole configuration, checked as 'config check' does; files that it
names (tokens, kubeconfigs) may be on another machine. Its clusters, pools and
policy are sent, and nothing else. A candidate that is judged already ends.

It is always judged in the present situation: the nodes, claims, drains and
requests are the live ones, whatever it would have decided before. How long
nodes are unneeded, what was needed lately and when it backs off is its own.`,
		Example: "  k3s-autoscaler shadow start candidate.yaml --reason \"two more nodes at noon?\"\n  k3s-autoscaler shadow diff",
		Args:    cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			text, err := config.Candidate(args[0])
			if err != nil {
				return a.badConfig(args[0], err)
			}
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var out api.ShadowStarted
			if err := cl.postJSON(cmd.Context(), "/v1/shadows/start", api.ShadowStart{Cluster: cluster, Config: string(text), File: args[0], Actor: a.actor(),
				Reason: (&actFlags{reason: reason}).because(), Key: strings.ToLower(rand.Text())}, &out); err != nil {
				return err
			}
			return a.show(out, func(w io.Writer) error { return startedText(w, out) })
		}),
	}
	shadowFlags(c, &cluster, &reason)
	return a.listing(c)
}

func shadowFlags(c *cobra.Command, cluster, reason *string) {
	c.Flags().StringVar(cluster, "cluster", "", "the cluster, where there are several")
	if reason != nil {
		c.Flags().StringVar(reason, "reason", "", "why, for those who read the audit")
	}
}

func startedText(w io.Writer, s api.ShadowStarted) error {
	var l lines
	l.add(0, "shadow %s: the candidate (%s) is judged in cluster %s", s.ID, brief(s.Digest), s.Cluster)
	if s.Replaced != "" {
		l.add(0, "the candidate before it (%s) no longer is", s.Replaced)
	}
	if s.Same {
		l.add(0, "its policy is the one in force: nothing can differ")
	}
	if len(s.NewPools) > 0 {
		l.wrap(0, fmt.Sprintf("new to the running configuration: pool %s. Shadow tells what it would get; to have it, put the file in place and start anew.", strings.Join(s.NewPools, ", ")))
	}
	if len(s.Gone) > 0 {
		l.wrap(0, fmt.Sprintf("no longer there: pool %s", strings.Join(s.Gone, ", ")))
	}
	l.add(0, "where it decides otherwise: k3s-autoscaler shadow diff")
	_, err := io.WriteString(w, l.String())
	return err
}

// current is the candidate of a cluster, or of the only one that has any.
func (a *app) current(ctx context.Context, cl *client, cluster string) (api.Shadow, error) {
	var p api.Page[api.Shadow]
	if err := cl.get(ctx, "/v1/shadows", query("cluster", cluster), &p); err != nil {
		return api.Shadow{}, err
	}
	switch len(p.Items) {
	case 0:
		return api.Shadow{}, errors.New("no candidate policy is judged; 'k3s-autoscaler shadow start FILE' starts one")
	case 1:
		return p.Items[0], nil
	}
	var names []string
	for _, s := range p.Items {
		names = append(names, s.Cluster)
	}
	return api.Shadow{}, usagef("--cluster: several clusters have a candidate policy (%s): name one", strings.Join(names, ", "))
}

func (a *app) shadowPromoteCommand() *cobra.Command {
	var cluster, reason string
	c := &cobra.Command{
		Use: "promote --reason WHY", Short: "Make the candidate policy the one in force",
		Long: `Make the candidate policy the one in force, at once, as an event with your name
and reason. The comparison ends.

What the configuration file says beyond decisions (providers, images, networks)
does not change, and a pool that the running configuration does not have is
refused: for these, put the file in place and start anew.

Put the candidate's file in the place of the configuration file as well. Until
then 'status' says that they differ, and every start keeps the promoted policy,
as long as nobody changes the file: then the file's policy is in force again. To
go back, judge and promote the old file.`,
		Example: "  k3s-autoscaler shadow promote --reason \"a day without surprises\"",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if strings.TrimSpace(reason) == "" {
				return usagef("--reason: is empty; say why, for those who read the audit")
			}
			return a.endShadow(cmd.Context(), "promote", cluster, reason)
		}),
	}
	shadowFlags(c, &cluster, &reason)
	_ = c.MarkFlagRequired("reason") // the flag exists
	return a.listing(c)
}

func (a *app) shadowStopCommand() *cobra.Command {
	var cluster, reason string
	c := &cobra.Command{
		Use: "stop", Short: "Judge the candidate policy no longer", Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			return a.endShadow(cmd.Context(), "stop", cluster, (&actFlags{reason: reason}).because())
		}),
	}
	shadowFlags(c, &cluster, &reason)
	return a.listing(c)
}

// endShadow promotes or stops the candidate that there is now.
func (a *app) endShadow(ctx context.Context, action, cluster, reason string) error {
	cl, err := a.connect()
	if err != nil {
		return err
	}
	s, err := a.current(ctx, cl, cluster)
	if err != nil {
		return err
	}
	var out api.ShadowEnded
	if err := cl.postJSON(ctx, "/v1/shadows/"+action, api.ShadowEnd{Cluster: s.Cluster, Shadow: s.ID, Actor: a.actor(), Reason: reason}, &out); err != nil {
		return err
	}
	return a.show(out, func(w io.Writer) error {
		var l lines
		if action == "stop" {
			l.add(0, "stopped: the candidate (%s) is judged no longer in cluster %s", brief(out.Digest), out.Cluster)
		} else {
			l.add(0, "promoted: the policy of %s (%s) is in force in cluster %s, instead of %s", file(out.File), brief(out.Digest), out.Cluster, brief(out.Replaced))
			if out.AheadOfFile {
				l.wrap(0, fmt.Sprintf("The configuration file says otherwise: put %s in its place. Until then starts keep what was promoted, as long as nobody changes the file, and 'status' says so.", file(out.File)))
			} else {
				l.add(0, "that is what the configuration file says")
			}
		}
		_, err := io.WriteString(w, l.String())
		return err
	})
}

// brief is the beginning of a digest.
func brief(digest string) string { return digest[:min(12, len(digest))] }

func file(name string) string {
	if name == "" {
		return "the candidate"
	}
	return name
}
