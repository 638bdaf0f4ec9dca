package demo

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// slow takes its time to delete a machine, as an engine does: the node's object
// has long been gone by then.
type slow struct{ provider.NodeProvider }

func (s slow) Delete(ctx context.Context, name string) error {
	time.Sleep(time.Second)
	return s.NodeProvider.Delete(ctx, name)
}

func TestTheDemonstrationShowsTheMainJob(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := Run(context.Background(), Options{Out: &out, Version: "test", Speed: 4, wrap: func(p provider.NodeProvider) provider.NodeProvider { return slow{p} }})
	t.Logf("it prints:\n%s", out.String())
	require.NoError(t, err)
	for _, part := range []string{"QueueBacklog firing", "Ready (", "cordoned", "evicted", "removed (", "nodes added", "UnschedulablePods", "EVENTS"} {
		require.Contains(t, out.String(), part)
	}
}
