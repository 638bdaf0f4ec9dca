//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

const alertPolicy = `  alert_rules:
    - {name: queue-backlog, match: ['alertname="QueueBacklog"'], pool: burst, direction: up, amount: 1}
`

// a. The whole way of an alert, on real parts.
func TestAPrometheusRuleThatFiresAddsANode(t *testing.T) {
	p := newProduct(t, "e2e-a", pool{Max: 1, Policy: alertPolicy})
	p.start()
	exporter, err := env.NewExporter()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, exporter.Close()) })
	rules := filepath.Join(t.TempDir(), "queue.rules.yml")
	require.NoError(t, os.WriteFile(rules, []byte(`groups:
- name: queue
  interval: 1s
  rules:
  - alert: QueueBacklog
    expr: queue_depth > 10
    for: 1s
    labels: {severity: critical, pool: burst}
    annotations: {summary: 'queue {{ $labels.queue }} has {{ $value }} jobs'}
`), 0o600))
	mon, err := world.StartMonitoring(context.Background(), env.MonitoringOptions{
		RuleFiles: []string{rules}, ScrapeTargets: map[string][]string{"queue": {exporter.Address}},
		WebhookURL: p.url + "/v1/alerts", TokenFile: p.token,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mon.Stop()) })

	began := time.Now()
	exporter.Set("queue_depth", map[string]string{"queue": "mail"}, 50)
	eventually(t, 90*time.Second, "the alert's node is Ready", func() error {
		if _, ready := ourNodes(t, p.cluster); ready != 1 {
			return fmt.Errorf("%d nodes are Ready", ready)
		}
		return nil
	})
	total := time.Since(began)
	require.Len(t, containers(t, p.cluster), 1)
	eventually(t, 10*time.Second, "node.ready is audited", func() error {
		list, err := p.audited(events.TypeNodeReady)
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("no node.ready")
		}
		return err
	})
	alerts := payloads[events.AlertReceived](t, p)
	require.NotEmpty(t, alerts)
	ready := payloads[events.NodeReady](t, p)
	require.Len(t, ready, 1)
	t.Logf("latency: sample → Ready %.2f s", total.Seconds())
	t.Logf("  sample → alert fires          %6.2f s  (scrape, rule, for: 1s)", alerts[0].StartsAt.Sub(began).Seconds())
	t.Logf("  alert fires → webhook         %6.2f s  (Alertmanager)", alerts[0].ReceivedAt.Sub(alerts[0].StartsAt).Seconds())
	claim := payloads[events.NodeClaimed](t, p)[0]
	t.Logf("  webhook → decided             %6.2f s", claim.ClaimedAt.Sub(alerts[0].ReceivedAt).Seconds())
	logStages(t, p)

	// The life of the node has one correlation id, from the claim on.
	life := events.Extension(p.history(events.TypeNodeClaimed)[0], events.ExtCorrelationID)
	require.NotEmpty(t, life)
	for _, typ := range []string{events.TypeNodeCreated, events.TypeNodeRegistered, events.TypeNodeReady} {
		require.Equal(t, life, events.Extension(p.history(typ)[0], events.ExtCorrelationID), typ)
	}
	assertNoTokenInContainer(t, p)
}

// logStages prints how long the stages of the nodes took, from what woke the
// decision ("decided" is from the start of the need) to Ready.
func logStages(t *testing.T, p *product) {
	t.Helper()
	var all []events.Stage
	for _, n := range payloads[events.NodeReady](t, p) {
		all = append(all, n.Stages...)
	}
	logTimes(t, all)
}

func logTimes(t *testing.T, stages []events.Stage) {
	t.Helper()
	var names []string
	took := map[string][]float64{}
	for _, s := range stages {
		if took[s.Name] == nil {
			names = append(names, s.Name)
		}
		took[s.Name] = append(took[s.Name], s.Seconds)
	}
	for _, name := range names {
		all := took[name]
		slices.Sort(all)
		t.Logf("  stage %-18s median %6.2f s, longest %6.2f s (%d nodes)", name, all[len(all)/2], all[len(all)-1], len(all))
	}
}

// The join token is in a file of the container, nowhere that inspect shows.
func assertNoTokenInContainer(t *testing.T, p *product) {
	t.Helper()
	token, err := os.ReadFile(world.JoinTokenFile)
	require.NoError(t, err)
	secret := strings.TrimSpace(string(token))
	for _, c := range containers(t, p.cluster) {
		_, raw, err := engine.ContainerInspectWithRaw(context.Background(), c.ID, false)
		require.NoError(t, err)
		require.NotContains(t, string(raw), secret)
	}
	for _, e := range p.history("") {
		require.NotContains(t, string(e.Data()), secret)
	}
	log, err := os.ReadFile(filepath.Join(p.dir, "run.log"))
	require.NoError(t, err)
	require.NotContains(t, string(log), secret)
}

// b. Exactly as many nodes as the pods need.
func TestADeploymentThatDoesNotFitGetsExactlyTheNodesItNeeds(t *testing.T) {
	p := newProduct(t, "e2e-b", pool{Max: 10})
	ns := namespace(t, "e2e-b")
	p.start()
	// Nodes of 500m take two pods of 200m each: seven pods need four nodes.
	deployment(t, ns, "web", p.cluster, 7, "200m")
	waitRunning(t, ns, "web", 7, 120*time.Second)
	names, ready := ourNodes(t, p.cluster)
	require.Len(t, names, 4)
	require.Equal(t, 4, ready)
	never(t, 3*time.Second, "a fifth claim", func() bool { return len(p.history(events.TypeNodeClaimed)) > 4 })
	require.Len(t, containers(t, p.cluster), 4)
	logStages(t, p)

	// What the kubelet offers to pods is what the pool says.
	for _, n := range names {
		node, err := admin.CoreV1().Nodes().Get(context.Background(), n, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, int64(500), node.Status.Allocatable.Cpu().MilliValue())
		require.Equal(t, int64(512<<20), node.Status.Allocatable.Memory().Value())
	}
}

func TestABurstOfThirtyPodsGetsThirtyClaims(t *testing.T) {
	p := newProduct(t, "e2e-burst", pool{Max: 40, CPU: "200m", Memory: "256Mi", Register: "180s", Extra: "        claim_expiry: 300s\n"})
	ns := namespace(t, "e2e-burst")
	p.start()
	deployment(t, ns, "burst", p.cluster, 30, "150m")
	waitRunning(t, ns, "burst", 30, 5*time.Minute)
	names, _ := ourNodes(t, p.cluster)
	require.Len(t, names, 30)
	require.Len(t, p.history(events.TypeNodeClaimed), 30)
	require.Len(t, containers(t, p.cluster), 30)
	require.Empty(t, p.history(events.TypeNodeFailed))
	logStages(t, p)
}

// h. People ask, and the trail says who and why.
func TestPeopleScaleDrainAndRemoveByHand(t *testing.T) {
	p := newProduct(t, "e2e-h", pool{Min: 1, Max: 4, Unneeded: "1h"})
	ns := namespace(t, "e2e-h")
	p.start()
	eventually(t, 90*time.Second, "the pool is at its minimum", readyNodes(t, p, 1))
	out := p.mustCLI("scale", "up", "--pool", "burst", "--count", "2", "--reason", "load test on Friday")
	t.Logf("scale up prints:\n%s", out)
	eventually(t, 90*time.Second, "two nodes more", readyNodes(t, p, 3))
	knows(t, p, 3)
	requests := payloads[events.ScaleRequested](t, p)
	require.Len(t, requests, 1)
	require.Equal(t, "load test on Friday", requests[0].Reason)
	require.NotEmpty(t, requests[0].Actor)
	claims := payloads[events.NodeClaimed](t, p)
	require.Len(t, claims, 3)
	for _, c := range claims[1:] {
		require.Equal(t, requests[0].Actor, c.Actor)
		require.Contains(t, c.Reason.Message, "load test on Friday")
	}

	deployment(t, ns, "web", p.cluster, 3, "100m")
	waitRunning(t, ns, "web", 3, 60*time.Second)
	var busy string
	for n := range running(t, ns, "web") {
		busy = n
	}
	p.mustCLI("drain", busy, "--reason", "a look at its disk")
	eventually(t, 60*time.Second, "the node is empty and stays", func() error {
		if n := running(t, ns, "web")[busy]; n > 0 {
			return fmt.Errorf("%d pods are left", n)
		}
		node, err := admin.CoreV1().Nodes().Get(context.Background(), busy, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !node.Spec.Unschedulable {
			return fmt.Errorf("it is schedulable")
		}
		return nil
	})
	waitRunning(t, ns, "web", 3, 60*time.Second)
	var drained []events.NodeDrained
	eventually(t, 30*time.Second, "node.drained is audited", func() error {
		if drained = payloads[events.NodeDrained](t, p); len(drained) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	require.Len(t, drained, 1)
	require.Equal(t, events.GoalDrain, drained[0].Goal)
	require.Empty(t, p.history(events.TypeNodeRemoved))
	p.mustCLI("uncordon", busy, "--reason", "the disk is fine")
	eventually(t, 30*time.Second, "the node is schedulable", func() error {
		node, err := admin.CoreV1().Nodes().Get(context.Background(), busy, metav1.GetOptions{})
		if err == nil && node.Spec.Unschedulable {
			err = fmt.Errorf("it is cordoned")
		}
		return err
	})

	names, _ := ourNodes(t, p.cluster)
	removed := 0
	for _, n := range names {
		// The third would go below the minimum.
		_, _, err := p.cli("remove", n, "--reason", "shrinking")
		require.NoError(t, err)
		if removed < 2 {
			removed++
			eventually(t, 90*time.Second, n+" is removed", readyNodes(t, p, 3-removed))
		}
	}
	never(t, 8*time.Second, "a removal below the minimum", func() bool { _, ready := ourNodes(t, p.cluster); return ready < 1 })
	held := p.mustCLI("explain", "burst")
	t.Logf("explain burst says:\n%s", held)
	require.Contains(t, strings.ToLower(held), "min")
	// A Node object goes first, the machine last.
	eventually(t, 60*time.Second, "both removals are recorded", func() error {
		if n := len(p.history(events.TypeNodeRemoved)); n < 2 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	require.Len(t, p.history(events.TypeNodeRemoved), 2)
	waitRunning(t, ns, "web", 3, 60*time.Second)
}

// knows waits until the product has seen, in a snapshot, that so many nodes of its
// pool are Ready: that they are says nothing yet about what a request will meet.
func knows(t *testing.T, p *product, want int) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("the product knows of %d Ready nodes", want), func() error {
		var status struct {
			Pools []api.Pool `json:"pools"`
		}
		if err := json.Unmarshal([]byte(p.mustCLI("status", "-o", "json")), &status); err != nil {
			return err
		}
		if len(status.Pools) != 1 || status.Pools[0].Ready != want {
			return fmt.Errorf("status says %+v", status.Pools)
		}
		return nil
	})
}

// knowsAtRest waits until the product knows of so many nodes, of which none leaves.
func knowsAtRest(t *testing.T, p *product, want int) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("the product knows of %d nodes, of which none leaves", want), func() error {
		var status struct {
			Pools []api.Pool `json:"pools"`
		}
		if err := json.Unmarshal([]byte(p.mustCLI("status", "-o", "json")), &status); err != nil {
			return err
		}
		if len(status.Pools) != 1 || status.Pools[0].Size != want || status.Pools[0].Leaving != 0 {
			return fmt.Errorf("status says %+v", status.Pools)
		}
		return nil
	})
}

func readyNodes(t *testing.T, p *product, want int) func() error {
	return func() error {
		names, ready := ourNodes(t, p.cluster)
		if ready != want || len(names) != want {
			return fmt.Errorf("%d nodes, %d Ready", len(names), ready)
		}
		return nil
	}
}

// i. A dry run decides and records, and could not act if it wanted to.
func TestADryRunDecidesAndTouchesNothing(t *testing.T) {
	p := newProduct(t, "e2e-i", pool{Max: 4})
	ns := namespace(t, "e2e-i")
	// Its credential to act and the join token don't even exist.
	text, err := os.ReadFile(p.config)
	require.NoError(t, err)
	var kept []string
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "    actor_kubeconfig:") && !strings.HasPrefix(line, "    token_file:") {
			kept = append(kept, line)
		}
	}
	require.NoError(t, os.WriteFile(p.config, []byte(strings.Join(kept, "\n")), 0o600))
	p.start("--dry-run")
	deployment(t, ns, "web", p.cluster, 3, "400m")
	eventually(t, 60*time.Second, "the decision is recorded", func() error {
		list, err := p.audited(events.TypeNodeClaimed)
		if err == nil && len(list) != 3 {
			err = fmt.Errorf("%d claims", len(list))
		}
		return err
	})
	for _, e := range p.history(events.TypeNodeClaimed) {
		require.True(t, events.IsDryRun(e))
	}
	never(t, 5*time.Second, "a container", func() bool { return len(containers(t, p.cluster)) > 0 })
	nodes, err := admin.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, n := range nodes.Items {
		require.False(t, n.Spec.Unschedulable, "%s is cordoned", n.Name)
	}
	require.Empty(t, p.history(events.TypeNodeCreated))

	// A real run on the same log does not take up what the dry run decided.
	p.stop()
	p.writeConfig(pool{Max: 4})
	p.start()
	waitRunning(t, ns, "web", 3, 120*time.Second)
	names, _ := ourNodes(t, p.cluster)
	require.Len(t, names, 3)
}
