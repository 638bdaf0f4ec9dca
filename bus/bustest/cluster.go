package bustest

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// clusterSize is how many servers a cluster has.
const clusterSize = 3

// Cluster starts three NATS servers that form a cluster in this process, and
// returns them when they take streams. They end with the test.
func Cluster(t testing.TB) []*server.Server {
	t.Helper()
	var servers []*server.Server
	for _, o := range ClusterOptions(t) {
		servers = append(servers, StartServer(t, o))
	}
	require.Eventually(t, func() bool {
		for _, s := range servers {
			if !s.JetStreamIsCurrent() || s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) < clusterSize {
				return false
			}
		}
		return true
	}, Patience, 20*time.Millisecond, "the servers form a cluster")
	return servers
}

// ClusterOptions are those of the servers of a cluster, for a test that starts
// them one by one.
func ClusterOptions(t testing.TB) []*server.Options {
	t.Helper()
	ports, err := freeport.Take(2 * clusterSize)
	require.NoError(t, err)
	clients, routes := ports[:clusterSize], ports[clusterSize:]
	out := make([]*server.Options, clusterSize)
	for i := range out {
		o := &server.Options{
			ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: clients[i], JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoSigs: true, NoLog: true,
			Cluster: server.ClusterOpts{Name: "bustest", Host: "127.0.0.1", Port: routes[i]},
		}
		for j, port := range routes {
			if j != i {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
			}
		}
		out[i] = o
	}
	return out
}

// StartServer starts a server, which ends with the test.
func StartServer(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	s, err := server.NewServer(o)
	require.NoError(t, err)
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	s.Start()
	require.True(t, s.ReadyForConnections(Patience))
	return s
}
