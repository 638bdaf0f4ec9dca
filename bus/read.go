package bus

import (
	"context"
	"errors"
	"fmt"
	"iter"
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

// everything matches all that the stream of record holds. For any other filter the
// server compares every message, which takes it more than twice as long.
const everything = ">"

func (o ReadOptions) subjects() ([]string, error) {
	if o.Cluster == "" && o.Node == "" && len(o.Types) == 0 {
		return []string{everything}, nil
	}
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
		so := scanOptions{stream: StreamName, subjects: subjects, from: o.FromSequence, since: o.Since, until: o.UntilSequence, follow: o.Follow, limit: o.Limit}
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
	ctx, cancel := b.request(ctx, b.getSubject(StreamName, subject))
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

// Delivered is an event that the stream of record gave to somebody who kept it, as it
// reached the handlers.
func Delivered(e events.Event, seq uint64, incarnation string, at time.Time) (Delivery, error) {
	d := Delivery{Event: e, Sequence: seq, Incarnation: incarnation, StreamTime: at.UTC(), Attempt: 1}
	cluster, key, err := events.PartitionKey(e)
	if err != nil {
		return d, err
	}
	d.Key = Key{Cluster: cluster, Name: key}
	d.Redrive, _, err = events.RedriveOf(e)
	return d, err
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
