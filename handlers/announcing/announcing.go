// Package announcing tells people where they look first: as Kubernetes Events on
// the pods and nodes concerned. It says why a pod got a node or gets none, and
// what becomes of a node and why.
//
// The stream of record and the audit store hold everything; an announcement is a
// courtesy. So it never holds anything up: what can't be written is counted,
// logged and forgotten, and a batch is always taken. What is older than MaxAge is
// left out, so that neither a first start on a long log nor the end of an outage
// tells old news. What a dry run decided is nobody's news.
package announcing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// MaxAge is how old an event may be to be told. A pod that still waits is told
// of again when its verdict changes.
const MaxAge = 10 * time.Minute

// ErrNotFound says that the pod is gone: nobody will look at it.
var ErrNotFound = errors.New("not found")

// Note is one announcement.
type Note struct {
	Namespace string // of the pod; empty for a node
	Name      string // of the pod or node
	Warning   bool
	Reason    string // CamelCase, for programs
	Message   string
	// ID is of the event that the note follows: the same note of the same event is
	// written once, whichever process tries.
	ID string
}

// Board is where notes are pinned up: the API server of one cluster.
type Board interface {
	// Post hands a note over, to be written as soon as can be: what it returns
	// is about the object, not about the writing. ErrNotFound when the pod is gone.
	Post(ctx context.Context, n Note) error
}

// Options of a Handler. Boards is required.
type Options struct {
	Boards     map[string]Board      // by cluster; events of others are left out
	Clock      clock.PassiveClock    // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
}

// Handler implements bus.BatchHandler.
type Handler struct {
	opts   Options
	log    *slog.Logger
	errors prometheus.Counter
}

// New returns a Handler.
func New(o Options) (*Handler, error) {
	if len(o.Boards) == 0 {
		return nil, errors.New("announcing: boards are required")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	h := &Handler{opts: o, log: o.Logger.With("handler", events.HandlerAnnouncing)}
	h.errors = bus.ErrorsTotal(o.Registerer, h.log).WithLabelValues(events.HandlerAnnouncing)
	return h, nil
}

// Name implements bus.BatchHandler.
func (h *Handler) Name() string { return events.HandlerAnnouncing }

// HandleBatch announces what a batch holds. It never fails. A cluster that does
// not answer is not asked again within the batch: a full batch may name thousands
// of pods, and its log goes on growing.
func (h *Handler) HandleBatch(ctx context.Context, ds []bus.Delivery) error {
	silent := map[string]int{}
	for _, d := range ds {
		board := h.opts.Boards[d.Key.Cluster]
		if board == nil || events.IsDryRun(d.Event) || d.Redrive.Handler != "" || h.opts.Clock.Since(d.StreamTime) > MaxAge {
			continue
		}
		for _, n := range notes(d.Event) {
			if silent[d.Key.Cluster] > 0 {
				silent[d.Key.Cluster]++
				continue
			}
			err := board.Post(ctx, n)
			if err == nil || errors.Is(err, ErrNotFound) {
				continue
			}
			silent[d.Key.Cluster] = 1
			h.log.WarnContext(ctx, "an announcement can't be made, nor those behind it in this batch; the audit has what they would have said",
				"cluster", d.Key.Cluster, "object", n.object(), "reason", n.Reason, "event", n.ID, "error", err)
		}
	}
	for _, n := range silent {
		h.errors.Add(float64(n))
	}
	return nil
}

func (n Note) object() string {
	if n.Namespace == "" {
		return "node/" + n.Name
	}
	return fmt.Sprintf("pod/%s/%s", n.Namespace, n.Name)
}
