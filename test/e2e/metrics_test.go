//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

// watchQueue starts a Prometheus that scrapes the exporter.
func watchQueue(t *testing.T, p *product, exporter *env.Exporter) *env.Monitoring {
	t.Helper()
	mon, err := world.StartMonitoring(context.Background(), env.MonitoringOptions{
		ScrapeTargets: map[string][]string{"queue": {exporter.Address}}, WebhookURL: p.url + "/v1/alerts", TokenFile: p.token})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mon.Stop()) })
	return mon
}

// metric is what status says of the only metric rule.
func metric(t *testing.T, p *product) api.Metric {
	t.Helper()
	var status struct {
		Pools []api.Pool `json:"pools"`
	}
	require.NoError(t, json.Unmarshal([]byte(p.mustCLI("status", "-o", "json")), &status))
	require.Len(t, status.Pools, 1)
	require.Len(t, status.Pools[0].Metrics, 1)
	return status.Pools[0].Metrics[0]
}

// reasons are those for which nodes were removed.
func reasons(t *testing.T, p *product) []string {
	t.Helper()
	var out []string
	for _, d := range payloads[events.ScaledownDecided](t, p) {
		out = append(out, d.Reason.Code)
	}
	return out
}

func TestAQueryOfPrometheusAddsAndRemovesNodesAndUnknownRemovesNone(t *testing.T) {
	exporter, err := env.NewExporter()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, exporter.Close()) })
	jobs := func(n float64) { exporter.Set("queue_depth", map[string]string{"queue": "mail"}, n) }
	jobs(0)
	// Nothing is unneeded for so long: what goes, goes on account of the metric.
	pl := pool{Max: 3, Unneeded: "1h", Policy: `  metric_rules:
    - {name: jobs, pool: burst, query: 'sum(queue_depth) / 10', interval: 5s, stale_after: 10s, scale_down: true, pass_through: true}
`}
	p := newProduct(t, "e2e-metric", pl)
	mon := watchQueue(t, p, exporter)
	follow := func() {
		pl.Cluster = fmt.Sprintf("    prometheus: {url: %q, timeout: 2s}\n", mon.PrometheusURL)
		p.writeConfig(pl)
		p.start()
	}
	follow()

	jobs(21)
	began := time.Now()
	eventually(t, 120*time.Second, "a node for every ten jobs", readyNodes(t, p, 3))
	t.Logf("value rises → 3 nodes Ready: %.1f s", time.Since(began).Seconds())
	up := payloads[events.ScaleupDecided](t, p)[0]
	require.Equal(t, "Metric", up.Reason.Code)
	require.Contains(t, up.Reason.Message, "metric rule jobs (query sum(queue_depth) / 10) is 2.1: it asks for 3 nodes")
	logStages(t, p)

	jobs(20)
	eventually(t, 120*time.Second, "one of them is too many", readyNodes(t, p, 2))
	require.Equal(t, []string{"Metric"}, reasons(t, p))

	// Prometheus is gone, and with it the last job.
	require.NoError(t, mon.Stop())
	jobs(0)
	eventually(t, 60*time.Second, "the metric is unknown", func() error {
		if m := metric(t, p); m.Verdict != "unknown" {
			return fmt.Errorf("it is %+v", m)
		}
		return nil
	})
	never(t, 20*time.Second, "a removal on account of what nobody knows", func() bool { return len(reasons(t, p)) > 1 })
	_, ready := ourNodes(t, p.cluster)
	require.Equal(t, 2, ready)
	m := metric(t, p)
	require.InDelta(t, 2, *m.Value, 0.001, "the last known one")
	require.Equal(t, 2, *m.Nodes)
	out := p.mustCLI("explain", "burst")
	t.Logf("explain burst says:\n%s", out)
	require.Contains(t, out, "MetricUnknown")
	require.Contains(t, p.mustCLI("status"), "UNKNOWN: ask Prometheus at "+mon.PrometheusURL)
	log, err := os.ReadFile(p.log.Name())
	require.NoError(t, err)
	// At the start it may have been unknown as well, before Prometheus had scraped.
	since := string(log)[max(0, strings.LastIndex(string(log), "metric is known again")):]
	require.Equal(t, 1, strings.Count(since, "metric is unknown: its query has no answer"), "said once")

	// Another Prometheus knows that the jobs are done.
	p.stop()
	mon = watchQueue(t, p, exporter)
	follow()
	eventually(t, 180*time.Second, "all of them are gone", readyNodes(t, p, 0))
	require.Equal(t, []string{"Metric", "Metric", "Metric"}, reasons(t, p))
}

func TestAPushedSignalKeepsWhatItAsksForAndNoMore(t *testing.T) {
	// Nodes without pods are unneeded at once: only the signal keeps them.
	p := newProduct(t, "e2e-signal", pool{Max: 3, Policy: `  metric_rules:
    - {name: queue, pool: burst, signal: ci-queue, stale_after: 1h, target_value: {target: 10}}
`})
	p.start()
	require.Contains(t, p.mustCLI("status"), "metric rule queue of burst: UNKNOWN: nobody has pushed signal ci-queue yet")

	p.mustCLI("signal", "push", "ci-queue", "18")
	eventually(t, 120*time.Second, "ceil(18 / 10) nodes", readyNodes(t, p, 2))
	p.mustCLI("signal", "push", "ci-queue", "10")
	never(t, 15*time.Second, "a removal of what is asked for", func() bool { return len(reasons(t, p)) > 0 })

	// By HTTP, twice with one id.
	token, err := os.ReadFile(p.token)
	require.NoError(t, err)
	push := func(body string) (int, string) {
		req, err := http.NewRequest(http.MethodPost, p.url+"/v1/signals", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Content-Type", "application/json")
		res, err := patient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(b)
	}
	for range 2 {
		code, body := push(`{"signals":[{"id":"build-1","name":"ci-queue","value":4}]}`)
		require.Equal(t, http.StatusAccepted, code, body)
	}
	eventually(t, 120*time.Second, "ceil(2 × 4 / 10) nodes", readyNodes(t, p, 1))
	require.Equal(t, []string{"NodeUnneeded"}, reasons(t, p))
	fours := 0
	for _, s := range payloads[events.SignalReceived](t, p) {
		if s.Value != nil && *s.Value == 4 {
			fours++
		}
		require.NotEmpty(t, s.Actor)
	}
	require.Equal(t, 1, fours, "one id is one value")

	// Unknown is not zero.
	p.mustCLI("signal", "push", "ci-queue", "unknown", "--reason", "redis does not answer")
	never(t, 15*time.Second, "a removal on account of what nobody knows", func() bool { return len(reasons(t, p)) > 1 })
	require.Contains(t, p.mustCLI("status"), "UNKNOWN: redis does not answer; last 4")

	code, body := push(`{"signals":[{"name":"ci-queu","value":4}]}`)
	require.Equal(t, http.StatusUnprocessableEntity, code)
	require.Contains(t, body, "there are ci-queue")
	_, errOut, err := p.cli("signal", "push", "ci-queue", "many")
	require.Error(t, err)
	require.Contains(t, errOut, "expected a number or 'unknown'")
}
