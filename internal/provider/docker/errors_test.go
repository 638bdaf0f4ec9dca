package docker

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// answer is what the scripted engine says to one method and path suffix.
type answer struct {
	status int
	body   string
}

// scriptedEngine speaks just enough of the engine's API to fail in its words.
// Its keys are "METHOD path", without the version; absent ones are 404.
func scriptedEngine(t *testing.T, script map[string]answer) Options {
	t.Helper()
	// On a path of its own, since a socket's path is short.
	dir, err := os.MkdirTemp("", "engine")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	var mu sync.Mutex
	server := &httptest.Server{Listener: listener, Config: &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			w.Header().Set("Api-Version", "1.41")
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Path == "/_ping" {
				return
			}
			path := strings.TrimPrefix(r.URL.Path, "/v1.41")
			if _, ok := script["GET /containers/json"]; !ok && path == "/containers/json" {
				_, _ = w.Write([]byte("[]"))
				return
			}
			a, ok := script[r.Method+" "+path]
			if !ok {
				a = answer{http.StatusNotFound, `{"message":"No such container"}`}
			}
			if strings.HasSuffix(path, "/archive") {
				w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString([]byte(`{"name":"token"}`)))
			}
			w.WriteHeader(a.status)
			_, _ = w.Write([]byte(a.body))
		}),
	}}
	server.Start()
	t.Cleanup(server.Close)
	o := options(t)
	o.Hosts = []Host{{Address: "unix://" + socket}}
	return o
}

const (
	infoBody      = `{"Name":"pi4","NCPU":4,"MemTotal":8589938688}`
	createdLabels = `"Labels":{"k3s-autoscaler.dev/cluster":"home","k3s-autoscaler.dev/pool":"small","k3s-autoscaler.dev/claim":"claim-1","k3s-autoscaler.dev/epoch":"epoch-1"}`
	createdBody   = `{"Id":"0123456789abcdef","Name":"/small-abcdefghij","Created":"2026-01-02T03:04:05Z","State":{"StartedAt":"0001-01-01T00:00:00Z"},"Config":{"Image":"rancher/k3s:v1.34.4-k3s1",` + createdLabels + `}}`
	inspectPath   = "GET /containers/small-abcdefghij/json"
	imagePath     = "GET /images/rancher/k3s:v1.34.4-k3s1/json"
)

func TestCreateExplainsWhatTheEngineSays(t *testing.T) {
	t.Parallel()
	ok := answer{200, infoBody}
	image := answer{200, `{"Id":"sha256:1"}`}
	for name, tc := range map[string]struct {
		script map[string]answer
		pull   Pull
		is     error // nil: may be gone at the next attempt
		says   []string
		kind   string // of the counted failure, with its operation
	}{
		"image cannot be pulled": {
			script: map[string]answer{"GET /info": ok, "POST /images/create": {404, `{"message":"manifest for rancher/k3s:v1.34.4-k3s1 not found"}`}},
			is:     provider.ErrImage, kind: "pull/image",
			says: []string{"could not be pulled to host pi4", "docker pull rancher/k3s:v1.34.4-k3s1", "manifest"},
		},
		"image is never pulled": {
			script: map[string]answer{"GET /info": ok}, pull: PullNever,
			is:   provider.ErrImage,
			says: []string{"is not on host pi4", "never to pull it"},
		},
		"image is pulled always": {
			script: map[string]answer{"GET /info": ok, imagePath: image, "POST /images/create": {500, `{"message":"registry is away"}`}}, pull: PullAlways,
			is: provider.ErrImage, kind: "pull/image",
			says: []string{"registry is away"},
		},
		"pull breaks off": {
			script: map[string]answer{"GET /info": ok, "POST /images/create": {200, `{"status":"Pulling"}` + "\n" + `{"error":"manifest unknown"}`}},
			is:     provider.ErrImage, kind: "pull/image",
			says: []string{"manifest unknown"},
		},
		"pull fills the disk": {
			script: map[string]answer{"GET /info": ok, "POST /images/create": {200, `{"status":"Pulling"}` + "\n" + `{"error":"no space left on device"}`}},
			is:     provider.ErrNoSpace, kind: "pull/no_space",
			says: []string{"disk of the Docker host", "free space there"},
		},
		"engine goes away while it pulls": {
			script: map[string]answer{"GET /info": ok, "POST /images/create": {200, `{"status":"Pul`}},
			kind:   "pull/other",
			says:   []string{"pull image rancher/k3s:v1.34.4-k3s1 to host pi4"},
		},
		"disk is full": {
			script: map[string]answer{"GET /info": ok, imagePath: image, "POST /containers/create": {500, `{"message":"mkdir /var/lib/docker/x: no space left on device"}`}},
			is:     provider.ErrNoSpace, kind: "create/no_space",
			says: []string{"disk of the Docker host", "free space there"},
		},
		"network is missing": {
			script: map[string]answer{"GET /info": ok, imagePath: image, "POST /containers/create": {404, `{"message":"network bridge not found"}`}},
			is:     provider.ErrRefused, kind: "create/refused",
			says: []string{"network bridge does not exist", "change the pool's network"},
		},
		"container is not accepted": {
			script: map[string]answer{"GET /info": ok, imagePath: image, "POST /containers/create": {400, `{"message":"Range of CPUs is from 0.01 to 1.00"}`}},
			is:     provider.ErrRefused, kind: "create/refused",
			says: []string{"does not accept the container", "Range of CPUs"},
		},
		"host is too small": {
			script: map[string]answer{"GET /info": {200, `{"Name":"pi4","NCPU":1,"MemTotal":8589938688}`}},
			is:     provider.ErrRefused,
			says:   []string{"create machine small-abcdefghij", "has 1000m of CPU, less than the 1500m of the machine"},
		},
		"engine does not know its machine": {
			script: map[string]answer{"GET /info": {200, `{}`}},
			says:   []string{"says 0 CPUs"},
		},
		"name is taken by a stranger": {
			script: map[string]answer{inspectPath: {200, strings.Replace(createdBody, createdLabels, `"Labels":{}`, 1)}},
			is:     provider.ErrNameTaken,
			says:   []string{"was not made by k3s-autoscaler"},
		},
		"token cannot be copied": {
			script: map[string]answer{"GET /info": ok, inspectPath: {200, createdBody}, "PUT /containers/0123456789abcdef/archive": {500, `{"message":"read-only file system"}`}},
			kind:   "copy/other",
			says:   []string{"copy the join token into the container", "read-only"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := prometheus.NewRegistry()
			o := scriptedEngine(t, tc.script)
			o.Registerer, o.Pull = reg, tc.pull
			p := newProvider(t, o)
			_, err := p.Create(t.Context(), spec())
			require.Error(t, err)
			for _, want := range tc.says {
				require.ErrorContains(t, err, want)
			}
			for _, sentinel := range []error{provider.ErrImage, provider.ErrRefused, provider.ErrNameTaken, provider.ErrNotFound, provider.ErrNoSpace} {
				require.Equal(t, errors.Is(tc.is, sentinel), errors.Is(err, sentinel), "%v: %v", sentinel, err)
			}
			if operation, kind, ok := strings.Cut(tc.kind, "/"); ok {
				require.InDelta(t, 1, testutil.ToFloat64(p.metrics.errors.WithLabelValues(operation, kind)), 0)
			}
		})
	}
}

func newProvider(t *testing.T, o Options) *Provider {
	t.Helper()
	p, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestCreateIsRefusedForAnotherCluster(t *testing.T) {
	t.Parallel()
	p := newProvider(t, scriptedEngine(t, nil))
	s := spec()
	s.Cluster = "office"
	_, err := p.Create(t.Context(), s)
	require.ErrorIs(t, err, provider.ErrRefused)
	s.Name = ""
	_, err = p.Create(t.Context(), s)
	require.ErrorContains(t, err, `name is ""`)
}

func TestEngineThatIsAwayIsNamedAndCounted(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Hosts = []Host{{Address: "unix://" + filepath.Join(t.TempDir(), "absent.sock")}}
	p := newProvider(t, o)
	_, err := p.List(t.Context())
	require.ErrorContains(t, err, "the Docker engine at "+o.Hosts[0].Address+" is not reachable, is it running?")
	require.InDelta(t, 1, testutil.ToFloat64(p.metrics.errors.WithLabelValues("list", kindUnreachable)), 0)
	require.Error(t, p.Start(t.Context(), "x"))
	require.Error(t, p.Stop(t.Context(), "x"))
	require.Error(t, p.Delete(t.Context(), "x"))
	_, err = p.Logs(t.Context(), "x", 10)
	require.ErrorContains(t, err, "read the log of machine x")
	require.NotErrorIs(t, err, provider.ErrNotFound)
}

func TestCallerThatGivesUpIsNoFailureOfTheEngine(t *testing.T) {
	t.Parallel()
	p := newProvider(t, scriptedEngine(t, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.List(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, testutil.CollectAndCount(p.metrics.errors))
}

func TestEngineThatDoesNotAnswerInTimeIsATimeout(t *testing.T) {
	t.Parallel()
	p := newProvider(t, scriptedEngine(t, nil))
	err := p.hosts[0].call(t.Context(), "info", time.Nanosecond, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	require.ErrorContains(t, err, "did not answer in time")
	require.InDelta(t, 1, testutil.ToFloat64(p.metrics.errors.WithLabelValues("info", kindTimeout)), 0)
}

func TestInterruptedCreationIsNotStarted(t *testing.T) {
	t.Parallel()
	p := newProvider(t, scriptedEngine(t, map[string]answer{inspectPath: {200, createdBody}}))
	require.ErrorContains(t, p.Start(t.Context(), "small-abcdefghij"), "its creation was interrupted and has to be repeated")
}

func TestBeginningOfAnIDIsNoName(t *testing.T) {
	t.Parallel()
	p := newProvider(t, scriptedEngine(t, map[string]answer{"GET /containers/0123/json": {200, createdBody}}))
	_, err := p.Get(t.Context(), "0123")
	require.ErrorIs(t, err, provider.ErrNotFound)
}

func TestStartSaysThatTheNetworkIsMissing(t *testing.T) {
	t.Parallel()
	archive, err := files{token: testToken}.archive(time.Unix(0, 0))
	require.NoError(t, err)
	const id = "/containers/0123456789abcdef"
	p := newProvider(t, scriptedEngine(t, map[string]answer{
		inspectPath:              {200, createdBody},
		"POST " + id + "/start":  {404, `{"message":"network bridge not found"}`},
		"GET " + id + "/archive": {200, string(archive)},
	}))
	err = p.Start(t.Context(), "small-abcdefghij")
	require.ErrorIs(t, err, provider.ErrRefused)
	require.NotErrorIs(t, err, provider.ErrNotFound)
	require.ErrorContains(t, err, "start machine small-abcdefghij")
}

func TestLogIsWithheldWhenNoSecretIsKnown(t *testing.T) {
	t.Parallel()
	o := scriptedEngine(t, map[string]answer{
		inspectPath: {200, createdBody},
		"GET /containers/0123456789abcdef/archive": {500, `{"message":"broken"}`},
	})
	p := newProvider(t, o)
	require.NoError(t, os.Remove(o.TokenFile))
	_, err := p.Logs(t.Context(), "small-abcdefghij", 100)
	require.ErrorContains(t, err, "withheld")
}

func TestProvidersOfOneProcessCountTogether(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	o := options(t)
	o.Registerer = reg
	a, b := newProvider(t, o), newProvider(t, o)
	require.Same(t, a.metrics.errors, b.metrics.errors)
}
