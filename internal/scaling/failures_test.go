package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// need is a pool with pods for n nodes.
func need(t *testing.T, n int) *setup {
	t.Helper()
	p := testPool("a")
	p.Max = 50
	s := newSetup(t, p)
	s.class("web", 900)
	s.pods("web", "", n)
	return s
}

func TestAFailedClaimStartsABackoffThatDoublesAndEnds(t *testing.T) {
	t.Parallel()
	s := need(t, 1)
	wait := 30 * time.Second
	for i := range 7 {
		res := s.evaluate()
		require.Len(t, res.Claims, 1, "attempt %d", i)
		s.now = s.now.Add(5 * time.Second)
		s.take(res.Claims[0], PhaseFailed).Failure = "ImagePull: no such image"
		res = s.evaluate()
		require.Empty(t, res.Claims)
		d := only(t, res)
		require.Equal(t, CodeBackoff, d.Reason.Code)
		g := guardOf(d, "backoff")
		require.Equal(t, s.now.Add(wait), g.Until)
		require.Contains(t, g.Message, "no such image")
		require.Empty(t, res.State.Claims, "its slot is free")
		s.now = s.now.Add(wait - time.Second)
		require.Empty(t, s.evaluate().Claims)
		s.now = s.now.Add(time.Second)
		wait = min(2*wait, 10*time.Minute)
	}
	require.Equal(t, 10*time.Minute, wait)

	// A success in between does not shorten it, an hour without a failure does.
	res := s.evaluate()
	s.ready(res.Claims[0])
	s.evaluate()
	s.now = s.now.Add(2 * time.Hour)
	s.pods("web", "", 2)
	res = s.evaluate()
	s.take(res.Claims[0], PhaseFailed)
	res = s.evaluate()
	require.Equal(t, s.now.Add(30*time.Second), guardOf(only(t, res), "backoff").Until)

	s.apply(BackoffReset{Pool: "a"})
	require.NotEmpty(t, s.evaluate().Claims, "reset by hand")
}

func TestThirtyClaimsThatFailForOneReasonAreOneFailure(t *testing.T) {
	t.Parallel()
	s := need(t, 30)
	res := s.evaluate()
	require.Len(t, res.Claims, 30)
	for i, c := range res.Claims {
		s.now = s.now.Add(time.Second)
		phase := PhaseFailed
		if i%2 == 1 {
			phase = PhaseLost
		}
		s.take(c, phase)
		s.evaluate()
	}
	b := s.state.Pools["a"].Backoff
	require.Equal(t, 1, b.Failures)
	require.Equal(t, 30*time.Second, b.Duration)
}

func TestAClaimCountsUntilItIsKnownNotToBeTakenUp(t *testing.T) {
	t.Parallel()
	s := need(t, 1)
	c := s.evaluate().Claims[0]
	s.now = s.now.Add(time.Minute)
	require.Empty(t, s.evaluate().Claims, "a snapshot of this instant may not show it yet")
	s.now = s.now.Add(time.Second)
	res := s.evaluate()
	require.Empty(t, res.Claims, "nobody took it up: a failure")
	require.Equal(t, CodeBackoff, only(t, res).Reason.Code)
	require.NotContains(t, res.State.Claims, c.Node)
	s.now = s.now.Add(30 * time.Second)
	require.Len(t, s.evaluate().Claims, 1)

	t.Run("stale records don't end it", func(t *testing.T) {
		t.Parallel()
		s := need(t, 1)
		s.evaluate()
		s.frozen = true
		s.now = s.now.Add(10 * time.Minute)
		res := s.evaluate()
		require.Len(t, res.State.Claims, 1)
		require.Empty(t, res.Claims)
	})
	t.Run("once taken up it counts as long as provisioning tries", func(t *testing.T) {
		t.Parallel()
		s := need(t, 1)
		s.take(s.evaluate().Claims[0], PhaseCreated)
		require.Empty(t, s.pass(10*time.Minute))
		s.obs.Records = nil
		res := s.evaluate()
		require.Empty(t, res.Claims, "its record is gone: a failure that was not seen")
		require.Equal(t, 1, res.State.Pools["a"].Backoff.Failures)
	})
	t.Run("a record that another claim has is not its own", func(t *testing.T) {
		t.Parallel()
		s := need(t, 1)
		c := s.evaluate().Claims[0]
		s.take(c, PhaseReady).ClaimID = "other"
		s.evaluate()
		require.Contains(t, s.state.Claims, c.Node)
	})
	t.Run("in a dry run it expires without a failure", func(t *testing.T) {
		t.Parallel()
		s := need(t, 1)
		s.policy.DryRun = true
		s.evaluate()
		s.now = s.now.Add(61 * time.Second)
		require.Len(t, s.evaluate().Claims, 1)
	})
	t.Run("its pool is gone from the policy", func(t *testing.T) {
		t.Parallel()
		s := need(t, 1)
		s.evaluate()
		s.policy.Pools = []Pool{testPool("b")}
		res := s.evaluate()
		require.Len(t, res.State.Claims, 2, "b serves the pods; the other claim is still followed")
		require.Len(t, res.Decisions, 1)
	})
}

func TestARecordWithoutANodeKeepsItsPlace(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.pool("a").Max = 1
	s.take(Claim{ID: "c", Node: "a-1", Pool: "a"}, PhaseReady)
	s.class("web", 900)
	s.pods("web", "", 1)
	require.Empty(t, s.evaluate().Claims)
}

func TestAnOrphanOfThePoolTakesAPlaceButIsNotCountedOn(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.pool("a").Max, s.pool("a").Min = 2, 1
	s.register("a", "a-orphan", "claim-x", t0, true)
	res := s.evaluate()
	require.Len(t, res.Claims, 1, "min is about nodes of ours")
	s.pool("a").Max = 1
	s.state = State{}
	require.Empty(t, s.evaluate().Claims)
}

func TestABurstBeyondWhatOneMessageHoldsGoesOnWithTheNextEvent(t *testing.T) {
	t.Parallel()
	p := testPool("a")
	p.Max = 1000
	s := newSetup(t, p)
	s.class("web", 900)
	s.pods("web", "", 2*maxClaims-10)
	res := s.evaluate()
	require.Len(t, res.Claims, maxClaims)
	require.NotNil(t, guardOf(only(t, res), "batch"))
	require.Len(t, s.evaluate().Claims, maxClaims-10)

	s = newSetup(t, p)
	s.request(Request{Action: ActionUp, Pool: "a", Count: maxClaims + 1})
	require.Len(t, s.evaluate().Claims, maxClaims)
	require.Len(t, s.evaluate().Claims, 1)
	require.Empty(t, s.evaluate().Claims)
}

func TestTooManyUnreadyNodesStopEverything(t *testing.T) {
	t.Parallel()
	s := need(t, 1)
	for _, n := range []string{"w", "x", "y", "z"} {
		s.foreign(n, 100).Ready = false
	}
	d := only(t, s.evaluate())
	require.Equal(t, CodeTooManyUnready, d.Reason.Code)
	require.Contains(t, d.Reason.Message, "4 of 4")
	s.obs.Nodes[0].Ready = true
	require.Len(t, s.evaluate().Claims, 1, "three is not more than three")
}

func TestWithoutAPolicyNothingIsJudged(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.policy = Policy{}
	s.fire("Busy")
	s.request(Request{Action: ActionUp, Pool: "a", Count: 1, ExpiresAt: s.now})
	res := s.evaluate()
	require.Empty(t, res.Decisions)
	require.Len(t, res.State.Alerts, 1)
}

func TestUnknownPodsAskForNothing(t *testing.T) {
	t.Parallel()
	s := need(t, 1)
	s.evaluate()
	s.state = State{}
	s.frozen = true
	delete(s.obs.Freshness, KindPod)
	res := s.evaluate()
	require.Empty(t, res.Claims)
	require.Equal(t, CodeStaleSnapshot, only(t, res).Reason.Code)
}
