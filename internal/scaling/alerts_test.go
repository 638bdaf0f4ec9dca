package scaling

import (
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAFiringAlertAddsItsAmountOncePerCooldownUntilItIsResolved(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.rule("Busy", "a", Up, 2)
	s.fire("Busy")
	s.fire("Busy", "instance", "x") // several alerts of one rule are one level
	res := s.evaluate()
	require.Len(t, res.Claims, 2)
	d := only(t, res)
	require.Equal(t, CodeAlert, d.Reason.Code)
	require.Equal(t, t0, d.TriggerSince)
	require.Len(t, d.Inputs, 1, "ids of events are named once")
	require.Equal(t, t0.Add(time.Minute), res.NextAt, "the cooldown ends then")

	require.Empty(t, s.pass(50*time.Second))
	require.Equal(t, CodeCooldown, only(t, s.evaluate()).Reason.Code)
	for _, c := range sortedClaims(s.state) {
		s.ready(c)
	}
	res = s.until(time.Minute)
	require.Len(t, res.Claims, 2, "it still fires")
	require.Equal(t, t0.Add(time.Minute), only(t, res).TriggerSince, "the need is as old as the end of the cooldown")
	for _, c := range sortedClaims(s.state) {
		s.ready(c)
	}
	res = s.until(5 * time.Minute)
	require.Len(t, res.Claims, 1, "never beyond max")
	require.NotNil(t, guardOf(only(t, res), "max"))
	for _, c := range sortedClaims(s.state) {
		s.ready(c)
	}
	s.pass(2 * time.Minute)
	require.Equal(t, CodeAtMax, only(t, s.evaluate()).Reason.Code)

	s.resolve("Busy", t0)
	s.apply(AlertResolved{Fingerprint: "Busy[instance x]", StartsAt: t0, ExpiresAt: s.now.Add(time.Minute)})
	require.NotEqual(t, CodeAtMax, only(t, s.evaluate()).Reason.Code)
}

func TestAnAlertEndsWhenItExpiresAndALateCopyDoesNotReviveIt(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.rule("Busy", "a", Up, 1)
	s.resolve("Busy", t0)
	s.fire("Busy")
	require.Empty(t, s.evaluate().Claims, "resolved already: the copy is late")

	s.now = s.now.Add(time.Second)
	s.fire("Busy")
	require.Len(t, s.evaluate().Claims, 1, "a new activation")
	s.resolve("Busy", t0)
	require.False(t, s.state.Alerts["Busy[]"].Resolved, "that was the end of an earlier one")
	start := s.now
	s.now = s.now.Add(14 * time.Minute)
	s.apply(AlertFired{Fingerprint: "Busy[]", Labels: map[string]string{"alertname": "Busy"}, StartsAt: start, ExpiresAt: s.now.Add(15 * time.Minute)})
	s.apply(AlertFired{Fingerprint: "Busy[]", Labels: map[string]string{"alertname": "Busy"}, StartsAt: start, ExpiresAt: s.now})
	s.apply(AlertFired{Fingerprint: "Busy[]", Labels: map[string]string{"alertname": "Busy"}, StartsAt: t0, ExpiresAt: s.now})
	require.Equal(t, s.now.Add(15*time.Minute), s.state.Alerts["Busy[]"].ExpiresAt, "repeats extend it, late copies don't shorten it")
	s.now = s.now.Add(15 * time.Minute)
	s.evaluate()
	require.Empty(t, s.state.Alerts)
}

func TestAnAlertThatNoRuleKnowsIsNotKept(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.fire("Other")
	require.Equal(t, CodeSteady, only(t, s.evaluate()).Reason.Code)
	require.Empty(t, s.state.Alerts)
}

func TestOfSeveralRulesTheOneThatWantsMostCounts(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.rule("Busy", "a", Up, 1)
	s.rule("VeryBusy", "a", Up, 3)
	s.rule("AlsoBusy", "a", Up, 2)
	for _, n := range []string{"Busy", "VeryBusy", "AlsoBusy"} {
		s.fire(n)
	}
	res := s.evaluate()
	require.Len(t, res.Claims, 3)
	require.Contains(t, only(t, res).Reason.Message, "VeryBusy")
	require.Len(t, only(t, res).Overruled, 2)
}

func TestAnAlertDoesNotActTwiceOnOneNeed(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.rule("Busy", "a", Up, 2)
	s.class("web", 900)
	s.pods("web", "", 2)
	s.evaluate()
	s.now = s.now.Add(time.Second)
	s.fire("Busy")
	res := s.evaluate()
	require.Empty(t, res.Claims, "two nodes are on their way")
	require.NotNil(t, guardOf(only(t, res), "claims_in_flight"))

	s = newSetup(t)
	s.pool("a").Min = 2
	s.rule("Busy", "a", Up, 2)
	s.fire("Busy")
	res = s.evaluate()
	require.Len(t, res.Claims, 2, "the minimum serves the alert")
	require.Equal(t, s.now, res.State.Pools["a"].AlertUpAt)
}

func TestADownAlertRemovesWithoutWaitingButOnlyWhatCanGo(t *testing.T) {
	t.Parallel()
	setup := func(t *testing.T) *setup {
		s := idle(t, "a-1", "a-2", "a-3")
		s.pool("a").MaxRemovals = 2
		s.pool("a").UtilizationThreshold = 0.01
		s.rule("Quiet", "a", Down, 1)
		s.class("web", 100)
		for _, n := range []string{"a-1", "a-2", "a-3"} {
			s.pods("web", n, 1)
		}
		return s
	}
	t.Run("the newest first, amount at a time, to min", func(t *testing.T) {
		t.Parallel()
		s := setup(t)
		s.apply(AlertFired{EventID: "q", Fingerprint: "q", Labels: map[string]string{"alertname": "Quiet"}, StartsAt: t0, ExpiresAt: t0.Add(time.Hour)})
		res := s.evaluate()
		require.Equal(t, []string{"a-3"}, drained(res))
		require.Equal(t, CodeAlert, only(t, res).Reason.Code)
		require.Contains(t, only(t, res).Inputs, "q")
		s.record("a-3").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
		require.Empty(t, s.pass(5*time.Minute))
		require.Equal(t, CodeRemovalsInFlight, only(t, s.evaluate()).Reason.Code)
		s.drop("a-3")
		require.Equal(t, []string{"a-2"}, drained(s.until(time.Minute)))
		s.drop("a-2")
		require.Empty(t, s.pass(10*time.Minute))
		require.Equal(t, CodeAtMin, only(t, s.evaluate()).Reason.Code)
	})
	t.Run("not a blocked one", func(t *testing.T) {
		t.Parallel()
		s := setup(t)
		s.fire("Quiet")
		s.policy.ProtectedNodes = []string{"a-3"}
		s.obs.Classes[0].Unsimulated = []string{"podAffinity"}
		res := s.evaluate()
		require.Empty(t, res.Drains)
		d := only(t, res)
		require.Equal(t, CodeNoRemovableNode, d.Reason.Code)
		require.NotNil(t, rejects(d, "node a-3", "Protected"))
		require.NotNil(t, rejects(d, "node a-2", "ConstraintNotSimulated"))
	})
	t.Run("not a young one", func(t *testing.T) {
		t.Parallel()
		s := setup(t)
		s.pool("a").MinLifetime = 48 * time.Hour
		s.fire("Quiet")
		require.Equal(t, CodeMinLifetime, only(t, s.evaluate()).Reason.Code)
	})
	t.Run("up beats down", func(t *testing.T) {
		t.Parallel()
		s := setup(t)
		s.rule("Busy", "a", Up, 1)
		s.fire("Quiet")
		s.fire("Busy")
		res := s.evaluate()
		require.Empty(t, res.Drains)
		require.Len(t, res.Claims, 1)
		require.NotNil(t, guardOf(only(t, res), "alert"))
	})
}

func TestABrokenRuleMatchesNothingAndSaysSo(t *testing.T) {
	t.Parallel()
	for _, ms := range [][]Matcher{nil, {{"alertname", "=~", "("}}, {{"alertname", "~", "x"}}, {{"alertname", "=~", "a)|(.*"}}} {
		s := newSetup(t)
		s.rule("Good", "a", Up, 1)
		s.policy.AlertRules = append(s.policy.AlertRules, AlertRule{Name: "Bad", Pool: "a", Direction: Up, Amount: 5, Matchers: ms})
		s.fire("Good")
		res := s.evaluate()
		require.Len(t, res.Claims, 1)
		require.Equal(t, Unknown, only(t, res).Rules[1].Verdict)
		require.NotEmpty(t, only(t, res).Rules[1].Message)
	}
}

func TestMatchersFollowAlertmanager(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"severity": "page", "team": "infra"}
	for _, c := range []struct {
		m    Matcher
		want bool
	}{
		{Matcher{"severity", "=", "page"}, true},
		{Matcher{"severity", "=", "pag"}, false},
		{Matcher{"severity", "!=", "warn"}, true},
		{Matcher{"severity", "!=", "page"}, false},
		{Matcher{"severity", "=~", "pa.e|warn"}, true},
		{Matcher{"severity", "=~", "pag"}, false}, // anchored
		{Matcher{"severity", "!~", "pag"}, true},
		{Matcher{"severity", "!~", "p.*"}, false},
		{Matcher{"absent", "=", ""}, true},
		{Matcher{"absent", "=~", ".+"}, false},
		{Matcher{"absent", "!~", ".+"}, true},
	} {
		ok, err := c.m.Matches(labels)
		require.NoError(t, err)
		require.Equal(t, c.want, ok, c.m.String())
	}
}

func FuzzMatchersAreAnchoredAndNeverPanic(f *testing.F) {
	for _, s := range [][2]string{{"a.*", "abc"}, {"a)|(b", "b"}, {"", ""}, {"(?i)X", "x"}, {"\\Q", "Q"}, {"a|b", "ab"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, value string) {
		labels := map[string]string{"l": value}
		yes, err := Matcher{"l", MatchRegexp, pattern}.Matches(labels)
		no, err2 := Matcher{"l", MatchNotRegexp, pattern}.Matches(labels)
		require.Equal(t, err == nil, err2 == nil)
		if err != nil {
			require.False(t, yes || no)
			return
		}
		require.NotEqual(t, yes, no, "=~ and !~ are opposites")
		if yes {
			re := regexp.MustCompile("(?s:" + pattern + ")")
			re.Longest()
			require.Equal(t, value, value[:len(re.FindString(value))], "a match covers the whole value")
		}
	})
}
