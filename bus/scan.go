package bus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// pullStored is how many stored messages are asked for at once: with few, a reader
	// waits for the server most of the time.
	pullStored = 2000
	// pullBytes bounds what one of these requests brings, in bytes.
	pullBytes = 16 << 20
)

type scanOptions struct {
	stream   string
	subjects []string
	from     uint64
	since    time.Time
	until    uint64
	follow   bool
	limit    int // how many messages are wanted, 0: all
}

// pull is how many messages to ask for at once.
func (o scanOptions) pull() int {
	if o.limit > 0 {
		return min(o.limit, pullStored)
	}
	return pullStored
}

// narrow joins filters that differ in their last token: the request for a
// consumer with one filter names it in its subject, so that a credential can be
// limited to it.
func narrow(filters []string) []string {
	if len(filters) < 2 {
		return filters
	}
	stem := func(s string) string { return s[:strings.LastIndexByte(s, '.')+1] }
	for _, f := range filters[1:] {
		if stem(f) != stem(filters[0]) {
			return filters
		}
	}
	return []string{stem(filters[0]) + "*"}
}

// selects reports whether a message is wanted, and not only matched by what
// narrow made of the filters.
func (o scanOptions) selects(subject string) bool {
	return slices.ContainsFunc(o.subjects, func(f string) bool { return f == everything || matches(f, subject) })
}

// scan calls fn for stored messages in order until it returns false, or the end
// that was the end when scan began, or ctx ends if it follows.
func (b *Bus) scan(ctx context.Context, o scanOptions, fn func(jetstream.Msg, *jetstream.MsgMetadata) (bool, error)) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: narrow(o.subjects), DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: time.Minute}
	switch {
	case !o.since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &o.since
	case o.from > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, o.from
	}
	subject := apiSubject("CONSUMER.CREATE", o.stream, "*")
	if len(cfg.FilterSubjects) == 1 {
		subject += "." + cfg.FilterSubjects[0]
	}
	cctx, cancel := b.request(ctx, subject)
	defer cancel()
	c, err := b.js.OrderedConsumer(cctx, o.stream, cfg)
	if err != nil {
		return unavailable(refusal(cctx, err))
	}
	name := c.CachedInfo().Name
	defer func() {
		dctx, cancel := b.bound(context.WithoutCancel(ctx))
		defer cancel()
		// It would go by itself after its inactive threshold.
		_ = b.js.DeleteConsumer(dctx, o.stream, name)
	}()
	if !o.follow && c.CachedInfo().NumPending == 0 {
		return nil
	}
	end := uint64(0) // when not following: what came later is left out
	if !o.follow {
		s, err := b.js.Stream(cctx, o.stream)
		if err != nil {
			return unavailable(err)
		}
		end = s.CachedInfo().State.LastSeq
	}
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(o.pull(), max(pullBytes, int(2*b.nc.MaxPayload()))))
	if err != nil {
		return unavailable(err)
	}
	defer it.Stop()
	next := scanner{b: b, it: it, c: c, follow: o.follow}
	defer next.stop()
	for {
		m, meta, err := next.next(ctx)
		if err != nil {
			if ctx.Err() != nil && o.follow {
				return nil
			}
			return unavailable(err)
		}
		if m == nil {
			return nil
		}
		seq := meta.Sequence.Stream
		if o.until > 0 && seq > o.until || end > 0 && seq > end {
			return nil
		}
		if seq >= o.from && o.selects(m.Subject()) {
			if more, err := fn(m, meta); err != nil || !more {
				return err
			}
		}
		if !o.follow && meta.NumPending == 0 || seq == o.until || seq == end {
			return nil
		}
	}
}

// scanner takes messages from a consumer of stored ones.
type scanner struct {
	b      *Bus
	it     jetstream.MessagesContext
	c      jetstream.Consumer
	follow bool

	last uint64 // consumer sequence of the last message
	// wait bounds the waiting for messages, many of them: a context for each would
	// cost more than the message.
	wait    context.Context
	endWait context.CancelFunc
}

func (s *scanner) stop() {
	if s.endWait != nil {
		s.endWait()
	}
}

// next returns the next message; nil when there is none any more. A dead letter
// may be deleted between being counted as pending and being read.
func (s *scanner) next(ctx context.Context) (jetstream.Msg, *jetstream.MsgMetadata, error) {
	for {
		m, err := s.take(ctx)
		if err == nil {
			meta, err := m.Metadata()
			if err != nil {
				return nil, nil, err
			}
			s.last = meta.Sequence.Consumer
			return m, meta, nil
		}
		if s.follow || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return nil, nil, err
		}
		ictx, cancel := s.b.bound(ctx)
		info, err := s.c.Info(ictx)
		cancel()
		if err != nil {
			return nil, nil, err
		}
		// What was delivered meanwhile is on its way.
		if info.NumPending == 0 && info.Delivered.Consumer <= s.last {
			return nil, nil, nil
		}
	}
}

// take waits for a message, for the time of one request at least and two at most
// unless it follows.
func (s *scanner) take(ctx context.Context) (jetstream.Msg, error) {
	if s.follow {
		return s.it.Next(jetstream.NextContext(ctx))
	}
	for {
		fresh := s.wait == nil || s.wait.Err() != nil
		if fresh {
			s.stop()
			s.wait, s.endWait = s.b.bound(ctx)
		}
		m, err := s.it.Next(jetstream.NextContext(s.wait))
		if err == nil || fresh || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return m, err
		}
	}
}
