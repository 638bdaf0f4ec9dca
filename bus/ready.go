package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// nearLimit is the share of the retention from which a reader that lags is
// reported: what it has not read is discarded next.
const nearLimit = 0.8

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
		if c.NumPending+uint64(c.NumAckPending) > 0 && nearLoss(info, c.AckFloor.Stream, b.wire.Now()) {
			errs = append(errs, fmt.Errorf("bus: consumer %s has %d events to read and is about to lose the oldest: they are discarded at max_age %s or max_bytes %d",
				name, c.NumPending, info.Config.MaxAge, info.Config.MaxBytes))
		}
	}
	return errors.Join(errs...)
}

// nearLoss reports whether a reader that has acknowledged everything up to floor
// is among the oldest fifth of a stream that is near one of its limits.
func nearLoss(info *jetstream.StreamInfo, floor uint64, now time.Time) bool {
	st, cfg := info.State, info.Config
	if st.Msgs == 0 {
		return false
	}
	full := cfg.MaxBytes > 0 && float64(st.Bytes) >= nearLimit*float64(cfg.MaxBytes)
	old := cfg.MaxAge > 0 && float64(now.Sub(st.FirstTime)) >= nearLimit*float64(cfg.MaxAge)
	if !full && !old {
		return false
	}
	span := float64(st.LastSeq - st.FirstSeq + 1)
	return floor < st.FirstSeq || float64(floor-st.FirstSeq+1) < (1-nearLimit)*span
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
