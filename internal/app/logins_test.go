package app

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// authority signs certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert = a.template("authority")
	a.cert.IsCA, a.cert.KeyUsage = true, x509.KeyUsageCertSign
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.sign("ca", a.cert, a.key)
	return a
}

func (a *authority) template(name string) *x509.Certificate {
	a.n++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

func (a *authority) sign(name string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	require.NoError(a.t, err)
	a.write(name+".pem", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	a.write(name+".key", "PRIVATE KEY", der)
}

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	require.NoError(a.t, os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue makes a certificate for both ends of a connection to this machine.
func (a *authority) issue(name string) *config.ClientTLS {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	cert := a.template(name)
	cert.IPAddresses, cert.KeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	a.sign(name, cert, key)
	return &config.ClientTLS{CAFile: a.file("ca.pem"), CertFile: a.file(name + ".pem"), KeyFile: a.file(name + ".key")}
}

// serve starts a NATS server with a configuration file in dir, where it may
// include others.
func serve(t *testing.T, dir, conf string) *server.Server {
	t.Helper()
	file := filepath.Join(dir, "nats.conf")
	require.NoError(t, os.WriteFile(file, []byte(conf), 0o600))
	o, err := server.ProcessConfigFile(file)
	require.NoError(t, err, "the server reads what was written")
	o.NoLog, o.NoSigs = true, true
	s, err := server.NewServer(o)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(20*time.Second))
	return s
}

// login opens the bus as a process with that configuration does, and uses it.
func login(t *testing.T, c config.Bus) error {
	t.Helper()
	o := busOptions(c, Options{Logger: slog.New(slog.DiscardHandler), Times: bustest.Times()})
	o.MaxBytes = 64 << 20
	b, err := bus.Open(t.Context(), o)
	if err != nil {
		return err
	}
	defer func() { require.NoError(t, b.Close()) }()
	e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "collector", ID: "e", Time: time.Now()},
		events.NodeObserved{Node: "n1", What: events.ObservedReady, At: time.Now()})
	require.NoError(t, err)
	return b.Publish(t.Context(), e)
}

func TestACertificateIsALogin(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t), newAuthority(t)
	srv := ours.issue("server")
	s := serve(t, t.TempDir(), fmt.Sprintf(`listen: "127.0.0.1:-1"
jetstream { store_dir: %q }
tls { cert_file: %q, key_file: %q, ca_file: %q, verify_and_map: true }
authorization { users: [ {user: "CN=autoscaler"} ] }
`, t.TempDir(), srv.CertFile, srv.KeyFile, srv.CAFile))
	known := ours.issue("autoscaler")
	require.NoError(t, login(t, config.Bus{URL: s.ClientURL(), TLS: known}))
	stranger := others.issue("autoscaler")
	stranger.CAFile = known.CAFile
	for what, c := range map[string]struct {
		tls *config.ClientTLS
		why string
	}{
		"no certificate":                    {&config.ClientTLS{CAFile: known.CAFile}, "the server refuses the certificate of this process, or wants one and got none"},
		"one of another authority":          {stranger, "the server refuses the certificate of this process"},
		"one for which there is no user":    {ours.issue("nobody"), "Authorization Violation"},
		"the server is another authority's": {&config.ClientTLS{CAFile: others.file("ca.pem"), CertFile: known.CertFile, KeyFile: known.KeyFile}, "signed by unknown authority"},
	} {
		require.ErrorContains(t, login(t, config.Bus{URL: s.ClientURL(), TLS: c.tls}), c.why, what)
	}
}

func TestACredentialsFileIsALogin(t *testing.T) {
	t.Parallel()
	operator, account, system, stranger := pair(t, nkeys.CreateOperator), pair(t, nkeys.CreateAccount), pair(t, nkeys.CreateAccount), pair(t, nkeys.CreateAccount)
	st, err := jwt.NewAccountClaims(public(t, system)).Encode(operator)
	require.NoError(t, err)
	oc := jwt.NewOperatorClaims(public(t, operator))
	ot, err := oc.Encode(operator)
	require.NoError(t, err)
	ac := jwt.NewAccountClaims(public(t, account))
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	at, err := ac.Encode(operator)
	require.NoError(t, err)
	s := serve(t, t.TempDir(), fmt.Sprintf(`listen: "127.0.0.1:-1"
jetstream { store_dir: %q }
operator: %q
system_account: %s
resolver: MEMORY
resolver_preload: { %s: %q, %s: %q }
`, t.TempDir(), ot, public(t, system), public(t, system), st, public(t, account), at))
	creds := func(by nkeys.KeyPair) string {
		user := pair(t, nkeys.CreateUser)
		ut, err := jwt.NewUserClaims(public(t, user)).Encode(by)
		require.NoError(t, err)
		seed, err := user.Seed()
		require.NoError(t, err)
		text, err := jwt.FormatUserConfig(ut, seed)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "user.creds")
		require.NoError(t, os.WriteFile(file, text, 0o600))
		return file
	}
	require.NoError(t, login(t, config.Bus{URL: s.ClientURL(), CredentialsFile: creds(account)}))
	require.ErrorContains(t, login(t, config.Bus{URL: s.ClientURL(), CredentialsFile: creds(stranger)}), "Authorization Violation")
}

func pair(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	k, err := create()
	require.NoError(t, err)
	return k
}

func public(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	p, err := k.PublicKey()
	require.NoError(t, err)
	return p
}

func TestOthersReachTheEmbeddedBusByTLSAndItsToken(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t)
	srv := ours.issue("server")
	secret := func(text string) string {
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	o, err := embeddedOptions(config.Embedded{Dir: t.TempDir(), Listen: "127.0.0.1:0", TokenFile: secret("good"), TLS: &config.ServerTLS{CertFile: srv.CertFile, KeyFile: srv.KeyFile}})
	require.NoError(t, err)
	s, err := embedded.Start(o)
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	require.NoError(t, login(t, config.Bus{URL: s.URL(), TokenFile: secret("good"), TLS: &config.ClientTLS{CAFile: srv.CAFile}}))
	require.ErrorContains(t, login(t, config.Bus{URL: s.URL(), TokenFile: secret("bad"), TLS: &config.ClientTLS{CAFile: srv.CAFile}}), "the server knows no user with the login")
	require.ErrorContains(t, login(t, config.Bus{URL: s.URL(), TokenFile: secret("good"), TLS: &config.ClientTLS{CAFile: newAuthority(t).file("ca.pem")}}), "signed by unknown authority")
}
