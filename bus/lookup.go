package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// What a process does for which everything is provisioned: it looks things up,
// and says what is missing or other than this version needs.

func (b *Bus) lookUpStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	ctx, cancel := b.request(ctx, apiSubject("STREAM.INFO", want.Name))
	defer cancel()
	s, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: stream %s is missing", ErrNotProvisioned, want.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, refusal(ctx, err))
	}
	have := s.CachedInfo().Config
	if have.AllowDirect && have.Replicas > 1 {
		return nil, fmt.Errorf("%w: stream %s may be read from servers that are late", ErrNotProvisioned, want.Name)
	}
	if !sameLimits(have, want) {
		b.opts.Logger.WarnContext(ctx, "the limits of a stream are not those of the configuration; 'k3s-autoscaler bus provision' changes them", "stream", want.Name,
			"replicas", have.Replicas, "configured_replicas", want.Replicas, "max_age", have.MaxAge.String(), "configured_max_age", want.MaxAge.String(),
			"max_bytes", have.MaxBytes, "configured_max_bytes", want.MaxBytes)
	}
	return s, nil
}

func (b *Bus) lookUpConsumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	ctx, cancel := b.request(ctx, apiSubject("CONSUMER.INFO", stream, want.Durable))
	defer cancel()
	c, err := b.js.Consumer(ctx, stream, want.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, fmt.Errorf("%w: consumer %s of stream %s is missing", ErrNotProvisioned, want.Durable, stream)
	}
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", want.Durable, unavailable(refusal(ctx, err)))
	}
	if err := sameDelivery(c.CachedInfo().Config, want); err != nil {
		return nil, fmt.Errorf("%w: consumer %s of stream %s: %w", ErrNotProvisioned, want.Durable, stream, err)
	}
	return c, nil
}

// sameDelivery compares what the protocol with the server relies on. A filter
// that another version made would keep events from their handler in silence.
func sameDelivery(have, want jetstream.ConsumerConfig) error {
	filters := func(c jetstream.ConsumerConfig) []string {
		if c.FilterSubject != "" {
			return []string{c.FilterSubject}
		}
		return slices.Sorted(slices.Values(c.FilterSubjects))
	}
	var errs []error
	if h, w := filters(have), filters(want); !slices.Equal(h, w) {
		errs = append(errs, fmt.Errorf("delivers %q, expected %q", h, w))
	}
	if have.AckWait != want.AckWait {
		errs = append(errs, fmt.Errorf("ack wait is %s, expected %s", have.AckWait, want.AckWait))
	}
	if have.AckPolicy != want.AckPolicy || want.MaxAckPending > 0 && have.MaxAckPending != want.MaxAckPending || have.MaxDeliver != want.MaxDeliver {
		errs = append(errs, errors.New("acknowledges in another way"))
	}
	if have.PriorityPolicy != want.PriorityPolicy || !slices.Equal(have.PriorityGroups, want.PriorityGroups) {
		errs = append(errs, errors.New("spreads its messages in another way"))
	}
	return errors.Join(errs...)
}

// openable reports what a handler's messages need and can't be had, so that a
// process ends at its start instead of waiting for what does not come. One that
// makes its consumers tries the first: it may make all of them or none.
func (b *Bus) openable(ctx context.Context, stream string, wants ...jetstream.ConsumerConfig) error {
	if !b.opts.Provisioned {
		wants = wants[:1]
	}
	var errs []error
	for _, want := range wants {
		err := b.persist(ctx, "consumer "+want.Durable, func() error {
			_, err := b.openConsumer(ctx, stream, want)
			return err
		})
		if errors.Is(err, ErrForbidden) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
