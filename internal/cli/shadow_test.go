package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func candidateShadow() api.Shadow {
	return api.Shadow{ID: "7s1qk2", Cluster: "home", Digest: "9c1f0a7be2d4665500", File: "candidate.yaml", Actor: "ada@k", Reason: "two more nodes at noon?", StartedAt: t0.Add(-3 * time.Hour),
		ComparedSince: t0.Add(-3 * time.Hour), ComparedUntil: t0.Add(-2 * time.Second), Evaluations: 2160, Differing: 57, Differences: 3, Open: 1,
		ShadowTotals: api.ShadowTotals{Added: 2, Removed: 1, Held: 1}}
}

func TestShadowStartSendsThePolicyOfAFile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	require.NoError(t, os.WriteFile(good, []byte("clusters: [{name: home, kubeconfig: /elsewhere/kc, token_file: /elsewhere/join,\n  pools: [{name: w, provider: docker, max: 4, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	require.NoError(t, os.WriteFile(bad, []byte("clusters:\n  - name: home\n    pools:\n      - {name: w, provider: docker, min: 5, max: 1, cpu: 1, memory: 1Gi}\n"), 0o600))
	b.answers["/v1/shadows/start"] = api.ShadowStarted{ID: "7s1qk2", Cluster: "home", Digest: "9c1f0a7be2d4665500", NewPools: []string{"gpu"}, Gone: []string{"ci"}, Replaced: "older"}
	golden(t, "shadow-start", b.ok(t, "shadow", "start", good, "--reason", "two more nodes at noon?"))
	require.Len(t, b.shadows, 1)
	sent := b.shadows[0]
	require.Contains(t, sent["config"], `"max":4`)
	require.NotContains(t, sent["config"], "elsewhere")
	require.Equal(t, good, sent["file"])
	require.Equal(t, "ada", sent["actor"])
	require.NotEmpty(t, sent["key"])

	require.Equal(t, ExitUsage, b.run("shadow", "start", bad))
	require.Contains(t, b.stderr.String(), "bad.yaml:4:")
	require.Contains(t, b.stderr.String(), "min is 5, larger than max (1)")
	require.Len(t, b.shadows, 1)
}

func TestShadowDiffShowsBothSides(t *testing.T) {
	t.Parallel()
	b := setup(t)
	up := &events.Decision{Verdict: "up", Delta: 2, Reason: reason("UnschedulablePods", "2 pods need 2 nodes: pods fit on no node that exists or is on its way"), Max: 5}
	atMax := &events.Decision{Verdict: "held", Reason: reason("AtMax", "2 pods need nodes, and pool burst has 2 nodes of at most 2"), Max: 2,
		Guards: []events.GuardResult{{Guard: "max", Message: "pool burst has 2 nodes, claims in flight and leaving nodes included, of at most 2"}}}
	down := &events.Decision{Verdict: "down", Delta: -1, Nodes: []string{"burst-0a1b2c3d4e"}, Reason: reason("Unneeded", "node burst-0a1b2c3d4e uses 12% of its capacity")}
	young := &events.Decision{Verdict: "held", Reason: reason("UnneededTime", "node burst-0a1b2c3d4e became unneeded less than 5m0s ago")}
	d := api.ShadowDiff{Shadow: candidateShadow(), ShadowTotals: api.ShadowTotals{Added: 2, Removed: 1, Held: 1}, Other: 1, Differences: []api.ShadowDifference{
		{ID: "d1", Pool: "burst", Effect: "remove", Nodes: 1, Since: t0.Add(-2 * time.Hour), Until: t0.Add(-116 * time.Minute), Candidate: down, Live: young},
		{ID: "d2", Pool: "ci", Effect: "hold", Nodes: 1, Since: t0.Add(-time.Hour), Until: t0.Add(-59 * time.Minute), Candidate: young, Live: down},
		{ID: "d3", Pool: "ci", Effect: "other", Since: t0.Add(-50 * time.Minute), Until: t0.Add(-49 * time.Minute), Candidate: down, Live: down},
		{ID: "d4", Pool: "burst", Effect: "add", Nodes: 2, Since: t0.Add(-10 * time.Minute), Candidate: up, Live: atMax},
	}}
	b.answers["/v1/shadows/diff"] = d
	golden(t, "shadow-diff", b.ok(t, "shadow", "diff"))
	require.Contains(t, b.ok(t, "shadow", "diff", "--since", "2h", "--cluster", "home", "-o", "yaml"), "effect: remove")
	require.Contains(t, b.asked, "/v1/shadows/diff?cluster=home&since=2h")

	for range 10 {
		d.Differences = append(d.Differences, d.Differences[0])
	}
	d.Since = t0.Add(-4 * time.Hour)
	b.answers["/v1/shadows/diff"] = d
	text := b.ok(t, "shadow", "diff")
	require.Contains(t, text, "14 differences since 2025-03-01 08:00:00")
	require.Contains(t, text, "Why, of the last 10 (-o json has all)")

	s := candidateShadow()
	s.Waiting = "the shadow has not taken it up: does a process run the role shadow?"
	b.answers["/v1/shadows/diff"] = api.ShadowDiff{Shadow: s, Differences: []api.ShadowDifference{}}
	text = b.ok(t, "shadow", "diff")
	require.Contains(t, text, "Nothing is compared yet")
	require.Contains(t, text, "no differences")
}

func TestShadowPromoteAndStopNameTheOneThatThereIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/shadows"] = api.Page[api.Shadow]{Items: []api.Shadow{candidateShadow()}}
	b.answers["/v1/shadows/promote"] = api.ShadowEnded{Shadow: "7s1qk2", Cluster: "home", Digest: "9c1f0a7be2d4665500", File: "candidate.yaml", Replaced: "77aa00bb11cc22dd", AheadOfFile: true}
	golden(t, "shadow-promote", b.ok(t, "shadow", "promote", "--reason", "a day without surprises"))
	require.Equal(t, map[string]string{"path": "/v1/shadows/promote", "shadow": "7s1qk2", "cluster": "home", "actor": "ada", "reason": "a day without surprises"}, b.shadows[0])
	b.answers["/v1/shadows/stop"] = api.ShadowEnded{Shadow: "7s1qk2", Cluster: "home", Digest: "9c1f0a7be2d4665500"}
	require.Contains(t, b.ok(t, "shadow", "stop"), "stopped: the candidate (9c1f0a7be2d4)")
	require.Equal(t, ExitUsage, b.run("shadow", "promote"))
	require.Equal(t, ExitUsage, b.run("shadow", "promote", "--reason", " "))

	other := candidateShadow()
	other.Cluster = "lab"
	b.answers["/v1/shadows"] = api.Page[api.Shadow]{Items: []api.Shadow{candidateShadow(), other}}
	require.Equal(t, ExitUsage, b.run("shadow", "stop"))
	require.Contains(t, b.stderr.String(), "several clusters have a candidate policy (home, lab)")
	b.answers["/v1/shadows"] = api.Page[api.Shadow]{}
	require.Equal(t, ExitFailure, b.run("shadow", "stop"))
	require.Contains(t, b.stderr.String(), "no candidate policy is judged")
	require.Len(t, b.shadows, 2)
}

func TestStatusSaysThatAShadowRunsAndThatThePolicyIsPromoted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := candidateShadow()
	b.answers["/v1/clusters"] = api.Page[api.Cluster]{Items: []api.Cluster{{Name: "home", Nodes: 3, ReadyNodes: 3, SnapshotAt: t0, Shadow: &s,
		Promoted: &api.Promoted{Actor: "bob@k", Reason: "noon is covered", File: "noon.yaml"}}}}
	b.answers["/v1/pools"] = api.Page[api.Pool]{Items: []api.Pool{{Cluster: "home", Name: "burst", Max: 2, Size: 1}}}
	golden(t, "status-shadow", b.ok(t, "status"))
	s.Waiting, s.Differences = "it begins with decision's next checkpoint", 0
	require.Contains(t, b.ok(t, "status"), "nothing is compared yet")
}

func TestADifferenceIsALineOfTheLog(t *testing.T) {
	t.Parallel()
	e := happened(t, events.Meta{}, events.ShadowDecided{Shadow: "s", Difference: "d", Pool: "burst", Effect: events.EffectAdd, Nodes: 2, Since: t0,
		Candidate: &events.Decision{Reason: reason("UnschedulablePods", "2 pods need 2 nodes")}, Live: &events.Decision{Reason: reason("AtMax", "it is full")}})
	require.Equal(t, "burst · the candidate would add 2 nodes: 2 pods need 2 nodes; in force: it is full", parse(e).what)
	e = happened(t, events.Meta{}, events.ShadowDecided{Shadow: "s", Difference: "d", Pool: "burst", Effect: events.EffectNone, Since: t0})
	require.True(t, strings.HasSuffix(parse(e).what, "agrees again"))
}
