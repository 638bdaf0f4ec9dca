package bus_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestPublishedEventsReachTheHandlerInOrder(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	ctx := ctxT(t)
	var got record
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		got.add(d)
		return nil
	}})
	var want []string
	for i := range 50 {
		id := "e" + num(i)
		want = append(want, id)
		require.NoError(t, b.Publish(ctx, observed(t, "home", "pi4.lan", id)))
	}
	eventually(t, func() bool { return got.len() == 50 }, "all events arrive")
	require.Equal(t, want, got.ids())
	d := got.ds[0]
	require.Equal(t, bus.Key{Cluster: "home", Name: "pi4.lan"}, d.Key)
	require.Equal(t, uint64(1), d.Sequence)
	require.Equal(t, 1, d.Attempt)
	require.Equal(t, b.Incarnation(), d.Incarnation)
	p, err := bus.PartitionOf(d.Key)
	require.NoError(t, err)
	require.Equal(t, p, d.Partition, "the server's partition is the one that we compute")
}
