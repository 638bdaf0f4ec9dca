package app

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/cli"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// replayCLI runs the command that an operator types.
func (b *testBundle) replayCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = cli.Execute(t.Context(), cli.Options{
		Stdout: &out, Stderr: &errOut, ConfigDir: t.TempDir(), Getenv: func(string) string { return "" },
		Replay: func(ctx context.Context, o cli.ReplayOptions) (replay.Report, error) {
			return Replay(ctx, ReplayOptions{Config: o.Config, Into: o.Into, Options: o.Replay})
		},
		Decide: func(ctx context.Context, o cli.DecideOptions) (replay.DecisionReport, error) {
			return Decide(ctx, DecideOptions{Config: o.Config, Options: o.Replay})
		},
	}, append([]string{"replay"}, args...))
	return code, out.String(), errOut.String()
}

func TestAReplayProvesTheAuditOfARunningProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, stop := b.run(t, false)
	worldCtx, endWorld := context.WithCancel(t.Context())
	defer endWorld()
	go func() { _ = b.world.world.Run(worldCtx) }() // ends with the test
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeNodeReady) == 1 }, 60*time.Second, 50*time.Millisecond)

	server := []string{"--server", "http://" + a.Address(), "--token-file", filepath.Join(b.dir, "token")}
	into := filepath.Join(t.TempDir(), "rebuilt.db")
	code, stdout, stderr := b.replayCLI(t, append(server, "--into", into)...)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "equal: the live audit store is what the stream says")
	require.FileExists(t, into)
	code, _, stderr = b.replayCLI(t, append(server, "--into", into)...)
	require.Equal(t, cli.ExitFailure, code)
	require.Contains(t, stderr, "holds records already")
	code, stdout, stderr = b.replayCLI(t, append(server, "--type", "node.*", "--from", "1h", "-o", "json")...)
	require.Zero(t, code, stderr)
	var r struct {
		replay.Report
		Equal bool
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &r))
	require.True(t, r.Equal)
	require.Equal(t, r.Rebuilt, r.Live)
	require.Positive(t, r.Rebuilt)
	require.Less(t, r.Rebuilt, r.Events)

	// The same process's decisions, taken again.
	code, stdout, stderr = b.replayCLI(t, append(server, "--decisions", "--since", "7d")...)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "equal: every decision is what it was, byte for byte")
	code, stdout, stderr = b.replayCLI(t, append(server, "--decisions", "-o", "json")...)
	require.Zero(t, code, stderr)
	var again struct {
		replay.DecisionReport
		Equal bool
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &again))
	require.True(t, again.Equal)
	require.Positive(t, again.Clusters[0].Decisions)
	code, _, stderr = b.replayCLI(t, append(server, "--decisions", "--from", strconv.FormatUint(again.StreamLast, 10))...)
	require.Equal(t, cli.ExitFailure, code)
	require.Contains(t, stderr, "no checkpoint of decision")
	code, _, stderr = b.replayCLI(t, append(server, "--decisions", "--into", into)...)
	require.Equal(t, cli.ExitUsage, code)
	require.Contains(t, stderr, "into")

	// The stream is held by the process, until that ends.
	_, err := Replay(t.Context(), ReplayOptions{Config: b.config})
	require.ErrorContains(t, err, "leave out --config to ask the running process")
	stop()
	report, err := Replay(t.Context(), ReplayOptions{Config: b.config})
	require.NoError(t, err)
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, report.StreamLast, report.To, "the last events of the process are recorded too")
	decided, err := Decide(t.Context(), DecideOptions{Config: b.config})
	require.NoError(t, err)
	require.True(t, decided.Equal(), "%+v", decided)
}
