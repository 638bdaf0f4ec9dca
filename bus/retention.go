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

// lag is how late a consumer is.
type lag struct {
	events uint64 // that it has not acknowledged
	// oldest is the sequence of the first of them, and at its time in the stream.
	oldest uint64
	at     time.Time
	// used is the share of the retention that the oldest has used up; at 1 the
	// stream discards it.
	used float64
}

func (l lag) near() bool { return l.used >= nearLimit }

// lagOf finds the oldest event of the stream that a consumer has not acknowledged.
func (b *Bus) lagOf(ctx context.Context, s *jetstream.StreamInfo, c *jetstream.ConsumerInfo) (lag, error) {
	out := lag{events: c.NumPending + uint64(c.NumAckPending)}
	if out.events == 0 {
		return out, nil
	}
	// A consumer that waits for an acknowledgement stands at its floor. The position
	// of any other is how far it has looked: its floor moves with acknowledgements
	// only, and may be as old as its last event.
	floor := c.AckFloor.Stream
	if c.NumAckPending == 0 {
		floor = max(floor, c.Delivered.Stream)
	}
	filters := c.Config.FilterSubjects
	if len(filters) == 0 {
		filters = []string{c.Config.FilterSubject}
	}
	for _, f := range filters {
		m, err := b.firstFrom(ctx, max(floor+1, s.State.FirstSeq), f)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("consumer %s: find its oldest unread event: %w", c.Name, unavailable(err))
		}
		if out.oldest == 0 || m.Sequence < out.oldest {
			out.oldest, out.at = m.Sequence, m.Time
		}
	}
	if out.oldest > 0 { // or it was read, or discarded, just now
		out.used = retentionUsed(s, out.oldest, out.at, b.wire.Now())
	}
	return out, nil
}

// firstFrom returns the first stored message from a sequence on that a filter
// matches; an empty filter matches all.
func (b *Bus) firstFrom(ctx context.Context, seq uint64, filter string) (*jetstream.RawStreamMsg, error) {
	if filter == "" {
		filter = ">"
	}
	ctx, cancel := b.request(ctx, b.getSubject(StreamName))
	defer cancel()
	m, err := b.stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(filter))
	return m, refusal(ctx, err)
}

// retentionUsed is which share of the retention a stored message has used up: of
// the age that it may reach, or of the space that it and what came after it take,
// whichever is more. What is before the message counts as large, on average, as
// what is behind it.
func retentionUsed(s *jetstream.StreamInfo, seq uint64, at, now time.Time) float64 {
	st, cfg := s.State, s.Config
	var used float64
	if cfg.MaxAge > 0 {
		used = float64(now.Sub(at)) / float64(cfg.MaxAge)
	}
	if cfg.MaxBytes > 0 && seq <= st.LastSeq {
		from := float64(st.LastSeq-max(seq, st.FirstSeq)+1) / float64(st.LastSeq-st.FirstSeq+1)
		used = max(used, from*float64(st.Bytes)/float64(cfg.MaxBytes))
	}
	return min(max(used, 0), 1)
}

// backlog measures what waits for a handler, and how near it is to losing some.
type backlog struct {
	b         *Bus
	handler   string
	consumers []string
	near      bool // as it was logged
}

// measure reports how much waits in all consumers, and of the one that is latest
// how late it is. Without an answer nothing changes.
func (w *backlog) measure(ctx context.Context) {
	s, err := w.b.info(ctx)
	if err != nil {
		return
	}
	var waiting uint64
	var worst lag
	for _, name := range w.consumers {
		c, err := w.b.consumerInfo(ctx, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			return
		}
		l, err := w.b.lagOf(ctx, s, c)
		if err != nil {
			return
		}
		waiting += l.events
		if l.used > worst.used {
			worst = l
		}
	}
	w.b.metrics.depth.WithLabelValues(w.handler).Set(float64(waiting))
	w.b.metrics.retention.WithLabelValues(w.handler).Set(worst.used)
	if worst.near() == w.near {
		return
	}
	w.near = worst.near()
	if !w.near {
		w.b.opts.Logger.InfoContext(ctx, "a handler is no longer about to lose events", "handler", w.handler)
		return
	}
	w.b.metrics.failed("bus")
	w.b.opts.Logger.ErrorContext(ctx, "a handler is about to lose events that it has not read; find out why it is late, or raise bus.max_age or bus.max_bytes",
		"handler", w.handler, "oldest_sequence", worst.oldest, "oldest_time", worst.at.UTC(), "retention_used", worst.used,
		"max_age", s.Config.MaxAge.String(), "max_bytes", s.Config.MaxBytes)
}
