// Package auditing records every event of the stream of record, in stream
// order, with who asked for it and why.
//
// It is one consumer over everything. A batch is one transaction; only then is
// it acknowledged: killed in between, it comes again and leaves no trace.
//
// A batch that does not follow what is recorded is preceded by what is missing,
// read from the stream itself: another process may be about to record it, or
// the store was restored from a backup. What the stream no longer holds, because
// its limits dropped it, is lost: that is recorded as a gap, logged as an error
// and counted in autoscaler_audit_events_lost_total, and recording goes on
// behind it. Refusing to go on would lose what comes next as well.
//
// A stream that nothing was recorded of yet is recorded from its oldest event,
// whatever arrives first: another process may have died with what came before.
package auditing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
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
	Redrive                    string // of a copy that was redriven: which
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
	// High returns the latest incarnation of the stream and its last sequence that
	// is recorded or skipped; "" and 0 for an empty store.
	High(ctx context.Context) (incarnation string, sequence uint64, err error)
}

// Log is the stream of record; *bus.Bus is one.
type Log interface {
	// Read returns what the stream still holds, in order.
	Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error]
}

// fillSize is how many missing events are recorded at once; it bounds the memory
// that takes.
const fillSize = 256

// Options of a Handler. Store and Log are required.
type Options struct {
	Store      Store
	Log        Log
	Clock      clock.PassiveClock    // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
	// OnStep is called before and after every transaction, as
	// "auditing/append/before", for tests that kill the process there.
	OnStep func(step string)
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
	if o.OnStep == nil {
		o.OnStep = func(string) {}
	}
	h := &Handler{opts: o, log: o.Logger.With("handler", events.HandlerAuditing)}
	h.metrics = newMetrics(o.Registerer, h.log)
	return h, nil
}

// Name implements bus.BatchHandler.
func (h *Handler) Name() string { return events.HandlerAuditing }

// HandleBatch records a batch. An error leaves all of it on the bus.
func (h *Handler) HandleBatch(ctx context.Context, ds []bus.Delivery) error {
	for rest := ds; len(rest) > 0; {
		n := consecutive(rest)
		if err := h.append(ctx, rest[:n]); err != nil {
			h.metrics.errors.WithLabelValues(events.HandlerAuditing).Inc()
			return fmt.Errorf("record sequences %d to %d: %w", rest[0].Sequence, rest[n-1].Sequence, err)
		}
		rest = rest[n:]
	}
	return nil
}

// consecutive is how many deliveries at the beginning follow one another.
func consecutive(ds []bus.Delivery) int {
	n := 1
	for n < len(ds) && ds[n].Sequence == ds[n-1].Sequence+1 && ds[n].Incarnation == ds[0].Incarnation {
		n++
	}
	return n
}

// append records consecutive events, and before them what is missing.
func (h *Handler) append(ctx context.Context, ds []bus.Delivery) error {
	if err := h.begin(ctx, ds[0]); err != nil {
		return err
	}
	err := h.store(ctx, ds)
	var gap *GapError
	if !errors.As(err, &gap) {
		return err
	}
	h.log.WarnContext(ctx, "the audit lacks events, they are read from the stream of record",
		"from_sequence", gap.Last+1, "to_sequence", ds[0].Sequence-1)
	if err := h.fill(ctx, ds[0].Incarnation, gap.Last+1, ds[0].Sequence-1); err != nil {
		return err
	}
	return h.store(ctx, ds)
}

// begin records what an unknown stream holds before its first delivery. Where
// the stream begins is where the record begins: nothing before it is missing.
func (h *Handler) begin(ctx context.Context, first bus.Delivery) error {
	known, high, err := h.opts.Store.High(ctx)
	if err != nil || known == first.Incarnation {
		return err
	}
	if known != "" {
		h.log.WarnContext(ctx, "the stream of record is another one than before, its events are recorded behind the old ones",
			"before", known, "before_sequence", high, "now", first.Incarnation)
	}
	if first.Sequence == 1 {
		return nil
	}
	return h.fill(ctx, first.Incarnation, 0, first.Sequence-1)
}

// store records consecutive events in one transaction.
func (h *Handler) store(ctx context.Context, ds []bus.Delivery) error {
	batch := make([]Record, len(ds))
	for i, d := range ds {
		r, err := record(d)
		if err != nil {
			return err
		}
		batch[i] = r
	}
	h.opts.OnStep("auditing/append/before")
	if err := h.opts.Store.Append(ctx, batch); err != nil {
		return err
	}
	h.opts.OnStep("auditing/append/after")
	return nil
}

// fill records the sequences from..to as the stream holds them, and as lost what
// it does not; from 0 is wherever the stream begins.
func (h *Handler) fill(ctx context.Context, incarnation string, from, to uint64) error {
	var pending []bus.Delivery
	next := from // everything before it is recorded, pending or lost
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		err := h.store(ctx, pending)
		pending = nil
		return err
	}
	for d, err := range h.opts.Log.Read(ctx, bus.ReadOptions{FromSequence: from, UntilSequence: to}) {
		var undecodable *bus.UndecodableError
		if errors.As(err, &undecodable) {
			// What RunBatch delivers in its place.
			d, err = bus.Undecoded(events.HandlerAuditing, d, undecodable)
		}
		if err != nil {
			return fmt.Errorf("read what is missing: %w", err)
		}
		if d.Incarnation != incarnation {
			return fmt.Errorf("read what is missing: the stream became %s, expected %s", d.Incarnation, incarnation)
		}
		if next == 0 {
			next = d.Sequence
		}
		if d.Sequence > next || len(pending) == fillSize {
			if err := flush(); err != nil {
				return err
			}
		}
		if d.Sequence > next {
			if err := h.skip(ctx, incarnation, next, d.Sequence-1); err != nil {
				return err
			}
		}
		pending, next = append(pending, d), d.Sequence+1
	}
	if err := errors.Join(flush(), ctx.Err()); err != nil {
		return err
	}
	if next == 0 || next > to {
		return nil
	}
	return h.skip(ctx, incarnation, next, to)
}

func (h *Handler) skip(ctx context.Context, incarnation string, from, to uint64) error {
	if err := h.opts.Store.Skip(ctx, Gap{Incarnation: incarnation, From: from, To: to, At: h.opts.Clock.Now().UTC()}); err != nil {
		return fmt.Errorf("record that sequences %d to %d are lost: %w", from, to, err)
	}
	h.metrics.lost.Add(float64(to - from + 1))
	h.metrics.errors.WithLabelValues(events.HandlerAuditing).Inc()
	h.log.ErrorContext(ctx, "events were dropped by the limits of the stream before they were audited; raise bus.max_age or bus.max_bytes, or find out why auditing was late",
		"from_sequence", from, "to_sequence", to)
	return nil
}

func record(d bus.Delivery) (Record, error) {
	e := d.Event
	encoded, err := json.Marshal(e)
	if err != nil {
		// Data that is not what its content type says is kept as bytes: recording
		// an event never depends on understanding it.
		e.DataBase64 = true
		if encoded, err = json.Marshal(e); err != nil {
			return Record{}, fmt.Errorf("encode event %s: %w", e.ID(), err)
		}
	}
	return Record{
		Incarnation: d.Incarnation, Sequence: d.Sequence, StreamTime: d.StreamTime,
		ID: e.ID(), Source: e.Source(), Redrive: events.Extension(e, events.ExtRedrive), Type: e.Type(), Cluster: d.Key.Cluster, Key: d.Key.Name,
		CorrelationID: events.Extension(e, events.ExtCorrelationID),
		CausationID:   events.Extension(e, events.ExtCausationID),
		Details:       details(e.Data()), Event: encoded,
	}, nil
}
