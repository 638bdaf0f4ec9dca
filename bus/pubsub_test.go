package bus_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// label turns any text into a DNS label.
func label(prefix, text string) string {
	h := sha256.Sum256([]byte(text))
	return prefix + hex.EncodeToString(h[:10])
}

// suiteBody carries a message of the suite as the data of an event.
type suiteBody struct {
	Payload  []byte            `json:"payload"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// suitePublisher publishes messages of the suite as events: its topics are our
// clusters, and what has the same payload has the same key.
type suitePublisher struct{ *bus.Publisher }

func (p suitePublisher) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		data, err := json.Marshal(suiteBody{msg.Payload, msg.Metadata})
		if err != nil {
			return err
		}
		node := label("n-", string(msg.Payload))
		out := message.NewMessage(msg.UUID, data)
		out.Metadata = message.Metadata{
			"ce-specversion": "1.0", "ce-source": "/suite/" + topic, "ce-type": events.TypeNodeObserved,
			"ce-partitionkey": topic + "/" + node, "content-type": "application/json",
		}
		out.SetContext(msg.Context())
		if err := p.Publisher.Publish(topic, out); err != nil {
			return err
		}
	}
	return nil
}

// suiteSubscriber turns the events back. Watermill's own decorator for this
// blocks for ever in Close when the last message is not read.
type suiteSubscriber struct {
	*bus.Subscriber
	once    sync.Once
	closing chan struct{}
	wg      sync.WaitGroup
}

func (s *suiteSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	s.wg.Go(func() {
		defer close(out)
		for msg := range in {
			var b suiteBody
			if json.Unmarshal(msg.Payload, &b) == nil {
				msg.Payload, msg.Metadata = b.Payload, b.Metadata
			}
			select {
			case out <- msg:
			case <-s.closing:
				msg.Nack()
			}
		}
	})
	return out, nil
}

func (s *suiteSubscriber) Close() error {
	s.once.Do(func() { close(s.closing) })
	err := s.Subscriber.Close()
	s.wg.Wait()
	return err
}

func TestPubSubSuite(t *testing.T) {
	b := bustest.New(t, func(o *bus.Options) {
		o.InFlight = 1000
		o.MaxAttempts = 1000
		o.Times.AckWait = 5 * time.Second
		o.Times.Shutdown = time.Second // the suite waits 15 s for two of them
	})
	group := func(t *testing.T, name string) (message.Publisher, message.Subscriber) {
		sub, err := bus.NewSubscriber(b, bus.SubscriberOptions{Handler: label("g-", name), Suffixes: []string{"node.observed"}})
		require.NoError(t, err)
		return suitePublisher{bus.NewPublisher(b)}, &suiteSubscriber{Subscriber: sub, closing: make(chan struct{})}
	}
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:    true,
		GuaranteedOrder:   true,
		Persistent:        true,
		ForceShort:        true,
		GenerateTopicFunc: func(c tests.TestContext) string { return label("t-", string(c.TestID)) },
	}, func(t *testing.T) (message.Publisher, message.Subscriber) { return group(t, "default") }, group)
}
