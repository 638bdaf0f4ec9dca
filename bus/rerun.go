package bus

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Rerun applies deliveries to one record in memory, as State.Apply does to a record
// of a bucket: a handler that is replayed does what it did, and nothing is written
// or published.
type Rerun[T any] struct {
	opts StateOptions[T]
	key  Key
	e    entry
}

// NewRerun begins with what a record was when the message at a position of the
// stream had been applied, at the time now of that turn.
func NewRerun[T any](o StateOptions[T], k Key, st T, incarnation string, sequence uint64, now time.Time) (*Rerun[T], error) {
	raw, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("record of %s: encode state: %w", k, err)
	}
	r := &Rerun[T]{opts: o, key: k, e: entry{State: raw, Last: position{incarnation, sequence}, Now: now.UTC()}}
	return r, o.deadline(k, &r.e, &st)
}

// Apply runs fn on the record and returns the events that it emits. A delivery
// that was applied before leads to nothing. After an error the record is as it was.
func (r *Rerun[T]) Apply(d Delivery, fn func(t *Turn[T]) error) ([]events.Event, error) {
	switch {
	case d.Incarnation != r.e.Last.Incarnation:
		return nil, fmt.Errorf("apply event %d to %s again: %w: is %s, expected %s", d.Sequence, r.key, ErrIncarnation, d.Incarnation, r.e.Last.Incarnation)
	case d.Sequence <= r.e.Last.Sequence:
		return nil, nil
	}
	t, next, err := take(r.key, r.e, turnTime(r.opts.Handler, d, r.e), messageOrigin(r.opts.Handler, d), fn)
	if err != nil {
		return nil, err
	}
	next.Last.Sequence = d.Sequence
	if err := r.opts.deadline(r.key, &next, t.written()); err != nil {
		return nil, err
	}
	r.e = next
	return t.out, nil
}

// Due is the deadline of the record, at which a live one gets a timer.fired; zero:
// none.
func (r *Rerun[T]) Due() time.Time { return r.e.Due }

// Position is what the record is after the deliveries so far: its state, the
// sequence of the last of them, and the time of that turn. NewRerun goes on there.
func (r *Rerun[T]) Position() (st T, sequence uint64, now time.Time, err error) {
	if err := json.Unmarshal(r.e.State, &st); err != nil {
		return st, 0, time.Time{}, fmt.Errorf("record of %s: decode state: %w", r.key, err)
	}
	return st, r.e.Last.Sequence, r.e.Now, nil
}
