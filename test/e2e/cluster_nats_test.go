//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// natsServerConfig is set in the environment of a copy of this test binary that
// is a NATS server: one in the test's own process could not be killed.
const natsServerConfig = "K3S_AUTOSCALER_E2E_NATS_SERVER"

// natsAdmin is the user that makes the streams.
const natsAdmin = "admin"

// serveNATS is the whole life of such a server; its exit code.
func serveNATS(config string) int {
	o, err := server.ProcessConfigFile(config)
	if err != nil {
		fmt.Fprintf(os.Stderr, "NATS server: %v\n", err)
		return 1
	}
	s, err := server.NewServer(o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "NATS server: %v\n", err)
		return 1
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
	return 0
}

// natsCluster is three NATS servers as docs/nats.md sets them up: TLS between all
// of them, and one user for each role.
type natsCluster struct {
	t       *testing.T
	dir     string // certificates, users, secrets
	url     string
	servers map[string]*clusterServer
	admin   jetstream.JetStream
}

type clusterServer struct {
	monitor string // URL
	log     string // file
	cmd     *exec.Cmd
	exited  chan struct{}
}

// startNATSCluster returns when the three servers have found each other.
func startNATSCluster(t *testing.T) *natsCluster {
	t.Helper()
	sayWhere(t)
	const size = 3
	n := &natsCluster{t: t, dir: t.TempDir(), servers: map[string]*clusterServer{}}
	n.writeCertificates()
	n.writeUsers()
	addresses := freeAddresses(t, 3*size)
	clients, routes, monitors := addresses[:size], addresses[size:2*size], addresses[2*size:]
	n.url = "tls://" + strings.Join(clients, ",tls://")
	for i := range size {
		name := fmt.Sprintf("nats-%d", i)
		n.servers[name] = &clusterServer{monitor: "http://" + monitors[i], log: n.file(name + ".log")}
		n.write(name+".conf", fmt.Sprintf(`server_name: %[1]s
listen: %[2]q
http: %[3]q
log_file: %[1]s.log
include ./users.conf
tls { cert_file: server.pem, key_file: server.key, ca_file: ca.pem }
jetstream { store_dir: %[1]s, sync_interval: always }
cluster {
  name: k3s-autoscaler
  listen: %[4]q
  tls { cert_file: server.pem, key_file: server.key, ca_file: ca.pem }
  routes: ["nats-route://%[5]s"]
}
`, name, clients[i], monitors[i], routes[i], strings.Join(routes, `", "nats-route://`)))
		n.start(name)
	}
	t.Cleanup(n.stop)
	for name := range n.servers {
		eventually(t, 60*time.Second, name+" knows its two peers and a leader", func() error { return n.complete(name, size) })
	}
	password, err := os.ReadFile(n.file(natsAdmin + ".password"))
	require.NoError(t, err)
	nc, err := nats.Connect(n.url, nats.UserInfo(natsAdmin, string(password)), nats.RootCAs(n.file("ca.pem")), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	n.admin, err = jetstream.New(nc)
	require.NoError(t, err)
	return n
}

func (n *natsCluster) file(name string) string { return filepath.Join(n.dir, name) }

func (n *natsCluster) write(name, text string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(n.file(name), []byte(text), 0o600))
}

// writeCertificates makes an authority, and a certificate that the servers show
// to clients and to each other.
func (n *natsCluster) writeCertificates() {
	t := n.t
	t.Helper()
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := template("nats-ca", 1)
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	require.NoError(t, err)
	n.write("ca.pem", block("CERTIFICATE", der))

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := template("nats", 2)
	cert.IPAddresses, cert.KeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err = x509.CreateCertificate(rand.Reader, cert, ca, &key.PublicKey, caKey)
	require.NoError(t, err)
	n.write("server.pem", block("CERTIFICATE", der))
	der, err = x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	n.write("server.key", block("PRIVATE KEY", der))
}

// writeUsers gives each role a user with the permissions that the product prints
// for it: draining has an NKey, the others a password.
func (n *natsCluster) writeUsers() {
	t := n.t
	t.Helper()
	permissions, err := exec.Command(binary, "bus", "permissions").Output()
	require.NoError(t, err)
	n.write("permissions.conf", string(permissions))
	users := "include ./permissions.conf\nauthorization { users: [\n"
	for _, name := range append([]string{natsAdmin}, app.Roles()...) {
		var login, may string
		if name != natsAdmin {
			may = ", permissions: $K3SAS_" + strings.ToUpper(name)
		}
		if name == app.RoleDraining {
			pair, err := nkeys.CreateUser()
			require.NoError(t, err)
			seed, err := pair.Seed()
			require.NoError(t, err)
			n.write(name+".nk", string(seed))
			login, err = pair.PublicKey()
			require.NoError(t, err)
			login = "nkey: " + login
		} else {
			password := rand.Text()
			n.write(name+".password", password)
			login = fmt.Sprintf("user: %s, password: %s", name, password)
		}
		users += fmt.Sprintf("  {%s%s}\n", login, may)
	}
	n.write("users.conf", users+"] }\n")
}

// busConfig is the part bus: of the configuration of a role's process.
func (n *natsCluster) busConfig(role string) string {
	login := fmt.Sprintf("user: %s\n  password_file: %s", role, n.file(role+".password"))
	if role == app.RoleDraining {
		login = "nkey_file: " + n.file(role+".nk")
	}
	return fmt.Sprintf("bus:\n  url: %s\n  %s\n  tls: {ca_file: %s}\n  replicas: 3\n  provisioned: %t\n",
		n.url, login, n.file("ca.pem"), role != natsAdmin)
}

func (n *natsCluster) start(name string) {
	n.t.Helper()
	s := n.servers[name]
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Dir = n.dir
	s.cmd.Env = append(os.Environ(), natsServerConfig+"="+name+".conf")
	s.cmd.Stdout, s.cmd.Stderr = os.Stderr, os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(n.t, s.cmd.Start())
	s.exited = make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(s.exited) }()
}

// kill ends a server without a word; it stays dead.
func (n *natsCluster) kill(name string) {
	n.t.Helper()
	s := n.servers[name]
	require.NotNil(n.t, s, "server %q", name)
	require.NoError(n.t, s.cmd.Process.Kill())
	<-s.exited
}

func (n *natsCluster) stop() {
	for name, s := range n.servers {
		_ = s.cmd.Process.Kill()
		<-s.exited
		showLog(n.t, name, s.log, 10)
	}
}

// complete asks a server for the group that places streams.
func (n *natsCluster) complete(name string, size int) error {
	s := n.servers[name]
	select {
	case <-s.exited:
		b, _ := os.ReadFile(s.log)
		n.t.Fatalf("%s ended: %s\n%s", name, s.cmd.ProcessState, b)
	default:
	}
	resp, err := patient.Get(s.monitor + "/jsz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var js server.JSInfo
	if err := json.NewDecoder(resp.Body).Decode(&js); err != nil {
		return err
	}
	if m := js.Meta; m == nil || m.Leader == "" || m.Size != size {
		return fmt.Errorf("its cluster is %+v", m)
	}
	return nil
}

// leader names the server that leads a stream.
func (n *natsCluster) leader(stream string) string {
	n.t.Helper()
	info := n.info(stream)
	require.NotNil(n.t, info.Cluster)
	require.NotEmpty(n.t, info.Cluster.Leader, "stream %s has no leader", stream)
	return info.Cluster.Leader
}

func (n *natsCluster) info(stream string) *jetstream.StreamInfo {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := n.admin.Stream(ctx, stream)
	require.NoError(n.t, err)
	return s.CachedInfo()
}

// consumer asks for a durable consumer of a stream.
func (n *natsCluster) consumer(stream, name string) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := n.admin.Consumer(ctx, stream, name)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", name, err)
	}
	return c.CachedInfo(), nil
}

// freeAddresses are different from each other.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	ports, err := freeport.Take(n)
	require.NoError(t, err)
	out := make([]string, n)
	for i, port := range ports {
		out[i] = "127.0.0.1:" + strconv.Itoa(port)
	}
	return out
}
