//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
)

// examined runs doctor and returns its results by check.
func examined(t *testing.T, p *product, args ...string) (doctor.Report, map[string][]doctor.Result) {
	t.Helper()
	out, errOut, _ := p.cli(append([]string{"doctor", "--config", p.config, "-o", "json"}, args...)...)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r), "%s%s", out, errOut)
	by := map[string][]doctor.Result{}
	for _, x := range r.Results {
		by[x.Check] = append(by[x.Check], x)
	}
	return r, by
}

func TestDoctorFindsNothingWrongAndThenWhatIs(t *testing.T) {
	f := newFaulty(t, "e2e-doc", pool{Name: "doc", CPU: "100m", Memory: "128Mi"})
	f.begin()
	f.keeps(t, "doc", 1)
	node := f.readyOf(t, "doc", 60*time.Second).Node
	out, errOut, err := f.cli("doctor", "--config", f.config)
	require.NoError(t, err, "%s%s", out, errOut)
	t.Logf("doctor says:\n%s", out)
	require.Contains(t, out, "0 problems")

	// The pods of the stand-in do not run: the try ends at its limit, and says so.
	before := volumeNames(t)
	foreignNode(t, "e2e-doc-foreign", f.cluster)
	for _, v := range volumeNames(t) {
		if !slices.Contains(before, v) {
			f.volumes = append(f.volumes, v) // the foreign node's, which stays
		}
	}
	_, by := examined(t, f.product, "--network-kubeconfig", world.AdminKubeconfig, "--network-limit", "5s")
	require.Len(t, by["pod network"], 1)
	r := by["pod network"][0]
	require.Equal(t, doctor.Problem, r.Status)
	require.Contains(t, r.Detail, node)
	require.Contains(t, r.Detail, "does not come to its end in time")

	// A credential that may not act, and an engine that is down.
	text, err := os.ReadFile(f.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.config, []byte(strings.Replace(string(text), world.ActorKubeconfig, world.ReaderKubeconfig, 1)), 0o600))
	require.NoError(t, f.engines["doc"].Down())
	report, by := examined(t, f.product)
	require.Equal(t, doctor.Problem, by["provider"][0].Status)
	require.Contains(t, by["provider"][0].Detail, "is not reachable")
	require.Equal(t, doctor.OK, by["API server"][0].Status)
	require.Equal(t, doctor.Problem, by["API server"][1].Status)
	require.Contains(t, by["API server"][1].Detail, "may not: patch nodes, delete nodes")
	require.Equal(t, doctor.Problem, by["reconcile"][0].Status, "what can't be compared is told")
	require.GreaterOrEqual(t, report.Problems, 3)
	require.NoError(t, f.engines["doc"].Up())
	f.leavesNothing()
}
