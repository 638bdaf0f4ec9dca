// Package auditing records every event of the stream of record, in stream
// order, with who asked for it and why.
//
// It is one consumer over everything. A batch is one transaction; only then is
// it acknowledged. A batch that does not follow what is recorded is refused and
// stays on the bus, unless the events in between no longer exist: then the hole
// is recorded as such and reported.
package auditing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Record is one event and what people search for.
type Record struct {
	Incarnation string
	Sequence    uint64
	StreamTime  time.Time

	ID, Source, Type           string
	Cluster, Key               string
	CorrelationID, CausationID string
	Details                    Details

	Event json.RawMessage // structured CloudEvent
}

// Gap is a part of the stream that is gone.
type Gap struct {
	Incarnation string
	From, To    uint64
	At          time.Time
}

// GapError says that a batch does not follow the last record.
type GapError struct{ Last, Next uint64 }

func (e *GapError) Error() string {
	return fmt.Sprintf("the last record is sequence %d, the batch begins with %d", e.Last, e.Next)
}

// Store keeps the records.
type Store interface {
	// Append writes a batch in one transaction. What is stored already is
	// ignored. A batch that does not follow the last record is a *GapError.
	Append(ctx context.Context, batch []Record) error
	// Skip records that a part of the stream is gone.
	Skip(ctx context.Context, g Gap) error
}

// Log tells what the stream of record still holds; *bus.Bus is one.
type Log interface {
	// FirstSequence is the oldest sequence that the stream holds.
	FirstSequence(ctx context.Context) (uint64, error)
}

// Options of a Handler. Store and Log are required.
type Options struct {
	Store      Store
	Log        Log
	Clock      clock.PassiveClock    // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
}

// Handler implements bus.BatchHandler.
type Handler struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
}

// New returns a Handler.
func New(o Options) (*Handler, error) {
	var errs []error
	if o.Store == nil {
		errs = append(errs, errors.New("store is required"))
	}
	if o.Log == nil {
		errs = append(errs, errors.New("log is required"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("auditing: %w", err)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	h := &Handler{opts: o, log: o.Logger.With("handler", events.HandlerAuditing)}
	h.metrics = newMetrics(o.Registerer, h.log)
	return h, nil
}

// Name implements bus.BatchHandler.
func (h *Handler) Name() string { return events.HandlerAuditing }

// HandleBatch records a batch. An error leaves all of it on the bus.
func (h *Handler) HandleBatch(ctx context.Context, ds []bus.Delivery) error {
	batch := make([]Record, len(ds))
	for i, d := range ds {
		r, err := record(d)
		if err != nil {
			return err
		}
		batch[i] = r
	}
	for len(batch) > 0 {
		n := consecutive(batch)
		if err := h.append(ctx, batch[:n]); err != nil {
			h.metrics.errors.WithLabelValues(events.HandlerAuditing).Inc()
			return fmt.Errorf("record sequences %d to %d: %w", batch[0].Sequence, batch[n-1].Sequence, err)
		}
		batch = batch[n:]
	}
	return nil
}

// consecutive is how many records at the beginning follow one another.
func consecutive(batch []Record) int {
	n := 1
	for n < len(batch) && batch[n].Sequence == batch[n-1].Sequence+1 && batch[n].Incarnation == batch[0].Incarnation {
		n++
	}
	return n
}

// append records consecutive events. A hole before them is recorded if the
// stream no longer holds what is missing; otherwise another reader took it,
// and the batch must come again behind it.
func (h *Handler) append(ctx context.Context, batch []Record) error {
	err := h.opts.Store.Append(ctx, batch)
	var gap *GapError
	if !errors.As(err, &gap) {
		return err
	}
	if gap.Next <= gap.Last {
		return err
	}
	first, ferr := h.opts.Log.FirstSequence(ctx)
	if ferr != nil {
		return errors.Join(err, fmt.Errorf("ask what the stream still holds: %w", ferr))
	}
	if first <= gap.Last+1 {
		return err
	}
	lost := Gap{Incarnation: batch[0].Incarnation, From: gap.Last + 1, To: batch[0].Sequence - 1, At: h.opts.Clock.Now().UTC()}
	h.log.ErrorContext(ctx, "events were dropped by the limits of the stream before they were audited; raise bus.max_age or bus.max_bytes, or find out why auditing was late",
		"from_sequence", lost.From, "to_sequence", lost.To)
	h.metrics.lost.Add(float64(lost.To - lost.From + 1))
	if err := h.opts.Store.Skip(ctx, lost); err != nil {
		return err
	}
	return h.opts.Store.Append(ctx, batch)
}

func record(d bus.Delivery) (Record, error) {
	encoded, err := json.Marshal(d.Event)
	if err != nil {
		return Record{}, fmt.Errorf("encode event %s: %w", d.Event.ID(), err)
	}
	return Record{
		Incarnation: d.Incarnation, Sequence: d.Sequence, StreamTime: d.StreamTime,
		ID: d.Event.ID(), Source: d.Event.Source(), Type: d.Event.Type(), Cluster: d.Key.Cluster, Key: d.Key.Name,
		CorrelationID: events.Extension(d.Event, events.ExtCorrelationID),
		CausationID:   events.Extension(d.Event, events.ExtCausationID),
		Details:       details(d.Event.Data()), Event: encoded,
	}, nil
}
