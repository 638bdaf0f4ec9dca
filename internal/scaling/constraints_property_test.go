package scaling

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// constrain gives classes constraints that rapid chooses.
func constrain(t *rapid.T, s *setup) {
	keys := rapid.SampledFrom([]string{host, zone, LabelPool})
	for i := range s.obs.Classes {
		c := &s.obs.Classes[i]
		other := s.obs.Classes[rapid.IntRange(0, len(s.obs.Classes)-1).Draw(t, "other")].ID
		switch rapid.IntRange(0, 6).Draw(t, "constraint") {
		case 0:
			c.PodAntiAffinity = by(keys.Draw(t, "key"), other)
		case 1:
			c.PodAffinity = by(keys.Draw(t, "key"), other)
		case 2:
			c.Spread = spreadBy(keys.Draw(t, "key"), other, int32(rapid.IntRange(1, 2).Draw(t, "skew")))
		case 3:
			c.HostPorts = []HostPort{{Port: 80}}
		case 4:
			c.Volumes = []VolumeTopology{{Kind: VolumeZone, Terms: in(zone, "x")}}
		}
	}
}

// Whatever the constraints: the index that the simulation keeps is what
// counting from scratch gives, and every pod that it placed is one that may be
// where it is, as judged by the plain reading of the rules.
func TestWhatIsPlacedKeepsEveryConstraintAndTheSameInputGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := zoned(t, "x", "y")
		for i := range rapid.IntRange(0, 3).Draw(rt, "nodes") {
			s.node("pool-x", fmt.Sprint("x-", i))
		}
		for i := range rapid.IntRange(1, 4).Draw(rt, "classes") {
			s.class(fmt.Sprint("class-", i), int64(rapid.IntRange(50, 600).Draw(rt, "cpu")))
		}
		constrain(rt, s)
		for _, c := range s.obs.Classes {
			s.pods(c.ID, "", rapid.IntRange(0, 5).Draw(rt, "pods"))
		}
		s.obs.CapturedAt, s.obs.Freshness = s.now, map[string]time.Time{}
		for _, k := range append(removalKinds, KindNamespace) {
			s.obs.Freshness[k] = s.now
		}
		e := &evaluation{now: s.now, policy: s.policy, obs: s.obs, seed: testSeed("x"), s: State{}.clone()}
		for _, p := range s.policy.pools() {
			e.pools = append(e.pools, &poolRun{Pool: p, known: true})
		}
		e.world = newWorld(e.obs, e.s, e.policy)
		e.reconcile()
		e.measure()
		e.scaleUp()
		checkPlaced(rt, e)
		a, err := json.Marshal(Evaluate(s.now, s.policy, s.state, s.obs, testSeed("y")))
		require.NoError(rt, err)
		b, err := json.Marshal(Evaluate(s.now, s.policy, s.state, s.obs, testSeed("y")))
		require.NoError(rt, err)
		require.Equal(rt, string(a), string(b))
	})
}

func checkPlaced(t *rapid.T, e *evaluation) {
	w := e.world
	fresh := newWorld(e.obs, State{}, e.policy)
	for _, n := range w.order {
		name := n.name
		copied := *n
		copied.attached, copied.domains, copied.counts = false, nil, nil
		fresh.attach(&copied)
		ports := map[int32]int{}
		require.Empty(t, n.trial)
		for _, p := range n.coming {
			c := w.classes[p.Class]
			require.Nil(t, w.placeable(c, n))
			for _, hp := range c.HostPorts {
				ports[hp.Port]++
				require.Equal(t, 1, ports[hp.Port])
			}
			for _, term := range c.PodAntiAffinity {
				require.Zero(t, matching(e, n, term, p), "%s on %s", p.Ref(), name)
			}
			for _, term := range c.PodAffinity {
				own := term.Selector.MatchLabels["app"] == c.ID
				require.True(t, own || matching(e, n, term, p) > 0, "%s on %s", p.Ref(), name)
			}
		}
		require.GreaterOrEqual(t, n.free.CPUMilli, int64(0))
	}
	for key, counter := range w.topology.tallies {
		other := fresh.topology.tallies[key]
		for v := range counter.values {
			require.Equal(t, counter.in(v), other.in(v), key)
		}
		require.Equal(t, counter.total, other.total, key)
	}
	for key, s := range w.topology.spreads {
		other := fresh.topology.spreads[key]
		require.Equal(t, s.lowest, other.lowest)
		require.Equal(t, s.live, other.live)
		highest, lowest := 0, 1<<30
		for v := range s.values {
			d := s.in(v)
			require.Equal(t, d, other.in(v))
			if d.nodes > 0 {
				highest, lowest = max(highest, d.pods), min(lowest, d.pods)
			}
		}
		if s.live > 0 {
			require.Equal(t, lowest, s.lowest)
		}
	}
}

// in is what there is in the domain with that value of the key.
func (c *tally) in(value string) int {
	if number, ok := c.values[value]; ok && number < len(c.at) {
		return c.at[number]
	}
	return 0
}

func (s *spread) in(value string) domain {
	if number, ok := s.values[value]; ok && number < len(s.domains) {
		return s.domains[number]
	}
	return domain{}
}

// matching counts the other pods in the node's domain that the term selects.
func matching(e *evaluation, n *simNode, term PodTerm, not *Pod) int {
	count := 0
	for _, o := range e.world.order {
		if v, ok := n.labels[term.TopologyKey]; !ok || o.labels[term.TopologyKey] != v {
			continue
		}
		for _, p := range o.coming {
			if p != not && e.world.classes[p.Class].Labels["app"] == term.Selector.MatchLabels["app"] {
				count++
			}
		}
	}
	return count
}

func TestAPodMoreOfAKindNeverLowersTheDecidedSize(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := zoned(t, "x", "y")
		for i := range rapid.IntRange(0, 3).Draw(rt, "nodes") {
			s.node("pool-x", fmt.Sprint("x-", i))
		}
		s.class("web", int64(rapid.IntRange(50, 1100).Draw(rt, "cpu")))
		constrain(rt, s)
		if rapid.Bool().Draw(rt, "headroom") {
			s.pool("pool-x").Headroom = someHeadroom(rt)
		}
		last := 0
		for range rapid.IntRange(1, 12).Draw(rt, "pods") {
			s.pods("web", "", 1)
			before := s.state
			res := s.evaluate()
			s.state = before
			require.GreaterOrEqual(rt, len(res.Claims), last)
			last = len(res.Claims)
		}
	})
}
