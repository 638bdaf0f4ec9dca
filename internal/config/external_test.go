package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// withPools is a file whose pools are these lines.
func withPools(pools ...string) string {
	return "clusters:\n  - name: home\n    kubeconfig: in-cluster\n    actor_kubeconfig: in-cluster\n    pools:\n" + strings.Join(pools, "\n") + "\n"
}

const grpcPool = "      - {name: cloud, provider: externalgrpc, max: 3, cpu: 1, memory: 1Gi, externalgrpc: {address: 'provider:8086', node_group: workers}}"

func TestPoolOfAnOutsideProviderNeedsNoJoinToken(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte(withPools(grpcPool)), t.TempDir())
	require.NoError(t, err)
	require.NoError(t, c.CheckRun())
	g := c.Clusters[0].Pools[0].ExternalGRPC
	require.Equal(t, "30s", g.Timeout.String())
	var texts []string
	for _, w := range c.Warnings() {
		texts = append(texts, w.String())
	}
	require.Contains(t, strings.Join(texts, "\n"), "whoever reaches this port makes and deletes nodes")
}

func TestSettingsOfAnOutsideProviderAreChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ pool, want string }{
		"no block":      {"      - {name: cloud, provider: externalgrpc, max: 3, cpu: 1, memory: 1Gi}", "its address and node_group"},
		"other's block": {strings.Replace(grpcPool, "provider: externalgrpc", "provider: simulated", 1), "settings of externalgrpc in a pool of provider"},
		"no group":      {strings.Replace(grpcPool, ", node_group: workers", "", 1), "externalgrpc.node_group: is missing"},
		"no port":       {strings.Replace(grpcPool, "provider:8086", "provider", 1), "externalgrpc.address: is \"provider\""},
		"long timeout":  {strings.Replace(grpcPool, "node_group: workers", "node_group: workers, timeout: 5m", 1), "at most 1m0s"},
		"group twice":   {grpcPool + "\n" + strings.Replace(grpcPool, "name: cloud", "name: other", 1), "which pool cloud has"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			require.Contains(t, strings.Join(all(t, withPools(c.pool)), "\n"), c.want)
		})
	}
}
