package scaling

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// brimming is a pool whose last node goes as soon as nothing keeps it: what the
// others use is above the threshold. used says how much.
func brimming(t testing.TB, used ...int64) *setup {
	s := newSetup(t)
	p := s.pool("a")
	p.Unneeded, p.Stabilization, p.MinLifetime, p.ScaleDownAfterAdd = 0, 0, 0, 0
	s.policy.StartupGrace = 0
	for i, cpu := range used {
		name := fmt.Sprint("a-", i+1)
		s.node("a", name)
		s.class("stays-"+name, cpu)
		s.pods("stays-"+name, name, 1)
	}
	s.node("a", "leaves")
	return s
}

// decided is the decision when the node has been looked at for a moment.
func (s *setup) decided() Result {
	s.evaluate()
	s.now = s.now.Add(10 * time.Second)
	return s.evaluate()
}

// The simulation puts the large pod on a-1 and the small one on a-2. The scheduler
// may put the small one on a-1, and then the large one has no place.
func TestANodeStaysIfItsPodsFitInOneOrderOnly(t *testing.T) {
	t.Parallel()
	s := brimming(t, 600, 900)
	s.class("large", 400)
	s.class("small", 50)
	s.pods("large", "leaves", 1)
	s.pods("small", "leaves", 1)
	res := s.decided()
	require.Empty(t, drained(res))
	a := rejects(only(t, res), "node leaves", "PlaceNotCertain")
	require.NotNil(t, a, "%+v", only(t, res).Rejected)
	require.Equal(t, "pod ns/large-002 has to move: 1 other node has room for it, but the scheduler may put 1 pod that moves or waits beside it so that none is left", a.Reason.Message)
	require.Contains(t, a.Fix, "free room on the nodes that stay")

	t.Run("also if a pod that waits may be in the way", func(t *testing.T) {
		t.Parallel()
		s := brimming(t, 600, 900)
		s.class("large", 400)
		s.class("small", 50)
		s.pods("large", "leaves", 1)
		s.pods("small", "", 1).UnschedulableSince = time.Time{}
		res := s.decided()
		require.Empty(t, drained(res))
		require.NotNil(t, rejects(only(t, res), "node leaves", "PlaceNotCertain"), "%+v", only(t, res).Rejected)
	})
	t.Run("also if a pod of a node that leaves already is", func(t *testing.T) {
		t.Parallel()
		s := brimming(t, 600, 900)
		s.pool("a").MaxRemovals = 2
		s.class("large", 400)
		s.class("small", 50)
		s.node("a", "goes")
		s.record("goes").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDrained, RequestID: "r"}
		s.pods("small", "goes", 1)
		s.pods("large", "leaves", 1)
		res := s.decided()
		require.Empty(t, drained(res))
		require.NotNil(t, rejects(only(t, res), "node leaves", "PlaceNotCertain"), "%+v", only(t, res).Rejected)
	})
	t.Run("also if a person has the other node drained", func(t *testing.T) {
		t.Parallel()
		s := brimming(t, 600, 900)
		s.class("large", 400)
		s.class("small", 50)
		s.node("a", "drains")
		s.record("drains").Drain = &DrainRecord{Goal: GoalDrain, Phase: DrainDraining, RequestID: "r"}
		s.nodeOf("drains").Unschedulable = true
		s.pods("small", "drains", 1)
		s.pods("large", "leaves", 1)
		res := s.decided()
		require.Empty(t, drained(res))
		require.NotNil(t, rejects(only(t, res), "node leaves", "PlaceNotCertain"), "%+v", only(t, res).Rejected)
	})
}

// What a few nodes hold has a place for sure more often than not.
func TestANodeGoesIfItsPodsFitInEveryOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		used  []int64
		build func(s *setup)
	}{
		"alike, in all the places that there are": {[]int64{600, 600}, func(s *setup) { s.class("web", 100); s.pods("web", "leaves", 4); s.pods("web", "", 4) }},
		"one node has room for all":               {[]int64{550, 950}, func(s *setup) { mixed(s, "leaves") }},
		"a single node has room for all":          {[]int64{550}, func(s *setup) { mixed(s, "leaves") }},
		"either node has room for the largest": {[]int64{700, 700}, func(s *setup) {
			s.class("a", 200)
			s.class("b", 150)
			s.pods("a", "leaves", 1)
			s.pods("b", "leaves", 1)
		}},
		"small pods don't fill every node": {[]int64{600, 600, 600, 600}, func(s *setup) {
			s.class("a", 300)
			s.class("b", 60)
			s.pods("a", "leaves", 1)
			s.pods("b", "leaves", 3)
		}},
		"large and many, on a server": {nil, func(s *setup) {
			s.foreign("server", 8000)
			for i := range 20 {
				c := s.class(fmt.Sprint("c", i), int64(1+i))
				c.Requests.MemoryBytes = int64(20-i) << 20
				s.pods(c.ID, "leaves", 2)
			}
		}},
		"replicas that keep away from each other": {[]int64{600, 600}, func(s *setup) {
			s.class("web", 100).PodAntiAffinity = by(host, "web")
			s.pods("web", "a-1", 1)
			s.pods("web", "leaves", 1)
		}},
		"two groups that keep away from each other, with a node for each": {[]int64{600, 600}, func(s *setup) {
			s.class("x", 100).PodAntiAffinity = by(host, "y")
			s.class("y", 100)
			s.pods("x", "leaves", 1)
			s.pods("y", "leaves", 1)
		}},
		"spread, with room in every domain": {[]int64{550, 550}, func(s *setup) {
			s.class("web", 100).Spread = spreadBy(host, "web", 1)
			s.pods("web", "leaves", 3)
		}},
		"affinity to what moves along": {[]int64{550, 550}, func(s *setup) {
			s.class("web", 100).PodAffinity = by(host, "db")
			s.class("db", 100)
			s.pods("web", "leaves", 1)
			s.pods("db", "leaves", 1)
		}},
		"expendable pods are not in the way": {[]int64{600, 900}, func(s *setup) {
			s.class("large", 400)
			s.class("small", 50).Priority = -20
			s.pods("large", "leaves", 1)
			s.pods("small", "leaves", 1)
		}},
		"what waits and fits on no node is not in the way": {[]int64{600, 950}, func(s *setup) {
			s.class("large", 400)
			s.class("huge", 5000)
			s.pods("large", "leaves", 1)
			s.pods("huge", "", 3)
		}},
		"what can't go on these nodes is not in the way": {[]int64{600, 900}, func(s *setup) {
			s.class("large", 400)
			s.class("small", 50).NodeSelector = map[string]string{"on": "server"}
			s.foreign("server", 1000).Labels["on"] = "server"
			s.nodeOf("server").Taints = teamOnly
			s.obs.Classes[len(s.obs.Classes)-1].Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
			s.pods("large", "leaves", 1)
			s.pods("small", "leaves", 1)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := brimming(t, c.used...)
			c.build(s)
			res := s.decided()
			require.Equal(t, []string{"leaves"}, drained(res), "%+v", only(t, res).Rejected)
		})
	}
}

// mixed puts pods on the node that differ in what they ask for.
func mixed(s *setup, node string) {
	for i, r := range []Resources{{CPUMilli: 300, MemoryBytes: 10 << 20}, {CPUMilli: 10, MemoryBytes: 350 << 20}, {CPUMilli: 100, MemoryBytes: 100 << 20}} {
		c := s.class(fmt.Sprint("mixed-", i), 0)
		c.Requests = r
		s.pods(c.ID, node, 1)
	}
}

// Whatever is removed: with the pods on nodes in any order, wherever they fit, none
// of those that had to move is left over.
func TestInWhicheverOrderThePodsAreScheduledNoneIsLeftOver(t *testing.T) {
	t.Parallel()
	removed := 0
	rapid.Check(t, func(rt *rapid.T) {
		s := zoned(t, "x", "y")
		pools := rapid.SampledFrom([]string{"pool-x", "pool-y"})
		nodes := rapid.IntRange(2, 6).Draw(rt, "nodes")
		for i := range nodes {
			s.node(pools.Draw(rt, "pool"), fmt.Sprint("n-", i))
		}
		for i := range rapid.IntRange(1, 4).Draw(rt, "classes") {
			c := s.class(fmt.Sprint("class-", i), int64(rapid.IntRange(1, 8).Draw(rt, "cpu"))*50)
			c.Requests.MemoryBytes = int64(rapid.IntRange(1, 6).Draw(rt, "memory")) * 64 << 20
			if rapid.IntRange(0, 9).Draw(rt, "expendable") == 0 {
				c.Priority = -20
			}
		}
		constrain(rt, s)
		for _, c := range s.obs.Classes {
			for i := range nodes {
				s.pods(c.ID, fmt.Sprint("n-", i), rapid.SampledFrom([]int{0, 0, 1, 1, 2}).Draw(rt, "bound"))
			}
			s.pods(c.ID, "", rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(rt, "waiting"))
		}
		e := begun(s)
		e.scaleUp()
		all := e.candidates()
		e.unsettle()
		var gone []string
		for _, c := range all {
			if len(gone) < 3 && e.relocate(c.n) == nil {
				c.n.kind = kindIdle
				gone = append(gone, c.n.name)
			}
		}
		if len(gone) == 0 {
			return
		}
		removed++
		before := s.sketch()
		promised := map[string]bool{} // also those that wait and would go on a node that is there
		for _, n := range e.world.targets(kindReady) {
			for _, p := range n.due {
				promised[p.Ref()] = true
			}
		}
		for i := range s.obs.Pods {
			if p := &s.obs.Pods[i]; slices.Contains(gone, p.Node) {
				p.Node, p.Phase, promised[p.Ref()] = "", "Pending", true
			}
		}
		for _, n := range gone {
			s.drop(n)
		}
		for range 8 {
			for _, p := range scheduled(rt, begun(s)) {
				require.False(rt, promised[p.Ref()] && !e.world.expendable(e.world.classes[p.Class]), "%s is left over without %v\n%s", p.Ref(), gone, before)
			}
		}
	})
	require.Positive(t, removed)
}

// sketch says what is where.
func (s *setup) sketch() string {
	var b strings.Builder
	for _, n := range s.obs.Nodes {
		fmt.Fprintln(&b, "node", n.Name, n.Labels[zone])
	}
	for _, c := range s.obs.Classes {
		fmt.Fprintln(&b, "class", c.ID, c.Priority, c.Requests, "anti", fingerprint(c.PodAntiAffinity), "affinity", fingerprint(c.PodAffinity), "spread", fingerprint(c.Spread), c.HostPorts, len(c.Volumes))
	}
	for _, p := range s.obs.Pods {
		fmt.Fprintln(&b, "pod", p.Ref(), "on", p.Node)
	}
	return b.String()
}

// begun is an evaluation that has looked at the cluster.
func begun(s *setup) *evaluation {
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
	return e
}

// scheduled puts the pods that wait on nodes that take them, in an order and by a
// choice that rapid makes, and returns those that are left over.
func scheduled(t *rapid.T, e *evaluation) []*Pod {
	var wait []*Pod
	for _, p := range e.world.pods {
		if p.awaits() {
			wait = append(wait, p)
		}
	}
	targets := e.world.targets(kindReady)
	for {
		type option struct{ pod, node int }
		var options []option
		for i, p := range wait {
			for j, n := range targets {
				if e.world.admits(e.world.classes[p.Class], n) {
					options = append(options, option{i, j})
				}
			}
		}
		if len(options) == 0 {
			return wait
		}
		o := options[rapid.IntRange(0, len(options)-1).Draw(t, "choice")]
		e.world.take(e.world.classes[wait[o.pod].Class], targets[o.node])
		wait = slices.Delete(wait, o.pod, o.pod+1)
	}
}

// Many small pods take no place by what they ask for, but by their number.
func TestHeadroomCountsPodsThatAskForNextToNothing(t *testing.T) {
	t.Parallel()
	s := brimming(t, 0)
	p := s.pool("a")
	p.Size.Pods, p.Min = 12, 0
	s.nodeOf("a-1").Allocatable.Pods, s.nodeOf("leaves").Allocatable.Pods = 12, 12
	p.Headroom = spareFor(3)
	s.obs.Pods, s.obs.Nodes[0].Taints = nil, nil
	s.class("tiny", 1).Requests.MemoryBytes = 1
	s.pods("tiny", "leaves", 10)
	res := s.decided()
	require.Empty(t, drained(res), "2 slots are left on a-1 then")
	require.NotNil(t, guardOf(only(t, res), "headroom"))
}

func TestAPodForWhichRoomIsMadeOnANodeThatGoesNeedsAnotherPlace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		elsewhere int64 // CPU that is asked for on the other node
		goes      []string
	}{
		"there is one":  {100, []string{"a-2"}},
		"there is none": {900, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Min = 0
			s.class("keep", c.elsewhere)
			s.pods("keep", "a-1", 1)
			s.class("big", 500)
			s.pods("big", "", 1).NominatedNode = "a-2"
			s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
			require.Equal(t, c.goes, drained(s.evaluate()))
		})
	}
}

func TestWhoPushedWhomOffIsPartOfAnArrangement(t *testing.T) {
	t.Parallel()
	s := zoned(t, "x")
	s.node("pool-x", "n-1")
	s.node("pool-x", "n-2")
	s.class("web", 50).PodAffinity = by(host, "cache")
	beside := s.class("beside", 50)
	beside.Priority, beside.PodAffinity = -20, by(host, "web")
	cache := s.class("cache", 50)
	cache.Priority, cache.PodAntiAffinity = -20, by(host, "beside")
	s.pods("web", "n-1", 1)
	for _, c := range []string{"web", "beside", "cache"} {
		s.pods(c, "n-2", 1)
	}
	e := begun(s)
	e.scaleUp()
	all := e.candidates()
	e.unsettle()
	// Both expendable pods come to n-1 in either order, and the later one is left there:
	// that may be the one beside which there is no place.
	require.Equal(t, "n-2", all[0].n.name)
	require.NotNil(t, e.relocate(all[0].n))
}

func TestANodeThatIsToComeIsNoDomainOfASpreadYet(t *testing.T) {
	t.Parallel()
	s := zoned(t, "x")
	s.node("pool-x", "n-0")
	s.node("pool-x", "n-1")
	s.class("spread", 50).Spread = spreadBy(host, "web", 1)
	s.class("shy", 50).PodAntiAffinity = by(host, "spread")
	s.class("web", 50)
	s.pods("spread", "", 1)
	s.pods("shy", "n-1", 1)
	s.pods("web", "n-0", 2)
	e := begun(s)
	e.scaleUp()
	require.Len(t, e.world.order, 3, "a node is decided on for the pod that waits")
	all := e.candidates()
	e.unsettle()
	// Without n-1 and before the new node is there, the pod that waits may come to n-0.
	require.Equal(t, "n-1", all[0].n.name)
	require.NotNil(t, e.relocate(all[0].n))
}
