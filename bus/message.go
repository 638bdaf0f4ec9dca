package bus

import (
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// messageOf returns e as a Watermill message: its id, attributes as metadata
// (as in the binary mode, but not encoded), data as payload.
func messageOf(e events.Event) *message.Message {
	m := &nats.Msg{Header: make(nats.Header, 16)}
	if e.Context == nil {
		return message.NewMessage("", nil)
	}
	if err := encodeInto(m, e); err != nil {
		// An event that was decoded has no attribute that can't be formatted.
		return message.NewMessage(e.ID(), e.Data())
	}
	msg := message.NewMessage(e.ID(), e.Data())
	for name, vs := range m.Header {
		if name != headerEncoding {
			msg.Metadata[name] = decodeValue(vs[0])
		}
	}
	return msg
}

// eventOf is the inverse of messageOf. Metadata that is no attribute is ignored.
func eventOf(msg *message.Message) (events.Event, error) {
	attrs := make(map[string]string, len(msg.Metadata))
	for name, v := range msg.Metadata {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, headerPrefix) {
			attrs[lower[len(headerPrefix):]] = v
		}
	}
	if attrs["id"] == "" {
		attrs["id"] = msg.UUID
	}
	e, err := decodeBinary(attrs, msg.Metadata[headerContentType], msg.Payload)
	if err != nil {
		return e, fmt.Errorf("message %s: %w", msg.UUID, err)
	}
	return e, nil
}

// Marshaler lets programs that use watermill-nats read and write our events: it
// is a Marshaler and Unmarshaler of its package nats. Metadata "ce-type",
// "ce-source" and so on are the attributes, the payload is the data, the UUID is
// the event's id.
type Marshaler struct{}

// Marshal returns the event in msg as a NATS message. The topic is the subject;
// an empty one means the subject of the event.
func (Marshaler) Marshal(topic string, msg *message.Message) (*nats.Msg, error) {
	e, err := eventOf(msg)
	if err != nil {
		return nil, fmt.Errorf("marshal: %w", err)
	}
	m, err := EncodeEvent(e)
	if err != nil {
		return nil, fmt.Errorf("marshal: %w", err)
	}
	if topic != "" {
		m.Subject = topic
	}
	return m, nil
}

// Unmarshal returns the event in m, binary or structured, as a message.
func (Marshaler) Unmarshal(m *nats.Msg) (*message.Message, error) {
	e, err := DecodeEvent(m.Header, m.Data)
	if err != nil {
		return nil, fmt.Errorf("unmarshal message on %s: %w", m.Subject, err)
	}
	return messageOf(e), nil
}

// Publisher is Watermill's message.Publisher over the stream of record.
type Publisher struct{ b *Bus }

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher returns a Publisher of b. Closing it does not close b.
func NewPublisher(b *Bus) *Publisher { return &Publisher{b} }

// Publish publishes the events in msgs; see Marshaler for their form. The topic
// is the cluster that they must belong to, or AllClusters. The contexts of the
// messages end the call.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		e, err := eventOf(msg)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if cluster, _, err := events.PartitionKey(e); topic != AllClusters && (err != nil || cluster != topic) {
			return fmt.Errorf("publish: event %s: %s is %q, expected one of cluster %s", e.ID(), events.ExtPartitionKey, events.Extension(e, events.ExtPartitionKey), topic)
		}
		if err := p.b.Publish(msg.Context(), e); err != nil {
			return err
		}
	}
	return nil
}

// Close does nothing: the connection belongs to the Bus.
func (p *Publisher) Close() error { return nil }
