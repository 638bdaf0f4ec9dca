// Package api is the HTTP interface of the gateway: the Alertmanager webhook,
// CloudEvents in, queries and a stream of events out, health and metrics.
//
// It is closed by default: everything but /livez, /readyz and /health needs a
// bearer token, unknown paths included. A 2xx for something that was sent in
// means that the bus has stored it. Errors are problem details (RFC 9457).
package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/telemetry"
)

// Publisher hands events to the bus.
type Publisher interface {
	// Publish returns nil only after every event is durably stored;
	// bus.ErrUnavailable when the bus does not acknowledge in time.
	Publish(ctx context.Context, es ...events.Event) error
}

// Log is the stream of record.
type Log interface {
	// Read returns stored events in stream order, and with Follow new ones until
	// ctx ends.
	Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error]
	// LastSequence is that of the newest event.
	LastSequence(ctx context.Context) (uint64, error)
	// LogState is what it holds.
	LogState(ctx context.Context) (bus.LogState, error)
}

// DeadLetters are the events that were set aside.
type DeadLetters interface {
	DeadLetters(ctx context.Context) ([]bus.DeadLetter, error)
	// Parked returns the keys on which a handler does not act because of them.
	Parked(ctx context.Context, handler string) ([]bus.ParkedKey, error)
}

// Audit is the audit store, for reading.
type Audit interface {
	// List returns the records that match, in the order of the query.
	List(ctx context.Context, q audit.Query) ([]audit.Record, error)
	// Get returns the record of an event; audit.ErrNotFound.
	Get(ctx context.Context, eventID string) (audit.Record, error)
	// High is how far it goes: the latest incarnation of the stream and a sequence.
	High(ctx context.Context) (incarnation string, sequence uint64, err error)
	// Gaps returns everything that is missing, oldest first.
	Gaps(ctx context.Context) ([]audit.Gap, error)
}

// World is the present state of everything. Package view has one that follows
// the log.
type World interface {
	Clusters(ctx context.Context) ([]Cluster, error)
	Pools(ctx context.Context) ([]Pool, error)
	Nodes(ctx context.Context) ([]Node, error)
	// Pod returns a pod of the last snapshot; false when there is none.
	Pod(ctx context.Context, cluster, namespace, name string) (Pod, bool, error)
}

// Target is a configured cluster with the names of its pools, and of the signals
// that its metric rules look at.
type Target struct {
	Cluster string
	Pools   []string
	Signals []string
}

// Check is a condition for being ready.
type Check struct {
	Name  string // shown to everybody
	Check func(ctx context.Context) error
}

// Options configure a Server. Everything without a default is required.
type Options struct {
	Version     string
	Publisher   Publisher
	Log         Log
	DeadLetters DeadLetters
	Audit       Audit
	World       World
	Shadows     Shadows
	// Targets returns what is configured; it is called for each request, so a
	// reload takes effect at once.
	Targets func() []Target
	// DefaultCluster returns the cluster of requests that name none; "" when
	// there is no such.
	DefaultCluster func() string
	// Alerts answers POST /v1/alerts.
	Alerts http.Handler
	Tokens *auth.Tokens
	// Ready are the conditions for being ready.
	Ready      []Check
	Gatherer   prometheus.Gatherer
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	Clock      clock.WithTicker

	// Limits of a call; zero values are the defaults of DefaultLimits.
	Limits Limits
}

// Limits are what a call may cost.
type Limits struct {
	BodyBytes     int64
	HeaderBytes   int
	HeaderTimeout time.Duration
	ReadTimeout   time.Duration
	WriteTimeout  time.Duration
	IdleTimeout   time.Duration
	PublishWait   time.Duration // for the bus to acknowledge
	Streams       int           // event streams at a time
	Heartbeat     time.Duration // of an event stream
}

// DefaultLimits are the defaults of the configuration.
func DefaultLimits() Limits {
	return Limits{
		BodyBytes: 4 << 20, HeaderBytes: 32 << 10,
		HeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, PublishWait: 5 * time.Second, Streams: 64, Heartbeat: 15 * time.Second,
	}
}

func (l *Limits) complete() {
	d := DefaultLimits()
	pick(&l.BodyBytes, d.BodyBytes)
	pick(&l.HeaderBytes, d.HeaderBytes)
	pick(&l.HeaderTimeout, d.HeaderTimeout)
	pick(&l.ReadTimeout, d.ReadTimeout)
	pick(&l.WriteTimeout, d.WriteTimeout)
	pick(&l.IdleTimeout, d.IdleTimeout)
	pick(&l.PublishWait, d.PublishWait)
	pick(&l.Streams, d.Streams)
	pick(&l.Heartbeat, d.Heartbeat)
}

func pick[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

func (o *Options) complete() error {
	o.Limits.complete()
	var errs []error
	for name, missing := range map[string]bool{
		"Publisher": o.Publisher == nil, "Log": o.Log == nil, "DeadLetters": o.DeadLetters == nil, "Audit": o.Audit == nil,
		"World": o.World == nil, "Shadows": o.Shadows == nil, "Targets": o.Targets == nil, "DefaultCluster": o.DefaultCluster == nil, "Alerts": o.Alerts == nil,
		"Tokens": o.Tokens == nil, "Gatherer": o.Gatherer == nil, "Registerer": o.Registerer == nil, "Logger": o.Logger == nil, "Clock": o.Clock == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("api: Options.%s is required", name))
		}
	}
	return errors.Join(errs...)
}

// Server is the HTTP interface.
type Server struct {
	o        Options
	mux      *http.ServeMux
	huma     huma.API
	handler  http.Handler
	refusals *auth.Refusals
	streams  chan struct{}
	closing  chan struct{} // closed when the server stops: event streams end
}

// New builds the interface; Handler and Serve make use of it.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	metrics, err := telemetry.NewHTTPMetrics(o.Registerer, o.Clock)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s := &Server{o: o, mux: http.NewServeMux(), streams: make(chan struct{}, o.Limits.Streams), closing: make(chan struct{})}
	s.refusals = auth.NewRefusals(o.Clock, s.publishRefusals, o.Logger)
	cfg := huma.DefaultConfig("k3s-autoscaler", o.Version)
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath, cfg.CreateHooks = "/v1/openapi", "", "", nil
	cfg.RejectUnknownQueryParameters = true
	cfg.Info.Description = "Everything but /livez, /readyz and /health needs a bearer token. Errors are problem details (RFC 9457)."
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "A token that 'k3s-autoscaler key new' made"}}
	cfg.Security = []map[string][]string{{"token": {}}}
	s.huma = humago.New(s.mux, cfg)
	s.routes()

	var h http.Handler = s.mux
	h = http.MaxBytesHandler(h, o.Limits.BodyBytes)
	h = auth.Middleware(o.Tokens, isOpen, s.refuse, h)
	h = s.recovered(h)
	h = metrics.Wrap(s.route, h)
	s.handler = h
	return s, nil
}

// isOpen lists what needs no token.
func isOpen(path string) bool {
	return path == "/livez" || path == "/readyz" || path == "/health"
}

// routes registers everything that is served. Routes lists it for tests.
func (s *Server) routes() {
	s.mux.HandleFunc("GET /livez", s.livez)
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /health", s.readyz)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelError)}))
	s.mux.Handle("POST /v1/alerts", s.o.Alerts)
	s.mux.HandleFunc("POST /v1/events", s.postEvents)
	s.mux.HandleFunc("GET /v1/stream", s.stream)
	s.mux.HandleFunc("/", s.notFound)
	s.queries()
	s.deadLetters()
	s.signals()
	s.shadows()
	s.describe()
}

// Route is a method and a path that the server answers.
type Route struct{ Method, Path string }

// Routes lists every route, from the same description that clients read.
func (s *Server) Routes() []Route {
	var out []Route
	for path, item := range s.huma.OpenAPI().Paths {
		for method, op := range map[string]*huma.Operation{http.MethodGet: item.Get, http.MethodPost: item.Post} {
			if op != nil {
				out = append(out, Route{method, path})
			}
		}
	}
	return append(out, Route{http.MethodGet, "/v1/openapi.json"}, Route{http.MethodGet, "/v1/openapi.yaml"})
}

// Handler is the whole interface, authentication included.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI is the description in JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.huma.OpenAPI().MarshalJSON() }

// Serve answers on l until ctx ends, then lets calls finish for five seconds.
// It also reports refused calls.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.o.Limits.HeaderTimeout,
		ReadTimeout:       s.o.Limits.ReadTimeout,
		WriteTimeout:      s.o.Limits.WriteTimeout,
		IdleTimeout:       s.o.Limits.IdleTimeout,
		MaxHeaderBytes:    s.o.Limits.HeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	refusals := make(chan error, 1)
	counting, stopCounting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCounting()
	go func() { refusals <- s.refusals.Run(counting) }()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		close(s.closing)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(srv.Shutdown(end), <-served)
	}
	stopCounting()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	if err = errors.Join(err, <-refusals); err == nil {
		return nil
	}
	return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
}

// route names the route of a call for metrics.
func (s *Server) route(r *http.Request) string {
	if _, pattern := s.mux.Handler(r); pattern != "" {
		return pattern
	}
	return "none"
}

// recovered turns a panic into a problem and a log entry.
func (s *Server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // documented to be compared
					panic(p)
				}
				s.o.Logger.ErrorContext(r.Context(), "http handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p))
				writeProblem(w, http.StatusInternalServerError, "The server made a mistake; its log says which.")
			}
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, reason error) {
	s.refusals.Add(r, reason)
	w.Header().Set("WWW-Authenticate", `Bearer realm="k3s-autoscaler"`)
	writeProblem(w, http.StatusUnauthorized, fmt.Sprintf("%s; send 'Authorization: Bearer <token>' with a token of api.token_files.", sentence(reason)))
}

func (s *Server) publishRefusals(ctx context.Context, p events.AccessRefused) error {
	cluster := s.o.DefaultCluster()
	if ts := s.o.Targets(); cluster == "" && len(ts) > 0 {
		cluster = ts[0].Cluster
	}
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "api", Time: p.Last,
		ID: events.ID("access.refused", p.Reason, p.Method, p.Path, p.First.String(), p.Last.String())}, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Limits.PublishWait)
	defer cancel()
	return s.o.Publisher.Publish(ctx, e)
}
