package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// ReplayOptions are what 'replay' was asked for.
type ReplayOptions struct {
	// Config names the stream and the live audit store; nil: Replay has them, of
	// the process that runs.
	Config *config.Config
	// Into is the file of the audit store to rebuild; "": a temporary one.
	Into   string
	Replay replay.Options // without Into
}

func (a *app) replayCommand() *cobra.Command {
	var from, to, handler, into, configPath, bundlePath, cluster, node string
	var types []string
	var decisions bool
	c := &cobra.Command{
		Use:   "replay",
		Short: "Rebuild the audit store, or take every decision again, and prove that it is the same",
		Long: `Give the events of the stream to a handler again, into a store of its own, and
compare what comes out with what the live one has: record by record, byte by
byte. A difference is printed, and the exit code is 1.

A replay acts on nothing: it reads the stream and has no means to publish.

The stream and the live audit store are those of the process at --server. With
--config they are opened directly: those of bus.url, or the embedded bus's
directory while no process uses it.

--from and --to take a sequence, a time, or how long ago. Without --to it goes as
far as the live store. --type, --node and --cluster select the records that are
compared; all of the range is replayed, since a record depends on what came
before it.

With --decisions it takes every decision again, from the first checkpoint in the
range on, and compares each event that a decision led to, and the whole state at
each checkpoint, with what the log holds. With --bundle it does so with the log that
'export' wrote into a file; how long ago is then counted from its end.`,
		Example: "  k3s-autoscaler replay --from 24h\n  k3s-autoscaler replay --decisions --since 7d\n  k3s-autoscaler replay --decisions --bundle incident.tar.zst\n  k3s-autoscaler replay --from 1200 --to 1300 --into rebuilt.db\n  k3s-autoscaler replay --config config.yaml   # while it is stopped",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if decisions {
				return a.decideAgain(cmd, from, to, cluster, place{configPath, bundlePath})
			}
			if bundlePath != "" {
				return usagef("--bundle: is for --decisions; a bundle holds no audit store to compare with")
			}
			if handler != events.HandlerAuditing {
				return usagef("--to-handler: is %q, expected %s: it records and does not act", handler, events.HandlerAuditing)
			}
			o := ReplayOptions{Into: into, Replay: replay.Options{Cluster: cluster, Node: node}}
			var err error
			if o.Replay.From, err = position("--from", from, a.Clock.Now()); err != nil {
				return err
			}
			if o.Replay.To, err = position("--to", to, a.Clock.Now()); err != nil {
				return err
			}
			if o.Replay.Types, err = api.MatchTypes(types); err != nil {
				return usagef("--type: %w", err)
			}
			var cl *client
			if o.Config, cl, err = a.source(configPath); err != nil {
				return err
			}
			if cl != nil {
				o.Replay.Log, o.Replay.Live = remoteLog{a, cl}, remoteAudit{cl}
			}
			r, err := a.Replay(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := a.show(replayed{r, r.Equal()}, func(w io.Writer) error { return replayText(w, r, into) }); err != nil {
				return err
			}
			if !r.Equal() {
				return errSilent
			}
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "begin with it: a sequence, a time, or how long ago (default: the oldest event)")
	f.StringVar(&from, "since", "", "the same as --from")
	f.BoolVar(&decisions, "decisions", false, "take the decisions again, instead of recording them")
	f.StringVar(&to, "to", "", "end: a sequence (inclusive), a time, or how long ago (default: what the live store has)")
	f.StringVar(&handler, "to-handler", events.HandlerAuditing, "the handler that gets the events: "+events.HandlerAuditing)
	f.StringSliceVar(&types, "type", nil, "compare only these types, e.g. node.ready or node.*")
	f.StringVar(&node, "node", "", "compare only what is about this node")
	clusterFlag(c, &cluster)
	f.StringVar(&into, "into", "", "keep the rebuilt store in this file, which must not exist")
	f.StringVar(&configPath, "config", "", "open stream and audit store of this configuration, instead of asking a process")
	_ = c.MarkFlagFilename("config", "yaml", "yml") // the flag exists
	bundleFlag(c, &bundlePath)
	c.MarkFlagsMutuallyExclusive("config", "bundle")
	c.MarkFlagsMutuallyExclusive("from", "since")
	for _, flag := range []string{"to-handler", "type", "node", "into"} {
		c.MarkFlagsMutuallyExclusive("decisions", flag)
	}
	return a.listing(c)
}

// source is where a replay reads: what a configuration names, or a running process.
func (a *app) source(configPath string) (*config.Config, *client, error) {
	if configPath != "" {
		c, err := a.loadConfig(configPath, false)
		return c, nil, err
	}
	cl, err := a.connect()
	return nil, cl, err
}

// replayed is a report with its verdict.
type replayed struct {
	replay.Report
	Equal bool `json:"equal"`
}

// position reads a place in the stream; how long ago is counted from now.
func position(flag, s string, now time.Time) (replay.Position, error) {
	if s == "" {
		return replay.Position{}, nil
	}
	if seq, err := strconv.ParseUint(s, 10, 63); err == nil && seq > 0 {
		return replay.Position{Sequence: seq}, nil
	}
	if d, err := api.ParseAgo(s); err == nil {
		return replay.Position{Time: now.Add(-d).UTC()}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return replay.Position{}, usagef("%s: is %q, expected a sequence such as 1200, a time such as 2026-03-01T12:00:00Z, or how long ago, such as 2h", flag, s)
	}
	return replay.Position{Time: t.UTC()}, nil
}

func replayText(w io.Writer, r replay.Report, into string) error {
	var l lines
	l.add(0, "stream   %s, sequences %d to %d", r.Incarnation, r.StreamFirst, r.StreamLast)
	l.add(0, "replayed %d to %d: %s", r.From, r.To, plural(r.Events, "event"))
	if r.Recorded < r.StreamLast {
		l.add(0, "         the live audit store is at %d, %d behind", r.Recorded, r.StreamLast-r.Recorded)
	}
	l.add(0, "rebuilt  %s, sha256 %s", plural(r.Rebuilt, "record"), r.Digest)
	l.add(0, "live     %s, sha256 %s", plural(r.Live, "record"), r.LiveDigest)
	if r.Copies > 0 {
		l.add(0, "copies   %d: the live store has these events at an earlier place", r.Copies)
	}
	if r.Lost > 0 {
		l.add(0, "lost     %d sequences, as the live store records", r.Lost)
	}
	if into != "" {
		l.add(0, "kept     %s", into)
	}
	if r.Equal() {
		l.add(0, "equal: the live audit store is what the stream says")
	} else {
		l.add(0, "different in %s; the first:", plural(r.Differences, "place"))
		l.add(2, "sequence %d: %s", r.First.Sequence, r.First.What)
		for _, side := range []struct {
			name string
			rec  json.RawMessage
		}{{"rebuilt", r.First.Rebuilt}, {"live", r.First.Live}} {
			if len(side.rec) > 0 {
				l.add(2, "%-8s %s", side.name, clipped(side.rec, 2000))
			}
		}
	}
	_, err := fmt.Fprint(w, l.String())
	return err
}

func clipped(b []byte, n int) string {
	if len(b) <= n {
		return string(b)
	}
	return string(b[:n]) + fmt.Sprintf(" … (%d bytes; -o json prints all)", len(b))
}
