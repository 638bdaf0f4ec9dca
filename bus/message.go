package bus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// messageOf returns e as a Watermill message: its id, attributes as metadata
// (as in the binary mode, but not encoded), data as payload.
func messageOf(e events.Event) *message.Message {
	if e.Context == nil {
		return message.NewMessage("", nil)
	}
	msg := message.NewMessage(e.ID(), e.Data())
	// An event that was decoded has no attribute that can't be formatted.
	_ = attributes(e, msg.Metadata.Set)
	return msg
}

// eventOf is the inverse of messageOf. Metadata that is no attribute is ignored.
func eventOf(msg *message.Message) (events.Event, error) {
	var ec cloudevents.EventContextV1
	var errs []error
	version, id := false, false
	for name, v := range msg.Metadata {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, headerPrefix) {
			continue
		}
		attr := lower[len(headerPrefix):]
		version, id = version || attr == "specversion", id || attr == "id" && v != ""
		if attr == "id" && v == "" {
			continue
		}
		if err := setAttribute(&ec, attr, v); err != nil {
			errs = append(errs, fmt.Errorf("metadata %s: %w", lower, err))
		}
	}
	if !version {
		errs = append(errs, errors.New("metadata ce-specversion: is missing"))
	}
	if !id {
		errs = append(errs, ec.SetID(msg.UUID))
	}
	e, err := finish(&ec, msg.Metadata[headerContentType], msg.Payload, errs)
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
