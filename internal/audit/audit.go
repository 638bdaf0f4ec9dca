// Package audit is the record of everything that happened: every event of the
// stream of record, in stream order, with who asked for it and why.
//
// A Store is written by one owner at a time, batch by batch. It refuses a batch
// that does not follow what it holds, so that an owner that lost its place
// can't leave a hole, and it takes a batch again without a trace, so that a
// kill between writing and acknowledging costs nothing. It is also the
// high-water mark outside the bus: a stream that is shorter than the store says
// has lost acknowledged events.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Record is one event as it was stored by the bus, and what people search for.
type Record struct {
	Incarnation string    // of the stream of record
	Sequence    uint64    // in that incarnation
	StreamTime  time.Time // when the bus stored it, UTC

	ID            string // of the event; unique together with Source and Redrive
	Source        string
	Redrive       string // of a copy that was redriven: events.Redrive; empty: the event itself
	Type          string
	Cluster       string
	Key           string // the true node name, or events.ClusterKey
	Pool          string
	CorrelationID string
	CausationID   string
	Actor         string // who asked for it; empty: no person did
	Reason        string // a code, or a person's own words
	Message       string // the sentence that goes with a code

	// Event is the structured CloudEvent (JSON).
	Event json.RawMessage
}

// Cursor is the place of the record: a Query that carries it goes on behind it.
func (r Record) Cursor() string { return r.Incarnation + "/" + strconv.FormatUint(r.Sequence, 10) }

// ParseCursor is the inverse of Record.Cursor.
func ParseCursor(cursor string) (incarnation string, sequence uint64, err error) {
	at := strings.LastIndexByte(cursor, '/')
	if at <= 0 {
		return "", 0, fmt.Errorf("%w: is %q, expected <incarnation>/<sequence>", ErrCursor, cursor)
	}
	sequence, err = strconv.ParseUint(cursor[at+1:], 10, 63)
	if err != nil {
		return "", 0, fmt.Errorf("%w: is %q, expected <incarnation>/<sequence>", ErrCursor, cursor)
	}
	return cursor[:at], sequence, nil
}

// Gap is a part of the stream that was dropped by its limits before it was
// recorded.
type Gap struct {
	Incarnation string
	From, To    uint64    // first and last sequence that is missing
	At          time.Time // when it was found, UTC
}

// Order of a listing.
type Order int

// The orders of a listing.
const (
	OldestFirst Order = iota
	NewestFirst
)

// DefaultLimit and MaxLimit bound a listing.
const (
	DefaultLimit = 100
	MaxLimit     = 10_000
)

// Query selects records; every field that is set must match.
type Query struct {
	Types         []string // full CloudEvents types; any of them
	Cluster       string
	Node          string // the key: a true node name, or events.ClusterKey
	Pool          string
	CorrelationID string
	CausationID   string
	Actor         string
	Since         time.Time // inclusive, by stream time
	Until         time.Time // exclusive, by stream time
	Order         Order
	Limit         int    // default DefaultLimit, at most MaxLimit
	Cursor        string // Record.Cursor of the last record already seen
}

// Errors of a Store, to be tested with errors.Is.
var (
	// ErrNotFound: no record has this event id.
	ErrNotFound = errors.New("no such event in the audit store")
	// ErrGap: the batch does not follow the last record, or has a hole. Nothing
	// was written. It is a *GapError.
	ErrGap = errors.New("batch does not follow the audit store's last record")
	// ErrOldIncarnation: the batch is of a stream that was replaced by another.
	ErrOldIncarnation = errors.New("stream was replaced by another one")
	// ErrDiffers: another event is stored under this incarnation and sequence.
	ErrDiffers = errors.New("another event is stored at this place of the stream")
	// ErrCursor: the cursor of a query is none of this store's.
	ErrCursor = errors.New("cursor")
)

// GapError says what a refused batch lacks.
type GapError struct {
	Incarnation string
	Last        uint64 // highest sequence before the hole
	Next        uint64 // the sequence that came instead of Last+1
}

func (e *GapError) Error() string {
	return fmt.Sprintf("%v: expected sequence %d of stream %s, got %d", ErrGap, e.Last+1, e.Incarnation, e.Next)
}

// Is makes errors.Is(err, ErrGap) true.
func (e *GapError) Is(target error) bool { return target == ErrGap }

// Store keeps the records. Any number of goroutines may use it; Append and Skip
// are for one owner at a time, which the order of sequences enforces.
type Store interface {
	// Append writes a batch of ascending, consecutive sequences of one
	// incarnation in one transaction: all of it or nothing. The first sequence
	// must follow the store's last (ErrGap); the first batch of an incarnation
	// may start anywhere and makes older incarnations ErrOldIncarnation.
	//
	// What is stored already is ignored; if another event is stored in its place
	// it is ErrDiffers. An event whose source, id and redrive are stored under
	// another sequence (published twice) is not stored again, though the high-water
	// mark moves on.
	Append(ctx context.Context, batch []Record) error
	// Skip records that the sequences from g.From to g.To are lost and moves the
	// high-water mark on. g.From must follow the store's last (ErrGap); a gap
	// that is recorded already is ignored.
	Skip(ctx context.Context, g Gap) error
	// High returns the latest incarnation and its highest sequence; "" and 0
	// for an empty store.
	High(ctx context.Context) (incarnation string, sequence uint64, err error)
	// List returns the records that match, in the order of the stream(s).
	List(ctx context.Context, q Query) ([]Record, error)
	// Get returns the record of an event; ErrNotFound. Where two sources use one
	// id, or the event was redriven, it is the oldest.
	Get(ctx context.Context, eventID string) (Record, error)
	// Gaps returns everything that is missing, oldest first.
	Gaps(ctx context.Context) ([]Gap, error)
	// Close ends it. The store can't be used afterwards.
	Close() error
}

// CheckBatch verifies what Append asks of a batch in itself. Implementations
// call it.
func CheckBatch(batch []Record) error {
	for i, r := range batch {
		switch {
		case r.Incarnation == "" || r.Sequence == 0 || r.StreamTime.IsZero():
			return fmt.Errorf("audit record of event %q: incarnation, sequence and stream time are required", r.ID)
		case r.ID == "" || r.Source == "" || r.Type == "":
			return fmt.Errorf("audit record %s: id, source and type are required", r.Cursor())
		case !json.Valid(r.Event):
			return fmt.Errorf("audit record %s: event is not JSON", r.Cursor())
		case i > 0 && r.Incarnation != batch[0].Incarnation:
			return fmt.Errorf("audit record %s: the batch is of stream %s", r.Cursor(), batch[0].Incarnation)
		case i > 0 && r.Sequence != batch[i-1].Sequence+1:
			return &GapError{Incarnation: r.Incarnation, Last: batch[i-1].Sequence, Next: r.Sequence}
		}
	}
	return nil
}
