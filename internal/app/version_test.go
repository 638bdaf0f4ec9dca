package app

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clocktest "k8s.io/utils/clock/testing"
)

func TestTheServersVersionIsKnownBeforeItIsNeededAndNeverLong(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	var asked atomic.Int64
	var down atomic.Bool
	v := &serverVersion{clock: clk, ask: func(context.Context) (string, error) {
		asked.Add(1)
		if down.Load() {
			return "", errors.New("no answer")
		}
		return "v1.34.4+k3s1", nil
	}}
	get := func() {
		t.Helper()
		got, err := v.get(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v1.34.4+k3s1", got)
	}
	get()
	get()
	require.EqualValues(t, 1, asked.Load(), "what is known is not asked for")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.run(ctx) }()
	require.Eventually(t, func() bool { return asked.Load() == 2 && clk.HasWaiters() }, time.Minute, time.Millisecond)
	clk.Step(versionEvery)
	require.Eventually(t, func() bool { return asked.Load() == 3 }, time.Minute, time.Millisecond, "it is asked ahead of time")
	cancel()
	require.NoError(t, <-done)

	down.Store(true)
	clk.Step(versionFor - time.Millisecond)
	get()
	clk.Step(time.Millisecond)
	_, err := v.get(t.Context())
	require.ErrorContains(t, err, "no answer", "what is old does not count")
	down.Store(false)
	get()
}
