//go:build e2e

package e2e

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
)

// natsServer is an external NATS server that a test may stop and start.
type natsServer struct {
	t    *testing.T
	dir  string
	port int
	url  string
	ns   *server.Server
}

func startNATS(t *testing.T) *natsServer {
	t.Helper()
	_, port, err := net.SplitHostPort(freeAddress(t))
	require.NoError(t, err)
	n := &natsServer{t: t, dir: t.TempDir(), url: "nats://127.0.0.1:" + port}
	n.port, err = strconv.Atoi(port)
	require.NoError(t, err)
	n.start()
	t.Cleanup(n.stop)
	return n
}

func (n *natsServer) start() {
	n.t.Helper()
	var err error
	n.ns, err = server.NewServer(&server.Options{Host: "127.0.0.1", Port: n.port, JetStream: true, StoreDir: n.dir, SyncAlways: true, NoSigs: true, NoLog: true})
	require.NoError(n.t, err)
	n.ns.Start()
	require.True(n.t, n.ns.ReadyForConnections(20*time.Second), "NATS is not ready")
}

func (n *natsServer) stop() {
	if n.ns != nil {
		n.ns.Shutdown()
		n.ns.WaitForShutdown()
		n.ns = nil
	}
}
