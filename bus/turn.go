package bus

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Turn is one change of a record: the state to change in place, and the events
// that follow from it. It is valid during the call only.
type Turn[T any] struct {
	Key Key
	// State is the record's state, the zero value when there is none.
	State *T
	// Exists says whether there was a record.
	Exists bool
	// Now is the stream time of the delivery in Apply (the deadline, if it is the
	// timer of that and the clock that fired it was ahead), and the clock in Amend and
	// Commit; never earlier than the Now of the record's previous turn.
	Now time.Time

	origin    origin
	out       []events.Event
	deleted   bool
	unchanged bool
	take      func() (uint64, bool) // of TakeUp; nil: not in the message path
}

// origin is where a turn comes from: a message of the stream or an operation.
type origin struct {
	handler     string
	path        []string // parts that tell this turn from every other of the key
	sequence    uint64   // 0: work
	causation   string
	correlation string
	traceParent string
}

func messageOrigin(handler string, d Delivery) origin {
	return origin{
		handler:     handler,
		path:        []string{"message", d.Incarnation, strconv.FormatUint(d.Sequence, 10)},
		sequence:    d.Sequence,
		causation:   d.Event.ID(),
		correlation: events.Extension(d.Event, events.ExtCorrelationID),
		traceParent: events.Extension(d.Event, events.ExtTraceParent),
	}
}

func workOrigin(handler, op string) origin {
	return origin{handler: handler, path: []string{"work", op}}
}

// EmitOption changes an event that is about to be emitted.
type EmitOption func(*events.Meta)

// Correlation sets the correlation id. Default: that of the delivery's event.
func Correlation(id string) EmitOption { return func(m *events.Meta) { m.CorrelationID = id } }

// Causation sets the id of the causing event. Default: the delivery's event.
func Causation(id string) EmitOption { return func(m *events.Meta) { m.CausationID = id } }

// DryRun marks the event as decided without the means to act.
func DryRun(on bool) EmitOption { return func(m *events.Meta) { m.DryRun = on } }

// Emit adds an event on this record's key. It is published after the record is
// written. Its id derives from the handler, the key, the message or operation,
// and its index in the turn, so that publishing it twice is harmless.
func (t *Turn[T]) Emit(p events.Payload, o ...EmitOption) error {
	return t.EmitTo(t.Key.node(), p, o...)
}

// EmitTo is Emit on the key of another node, or of the whole cluster when node
// is empty.
func (t *Turn[T]) EmitTo(node string, p events.Payload, o ...EmitOption) error {
	parts := append([]string{"emit", t.origin.handler, t.Key.String()}, t.origin.path...)
	m := events.Meta{
		Cluster:       t.Key.Cluster,
		Node:          node,
		Publisher:     t.origin.handler,
		ID:            events.ID(append(parts, strconv.Itoa(len(t.out)))...),
		Time:          t.Now,
		CorrelationID: t.origin.correlation,
		CausationID:   t.origin.causation,
		TraceParent:   t.origin.traceParent,
	}
	for _, opt := range o {
		opt(&m)
	}
	e, err := events.New(m, p)
	if err != nil {
		return Terminal(fmt.Errorf("emit: %w", err))
	}
	t.out = append(t.out, e)
	return nil
}

// Emitted returns the events of this turn so far.
func (t *Turn[T]) Emitted() []events.Event { return t.out }

// Delete forgets the record. Its position in the stream is kept, so that a
// redelivery does not bring it back.
func (t *Turn[T]) Delete() { t.deleted = true }

// Unchanged says that the state was not changed: it is not written again. The
// message path still records its position, and emitted events are published.
func (t *Turn[T]) Unchanged() { t.unchanged = true }

// written is the state as it is written, nil: it is not.
func (t *Turn[T]) written() *T {
	if t.deleted || t.unchanged {
		return nil
	}
	return t.State
}

// take runs fn on the state of e and returns the entry to write: everything but
// position and outbox, which differ by path.
func take[T any](k Key, e entry, now time.Time, o origin, fn func(*Turn[T]) error) (*Turn[T], entry, error) {
	t := &Turn[T]{Key: k, State: new(T), Exists: e.exists(), Now: later(now.UTC(), e.Now), origin: o}
	if t.Exists {
		if err := json.Unmarshal(e.State, t.State); err != nil {
			return nil, e, Terminal(fmt.Errorf("record of %s: decode state: %w", k, err))
		}
	}
	if err := fn(t); err != nil {
		return nil, e, err
	}
	next := e
	next.Now = t.Now
	switch {
	case t.deleted:
		next.State = nil
	case !t.unchanged:
		raw, err := json.Marshal(t.State)
		if err != nil {
			return nil, e, Terminal(fmt.Errorf("record of %s: encode state: %w", k, err))
		}
		next.State = raw
	}
	return t, next, nil
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
