package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// flapping is a pool that loses a node for low load and needs one again.
func flapping(t *testing.T) *setup {
	t.Helper()
	s := idle(t, "a-1", "a-2")
	p := s.pool("a")
	p.FlapCount, p.FlapWithin, p.FlapFreeze = 3, 10*time.Minute, time.Hour
	p.ScaleDownAfterAdd, p.MinLifetime = 0, 0
	s.class("job", 700)
	s.pods("job", "a-1", 1) // a-1 is needed
	s.state.StartedAt = t0.Add(-time.Hour)
	return s
}

// flap lets a node go, and needs one again after a while.
func (s *setup) flap(after time.Duration) {
	s.t.Helper()
	gone := drained(s.until(20 * time.Minute))
	require.Len(s.t, gone, 1)
	s.drop(gone[0])
	s.now = s.now.Add(after)
	s.pods("job", "", 1)
	r := s.evaluate()
	require.Len(s.t, r.Claims, 1)
	s.ready(r.Claims[0])
	s.now = s.now.Add(10 * time.Second)
	s.evaluate()
	s.obs.Pods = s.obs.Pods[:1] // the job is done
}

func TestAPoolThatNeedsItsNodesAgainStopsToRemoveThem(t *testing.T) {
	t.Parallel()
	s := flapping(t)
	for range 3 {
		s.flap(2*time.Minute + 30*time.Second)
	}
	frozen := s.now
	for _, r := range s.pass(30 * time.Minute) {
		require.Empty(t, drained(r))
	}
	d := only(t, s.evaluate())
	require.Equal(t, CodeFlapping, d.Reason.Code)
	g := guardOf(d, "flap")
	require.Equal(t, "3", g.Value)
	require.Contains(t, g.Message, "needed nodes again within 10m of a removal, 3 times within 1h")
	require.Contains(t, g.Lifts, "scale_down.unneeded of 8m instead of 5m", "unneeded for 5 minutes, needed 2 and a half later")
	require.WithinDuration(t, frozen.Add(time.Hour), g.Until, time.Minute)

	// People still remove nodes, and the freeze ends.
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	require.Len(t, drained(s.until(time.Minute)), 1)
}

func TestAFreezeEnds(t *testing.T) {
	t.Parallel()
	s := flapping(t)
	for range 3 {
		s.flap(time.Minute)
	}
	require.Empty(t, s.pass(50*time.Minute))
	require.Len(t, drained(s.until(20*time.Minute)), 1)
	require.NotEqual(t, CodeFlapping, only(t, s.evaluate()).Reason.Code)
}

func TestWhatIsNoFlap(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(s *setup) (after time.Duration){
		"needed again later":       func(*setup) time.Duration { return 11 * time.Minute },
		"the pool does not care":   func(s *setup) time.Duration { s.pool("a").FlapCount = 0; return time.Minute },
		"not as often as it takes": func(s *setup) time.Duration { s.pool("a").FlapCount = 5; return time.Minute },
		"not within the time":      func(s *setup) time.Duration { s.pool("a").FlapFreeze = 9 * time.Minute; return 8 * time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := flapping(t)
			after := edit(s)
			for range 4 {
				s.flap(after)
			}
		})
	}
	t.Run("a removal that somebody asked for", func(t *testing.T) {
		t.Parallel()
		s := flapping(t)
		for range 4 {
			s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
			s.flap(time.Minute)
		}
	})
}

func TestAClusterLosesNoMoreNodesAnHourThanItMay(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3", "a-4", "a-5")
	s.pool("a").Max, s.pool("a").MaxRemovals = 10, 5
	s.policy.MaxRemovalsPerHour = 2
	s.foreign("server", 4000)
	first := s.now
	gone := 0
	for gone < 2 {
		r := s.until(20 * time.Minute)
		for _, n := range drained(r) {
			s.drop(n)
			gone++
		}
		first = s.now
	}
	require.Equal(t, 2, gone)
	require.Empty(t, s.pass(50*time.Minute))
	d := only(t, s.evaluate())
	require.Equal(t, CodeRemovalsPerHour, d.Reason.Code)
	g := guardOf(d, "max_removals_per_hour")
	require.Equal(t, "2 of 2", g.Value)
	require.False(t, g.Until.After(first.Add(time.Hour)))

	// A person's request waits as well, unless it overrides.
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	s.now = s.now.Add(time.Second)
	r := s.evaluate()
	require.Empty(t, drained(r))
	require.NotNil(t, guardOf(only(t, r), "max_removals_per_hour"))
	s.request(Request{Action: ActionRemove, Node: s.obs.Nodes[0].Name})
	s.now = s.now.Add(time.Second)
	r = s.evaluate()
	require.Empty(t, drained(r), "neither does a node that is named")
	s.state.Requests = s.state.Requests[:1]
	s.state.Requests[0].Override = true
	require.Len(t, drained(s.until(time.Minute)), 1)
	require.Len(t, s.state.Removals, 3, "no more are kept than count, or may be called off")
}
