//go:build e2e

package docker

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// door is a way to the real engine that can be shut: to its callers the host is
// down then.
type door struct {
	socket, engine string

	mu   sync.Mutex
	shut bool
	open map[net.Conn]bool
}

func newDoor(t *testing.T, engine string) *door {
	t.Helper()
	dir, err := os.MkdirTemp("", "door")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &door{socket: filepath.Join(dir, "s"), engine: strings.TrimPrefix(engine, "unix://"), open: map[net.Conn]bool{}}
	l, err := net.Listen("unix", d.socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go d.serve(l)
	return d
}

func (d *door) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go d.pass(c)
	}
}

func (d *door) pass(c net.Conn) {
	defer c.Close()
	d.mu.Lock()
	if d.shut {
		d.mu.Unlock()
		return
	}
	d.open[c] = true
	d.mu.Unlock()
	engine, err := net.Dial("unix", d.engine)
	if err != nil {
		return
	}
	defer engine.Close()
	go func() { _, _ = io.Copy(engine, c); _ = engine.Close() }()
	_, _ = io.Copy(c, engine)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, c)
}

func (d *door) close(shut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = shut
	for c := range d.open {
		if shut {
			_ = c.Close()
		}
	}
}

// certificates are an authority's, and one that it signed, for both sides.
func certificates(t *testing.T) TLS {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, authority, &key.PublicKey, key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return TLS{CAFile: write("ca.pem", "CERTIFICATE", ca), CertFile: write("cert.pem", "CERTIFICATE", leaf), KeyFile: write("key.pem", "PRIVATE KEY", private)}
}

// tlsDoor is the engine behind mutual TLS.
func (d *door) tlsDoor(t *testing.T, files TLS) (address string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	require.NoError(t, err)
	ca, err := os.ReadFile(files.CAFile)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go d.serve(l)
	return "tcp://" + l.Addr().String()
}

func TestEngineBehindMutualTLSAndSSHMakesMachines(t *testing.T) {
	r := parts(t)
	files := certificates(t)
	d, s := newDoor(t, r.DockerHost), newSSHServer(t)
	for name, h := range map[string]Host{
		"tls": {Name: "tls", Address: d.tlsDoor(t, files), TLS: files},
		"ssh": {Name: "ssh", Address: "ssh://me@" + s.address + d.engine, SSH: s.files},
	} {
		p, sp := r.provider(t, "providertest", func(o *Options) { o.Hosts = []Host{h} }), e2eSpec(r, name)
		deleteAfter(t, r, p, sp.Name)
		m, err := p.Create(t.Context(), sp)
		require.NoError(t, err)
		require.Equal(t, name, m.Host)
		require.NoError(t, p.Start(t.Context(), sp.Name))
		r.readyNode(t.Context(), t, sp.Name)
		require.NoError(t, p.Stop(t.Context(), sp.Name))
	}
	stranger := certificates(t)
	p := r.provider(t, "providertest", func(o *Options) {
		o.Hosts = []Host{{Name: "tls", Address: d.tlsDoor(t, files), TLS: stranger}}
	})
	_, err := p.List(t.Context())
	require.ErrorContains(t, err, "do not trust each other's certificates")
	p = r.provider(t, "providertest", func(o *Options) {
		o.Hosts = []Host{{Name: "tls", Address: d.tlsDoor(t, files), TLS: TLS{CAFile: files.CAFile}}}
	})
	_, err = p.List(t.Context())
	require.ErrorContains(t, err, "do not trust each other's certificates", "the engine wants a certificate")
}

func TestRunningMachineOfAHostThatIsDownIsUnknownUntilItIsBack(t *testing.T) {
	r := parts(t)
	d := newDoor(t, r.DockerHost)
	p, sp := r.provider(t, "providertest", func(o *Options) { o.Hosts = []Host{{Name: "attic", Address: "unix://" + d.socket}} }), e2eSpec(r, "down")
	deleteAfter(t, r, p, sp.Name)
	_, err := p.Create(t.Context(), sp)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), sp.Name))
	d.close(true)
	_, err = p.Get(t.Context(), sp.Name)
	require.ErrorAs(t, err, new(*provider.HostsError))
	require.NotErrorIs(t, err, provider.ErrNotFound)
	_, err = p.List(t.Context())
	require.ErrorAs(t, err, new(*provider.HostsError))
	d.close(false)
	require.Eventually(t, func() bool {
		m, err := p.Get(context.Background(), sp.Name)
		return err == nil && m.State == provider.Running
	}, time.Minute, 50*time.Millisecond)
}

func TestRegistriesFileReachesTheContainer(t *testing.T) {
	r := parts(t)
	const content = "mirrors: {docker.io: {endpoint: ['http://mirror.lan:5000']}}\n"
	p, sp := r.provider(t, "providertest", func(o *Options) { o.RegistriesFile = writeToken(t, content) }), e2eSpec(r, "registries")
	deleteAfter(t, r, p, sp.Name)
	m, err := p.Create(t.Context(), sp)
	require.NoError(t, err)
	archive, _, err := r.engine.CopyFromContainer(t.Context(), m.ID, registriesPath)
	require.NoError(t, err)
	defer archive.Close()
	got, err := tokenFromArchive(archive)
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(content), got)
	require.NoError(t, p.Start(t.Context(), sp.Name))
	r.readyNode(t.Context(), t, sp.Name)
}

func TestHostWithoutGPUsIsToldFromABrokenOne(t *testing.T) {
	r := parts(t)
	p, sp := r.provider(t, "providertest", func(o *Options) { o.GPUs = "all" }), e2eSpec(r, "gpus")
	deleteAfter(t, r, p, sp.Name)
	_, err := p.Create(t.Context(), sp)
	require.NoError(t, err)
	require.EqualValues(t, -1, r.inspect(t, sp.Name).HostConfig.DeviceRequests[0].Count)
	err = p.Start(t.Context(), sp.Name)
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "can't give GPUs to containers")
}
