package scenarios

import (
	"context"
	"iter"
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	cluster     = "home"
	incarnation = "scenario"
)

// stream is a stream of record in memory. It is read when it is complete.
type stream struct {
	all []bus.Delivery
	// read is closed when a follower has everything.
	read chan struct{}
}

// Read returns what matches, and then, for a follower, waits for the end of ctx.
func (s *stream) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range s.all {
			matches := (o.Node == "" || o.Node == d.Key.Name) && d.Sequence >= o.FromSequence && (o.UntilSequence == 0 || d.Sequence <= o.UntilSequence) &&
				(len(o.Types) == 0 || slices.Contains(o.Types, d.Event.Type()))
			if matches && !yield(d, nil) {
				return
			}
		}
		if o.Follow {
			close(s.read)
			<-ctx.Done()
		}
	}
}

// Last returns the last event of a type on a key.
func (s *stream) Last(_ context.Context, key bus.Key, eventType string) (bus.Delivery, bool, error) {
	for _, d := range slices.Backward(s.all) {
		if d.Key == key && d.Event.Type() == eventType {
			return d, true, nil
		}
	}
	return bus.Delivery{}, false, nil
}

// LastSequence is that of the newest event.
func (s *stream) LastSequence(context.Context) (uint64, error) { return uint64(len(s.all)), nil }

// LogState is what it holds.
func (s *stream) LogState(context.Context) (bus.LogState, error) {
	return bus.LogState{Exists: true, Incarnation: incarnation, First: 1, Last: uint64(len(s.all))}, nil
}

// Publish refuses: a scenario is over when it is asked about.
func (s *stream) Publish(context.Context, ...events.Event) error { return bus.ErrUnavailable }

// DeadLetters is empty: nothing was set aside.
func (*stream) DeadLetters(context.Context) ([]bus.DeadLetter, error) { return nil, nil }

// Parked is empty for the same reason.
func (*stream) Parked(context.Context, string) ([]bus.ParkedKey, error) { return nil, nil }
