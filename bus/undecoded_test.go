package bus_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestWhatIsWrongWithAMessageIsSaidTheSameWayEachTime(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]nats.Header{
		"several attributes": {"ce-specversion": {"7"}, "ce-type": {"t"}, "ce-source": {"%zz"}, "ce-time": {"yesterday"}, "ce-Bad_Name": {"x"}, "ce-dataschema": {"%zz"}},
		"several values":     {"ce-id": {"a", "b"}, "ce-type": {"a", "b"}, "ce-source": {"a"}, "Ce-Source": {"b"}},
		"several missing":    {"ce-specversion": {"1.0"}},
	} {
		_, err := bus.DecodeEvent(h, nil)
		require.Error(t, err, name)
		for range 50 {
			_, again := bus.DecodeEvent(h, nil)
			require.EqualError(t, again, err.Error(), name)
		}
	}
}

func TestTheStandInOfAMessageDerivesFromTheStreamAlone(t *testing.T) {
	t.Parallel()
	why := &bus.UndecodableError{Sequence: 7, Subject: "s", Err: bus.ErrTooLarge}
	d := bus.Delivery{Sequence: 7, Incarnation: "a", StreamTime: start, Attempt: 1}
	first, err := bus.Undecoded(events.HandlerAuditing, d, why)
	require.NoError(t, err)
	d.Attempt = 9 // was delivered more often
	second, err := bus.Undecoded(events.HandlerAuditing, d, why)
	require.NoError(t, err)
	require.Equal(t, first.Event.String(), second.Event.String())
	require.Equal(t, start, first.Event.Time())
	require.Equal(t, bus.Key{Cluster: "unknown", Name: events.ClusterKey}, first.Key)
	p, err := events.Decode[events.DeadletterRecorded](first.Event)
	require.NoError(t, err)
	require.Equal(t, uint64(7), p.Sequence)
	require.Contains(t, p.Reason, "message 7 on s is no event")
}
