package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/nodestatus"
)

func environment(pairs ...string) func(string) string {
	values := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return values[name] }
}

func noFile(name string) ([]byte, error) { return nil, fmt.Errorf("open %s: %w", name, os.ErrNotExist) }

func TestOptionsComeFromTheEnvironmentAndFlagsWin(t *testing.T) {
	t.Parallel()
	env := environment("K3S_URL", "https://env:6443", "K3S_TOKEN", "env-token", "K3S_NODE_NAME", "env-node")

	o, err := parseOptions(nil, env, noFile, "host")
	require.NoError(t, err)
	require.Equal(t, "https://env:6443", o.server)
	require.Equal(t, "env-token", o.token)
	require.Equal(t, "env-node", o.nodeName)

	o, err = parseOptions([]string{
		"--server", "https://flag:6443", "--token=flag-token", "--node-name", "Flag-Node",
		"--node-label", "pool=burst", "--node-label=zone=a", "--node-taint", "burst=true:NoSchedule",
		"--kubelet-arg=max-pods=30", "--kubelet-arg=system-reserved=cpu=500m,memory=1Gi",
	}, env, noFile, "host")
	require.NoError(t, err)
	require.Equal(t, "https://flag:6443", o.server)
	require.Equal(t, "flag-token", o.token)
	require.Equal(t, "flag-node", o.nodeName)
	require.Equal(t, "burst", o.labels["pool"])
	require.Equal(t, "a", o.labels["zone"])
	require.Equal(t, []v1.Taint{{Key: "burst", Value: "true", Effect: v1.TaintEffectNoSchedule}}, o.taints)
	require.Equal(t, 30, o.kubelet.maxPods)
}

func TestTheTokenIsReadFromAFileUnlessGivenDirectly(t *testing.T) {
	t.Parallel()
	read := func(name string) ([]byte, error) { return []byte("from " + name + "\n"), nil }
	env := environment("K3S_URL", "https://s", "K3S_TOKEN_FILE", "/env")

	o, err := parseOptions(nil, env, read, "host")
	require.NoError(t, err)
	require.Equal(t, "from /env", o.token)
	require.Equal(t, "host", o.nodeName)

	o, err = parseOptions([]string{"--token-file=/flag"}, env, read, "host")
	require.NoError(t, err)
	require.Equal(t, "from /flag", o.token)

	o, err = parseOptions([]string{"--token=direct"}, env, noFile, "host")
	require.NoError(t, err)
	require.Equal(t, "direct", o.token)
}

func TestAllErrorsOfTheOptionsAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := parseOptions([]string{
		"--node-name=a_b", "--node-label=x", "--node-taint=x", "--kubelet-arg=max-pods=many", "--kubelet-arg=system-reserved=cpu",
	}, environment("K3S_URL", "http://plain", "K3S_TOKEN_FILE", "/gone", "STANDIN_START_DELAY", "soon"), noFile, "host")
	for _, part := range []string{
		`node name "a_b"`, `"http://plain" is not an https URL`, "/gone", "--token is required", `"x" is not key=value`,
		"--node-taint", "max-pods=many", "is not resource=quantity", "STANDIN_START_DELAY",
	} {
		require.ErrorContains(t, err, part)
	}
}

// TestAllocatableIsCapacityLessReservations goes through the kubelet's own code
// that fills the Node's status.
func TestAllocatableIsCapacityLessReservations(t *testing.T) {
	t.Parallel()
	const gib = int64(1) << 30
	machine := host{cpus: 8, memory: 16 * gib, storage: 100 * gib}
	for name, c := range map[string]struct {
		args                 []string
		cpu, memory, storage string
		pods                 int64
	}{
		"nothing reserved":            {nil, "8", "16Gi", "95Gi", 110},
		"system and kube reserved":    {[]string{"system-reserved=cpu=5500m,memory=12Gi", "kube-reserved=cpu=500m,memory=1Gi", "max-pods=20"}, "2", "3Gi", "95Gi", 20},
		"hard eviction":               {[]string{"eviction-hard=memory.available<1Gi,nodefs.available<10%"}, "8", "15Gi", "90Gi", 110},
		"more than there is":          {[]string{"system-reserved=cpu=9,memory=17Gi"}, "0", "0", "95Gi", 110},
		"arguments without an effect": {[]string{"image-gc-high-threshold=90", "v=2"}, "8", "16Gi", "95Gi", 110},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args, err := parseKubeletArgs(c.args)
			require.NoError(t, err)
			manager := &reservingManager{ContainerManager: cm.NewStubContainerManager(), host: machine, args: args}
			node := &v1.Node{}
			set := nodestatus.MachineInfo("n", args.maxPods, 0, (&hostMachine{host: machine}).MachineInfo, manager.GetCapacity,
				manager.GetDevicePluginResourceCapacity, manager.GetNodeAllocatableReservation,
				func(string, string, string) {}, true)
			require.NoError(t, set(t.Context(), node))

			require.Equal(t, int64(8000), node.Status.Capacity.Cpu().MilliValue())
			require.Equal(t, 16*gib, node.Status.Capacity.Memory().Value())
			for resourceName, want := range map[v1.ResourceName]string{v1.ResourceCPU: c.cpu, v1.ResourceMemory: c.memory, v1.ResourceEphemeralStorage: c.storage} {
				got := node.Status.Allocatable[resourceName]
				require.Zero(t, got.Cmp(resource.MustParse(want)), "%s: %s, not %s", resourceName, got.String(), want)
			}
			require.Equal(t, c.pods, node.Status.Allocatable.Pods().Value())
		})
	}
}

func TestKubeletArgumentsThatCannotBeReadAreErrors(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{
		"max-pods=x", "system-reserved=cpu", "kube-reserved=cpu=x", "system-reserved=cpu=-1",
		"eviction-hard=memory.available", "eviction-hard=memory.available<x", "eviction-hard=memory.available<x%",
	} {
		_, err := parseKubeletArgs([]string{arg})
		require.ErrorContains(t, err, arg)
	}
}

func TestTheMachineIsReadFromProc(t *testing.T) {
	t.Parallel()
	require.Equal(t, 2, processors([]byte("processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\n")))
	memory, err := memTotal([]byte("MemFree: 1 kB\nMemTotal:       24683620 kB\n"))
	require.NoError(t, err)
	require.Equal(t, int64(24683620*1024), memory)
	_, err = memTotal([]byte("MemFree: 1 kB\n"))
	require.Error(t, err)

	machine, err := readHost(t.TempDir())
	require.NoError(t, err)
	require.Positive(t, machine.cpus)
	require.Positive(t, machine.memory)
	require.Positive(t, machine.storage)
	require.NotEmpty(t, machine.bootID)
}

func TestANodePasswordIsKeptAndItsHashVerified(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "node", "password")
	first, err := nodePassword(file)
	require.NoError(t, err)
	again, err := nodePassword(file)
	require.NoError(t, err)
	require.Equal(t, first, again)

	hash := hashPassword(first)
	require.True(t, matchesHash(first, hash))
	require.False(t, matchesHash(first+"x", hash))
	require.NotEqual(t, hash, hashPassword(first), "the same password with another salt")
	for _, broken := range []string{"", "$1:zz:00", "$2:00:00", "$1:00"} {
		require.False(t, matchesHash(first, broken))
	}
}

// server is an API server that knows one token and keeps secrets.
type server struct {
	*httptest.Server
	caPEM []byte

	mu      sync.Mutex
	secrets map[string]v1.Secret
}

const goodPassword = "good"

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{secrets: map[string]v1.Secret{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	s.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) token(password string) string {
	sum := sha256.Sum256(s.caPEM)
	return "K10" + hex.EncodeToString(sum[:]) + "::server:" + password
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	refuse := func(code int, reason metav1.StatusReason) {
		answer(code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	if r.Header.Get("Authorization") != "Bearer "+s.token(goodPassword) {
		refuse(http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet {
		secret, ok := s.secrets[filepath.Base(r.URL.Path)]
		if !ok {
			refuse(http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
		answer(http.StatusOK, secret)
		return
	}
	var secret v1.Secret
	body, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(body, &secret); err != nil {
		refuse(http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	if _, exists := s.secrets[secret.Name]; exists {
		refuse(http.StatusConflict, metav1.StatusReasonAlreadyExists)
		return
	}
	secret.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
	s.secrets[secret.Name] = secret
	answer(http.StatusCreated, secret)
}

func TestAReusedNodeNameNeedsTheSamePassword(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := agentOptions{server: s.URL, token: s.token(goodPassword), nodeName: "n1"}

	require.NoError(t, verifyPassword(t.Context(), o, s.caPEM, "one"), "the first agent leaves its password")
	require.Contains(t, s.secrets, "n1.node-password.k3s")
	require.NoError(t, verifyPassword(t.Context(), o, s.caPEM, "one"), "the same agent comes back")
	require.ErrorIs(t, verifyPassword(t.Context(), o, s.caPEM, "two"), errPasswordRejected)

	s.mu.Lock()
	delete(s.secrets, "n1.node-password.k3s")
	s.mu.Unlock()
	require.NoError(t, verifyPassword(t.Context(), o, s.caPEM, "two"), "after the secret is gone the name is free")
}

func TestAWrongTokenIsWordedAsUnauthorized(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	o := agentOptions{server: s.URL, token: s.token("bad"), nodeName: "n1"}
	err := verifyPassword(t.Context(), o, s.caPEM, "one")
	require.ErrorContains(t, err, "401 Unauthorized")
	require.NotContains(t, err.Error(), o.token)
}

func TestTheTokenPinsTheAuthority(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	got, err := serverCA(t.Context(), s.URL, s.token("any"))
	require.NoError(t, err)
	require.Equal(t, s.caPEM, got)

	_, err = serverCA(t.Context(), s.URL, "short-token")
	require.NoError(t, err, "a short token pins nothing")

	_, err = serverCA(t.Context(), s.URL, "K10"+strings.Repeat("0", 64)+"::server:x")
	require.ErrorContains(t, err, "token CA hash does not match")

	_, err = serverCA(t.Context(), "https://127.0.0.1:1", "short-token")
	require.ErrorContains(t, err, "failed to get CA certs")
}

func TestJoiningGoesOnUntilItSucceeds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	file := filepath.Join(t.TempDir(), "password")

	_, err := join(ctx, agentOptions{server: s.URL, token: s.token("bad"), nodeName: "n1"}, file)
	require.ErrorIs(t, err, context.Canceled, "a refused agent stays until it is ended")

	ca, err := join(t.Context(), agentOptions{server: s.URL, token: s.token(goodPassword), nodeName: "n1"}, file)
	require.NoError(t, err)
	require.Equal(t, s.caPEM, ca)
}

func TestTheImageThatFailsExitsAtOnce(t *testing.T) {
	t.Parallel()
	err := serve(t.Context(), agentOptions{failWith: "on purpose"})
	require.EqualError(t, err, "agent exits at once: on purpose")
}

func TestTheVersionHasTwoLinesLikeK3s(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.Zero(t, run([]string{"--version"}, &out))
	require.Regexp(t, `^k3s version v\S+ \(stand-in\)\ngo version go\S+`, out.String())
	require.Equal(t, 1, run([]string{"server"}, io.Discard))
	require.Equal(t, 1, run([]string{"agent", "--unknown-flag"}, io.Discard))
}
