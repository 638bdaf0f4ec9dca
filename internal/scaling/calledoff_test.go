package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// comeToNothing is how a removal that was decided ends without one.
var comeToNothing = map[string]func(s *setup, node string){
	"new demand calls it off": func(s *setup, node string) {
		s.class("big", 900)
		s.pods("big", "", 1)
		s.now = s.now.Add(10 * time.Second)
		require.Equal(s.t, []string{node}, cancelled(s.evaluate()))
		s.undone(node)
		s.obs.Pods = s.obs.Pods[:1]
	},
	"a person calls it off": func(s *setup, node string) {
		s.request(Request{Action: ActionUncordon, Node: node})
		s.now = s.now.Add(10 * time.Second)
		require.Equal(s.t, []string{node}, cancelled(s.evaluate()))
		s.undone(node)
	},
	"its drain is given up": func(s *setup, node string) { s.undone(node) },
	"nobody takes it up": func(s *setup, _ string) {
		s.now = s.now.Add(s.pool("a").ClaimExpiry + time.Second)
		s.evaluate()
	},
}

// undone is the end of a drain after which the node is as it was.
func (s *setup) undone(node string) {
	s.record(node).Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "first"}
	s.now = s.now.Add(10 * time.Second)
	s.evaluate()
	s.record(node).Drain = nil
	s.now = s.now.Add(10 * time.Second)
	s.evaluate()
	require.Empty(s.t, s.state.Drains)
}

// shrinking is a pool whose last node but one is about to go.
func shrinking(t *testing.T) *setup {
	t.Helper()
	s := flapping(t)
	s.pool("a").FlapCount = 1
	s.policy.MaxRemovalsPerHour = 1
	return s
}

func TestARemovalThatCameToNothingIsNone(t *testing.T) {
	t.Parallel()
	for name, end := range comeToNothing {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := shrinking(t)
			require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
			require.Len(t, s.state.RemovalsWithin(s.now), 1)
			end(s, "a-2")
			require.Empty(t, s.state.RemovalsWithin(s.now), "it does not count for the hour")
			require.Equal(t, []string{"a-2"}, drained(s.until(20*time.Minute)), "neither is it a flap")

			s.drop("a-2")
			s.now = s.now.Add(time.Minute)
			require.Empty(t, s.evaluate().Claims)
			require.Len(t, s.state.RemovalsWithin(s.now), 1, "this one was a removal")
			s.pods("job", "", 1)
			require.Len(t, s.evaluate().Claims, 1)
			require.Len(t, s.state.Pools["a"].Flaps, 1, "and this is a flap")
		})
	}
}

func TestARemovalThatIsCalledOffTooLateCounts(t *testing.T) {
	t.Parallel()
	s := shrinking(t)
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
	decided := s.now
	s.class("big", 900)
	s.pods("big", "", 1)
	s.now = s.now.Add(10 * time.Second)
	require.Equal(t, []string{"a-2"}, cancelled(s.evaluate()))
	require.Empty(t, s.state.RemovalsWithin(s.now))
	s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDrained, RequestID: "r"}
	s.now = s.now.Add(10 * time.Second)
	require.Len(t, s.evaluate().Claims, 1, "the pod needs another node")
	require.Equal(t, []time.Time{decided}, s.state.RemovalsWithin(s.now))
	require.Len(t, s.state.Pools["a"].Flaps, 1)
}

func TestANeedWhileAnotherRemovalGoesOnIsAFlapOnce(t *testing.T) {
	t.Parallel()
	s := shrinking(t)
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
	s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDrained, RequestID: "r"}
	s.class("big", 900)
	s.pods("big", "", 2)
	s.now = s.now.Add(10 * time.Second)
	require.Len(t, s.evaluate().Claims, 2)
	require.Len(t, s.state.Pools["a"].Flaps, 1)
	s.drop("a-2")
	s.pods("big", "", 1)
	s.now = s.now.Add(10 * time.Second)
	require.Len(t, s.evaluate().Claims, 1)
	require.Len(t, s.state.Pools["a"].Flaps, 1, "several nodes for one removal")
}
