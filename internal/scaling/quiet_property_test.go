package scaling

import (
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestMain says how many evaluations a run came to: a soak has to reach a million.
func TestMain(m *testing.M) {
	code := m.Run()
	fmt.Printf("%d evaluations\n", evaluations.Load())
	os.Exit(code)
}

// obey has the world do at once what was decided: nodes come, and pods of those
// that go are on the node named home.
func (s *setup) obey(r Result, home string) {
	for _, c := range r.Claims {
		s.ready(c)
	}
	for _, o := range r.Drains {
		if o.Goal != GoalRemove {
			continue
		}
		for i := range s.obs.Pods {
			if s.obs.Pods[i].Node == o.Node {
				s.obs.Pods[i].Node = home
			}
		}
		s.drop(o.Node)
	}
}

// sizes are how many nodes each pool has.
func (s *setup) sizes() map[string]int {
	out := map[string]int{}
	for _, p := range s.policy.Pools {
		out[p.Name] = 0
	}
	for _, r := range s.obs.Records {
		out[r.Pool]++
	}
	return out
}

func TestWhenAlertsAreResolvedAndTheLoadIsLowEveryPoolReachesItsMin(t *testing.T) {
	t.Parallel()
	shrunk := 0
	rapid.Check(t, func(rt *rapid.T) {
		var pools []Pool
		for i := range rapid.IntRange(1, 3).Draw(rt, "pools") {
			p := testPool(fmt.Sprint("pool-", i))
			p.Min = rapid.IntRange(0, 2).Draw(rt, "min")
			p.Max = p.Min + rapid.IntRange(0, 4).Draw(rt, "room")
			p.MaxRemovals = rapid.IntRange(1, 3).Draw(rt, "max removals")
			for _, d := range []*time.Duration{&p.Unneeded, &p.Stabilization, &p.MinLifetime, &p.ScaleDownAfterAdd, &p.ScaleDownCooldown, &p.ScaleUpCooldown} {
				*d = time.Duration(rapid.IntRange(0, 5).Draw(rt, "minutes")) * time.Minute
			}
			pools = append(pools, p)
		}
		s := newSetup(t, pools...)
		s.foreign("server", 64_000).Allocatable.MemoryBytes = 64 * gi
		s.class("small", int64(rapid.IntRange(10, 100).Draw(rt, "cpu")))
		for _, p := range pools {
			for range rapid.IntRange(0, p.Max).Draw(rt, "nodes") {
				name := fmt.Sprint(p.Name, "-n", len(s.obs.Nodes))
				s.node(p.Name, name)
				s.pods("small", name, rapid.IntRange(0, 4).Draw(rt, "pods"))
			}
			s.rule("Busy-"+p.Name, p.Name, Up, rapid.IntRange(1, 3).Draw(rt, "amount"))
			if rapid.Bool().Draw(rt, "busy") {
				s.fire("Busy-" + p.Name)
			}
		}
		for range 12 { // the alerts have their way
			s.now = s.now.Add(10 * time.Second)
			s.obey(s.evaluate(), "server")
		}
		for _, p := range pools {
			s.resolve("Busy-"+p.Name, t0)
		}
		before := s.sizes()
		least := map[string]int{}
		for _, p := range pools {
			least[p.Name] = p.Min
		}
		// Two hours at most, and two minutes in which nothing may happen any more.
		for steps := 0; steps < 6*120; steps++ {
			if maps.Equal(s.sizes(), least) {
				steps = max(steps, 6*118)
			}
			s.now = s.now.Add(10 * time.Second)
			r := s.evaluate()
			require.Empty(rt, r.Claims, "nothing asks for a node any more")
			s.obey(r, "server")
		}
		for _, p := range pools {
			require.Equal(rt, p.Min, s.sizes()[p.Name], "pool %s had %d", p.Name, before[p.Name])
			if before[p.Name] > p.Min {
				shrunk++
			}
		}
	})
	require.Positive(t, shrunk, "no pool had a node to spare in all of it")
}

func TestLoadThatWaversWithinTheThresholdsChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := idle(t, "a-1", "a-2", "a-3")
		s.pool("a").Stabilization = 0
		low := int64(s.pool("a").UtilizationThreshold * 1000)
		s.class("load", 1)
		for _, n := range []string{"a-1", "a-2", "a-3"} {
			s.pods("load", n, 1)
		}
		// A load of its own on each node: it may fall below the threshold, but not for
		// as long as a node has to be unneeded, and never above what the node has.
		since := map[string]time.Time{}
		for i := range s.obs.Pods {
			s.class(fmt.Sprint("load-", i), 0)
			s.obs.Pods[i].Class = fmt.Sprint("load-", i)
		}
		for range rapid.IntRange(30, 200).Draw(rt, "snapshots") {
			s.now = s.now.Add(time.Duration(rapid.IntRange(1, 20).Draw(rt, "seconds")) * time.Second)
			for _, p := range s.obs.Pods {
				load := rapid.Int64Range(low-400, 1000).Draw(rt, "load")
				if at, is := since[p.Node]; is && load < low && s.now.Sub(at) >= s.pool("a").Unneeded-20*time.Second {
					load = low
				}
				switch _, is := since[p.Node]; {
				case load >= low:
					delete(since, p.Node)
				case !is:
					since[p.Node] = s.now
				}
				for j := range s.obs.Classes {
					if s.obs.Classes[j].ID == p.Class {
						s.obs.Classes[j].Requests.CPUMilli = load
					}
				}
			}
			r := s.evaluate()
			require.Empty(rt, r.Claims)
			require.Empty(rt, r.Drains)
		}
		// What stays low has its node removed: it was the wavering that kept it.
		for j := range s.obs.Classes {
			s.obs.Classes[j].Requests.CPUMilli = 100
		}
		require.NotEmpty(rt, drained(s.until(2*s.pool("a").Unneeded)))
	})
}
