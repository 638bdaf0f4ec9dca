package scaling

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// callable are the nodes whose removal an outsider would call off rather than add a
// node: decided by the autoscaler itself, under way, not past the point of no return.
func callable(s *setup, state State, res Result) []string {
	var out []string
	for _, name := range sortedKeys(state.Drains) {
		d := state.Drains[name]
		if !d.CancelledAt.IsZero() || d.RequestID != "" || slices.ContainsFunc(res.Drains, func(o Order) bool { return o.Node == name }) {
			continue
		}
		i := slices.IndexFunc(s.obs.Records, func(r Record) bool { return r.Name == name })
		j := slices.IndexFunc(s.obs.Nodes, func(n Node) bool { return n.Name == name })
		if i < 0 || j < 0 || s.obs.Records[i].gone() || s.obs.Records[i].Phase == PhaseRemoving || s.obs.Records[i].Drain.final() ||
			!s.obs.Nodes[j].Ready || s.obs.Nodes[j].Deleting {
			continue
		}
		out = append(out, name)
	}
	return out
}

// hasRoomFor reports whether a pod of the class fits beside all pods that are bound to
// the node, by its size alone.
func hasRoomFor(s *setup, node string, c PodClass) bool {
	n := s.nodeOf(node)
	left := n.Allocatable
	for _, p := range s.obs.Pods {
		i := slices.IndexFunc(s.obs.Classes, func(o PodClass) bool { return o.ID == p.Class })
		if p.over() || i < 0 || p.Node != node && p.NominatedNode != node {
			continue
		}
		left.CPUMilli -= s.obs.Classes[i].Requests.CPUMilli
		left.MemoryBytes -= s.obs.Classes[i].Requests.MemoryBytes
		left.Pods--
	}
	return left.Pods > 0 && c.Requests.CPUMilli <= left.CPUMilli && c.Requests.MemoryBytes <= left.MemoryBytes
}

// plain is a class that nothing but its size, and taints, keeps off a node.
func plain(c PodClass) bool {
	return len(c.PodAffinity)+len(c.PodAntiAffinity)+len(c.Spread)+len(c.HostPorts)+len(c.Volumes)+len(c.NodeAffinity)+len(c.NodeSelector)+len(c.Unsimulated) == 0
}

// leaving is a cluster of which some nodes are on their way out already: decided by the
// autoscaler, and as far as chance has it.
func leaving(rt *rapid.T, t *testing.T) *setup {
	s := draw(rt, t)
	for i := range s.policy.Pools {
		s.policy.Pools[i].Max += 3
	}
	s.state.Drains = map[string]Drain{}
	for i := range s.obs.Records {
		r := &s.obs.Records[i]
		if !rapid.Bool().Draw(rt, "leaves") {
			continue
		}
		s.state.Drains[r.Name] = Drain{Node: r.Name, Pool: r.Pool, DecisionID: "earlier", DecidedAt: s.now.Add(-time.Second), NotAfter: s.now.Add(time.Hour), Seen: true}
		r.Drain = &DrainRecord{Goal: GoalRemove, RequestID: "earlier",
			Phase: rapid.SampledFrom([]string{DrainRequested, DrainCordoned, DrainFinishing, DrainDraining, "forcing", DrainDrained}).Draw(rt, "phase")}
	}
	return s
}

// What is on its way out is called off before a node of the same pool is added, once,
// and takes no part in a removal before it is uncordoned.
func TestNewDemandCallsRemovalsOffBeforeItAddsNodes(t *testing.T) {
	t.Parallel()
	called := 0
	rapid.Check(t, func(rt *rapid.T) {
		s := leaving(rt, t)
		for range rapid.IntRange(5, 25).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "demand") {
				s.pods(s.obs.Classes[rapid.IntRange(0, len(s.obs.Classes)-1).Draw(rt, "class")].ID, "", rapid.IntRange(1, 3).Draw(rt, "pods"))
			} else {
				happen(rt, s)
			}
			before := s.state
			res := s.evaluate()
			called += len(res.Cancels)

			seen := map[string]bool{}
			for _, o := range res.Cancels {
				require.False(t, seen[o.Node], "a removal is called off once")
				seen[o.Node] = true
				if o.Actor == "" {
					require.Contains(t, before.Drains, o.Node, "there was one")
					require.True(t, before.Drains[o.Node].CancelledAt.IsZero(), "it is not called off again while it is being undone")
					require.False(t, s.record(o.Node).Drain.final(), "nor too late")
				}
				require.False(t, slices.ContainsFunc(res.Drains, func(d Order) bool { return d.Node == o.Node && d.Goal == GoalRemove }), "nor decided at once again")
			}
			left := callable(s, res.State, res)
			for _, c := range res.Claims {
				for _, name := range left {
					if s.record(name).Pool != c.Pool {
						continue
					}
					if c.Cause != CausePods {
						require.Fail(t, "a node is added while another of its pool may be kept", "claim %+v, node %s", c, name)
					}
					for _, at := range res.Placements {
						if at.Node != c.Node {
							continue
						}
						i := slices.IndexFunc(s.obs.Pods, func(p Pod) bool { return p.Ref() == at.Pod })
						k := slices.IndexFunc(s.obs.Classes, func(o PodClass) bool { return o.ID == s.obs.Pods[i].Class })
						if class := s.obs.Classes[k]; plain(class) {
							require.False(t, hasRoomFor(s, name, class), "pod %s gets the new node %s, and would fit on %s, which leaves", at.Pod, c.Node, name)
						}
					}
				}
			}
			// Capacity again only when it is uncordoned: as long as its drain is being
			// undone, it is not among the Ready ones that keep the minimum.
			for _, p := range s.policy.Pools {
				if !slices.ContainsFunc(res.Drains, func(o Order) bool { return o.Pool == p.Name && o.Goal == GoalRemove && s.nodeOf(o.Node).Ready }) {
					continue
				}
				steady := 0
				for _, r := range s.obs.Records {
					_, open := res.State.Drains[r.Name] // leaving, or being undone
					if r.Pool == p.Name && r.Phase == PhaseReady && !open && s.nodeOf(r.Name).Ready {
						steady++
					}
				}
				least, _ := limits(p, s.now)
				require.GreaterOrEqual(t, steady, least)
			}
		}
	})
	require.NotZero(t, called, "the stories have removals that are called off")
}
