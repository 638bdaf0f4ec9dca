package bus

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
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
// that was the end when scan began, or ctx ends if it follows. When the server
// that serves it goes away it goes on with another one, behind the last message
// that fn had; up to scanAttempts times in a row, or for ever if it follows.
func (b *Bus) scan(ctx context.Context, o scanOptions, fn func(jetstream.Msg, *jetstream.MsgMetadata) (bool, error)) error {
	s := scan{b: b, o: o, fn: fn}
	for fails := 1; ; fails++ {
		before, began := s.last, b.wire.Now()
		err := s.run(ctx)
		if s.last > before || b.wire.Since(began) > b.opts.Times.BackoffMax {
			fails = 1 // it worked for a while
		}
		var cut interruption
		switch {
		case ctx.Err() != nil && o.follow:
			return nil
		case !errors.As(err, &cut):
			return err
		case ctx.Err() != nil || b.nc.IsClosed() || !s.opened || !o.follow && fails >= attempts(cut):
			return cut.error
		case fails == 1 && !errors.Is(cut, errBehind):
			b.opts.Logger.WarnContext(ctx, "reading events interrupted, it goes on", "stream", o.stream, "error", cut.error)
		}
		b.pause(ctx, backoff(b.opts.Times, fails))
	}
}

// scanAttempts is how often in a row a server may go away under who reads up to
// the present.
const scanAttempts = 3

func attempts(cut interruption) int {
	if errors.Is(cut, errBehind) {
		return behindAttempts
	}
	return scanAttempts
}

// interruption is about a server or the connection to it: another consumer may go
// on.
type interruption struct{ error }

func (i interruption) Unwrap() error { return i.error }

func interrupted(err error) error { return interruption{unavailable(err)} }

// outage is err as an interruption, unless asking again would not help.
func outage(err error) error {
	err = unavailable(err)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrForbidden) {
		return err
	}
	return interruption{err}
}

// scan is one reading, through one consumer after the other. The client library
// has consumers that renew themselves, but they don't heed a context while they
// do, and ask for ever for one that was given to a server that is dead.
type scan struct {
	b  *Bus
	o  scanOptions
	fn func(jetstream.Msg, *jetstream.MsgMetadata) (bool, error)

	opened bool   // there was a consumer
	last   uint64 // stream sequence of the last message
	end    uint64 // when not following: what came later is left out
}

// consumerConfig is a consumer of what was not read yet. It comes and goes with
// its reader, on one server.
func (s *scan) consumerConfig() jetstream.ConsumerConfig {
	cfg := jetstream.ConsumerConfig{
		Name: rand.Text(), AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		InactiveThreshold: time.Minute, Replicas: 1, MemoryStorage: true,
	}
	switch from := max(s.o.from, s.last+1); {
	case s.last == 0 && !s.o.since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &s.o.since
	case from > 1:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	if filters := narrow(s.o.subjects); len(filters) == 1 {
		cfg.FilterSubject = filters[0]
	} else {
		cfg.FilterSubjects = filters
	}
	return cfg
}

// run reads through one consumer.
func (s *scan) run(ctx context.Context) error {
	b, cfg := s.b, s.consumerConfig()
	subject := apiSubject("CONSUMER.CREATE", s.o.stream, cfg.Name)
	if cfg.FilterSubject != "" {
		subject += "." + cfg.FilterSubject
	}
	caller := ctx
	ctx, stop := b.whileConnected(caller)
	defer stop()
	cctx, cancel := b.request(ctx, subject)
	defer cancel()
	c, err := b.js.CreateConsumer(cctx, s.o.stream, cfg)
	if err != nil {
		return outage(refusal(cctx, err))
	}
	s.opened = true
	err = s.read(ctx, c)
	var cut interruption
	if caller.Err() != nil || !errors.As(err, &cut) { // else whoever has it may not answer
		dctx, cancel := b.bound(context.WithoutCancel(ctx))
		defer cancel()
		// It would go by itself after its inactive threshold.
		_ = b.js.DeleteConsumer(dctx, s.o.stream, cfg.Name)
	}
	return err
}

func (s *scan) read(ctx context.Context, c jetstream.Consumer) error {
	b, o := s.b, s.o
	if !o.follow {
		if s.end == 0 {
			sctx, cancel := b.bound(ctx)
			defer cancel()
			st, err := b.js.Stream(sctx, o.stream)
			if err != nil {
				return interrupted(err)
			}
			s.end = st.CachedInfo().State.LastSeq
		}
		switch {
		case s.end == 0:
			return nil
		case c.CachedInfo().NumPending == 0:
			return s.complete(ctx)
		}
	}
	it, err := c.Messages(
		jetstream.PullMaxMessagesWithBytesLimit(o.pull(), max(pullBytes, int(2*b.nc.MaxPayload()))),
		jetstream.PullExpiry(jetstream.DefaultExpires),
		jetstream.PullHeartbeat(b.heartbeat(jetstream.DefaultExpires)),
	)
	if err != nil {
		return interrupted(err)
	}
	defer it.Stop()
	next := scanner{b: b, it: it, c: c, follow: o.follow}
	defer next.stop()
	for {
		m, meta, err := next.next(ctx)
		if err != nil {
			return interrupted(cmp.Or(context.Cause(ctx), err))
		}
		if m == nil {
			return s.complete(ctx)
		}
		seq := meta.Sequence.Stream
		if seq <= s.last {
			continue // a server that is behind may begin earlier
		}
		if o.until > 0 && seq > o.until || s.end > 0 && seq > s.end {
			return nil
		}
		s.last = seq
		if seq >= o.from && o.selects(m.Subject()) {
			if more, err := s.fn(m, meta); err != nil || !more {
				return err
			}
		}
		switch {
		case seq == o.until || seq == s.end:
			return nil
		case !o.follow && meta.NumPending == 0:
			return s.complete(ctx)
		}
	}
}

// whileConnected returns a context that ends when the connection was lost and is
// there again: what was on its way then is lost.
func (b *Bus) whileConnected(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	reconnected := b.reconnects.next()
	go func() {
		select {
		case <-reconnected:
			cancel(nats.ErrDisconnected)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
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
			if meta.Sequence.Consumer != s.last+1 {
				return nil, nil, fmt.Errorf("messages got lost on their way: %d follows %d", meta.Sequence.Consumer, s.last)
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
