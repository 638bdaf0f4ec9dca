package view

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

func TestASnapshotIsReadOnceForAllWhoAskUntilTheNext(t *testing.T) {
	t.Parallel()
	read := 0
	m := Memory{Policy: events.Policy{Pools: []events.PoolPolicy{{Name: "burst", Max: 2}}},
		Rules: scaling.Policy{Pools: []scaling.Pool{{Name: "burst", Max: 2, Size: scaling.Resources{CPUMilli: 1000}}}, StaleAfter: time.Minute}}
	v, err := New(Options{Log: bustest.New(t), Audit: &fakeAudit{}, Lives: fakeLives{}, Clusters: []string{"home"}, Clock: testingclock.NewFakeClock(t0), Logger: slog.New(slog.DiscardHandler),
		Observe: func(cluster string, f *events.Fold) scaling.Observation {
			read++
			return decision.Observe(cluster, f)
		},
		Memories: MemoriesFunc(func(context.Context, string) (Memory, bool, error) { return m, true, nil })})
	require.NoError(t, err)
	// With as many pods that wait as that, each in need of a node of its own, the
	// largest size of the pool is what is in the way.
	waits := func(n int) []events.SnapshotPod {
		var out []events.SnapshotPod
		for i := range n {
			out = append(out, events.SnapshotPod{Namespace: "ns", Name: fmt.Sprint("p", i), Class: "big", Phase: "Pending", UnschedulableSince: t0})
		}
		return out
	}
	next := func(f *events.Fold, pods int) events.SnapshotCaptured {
		return capture(t, f, events.SnapshotObjects{Classes: []events.PodClass{{ID: "big", Namespace: "ns", Requests: events.Resources{CPUMilli: 900}}}, Pods: waits(pods)})
	}
	guards := func() []string {
		pools, err := v.Pools(t.Context())
		if err != nil {
			return []string{err.Error()}
		}
		return names(pools[0])
	}
	for i, pods := range []int{0, 3} {
		p := next(events.NewFold(), pods)
		p.Freshness = map[string]time.Time{events.KindNode: t0, events.KindPod: t0, events.KindRecord: t0, events.KindPDB: t0, events.KindDaemonSet: t0}
		v.set("home", func(f *events.Fold) error { return f.Capture(p) }, "")
		first := guards()
		require.Equal(t, pods == 3, len(first) > 0, "%v", first)
		var all sync.WaitGroup
		answers := make([][]string, 4)
		for j := range answers {
			all.Go(func() { answers[j] = guards() })
		}
		all.Wait()
		for _, a := range answers {
			require.Equal(t, first, a)
		}
		require.Equal(t, i+1, read, "once for each snapshot")
	}
}

func names(p api.Pool) []string {
	var out []string
	for _, g := range p.Guards {
		out = append(out, g.Guard)
	}
	return out
}
