package view

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// quiet is a pool of two nodes that nobody needs and nothing keeps.
type quiet struct {
	pool  scaling.Pool
	m     Memory
	state scaling.PoolState
	o     scaling.Observation
}

func idle() *quiet {
	q := &quiet{
		pool: scaling.Pool{Name: "burst", Max: 5, Size: scaling.Resources{CPUMilli: 1000, MemoryBytes: 1 << 30, Pods: 110},
			UtilizationThreshold: 0.5, MaxRemovals: 1, FlapCount: 3, FlapWithin: 10 * time.Minute, FlapFreeze: time.Hour, DrainDeadline: time.Minute,
			ClaimExpiry: time.Minute},
		m: Memory{Rules: scaling.Policy{StaleAfter: time.Minute, MaxUnreadyFraction: .45, MaxUnreadyCount: 3},
			Core: scaling.State{TrustedAt: t0, Unneeded: map[string]time.Time{"burst-a": t0.Add(-time.Hour), "burst-b": t0.Add(-time.Hour)}}},
		o: scaling.Observation{Cluster: "home", Known: true, CapturedAt: t0, Freshness: map[string]time.Time{}},
	}
	for _, kind := range []string{scaling.KindNode, scaling.KindPod, scaling.KindBudget, scaling.KindDaemonSet, scaling.KindRecord} {
		q.o.Freshness[kind] = t0
	}
	q.state.Needs = []scaling.Need{{At: t0.Add(-time.Hour)}} // it is not the first look
	for _, n := range []string{"burst-a", "burst-b"} {
		q.node(n, true)
	}
	return q
}

func (q *quiet) node(name string, ready bool) {
	q.o.Nodes = append(q.o.Nodes, scaling.Node{Name: name, Ready: ready, Allocatable: q.pool.Size, CreatedAt: t0.Add(-24 * time.Hour),
		Labels: map[string]string{scaling.LabelCluster: "home", scaling.LabelPool: "burst", scaling.LabelClaim: "c-" + name}})
	q.o.Records = append(q.o.Records, scaling.Record{Name: name, Pool: "burst", ClaimID: "c-" + name, Phase: scaling.PhaseReady, ReadyAt: t0.Add(-24 * time.Hour)})
}

// shown is the pool and the cluster as the API shows them.
func (q *quiet) shown(t *testing.T) (api.Pool, api.Cluster) {
	t.Helper()
	m := q.m
	m.Policy = events.Policy{StaleAfter: events.Duration(m.Rules.StaleAfter), StartupGrace: events.Duration(m.Rules.StartupGrace),
		Pools: []events.PoolPolicy{{Name: "burst", Min: q.pool.Min, Max: q.pool.Max}}}
	m.Rules.Pools = []scaling.Pool{q.pool}
	m.Core.Pools = map[string]scaling.PoolState{"burst": q.state}
	v, err := New(Options{Log: bustest.New(t), Audit: &fakeAudit{}, Clusters: []string{"home"}, Clock: testingclock.NewFakeClock(t0), Lives: fakeLives{}, Logger: slog.New(slog.DiscardHandler),
		Observe:  func(string, *events.Fold) scaling.Observation { return q.o },
		Memories: MemoriesFunc(func(context.Context, string) (Memory, bool, error) { return m, true, nil })})
	require.NoError(t, err)
	require.NoError(t, v.clusters["home"].fold.Capture(capture(t, events.NewFold(), events.SnapshotObjects{})))
	v.clusters["home"].problem = ""
	pools, err := v.Pools(context.Background())
	require.NoError(t, err)
	clusters, err := v.Clusters(context.Background())
	require.NoError(t, err)
	return pools[0], clusters[0]
}

func TestEveryGuardIsShownWithItsValueAndWhenItLifts(t *testing.T) {
	t.Parallel()
	pending := func(q *quiet) {
		q.o.Classes = append(q.o.Classes, scaling.PodClass{ID: "big", Namespace: "ns", Requests: scaling.Resources{CPUMilli: 1000}})
		for _, n := range []string{"x", "y", "z"} {
			q.o.Pods = append(q.o.Pods, scaling.Pod{Namespace: "ns", Name: n, Class: "big", Phase: "Pending", OwnerKind: "ReplicaSet", UnschedulableSince: t0})
		}
	}
	for _, c := range []struct {
		guard, value string
		until        time.Duration // 0: it does not lift by itself
		edit         func(q *quiet)
	}{
		{"scale_down_after_add", "10m", 9 * time.Minute, func(q *quiet) {
			q.pool.ScaleDownAfterAdd, q.state.AddedAt = 10*time.Minute, t0.Add(-time.Minute)
		}},
		{"scale_down_after_fail", "3m", 2 * time.Minute, func(q *quiet) {
			q.pool.ScaleDownAfterFail, q.state.RemovalFailedAt = 3*time.Minute, t0.Add(-time.Minute)
		}},
		{"scale_down_cooldown", "2m", time.Minute, func(q *quiet) {
			q.pool.ScaleDownCooldown, q.state.RemovedAt = 2*time.Minute, t0.Add(-time.Minute)
		}},
		{"startup_grace", "10m", 9 * time.Minute, func(q *quiet) {
			q.m.Rules.StartupGrace, q.m.Core.StartedAt = 10*time.Minute, t0.Add(-time.Minute)
		}},
		{"unneeded_time", "burst-a", 4 * time.Minute, func(q *quiet) {
			q.pool.Unneeded, q.m.Core.Unneeded["burst-a"] = 5*time.Minute, t0.Add(-time.Minute)
		}},
		{"min_lifetime", "burst-a", 9 * time.Minute, func(q *quiet) {
			q.pool.MinLifetime, q.o.Records[0].ReadyAt = 10*time.Minute, t0.Add(-time.Minute)
		}},
		{"stabilization", "2", 4 * time.Minute, func(q *quiet) {
			q.pool.Stabilization, q.state.Needs = 5*time.Minute, []scaling.Need{{At: t0.Add(-time.Minute), Nodes: 2}}
		}},
		{"max_removals_per_hour", "1 of 1", 50 * time.Minute, func(q *quiet) {
			q.m.Rules.MaxRemovalsPerHour, q.m.Core.Removals = 1, []time.Time{t0.Add(-10 * time.Minute)}
		}},
		{"flap", "3", 20 * time.Minute, func(q *quiet) {
			q.state.FrozenUntil = t0.Add(20 * time.Minute)
			q.state.Flaps = slices.Repeat([]scaling.Flap{{At: t0.Add(-40 * time.Minute), After: time.Minute}}, 3)
		}},
		{"pause", "paused by ada", time.Hour, func(q *quiet) {
			q.m.Core.Pauses = map[string]scaling.Pause{"burst": {Actor: "ada", Reason: "work", Since: t0, Until: t0.Add(time.Hour)}}
		}},
		{"backoff", "1m", time.Minute, func(q *quiet) {
			pending(q)
			q.state.Backoff = scaling.Backoff{Since: t0, Until: t0.Add(time.Minute), Duration: time.Minute, Failures: 1, Message: "no image"}
		}},
		{"too_many_unready", "4 of 6", 0, func(q *quiet) {
			for _, n := range []string{"burst-c", "burst-d", "burst-e", "burst-f"} {
				q.node(n, false)
			}
		}},
		{"stale_data", "pod", 0, func(q *quiet) { q.o.Freshness[scaling.KindPod] = t0.Add(-2 * time.Minute) }},
		{"stale_data", "pdb", 0, func(q *quiet) { delete(q.o.Freshness, scaling.KindBudget) }},
		{"stale_data", "snapshot", 0, func(q *quiet) { q.o.CapturedAt = t0.Add(-2 * time.Minute) }},
		{"stale_data", "", 0, func(q *quiet) { q.o.Known, q.o.Problem = false, "the snapshots can't be folded" }},
		{"max", "2 of 2", 0, func(q *quiet) { q.pool.Max = 2; pending(q) }},
		{"min", "2 of 2", 0, func(q *quiet) { q.pool.Min = 2 }},
		{"budget", "0 of 0", 0, func(q *quiet) { q.pool.Budgets = []scaling.RemovalBudget{{Nodes: "0"}} }},
		{"max_removals", "1 of 1", 0, func(q *quiet) {
			q.node("burst-c", true)
			q.o.Records[2].Drain = &scaling.DrainRecord{Goal: scaling.GoalRemove, Phase: scaling.DrainDraining}
		}},
		{"headroom", "1 pod", 0, func(q *quiet) {
			q.pool.Headroom = &scaling.Headroom{Pods: 2, Pod: scaling.Resources{CPUMilli: 900}}
		}},
		{"claims_in_flight", "1", 0, func(q *quiet) {
			q.m.Core.Claims = map[string]scaling.Claim{"burst-z": {ID: "z", Node: "burst-z", Pool: "burst", ClaimedAt: t0, NotAfter: t0.Add(time.Minute)}}
		}},
		{"alert", "", 0, func(q *quiet) {
			q.m.Rules.AlertRules = []scaling.AlertRule{{Name: "busy", Pool: "burst", Direction: scaling.Up, Amount: 1, Matchers: []scaling.Matcher{{Label: "alertname", Op: scaling.MatchEqual, Value: "Busy"}}}}
			q.m.Core.Alerts = map[string]scaling.Alert{"f": {Labels: map[string]string{"alertname": "Busy"}, StartsAt: t0, ExpiresAt: t0.Add(time.Hour)}}
			q.state.AlertUpAt, q.pool.ScaleUpCooldown = t0, time.Hour
		}},
		{"would_return", "burst-b", 0, func(q *quiet) {
			q.pool.Schedules = []scaling.Schedule{{Name: "soon", Min: new(2), Window: scaling.Window{Schedule: "5 12 * * *", Duration: time.Hour}}}
		}},
	} {
		t.Run(c.guard+" "+c.value, func(t *testing.T) {
			t.Parallel()
			q := idle()
			c.edit(q)
			p, _ := q.shown(t)
			i := slices.IndexFunc(p.Guards, func(g events.GuardResult) bool { return g.Guard == c.guard && g.Value == c.value })
			require.GreaterOrEqual(t, i, 0, "%+v", p.Guards)
			g := p.Guards[i]
			require.NotEmpty(t, g.Message)
			require.NotEmpty(t, g.Lifts, "how it lifts otherwise, or that it does by itself")
			if c.until == 0 {
				require.Zero(t, g.Until)
			} else {
				require.Equal(t, t0.Add(c.until), g.Until)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		p, _ := idle().shown(t)
		require.Len(t, p.Guards, 1, "one of the two may go, %+v", p.Guards)
		require.Equal(t, "max_removals", p.Guards[0].Guard)
	})
}

func TestWhatIsUsedOfALimitIsShownBeforeItIsReached(t *testing.T) {
	t.Parallel()
	q := idle()
	p, c := q.shown(t)
	require.Nil(t, c.Removals, "any number may go")
	require.Nil(t, p.Flaps)

	q.m.Rules.MaxRemovalsPerHour, q.m.Core.Removals = 2, []time.Time{t0.Add(-2 * time.Hour), t0.Add(-10 * time.Minute)}
	q.state.Flaps = []scaling.Flap{{At: t0.Add(-2 * time.Hour)}, {At: t0.Add(-5 * time.Minute), After: time.Minute}}
	p, c = q.shown(t)
	require.Equal(t, &api.Removals{Count: 1, Limit: 2, Until: t0.Add(50 * time.Minute)}, c.Removals)
	require.Equal(t, &api.Flaps{Count: 1, Limit: 3, Within: "10m", Freeze: "1h", LastAt: t0.Add(-5 * time.Minute)}, p.Flaps)

	q.state.FrozenUntil = t0.Add(time.Minute)
	p, _ = q.shown(t)
	require.Equal(t, t0.Add(time.Minute), p.Flaps.FrozenUntil)
}
