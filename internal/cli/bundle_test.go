package cli

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// memory is a stream of record in memory.
type memory []bus.Delivery

func (m memory) LogState(context.Context) (bus.LogState, error) {
	first, last := m[0], m[len(m)-1]
	return bus.LogState{Exists: true, Incarnation: first.Incarnation, First: first.Sequence, FirstTime: first.StreamTime, Last: last.Sequence, LastTime: last.StreamTime}, nil
}

func (m memory) Read(_ context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range m {
			if d.Sequence >= o.FromSequence && (o.UntilSequence == 0 || d.Sequence <= o.UntilSequence) && !yield(d, nil) {
				return
			}
		}
	}
}

// say puts an event on the log, ten minutes after the one before.
func (m *memory) say(t *testing.T, cluster, node string, p events.Payload) uint64 {
	t.Helper()
	seq := uint64(len(*m) + 1)
	at := t0.Add(time.Duration(seq) * 10 * time.Minute)
	e, err := events.New(events.Meta{Cluster: cluster, Node: node, Publisher: "test", ID: fmt.Sprint("event-", seq), Time: at}, p)
	require.NoError(t, err)
	d, err := bus.Delivered(e, seq, "20250301T120000Z-STREAM", at)
	require.NoError(t, err)
	*m = append(*m, d)
	return seq
}

// incident is a bundle of five events.
func incident(t *testing.T) string {
	t.Helper()
	m := memory{}
	m.say(t, "home", "", events.ConfigApplied{Digest: "0123456789abcdef", DryRun: true, Start: t0})
	seq := m.say(t, "home", "", events.SnapshotCaptured{Epoch: 1, Digest: "d", CapturedAt: t0})
	m.say(t, "home", "", events.DecisionCheckpointed{State: events.Raw(`{"config":{"dry_run":true}}`), StateDigest: "s", Snapshot: seq, Config: 1, Policy: "0123456789abcdef", At: t0, Version: "v1"})
	m.say(t, "home", "", events.PoolPaused{Pool: "burst", Actor: "ada", Reason: "upgrade"})
	m.say(t, "home", "burst-1", events.NodeLost{Node: "burst-1", Pool: "burst", Reason: events.Reason{Code: "MachineGone", Message: "its container is gone"}, At: t0})
	path := filepath.Join(t.TempDir(), "incident.tar.zst")
	_, err := bundle.Export(t.Context(), bundle.ExportOptions{Log: m, Path: path, From: replay.Position{Sequence: 4}, Version: "v1.2.3"})
	require.NoError(t, err)
	return path
}

func TestABundleIsReadWithoutAServer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.Close()
	path := incident(t)
	golden(t, "import", strings.ReplaceAll(b.ok(t, "import", path), path, "incident.tar.zst"))
	require.Contains(t, b.ok(t, "import", path, "-o", "json"), `"format": "k3s-autoscaler-incident/v1"`)
	require.Contains(t, b.ok(t, "import", path, "-o", "yaml"), "range_first: 4")
	golden(t, "events-bundle", b.ok(t, "events", "list", "--bundle", path))
	require.Contains(t, b.ok(t, "events", "list", "--bundle", path, "--all", "-o", "json"), events.TypeSnapshotCaptured)
	require.NotContains(t, b.ok(t, "events", "list", "--bundle", path, "--since", "1m"), "pool.paused", "counted from its end")
	require.Contains(t, b.ok(t, "events", "list", "--bundle", path, "--since", "10m"), "pool.paused")
	require.NotContains(t, b.ok(t, "events", "list", "--bundle", path, "--limit", "1"), "pool.paused", "the newest")
	require.Contains(t, b.ok(t, "events", "list", "--bundle", path, "--since", "4", "--limit", "1"), "pool.paused", "the oldest")
	require.Equal(t, "no events\n", b.ok(t, "events", "list", "--bundle", path, "--node", "other"))

	var read []uint64
	b.Decide = func(ctx context.Context, o DecideOptions) (replay.DecisionReport, error) {
		require.Nil(t, o.Config)
		require.Equal(t, t0.Add(20*time.Minute), o.Replay.From.Time, "half an hour before its end")
		for d, err := range o.Replay.Log.Read(ctx, bus.ReadOptions{}) {
			require.NoError(t, err)
			read = append(read, d.Sequence)
		}
		return replay.DecisionReport{Incarnation: "x"}, nil
	}
	require.Contains(t, b.ok(t, "replay", "--decisions", "--bundle", path, "--since", "30m"), "stream   x")
	require.Equal(t, []uint64{2, 3, 4, 5}, read)
}

func TestABundleThatCanNotBeUsedIsAFailureAndAWrongFlagIsUsage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := incident(t)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	broken := filepath.Join(t.TempDir(), "broken.tar.zst")
	require.NoError(t, os.WriteFile(broken, whole[:len(whole)-9], 0o600))
	for _, args := range [][]string{{"import", broken}, {"events", "list", "--bundle", broken}, {"replay", "--decisions", "--bundle", broken}} {
		require.Equal(t, ExitFailure, b.run(args...), args)
		require.Contains(t, b.stderr.String(), broken+" is truncated: its end is missing; copy or export it again")
	}
	for _, args := range [][]string{
		{"import"}, {"export"}, {"export", "-o", "x", "--since", "yesterday"}, {"export", "-o", "x", "--until", "-"},
		{"replay", "--bundle", path}, {"replay", "--decisions", "--bundle", path, "--config", "c.yaml"}, {"replay", "--decisions", "--bundle", path, "--from", "x"},
		{"events", "list", "--bundle", path, "-f"}, {"events", "list", "--bundle", path, "--type", "nope"}, {"events", "list", "--bundle", path, "--limit", "0"},
	} {
		require.Equal(t, ExitUsage, b.run(args...), "%v: %s", args, b.stderr.String())
		require.NotEmpty(t, b.stderr.String())
	}
}

func TestAnExportSaysWhatItWrote(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := incident(t)
	r, err := bundle.Open(path)
	require.NoError(t, err)
	b.Export = func(_ context.Context, o ExportOptions) (bundle.Manifest, error) {
		require.Nil(t, o.Config)
		require.NotNil(t, o.Export.Log, "that of the server")
		o.Export.Log = nil
		require.Equal(t, bundle.ExportOptions{Path: "out.tar.zst", Cluster: "home", Version: "v1.2.3",
			From: replay.Position{Time: t0.Add(-2 * time.Hour)}, To: replay.Position{Sequence: 900}}, o.Export)
		return r.Manifest(), nil
	}
	out := b.ok(t, "export", "--since", "2h", "--until", "900", "--cluster", "home", "-o", "out.tar.zst")
	require.Equal(t, strings.ReplaceAll(b.ok(t, "import", path), path, "out.tar.zst"), out)
}
