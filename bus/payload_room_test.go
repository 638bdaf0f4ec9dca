package bus_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
)

// room is autoscaler_bus_payload_used_ratio, -1 when it is not there.
func room(t testing.TB, reg prometheus.Gatherer) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "autoscaler_bus_payload_used_ratio" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

func TestAPayloadBucketThatFillsUpIsMeasuredAndLogged(t *testing.T) {
	t.Parallel()
	server, reg, log := bustest.Server(t), prometheus.NewRegistry(), &bustest.Log{}
	// No handler runs: who only publishes sees it, too.
	b := bustest.Open(t, server, func(o *bus.Options) {
		o.MaxBytes, o.Registerer, o.Logger = 8<<20, reg, log.Logger()
	})
	const full = "the payload bucket is nearly full: the oldest data of events goes next, and an event that still refers to it becomes a dead letter; raise bus.max_bytes, or lower bus.max_age"
	eventually(t, func() bool { return room(t, reg) == 0 }, "it is empty")
	require.NoError(t, b.Publish(ctxT(t), large(t, "n1", "half", 4<<20)))
	eventually(t, func() bool { u := room(t, reg); return u > 0.45 && u < 0.6 }, "it is half full")
	require.Nil(t, log.Find(t, full))
	require.NoError(t, b.Publish(ctxT(t), large(t, "n2", "most", 3<<20)))
	eventually(t, func() bool { return room(t, reg) > 0.85 }, "it is nearly full")
	var entry map[string]any
	eventually(t, func() bool { entry = log.Find(t, full); return entry != nil }, "it is logged")
	require.Equal(t, "ERROR", entry["level"])
	require.Equal(t, bus.PayloadStream, entry["stream"])
	require.InDelta(t, 8<<20, entry["max_bytes"], 0)
	require.NoError(t, b.Ready(ctxT(t)), "this process can do its work")

	js := jetStream(t, server)
	s, err := js.Stream(ctxT(t), bus.PayloadStream)
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	cfg.MaxBytes = 64 << 20
	_, err = js.UpdateStream(ctxT(t), cfg)
	require.NoError(t, err)
	eventually(t, func() bool { return log.Find(t, "the payload bucket is no longer nearly full") != nil }, "that is logged, too")
	require.Less(t, room(t, reg), 0.2)
}
