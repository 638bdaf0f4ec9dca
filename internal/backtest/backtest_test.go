package backtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// TestAPolicyIsTriedOnAnHour is worked out by hand. A pod fills most of a node; the
// server has room for none. The price of a node is 0.6 an hour: a cent a minute.
//
// What happened, under a policy that removes a node 5 minutes after it is needed:
//
//	12:01:00  pod one comes; node n1 is claimed
//	12:01:40  n1 is Ready, one is on it: it waited 40 s
//	12:11:00  one ends
//	12:16:00  n1 has been unneeded for 5 minutes: it is drained (empty at 12:16:04) …
//	12:16:10  … and gone
//	12:20:00  pod two comes; node n2 is claimed: 4 minutes after the pool was told to
//	          remove one (a flap), 3 m 50 s after that was gone (a removal regretted)
//	12:20:40  n2 is Ready, two is on it: it waited 40 s
//	12:31:00  two ends
//	12:36:00  n2 is drained, 16 minutes after it was claimed (no flap) …
//	12:36:10  … and gone
//	12:40:00  the log ends
//
// n1 was there for 15 m 10 s, n2 for 16 m 10 s: 31 m 20 s, 1880 s, 0.5222 hours.
//
// The simulation of the same policy has the same delays, for all nodes of the log took
// the same: 40 s, 4 s, 6 s. It comes out as it was.
//
// The other policy removes a node 10 minutes after it is needed: at 12:21:00, but at
// 12:20:00 two comes, finds n1, and does not wait. It would go at 12:41:00, after the
// end. So there is one node, from 12:01:00 to 12:40:00: 39 minutes, 0.65 hours, 39
// cents; one addition, 40 s of waiting, and nothing else.
func TestAPolicyIsTriedOnAnHour(t *testing.T) {
	t.Parallel()
	s := hour(t)
	c := s.try(policy(func(p *events.Policy) {
		p.Pools[0].Unneeded, p.Pools[0].Stabilization = events.Duration(10*time.Minute), events.Duration(10*time.Minute)
	}))
	happened := Figures{NodeHours: 1880. / 3600, Cost: 1880. / 3600 * 0.6, PendingSeconds: 80, Additions: 2, Removals: 2, Flaps: 1, Regretted: 1,
		Pools: []PoolFigures{{Pool: "a", NodeHours: 1880. / 3600, Price: 0.6, Cost: 1880. / 3600 * 0.6, Additions: 2, Removals: 2}}}
	require.Equal(t, happened, c.Recorded)
	require.Equal(t, happened, c.Simulated)
	require.Equal(t, Figures{NodeHours: 0.65, Cost: 0.39, PendingSeconds: 40, Additions: 1,
		Pools: []PoolFigures{{Pool: "a", NodeHours: 0.65, Price: 0.6, Cost: 0.39, Additions: 1}}}, c.Candidate)
	require.Equal(t, []PoolDelays{{Pool: "a", Ready: 40, ReadyCount: 2, Drained: 4, DrainedCount: 2, Removed: 6, RemovedCount: 2}}, c.Delays)
	require.Equal(t, []string{"recorded-policy"}, c.RecordedPolicies)
	require.Equal(t, "new-policy", c.Policy)
	require.Equal(t, noon, c.Since)
	require.Equal(t, at(40, 0), c.Until)

	// They part when the first would remove n1, when it adds n2, and when it removes it.
	require.Equal(t, 3, c.Differences)
	require.Equal(t, at(16, 0), c.First[0].At)
	require.Equal(t, "down", c.First[0].Simulated.Decision.Verdict)
	require.False(t, c.First[0].Simulated.Stands)
	require.Equal(t, "held", c.First[0].Candidate.Decision.Verdict)
	require.True(t, c.First[0].Candidate.Stands)
	require.Equal(t, "a", c.First[0].Pool)
	require.Equal(t, at(20, 0), c.First[1].At)
	require.Equal(t, 1, c.First[1].Simulated.Decision.Delta)
	require.Equal(t, at(36, 0), c.First[2].At)
	few := s.try(policy(func(p *events.Policy) { p.Pools[0].Unneeded = events.Duration(10 * time.Minute) }), func(o *Options) { o.Differences = 1 })
	require.Len(t, few.First, 1)
}

// hour is the log of the test above.
func hour(t testing.TB) *story {
	s := begin(t, policy())
	for _, x := range []struct {
		pod, node             string
		comes, ends, unneeded int // minutes
	}{{"one", "n1", 1, 11, 16}, {"two", "n2", 20, 31, 36}} {
		s.until(at(x.comes, 0).Add(-every))
		s.now = at(x.comes, 0)
		s.pod(x.pod, "", 600)
		s.snapshot()
		s.claimed(x.node)
		s.until(at(x.comes, 40).Add(-every))
		s.now = at(x.comes, 40)
		s.ready(x.node)
		s.move(x.pod, x.node)
		s.snapshot()
		s.until(at(x.ends, 0).Add(-every))
		s.now = at(x.ends, 0)
		s.end(x.pod)
		s.snapshot()
		s.until(at(x.unneeded, 0))
		s.draining(x.node)
		s.until(at(x.unneeded, 4))
		s.drained(x.node)
		s.until(at(x.unneeded, 10).Add(-time.Second))
		s.now = at(x.unneeded, 10)
		s.removed(x.node)
		s.snapshot()
	}
	s.until(at(40, 0))
	return s
}
