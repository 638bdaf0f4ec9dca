package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// writeFile makes a configuration file in a folder where nothing else is.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "candidate.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestACandidateCarriesThePolicyAndNothingElse(t *testing.T) {
	t.Setenv("MAX", "7")
	text := `clusters:
  - name: home
    kubeconfig: /elsewhere/kubeconfig
    actor_kubeconfig: /elsewhere/actor
    server_url: https://k3s:6443
    token_file: /elsewhere/join-token
    prometheus: {url: "https://elsewhere:9090", timeout: 3s, username: secret, password_file: /elsewhere/password}
    pools:
      - name: workers
        provider: docker
        min: 0
        max: ${env:MAX}
        cpu: 1500m
        memory: 4Gi
        price: 0.25
        labels: {tier: batch, number: "1.0", odd: "null"}
        taints: ["dedicated=ci:NoSchedule"]
        headroom: {pods: 2}
        schedules: [{name: night, schedule: "0 22 * * *", duration: 8h, max: 0}]
        scale_down: {utilization_threshold: 0, flap: {count: 0}, budgets: [{nodes: 10%}]}
        docker: {image: "secret/registry:tag", env: {PASSWORD: hunter2}}
      - {name: none, provider: simulated, max: 0, cpu: 1, memory: 1Gi}
policy:
  alert_rules: [{name: queue, match: ['alertname="Queue<>Backlog"'], pool: workers, direction: up}]
  metric_rules:
    - {name: backlog, pool: workers, query: "sum(queue) < bool 3", interval: 10s, threshold: {at_least: 0, delta: 1}}
    - {name: pushed, pool: workers, signal: depth, scale_down: true, scale_up: false, fixed: 0}
  expendable_pods_priority_cutoff: 0
  max_unready_count: 0
api: {token_files: [/elsewhere/api.token]}
`
	path := writeFile(t, text)
	_, err := Load(path)
	require.ErrorContains(t, err, "can't be read", "here it can't run")
	sent, err := Candidate(path)
	require.NoError(t, err)
	for _, secret := range []string{"elsewhere", "hunter2", "secret", "6443"} {
		require.NotContains(t, string(sent), secret)
	}
	c, err := ParseCandidate("candidate.yaml", sent)
	require.NoError(t, err)

	// What decisions follow is the file's to the last byte.
	whole, err := load(path, []byte(text), lookup{dir: filepath.Dir(path), env: os.LookupEnv, apart: true}, false)
	require.NoError(t, err)
	require.Equal(t, whole.Policy("home"), c.Policy("home"))
	want, err := Digest(whole.Policy("home"), false)
	require.NoError(t, err)
	got, err := Digest(c.Policy("home"), false)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, 7, c.Policy("home").Pools[0].Max)
}

func TestTheFullFileIsTheSameAsACandidate(t *testing.T) {
	t.Parallel()
	c, err := Load("testdata/full.yaml")
	require.NoError(t, err)
	sent, err := Candidate("testdata/full.yaml")
	require.NoError(t, err)
	got, err := ParseCandidate("full.yaml", sent)
	require.NoError(t, err)
	for _, cl := range c.Clusters {
		require.Equal(t, c.Policy(cl.Name), got.Policy(cl.Name))
	}
}

func TestACandidateIsCheckedAsStrictlyAsAConfiguration(t *testing.T) {
	t.Parallel()
	_, err := Candidate(writeFile(t, `clusters:
  - name: home
    pools:
      - {name: sim, provider: simulated, min: 4, max: 3, cpu: 1, memory: 1Gi, colour: red}
`))
	require.ErrorContains(t, err, "min is 4, larger than max (3)")
	require.ErrorContains(t, err, "candidate.yaml:4:")
	require.ErrorContains(t, err, "unknown key")
	_, err = Candidate("testdata/absent.yaml")
	require.ErrorContains(t, err, "can't be read")
}

func TestACandidateFromAnybodyReadsNothingOfThisMachine(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"${env:HOME}", "${file:/etc/hostname}"} {
		_, err := ParseCandidate("request", []byte(`{"clusters":[{"name":"home","kubeconfig":"in-cluster","pools":[{"name":"a","provider":"simulated","max":3,"cpu":"1","memory":"1Gi","labels":{"x":"`+value+`"}}]}]}`))
		require.ErrorContains(t, err, "write the value itself")
		require.NotContains(t, err.Error(), os.Getenv("HOME")+"/")
	}
	c, err := ParseCandidate("request", []byte(`{"clusters":[{"name":"home","kubeconfig":"/etc/shadow","token_file":"/nowhere","pools":[{"name":"a","provider":"docker","max":3,"cpu":"1","memory":"1Gi"}]}]}`))
	require.NoError(t, err, "it is not looked whether files are here")
	require.Equal(t, 3, c.Policy("home").Pools[0].Max)
}

func TestTheDigestOfATextIsThatOfTheFile(t *testing.T) {
	t.Parallel()
	a, err := Parse("a.yaml", []byte(minimal), t.TempDir())
	require.NoError(t, err)
	b, err := Parse("b.yaml", []byte(minimal), t.TempDir())
	require.NoError(t, err)
	other, err := Parse("a.yaml", []byte(minimal+"# a comment\n"), t.TempDir())
	require.NoError(t, err)
	require.Len(t, a.TextDigest(), 64)
	require.Equal(t, a.TextDigest(), b.TextDigest())
	require.NotEqual(t, a.TextDigest(), other.TextDigest())
	require.Empty(t, (&Config{}).TextDigest())
}
