package scaling

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestANodeThatWouldComeBackIsKept(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, says, lifts string
		edit              func(s *setup)
	}{
		{"the window of a schedule opens soon", "without node a-2 pool a would add 1 node again at 12:12 UTC: pool a has 1 node, its minimum is 2 until 13:12 UTC (schedule noon)", "minimum",
			func(s *setup) {
				s.pool("a").Schedules = []Schedule{{Name: "noon", Min: new(2), Window: Window{Schedule: "12 12 * * *", Duration: time.Hour}}}
				s.pool("a").FlapWithin = 10 * time.Minute
			}},
		{"the headroom of a schedule counts soon", "its headroom is 1 pod", "headroom", func(s *setup) {
			s.pool("a").Schedules = []Schedule{{Name: "noon", Headroom: &Headroom{Pods: 1, Pod: Resources{CPUMilli: 900}},
				Window: Window{Schedule: "12 12 * * *", Duration: time.Hour}}}
			s.pool("a").FlapWithin = 10 * time.Minute
		}},
		{"room is being made on it", "pods fit on no node", "pods that wait", func(s *setup) {
			s.class("big", 850)
			s.pods("big", "", 1).NominatedNode = "a-2"
		}},
		{"pods wait that the scheduler has not refused yet", "pods fit on no node", "pods that wait", func(s *setup) {
			s.class("big", 950)
			s.pods("big", "", 1).UnschedulableSince = time.Time{}
		}},
		{"another node would be larger", "pods fit on no node", "pods that wait", func(s *setup) {
			s.pool("a").Min = 0
			s.drop("a-1")
			s.foreign("server", 400)
			s.nodeOf("a-2").Allocatable.CPUMilli = 500
			s.class("big", 800)
			s.pods("big", "", 1)
		}},
		{"pods wait for a place below max", "pods fit on no node", "pods that wait", func(s *setup) {
			s.pool("a").Max = 2
			s.class("big", 950)
			s.pods("big", "", 1)
			s.rule("Quiet", "a", Down, 1)
			s.state.Alerts = map[string]Alert{"q": {Labels: map[string]string{"alertname": "Quiet"}, ExpiresAt: s.now.Add(time.Hour)}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.class("web", 100)
			s.pods("web", "a-1", 1)
			s.pods("web", "a-2", 1)
			c.edit(s)
			for range 90 { // to 12:07:30; without the veto it goes within
				s.now = s.now.Add(5 * time.Second)
				require.Empty(t, s.evaluate().Drains)
			}
			before := s.state
			r := s.evaluate()
			indexed := Evaluate(s.now, s.policy, before, NewIndex(copyOf(s.obs)).Observation(), testSeed(fmt.Sprint("event-", s.step)))
			require.Equal(t, encode(t, r), encode(t, indexed), "with an index")
			require.Empty(t, r.Claims)
			d := only(t, r)
			g := guardOf(d, "would_return")
			require.NotNil(t, g, "%+v", d)
			require.Equal(t, "a-2", g.Value)
			require.Contains(t, g.Message, c.says)
			require.Contains(t, g.Lifts, c.lifts)
			a := rejects(d, "node a-2", CodeWouldReturn)
			require.NotNil(t, a)
			require.Equal(t, g.Message, a.Reason.Message)
			require.Equal(t, g.Lifts, a.Fix)
		})
	}
}

func TestWhatIsFarAwayKeepsNoNode(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").FlapWithin = 10 * time.Minute
	s.pool("a").Schedules = []Schedule{{Name: "afternoon", Min: new(2), Window: Window{Schedule: "0 14 * * *", Duration: time.Hour}}}
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
}

func TestAnAlertThatAsksAgainAfterItsCooldownKeepsTheNodes(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.rule("Busy", "a", Up, 1)
	s.state.Pools = map[string]PoolState{"a": {AlertUpAt: t0}}
	s.pool("a").ScaleUpCooldown = time.Hour
	s.fire("Busy")
	require.Empty(t, s.pass(14*time.Minute))
	require.NotNil(t, guardOf(only(t, s.evaluate()), "alert"))
	s.resolve("Busy", t0)
	require.Equal(t, []string{"a-2"}, drained(s.until(20*time.Minute)))
}

func TestAnotherNodeGoesWhereOneWouldComeBack(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	s.class("keep", 600)
	s.pods("keep", "a-1", 1)
	s.class("web", 100)
	s.pods("web", "a-2", 1)
	s.class("big", 950)
	s.pods("big", "", 1).NominatedNode = "a-3"
	r := s.until(10 * time.Minute)
	require.Equal(t, []string{"a-2"}, drained(r))
	require.NotNil(t, rejects(only(t, r), "node a-3", CodeWouldReturn))
}

func TestRemovalsThatOnlyTogetherLeadToANewNodeGoOneByOne(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	s.pool("a").MaxRemovals, s.pool("a").FlapWithin = 2, 10*time.Minute
	s.pool("a").Schedules = []Schedule{{Name: "noon", Min: new(2), Window: Window{Schedule: "12 12 * * *", Duration: time.Hour}}}
	require.Equal(t, []string{"a-3"}, drained(s.until(10*time.Minute)))
}

func TestAPoolWhoseNodesWouldAllComeBackKeepsThem(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 3 * vetoRounds {
		names = append(names, fmt.Sprintf("a-%02d", i))
	}
	s := idle(t, names...)
	s.pool("a").Max, s.pool("a").FlapWithin = 3*vetoRounds, 10*time.Minute
	s.pool("a").Schedules = []Schedule{{Name: "noon", Min: new(3 * vetoRounds), Window: Window{Schedule: "12 12 * * *", Duration: time.Hour}}}
	require.Empty(t, s.pass(20*time.Minute))
}

func TestAPersonWhoInsistsRemovesANodeThatComesBack(t *testing.T) {
	t.Parallel()
	for override, want := range map[bool][]string{false: nil, true: {"a-2"}} {
		s := idle(t, "a-1", "a-2")
		s.pool("a").Max = 2
		s.class("web", 100)
		s.pods("web", "a-1", 1)
		s.pods("web", "a-2", 1)
		s.class("big", 950)
		s.pods("big", "", 1)
		s.request(Request{Action: ActionDown, Pool: "a", Count: 1, Override: override})
		r := s.evaluate()
		require.Equal(t, want, drained(r))
		if !override {
			require.Equal(t, CodeRequestDeferred, only(t, r).Reason.Code)
			require.Contains(t, only(t, r).Reason.Message, "would add 1 node again")
		}
	}
}

// settle is the cluster after what leaves has left, but for the nodes that are to
// stay: pods that had to move wait, refused by the scheduler.
func (s *setup) settle(stay ...string) *setup {
	out := newSetup(s.t, s.policy.Pools...)
	out.now, out.policy, out.state, out.obs, out.step = s.now, s.policy, s.state.clone(), s.obs, s.step
	out.state.Requests = nil
	leaves := map[string]bool{}
	for name, d := range s.state.Drains {
		if d.CancelledAt.IsZero() {
			leaves[name] = !slices.Contains(stay, name)
			delete(out.state.Drains, name)
		}
	}
	for _, r := range s.obs.Records {
		if d, drained := s.state.Drains[r.Name]; r.Phase == PhaseRemoving || r.Drain.removes() && (!drained || d.CancelledAt.IsZero()) {
			leaves[r.Name] = true
		}
	}
	var pods []Pod
	for _, p := range s.obs.Pods {
		if leaves[p.Node] {
			if p.Mirror || p.Deleting || p.OwnerKind == "" || p.OwnerKind == "DaemonSet" {
				continue
			}
			p.Node, p.Phase = "", "Pending"
		}
		if p.Node == "" && p.UnschedulableSince.IsZero() {
			p.UnschedulableSince = s.now
		}
		pods = append(pods, p)
	}
	out.obs.Nodes, out.obs.Records, out.obs.Pods = slices.Clone(s.obs.Nodes), slices.Clone(s.obs.Records), pods
	for name, gone := range leaves {
		if gone {
			out.obs.Nodes = slices.DeleteFunc(out.obs.Nodes, func(n Node) bool { return n.Name == name })
			out.obs.Records = slices.DeleteFunc(out.obs.Records, func(r Record) bool { return r.Name == name })
		}
	}
	return out
}

func claimsOf(r Result, pool string) int {
	n := 0
	for _, c := range r.Claims {
		if c.Pool == pool {
			n++
		}
	}
	return n
}

func TestNoRemovalIsFollowedByAnAdditionOnItsAccount(t *testing.T) {
	t.Parallel()
	removals := 0
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			happen(rt, s)
			if rapid.IntRange(0, 3).Draw(rt, "nominated") == 0 && len(s.obs.Nodes) > 0 {
				for i := range s.obs.Pods {
					if p := &s.obs.Pods[i]; p.Node == "" {
						p.NominatedNode = s.obs.Nodes[i%len(s.obs.Nodes)].Name
					}
				}
			}
			r := s.evaluate()
			var mine []string
			for _, o := range r.Drains {
				if o.Goal == GoalRemove && o.RequestID == "" {
					mine = append(mine, o.Node)
				}
			}
			replaced := func(o Order) bool { return o.Unready } // no capacity: another comes by design
			if len(mine) == 0 || slices.ContainsFunc(r.Drains, replaced) {
				continue
			}
			removals++
			after, before := s.settle().evaluate(), s.settle(mine...).evaluate()
			for _, p := range s.policy.Pools {
				if slices.ContainsFunc(r.Drains, func(o Order) bool { return slices.Contains(mine, o.Node) && o.Pool == p.Name }) {
					require.Zero(t, claimsOf(after, p.Name), "pool %s removed %v and adds again: %+v", p.Name, mine, after.Claims)
				}
				require.LessOrEqual(t, claimsOf(after, p.Name), claimsOf(before, p.Name), "pool %s adds on account of %v", p.Name, mine)
			}
		}
	})
	require.Positive(t, removals, "nothing was removed in all of it")
}

func TestManyNodesThatWouldComeBackLeaveTheRestToGo(t *testing.T) {
	t.Parallel()
	names := []string{}
	for i := range 24 {
		names = append(names, fmt.Sprintf("a-%02d", i))
	}
	s := idle(t, names...)
	s.pool("a").Max, s.pool("a").MaxRemovals = 24, 24
	s.pool("a").FlapWithin = 10 * time.Minute
	s.pool("a").Schedules = []Schedule{{Name: "noon", Min: new(4), Window: Window{Schedule: "12 12 * * *", Duration: time.Hour}}}
	gone := drained(s.until(10 * time.Minute))
	require.Len(t, gone, 20, "all but the minimum of the window that opens soon")
}
