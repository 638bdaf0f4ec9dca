// Package replay gives the events of the stream of record to a handler again,
// and proves that the same comes out.
//
// A replay acts on nothing: it reads a Log, which has no way to publish, and
// writes into a store of its own. What it runs is the handler's own code.
package replay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/recording"
)

// batchSize is how many events one transaction holds at most.
const batchSize = 256

// Log is the stream of record, for reading; *bus.Reader is one.
type Log interface {
	LogState(ctx context.Context) (bus.LogState, error)
	// Read returns stored events in stream order. A message that is no event comes
	// as a *bus.UndecodableError with its delivery, or as the event that auditing
	// records in its place.
	Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error]
}

// Live is the audit store that was written while the events came in.
type Live interface {
	High(ctx context.Context) (incarnation string, sequence uint64, err error)
	List(ctx context.Context, q audit.Query) ([]audit.Record, error)
	Get(ctx context.Context, eventID string) (audit.Record, error)
	Gaps(ctx context.Context) ([]audit.Gap, error)
}

// Position is a place in the stream: a sequence or a stream time; zero is the
// beginning or the end.
type Position struct {
	Sequence uint64
	Time     time.Time
}

// Options of a replay. Log, Live and Into are required.
type Options struct {
	Log  Log
	Live Live
	// Into is written. It must be empty.
	Into audit.Store
	// From is inclusive. To is the last sequence, or an exclusive time; the default
	// is what the live store has recorded.
	From, To Position
	// Types, Cluster and Node select the records that are compared; all of the
	// range is replayed, because a record depends on what came before it.
	Types         []string
	Cluster, Node string
	Logger        *slog.Logger // default: discards
}

func (o *Options) complete() error {
	var errs []error
	for name, missing := range map[string]bool{"log": o.Log == nil, "live": o.Live == nil, "into": o.Into == nil} {
		if missing {
			errs = append(errs, fmt.Errorf("%s is required", name))
		}
	}
	if o.To.Sequence > 0 && o.To.Sequence < o.From.Sequence {
		errs = append(errs, fmt.Errorf("to: sequence %d is before from, %d", o.To.Sequence, o.From.Sequence))
	}
	if !o.To.Time.IsZero() && o.To.Time.Before(o.From.Time) {
		errs = append(errs, fmt.Errorf("to: %s is before from, %s", o.To.Time.Format(time.RFC3339), o.From.Time.Format(time.RFC3339)))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

// Report is what a replay came to.
type Report struct {
	Incarnation string `json:"incarnation"`
	StreamFirst uint64 `json:"stream_first"` // what the stream holds
	StreamLast  uint64 `json:"stream_last"`
	From        uint64 `json:"from"` // what was replayed and compared, inclusive
	To          uint64 `json:"to"`
	Recorded    uint64 `json:"recorded"` // up to where the live store goes

	Events  int `json:"events"`  // replayed
	Rebuilt int `json:"rebuilt"` // records compared
	Live    int `json:"live"`    // records they were compared with
	// Copies are events that the live store holds at an earlier place.
	Copies int `json:"copies"`
	// Lost is how many sequences of the range the live store records as lost.
	Lost uint64 `json:"lost"`

	Digest      string `json:"digest"` // SHA-256 over the rebuilt records
	LiveDigest  string `json:"live_digest"`
	Differences int    `json:"differences"`
	// First is the first difference.
	First *Difference `json:"first_difference,omitempty"`
}

// Equal says that both stores hold the same bytes.
func (r Report) Equal() bool { return r.Differences == 0 && r.Digest == r.LiveDigest }

// Audit rebuilds the audit store from the stream and compares it with the live
// one. A difference is no error: it stands in the report.
func Audit(ctx context.Context, o Options) (Report, error) {
	if err := o.complete(); err != nil {
		return Report{}, fmt.Errorf("replay: %w", err)
	}
	r := Report{}
	if err := o.bounds(ctx, &r); err != nil {
		return r, fmt.Errorf("replay: %w", err)
	}
	if err := o.rebuild(ctx, &r); err != nil {
		return r, fmt.Errorf("replay into the empty audit store: %w", err)
	}
	if err := o.compare(ctx, &r); err != nil {
		return r, fmt.Errorf("compare the audit stores: %w", err)
	}
	return r, nil
}

// bounds finds out what can be replayed.
func (o *Options) bounds(ctx context.Context, r *Report) error {
	if known, _, err := o.Into.High(ctx); err != nil {
		return err
	} else if known != "" {
		return errors.New("the audit store to rebuild holds records already; name a file that does not exist")
	}
	// First how far the live store is: it may only grow meanwhile.
	incarnation, recorded, err := o.Live.High(ctx)
	if err != nil {
		return err
	}
	log, err := o.Log.LogState(ctx)
	if err != nil {
		return err
	}
	switch {
	case !log.Exists:
		return bus.ErrAbsent
	case incarnation == "":
		return errors.New("the live audit store has recorded nothing: there is nothing to compare with")
	case incarnation != log.Incarnation:
		return fmt.Errorf("the live audit store records stream %s (up to sequence %d), this one is %s: of another stream nothing can be replayed",
			incarnation, recorded, log.Incarnation)
	}
	r.Incarnation, r.StreamFirst, r.StreamLast, r.Recorded = incarnation, log.First, log.Last, recorded
	r.From, r.To = max(o.From.Sequence, log.First, 1), min(recorded, log.Last)
	if o.To.Sequence > 0 {
		r.To = o.To.Sequence
	}
	if o.From.Sequence > log.Last {
		return fmt.Errorf("from: the stream ends at sequence %d", log.Last)
	}
	return nil
}

// rebuild gives the events to the handler that recorded them.
func (o *Options) rebuild(ctx context.Context, r *Report) error {
	h, err := auditing.New(auditing.Options{Store: recording.Store{Audit: o.Into}, Log: bounded{o.Log, r.From}, Logger: o.Logger})
	if err != nil {
		return err
	}
	var batch []bus.Delivery
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := h.HandleBatch(ctx, batch)
		batch = batch[:0]
		return err
	}
	first, last := uint64(0), uint64(0)
	for d, err := range o.Log.Read(ctx, bus.ReadOptions{FromSequence: r.From, Since: o.From.Time, UntilSequence: r.To, Until: o.To.Time}) {
		var undecodable *bus.UndecodableError
		if errors.As(err, &undecodable) {
			d, err = bus.Undecoded(events.HandlerAuditing, d, undecodable)
		}
		if err != nil {
			return err
		}
		if d.Incarnation != r.Incarnation {
			return fmt.Errorf("the stream became %s, expected %s", d.Incarnation, r.Incarnation)
		}
		if first == 0 {
			first = d.Sequence
		}
		last = d.Sequence
		r.Events++
		if batch = append(batch, d); len(batch) == batchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(flush(), ctx.Err()); err != nil {
		return err
	}
	// Times become the sequences that they stand for; the beginning of the stream
	// may have gone on.
	if o.From.Sequence == 0 {
		r.From = max(r.From, first)
	}
	if !o.To.Time.IsZero() {
		r.To = min(r.To, last)
	}
	if r.Events == 0 && (!o.From.Time.IsZero() || !o.To.Time.IsZero()) {
		r.To = r.From - 1 // nothing happened between them
	}
	return nil
}

// bounded is a log that holds nothing before from: an audit store that begins in
// the middle of the stream lacks nothing.
type bounded struct {
	log  Log
	from uint64
}

func (b bounded) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	o.FromSequence = max(o.FromSequence, b.from)
	if o.UntilSequence > 0 && o.UntilSequence < o.FromSequence {
		return func(func(bus.Delivery, error) bool) {}
	}
	return b.log.Read(ctx, o)
}
