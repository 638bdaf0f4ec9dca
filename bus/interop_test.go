package bus_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

var _ wmnats.MarshalerUnmarshaler = bus.Marshaler{}

func TestProgramsThatUseWatermillNATSReadAndWriteOurEvents(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Unsynced: true, Listen: "127.0.0.1:0", Token: token})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	b := bustest.Open(t, s)
	opts := []nats.Option{nats.Token(token)}

	sub, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL: s.URL(), NatsOptions: opts, Unmarshaler: bus.Marshaler{}, CloseTimeout: 5 * time.Second,
		// The subjects of the stream differ from the published ones: it is named.
		JetStream: wmnats.JetStreamConfig{DurablePrefix: "theirs", SubscribeOptions: []nats.SubOpt{nats.DeliverAll(), nats.AckExplicit(), nats.BindStream(bus.StreamName)}},
	}, watermill.NopLogger{})
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Close()) }()
	want := observed(t, "home", "n1", "ours")
	require.NoError(t, b.Publish(ctxT(t), want))
	p := mustPartition(t, "home", "n1")
	msgs, err := sub.Subscribe(ctxT(t), "p."+num(p)+".k3sas.home.node.n1.node.observed")
	require.NoError(t, err)
	msg := <-msgs
	msg.Ack()
	require.Equal(t, "ours", msg.UUID)
	require.Equal(t, events.TypeNodeObserved, msg.Metadata["ce-type"])
	require.Equal(t, string(want.Data()), string(msg.Payload))

	pub, err := wmnats.NewPublisher(wmnats.PublisherConfig{URL: s.URL(), NatsOptions: opts, Marshaler: bus.Marshaler{}}, watermill.NopLogger{})
	require.NoError(t, err)
	defer func() { require.NoError(t, pub.Close()) }()
	out := message.NewMessage("theirs", msg.Payload)
	for k, v := range msg.Metadata {
		if k != "ce-id" {
			out.Metadata[k] = v
		}
	}
	require.NoError(t, pub.Publish("k3sas.home.node.n1.node.observed", out))
	require.Equal(t, []string{"ours", "theirs"}, readIDs(t, b, bus.ReadOptions{}))
}

func TestAMessageThatIsNoEventIsNotPublished(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	pub := bus.NewPublisher(b)
	require.Error(t, pub.Publish(bus.AllClusters, message.NewMessage("x", nil)))
	m, err := bus.Marshaler{}.Unmarshal(mustEncode(t, observed(t, "home", "n1", "e")))
	require.NoError(t, err)
	require.ErrorContains(t, pub.Publish("lab", m), "expected one of cluster lab")
	require.NoError(t, pub.Publish("home", m))
	require.NoError(t, pub.Close())
	_, err = bus.Marshaler{}.Marshal("", message.NewMessage("x", nil))
	require.Error(t, err)
	_, err = bus.Marshaler{}.Unmarshal(&nats.Msg{})
	require.Error(t, err)
}

func mustEncode(t testing.TB, e events.Event) *nats.Msg {
	m, err := bus.EncodeEvent(e)
	require.NoError(t, err)
	return m
}
