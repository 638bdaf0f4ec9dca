package docker

import (
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// fakeEngine keeps containers as an engine does, as far as a provider looks.
type fakeEngine struct {
	name, socket string

	mu         sync.Mutex
	down       bool
	loses      bool // the next creation is done, but its answer is lost
	containers map[string]*fakeContainer
	calls      []string
	busy, most int           // creations at a time
	hold       chan struct{} // creations wait for it
}

type fakeContainer struct {
	ID, Image, State string
	Labels           map[string]string
}

func newEngine(t *testing.T, name string) *fakeEngine {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &fakeEngine{name: name, socket: filepath.Join(dir, "s"), containers: map[string]*fakeContainer{}}
	listener, err := net.Listen("unix", e.socket)
	require.NoError(t, err)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}}
	server.Start()
	t.Cleanup(server.Close)
	return e
}

// has are the names of its containers.
func (e *fakeEngine) has() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.containers))
}

// called is how many calls it has heard.
func (e *fakeEngine) called() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.calls)
}

func (e *fakeEngine) set(f func()) { e.mu.Lock(); defer e.mu.Unlock(); f() }

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	hangUp := func() {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	if e.down {
		hangUp()
		return
	}
	say := func(status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	w.Header().Set("Api-Version", "1.41")
	path := strings.TrimPrefix(r.URL.Path, "/v1.41")
	e.calls = append(e.calls, r.Method+" "+path)
	name, _ := strings.CutPrefix(path, "/containers/")
	name, act, _ := strings.Cut(name, "/")
	find := func() *fakeContainer {
		for n, c := range e.containers {
			if n == name || c.ID == name {
				name = n
				return c
			}
		}
		say(http.StatusNotFound, map[string]string{"message": "No such container: " + name})
		return nil
	}
	switch {
	case path == "/_ping":
	case path == "/info":
		say(200, map[string]any{"Name": e.name, "NCPU": 4, "MemTotal": 8 << 30})
	case strings.HasPrefix(path, "/images/"):
		say(200, map[string]any{"Id": "sha256:1"})
	case path == "/containers/json":
		list := []map[string]any{}
		for n, c := range e.containers {
			list = append(list, map[string]any{"Id": c.ID, "Names": []string{"/" + n}, "Image": c.Image, "State": c.State, "Labels": c.Labels, "Created": 1767323045})
		}
		say(200, list)
	case path == "/containers/create":
		var c fakeContainer
		_ = json.NewDecoder(r.Body).Decode(&c)
		name = r.URL.Query().Get("name")
		e.busy++
		e.most = max(e.most, e.busy)
		if hold := e.hold; hold != nil {
			e.mu.Unlock()
			<-hold
			e.mu.Lock()
		}
		e.busy--
		if e.containers[name] != nil {
			say(http.StatusConflict, map[string]string{"message": "name is in use"})
			return
		}
		c.ID, c.State = e.name+"-0123456789abcdef-"+name, "created"
		e.containers[name] = &c
		if e.loses {
			e.loses, e.down = false, true
			hangUp()
			return
		}
		say(201, map[string]any{"Id": c.ID})
	case act == "archive" && r.Method == http.MethodPut:
		if find() != nil {
			w.WriteHeader(200)
		}
	case act == "json":
		if c := find(); c != nil {
			started := "0001-01-01T00:00:00Z"
			if c.State != "created" {
				started = "2026-01-02T03:04:05Z"
			}
			say(200, map[string]any{"Id": c.ID, "Name": "/" + name, "Created": "2026-01-02T03:04:05Z",
				"State":      map[string]any{"Status": c.State, "Running": c.State == "running", "StartedAt": started},
				"HostConfig": map[string]any{"NanoCpus": 2_000_000_000, "Memory": 1 << 30},
				"Config":     map[string]any{"Image": c.Image, "Labels": c.Labels}})
		}
	case act == "stop":
		if c := find(); c != nil {
			c.State = "exited"
			w.WriteHeader(204)
		}
	case r.Method == http.MethodDelete:
		if find() != nil {
			delete(e.containers, name)
			w.WriteHeader(204)
		}
	default:
		say(500, map[string]string{"message": "not spoken here: " + path})
	}
}

// twoHosts are a provider's on two engines.
func twoHosts(t *testing.T, change func(*Options)) (*Provider, *fakeEngine, *fakeEngine) {
	t.Helper()
	attic, cellar := newEngine(t, "pi4"), newEngine(t, "nuc")
	o := options(t)
	o.Hosts = []Host{{Name: "attic", Address: "unix://" + attic.socket}, {Name: "cellar", Address: "unix://" + cellar.socket}}
	if change != nil {
		change(&o)
	}
	return newProvider(t, o), attic, cellar
}

func named(n string) provider.Spec {
	s := spec()
	s.Name, s.ClaimID = "small-"+n, "claim-"+n
	return s
}

func TestMachinesAreSpreadOverTheHostsAndSayWhereTheyAre(t *testing.T) {
	t.Parallel()
	p, attic, cellar := twoHosts(t, nil)
	for _, n := range []string{"a", "b", "c", "d"} {
		m, err := p.Create(t.Context(), named(n))
		require.NoError(t, err)
		require.Contains(t, []string{"attic", "cellar"}, m.Host)
		got, err := p.Get(t.Context(), m.Name)
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	require.Len(t, attic.has(), 2)
	require.Len(t, cellar.has(), 2)
	all, err := p.List(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 4)
	_, err = p.Create(t.Context(), named("e"))
	require.ErrorIs(t, err, provider.ErrNoRoom)
	require.ErrorContains(t, err, "host attic has 1000m of 4000m of CPU left, the machine needs 1500m; host cellar has 1000m")
	require.NoError(t, p.Delete(t.Context(), "small-a"))
	_, err = p.Create(t.Context(), named("e"))
	require.NoError(t, err, "there is room again")
}

func TestMachinesArePackedUpToMaxNodes(t *testing.T) {
	t.Parallel()
	p, attic, cellar := twoHosts(t, func(o *Options) {
		o.Placement = Pack
		o.Hosts[0].CPUMilli, o.Hosts[1].CPUMilli = 100_000, 100_000
		o.Hosts[0].MaxNodes, o.Hosts[1].MaxNodes = 3, 3
	})
	for _, n := range []string{"a", "b", "c"} {
		_, err := p.Create(t.Context(), named(n))
		require.NoError(t, err)
	}
	require.Equal(t, 3, max(len(attic.has()), len(cellar.has())), "all on one of them")
	_, err := p.Create(t.Context(), named("d"))
	require.NoError(t, err)
	require.Equal(t, 1, min(len(attic.has()), len(cellar.has())))
}

func TestMachinesOfOthersTakeRoomWhateverClusterTheyAreOf(t *testing.T) {
	t.Parallel()
	p, attic, cellar := twoHosts(t, nil)
	attic.containers["office-x"] = &fakeContainer{ID: "1", State: "running", Labels: map[string]string{LabelCluster: "office", LabelPool: "small"}} // 2 CPUs by its limits
	attic.containers["office-y"] = &fakeContainer{ID: "2", State: "exited", Labels: map[string]string{LabelCluster: "office"}}
	attic.containers["office-z"] = &fakeContainer{ID: "3", State: "running", Labels: map[string]string{LabelCluster: "office", LabelCPU: "1000", LabelMemory: "1"}}
	cellar.containers["old-x"] = &fakeContainer{ID: "4", State: "created", Labels: map[string]string{LabelCluster: "home", LabelPool: "tiny", LabelCPU: "2600", LabelMemory: "1"}}
	_, err := p.Create(t.Context(), named("a"))
	require.ErrorIs(t, err, provider.ErrNoRoom)
	require.ErrorContains(t, err, "host attic has 1000m of 4000m of CPU left")
	require.ErrorContains(t, err, "host cellar has 1400m of 4000m of CPU left")
}

func TestPlacedMachinesCountBeforeTheyAreMade(t *testing.T) {
	t.Parallel()
	engines := NewEngines()
	p, attic, cellar := twoHosts(t, func(o *Options) { o.Engines = engines })
	other := p.o
	other.Hosts = []Host{{Name: "attic", Address: "unix://" + attic.socket}, {Name: "cellar", Address: "unix://" + cellar.socket, MaxNodes: 9}}
	q := newProvider(t, other)
	require.NotSame(t, p.hosts[0], q.hosts[0])
	require.Same(t, p.hosts[0].engine, q.hosts[0].engine, "two pools, one engine")
	seen := map[string]int{}
	for _, n := range []string{"a", "b", "c", "d", "a", "b"} {
		host, err := p.Place(t.Context(), named(n))
		require.NoError(t, err)
		seen[host]++
	}
	require.Len(t, seen, 2)
	_, err := q.Place(t.Context(), named("e"))
	require.ErrorIs(t, err, provider.ErrNoRoom)
	require.ErrorContains(t, err, "has 1000m of 4000m of CPU left")
	s := named("a")
	s.Host, err = p.Place(t.Context(), s)
	require.NoError(t, err)
	m, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, s.Host, m.Host)
	s = named("f")
	s.Host = "barn"
	_, err = p.Create(t.Context(), s)
	require.ErrorContains(t, err, "host barn, which was chosen for it, is none of the pool's any more")
}

func TestHostThatIsDownIsUnknownAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	p, _, cellar := twoHosts(t, func(o *Options) { o.Registerer = reg })
	for _, n := range []string{"a", "b"} {
		_, err := p.Create(t.Context(), named(n))
		require.NoError(t, err)
	}
	require.Len(t, cellar.has(), 1)
	down, up := "small-a", "small-b"
	if slices.Contains(cellar.has(), "small-b") {
		down, up = up, down
	}
	cellar.set(func() { cellar.down = true })

	m, err := p.Get(t.Context(), up)
	require.NoError(t, err)
	require.Equal(t, "attic", m.Host)
	var hosts *provider.HostsError
	_, err = p.Get(t.Context(), down)
	require.ErrorAs(t, err, &hosts)
	require.NotErrorIs(t, err, provider.ErrNotFound)
	require.Equal(t, []string{"attic", "pi4"}, hosts.Answered)
	require.Len(t, hosts.Missing, 1)
	require.Equal(t, "cellar", hosts.Missing[0].Name)
	require.ErrorContains(t, err, "machine "+down+": unknown, since host cellar does not answer")

	all, err := p.List(t.Context())
	require.ErrorAs(t, err, &hosts)
	require.Len(t, all, 1)
	require.Equal(t, up, all[0].Name)
	for _, act := range []error{p.Start(t.Context(), down), p.Stop(t.Context(), down), p.Delete(t.Context(), down)} {
		require.ErrorAs(t, act, &hosts)
		require.NotErrorIs(t, act, provider.ErrNotFound)
	}
	require.NoError(t, p.Delete(t.Context(), up))

	_, err = p.Create(t.Context(), named("c"))
	require.ErrorAs(t, err, &hosts, "it may be on cellar")
	s := named("c")
	s.Host, err = p.Place(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, "attic", s.Host)
	_, err = p.Create(t.Context(), s)
	require.NoError(t, err, "the record says that it is not")

	// The circuit breaker spares further calls, and says so.
	calls := cellar.called()
	_, err = p.Get(t.Context(), down)
	require.ErrorContains(t, err, "docker at cellar was not asked: it did not answer 3 times in a row")
	require.Equal(t, calls, cellar.called())
	require.InDelta(t, 2, testutil.ToFloat64(gauge(t, reg, "cellar")), 0)
	require.InDelta(t, 0, testutil.ToFloat64(gauge(t, reg, "attic")), 0)
	cellar.set(func() { cellar.down = false })
	require.Eventually(t, func() bool {
		all, err = p.List(t.Context())
		return err == nil
	}, time.Minute, 50*time.Millisecond)
	require.Len(t, all, 2)
	require.InDelta(t, 0, testutil.ToFloat64(gauge(t, reg, "cellar")), 0)
}

// gauge is the state of a host's circuit breaker.
func gauge(t *testing.T, reg *prometheus.Registry, host string) prometheus.Gauge {
	t.Helper()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"})
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "autoscaler_circuit_breaker_state" && l.GetName() == "host" && l.GetValue() == host {
					g.Set(m.GetGauge().GetValue())
					return g
				}
			}
		}
	}
	t.Fatalf("no state of host %s", host)
	return nil
}

func TestCreationWhoseAnswerIsLostIsFoundOnItsHost(t *testing.T) {
	t.Parallel()
	p, attic, cellar := twoHosts(t, nil)
	s := named("a")
	s.Host = "cellar"
	cellar.set(func() { cellar.loses = true })
	_, err := p.Create(t.Context(), s)
	require.Error(t, err)
	require.Len(t, cellar.has(), 1, "made all the same")
	cellar.set(func() { cellar.down = false })
	s.Host = "attic" // whatever is asked for
	m, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, "cellar", m.Host)
	require.Empty(t, attic.has())
}

func TestSecondContainerOfAMachineIsRemovedUnlessItHasRun(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"created", "running", "exited"} {
		p, attic, cellar := twoHosts(t, nil)
		s := named("a")
		labels := map[string]string{LabelCluster: "home", LabelPool: "small", LabelClaim: s.ClaimID, LabelEpoch: s.Epoch}
		attic.containers[s.Name] = &fakeContainer{ID: "1", State: "created", Labels: labels}
		cellar.containers[s.Name] = &fakeContainer{ID: "2", State: state, Labels: labels}
		all, err := p.List(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 1)
		if state == "created" {
			require.ErrorContains(t, p.Start(t.Context(), s.Name), "hosts attic and cellar both have a container of it")
		} else {
			require.Equal(t, "cellar", all[0].Host)
		}
		s.Host = "cellar"
		m, err := p.Create(t.Context(), s)
		require.NoError(t, err)
		require.Equal(t, "cellar", m.Host)
		require.Empty(t, attic.has())

		attic.set(func() { attic.containers[s.Name] = &fakeContainer{ID: "1", State: "created", Labels: labels} })
		require.NoError(t, p.Stop(t.Context(), s.Name))
		require.NoError(t, p.Delete(t.Context(), s.Name))
		require.Empty(t, attic.has())
		require.Empty(t, cellar.has())
	}
}

func TestNameOfAnotherClaimIsTakenWhicheverHostItIsOn(t *testing.T) {
	t.Parallel()
	p, _, cellar := twoHosts(t, nil)
	s := named("a")
	s.Host = "attic"
	cellar.containers[s.Name] = &fakeContainer{ID: "0123456789abcdef", State: "running", Labels: map[string]string{LabelCluster: "home", LabelClaim: "other"}}
	_, err := p.Create(t.Context(), s)
	require.ErrorIs(t, err, provider.ErrNameTaken)
}

func TestHostIsBusyWithSoManyMachinesAtATime(t *testing.T) {
	t.Parallel()
	p, attic, _ := twoHosts(t, func(o *Options) {
		o.Hosts = o.Hosts[:1]
		o.Hosts[0].MaxParallel, o.Hosts[0].CPUMilli, o.Hosts[0].MemoryBytes = 2, 100_000, 1<<40
	})
	attic.hold = make(chan struct{})
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i, n := range []string{"a", "b", "c", "d", "e"} {
		wg.Go(func() { _, errs[i] = p.Create(t.Context(), named(n)) })
	}
	require.Eventually(t, func() bool {
		attic.mu.Lock()
		defer attic.mu.Unlock()
		return attic.busy == 2
	}, time.Minute, time.Millisecond)
	close(attic.hold)
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	attic.set(func() { require.Equal(t, 2, attic.most) })
}

func TestRegistriesFileIsPutIntoTheContainer(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.RegistriesFile = writeToken(t, "mirrors: {docker.io: {endpoint: ['http://mirror.lan:5000']}}\nconfigs: {mirror.lan: {auth: {password: s3cret}}}\n")
	require.NoError(t, o.Validate())
	f, err := o.files()
	require.NoError(t, err)
	archive, err := f.archive(time.Unix(0, 0))
	require.NoError(t, err)
	require.Contains(t, string(archive), "etc/rancher/k3s/registries.yaml")
	require.Contains(t, string(archive), "http://mirror.lan:5000")

	o.Mounts = []string{"/x:/etc/rancher/k3s/registries.yaml"}
	require.ErrorContains(t, o.Validate(), "both want to be /etc/rancher/k3s/registries.yaml")
	o.Mounts = nil
	for content, problem := range map[string]string{
		"":                               "has neither mirrors nor configs",
		"passwords: s3cret":              "is no registries.yaml of k3s",
		"mirrors: [s3cret":               "is no registries.yaml of k3s",
		"#" + strings.Repeat("x", 1<<20): "is longer than",
	} {
		o.RegistriesFile = writeToken(t, content)
		err := o.Validate()
		require.ErrorContains(t, err, problem)
		require.NotContains(t, err.Error(), "s3cret")
	}
	o.RegistriesFile = filepath.Join(t.TempDir(), "absent")
	require.ErrorIs(t, o.Validate(), os.ErrNotExist)
}
