package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// publisherBus is who publishes timer.fired and deadletter.recorded.
const publisherBus = "bus"

// Headers of a scheduled message. They are set here because nats.go's option
// truncates the time to seconds, and fires up to 994 ms early.
const (
	headerSchedule       = "Nats-Schedule"
	headerScheduleTarget = "Nats-Schedule-Target"
)

// timer is the body of an armed timer, and of what it becomes when it fires.
type timer struct {
	Handler string    `json:"handler"`
	Cluster string    `json:"cluster"`
	Key     string    `json:"key"`
	DueAt   time.Time `json:"due_at"`
}

// firedEvent is the event of a timer. Its id derives from handler, key and
// deadline, so that the relay and the sweep may both publish it.
func (t timer) firedEvent() (events.Event, error) {
	k := Key{Cluster: t.Cluster, Name: t.Key}
	return events.New(events.Meta{
		Cluster:   t.Cluster,
		Node:      k.node(),
		Publisher: publisherBus,
		ID:        events.ID("timer", t.Handler, k.String(), t.DueAt.UTC().Format(time.RFC3339Nano)),
		Time:      t.DueAt,
	}, events.TimerFired{Handler: t.Handler, DueAt: t.DueAt.UTC()})
}

// deadline notes in e when its record wants to be woken. st is the state that e was
// made of, nil: it is not at hand.
func (o StateOptions[T]) deadline(k Key, e *entry, st *T) error {
	e.Due = time.Time{}
	if o.Deadline == nil || !e.exists() {
		return nil
	}
	if st == nil {
		st = new(T)
		if err := json.Unmarshal(e.State, st); err != nil {
			return fmt.Errorf("record of %s: decode state: %w", k, err)
		}
	}
	e.Due = o.Deadline(k, *st).UTC().Round(0) // as it is read again
	return nil
}

// arm replaces the timer of a record; a zero due disarms it. The timer is a
// message of its own stream that JetStream moves to another subject when it is
// due; a plain message in its place disarms it.
func (s *State[T]) arm(ctx context.Context, k Key, due time.Time) error {
	token, err := k.token()
	if err != nil {
		return fmt.Errorf("arm timer: %w", err)
	}
	name := strings.Join([]string{s.opts.Handler, k.Cluster, token}, ".")
	m := &nats.Msg{Subject: armedRoot + "." + name, Header: nats.Header{}}
	if !due.IsZero() {
		m.Header.Set(headerSchedule, "@at "+due.UTC().Format(time.RFC3339Nano))
		m.Header.Set(headerScheduleTarget, firedRoot+"."+name)
		if m.Data, err = json.Marshal(timer{Handler: s.opts.Handler, Cluster: k.Cluster, Key: k.Name, DueAt: due.UTC()}); err != nil {
			return fmt.Errorf("arm timer of %s: %w", k, err)
		}
	}
	if _, err := s.b.publishMsg(ctx, m); err != nil {
		return fmt.Errorf("arm timer of %s for %s: %w", k, due.Format(time.RFC3339), err)
	}
	return nil
}

// RunTimers relays timers that fired to the stream of record until ctx ends: a
// schedule can only aim at its own stream. Any number of processes may run it.
func (b *Bus) RunTimers(ctx context.Context) error {
	var c jetstream.Consumer
	err := b.persist(ctx, "timer relay", func() (err error) {
		c, err = b.openConsumer(ctx, TimersStream, b.relayConfig())
		return err
	})
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	for ctx.Err() == nil {
		err := b.relay(ctx, c)
		if err == nil || ctx.Err() != nil {
			continue
		}
		b.metrics.failed("bus")
		b.opts.Logger.WarnContext(ctx, "timer relay interrupted, it goes on", "error", err)
		b.pause(ctx, b.opts.Times.BackoffMin)
	}
	return nil
}

func (b *Bus) relay(ctx context.Context, c jetstream.Consumer) error {
	it, err := c.Messages(jetstream.PullMaxMessages(16), jetstream.PullExpiry(b.opts.Times.IdleExpiry))
	if err != nil {
		return err
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := b.relayOne(ctx, m); err != nil {
			// Given back, it comes again; the sweep of the handler finds it, too.
			_ = m.NakWithDelay(b.opts.Times.BackoffMin)
			return fmt.Errorf("relay timer %s: %w", m.Subject(), err)
		}
	}
}

func (b *Bus) relayOne(ctx context.Context, m jetstream.Msg) error {
	var t timer
	err := json.Unmarshal(m.Data(), &t)
	var e events.Event
	if err == nil {
		e, err = t.firedEvent()
	}
	if err != nil {
		b.metrics.failed("bus")
		b.opts.Logger.ErrorContext(ctx, "timer dropped: it is not readable; the sweep of its handler will wake the record", "subject", m.Subject(), "error", err)
		return m.TermWithReason("not readable")
	}
	if err := b.Publish(ctx, e); err != nil {
		return err
	}
	return m.Ack()
}

// persist tries fn until it succeeds or ctx ends, for what must be there before
// a loop can begin.
func (b *Bus) persist(ctx context.Context, what string, fn func() error) error {
	for n := 1; ; n++ {
		err := unavailable(fn())
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrForbidden) {
			return fmt.Errorf("start %s: %w", what, err)
		}
		b.metrics.failed("bus")
		b.opts.Logger.WarnContext(ctx, "waiting for the bus", "for", what, "error", err)
		b.pause(ctx, backoff(b.opts.Times, n))
	}
}

// pause waits on the clock of the protocol, or until ctx ends.
func (b *Bus) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-b.wire.After(d):
	}
}
