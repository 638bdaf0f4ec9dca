package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// publishParallel is how many keys one call publishes for at a time.
const publishParallel = 32

// Publish publishes events and returns nil only after JetStream has acknowledged
// all of them. Events of one key are published in the given order, each after
// the former was acknowledged; different keys go side by side. An event that was
// published before (same source and id, within 10 minutes) is not stored twice.
// After an error some of them may be stored: call again with the same events.
// ErrTooLarge means that the data of one exceeds 64 MiB.
func (b *Bus) Publish(ctx context.Context, es ...events.Event) error {
	msgs := make([]*nats.Msg, len(es))
	for i, e := range es {
		m, err := b.encode(ctx, e)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		msgs[i] = m
	}
	if len(es) == 1 {
		return b.publishEach(ctx, es, msgs)
	}
	type chain struct {
		es   []events.Event
		msgs []*nats.Msg
	}
	var order []string
	chains := map[string]*chain{}
	for i, e := range es {
		k := events.Extension(e, events.ExtPartitionKey)
		if chains[k] == nil {
			chains[k] = &chain{}
			order = append(order, k)
		}
		chains[k].es, chains[k].msgs = append(chains[k].es, e), append(chains[k].msgs, msgs[i])
	}
	var wg sync.WaitGroup
	errs := make([]error, len(order))
	limit := make(chan struct{}, publishParallel)
	for i, k := range order {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			errs[i] = b.publishEach(ctx, chains[k].es, chains[k].msgs)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (b *Bus) publishEach(ctx context.Context, es []events.Event, msgs []*nats.Msg) error {
	for i, m := range msgs {
		if _, err := b.publishMsg(ctx, m); err != nil {
			return fmt.Errorf("publish %s %s for %s: %w", es[i].Type(), es[i].ID(), events.Extension(es[i], events.ExtPartitionKey), err)
		}
	}
	return nil
}

// PublishExpecting publishes e if last is the sequence of the last event of its
// subject (0: there is none), and ErrConflict otherwise. If the last event of
// the subject is e itself, an earlier call succeeded without knowing: that is
// success, with the sequence it has.
func (b *Bus) PublishExpecting(ctx context.Context, e events.Event, last uint64) (seq uint64, err error) {
	m, err := b.encode(ctx, e)
	if err != nil {
		return 0, fmt.Errorf("publish: %w", err)
	}
	ack, err := b.publishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(last))
	if err == nil {
		return ack.Sequence, nil
	}
	if errors.Is(err, ErrConflict) {
		if seq, rerr := b.lastIs(ctx, e, m.Subject); rerr != nil || seq > 0 {
			return seq, rerr
		}
	}
	return 0, fmt.Errorf("publish %s %s: %w", e.Type(), e.ID(), err)
}

// lastIs returns the sequence of e if it is the last event of its subject, else 0.
func (b *Bus) lastIs(ctx context.Context, e events.Event, subject string) (uint64, error) {
	k, err := KeyOf(e)
	if err != nil {
		return 0, err
	}
	p, err := PartitionOf(k)
	if err != nil {
		return 0, err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	m, err := b.stream.GetLastMsgForSubject(ctx, storedSubject(p, subject))
	if err != nil {
		return 0, fmt.Errorf("read the last event of %s: %w", subject, unavailable(err))
	}
	if m.Header.Get(headerMsgID) != MessageID(e) {
		return 0, nil
	}
	return m.Sequence, nil
}

// encode returns e as a message that the server takes. Data that has no room in
// it is stored apart; the message carries a reference.
func (b *Bus) encode(ctx context.Context, e events.Event) (*nats.Msg, error) {
	m, err := EncodeEvent(e)
	if err != nil {
		return nil, err
	}
	if err := b.keep(ctx, e); err != nil {
		return nil, err
	}
	limit := b.nc.MaxPayload()
	if int64(m.Size()) > limit && len(m.Data) > 0 {
		if e, err = b.claim(ctx, e); err != nil {
			return nil, err
		}
		if m, err = EncodeEvent(e); err != nil {
			return nil, err
		}
	}
	if int64(m.Size()) > limit {
		return nil, fmt.Errorf("event %s (%s): %w: its attributes have %d bytes, the server takes %d", e.ID(), e.Type(), ErrTooLarge, m.Size(), limit)
	}
	return m, nil
}

func (b *Bus) publishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ctx, cancel := b.request(ctx, m.Subject)
	defer cancel()
	ack, err := b.js.PublishMsg(ctx, m, opts...)
	err = refusal(ctx, err)
	switch {
	case err == nil:
		b.metrics.published.WithLabelValues("acknowledged").Inc()
		return ack, nil
	case isWrongLast(err):
		b.metrics.published.WithLabelValues("conflict").Inc()
		return nil, fmt.Errorf("%w: %w", ErrConflict, err)
	}
	b.metrics.published.WithLabelValues("failed").Inc()
	b.metrics.failed("bus")
	return nil, unavailable(err)
}

func isWrongLast(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
