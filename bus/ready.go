package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Ready reports why this process can't do its work on the bus, or nil: the
// connection is down, JetStream does not answer, the stream of record is gone or
// another one, or a handler that runs here lags so far behind that events are
// about to be discarded unread.
func (b *Bus) Ready(ctx context.Context) error {
	if !b.nc.IsConnected() {
		return fmt.Errorf("bus: %w: connection is %s", ErrUnavailable, b.nc.Status())
	}
	info, err := b.info(ctx)
	if err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	if have := info.Config.Metadata[metaIncarnation]; have != b.incarn {
		return fmt.Errorf("bus: %w: is %q, this process opened %q; restart it after checking what happened to the stream", ErrIncarnation, have, b.incarn)
	}
	var errs []error
	for _, name := range b.readers() {
		c, err := b.consumerInfo(ctx, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("bus: consumer %s: %w", name, err))
			continue
		}
		l, err := b.lagOf(ctx, info, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("bus: %w", err))
			continue
		}
		if l.near() {
			errs = append(errs, fmt.Errorf("bus: consumer %s has %d events to read and is about to lose the oldest, event %d of %s: it has used %.0f %% of max_age %s or max_bytes %d",
				name, l.events, l.oldest, l.at.UTC().Format(time.RFC3339), 100*l.used, info.Config.MaxAge, info.Config.MaxBytes))
		}
	}
	return errors.Join(errs...)
}

// reading notes which consumers this process serves.
func (b *Bus) reading(name string) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serves[name]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.serves[name]--; b.serves[name] == 0 {
			delete(b.serves, name)
		}
	}
}

func (b *Bus) readers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]string, 0, len(b.serves))
	for name := range b.serves {
		out = append(out, name)
	}
	return out
}
