package bus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// ReadOptions select events of the stream of record. Zero values select all.
type ReadOptions struct {
	Cluster string
	// Node is a true node name or events.ClusterKey.
	Node string
	// Types are event types, e.g. events.TypeTimerFired.
	Types []string
	// FromSequence and Since say where to begin, the later of both.
	FromSequence uint64
	Since        time.Time
	// UntilSequence is the last sequence to read, Until the time (exclusive, by
	// stream time) at which reading ends.
	UntilSequence uint64
	Until         time.Time
	// Follow goes on with new events until ctx ends.
	Follow bool
	// Limit is how many events to read at most.
	Limit int
}

func (o ReadOptions) subjects() ([]string, error) {
	cluster, token := "*", "*"
	if o.Cluster != "" {
		if err := events.ValidateCluster(o.Cluster); err != nil {
			return nil, err
		}
		cluster = o.Cluster
	}
	if o.Node != "" {
		t, err := events.EncodeKey(o.Node)
		if err != nil {
			return nil, err
		}
		token = t
	}
	if len(o.Types) == 0 {
		return []string{filterSubject("*", cluster, token, ">")}, nil
	}
	var out []string
	seen := map[string]bool{}
	for _, typ := range o.Types {
		def, ok := events.Lookup(typ)
		if !ok {
			return nil, fmt.Errorf("type: %q is not in the catalogue", typ)
		}
		suffix := def.Suffix()
		if events.Addressed(typ) {
			suffix = events.AddressedSuffix(typ, "*")
		}
		if s := filterSubject("*", cluster, token, suffix); !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out, nil
}

// Read returns stored events in stream order. It has no effect on handlers. A
// message that is no event comes as an *UndecodableError with its sequence, and
// reading goes on if the caller does; any other error is the last.
func (b *Bus) Read(ctx context.Context, o ReadOptions) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		subjects, err := o.subjects()
		if err != nil {
			yield(Delivery{}, fmt.Errorf("read events: %w", err))
			return
		}
		n := 0
		so := scanOptions{stream: StreamName, subjects: subjects, from: o.FromSequence, since: o.Since, until: o.UntilSequence, follow: o.Follow}
		err = b.scan(ctx, so, func(m jetstream.Msg, meta *jetstream.MsgMetadata) (bool, error) {
			if !o.Until.IsZero() && !meta.Timestamp.Before(o.Until) {
				return false, nil
			}
			d, err := b.delivery(ctx, m.Subject(), m.Headers(), m.Data(), meta.Sequence.Stream, meta.Timestamp)
			var undecodable *UndecodableError
			if err != nil && !errors.As(err, &undecodable) {
				return false, err
			}
			n++
			return yield(d, err) && (o.Limit <= 0 || n < o.Limit), nil
		})
		if err != nil {
			yield(Delivery{}, fmt.Errorf("read events: %w", err))
		}
	}
}

// Last returns the last event of a type on a key; false when there is none.
func (b *Bus) Last(ctx context.Context, key Key, eventType string) (Delivery, bool, error) {
	token, err := key.token()
	if err != nil {
		return Delivery{}, false, fmt.Errorf("last %s: %w", eventType, err)
	}
	def, ok := events.Lookup(eventType)
	if !ok || events.Addressed(eventType) {
		return Delivery{}, false, fmt.Errorf("last %q: expected a type of the catalogue that is not for one handler alone", eventType)
	}
	subject := storedSubject(partitionOf(key.Cluster, token), strings.Join([]string{events.SubjectRoot, key.Cluster, nodeToken, token, def.Suffix()}, "."))
	ctx, cancel := b.request(ctx, apiSubject("DIRECT.GET", StreamName, subject))
	defer cancel()
	m, err := b.stream.GetLastMsgForSubject(ctx, subject)
	err = refusal(ctx, err)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Delivery{}, false, nil
	}
	if err != nil {
		return Delivery{}, false, fmt.Errorf("last %s of %s: %w", eventType, key, unavailable(err))
	}
	d, err := b.delivery(ctx, m.Subject, m.Header, m.Data, m.Sequence, m.Time)
	if err != nil {
		return Delivery{}, false, fmt.Errorf("last %s of %s: %w", eventType, key, err)
	}
	return d, true, nil
}

// delivery turns a stored message into a delivery with all its data. The error is
// an *UndecodableError when that is certainly not possible.
func (b *Bus) delivery(ctx context.Context, subject string, h nats.Header, data []byte, seq uint64, at time.Time) (Delivery, error) {
	d, err := b.parse(subject, h, data, seq, at)
	if err == nil {
		err = b.complete(ctx, &d, subject)
	}
	return d, err
}

// complete gives a delivery the data that is stored apart.
func (b *Bus) complete(ctx context.Context, d *Delivery, subject string) error {
	e, err := b.redeem(ctx, d.Event)
	var lost *payloadError
	switch {
	case errors.As(err, &lost):
		return &UndecodableError{Sequence: d.Sequence, Subject: subject, Err: lost}
	case err != nil:
		return fmt.Errorf("message %d on %s: %w", d.Sequence, subject, err)
	}
	d.Event = e
	return nil
}

// parse turns a stored message into a delivery, whose data may be a reference.
// When it is no event, the rest of the delivery is as complete as the subject
// allows.
func (b *Bus) parse(subject string, h nats.Header, data []byte, seq uint64, at time.Time) (Delivery, error) {
	d := Delivery{Sequence: seq, Incarnation: b.incarn, StreamTime: at.UTC(), Attempt: 1}
	var err error
	if d.Partition, d.Key, err = parseStored(subject); err != nil {
		return d, &UndecodableError{Sequence: seq, Subject: subject, Err: err}
	}
	e, err := DecodeEvent(h, data)
	if err != nil {
		return d, &UndecodableError{Sequence: seq, Subject: subject, Err: err}
	}
	if events.Extension(e, events.ExtPartitionKey) != d.Key.String() {
		return d, &UndecodableError{Sequence: seq, Subject: subject, Err: fmt.Errorf("%s: is %q, the subject says %q", events.ExtPartitionKey, events.Extension(e, events.ExtPartitionKey), d.Key)}
	}
	if d.Redrive, _, err = events.RedriveOf(e); err != nil {
		return d, &UndecodableError{Sequence: seq, Subject: subject, Err: err}
	}
	d.Event = e
	return d, nil
}

type scanOptions struct {
	stream   string
	subjects []string
	from     uint64
	since    time.Time
	until    uint64
	follow   bool
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
	return slices.ContainsFunc(o.subjects, func(f string) bool { return matches(f, subject) })
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
	it, err := c.Messages(jetstream.PullMaxMessages(256))
	if err != nil {
		return unavailable(err)
	}
	defer it.Stop()
	for {
		m, err := b.nextStored(ctx, it, c, o.follow)
		if err != nil {
			if ctx.Err() != nil && o.follow {
				return nil
			}
			return unavailable(err)
		}
		if m == nil {
			return nil
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
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

// nextStored returns the next message; nil when there is none any more. A dead
// letter may be deleted between being counted as pending and being read.
func (b *Bus) nextStored(ctx context.Context, it jetstream.MessagesContext, c jetstream.Consumer, follow bool) (jetstream.Msg, error) {
	for {
		nctx, cancel := ctx, context.CancelFunc(func() {})
		if !follow {
			nctx, cancel = b.bound(ctx)
		}
		m, err := it.Next(jetstream.NextContext(nctx))
		cancel()
		if follow || err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return m, err
		}
		ictx, cancel := b.bound(ctx)
		info, err := c.Info(ictx)
		cancel()
		if err != nil {
			return nil, err
		}
		if info.NumPending == 0 {
			return nil, nil
		}
	}
}
