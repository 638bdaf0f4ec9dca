package kube_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: default
clusters: [{name: default, cluster: {server: "https://k3s.lan:6443"}}]
users: [{name: default, user: {token: secret}}]
contexts: [{name: default, context: {cluster: default, user: default}}]
`

func TestLoadGivesAClientThatDoesNotThrottleADrainAndKeepsItsWatches(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(kubeconfig), 0o600))
	c, err := kube.Load(path)
	require.NoError(t, err)
	require.Equal(t, "https://k3s.lan:6443", c.Host)
	require.Equal(t, kube.UserAgent, c.UserAgent)
	require.InDelta(t, kube.DefaultQPS, c.QPS, 0)
	require.Equal(t, kube.DefaultBurst, c.Burst)
	require.Zero(t, c.Timeout)
	_, err = kube.NewClient(c)
	require.NoError(t, err)
	_, err = kube.NewMetricsClient(c)
	require.NoError(t, err)
}

func TestLoadNamesTheFileAndTheRemedy(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, tt := range map[string]struct{ path, file, remedy string }{
		"missing":              {filepath.Join(dir, "none"), "none", "/etc/rancher/k3s/k3s.yaml"},
		"no YAML":              {write("broken", "\t{"), "broken", "not valid"},
		"context that is none": {write("context", "apiVersion: v1\nkind: Config\ncurrent-context: other\n"), "context", "current-context"},
		"not in a cluster":     {"", "", "clusters[].kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kube.Load(tt.path)
			require.ErrorContains(t, err, tt.file)
			require.ErrorContains(t, err, tt.remedy)
		})
	}
}

func TestARefusedEvictionReachesTheCallerAtOnce(t *testing.T) {
	t.Parallel()
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", "10")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"TooManyRequests","code":429,
			"message":"Cannot evict pod as it would violate the pod's disruption budget.",
			"details":{"retryAfterSeconds":10,"causes":[{"reason":"DisruptionBudget","message":"The disruption budget web is still being processed by the server."}]}}`))
	}))
	t.Cleanup(server.Close)
	client, err := kube.NewClient(&rest.Config{Host: server.URL})
	require.NoError(t, err)
	a, err := kube.NewActor(client, kube.Options{})
	require.NoError(t, err)

	err = a.Evict(context.Background(), "shop", "web-1", "u1")
	var blocked *kube.EvictionBlocked
	require.ErrorAs(t, err, &blocked)
	require.Equal(t, "shop/web", blocked.PDB)
	require.Equal(t, 10*time.Second, blocked.RetryAfter)
	require.Equal(t, 1, calls)
}
