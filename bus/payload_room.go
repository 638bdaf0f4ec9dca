package bus

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
)

// room measures how full the payload bucket is. The bucket has a limit of its own,
// which has the value of bus.max_bytes; the server reserves that much, so that
// nothing else bounds it earlier. At the limit the oldest objects go, though
// events may still refer to them.
type room struct {
	b    *Bus
	near bool // as it was logged
}

// measureRoom reports it while the bus is open: not only handlers store payloads.
func (b *Bus) measureRoom(ctx context.Context) {
	tick := b.wire.NewTicker(b.opts.Times.Metrics)
	defer tick.Stop()
	r := &room{b: b}
	for {
		r.measure(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

// measure reports how full the bucket is. Without an answer nothing changes.
func (r *room) measure(ctx context.Context) {
	rctx, cancel := r.b.request(ctx, apiSubject("STREAM.INFO", PayloadStream))
	defer cancel()
	s, err := r.b.js.Stream(rctx, PayloadStream)
	if err != nil {
		return
	}
	info := s.CachedInfo()
	used := roomUsed(info)
	r.b.metrics.payloads.Set(used)
	if near := used >= nearLimit; near == r.near {
		return
	}
	r.near = !r.near
	if !r.near {
		r.b.opts.Logger.InfoContext(ctx, "the payload bucket is no longer nearly full", "stream", PayloadStream, "used", used)
		return
	}
	r.b.metrics.failed("bus")
	r.b.opts.Logger.ErrorContext(ctx, "the payload bucket is nearly full: the oldest data of events goes next, and an event that still refers to it becomes a dead letter; raise bus.max_bytes, or lower bus.max_age",
		"stream", PayloadStream, "used", used, "bytes", info.State.Bytes, "max_bytes", info.Config.MaxBytes, "max_age", info.Config.MaxAge.String())
}

// roomUsed is which share of its space a bucket uses; without a limit, none.
func roomUsed(s *jetstream.StreamInfo) float64 {
	if s.Config.MaxBytes <= 0 {
		return 0
	}
	return min(float64(s.State.Bytes)/float64(s.Config.MaxBytes), 1)
}
