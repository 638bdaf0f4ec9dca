package telemetry

import (
	"errors"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/utils/clock"
)

// NewRegistry returns a registry with the metrics of the Go runtime, of the
// process and autoscaler_build_info.
func NewRegistry(version string) (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "autoscaler_build_info",
		Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{
			"version": version, "revision": revision(), "goversion": runtime.Version(),
		},
	})
	info.Set(1)
	err := errors.Join(
		r.Register(collectors.NewGoCollector()),
		r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
		r.Register(info),
	)
	return r, err
}

// revision is the commit that the binary was built from, where Go knows it.
func revision() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// HTTPMetrics counts and times the calls of an HTTP server.
type HTTPMetrics struct {
	clock    clock.PassiveClock
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// NewHTTPMetrics registers autoscaler_http_request_duration_seconds and
// autoscaler_http_requests_in_flight.
func NewHTTPMetrics(reg prometheus.Registerer, c clock.PassiveClock) (*HTTPMetrics, error) {
	m := &HTTPMetrics{
		clock: c,
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_http_request_duration_seconds",
			Help:    "Time to answer an HTTP call, by route and status code.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"method", "route", "code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "autoscaler_http_requests_in_flight", Help: "HTTP calls being answered, event streams included.",
		}),
	}
	return m, errors.Join(reg.Register(m.duration), reg.Register(m.inFlight))
}

// Wrap instruments next. route names the route of a call, from a fixed set.
func (m *HTTPMetrics) Wrap(route func(*http.Request) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := m.clock.Now()
		m.inFlight.Inc()
		defer m.inFlight.Dec()
		s := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			m.duration.WithLabelValues(method(r.Method), route(r), strconv.Itoa(s.code)).Observe(since(m.clock, start).Seconds())
		}()
		next.ServeHTTP(s, r)
	})
}

func since(c clock.PassiveClock, t time.Time) time.Duration { return c.Now().Sub(t) }

// method keeps made-up methods from becoming series.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions:
		return m
	}
	return "other"
}

type statusWriter struct {
	http.ResponseWriter
	code  int
	wrote bool
}

func (w *statusWriter) WriteHeader(code int) {
	if !w.wrote {
		w.code, w.wrote = code, true
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
