package demo

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheDemonstrationShowsTheMainJob(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := Run(context.Background(), Options{Out: &out, Version: "test", Speed: 4})
	t.Logf("it prints:\n%s", out.String())
	require.NoError(t, err)
	for _, part := range []string{"QueueBacklog firing", "Ready (", "cordoned", "evicted", "removed (", "nodes added", "UnschedulablePods", "EVENTS"} {
		require.Contains(t, out.String(), part)
	}
}
