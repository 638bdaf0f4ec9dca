package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Rebased is what a rebase does, or did.
type Rebased struct {
	// Previous is the stream that was known, and how far it is known to have gone:
	// recorded in the audit, or handled by a handler.
	Previous string `json:"previous,omitempty"`
	Known    uint64 `json:"known,omitempty"`
	// Incarnation is the stream that is the truth from now on; empty in a dry run
	// that would give it a new one.
	Incarnation string `json:"incarnation,omitempty"`
	// Shared is up to where it holds the events of the previous one.
	Shared uint64 `json:"shared"`
	// Made says that there was no stream; Renamed that it goes by a new incarnation,
	// because its next events take the sequences of those that are gone.
	Made    bool `json:"made"`
	Renamed bool `json:"renamed"`
	// Records is how many records follow the present stream from now on, by
	// handler; Owed how many events of their outboxes are published again.
	Records map[string]int `json:"records"`
	Owed    int            `json:"owed"`
	// Consumers were further than the stream and go back to its end.
	Consumers []string `json:"consumers,omitempty"`
}

// Nothing says that everything agrees already.
func (r Rebased) Nothing() bool {
	return !r.Made && !r.Renamed && len(r.Records) == 0 && len(r.Consumers) == 0
}

// Rebase declares the present stream of record, or a new one where there is
// none, to be the truth, after events were lost: records follow it, and what they
// owe is published again. recorded is how far the audit store goes. It is
// idempotent, and killed anywhere it is run again. No other process may use the
// bus meanwhile. A dry run changes nothing.
func Rebase(ctx context.Context, o Options, recorded LogPosition, dryRun bool) (Rebased, error) {
	o.Registerer = nil // it is no part of what a process does
	b, err := dial(o)
	if err != nil {
		return Rebased{}, err
	}
	defer b.nc.Close()
	r := rebase{b: b, dry: dryRun, out: Rebased{Previous: recorded.Incarnation, Known: recorded.Sequence, Records: map[string]int{}}}
	if err := r.run(ctx); err != nil {
		return r.out, fmt.Errorf("rebase: %w", unavailable(err))
	}
	return r.out, nil
}

// LogPosition is a place in the stream of record.
type LogPosition struct {
	Incarnation string
	Sequence    uint64
}

type rebase struct {
	b   *Bus
	dry bool
	out Rebased

	buckets map[string]jetstream.KeyValue // by handler
	known   map[string]uint64             // the highest sequence of each incarnation that records know
	state   LogState
}

func (r *rebase) run(ctx context.Context) error {
	if err := r.look(ctx); err != nil {
		return err
	}
	// The stream says what it continues before any record follows it: a rebase that
	// is run again after a kill translates the others in the same way.
	if err := r.decide(ctx); err != nil {
		return err
	}
	for _, handler := range sortedKeys(r.buckets) {
		if err := r.records(ctx, handler); err != nil {
			return err
		}
	}
	return r.consumers(ctx)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// look reads what there is.
func (r *rebase) look(ctx context.Context) error {
	s, err := r.b.js.Stream(ctx, StreamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
	case err != nil:
		return err
	default:
		if err := compatible(s.CachedInfo().Config, r.b.recordConfig()); err != nil {
			return fmt.Errorf("stream %s: %w", StreamName, err)
		}
		r.b.stream, r.state = s, logState(s.CachedInfo())
		if err := r.unused(ctx); err != nil {
			return err
		}
	}
	r.buckets, r.known = map[string]jetstream.KeyValue{}, map[string]uint64{}
	names := r.b.js.KeyValueStoreNames(ctx)
	for name := range names.Name() {
		handler, ours := strings.CutPrefix(name, bucketName(""))
		if !ours {
			continue
		}
		kv, err := r.b.js.KeyValue(ctx, name)
		if err != nil {
			return fmt.Errorf("bucket %s: %w", name, err)
		}
		r.buckets[handler] = kv
		if err := eachEntry(ctx, kv, func(_ string, _ Key, e entry, _ uint64) error {
			if e.Last.Incarnation != "" {
				r.known[e.Last.Incarnation] = max(r.known[e.Last.Incarnation], e.Last.Sequence)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("read the records of %s: %w", handler, err)
		}
	}
	return names.Error()
}

// unused refuses while a process pulls: it would write positions of before.
func (r *rebase) unused(ctx context.Context) error {
	l := r.b.stream.ListConsumers(ctx)
	for c := range l.Info() {
		if c.NumWaiting > 0 {
			return fmt.Errorf("a process reads the bus (consumer %s): stop every process first", c.Name)
		}
	}
	return l.Err()
}

// decide makes the stream say what it continues.
func (r *rebase) decide(ctx context.Context) error {
	if r.out.Previous == "" { // no audit: the records have to do
		for _, incarnation := range sortedKeys(r.known) {
			if incarnation != r.state.Incarnation || r.out.Previous == "" {
				r.out.Previous = incarnation
			}
		}
	}
	r.out.Known = max(r.out.Known, r.known[r.out.Previous])
	have := r.state
	next := have
	switch {
	case !have.Exists:
		r.out.Made = true
		next = LogState{Exists: true}
	case have.Last < r.known[have.Incarnation] || r.out.Previous == have.Incarnation && have.Last < r.out.Known:
		// It was longer: its next events would take the places of those that are gone.
		r.out.Renamed = true
		next.Ancestors = addAncestor(have.Ancestors, have.Incarnation, have.Last)
	}
	fresh := r.b.recordConfig()
	if r.out.Made || r.out.Renamed {
		next.Incarnation = fresh.Metadata[metaIncarnation]
	}
	for _, incarnation := range append(sortedKeys(r.known), r.out.Previous) {
		if incarnation != next.Incarnation {
			next.Ancestors = addAncestor(next.Ancestors, incarnation, 0)
		}
	}
	r.out.Shared, _ = next.Continues(r.out.Previous)
	if r.out.Previous == "" {
		r.out.Shared = 0
	}
	changed := len(next.Ancestors) != len(have.Ancestors) || next.Incarnation != have.Incarnation
	if !changed || r.dry {
		if !r.out.Made && !r.out.Renamed {
			r.out.Incarnation = have.Incarnation
		}
		r.state = next
		return nil
	}
	if err := r.declare(ctx, fresh, next); err != nil {
		return err
	}
	r.state, r.out.Incarnation = next, next.Incarnation
	return nil
}

// declare writes the incarnation and what it continues into the stream.
func (r *rebase) declare(ctx context.Context, fresh jetstream.StreamConfig, next LogState) (err error) {
	cfg := fresh
	if !r.out.Made {
		cfg = r.b.stream.CachedInfo().Config
	}
	cfg.Metadata[metaIncarnation], cfg.Metadata[metaAncestors] = next.Incarnation, formatAncestors(next.Ancestors)
	if r.out.Made {
		r.b.stream, err = r.b.js.CreateStream(ctx, cfg)
	} else {
		r.b.stream, err = r.b.js.UpdateStream(ctx, cfg)
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	r.b.opts.OnStep("rebase/declare/after")
	return nil
}

// records makes the records of a handler follow the stream. Events that they may
// owe become events of work, which are published until JetStream took them: the
// message that would make them come again may be gone.
func (r *rebase) records(ctx context.Context, handler string) error {
	kv := r.buckets[handler]
	err := eachEntry(ctx, kv, func(name string, k Key, e entry, rev uint64) error {
		if e.Last.Incarnation == "" || e.Last.Incarnation == r.state.Incarnation {
			return nil
		}
		shared, _ := r.state.Continues(e.Last.Incarnation)
		e.Last = position{Incarnation: r.state.Incarnation, Sequence: min(e.Last.Sequence, shared)}
		e.Outbox = slices.Clone(e.Outbox)
		for i := range e.Outbox {
			e.Outbox[i].Sequence = 0
		}
		r.out.Records[handler]++
		r.out.Owed += len(e.Outbox)
		if r.dry {
			return nil
		}
		raw, err := r.b.encodeEntry(ctx, k, e)
		if err != nil {
			return err
		}
		if _, err := kv.Update(ctx, name, raw, rev); err != nil {
			return fmt.Errorf("record of %s: %w", k, err)
		}
		r.b.opts.OnStep("rebase/record/after")
		return nil
	})
	if err != nil {
		return fmt.Errorf("rebase the records of %s: %w", handler, err)
	}
	if r.dry || r.out.Records[handler] == 0 {
		return nil
	}
	// Attempts are counted by sequence, and those belong to other events now.
	w, err := kv.ListKeysFiltered(ctx, attemptRoot+".>")
	if err != nil {
		return fmt.Errorf("list the attempts of %s: %w", handler, err)
	}
	for name := range w.Keys() {
		if err := kv.Purge(ctx, name); err != nil {
			return fmt.Errorf("forget the attempts of %s: %w", handler, err)
		}
	}
	return nil
}

// consumers takes readers back that are further than the stream: they would skip
// what comes next.
func (r *rebase) consumers(ctx context.Context) error {
	if r.b.stream == nil {
		return nil
	}
	l := r.b.stream.ListConsumers(ctx)
	var ahead []string
	for c := range l.Info() {
		if c.Delivered.Stream > r.state.Last {
			ahead = append(ahead, c.Name)
		}
	}
	if err := l.Err(); err != nil {
		return err
	}
	slices.Sort(ahead)
	for _, name := range ahead {
		if !r.dry {
			if _, err := r.b.stream.ResetConsumerToSequence(ctx, name, r.state.Last+1); err != nil {
				return fmt.Errorf("consumer %s: take it back to sequence %d: %w", name, r.state.Last+1, err)
			}
		}
		r.out.Consumers = append(r.out.Consumers, name)
	}
	return nil
}
