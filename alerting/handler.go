package alerting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	// DefaultMaxBody is how large a webhook body may be, in bytes. A body with
	// 1,000 alerts is about 0.5 MiB.
	DefaultMaxBody = 4 << 20
	// DefaultTimeout is how long the bus may take to acknowledge. Alertmanager
	// gives a webhook its group interval and retries what was refused with 5xx.
	DefaultTimeout = 5 * time.Second
	// DefaultClusterLabel is the alert label that names the cluster, where
	// more than one is configured.
	DefaultClusterLabel = "cluster"
)

// EventPublisher hands events to the bus.
type EventPublisher interface {
	// Publish returns nil only after every event is durably stored. After an
	// error some may be: the same events are published again under the same ids.
	Publish(ctx context.Context, es ...events.Event) error
}

// Options configure the webhook's handler.
type Options struct {
	// Publisher takes the events. Required.
	Publisher EventPublisher
	// Clusters returns the names of the configured clusters; it is called for
	// each request, so a reload takes effect at once. Required.
	Clusters func() []string
	// Logger. Required.
	Logger *slog.Logger
	// Registerer takes the metrics. Required.
	Registerer prometheus.Registerer
	// Clock. Required.
	Clock clock.PassiveClock

	// DefaultCluster returns the cluster of alerts without that label, where more
	// than one is configured; nil or "": such an alert is refused.
	DefaultCluster func() string
	// ClusterLabel. Default DefaultClusterLabel.
	ClusterLabel string
	// Expiry is how long an alert counts without being repeated. Default DefaultExpiry.
	Expiry time.Duration
	// MaxBody is the largest body accepted, in bytes. Default DefaultMaxBody.
	MaxBody int64
	// Timeout is how long the bus may take to acknowledge. Default DefaultTimeout.
	Timeout time.Duration
}

func (o *Options) complete() error {
	var errs []error
	for name, missing := range map[string]bool{
		"Publisher": o.Publisher == nil, "Clusters": o.Clusters == nil, "Logger": o.Logger == nil,
		"Registerer": o.Registerer == nil, "Clock": o.Clock == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("alerting: Options.%s is required", name))
		}
	}
	if o.ClusterLabel == "" {
		o.ClusterLabel = DefaultClusterLabel
	}
	if o.Expiry <= 0 {
		o.Expiry = DefaultExpiry
	}
	if o.MaxBody <= 0 {
		o.MaxBody = DefaultMaxBody
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	return errors.Join(errs...)
}

// Handler answers Alertmanager's webhook. It does not authenticate: whoever
// mounts it does.
//
//	202 every alert of the body is on the bus (also for a body without alerts)
//	400 the body can't be understood; Alertmanager does not send it again
//	405 not a POST
//	413 the body is too large
//	503 the bus did not acknowledge; Alertmanager sends the body again
//
// Errors are problem details (RFC 9457).
type Handler struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
}

// NewHandler validates all options at once.
func NewHandler(o Options) (*Handler, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	return &Handler{o: o, log: o.Logger, metrics: m}, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := h.o.Clock.Now()
	status := h.serve(w, r)
	h.metrics.answered(status, h.o.Clock.Since(start))
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) int {
	ctx := r.Context()
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return h.refuse(ctx, w, problem{Status: http.StatusMethodNotAllowed,
			Detail: fmt.Sprintf("The method is %s, expected POST: this is Alertmanager's webhook.", r.Method)})
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.o.MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return h.refuse(ctx, w, problem{Status: http.StatusRequestEntityTooLarge,
			Detail: fmt.Sprintf("The body exceeds %d bytes. Set max_alerts in Alertmanager's webhook_configs, or raise the limit.", tooLarge.Limit)})
	case err != nil:
		return h.refuse(ctx, w, problem{Status: http.StatusBadRequest, Detail: "The body ended early: " + err.Error()})
	}
	resolve, err := h.resolver(r)
	if err != nil {
		return h.refuse(ctx, w, invalid(err))
	}
	b, err := Convert(body, ConvertOptions{ReceivedAt: h.o.Clock.Now(), Expiry: h.o.Expiry, Cluster: resolve})
	if err != nil {
		return h.refuse(ctx, w, invalid(err))
	}
	if len(b.Events) > 0 {
		publish, cancel := context.WithTimeout(ctx, h.o.Timeout)
		err := h.o.Publisher.Publish(publish, b.Events...)
		cancel()
		if err != nil {
			w.Header().Set("Retry-After", "1")
			return h.refuse(ctx, w, problem{Status: http.StatusServiceUnavailable,
				Detail: "The event bus did not acknowledge the alerts; send the same body again: " + err.Error()})
		}
	}
	h.record(ctx, b)
	return answer(w, http.StatusAccepted, "application/json", map[string]int{"accepted": len(b.Events), "truncated": b.Truncated})
}

func (h *Handler) record(ctx context.Context, b Batch) {
	h.metrics.received(b)
	args := []any{"receiver", b.Receiver, "group_key", b.GroupKey, "firing", b.Firing, "resolved", len(b.Events) - b.Firing}
	if b.Truncated > 0 {
		h.log.WarnContext(ctx, "alerts received, Alertmanager left some out: raise max_alerts or narrow the route's group_by",
			append(args, "truncated", b.Truncated)...)
		return
	}
	h.log.DebugContext(ctx, "alerts received", args...)
}

// resolver returns how alerts of one request are assigned to a cluster: the
// query parameter "cluster" wins, then the cluster label, then the only cluster
// there is, and without a label the default one.
func (h *Handler) resolver(r *http.Request) (func(map[string]string) (string, error), error) {
	known := h.o.Clusters()
	expected := "one of the configured clusters: " + strings.Join(known, ", ")
	if query := r.URL.Query(); query.Has("cluster") {
		name := query.Get("cluster")
		if !slices.Contains(known, name) {
			return nil, &InvalidError{Fields: []FieldError{{Field: "?cluster", Value: shorten(name), Expected: expected}}}
		}
		return func(map[string]string) (string, error) { return name, nil }, nil
	}
	return func(labels map[string]string) (string, error) {
		if name := labels[h.o.ClusterLabel]; slices.Contains(known, name) {
			return name, nil
		}
		// Prometheus' external_labels often call the only cluster something else.
		if len(known) == 1 {
			return known[0], nil
		}
		if h.o.DefaultCluster != nil && labels[h.o.ClusterLabel] == "" && slices.Contains(known, h.o.DefaultCluster()) {
			return h.o.DefaultCluster(), nil
		}
		return "", errors.New(expected + ", in the label " + h.o.ClusterLabel + " or as ?cluster=NAME in the webhook's url")
	}, nil
}

// problem is an RFC 9457 problem detail; its type is about:blank.
type problem struct {
	Title  string         `json:"title"`
	Status int            `json:"status"`
	Detail string         `json:"detail"`
	Errors []problemField `json:"errors,omitempty"`
}

type problemField struct {
	Location string `json:"location"`
	Value    string `json:"value"`
	Message  string `json:"message"`
}

func invalid(err error) problem {
	p := problem{Status: http.StatusBadRequest, Detail: "The webhook body was refused: " + err.Error()}
	var in *InvalidError
	if errors.As(err, &in) {
		for _, f := range in.Fields {
			p.Errors = append(p.Errors, problemField{Location: f.location(), Value: f.Value, Message: "expected " + f.Expected})
		}
	}
	return p
}

func (h *Handler) refuse(ctx context.Context, w http.ResponseWriter, p problem) int {
	p.Title = http.StatusText(p.Status)
	h.log.WarnContext(ctx, "webhook refused", "status", p.Status, "detail", p.Detail)
	return answer(w, p.Status, "application/problem+json", p)
}

func answer(w http.ResponseWriter, status int, contentType string, v any) int {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	// The status is out; a client that hung up reads nothing more.
	_ = json.NewEncoder(w).Encode(v)
	return status
}
