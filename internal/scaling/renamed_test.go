package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// afterRename is a pool "old" with two idle nodes whose policy calls it "new" now.
func afterRename(t *testing.T) *setup {
	t.Helper()
	s := newSetup(t, testPool("old"))
	s.node("old", "old-1")
	s.node("old", "old-2")
	p := s.pool("old")
	p.Name, p.RenamedFrom = "new", []string{"old"}
	return s
}

func TestNodesOfAFormerNameAreThoseOfThePool(t *testing.T) {
	t.Parallel()
	s := afterRename(t)
	s.pool("new").Min = 3
	r := s.evaluate()
	d := only(t, r)
	require.Equal(t, "new", d.Pool)
	require.Equal(t, 2, d.Size)
	require.Len(t, r.Claims, 1, "they count for min")
	require.Equal(t, "new", r.Claims[0].Pool)
	require.Contains(t, r.Claims[0].Node, "new-")
	s.ready(r.Claims[0])
	s.pool("new").Min, s.pool("new").ScaleDownAfterAdd = 1, 0

	for range 2 {
		r := s.until(30 * time.Minute)
		require.Len(t, drained(r), 1)
		require.Equal(t, "new", r.Drains[0].Pool)
		s.drop(drained(r)[0])
	}
	require.Empty(t, s.pass(30*time.Minute), "they go like all others, and stop at min")
}

func TestNodesOfAFormerNameCountForMax(t *testing.T) {
	t.Parallel()
	s := afterRename(t)
	s.pool("new").Max = 2
	s.class("big", 900)
	s.pods("big", "", 4)
	r := s.evaluate()
	require.Empty(t, r.Claims)
	require.Equal(t, CodeAtMax, only(t, r).Reason.Code)
}

func TestWhatIsRememberedOfAFormerNameGoesOn(t *testing.T) {
	t.Parallel()
	s := newSetup(t, testPool("old"))
	s.node("old", "old-1")
	s.node("old", "old-2")
	require.Equal(t, []string{"old-2"}, drained(s.until(10*time.Minute)))
	s.record("old-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
	s.request(Request{Action: ActionUp, Pool: "old", Count: 1, HoldUntil: s.now.Add(5 * time.Hour), Override: true})
	s.evaluate()
	s.apply(Paused{Pool: "old", Actor: "bob", Reason: "move"})
	added := s.state.Pools["old"].AddedAt
	require.False(t, added.IsZero())

	p := s.pool("old")
	p.Name, p.RenamedFrom = "new", []string{"old"}
	s.now = s.now.Add(10 * time.Second)
	d := only(t, s.evaluate())
	require.Equal(t, 2, d.Min, "what people asked to be kept is kept")
	require.Equal(t, added, s.state.Pools["new"].AddedAt)
	require.NotContains(t, s.state.Pools, "old")
	require.Contains(t, s.state.Pauses, "new")
	require.NotContains(t, s.state.Pauses, "old")
	for _, drain := range s.state.Drains {
		require.Equal(t, "new", drain.Pool)
	}
	// A person may go on using the former name.
	s.request(Request{Action: ActionUp, Pool: "old", Count: 1, Override: true})
	r := s.evaluate()
	require.Equal(t, "new", only(t, r).Pool)
	require.Equal(t, Up, only(t, r).Verdict)
}

func TestANameThatAPoolHasIsNoFormerName(t *testing.T) {
	t.Parallel()
	a, b := testPool("a"), testPool("b")
	a.RenamedFrom, b.RenamedFrom = []string{"b", "x"}, []string{"x", "y"}
	p := Policy{Pools: []Pool{a, b}}
	for name, want := range map[string]string{"a": "a", "b": "b", "x": "a", "y": "b", "z": "z", "": ""} {
		require.Equal(t, want, p.PoolOf(name), name)
	}
}

func TestNodesOfAPoolThatIsNotConfiguredAreMereCapacity(t *testing.T) {
	t.Parallel()
	s := newSetup(t, testPool("a"), testPool("left"))
	s.node("a", "a-1")
	s.node("left", "left-1")
	s.node("left", "left-2")
	s.pool("a").Min = 1
	s.policy.Pools = s.policy.Pools[:1]
	s.class("web", 900)
	s.pods("web", "", 2)
	require.Empty(t, s.evaluate().Claims, "pods go there")
	s.obs.Pods = nil
	require.Empty(t, s.pass(2*time.Hour), "nothing removes them")
	for action, want := range map[string]int{ActionRemove: 0, ActionDrain: 1, ActionCordon: 1} {
		s := *s
		s.state = s.state.clone()
		s.request(Request{Action: action, Node: "left-1"})
		r := s.evaluate()
		require.Len(t, r.Drains, want, action)
		if want == 0 {
			d := of(t, r, "left")
			require.Equal(t, CodeUnknownPool, d.Reason.Code)
			require.Contains(t, d.Reason.Message, "name it in renamed_from of a pool, or configure it again")
		}
	}
}
