package api

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"iter"
	"log/slog"
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
	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

var t0 = time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)

// memory is every port in one: a log that is its own audit.
type memory struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each publish
	log     []bus.Delivery
	fail    error // of the next calls
	dead    []bus.DeadLetter
	parked  map[string][]bus.ParkedKey
	gaps    []audit.Gap
	bad     map[uint64]error // messages that are no events, by sequence

	clusters []Cluster
	pools    []Pool
	nodes    []Node
	pods     map[string]Pod

	shadows []Shadow
	ended   []string // what was done to shadows, with whom and whom for
	refused error    // of what is asked for next
}

func (m *memory) Shadows(context.Context) ([]Shadow, error) { return m.shadows, m.fail }

func (m *memory) Start(_ context.Context, cluster, actor string, r ShadowStart) (ShadowStarted, error) {
	m.ended = append(m.ended, "start "+cluster+" "+actor+" "+r.Reason)
	return ShadowStarted{ID: "s", Cluster: cluster}, m.refused
}

func (m *memory) Stop(_ context.Context, cluster, actor string, r ShadowEnd) (ShadowEnded, error) {
	m.ended = append(m.ended, "stop "+cluster+" "+actor+" "+r.Shadow)
	return ShadowEnded{Shadow: r.Shadow, Cluster: cluster}, m.refused
}

func (m *memory) Promote(_ context.Context, cluster, actor string, r ShadowEnd) (ShadowEnded, error) {
	m.ended = append(m.ended, "promote "+cluster+" "+actor+" "+r.Shadow)
	return ShadowEnded{Shadow: r.Shadow, Cluster: cluster}, m.refused
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), pods: map[string]Pod{}}
}

func (m *memory) Publish(_ context.Context, es ...events.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, e := range es {
		cluster, key, err := events.PartitionKey(e)
		if err != nil {
			return err
		}
		n := uint64(len(m.log) + 1) //nolint:gosec // a length
		m.log = append(m.log, bus.Delivery{Event: e, Key: bus.Key{Cluster: cluster, Name: key}, Sequence: n, Incarnation: "i", StreamTime: t0.Add(time.Duration(n) * time.Second)})
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

func (m *memory) LastSequence(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.log)), m.fail
}

func (m *memory) LogState(context.Context) (bus.LogState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bus.LogState{Exists: true, Incarnation: "i", First: 1, Last: uint64(len(m.log)), Events: uint64(len(m.log)), Bytes: 4096}, m.fail
}

func (m *memory) High(context.Context) (string, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return "i", uint64(len(m.log)), m.fail
}

func (m *memory) Gaps(context.Context) ([]audit.Gap, error) { return m.gaps, m.fail }

func (m *memory) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		n := 0
		for i := 0; ; i++ {
			m.mu.Lock()
			wait, fail := m.changed, m.fail
			var d *bus.Delivery
			if i < len(m.log) {
				d = &m.log[i]
			}
			m.mu.Unlock()
			if fail != nil {
				yield(bus.Delivery{}, fail)
				return
			}
			if d == nil {
				if !o.Follow {
					return
				}
				select {
				case <-wait:
					i--
					continue
				case <-ctx.Done():
					return
				}
			}
			if (o.Cluster != "" && d.Key.Cluster != o.Cluster) || (o.Node != "" && d.Key.Name != o.Node) || d.Sequence < o.FromSequence ||
				d.StreamTime.Before(o.Since) || (!o.Until.IsZero() && !d.StreamTime.Before(o.Until)) || (o.UntilSequence > 0 && d.Sequence > o.UntilSequence) || (len(o.Types) > 0 && !slices.Contains(o.Types, d.Event.Type())) {
				continue
			}
			if n++; !yield(*d, m.bad[d.Sequence]) || (o.Limit > 0 && n == o.Limit) {
				return
			}
		}
	}
}

func (m *memory) DeadLetters(context.Context) ([]bus.DeadLetter, error) { return m.dead, m.fail }
func (m *memory) Parked(_ context.Context, handler string) ([]bus.ParkedKey, error) {
	return m.parked[handler], m.fail
}

func record(d bus.Delivery) audit.Record {
	b, _ := d.Event.MarshalJSON()
	var data struct {
		Pool   string          `json:"pool"`
		Actor  string          `json:"actor"`
		Reason json.RawMessage `json:"reason"`
	}
	_ = json.Unmarshal(d.Event.Data(), &data)
	r := audit.Record{Incarnation: d.Incarnation, Sequence: d.Sequence, StreamTime: d.StreamTime, ID: d.Event.ID(), Source: d.Event.Source(), Type: d.Event.Type(),
		Cluster: d.Key.Cluster, Key: d.Key.Name, Pool: data.Pool, Actor: data.Actor, CorrelationID: events.Extension(d.Event, events.ExtCorrelationID),
		CausationID: events.Extension(d.Event, events.ExtCausationID), Event: b}
	var reason events.Reason
	if json.Unmarshal(data.Reason, &r.Reason) != nil && json.Unmarshal(data.Reason, &reason) == nil {
		r.Reason, r.Message = reason.Code, reason.Message
	}
	return r
}

func (m *memory) List(_ context.Context, q audit.Query) ([]audit.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	var after uint64
	if q.Cursor != "" {
		var err error
		if _, after, err = audit.ParseCursor(q.Cursor); err != nil {
			return nil, err
		}
	}
	var out []audit.Record
	for _, d := range m.log {
		r := record(d)
		match := func(want, have string) bool { return want == "" || want == have }
		if (len(q.Types) > 0 && !slices.Contains(q.Types, r.Type)) || !match(q.Cluster, r.Cluster) || !match(q.Node, r.Key) || !match(q.Pool, r.Pool) ||
			!match(q.CorrelationID, r.CorrelationID) || !match(q.CausationID, r.CausationID) || !match(q.Actor, r.Actor) || r.StreamTime.Before(q.Since) ||
			(!q.Until.IsZero() && !r.StreamTime.Before(q.Until)) {
			continue
		}
		out = append(out, r)
	}
	if q.Order == audit.NewestFirst {
		slices.Reverse(out)
	}
	if after > 0 {
		i := slices.IndexFunc(out, func(r audit.Record) bool { return r.Sequence == after })
		out = out[i+1:]
	}
	return out[:min(len(out), cmp.Or(q.Limit, audit.DefaultLimit))], nil
}

func (m *memory) Get(_ context.Context, id string) (audit.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return audit.Record{}, m.fail
	}
	for _, d := range m.log {
		if d.Event.ID() == id {
			return record(d), nil
		}
	}
	return audit.Record{}, audit.ErrNotFound
}

func (m *memory) Clusters(context.Context) ([]Cluster, error) {
	return slices.Clone(m.clusters), m.fail
}
func (m *memory) Pools(context.Context) ([]Pool, error) { return m.pools, m.fail }
func (m *memory) Nodes(context.Context) ([]Node, error) { return slices.Clone(m.nodes), m.fail }
func (m *memory) Pod(_ context.Context, cluster, ns, name string) (Pod, bool, error) {
	p, ok := m.pods[cluster+"/"+ns+"/"+name]
	return p, ok, m.fail
}

// add puts an event of one of our roles into the log.
func (m *memory) add(t *testing.T, meta events.Meta, p events.Payload) events.Event {
	t.Helper()
	meta.Cluster = cmp.Or(meta.Cluster, "home")
	meta.Publisher = cmp.Or(meta.Publisher, "decision")
	meta.Time = t0
	meta.ID = cmp.Or(meta.ID, events.ID(p.EventType(), meta.Node, time.Duration(len(m.log)).String()))
	e, err := events.New(meta, p)
	require.NoError(t, err)
	require.NoError(t, m.Publish(context.Background(), e))
	return e
}

type testBundle struct {
	*memory
	server  *Server
	clock   *testingclock.FakeClock
	key     auth.Key
	targets []Target
	failing error // of the readiness check
}

func setup(t *testing.T, change ...func(*Options)) *testBundle {
	t.Helper()
	b := &testBundle{memory: newMemory(), clock: testingclock.NewFakeClock(t0.Add(time.Minute)), key: auth.NewKey(),
		targets: []Target{{Cluster: "home", Pools: []string{"burst", "ci"}, Signals: []string{"queue"}}}}
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte(b.key.Token), 0o600))
	log := slog.New(slog.DiscardHandler)
	tokens, err := auth.Open([]string{path}, log)
	require.NoError(t, err)
	reg := prometheus.NewRegistry()
	o := Options{
		Version: "v0.0.0-test", Publisher: b.memory, Log: b.memory, DeadLetters: b.memory, Audit: b.memory, World: b.memory, Shadows: b.memory,
		Targets: func() []Target { return b.targets },
		DefaultCluster: func() string {
			if len(b.targets) == 1 {
				return b.targets[0].Cluster
			}
			return ""
		},
		Alerts: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			w.WriteHeader(http.StatusAccepted)
		}),
		Tokens: tokens, Ready: []Check{{Name: "bus", Check: func(context.Context) error { return b.failing }}},
		Gatherer: reg, Registerer: reg, Logger: log, Clock: b.clock,
		Limits: Limits{BodyBytes: 64 << 10, Streams: 2},
	}
	for _, c := range change {
		c(&o)
	}
	b.server, err = New(o)
	require.NoError(t, err)
	return b
}

type answer struct {
	*httptest.ResponseRecorder
}

func (a answer) problem(t *testing.T) map[string]any {
	t.Helper()
	require.Equal(t, "application/problem+json", a.Header().Get("Content-Type"), a.Body.String())
	var p map[string]any
	require.NoError(t, json.Unmarshal(a.Body.Bytes(), &p))
	require.InEpsilon(t, float64(a.Code), p["status"], 0.1)
	require.NotEmpty(t, p["title"])
	return p
}

func (b *testBundle) call(method, path, body string, header ...string) answer {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+b.key.Token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.server.Handler().ServeHTTP(w, r)
	return answer{w}
}

func get[T any](t *testing.T, b *testBundle, path string) T {
	t.Helper()
	a := b.call(http.MethodGet, path, "")
	require.Equal(t, http.StatusOK, a.Code, a.Body.String())
	var v T
	require.NoError(t, json.Unmarshal(a.Body.Bytes(), &v), a.Body.String())
	return v
}
