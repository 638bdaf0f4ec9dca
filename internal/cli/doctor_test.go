package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
)

// validConfig writes a configuration that a run may have.
func validConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"reader", "actor", "token", "api.token"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), []byte("x\n"), 0o600))
	}
	path := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`clusters:
  - {name: home, kubeconfig: reader, actor_kubeconfig: actor, server_url: "https://k3s:6443", token_file: token, pools: [{name: burst, provider: docker, max: 3, cpu: 1, memory: 1Gi}]}
api: {token_files: [api.token]}
`), 0o600))
	return path
}

func TestDoctorPrintsEachFindingWithItsFix(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.env["WAIT"] = "1"
	b.answers["/v1/log"] = api.LogInfo{}
	b.stream = append(b.stream, happened(t, events.Meta{}, report(func(r *events.ReconcileReported) {
		r.DryRun = true
		r.Differences = []events.Difference{{Node: "burst-aaaaaaaaaa", Kind: events.DivergedNodeLost, Detail: "its machine is gone", Action: "the node is declared lost", Since: t0}}
	})))
	b.Doctor = func(_ context.Context, o DoctorOptions) doctor.Report {
		require.Equal(t, "home", o.Config.Clusters[0].Name)
		var r doctor.Report
		r.Add(doctor.Result{Check: "API server", Target: "home", Status: doctor.Problem, Detail: "kubeconfig may not: list nodes", Fix: "kubectl apply -f deploy/kubernetes/rbac.yaml"},
			doctor.Result{Check: "pod network", Status: doctor.Skipped, Detail: "needs a credential"})
		return r
	}
	path := validConfig(t)
	require.Equal(t, ExitFailure, b.run("doctor", "--config", path, "-o", "json"))
	require.Empty(t, b.stderr.String())
	var r doctor.Report
	require.NoError(t, json.Unmarshal(b.stdout.Bytes(), &r))
	require.Equal(t, 1, r.Problems)
	require.Equal(t, 1, r.Warnings)
	var checks []string
	for _, x := range r.Results {
		checks = append(checks, x.Check+" "+string(x.Status))
	}
	require.Equal(t, []string{"configuration ok", "API server problem", "pod network skipped", "autoscaler ok", "reconcile warning"}, checks)
	b.posted = nil
	require.Equal(t, ExitFailure, b.run("doctor", "--config", path))
	require.Contains(t, b.stdout.String(), "→ kubectl apply -f deploy/kubernetes/rbac.yaml")
	require.Contains(t, b.stdout.String(), "→ nothing: the node is declared lost")
	require.Contains(t, b.stdout.String(), "1 problem, 1 warning\n")
}

func TestDoctorWithoutAnAutoscalerThatRunsWarnsAndIsNoFailure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.env["K3S_AUTOSCALER_SERVER"] = "http://127.0.0.1:1"
	b.Doctor = func(context.Context, DoctorOptions) doctor.Report { return doctor.Report{} }
	out := b.ok(t, "doctor", "--config", validConfig(t))
	require.Contains(t, out, "warning  autoscaler")
	require.Contains(t, out, "0 problems, 1 warning\n")
}

func TestDoctorReportsEveryMistakeOfAConfiguration(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte("clusters: [{name: home, pools: [{name: burst, provider: docker, max: -1, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	require.Equal(t, ExitFailure, b.run("doctor", "--config", path))
	require.Contains(t, b.stdout.String(), "pools[0].max")
	require.Equal(t, ExitFailure, b.run("doctor", "--config", path+".not"))
	require.Contains(t, b.stdout.String(), "1 problem, 0 warnings")
}
