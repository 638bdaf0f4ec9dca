package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stricken is a pool of six nodes, its minimum, that has lost some of them while
// most of the other nodes are not Ready.
func stricken(t *testing.T, lost int) *setup {
	t.Helper()
	s := newSetup(t)
	p := s.pool("a")
	p.Min, p.Max = 6, 8
	for i := range 6 {
		s.node("a", fmt.Sprint("a-", i))
	}
	for i := range lost {
		s.lose(fmt.Sprint("a-", i))
	}
	for i := range 10 {
		s.foreign(fmt.Sprint("w-", i), 4000).Ready = false
	}
	return s
}

// lose has a node vanish with its machine.
func (s *setup) lose(name string) {
	r := *s.record(name)
	s.drop(name)
	r.Phase = PhaseLost
	s.obs.Records = append(s.obs.Records, r)
}

func TestWhatIsLostOfTheMinimumIsReplacedThoughTooManyNodesAreUnready(t *testing.T) {
	t.Parallel()
	s := stricken(t, 5)
	s.state.Pools = map[string]PoolState{"a": {AddedAt: t0, AlertUpAt: t0, RemovedAt: t0, RemovalFailedAt: t0}} // cooldowns don't matter
	s.class("web", 600)
	s.pods("web", "", 9)
	r := s.evaluate()
	require.Len(t, r.Claims, 3, "no more at a time than may be unready")
	d := only(t, r)
	require.Equal(t, Reason{CodeEmergency, "pool a has 1 node, its minimum is 6"}, d.Reason)
	rule := ruleOf(d, "emergency")
	require.Equal(t, "at most 3 at a time, although 10 of 11 nodes are not Ready: more than 3 and 45.0%", rule.Message)
	require.Equal(t, [3]string{"1", "6", Up}, [3]string{rule.Value, rule.Threshold, rule.Verdict})
	require.Equal(t, 5, rule.Delta)
	require.NotNil(t, guardOf(d, "too_many_unready"), "the pods wait")

	// Those on their way count.
	r = s.evaluate()
	require.Empty(t, r.Claims)
	require.NotNil(t, guardOf(only(t, r), "claims_in_flight"))
	for i, c := range sortedClaims(s.state) {
		if i < 2 {
			s.ready(c)
		}
	}
	s.now = s.now.Add(10 * time.Second)
	require.Len(t, s.evaluate().Claims, 2)
	for _, c := range sortedClaims(s.state) {
		s.ready(c)
	}
	s.now = s.now.Add(10 * time.Second)
	r = s.evaluate()
	require.Empty(t, r.Claims, "the minimum is restored, and no more")
	require.Equal(t, CodeTooManyUnready, only(t, r).Reason.Code)
	require.Empty(t, r.Drains)
}

func TestAnEmergencyIsStillHeldByWhatIsNoFaultElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		build func(s *setup)
		want  int
		guard string
	}{
		"nothing is":         {func(*setup) {}, 2, ""},
		"a pause":            {func(s *setup) { s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"}) }, 0, "pause"},
		"a backoff":          {func(s *setup) { s.state.Pools = backedOff() }, 0, "backoff"},
		"max":                {func(s *setup) { s.pool("a").Max = 5 }, 1, "max"},
		"no count, one each": {func(s *setup) { s.policy.MaxUnreadyCount = 0 }, 1, ""},
		"nothing is known":   {func(s *setup) { s.obs.Known = false }, 0, "stale_data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := stricken(t, 2)
			c.build(s)
			r := s.evaluate()
			require.Len(t, r.Claims, c.want)
			if c.guard != "" {
				require.NotNil(t, guardOf(only(t, r), c.guard))
			}
		})
	}
}

func backedOff() map[string]PoolState {
	return map[string]PoolState{"a": {Backoff: Backoff{Since: t0, Until: t0.Add(time.Hour), Duration: time.Hour, Failures: 3}}}
}

func TestTheMinimumStopsToCountOnNodesThatAreNotReadyForTooLong(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 5 * time.Minute} {
		s := newSetup(t)
		p := s.pool("a")
		p.Min, p.Max, p.ReplaceUnreadyAfter = 2, 3, after
		for _, n := range []string{"a-1", "a-2"} {
			s.node("a", n)
		}
		s.nodeOf("a-2").Ready = false
		s.record("a-2").Phase, s.record("a-2").Since = PhaseUnready, t0
		require.Empty(t, s.evaluate().Claims)
		require.Empty(t, s.pass(4*time.Minute+50*time.Second))
		r := s.evaluate()
		if after == 0 {
			require.Empty(t, s.pass(time.Hour), "unless it is asked for, they count")
			continue
		}
		require.Equal(t, t0.Add(after), r.NextAt, "then, without a snapshot")
		s.now, s.frozen = r.NextAt, true
		r = s.evaluate()
		s.frozen = false
		require.Len(t, r.Claims, 1)
		d := only(t, r)
		require.Equal(t, Reason{CodeEmergency, "pool a has 1 node beside 1 that is not Ready for longer than 5m, its minimum is 2"}, d.Reason)
		require.Equal(t, "at most 3 at a time", ruleOf(d, "emergency").Message)
		require.Empty(t, s.evaluate().Claims, "it is on its way")
		s.ready(r.Claims[0])
		require.Empty(t, s.pass(10*time.Minute))

		// When it comes back there is one too many, which goes by the rules.
		s.nodeOf("a-2").Ready = true
		s.record("a-2").Phase = PhaseReady
		require.Len(t, drained(s.until(30*time.Minute)), 1)
	}
}
