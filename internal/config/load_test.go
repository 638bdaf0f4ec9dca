package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// minimal is the least that a configuration needs.
const minimal = `clusters:
  - name: home
    pools:
      - {name: sim, provider: simulated, max: 3, cpu: 1, memory: 1Gi}
`

func TestLoadReadsEveryKeyOfTheFullFile(t *testing.T) {
	t.Parallel()
	c, err := Load("testdata/full.yaml")
	require.NoError(t, err)

	home, ok := c.Cluster("home")
	require.True(t, ok)
	require.True(t, filepath.IsAbs(home.Kubeconfig), "paths are made absolute: %s", home.Kubeconfig)
	require.FileExists(t, home.TokenFile)
	workers, ok := home.Pool("workers")
	require.True(t, ok)
	require.Equal(t, CPU(2000), workers.CPU)
	require.Equal(t, Bytes(4<<30), workers.Memory)
	require.Equal(t, []Taint{{Key: "dedicated", Value: "batch", Effect: "NoSchedule"}}, workers.Taints)
	require.Equal(t, "k3s", workers.Docker.Network)
	ci, _ := home.Pool("ci")
	require.Equal(t, CPU(500), ci.CPU)
	require.Len(t, ci.Docker.Engines(), 2)
	require.FileExists(t, ci.Docker.Hosts[0].TLS.KeyFile)
	require.Equal(t, CPU(12000), *ci.Docker.Hosts[0].CPU)
	require.Equal(t, 3, ci.Docker.Hosts[1].MaxParallel)
	require.FileExists(t, ci.Docker.Hosts[1].SSH.KnownHostsFile)
	require.Equal(t, []Matcher{
		{Label: "alertname", Op: "=", Value: "QueueBacklog"},
		{Label: "severity", Op: "=~", Value: "warning|critical"},
	}, c.Decision.AlertRules[0].Match)
	require.NoError(t, c.CheckActing())
	_, ok = c.Cluster("elsewhere")
	require.False(t, ok)
	_, ok = home.Pool("elsewhere")
	require.False(t, ok)
}

func TestLoadFillsInTheDefaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := Parse("c.yaml", []byte(minimal), dir)
	require.NoError(t, err)
	p := c.Clusters[0].Pools[0]
	require.Equal(t, 2*time.Minute, p.RegisterDeadline.Std())
	require.Equal(t, 30*time.Second, p.Backoff.Initial.Std())
	require.Equal(t, 10*time.Minute, p.Backoff.Max.Std())
	require.Equal(t, time.Hour, p.Backoff.Reset.Std())
	require.Equal(t, 2*time.Minute, p.Drain.Deadline.Std())
	require.Equal(t, 0.5, p.ScaleDown.UtilizationThreshold) //nolint:testifylint // exact by construction
	require.Equal(t, 5*time.Minute, p.ScaleDown.Unneeded.Std())
	require.Equal(t, 110, p.MaxPods)
	require.Empty(t, p.StartupTaints)
	require.Equal(t, -10, c.Decision.ExpendableBelow, "as the cluster autoscaler's")
	require.Nil(t, p.Docker, "no settings of a provider that is not used")
	require.Equal(t, 10*time.Minute, c.Decision.StartupGrace.Std())
	require.Equal(t, 15*time.Minute, c.Alerting.Expiry.Std())
	require.Equal(t, "home", c.Alerting.DefaultCluster, "the only cluster is the default one")
	require.Equal(t, 50*time.Millisecond, c.Collector.BatchWindow.Std())
	require.Equal(t, 15*time.Minute, c.Collector.FullEvery.Std())
	require.Equal(t, filepath.Join(dir, "data/bus"), c.Bus.Embedded.Dir)
	require.Zero(t, c.Bus.Embedded.Sync.Interval())
	require.Equal(t, filepath.Join(dir, "data/audit.db"), c.Audit.SQLite.Path)
	require.Equal(t, "127.0.0.1:8080", c.API.Listen)
	require.Equal(t, Bytes(4<<20), c.API.Limits.BodyBytes)
	require.Equal(t, "info", c.Telemetry.LogLevel)
}

func TestAPoolOfDockerGetsItsDefaultsWithoutABlock(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte(`clusters:
  - name: home
    kubeconfig: in-cluster
    pools:
      - {name: w, provider: docker, max: 30, cpu: 1, memory: 1Gi}
`), t.TempDir())
	require.NoError(t, err)
	d := c.Clusters[0].Pools[0].Docker
	require.NotNil(t, d)
	require.Equal(t, []DockerHost{{Host: "unix:///var/run/docker.sock"}}, d.Engines())
	require.Equal(t, ImageAuto, d.Image)
	require.Equal(t, "missing", d.Pull)
	require.Equal(t, InCluster, c.Clusters[0].Kubeconfig)
}

func TestPolicyHoldsWhatDecisionReads(t *testing.T) {
	t.Parallel()
	c, err := Load("testdata/full.yaml")
	require.NoError(t, err)

	p := c.Policy("home")
	require.Len(t, p.Pools, 2)
	require.Equal(t, events.Resources{CPUMilli: 2000, MemoryBytes: 4 << 30, Pods: 110}, p.Pools[0].Size)
	require.Equal(t, 1, p.Pools[0].MaxRemovals, "10 % of 5, at least one")
	require.Equal(t, 2, p.Pools[1].MaxRemovals, "10 % of 20")
	require.Equal(t, []events.Taint{{Key: "dedicated", Value: "batch", Effect: "NoSchedule"}}, p.Pools[0].Taints)
	require.Equal(t, []events.Taint{{Key: "node.cilium.io/agent-not-ready", Value: "true", Effect: "NoExecute"}}, p.Pools[0].StartupTaints)
	require.Empty(t, p.Pools[1].StartupTaints)
	require.Equal(t, []events.PoolSchedule{
		{Name: "office-hours", Schedule: "0 8 * * 1-5", Duration: events.Duration(10 * time.Hour), Timezone: "Europe/Berlin", Min: new(2)},
		{Name: "release", Schedule: "0 9 1 * *", Duration: events.Duration(48 * time.Hour), Timezone: "UTC", Min: new(3), Max: new(10),
			Headroom: &events.Headroom{Percent: 20, Pod: events.Resources{CPUMilli: 200, MemoryBytes: 512 << 20}}},
	}, p.Pools[0].Schedules)
	require.Equal(t, &events.Headroom{Pods: 2, Pod: events.Resources{CPUMilli: 500, MemoryBytes: 1 << 30}}, p.Pools[0].Headroom)
	require.Nil(t, p.Pools[1].Headroom)
	require.Equal(t, 5*time.Minute, p.Pools[0].ReplaceUnreadyAfter.Std())
	require.Zero(t, p.Pools[1].ReplaceUnreadyAfter)
	require.Equal(t, 15*time.Minute, p.Pools[0].RepairAfter.Std())
	require.Equal(t, 10*time.Minute, p.Pools[1].RepairAfter.Std())
	require.Equal(t, 2*time.Hour, p.Pools[0].JobsDeadline.Std())
	require.Zero(t, p.Pools[1].JobsDeadline, "pods of Jobs are evicted like all others")
	require.Equal(t, []string{"force", "delete", "delete"}, []string{p.Pools[0].DrainOnDeadline, p.Pools[0].DrainLocalStorage, p.Pools[0].DrainUnmanaged})
	require.Empty(t, p.Pools[1].DrainOnDeadline+p.Pools[1].DrainLocalStorage+p.Pools[1].DrainUnmanaged, "the defaults are left out: the policy's digest stays")
	require.Empty(t, p.Pools[1].Schedules)
	require.Equal(t, int32(-10), *p.ExpendableBelow)
	require.Len(t, p.AlertRules, 1)
	require.Equal(t, events.Matcher{Label: "alertname", Op: "=", Value: "QueueBacklog"}, p.AlertRules[0].Matchers[0])
	require.Equal(t, []string{"home-server-0"}, p.ProtectedNodes)

	require.Empty(t, c.Policy("lab").AlertRules, "a rule for a pool of another cluster")
	require.Empty(t, c.Policy("elsewhere").Pools)

	_, err = events.New(events.Meta{Cluster: "home", Publisher: "app", ID: "1", Time: time.Unix(1, 0)},
		events.ConfigApplied{Digest: "d", Start: time.Unix(1, 0), Policy: p})
	require.NoError(t, err)
}

func TestDigestChangesWithThePolicyAndWithDryRun(t *testing.T) {
	t.Parallel()
	c, err := Load("testdata/full.yaml")
	require.NoError(t, err)
	a, err := Digest(c.Policy("home"), false)
	require.NoError(t, err)
	again, err := Digest(c.Policy("home"), false)
	require.NoError(t, err)
	dry, err := Digest(c.Policy("home"), true)
	require.NoError(t, err)
	c.Clusters[0].Pools[0].Max++
	other, err := Digest(c.Policy("home"), false)
	require.NoError(t, err)
	require.Equal(t, a, again)
	require.NotEqual(t, a, dry)
	require.NotEqual(t, a, other)
}

func TestReferencesAreResolvedButNeverShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "proxy"), []byte("http://user:hidden@proxy\n"), 0o600))
	text := `clusters:
  - name: ${env:CLUSTER}
    kubeconfig: in-cluster
    pools:
      - name: w
        provider: docker
        max: ${env:MAX}
        cpu: 1
        memory: 1Gi
        docker:
          env:
            PROXY: ${file:proxy}
            LITERAL: $${env:KEPT}-${env:CLUSTER}
`
	env := func(k string) (string, bool) {
		v, ok := map[string]string{"CLUSTER": "home", "MAX": "7"}[k]
		return v, ok
	}
	c, err := load("c.yaml", []byte(text), lookup{dir: dir, env: env}, false)
	require.NoError(t, err)
	require.Equal(t, "home", c.Clusters[0].Name)
	require.Equal(t, 7, c.Clusters[0].Pools[0].Max)
	require.Equal(t, "http://user:hidden@proxy", c.Clusters[0].Pools[0].Docker.Env["PROXY"])
	require.Equal(t, "${env:KEPT}-home", c.Clusters[0].Pools[0].Docker.Env["LITERAL"])
}

func TestShowFillsInDefaultsAndKeepsReferences(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SECRET_OF_TEST", "hidden")
	path := filepath.Join(dir, "c.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`clusters:
  - name: home
    kubeconfig: in-cluster
    pools:
      - {name: w, provider: docker, min: 1, max: 3, schedules: [{name: night, schedule: 0 20 * * *, duration: 10h, min: 0}, {name: noon, schedule: 0 12 * * *, duration: 1h, headroom: {pods: 0}}], headroom: {pods: 2, pod: {cpu: 100m}}, cpu: 1500m, memory: 1Gi, taints: ["a=b:NoExecute", "c:NoSchedule"], docker: {env: {A: "${env:SECRET_OF_TEST}"}}}
policy:
  alert_rules:
    - {name: r, match: ['alertname="X"'], pool: w, direction: up}
`), 0o600))
	out, err := Show(path)
	require.NoError(t, err)
	require.NotContains(t, string(out), "hidden")
	require.Contains(t, string(out), "${env:SECRET_OF_TEST}")
	require.Contains(t, string(out), "register_deadline: 2m0s")
	require.Contains(t, string(out), "cpu: 1500m")

	again, err := Parse("shown.yaml", out, dir)
	require.NoError(t, err, "what is shown is a valid configuration:\n%s", out)
	first, err := Load(path)
	require.NoError(t, err)
	require.Equal(t, first.Policy("home"), again.Policy("home"))

	_, err = Show(filepath.Join(dir, "missing.yaml"))
	require.ErrorContains(t, err, "read configuration")
	require.NoError(t, os.WriteFile(path, []byte("clusters: 3"), 0o600))
	_, err = Show(path)
	require.ErrorContains(t, err, "clusters")
}

func TestAliasesAndMergeKeysAreFollowed(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte(`clusters:
  - name: home
    pools:
      - &base
        name: a
        provider: simulated
        max: 3
        cpu: 1
        memory: &size 1Gi
      - <<: *base
        name: b
        memory: *size
`), t.TempDir())
	require.NoError(t, err)
	require.Equal(t, "b", c.Clusters[0].Pools[1].Name)
	require.Equal(t, 3, c.Clusters[0].Pools[1].Max)
}

func TestTheExpendableCutoffCanBeZeroAndLow(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int32{"0": 0, "-2147483648": -2147483648, "1000000000": 1000000000} {
		c, err := Parse("c.yaml", []byte(minimal+"policy: {expendable_pods_priority_cutoff: "+text+"}"), t.TempDir())
		require.NoError(t, err)
		require.Equal(t, want, *c.Policy("home").ExpendableBelow)
	}
}

func TestAPolicyIsReadWhereTheFilesOfItsConfigurationAreNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.yaml")
	text := "clusters: [{name: home, kubeconfig: reader.kubeconfig, token_file: join.token, pools: [{name: a, provider: docker, max: 3, cpu: 1, memory: 1Gi}]}]\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := Load(path)
	require.ErrorContains(t, err, "reader.kubeconfig can't be read")
	c, err := LoadPolicy(path)
	require.NoError(t, err)
	require.Equal(t, 3, c.Policy("home").Pools[0].Max)
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(text, "max: 3", "max: many", 1)), 0o600))
	_, err = LoadPolicy(path)
	require.ErrorContains(t, err, "many")
	_, err = LoadPolicy(filepath.Join(t.TempDir(), "nowhere.yaml"))
	require.ErrorContains(t, err, "can't be read")
}

func TestABatchWindowOfZeroIsNotTheDefault(t *testing.T) {
	t.Parallel()
	for _, zero := range []string{"0", "0s"} {
		c, err := Parse("c.yaml", []byte(minimal+"collector: {batch_window: "+zero+"}\n"), t.TempDir())
		require.NoError(t, err)
		require.Zero(t, c.Collector.BatchWindow)
	}
}
