package replay

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// What metrics led to, points that were counted and values that were unknown
// included, comes out of the log as it was.
func TestDecisionsOnMetricsAreTheSameAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	minute := events.Duration(time.Minute)
	home := &cluster{testBundle: b, name: "home", fold: events.NewFold()}
	home.say(events.ConfigApplied{Digest: "policy-1", Version: "v1", Start: time.Now().UTC().Add(-time.Hour), Policy: events.Policy{
		Pools: []events.PoolPolicy{{Name: "a", Provider: "p", Max: 9, Size: events.Resources{CPUMilli: 1000, MemoryBytes: 1 << 30, Pods: 110},
			ScaleUpCooldown: 1, ScaleDownAfterAdd: minute, ScaleDownAfterFail: minute, ScaleDownCooldown: minute, Stabilization: minute,
			UtilizationThreshold: 0.5, Unneeded: minute, MinLifetime: minute, MaxRemovals: 1, RegisterDeadline: minute, ClaimExpiry: minute,
			DrainDeadline: minute, BackoffInitial: minute, BackoffMax: minute, BackoffReset: minute}},
		MetricRules: []events.MetricRule{
			{Name: "queue", Pool: "a", Query: "q", Interval: minute, StaleAfter: 4 * minute, MayAdd: true, MayRemove: true, TargetValue: &events.TargetValue{Target: 0.3, DeadBand: 0.01}},
			{Name: "points", Pool: "a", Signal: "pushed", StaleAfter: 4 * minute, MayAdd: true, Threshold: &events.MetricThreshold{AtLeast: new(5.0), Points: 2, Of: 3, Percent: new(50.0)}},
			{Name: "pending", Pool: "a", Metric: "pending-pods", Interval: minute, StaleAfter: minute, MayAdd: true, PassThrough: true}},
		StaleAfter: minute, MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}})
	home.full()
	b.decided("v1", home)
	push := func(v float64) {
		now := time.Now().UTC()
		home.say(events.SignalReceived{Name: "pushed", Value: &v, ObservedAt: now, ExpiresAt: now.Add(time.Hour)})
	}
	answer := func(v *float64, reason string) {
		now := time.Now().UTC()
		home.say(events.SignalReceived{Name: "queue", Value: v, Reason: reason, Source: events.SignalQueried, Query: events.QueryDigest("q", minute), Epoch: 1,
			ObservedAt: now, ExpiresAt: now.Add(time.Hour)})
	}
	push(7)
	answer(new(0.7), "")
	home.delta() // until decision has read it
	b.decided("v1", home)
	push(7)
	home.full()
	b.decided("v1", home)
	answer(nil, "connection refused")
	home.pending(2)
	home.delta()
	push(1)
	home.full()
	b.decided("v1", home)
	r, err := b.again()
	require.NoError(t, err)
	require.True(t, r.Equal(), "%+v", r)
	require.Equal(t, 2, r.Clusters[0].Checkpoints)
	require.GreaterOrEqual(t, r.Clusters[0].Decisions, 2)
}
