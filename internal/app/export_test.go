package app

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/cli"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// bundleCLI runs a command line that exports or reads a bundle.
func (b *testBundle) bundleCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = cli.Execute(t.Context(), cli.Options{
		Stdout: &out, Stderr: &errOut, ConfigDir: t.TempDir(), Getenv: func(string) string { return "" },
		Decide: func(ctx context.Context, o cli.DecideOptions) (replay.DecisionReport, error) {
			return Decide(ctx, DecideOptions{Config: o.Config, Options: o.Replay})
		},
		Export: func(ctx context.Context, o cli.ExportOptions) (bundle.Manifest, error) {
			return Export(ctx, ExportOptions{Config: o.Config, Options: o.Export})
		},
	}, args)
	return code, out.String(), errOut.String()
}

func TestAnIncidentIsExportedAndDecidedAgainElsewhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, stop := b.run(t, false)
	worldCtx, endWorld := context.WithCancel(t.Context())
	defer endWorld()
	go func() { _ = b.world.world.Run(worldCtx) }() // ends with the test
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeNodeReady) == 1 }, 60*time.Second, 50*time.Millisecond)
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeDecisionCheckpointed) > 0 }, 60*time.Second, 50*time.Millisecond)

	path := filepath.Join(t.TempDir(), "incident.tar.zst")
	token := filepath.Join(b.dir, "token")
	code, stdout, stderr := b.bundleCLI(t, "export", "-o", path, "--server", "http://"+a.Address(), "--token-file", token)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "decisions can be taken again from the checkpoint")
	stop()

	// The process is gone. What it left is in the file.
	code, stdout, stderr = b.bundleCLI(t, "replay", "--decisions", "--bundle", path)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "equal: every decision is what it was, byte for byte")
	code, stdout, stderr = b.bundleCLI(t, "events", "list", "--bundle", path)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "node.ready")

	// The log itself, opened directly, gives the same events.
	direct := filepath.Join(t.TempDir(), "direct.tar.zst")
	m, err := Export(t.Context(), ExportOptions{Config: b.config, Options: bundle.ExportOptions{Path: direct}})
	require.NoError(t, err)
	r, err := bundle.Open(path)
	require.NoError(t, err)
	require.Equal(t, r.Manifest().First, m.First)
	require.GreaterOrEqual(t, m.Last, r.Manifest().Last)
	one, other := unpacked(t, path), unpacked(t, direct)
	for _, line := range strings.SplitAfter(one, "\n") {
		if strings.HasPrefix(line, `{"sequence":`) {
			require.Contains(t, other, line)
		}
	}
	secret, err := os.ReadFile(token)
	require.NoError(t, err)
	require.NotContains(t, one, strings.TrimSpace(string(secret)))
}

// unpacked is everything in a bundle.
func unpacked(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	z, err := zstd.NewReader(f)
	require.NoError(t, err)
	defer z.Close()
	all, err := io.ReadAll(z)
	require.NoError(t, err)
	return string(all)
}
