package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestPullsThatAreInterruptedTogetherAreLoggedTogether(t *testing.T) {
	t.Parallel()
	const line = "pulling events interrupted, it goes on"
	server, log := bustest.Server(t), &bustest.Log{}
	b := bustest.Open(t, server, func(o *bus.Options) {
		// Long enough for a busy machine to interrupt all of them.
		o.Times.BackoffMin, o.Times.BackoffMax = 2*time.Second, 4*time.Second
		o.Logger = log.Logger()
	})
	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	js := jetStream(t, server)
	for p := range bus.Partitions {
		eventually(t, func() bool {
			c, err := js.Consumer(ctxT(t), bus.StreamName, events.HandlerProvisioning+"-"+num(p))
			return err == nil && c.CachedInfo().NumWaiting > 0
		}, "it is pulled")
	}
	for p := range bus.Partitions {
		require.NoError(t, js.DeleteConsumer(ctxT(t), bus.StreamName, events.HandlerProvisioning+"-"+num(p)))
	}
	eventually(t, func() bool {
		said := 0.0
		for _, entry := range log.Entries(t, line) {
			n, _ := entry["partitions"].(float64)
			said += n
		}
		return said >= bus.Partitions
	}, "all of them are named")
	all := log.Entries(t, line)
	require.LessOrEqual(t, len(all), 3, "in few lines: %v", all)
	require.Equal(t, "WARN", all[0]["level"])
	require.Contains(t, all[0]["which"], "provisioning ")
	require.Contains(t, all[0]["why"], "consumer deleted")

	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "after")))
	eventually(t, func() bool { return got.len() == 1 }, "it goes on")
}
