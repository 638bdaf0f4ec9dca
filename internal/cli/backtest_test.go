package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/backtest"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
)

const testdata = "../backtest/testdata/"

func TestAPolicyIsTriedOnABundle(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.Close()
	out := b.ok(t, "backtest", "--policy", testdata+"eager.yaml", "--bundle", testdata+"day.tar.zst", "--differences", "3")
	golden(t, "backtest", regexp.MustCompile(`new [0-9a-f]{12}`).ReplaceAllString(out, "new DIGEST"))

	var r backtest.Report
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "backtest", "--policy", testdata+"patient.yaml", "--bundle", testdata+"day.tar.zst", "--since", "2h", "--until", "1h",
		"--cluster", "home", "--ready-after", "1m", "-o", "json")), &r))
	require.Len(t, r.Clusters, 1)
	c := r.Clusters[0]
	require.Equal(t, time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC), c.Since, "the last checkpoint before, counted from the end of the bundle")
	require.True(t, c.Until.Before(time.Date(2026, 3, 3, 11, 0, 0, 0, time.UTC)))
	require.Contains(t, b.ok(t, "backtest", "--policy", testdata+"patient.yaml", "--bundle", testdata+"day.tar.zst", "--since", "30m", "-o", "yaml"), "unused_additions: ")
}

func TestAPolicyIsTriedOnTheLogOfAProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	day, err := bundle.Open(testdata + "day.tar.zst")
	require.NoError(t, err)
	made := ""
	b.Export = func(ctx context.Context, o ExportOptions) (bundle.Manifest, error) {
		require.NotNil(t, o.Export.Log, "that of the server")
		require.Equal(t, t0.Add(-7*24*time.Hour), o.Export.From.Time)
		require.Equal(t, "home", o.Export.Cluster)
		made = o.Export.Path
		o.Export.Log = day
		o.Export.From.Sequence, o.Export.From.Time = day.Manifest().Last-200, time.Time{}
		return bundle.Export(ctx, o.Export)
	}
	require.Contains(t, b.ok(t, "backtest", "--policy", testdata+"patient.yaml", "--since", "7d", "--cluster", "home"), "node-hours")
	require.NotEmpty(t, made)
	require.NoDirExists(t, filepath.Dir(made), "nothing is left of it")
}

func TestAPolicyThatCanNotBeTriedIsSaid(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong.yaml")
	require.NoError(t, os.WriteFile(wrong, []byte("clusters: [{name: home, pools: [{name: a, provider: docker, max: many, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	other := filepath.Join(dir, "other.yaml")
	require.NoError(t, os.WriteFile(other, []byte("clusters: [{name: edge, kubeconfig: nowhere, pools: [{name: a, provider: docker, max: 1, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	day := testdata + "day.tar.zst"
	for _, args := range [][]string{
		{"backtest"}, {"backtest", "--policy", "nowhere.yaml"}, {"backtest", "--policy", wrong, "--bundle", day}, {"backtest", "--policy", other, "--cluster", "home", "--bundle", day},
		{"backtest", "--policy", other, "--bundle", day, "--since", "x"}, {"backtest", "--policy", other, "--bundle", day, "--config", "c"},
		{"backtest", "--policy", other, "--ready-after", "-1s"}, {"backtest", "--policy", other, "--differences", "-1"}, {"backtest", "--policy", other, "-o", "csv"},
	} {
		require.Equal(t, ExitUsage, b.run(args...), "%v: %s", args, b.stderr.String())
		require.NotEmpty(t, b.stderr.String())
	}
	require.Equal(t, ExitFailure, b.run("backtest", "--policy", other, "--bundle", day))
	require.Contains(t, b.stderr.String(), "no checkpoint of decision", "there is nothing of cluster edge")
	require.Equal(t, ExitFailure, b.run("backtest", "--policy", other, "--bundle", wrong))
	require.Contains(t, b.stderr.String(), "is no incident bundle")
}
