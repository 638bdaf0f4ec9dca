//go:build e2e

// Package rules_test runs Prometheus' and Alertmanager's own checkers over the
// files that users mount.
package rules_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	require.NoError(t, err, "%s is missing; on Debian and Ubuntu: apt-get install -y prometheus prometheus-alertmanager", name)
	// The test cache does not see what a subprocess reads.
	files, err := filepath.Glob("*.yml")
	require.NoError(t, err)
	for _, f := range files {
		_, err := os.ReadFile(f)
		require.NoError(t, err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	require.NoError(t, err, "%s %s:\n%s", name, strings.Join(args, " "), out)
	return string(out)
}

func TestPrometheusAcceptsTheRules(t *testing.T) {
	t.Parallel()
	run(t, "promtool", "check", "rules", "scaling.rules.yml", "autoscaler.rules.yml")
}

func TestRulesFireAndRestAsTheirTestsSay(t *testing.T) {
	t.Parallel()
	run(t, "promtool", "test", "rules", "rules_test.yml")
}

func TestAlertmanagerAcceptsTheRoute(t *testing.T) {
	t.Parallel()
	run(t, "amtool", "check-config", "alertmanager.yml")
}

func TestRouteSendsAlertsWhereTheyBelong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ labels, receivers string }{
		"a scaling alert":             {"alertname=QueueBacklog nodepool=burst severity=info", "k3s-autoscaler"},
		"a scaling alert for people":  {"alertname=PodsPendingLong nodepool=burst severity=warning", "k3s-autoscaler,people"},
		"an alert about ourselves":    {"alertname=AutoscalerDown severity=critical", "people"},
		"an alert of somebody else's": {"alertname=DiskFull", "people"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"config", "routes", "test", "--config.file=alertmanager.yml", "--verify.receivers=" + c.receivers}, strings.Fields(c.labels)...)
			run(t, "amtool", args...)
		})
	}
}
