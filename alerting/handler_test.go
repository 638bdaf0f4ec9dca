package alerting_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/alerting"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// memoryBus keeps each event id once, as the stream of record does.
type memoryBus struct {
	down   error
	events map[string]events.Event
	calls  int
}

func (b *memoryBus) Publish(_ context.Context, es ...events.Event) error {
	b.calls++
	if b.down != nil {
		return b.down
	}
	for _, e := range es {
		if _, ok := b.events[e.ID()]; !ok {
			b.events[e.ID()] = e
		}
	}
	return nil
}

type testBundle struct {
	handler  *alerting.Handler
	bus      *memoryBus
	clock    *clocktesting.FakePassiveClock
	registry *prometheus.Registry
	log      *bytes.Buffer

	defaultCluster string
}

func setup(t *testing.T, clusters ...string) *testBundle {
	t.Helper()
	if clusters == nil {
		clusters = []string{"home"}
	}
	b := &testBundle{
		bus:      &memoryBus{events: map[string]events.Event{}},
		clock:    clocktesting.NewFakePassiveClock(received),
		registry: prometheus.NewPedanticRegistry(),
		log:      &bytes.Buffer{},
	}
	h, err := alerting.NewHandler(alerting.Options{
		Publisher:  b.bus,
		Clusters:   func() []string { return clusters },
		Logger:     slog.New(slog.NewJSONHandler(b.log, nil)),
		Registerer: b.registry,
		Clock:      b.clock,
		MaxBody:    8 << 10,

		DefaultCluster: func() string { return b.defaultCluster },
	})
	require.NoError(t, err)
	b.handler = h
	return b
}

func (b *testBundle) post(url string, body io.Reader) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, url, body)
	r.Header.Set("Content-Type", "application/json")
	b.handler.ServeHTTP(w, r)
	return w
}

type problem struct {
	Title  string
	Status int
	Detail string
	Errors []struct{ Location, Value, Message string }
}

func requireProblem(t *testing.T, w *httptest.ResponseRecorder, status int) problem {
	t.Helper()
	require.Equal(t, status, w.Code, w.Body)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	var p problem
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	return p
}

func TestWebhookPublishesOneEventPerAlertOnceForTwoPosts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := recorded(t, "am-0.34-003-firing.json")
	for range 2 {
		w := b.post("/v1/alerts", bytes.NewReader(body))
		require.Equal(t, http.StatusAccepted, w.Code)
		require.JSONEq(t, `{"accepted":3,"truncated":0}`, w.Body.String())
	}
	require.Equal(t, 2, b.bus.calls)
	require.Len(t, b.bus.events, 3, "a retry collapses")

	b.clock.SetTime(received.Add(5 * time.Minute))
	require.Equal(t, http.StatusAccepted, b.post("/v1/alerts", bytes.NewReader(body)).Code)
	require.Len(t, b.bus.events, 6, "a repeat refreshes")
}

func TestWebhookRecordsThatAlertmanagerLeftAlertsOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.post("/v1/alerts", bytes.NewReader(recorded(t, "am-0.25-truncated-max_alerts.json")))
	require.Equal(t, http.StatusAccepted, w.Code)
	require.JSONEq(t, `{"accepted":3,"truncated":4}`, w.Body.String())
	for _, e := range b.bus.events {
		p, err := events.Decode[events.AlertReceived](e)
		require.NoError(t, err)
		require.Equal(t, 4, p.TruncatedAlerts)
	}
	require.Contains(t, b.log.String(), `"truncated":4`)
	require.NoError(t, testutil.GatherAndCompare(b.registry, strings.NewReader(`
# HELP autoscaler_alerts_received_total Alerts that Alertmanager posted and the bus acknowledged, by status (firing, resolved).
# TYPE autoscaler_alerts_received_total counter
autoscaler_alerts_received_total{status="firing"} 2
autoscaler_alerts_received_total{status="resolved"} 1
# HELP autoscaler_alerts_truncated_total Alerts that Alertmanager left out of its webhook bodies because of max_alerts.
# TYPE autoscaler_alerts_truncated_total counter
autoscaler_alerts_truncated_total 4
`), "autoscaler_alerts_received_total", "autoscaler_alerts_truncated_total"))
}

func TestWebhookAnswers503UntilTheBusAcknowledges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := recorded(t, "am-0.25-firing-single.json")
	b.bus.down = errors.New("no answer from JetStream within 5s")
	w := b.post("/v1/alerts", bytes.NewReader(body))
	p := requireProblem(t, w, http.StatusServiceUnavailable)
	require.Contains(t, p.Detail, "no answer from JetStream")
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Empty(t, b.bus.events)
	require.Zero(t, testutil.ToFloat64(firing(t, b)), "what the bus did not take was not received")

	b.bus.down = nil
	require.Equal(t, http.StatusAccepted, b.post("/v1/alerts", bytes.NewReader(body)).Code)
	require.Len(t, b.bus.events, 1)
}

// firing reads the counter back through the registry's own collector.
func firing(t *testing.T, b *testBundle) prometheus.Collector {
	t.Helper()
	families, err := b.registry.Gather()
	require.NoError(t, err)
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "read_back"})
	for _, f := range families {
		if f.GetName() == "autoscaler_alerts_received_total" {
			for _, m := range f.GetMetric() {
				g.Add(m.GetCounter().GetValue())
			}
		}
	}
	return g
}

func TestWebhookPublishesNothingForABodyWithoutAlerts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Equal(t, http.StatusAccepted, b.post("/v1/alerts", strings.NewReader(`{"version":"4","alerts":[]}`)).Code)
	require.Zero(t, b.bus.calls)
}

func TestWebhookNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := requireProblem(t, b.post("/v1/alerts", strings.NewReader(`{"version":"3","alerts":[]}`)), http.StatusBadRequest)
	require.Len(t, p.Errors, 1)
	require.Equal(t, "version", p.Errors[0].Location)
	require.Equal(t, "3", p.Errors[0].Value)
	require.Contains(t, p.Errors[0].Message, `expected "4"`)

	whole := recorded(t, "am-0.34-001-firing.json")
	p = requireProblem(t, b.post("/v1/alerts", bytes.NewReader(whole[:len(whole)-10])), http.StatusBadRequest)
	require.Equal(t, "body", p.Errors[0].Location)
	require.Zero(t, b.bus.calls)
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestWebhookRefusesOtherRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := requireProblem(t, b.post("/v1/alerts", strings.NewReader(strings.Repeat("x", 8<<10+1))), http.StatusRequestEntityTooLarge)
	require.Contains(t, p.Detail, "8192 bytes")
	p = requireProblem(t, b.post("/v1/alerts", cutReader{}), http.StatusBadRequest)
	require.Contains(t, p.Detail, "unexpected EOF")

	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/alerts", nil))
	requireProblem(t, w, http.StatusMethodNotAllowed)
	require.Equal(t, http.MethodPost, w.Header().Get("Allow"))
	require.Zero(t, b.bus.calls)
}

func TestWebhookAssignsAlertsToClusters(t *testing.T) {
	t.Parallel()
	body := func(cluster string) io.Reader {
		return strings.NewReader(strings.Replace(string(recorded(t, "am-0.34-001-firing.json")),
			`"labels":{`, `"labels":{"cluster":"`+cluster+`",`, 1))
	}
	for name, c := range map[string]struct {
		clusters   []string
		url, label string
		want       string // empty: refused
		def        string // the default cluster
	}{
		"the only one":                            {[]string{"home"}, "/v1/alerts", "prod-eu", "home", ""},
		"by label":                                {[]string{"home", "away"}, "/v1/alerts", "away", "away", ""},
		"by query, which wins":                    {[]string{"home", "away"}, "/v1/alerts?cluster=home", "away", "home", ""},
		"unknown label among several":             {[]string{"home", "away"}, "/v1/alerts", "prod", "", ""},
		"unknown query":                           {[]string{"home"}, "/v1/alerts?cluster=prod", "home", "", ""},
		"empty query is not the same as no query": {[]string{"home"}, "/v1/alerts?cluster=", "home", "", ""},
		"no label, the default":                   {[]string{"home", "away"}, "/v1/alerts", "", "away", "away"},
		"no label, no default":                    {[]string{"home", "away"}, "/v1/alerts", "", "", ""},
		"an unknown label, a default":             {[]string{"home", "away"}, "/v1/alerts", "prod", "", "away"},
		"no label, a default that is gone":        {[]string{"home", "away"}, "/v1/alerts", "", "", "old"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c.clusters...)
			b.defaultCluster = c.def
			w := b.post(c.url, body(c.label))
			if c.want == "" {
				p := requireProblem(t, w, http.StatusBadRequest)
				require.Contains(t, p.Detail, strings.Join(c.clusters, ", "))
				require.Zero(t, b.bus.calls)
				return
			}
			require.Equal(t, http.StatusAccepted, w.Code, w.Body)
			for _, e := range b.bus.events {
				require.Equal(t, c.want+"/_cluster", events.Extension(e, events.ExtPartitionKey))
			}
		})
	}
}

func TestNewHandlerNamesEveryMissingOption(t *testing.T) {
	t.Parallel()
	_, err := alerting.NewHandler(alerting.Options{})
	for _, name := range []string{"Publisher", "Clusters", "Logger", "Registerer", "Clock"} {
		require.ErrorContains(t, err, "Options."+name+" is required")
	}
	b := setup(t)
	_, err = alerting.NewHandler(alerting.Options{
		Publisher: b.bus, Clusters: func() []string { return nil }, Logger: slog.New(slog.DiscardHandler),
		Registerer: b.registry, Clock: b.clock,
	})
	require.ErrorContains(t, err, "register alerting's metrics")
}
