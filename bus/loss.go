package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// metaAncestors is the metadata of a stream of record that an operator declared
// the truth by a rebase: what it continues, as "incarnation:sequence", separated
// by commas.
const metaAncestors = "k3sas_ancestors"

// Ancestor is an incarnation that a stream of record continues: up to Shared both
// hold the same events.
type Ancestor struct {
	Incarnation string
	Shared      uint64
}

// Continues returns how far the stream holds the events of an incarnation; false
// when it does not continue it.
func (s LogState) Continues(incarnation string) (shared uint64, ok bool) {
	if incarnation == s.Incarnation {
		return s.Last, true
	}
	for _, a := range s.Ancestors {
		if a.Incarnation == incarnation {
			return a.Shared, true
		}
	}
	return 0, false
}

func parseAncestors(text string) []Ancestor {
	var out []Ancestor
	for part := range strings.SplitSeq(text, ",") {
		at := strings.LastIndexByte(part, ':')
		if at <= 0 {
			continue
		}
		if shared, err := strconv.ParseUint(part[at+1:], 10, 64); err == nil {
			out = append(out, Ancestor{part[:at], shared})
		}
	}
	return out
}

func formatAncestors(as []Ancestor) string {
	parts := make([]string, len(as))
	for i, a := range as {
		parts[i] = a.Incarnation + ":" + strconv.FormatUint(a.Shared, 10)
	}
	return strings.Join(parts, ",")
}

// admit compares what is there with what is known of it, before anything is made
// or changed: a stream that was lost must not come back empty in silence.
func (b *Bus) admit(ctx context.Context) error {
	// The timers are made after the stream of record, so they are looked for first:
	// a process that starts at the same time makes both in between.
	_, err := b.js.Stream(ctx, TimersStream)
	timers := err == nil
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("stream %s: %w", TimersStream, err)
	}
	var st LogState
	s, err := b.js.Stream(ctx, StreamName)
	switch {
	case err == nil:
		st = logState(s.CachedInfo())
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	if b.opts.Admit != nil {
		if err := b.opts.Admit(st); err != nil {
			return err
		}
	}
	if !st.Exists && timers {
		return fmt.Errorf("%w: stream %s is gone, while %s is still there; restore the bus's data, or state by 'k3s-autoscaler bus rebase' that what is there is the truth",
			ErrLost, StreamName, TimersStream)
	}
	return nil
}

// check implements keeper.
func (s *State[T]) check(ctx context.Context) error {
	return s.b.persist(ctx, "the records of "+s.opts.Handler, func() error { return s.b.checkRecords(ctx, s.opts.Handler, s.kv) })
}

// checkRecords refuses records of a handler that know more than the stream of
// record holds, or another one.
func (b *Bus) checkRecords(ctx context.Context, handler string, kv jetstream.KeyValue) error {
	ctx, cancel := context.WithTimeout(ctx, 4*b.opts.Times.Request)
	defer cancel()
	var ahead, other position
	err := eachEntry(ctx, kv, func(_ string, _ Key, e entry, _ uint64) error {
		switch {
		case e.Last.Incarnation == "":
		case e.Last.Incarnation != b.incarn:
			other = e.Last
		case e.Last.Sequence > ahead.Sequence:
			ahead = e.Last
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the records of %s: %w", handler, err)
	}
	// After the records: what they know was stored before.
	info, err := b.info(ctx)
	if err != nil {
		return err
	}
	advice := "restore the bus's data, or state by 'k3s-autoscaler bus rebase' that what is there is the truth"
	if other.Incarnation != "" {
		return fmt.Errorf("%w: the records of %s follow stream %s, up to sequence %d, and this one is %s; %s",
			ErrIncarnation, handler, other.Incarnation, other.Sequence, b.incarn, advice)
	}
	if last := info.State.LastSeq; ahead.Sequence > last {
		return fmt.Errorf("%w: it ends at sequence %d, and %s has handled sequence %d: acknowledged events are missing; %s",
			ErrLost, last, handler, ahead.Sequence, advice)
	}
	return nil
}

// eachEntry calls fn for every record of a bucket as it is now.
func eachEntry(ctx context.Context, kv jetstream.KeyValue, fn func(name string, k Key, e entry, rev uint64) error) error {
	w, err := kv.Watch(ctx, recordRoot+".>", jetstream.IgnoreDeletes())
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = w.Stop() }() // what it could say concerns nobody any more
	for {
		select {
		case <-ctx.Done():
			return unavailable(ctx.Err())
		case v, ok := <-w.Updates():
			if !ok {
				return ErrUnavailable
			}
			if v == nil {
				return nil
			}
			k, err := parseBucketKey(v.Key())
			if err != nil {
				return err
			}
			e, err := decodeEntry(k, v.Value())
			if err != nil {
				return err
			}
			if err := fn(v.Key(), k, e, v.Revision()); err != nil {
				return err
			}
		}
	}
}

// addAncestor returns the ancestors with one more, which is known once.
func addAncestor(as []Ancestor, incarnation string, shared uint64) []Ancestor {
	if incarnation == "" || slices.ContainsFunc(as, func(a Ancestor) bool { return a.Incarnation == incarnation }) {
		return as
	}
	return append(slices.Clone(as), Ancestor{incarnation, shared})
}
