package auditing

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// brokenStore refuses until it is repaired.
type brokenStore struct {
	*sqliteStore
	mu     sync.Mutex
	broken bool
}

func (s *brokenStore) Append(ctx context.Context, batch []Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return errors.New("disk is full")
	}
	return s.sqliteStore.Append(ctx, batch)
}

func (s *brokenStore) set(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

// incompressible is a text of n bytes that takes its room in the log.
func incompressible(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(rand.Text())
	}
	return b.String()[:n]
}

// The stream holds about 170 of these events. Auditing receives them and can't
// write them, so that it is late, and at last the stream discards events that it
// never received.
func TestALateAuditIsAlarmedAndWhatItLosesIsRecordedAsAGap(t *testing.T) {
	t.Parallel()
	const space = 1 << 20
	b, reg, log := setup(t), prometheus.NewRegistry(), &bustest.Log{}
	logger := log.Logger()
	server := bustest.Server(t)
	own := bustest.Open(t, server, func(o *bus.Options) { o.MaxBytes, o.Registerer, o.Logger = space, reg, logger })
	store := &brokenStore{sqliteStore: b.store}
	h, err := New(Options{Store: store, Log: own, Logger: logger, Registerer: reg})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = own.RunBatch(ctx, h) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	published := 0
	publish := func() {
		published++
		require.NoError(t, own.Publish(t.Context(), event(t, fmt.Sprintf("event-%d", published),
			events.PoolPaused{Pool: "burst", Actor: "anna", Reason: incompressible(6 << 10)})))
	}
	state := func() bus.LogState {
		st, err := own.LogState(t.Context())
		require.NoError(t, err)
		return st
	}
	eventually := func(ok func() bool, msg string) {
		t.Helper()
		require.Eventually(t, ok, bustest.Patience, 10*time.Millisecond, msg)
	}
	// used is the gauge of auditing; it is the only handler here.
	used := func() float64 {
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "autoscaler_bus_retention_used_ratio" {
				require.Len(t, f.GetMetric(), 1)
				require.Equal(t, events.HandlerAuditing, f.GetMetric()[0].GetLabel()[0].GetValue())
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return -1
	}
	high := func() uint64 {
		_, n, err := b.store.High(t.Context())
		require.NoError(t, err)
		return n
	}

	publish()
	eventually(func() bool { return high() == 1 && used() == 0 }, "the first event is recorded, and nothing waits")
	require.NoError(t, own.Ready(t.Context()))
	store.set(true)
	for float64(state().Bytes) < 0.93*space {
		publish()
	}
	eventually(func() bool { return used() > 0.85 }, "the metric rises")
	require.ErrorContains(t, own.Ready(t.Context()), "consumer auditing has")
	require.ErrorContains(t, own.Ready(t.Context()), "about to lose the oldest, event 2 of")
	eventually(func() bool { return len(log.Entries(t, "about to lose events")) == 1 }, "it is logged")
	require.Equal(t, uint64(1), state().First, "all this before anything is lost")

	for published < 700 {
		publish()
	}
	first := state().First
	require.Greater(t, first, uint64(300), "events are discarded that fit into no batch")
	eventually(func() bool { return used() > 0.85 }, "it is still about to lose events")
	store.set(false)
	eventually(func() bool { return high() == 700 }, "auditing goes on behind the loss")

	gaps, err := b.store.Gaps(t.Context())
	require.NoError(t, err)
	require.Len(t, gaps, 1)
	gap := gaps[0]
	require.Equal(t, own.Incarnation(), gap.Incarnation)
	require.Equal(t, first-1, gap.To, "the last event that is gone")
	require.WithinDuration(t, time.Now(), gap.At, 10*time.Minute)
	var want []uint64
	for n := uint64(1); n <= 700; n++ {
		if n < gap.From || n > gap.To {
			want = append(want, n)
		}
	}
	require.Equal(t, want, b.recorded(), "what is not in the gap is recorded")
	lost := float64(gap.To - gap.From + 1)
	require.InDelta(t, lost, testutil.ToFloat64(h.metrics.lost), 0)
	said := log.Entries(t, "events were dropped by the limits of the stream before they were audited")
	require.Len(t, said, 1)
	require.Equal(t, "ERROR", said[0]["level"])
	require.InDelta(t, float64(gap.From), said[0]["from_sequence"], 0)
	require.InDelta(t, float64(gap.To), said[0]["to_sequence"], 0)
	eventually(func() bool { return used() == 0 && own.Ready(t.Context()) == nil }, "the alarm ends")
}
