package bus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// LogState is what the stream of record holds.
type LogState struct {
	Exists      bool
	Incarnation string
	// First and Last are sequences. Without events First is the one that comes next
	// and Last the one before it.
	First, Last         uint64
	FirstTime, LastTime time.Time // UTC; zero without events
	Events, Bytes       uint64
	// Ancestors are what an operator declared that this stream continues.
	Ancestors []Ancestor
}

func logState(info *jetstream.StreamInfo) LogState {
	st := info.State
	out := LogState{Exists: true, Incarnation: info.Config.Metadata[metaIncarnation],
		First: st.FirstSeq, Last: st.LastSeq, Events: st.Msgs, Bytes: st.Bytes, Ancestors: parseAncestors(info.Config.Metadata[metaAncestors])}
	if st.Msgs > 0 {
		out.FirstTime, out.LastTime = st.FirstTime.UTC(), st.LastTime.UTC()
	}
	return out
}

// LogState returns what the stream of record holds now.
func (b *Bus) LogState(ctx context.Context) (LogState, error) {
	info, err := b.info(ctx)
	if err != nil {
		return LogState{}, err
	}
	return logState(info), nil
}

// Reader reads the stream of record. It makes nothing and has no way to publish:
// whoever holds a Reader alone can't command anything.
type Reader struct{ b *Bus }

// OpenReader connects to a stream of record that exists. The error is ErrAbsent
// when there is none, ErrUnavailable when no server answers and ErrIncompatible
// as for Open.
func OpenReader(ctx context.Context, o Options) (*Reader, error) {
	o.Registerer = nil // a reader is no part of what a process does
	b, err := dial(o)
	if err != nil {
		return nil, err
	}
	if err := b.find(ctx); err != nil {
		b.nc.Close()
		return nil, fmt.Errorf("open the stream of record for reading: %w", err)
	}
	return &Reader{b}, nil
}

// find takes the stream of record as it is.
func (b *Bus) find(ctx context.Context) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	s, err := b.js.Stream(ctx, StreamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return ErrAbsent
	case err != nil:
		return unavailable(err)
	}
	if err := compatible(s.CachedInfo().Config, b.recordConfig()); err != nil {
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	b.stream, b.incarn = s, s.CachedInfo().Config.Metadata[metaIncarnation]
	return nil
}

// Read is Bus.Read.
func (r *Reader) Read(ctx context.Context, o ReadOptions) iter.Seq2[Delivery, error] {
	return r.b.Read(ctx, o)
}

// LogState is Bus.LogState.
func (r *Reader) LogState(ctx context.Context) (LogState, error) { return r.b.LogState(ctx) }

// Close ends the connection.
func (r *Reader) Close() error {
	r.b.nc.Close()
	return nil
}
