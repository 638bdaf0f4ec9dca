package draining

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// A drain that can't go on waits for itself alone, even where one process works on one
// node at a time, or its calls hang.
func TestOneBlockedDrainDelaysNoOther(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		workers int
		hangs   bool
	}{
		"refused by a budget, one worker":   {workers: 1},
		"refused by a budget, many workers": {workers: 8},
		"its calls hang":                    {workers: 2, hangs: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			const others = 6
			b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
			if c.hangs {
				b.world.hang = func(ctx context.Context, call string) {
					if call == "evict default/web-1" {
						<-ctx.Done()
					}
				}
			}
			name := func(i int) string { return fmt.Sprintf("burst-%010d", i) }
			for i := range others {
				b.world.nodes[name(i)] = &worldNode{claim: testClaim}
				b.world.add("default", name(i), func(p *worldPod) { p.node = name(i) })
			}
			h, own := b.handler(c.workers)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = own.Run(ctx, h) })
			wg.Go(func() { _ = h.Run(ctx) })
			t.Cleanup(func() { cancel(); wg.Wait() })

			b.request(events.GoalRemove, within(time.Hour))
			d := b.awaitPhase(lifecycle.DrainDraining)
			for i := range others {
				b.publish(events.NodeDrainRequested{Node: name(i), ClaimID: testClaim, Goal: events.GoalRemove, Reason: events.Reason{Code: "Unneeded"},
					NotAfter: time.Now().Add(time.Hour), Deadline: events.Duration(time.Hour)}, func(m *events.Meta) { m.Node = name(i) })
			}
			var drained []string
			require.Eventually(t, func() bool {
				drained = nil
				for d, err := range b.bus.Read(t.Context(), bus.ReadOptions{Types: []string{events.TypeNodeDrained}}) {
					require.NoError(t, err)
					drained = append(drained, d.Key.Name)
				}
				return len(drained) >= others
			}, patience, 20*time.Millisecond, "all others are drained")
			slices.Sort(drained)
			require.Len(t, slices.Compact(drained), others)
			require.NotContains(t, drained, testNode)
			now, _ := b.record()
			require.Equal(t, lifecycle.DrainDraining, now.Phase, "while the first one still tries")
			require.Equal(t, d.Deadline, now.Deadline)
		})
	}
}

// handler is one with so many workers.
func (b *testBundle) handler(workers int) (*Handler, *bus.Bus) {
	b.t.Helper()
	own := bustest.Open(b.t, b.server)
	h, err := New(b.t.Context(), Options{Bus: own, Times: b.times, Logger: slog.New(slog.DiscardHandler), Concurrency: workers,
		Clusters: func() map[string]Cluster { return map[string]Cluster{testCluster: b.world} }})
	require.NoError(b.t, err)
	return h, own
}
