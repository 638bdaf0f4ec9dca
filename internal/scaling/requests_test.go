package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARequestForNodesIsServedCappedOrRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		request Request
		nodes   int // that are there
		claims  int
		verdict string
		code    string
		capped  bool
	}{
		{"up", Request{Action: ActionUp, Pool: "a", Count: 2}, 1, 2, Up, CodeRequest, false},
		{"up beyond max adds what max allows", Request{Action: ActionUp, Pool: "a", Count: 9}, 1, 4, Up, CodeRequest, true},
		{"up at max", Request{Action: ActionUp, Pool: "a", Count: 1}, 5, 0, Held, CodeAtMax, true},
		{"to", Request{Action: ActionTo, Pool: "a", Count: 3}, 1, 2, Up, CodeRequest, false},
		{"to what it has", Request{Action: ActionTo, Pool: "a", Count: 1}, 1, 0, Held, CodeRequest, false},
		{"to more than max", Request{Action: ActionTo, Pool: "a", Count: 7}, 1, 4, Up, CodeRequest, true},
		{"to more than max at max", Request{Action: ActionTo, Pool: "a", Count: 7}, 5, 0, Held, CodeAtMax, true},
		{"to less than min at min", Request{Action: ActionTo, Pool: "a", Count: 0}, 1, 0, Held, CodeAtMin, true},
		{"an unknown pool", Request{Action: ActionUp, Pool: "z", Count: 1}, 1, 0, Held, CodeUnknownPool, true},
		{"down in an unknown pool", Request{Action: ActionDown, Pool: "z", Count: 1}, 1, 0, Held, CodeUnknownPool, true},
		{"to in an unknown pool", Request{Action: ActionTo, Pool: "z", Count: 1}, 1, 0, Held, CodeUnknownPool, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.pool("a").Min = 1
			s.pool("a").UtilizationThreshold = 0
			for i := range c.nodes {
				s.node("a", string(rune('k'+i)))
			}
			c.request.ID = "the-request"
			s.request(c.request)
			res := s.evaluate()
			require.Len(t, res.Claims, c.claims)
			d := of(t, res, c.request.Pool)
			require.Equal(t, c.verdict, d.Verdict)
			require.Equal(t, c.code, d.Reason.Code, "%+v", d)
			require.Equal(t, []string{"the-request"}, d.Requests)
			require.True(t, d.Changed, "who asked is told")
			require.Equal(t, c.capped, len(d.Overruled) > 0, "%+v", d.Overruled)
			require.Empty(t, res.State.Requests)
			for _, claim := range res.Claims {
				require.Equal(t, CauseRequest, claim.Cause)
			}
			if c.verdict == Up {
				require.Equal(t, "alice", d.Actor)
				require.Contains(t, d.Reason.Message, "maintenance")
			}
			require.Empty(t, s.evaluate().Claims, "once")
		})
	}
}

func TestARequestThatIsHeldWaitsAndExpires(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"})
	s.request(Request{Action: ActionUp, Pool: "a", Count: 1})
	res := s.evaluate()
	require.Empty(t, res.Claims)
	d := only(t, res)
	require.Equal(t, CodeRequestDeferred, d.Reason.Code)
	require.True(t, d.Changed)
	require.NotNil(t, guardOf(d, "pause"))
	require.False(t, only(t, s.evaluate()).Changed)

	s.apply(Resumed{Pool: "a"})
	require.Len(t, s.evaluate().Claims, 1)

	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"})
	s.request(Request{Action: ActionUp, Pool: "a", Count: 1, ExpiresAt: s.now.Add(time.Minute)})
	s.evaluate()
	s.now = s.now.Add(time.Minute)
	res = s.evaluate()
	require.Equal(t, CodeRequestExpired, only(t, res).Reason.Code)
	require.Empty(t, res.State.Requests)

	s.request(Request{Action: ActionUp, Pool: "a", Count: 1, Override: true})
	require.Len(t, s.evaluate().Claims, 1, "an override passes a pause")

	s.state.Pools["a"] = PoolState{Backoff: Backoff{Since: s.now, Until: s.now.Add(time.Minute), Duration: time.Minute}}
	s.request(Request{Action: ActionUp, Pool: "a", Count: 1, Override: true})
	require.Empty(t, s.evaluate().Claims, "but no backoff")
}

func TestARequestForFewerNodesRemovesTheNewestRemovableOnes(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	s.pool("a").UtilizationThreshold = 0 // no node goes by itself
	s.request(Request{Action: ActionDown, Pool: "a", Count: 9})
	res := s.evaluate()
	require.Equal(t, []string{"a-3"}, drained(res))
	d := only(t, res)
	require.Equal(t, Down, d.Verdict)
	require.Equal(t, CodeRequest, d.Reason.Code)
	require.NotNil(t, guardOf(d, "max_removals"), "one at a time")
	require.Equal(t, 8, res.State.Requests[0].Count)

	s.drop("a-3")
	require.Empty(t, s.evaluate().Drains, "the cooldown between removals")
	s.now = s.now.Add(2 * time.Minute)
	res = s.evaluate()
	require.Equal(t, []string{"a-2"}, drained(res))
	require.Empty(t, res.State.Requests, "min keeps the rest, which is said")
	require.NotEmpty(t, only(t, res).Overruled)

	s.drop("a-2")
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1, Override: true})
	res = s.evaluate()
	require.Empty(t, res.Drains, "an override does not pass min")
	require.Equal(t, CodeAtMin, only(t, res).Reason.Code)
}

func TestADownRequestWaitsForWhatBlocksItAndAnOverridePassesTheCooldowns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		edit     func(s *setup)
		override []string // what goes with an override
	}{
		{"a pause", func(s *setup) { s.apply(Paused{Pool: "a", Actor: "bob", Reason: "x"}) }, []string{"a-3", "a-2"}},
		{"a cooldown", func(s *setup) { s.state.Pools = map[string]PoolState{"a": {AddedAt: t0}} }, []string{"a-3", "a-2"}},
		{"a young node", func(s *setup) { s.pool("a").MinLifetime = 48 * time.Hour }, []string{"a-3", "a-2"}},
		{"an alert that wants more", func(s *setup) {
			s.rule("Busy", "a", Up, 1)
			s.fire("Busy")
			s.state.Pools = map[string]PoolState{"a": {AlertUpAt: t0}}
		}, []string{"a-3", "a-2"}},
		{"unready nodes", func(s *setup) {
			s.policy.MaxUnreadyCount = 1
			for _, n := range []string{"v", "w", "x", "y", "z"} {
				s.foreign(n, 1000).Ready = false
			}
		}, nil},
		{"pods without a controller", func(s *setup) {
			s.class("web", 10)
			for _, n := range []string{"a-1", "a-2", "a-3"} {
				s.pods("web", n, 1).OwnerKind = ""
			}
		}, nil},
		{"pods that fit nowhere else", func(s *setup) {
			s.class("web", 900)
			for _, n := range []string{"a-1", "a-2", "a-3"} {
				s.pods("web", n, 1)
			}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, override := range []bool{false, true} {
				s := idle(t, "a-1", "a-2", "a-3")
				c.edit(s)
				s.request(Request{Action: ActionTo, Pool: "a", Count: 1, Override: override})
				res := s.evaluate()
				if !override {
					require.Empty(t, res.Drains)
					require.Len(t, res.State.Requests, 1)
					require.Equal(t, CodeRequestDeferred, only(t, res).Reason.Code)
					continue
				}
				require.Equal(t, c.override, drained(res))
			}
		})
	}
}

func TestRequestsForSingleNodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		request Request
		edit    func(s *setup)
		goal    string // of the order, "" for none
		cancel  bool
		code    string
		says    string
		waits   bool
	}{
		{name: "cordon", request: Request{Action: ActionCordon, Node: "a-2"}, goal: GoalCordon, code: CodeRequest},
		{name: "cordon twice", request: Request{Action: ActionCordon, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalCordon, Phase: DrainCordoned}
		}, code: CodeRequest, says: "already"},
		{name: "cordon of a leaving node", request: Request{Action: ActionCordon, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Phase = PhaseRemoving
		}, code: CodeRequestRefused, says: "being removed"},
		{name: "uncordon", request: Request{Action: ActionUncordon, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalDrain, Phase: DrainDrained}
		}, cancel: true, code: CodeRequest},
		{name: "uncordon of what is not cordoned", request: Request{Action: ActionUncordon, Node: "a-2"}, code: CodeRequestRefused, says: "not cordoned by us"},
		{name: "uncordon past the point of no return", request: Request{Action: ActionUncordon, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDrained}
		}, code: CodeRequestRefused, says: "no return"},
		{name: "uncordon of a removal that can be undone", request: Request{Action: ActionUncordon, Node: "a-2"}, edit: func(s *setup) {
			s.request(Request{Action: ActionRemove, Node: "a-2", ID: "first"})
			require.NotEmpty(s.t, s.evaluate().Drains)
		}, cancel: true, code: CodeRequest},
		{name: "drain", request: Request{Action: ActionDrain, Node: "a-2"}, goal: GoalDrain, code: CodeRequest},
		{name: "drain twice", request: Request{Action: ActionDrain, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalDrain, Phase: DrainDraining}
		}, code: CodeRequest, says: "already"},
		{name: "drain of a cordoned node", request: Request{Action: ActionDrain, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalCordon, Phase: DrainCordoned}
		}, goal: GoalDrain, code: CodeRequest},
		{name: "drain with an unmanaged pod", request: Request{Action: ActionDrain, Node: "a-2"}, edit: func(s *setup) {
			s.class("web", 10)
			s.pods("web", "a-2", 1).OwnerKind = ""
		}, code: CodeRequestRefused, says: "no controller"},
		{name: "remove", request: Request{Action: ActionRemove, Node: "a-2"}, goal: GoalRemove, code: CodeRequest},
		{name: "remove of a node that a budget holds: the drain reports it", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.class("web", 10)
			s.pods("web", "a-2", 1)
			s.obs.Budgets = []Budget{{Namespace: "ns", Name: "web"}}
		}, goal: GoalRemove, code: CodeRequest},
		{name: "remove at min", request: Request{Action: ActionRemove, Node: "a-2", Override: true}, edit: func(s *setup) { s.pool("a").Min = 2 },
			code: CodeAtMin, says: "minimum is 2"},
		{name: "remove of an unready node above min", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.nodeOf("a-2").Ready = false
		}, goal: GoalRemove, code: CodeRequest},
		{name: "remove of an unready node at min", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.nodeOf("a-2").Ready = false
			s.pool("a").Min = 2
		}, code: CodeAtMin, says: "minimum is 2"},
		{name: "remove twice", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) { s.record("a-2").Phase = PhaseRemoving },
			code: CodeRequest, says: "already"},
		{name: "remove of a protected node", request: Request{Action: ActionRemove, Node: "a-2", Override: true}, edit: func(s *setup) {
			s.policy.ProtectedNodes = []string{"a-2"}
		}, code: CodeRequestRefused, says: "protected"},
		{name: "remove of a foreign node", request: Request{Action: ActionRemove, Node: "server", Override: true}, edit: func(s *setup) { s.foreign("server", 1000) },
			code: CodeRequestRefused, says: "not ours"},
		{name: "remove of nothing", request: Request{Action: ActionRemove, Node: "nowhere"}, code: CodeRequestRefused, says: "no node of this name"},
		{name: "remove of a record without a node", request: Request{Action: ActionRemove, Node: "a-9"}, edit: func(s *setup) {
			s.take(Claim{ID: "c", Node: "a-9", Pool: "a"}, PhaseReady)
		}, code: CodeRequestRefused, says: "not ours"},
		{name: "remove of a node in birth", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.record("a-2").Phase, s.nodeOf("a-2").Ready = PhaseRegistered, false
		}, code: CodeRequestRefused, says: "not Ready yet"},
		{name: "remove in a pause", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.apply(Paused{Pool: "a", Actor: "bob", Reason: "x"})
		}, code: CodeRequestDeferred, waits: true},
		{name: "remove in a pause with an override", request: Request{Action: ActionRemove, Node: "a-2", Override: true}, edit: func(s *setup) {
			s.apply(Paused{Pool: "a", Actor: "bob", Reason: "x"})
		}, goal: GoalRemove, code: CodeRequest},
		{name: "remove while another node leaves", request: Request{Action: ActionRemove, Node: "a-2"}, edit: func(s *setup) {
			s.node("a", "a-3")
			s.record("a-3").Phase = PhaseRemoving
		}, code: CodeRequestDeferred, waits: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			if c.edit != nil {
				c.edit(s)
			}
			c.request.ID = "the-request"
			s.request(c.request)
			res := s.evaluate()
			var d Decision
			for _, o := range res.Decisions {
				if len(o.Requests) > 0 {
					d = o
				}
			}
			require.True(t, d.Changed)
			require.Equal(t, c.code, d.Reason.Code, "%+v", d)
			require.Contains(t, d.Reason.Message, c.says)
			require.Equal(t, []string{"the-request"}, d.Requests)
			require.Equal(t, c.waits, len(res.State.Requests) == 1)
			if c.goal == "" {
				require.Empty(t, res.Drains)
			} else {
				require.Len(t, res.Drains, 1)
				require.Equal(t, c.goal, res.Drains[0].Goal)
				require.Equal(t, "the-request", res.Drains[0].RequestID)
				require.Equal(t, "alice", res.Drains[0].Actor)
				require.Equal(t, "claim-a-2", res.Drains[0].ClaimID)
			}
			require.Equal(t, c.cancel, len(res.Cancels) == 1)
			require.Equal(t, c.goal == GoalRemove, d.Verdict == Down)
		})
	}
}

func TestANodeThatAPersonDrainedStaysAndTakesNoPods(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.request(Request{Action: ActionDrain, Node: "a-2"})
	s.evaluate()
	s.record("a-2").Drain = &DrainRecord{Goal: GoalDrain, Phase: DrainRequested, RequestID: "r"}
	s.class("web", 900)
	s.pods("web", "", 2)
	res := s.evaluate()
	require.Len(t, res.Claims, 1, "a-1 takes one, a-2 none")
	s.obs.Pods = nil
	for _, r := range s.pass(time.Hour) {
		require.NotContains(t, drained(r), "a-2")
	}
}

func TestInputsAreIdempotentAndTimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	var s State
	s = s.Apply(t0, Started{At: t0})
	s = s.Apply(t0.Add(-time.Hour), Started{At: t0.Add(-time.Hour)})
	require.Equal(t, t0, s.Now)
	require.Equal(t, t0, s.StartedAt)
	r := Requested{Request{ID: "r", Action: ActionUp, Pool: "a", Count: 1}}
	s = s.Apply(t0, r)
	require.Equal(t, s.Digest(), s.Apply(t0, r).Digest())
	require.Equal(t, t0.Add(time.Hour), s.Requests[0].ExpiresAt)
	p := Paused{Pool: "a", Actor: "bob", Reason: "x", Until: t0.Add(time.Hour)}
	s = s.Apply(t0, p)
	require.Equal(t, t0, s.Apply(t0.Add(time.Minute), p).Pauses["a"].Since)
	s.Pools = map[string]PoolState{"a": {Backoff: Backoff{Failures: 3}}}
	before := s.Digest()
	require.Zero(t, s.Apply(t0, BackoffReset{Pool: "a"}).Pools["a"].Backoff)
	require.Equal(t, before, s.Digest(), "the old state is left alone")
	require.Empty(t, State{Now: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}.Digest())
}
