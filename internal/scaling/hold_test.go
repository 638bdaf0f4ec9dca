package scaling

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// eager is a pool whose nodes go as soon as nothing keeps them.
func eager(t *testing.T, nodes ...string) *setup {
	t.Helper()
	s := idle(t, nodes...)
	p := s.pool("a")
	p.Max, p.MaxRemovals = 9, 9
	p.ScaleDownAfterAdd, p.ScaleDownCooldown, p.Stabilization, p.Unneeded, p.MinLifetime = 0, 0, 0, 0, 0
	s.state.StartedAt = t0.Add(-time.Hour)
	return s
}

// live lets nodes come and go as decided for a while, and returns how many there are.
func (s *setup) live(d time.Duration) int {
	s.t.Helper()
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(10 * time.Second)
		r := s.evaluate()
		for _, c := range r.Claims {
			s.ready(c)
		}
		for _, n := range drained(r) {
			s.drop(n)
		}
	}
	return len(s.obs.Records)
}

func TestNodesThatAreAskedForAWhileAreKeptSoLongAndNoLonger(t *testing.T) {
	t.Parallel()
	s := eager(t, "a-1")
	until := t0.Add(2 * time.Hour)
	s.request(Request{ID: "r1", Action: ActionUp, Pool: "a", Count: 2, Reason: "load test", HoldUntil: until})
	r := s.evaluate()
	require.Len(t, r.Claims, 2)
	d := only(t, r)
	require.Contains(t, d.Reason.Message, "scale up of pool a by 2, to be kept until 2026-03-01T14:00:00Z, asked for by alice: load test")
	require.Equal(t, []Hold{{ID: "r1", Pool: "a", Nodes: 2, Base: 1, Until: until, Actor: "alice", Reason: "load test"}}, s.state.Holds)
	for _, c := range r.Claims {
		s.ready(c)
	}
	require.Equal(t, 3, s.live(119*time.Minute))
	d = only(t, s.evaluate())
	require.Equal(t, 3, d.Min)
	g := guardOf(d, "min")
	require.Equal(t, until, g.Until)
	require.Contains(t, g.Message, "its minimum is 3 until 14:00 UTC (kept for alice: load test)")
	rule := ruleOf(d, "hold r1")
	require.Equal(t, Rule{Rule: "hold r1", Kind: RuleHold, Value: "3 nodes", Verdict: None, Message: "2 nodes more than 1, for alice: load test, until 14:00 UTC"}, *rule)
	require.Equal(t, until, s.evaluate().NextAt, "its end is noticed without a snapshot")

	// One that is lost is replaced: the hold is a floor.
	s.drop(s.obs.Records[2].Name)
	s.now = s.now.Add(time.Second)
	r = s.evaluate()
	require.Len(t, r.Claims, 1)
	require.Equal(t, CodeBelowMin, only(t, r).Reason.Code)
	s.ready(r.Claims[0])

	require.Equal(t, 1, s.live(5*time.Minute))
	require.Empty(t, s.state.Holds)
	require.Equal(t, 1, only(t, s.evaluate()).Min)
}

func TestHoldsAddUpAndEndEachByItself(t *testing.T) {
	t.Parallel()
	s := eager(t, "a-1")
	up := func(id string, n int, d time.Duration) {
		s.request(Request{ID: id, Action: ActionUp, Pool: "a", Count: n, HoldUntil: s.now.Add(d)})
	}
	up("r1", 2, time.Hour)
	require.Equal(t, 3, s.live(time.Minute))
	up("r2", 1, 2*time.Hour)
	require.Equal(t, 4, s.live(time.Minute))
	require.Equal(t, 4, s.live(50*time.Minute))
	require.Equal(t, 2, s.live(15*time.Minute), "what the first added has gone")
	require.Equal(t, 1, s.live(2*time.Hour))
}

func TestTheLastWordOfAPersonCounts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		then Request
		want int
	}{
		"fewer":              {Request{Action: ActionDown, Count: 1}, 1},
		"a number":           {Request{Action: ActionTo, Count: 2}, 1},
		"a number for long":  {Request{Action: ActionTo, Count: 2, HoldUntil: t0.Add(5 * time.Hour)}, 2},
		"more for long":      {Request{Action: ActionUp, Count: 1, HoldUntil: t0.Add(5 * time.Hour)}, 4},
		"more, as ever":      {Request{Action: ActionUp, Count: 1}, 3},
		"more than max":      {Request{Action: ActionTo, Count: 20, HoldUntil: t0.Add(5 * time.Hour)}, 9},
		"another pool's":     {Request{Action: ActionDown, Count: 1, Pool: "z"}, 3},
		"by a name: min":     {Request{Action: ActionRemove, Node: "a-1"}, 3},
		"nothing to be done": {Request{Action: ActionTo, Count: 3, HoldUntil: t0.Add(5 * time.Hour)}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := eager(t, "a-1")
			s.request(Request{ID: "first", Action: ActionUp, Pool: "a", Count: 2, HoldUntil: t0.Add(4 * time.Hour)})
			require.Equal(t, 3, s.live(time.Minute))
			if c.then.Pool == "" && c.then.Node == "" {
				c.then.Pool = "a"
			}
			c.then.ID = "then"
			s.request(c.then)
			require.Equal(t, c.want, s.live(2*time.Hour))
			require.Equal(t, 1, s.live(4*time.Hour))
			require.Empty(t, s.state.Holds)
		})
	}
}

func TestARequestAndItsEffectExpireApart(t *testing.T) {
	t.Parallel()
	s := eager(t, "a-1")
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work", Until: t0.Add(30 * time.Minute)})
	s.request(Request{ID: "short", Action: ActionUp, Pool: "a", Count: 1, ExpiresAt: t0.Add(10 * time.Minute), HoldUntil: t0.Add(4 * time.Hour)})
	s.request(Request{ID: "over", Action: ActionUp, Pool: "a", Count: 1, ExpiresAt: t0.Add(time.Hour), HoldUntil: t0.Add(20 * time.Minute)})
	s.request(Request{ID: "long", Action: ActionUp, Pool: "a", Count: 2, HoldUntil: t0.Add(4 * time.Hour)})
	require.Equal(t, 1, s.live(29*time.Minute))
	require.Len(t, s.state.Requests, 1, "the first two were not met in time")
	require.Empty(t, s.state.Holds)
	require.Equal(t, 3, s.live(3*time.Hour))
	require.Equal(t, "long", s.state.Holds[0].ID)
}

func TestWhatHasNotComeToPassIsNotKept(t *testing.T) {
	t.Parallel()
	s := eager(t, "a-1")
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work", Until: t0.Add(30 * time.Minute)})
	s.request(Request{Action: ActionTo, Pool: "a", Count: 4, ExpiresAt: t0.Add(10 * time.Minute), HoldUntil: t0.Add(4 * time.Hour)})
	require.Equal(t, 1, s.live(2*time.Hour))
	require.Empty(t, s.state.Holds)

	// One that keeps fewer than there are is kept at once, and serves as the limit.
	s = eager(t, "a-1", "a-2", "a-3")
	s.pool("a").UtilizationThreshold = 0
	s.request(Request{Action: ActionTo, Pool: "a", Count: 2, HoldUntil: t0.Add(time.Hour)})
	require.Equal(t, 2, s.live(30*time.Minute))
	require.Equal(t, 2, Floor(s.state.Holds))
}

func TestAStateWithoutHoldsIsEncodedAsBefore(t *testing.T) {
	t.Parallel()
	s := eager(t, "a-1")
	s.request(Request{ID: "r", Action: ActionUp, Pool: "a", Count: 1})
	for _, state := range []State{s.state, s.evaluate().State} {
		raw, err := json.Marshal(state)
		require.NoError(t, err)
		require.NotContains(t, string(raw), "hold")
	}
}
