package scaling

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// spareFor is a headroom of n pods of 300m and 100Mi: a node of a test pool has
// room for three.
func spareFor(n int) *Headroom {
	return &Headroom{Pods: n, Pod: Resources{CPUMilli: 300, MemoryBytes: 100 << 20}}
}

func TestNodesAreAddedUntilThePoolHasItsHeadroom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		build func(s *setup, p *Pool)
		want  int
	}{
		"none of an empty pool":           {func(_ *setup, p *Pool) { p.Headroom = spareFor(3) }, 1},
		"one more than a node holds":      {func(_ *setup, p *Pool) { p.Headroom = spareFor(4) }, 2},
		"what is there is enough":         {func(s *setup, p *Pool) { s.node("a", "a-1"); p.Headroom = spareFor(3) }, 0},
		"pods have taken it":              {func(s *setup, p *Pool) { s.node("a", "a-1"); s.pods("web", "a-1", 1); p.Headroom = spareFor(3) }, 1},
		"pods that wait take it first":    {func(s *setup, p *Pool) { s.node("a", "a-1"); s.pods("web", "", 1); p.Headroom = spareFor(3) }, 1},
		"a pod's new node is room, too":   {func(s *setup, p *Pool) { s.pods("web", "", 1); p.Headroom = spareFor(1) }, 1},
		"a place in pieces is none":       {func(s *setup, p *Pool) { halves(s); p.Headroom = spareFor(3) }, 1},
		"never above max":                 {func(_ *setup, p *Pool) { p.Headroom = spareFor(100) }, 5},
		"none in nothing":                 {func(_ *setup, p *Pool) { p.Headroom = &Headroom{Percent: 50} }, 0},
		"a share that is free":            {func(s *setup, p *Pool) { halves(s); p.Headroom = &Headroom{Percent: 50} }, 0},
		"a share that is not":             {func(s *setup, p *Pool) { halves(s); p.Headroom = &Headroom{Percent: 60} }, 1},
		"a share that new nodes count in": {func(s *setup, p *Pool) { halves(s); p.Headroom = &Headroom{Percent: 80} }, 3},
		"both, the larger counts":         {func(s *setup, p *Pool) { halves(s); p.Headroom = spareFor(6); p.Headroom.Percent = 60 }, 2},
		"a node that is cordoned": {func(s *setup, p *Pool) {
			s.node("a", "a-1")
			s.nodeOf("a-1").Unschedulable = true
			p.Headroom = spareFor(3)
		}, 1},
		"a node not Ready for a moment": {func(s *setup, p *Pool) { s.node("a", "a-1"); s.nodeOf("a-1").Ready = false; p.Headroom = spareFor(3) }, 0},
		"a taint that the pool has not": {func(s *setup, p *Pool) {
			s.node("a", "a-1")
			s.node("a", "a-2")
			taint(s, "a-1")
			p.Headroom = spareFor(6)
		}, 1},
		"a taint of the pool":          {func(s *setup, p *Pool) { p.Taints = teamOnly; s.node("a", "a-1"); p.Headroom = spareFor(3) }, 0},
		"nodes of others are no room":  {func(s *setup, p *Pool) { s.foreign("server", 8000); p.Headroom = spareFor(3) }, 1},
		"a size that no node has":      {func(_ *setup, p *Pool) { p.Headroom = &Headroom{Pods: 1, Pod: Resources{CPUMilli: 1001}} }, 0},
		"a share that no new node has": {func(s *setup, p *Pool) { halves(s); daemon(s, 300); p.Headroom = &Headroom{Percent: 70} }, 0},
		"expendable pods give way": {func(s *setup, p *Pool) {
			s.node("a", "a-1")
			s.class("low", 900).Priority = -11
			s.pods("low", "a-1", 1)
			p.Headroom = spareFor(3)
		}, 0},
		"pods unknown": {func(s *setup, p *Pool) {
			p.Headroom = spareFor(3)
			s.evaluate()
			s.state = State{}
			s.frozen = true
			delete(s.obs.Freshness, KindPod)
		}, 0},
		"a schedule's instead of the own": {func(_ *setup, p *Pool) {
			p.Headroom = spareFor(6)
			p.Schedules = []Schedule{{Name: "night", Window: daily(0, time.Hour), Headroom: spareFor(1)}}
		}, 1},
		"none by a schedule": {func(_ *setup, p *Pool) {
			p.Headroom = spareFor(6)
			p.Schedules = []Schedule{{Name: "night", Window: daily(0, time.Hour), Headroom: &Headroom{}}}
		}, 0},
		"several schedules, each is kept": {func(_ *setup, p *Pool) {
			p.Schedules = []Schedule{{Name: "b", Window: daily(0, time.Hour), Headroom: spareFor(7)}, {Name: "a", Window: daily(0, time.Hour), Headroom: spareFor(2)}}
		}, 3},
		"the pool's when none is open": {func(_ *setup, p *Pool) {
			p.Headroom = spareFor(6)
			p.Schedules = []Schedule{{Name: "night", Window: daily(time.Hour, time.Hour), Headroom: spareFor(1)}}
		}, 2},
		"a negative amount counts for none": {func(_ *setup, p *Pool) { p.Headroom = &Headroom{Pods: -1, Percent: -5} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.class("web", 500)
			c.build(s, s.pool("a"))
			r := s.evaluate()
			require.Len(t, r.Claims, c.want)
			for _, x := range r.Claims {
				s.ready(x)
				s.now = s.now.Add(time.Second)
			}
			for i := range s.obs.Pods {
				if s.obs.Pods[i].Node == "" {
					s.bind("web", s.obs.Nodes[0].Name, 1)
				}
			}
			if !s.frozen {
				require.Empty(t, s.pass(time.Minute), "once is enough")
			}
		})
	}
}

var teamOnly = []corev1.Taint{{Key: "team", Value: "a", Effect: corev1.TaintEffectNoSchedule}}

func taint(s *setup, node string) { s.nodeOf(node).Taints = teamOnly }

// halves is two nodes, each of them half full.
func halves(s *setup) {
	s.class("half", 500).Requests.MemoryBytes = gi / 2
	for _, n := range []string{"a-1", "a-2"} {
		s.node("a", n)
		s.pods("half", n, 1)
	}
}

func daemon(s *setup, cpu int64) {
	s.obs.DaemonSets = []DaemonSet{{Namespace: "ns", Name: "agent", Class: PodClass{ID: "ds", Namespace: "ns", Requests: Resources{CPUMilli: cpu}}}}
}

func TestHeadroomIsExplainedAndHeldByTheGuards(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	p := s.pool("a")
	p.Max, p.Headroom = 1, spareFor(4)
	d := only(t, s.evaluate())
	require.Equal(t, Up, d.Verdict)
	require.Equal(t, Reason{CodeHeadroom, "pool a has room for 0 pods, its headroom is 4 pods of 300m CPU and 100Mi"}, d.Reason)
	rule := ruleOf(d, "headroom")
	require.Equal(t, Rule{Rule: "headroom", Kind: RuleHeadroom, Value: "0 pods", Threshold: "4 pods of 300m CPU and 100Mi", Verdict: Up, Delta: 2}, *rule)
	require.NotNil(t, guardOf(d, "max"))

	p.Max = 5
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"})
	r := s.evaluate()
	require.Empty(t, r.Claims)
	require.Equal(t, CodePaused, only(t, r).Reason.Code)

	p.Headroom.Pod.CPUMilli = 2000
	d = only(t, s.evaluate())
	require.Equal(t, Unknown, ruleOf(d, "headroom").Verdict)
	require.Contains(t, ruleOf(d, "headroom").Message, "a new node has no room for it beside its DaemonSets: 0 pods")
	require.True(t, slices.ContainsFunc(d.WouldChange, func(s string) bool { return s == "lower the headroom of pool a, or make its nodes larger" }))

	p.Headroom, p.Schedules = nil, []Schedule{{Name: "day", Window: daily(0, time.Hour), Headroom: &Headroom{Pods: 1, Pod: spareFor(1).Pod, Percent: 20}}}
	rule = ruleOf(only(t, s.evaluate()), "headroom of schedule day")
	require.Equal(t, "3 pods; 100.0% of CPU and 100.0% of memory free", rule.Value, "on its way")
	require.Equal(t, "headroom is 1 pod of 300m CPU and 100Mi and 20% of CPU and memory until 13:00 UTC (schedule day)",
		ruleOf(only(t, s.evaluate()), "schedule day").Message)
}

func TestANodeThatIsTheHeadroomStays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		build func(s *setup, p *Pool)
		gone  int
	}{
		"without one":                   {func(*setup, *Pool) {}, 2},
		"one node is enough":            {func(_ *setup, p *Pool) { p.Headroom = spareFor(3) }, 1},
		"two are":                       {func(_ *setup, p *Pool) { p.Headroom = spareFor(4) }, 0},
		"a share":                       {func(_ *setup, p *Pool) { p.Headroom = &Headroom{Percent: 60} }, 0},
		"a share that two nodes have":   {func(_ *setup, p *Pool) { p.Headroom = &Headroom{Percent: 40} }, 1},
		"its pods may go elsewhere":     {func(s *setup, p *Pool) { s.pods("web", "a-3", 1); p.Headroom = spareFor(3) }, 0},
		"what a pod takes at the worst": {func(s *setup, p *Pool) { s.class("tiny", 10); s.pods("tiny", "a-3", 1); p.Headroom = spareFor(2) }, 1},
		"many small pods cost what they are": {func(s *setup, p *Pool) {
			s.class("tiny", 10).Requests.MemoryBytes = 1 << 20
			s.pods("tiny", "a-3", 20)
			p.Headroom = spareFor(1)
		}, 1},
		"a cordoned node is no room": {func(s *setup, p *Pool) { s.nodeOf("a-2").Unschedulable = true; p.Headroom = spareFor(3) }, 0},
		"nor one that is not Ready":  {func(s *setup, p *Pool) { s.nodeOf("a-2").Ready = false; p.Headroom = spareFor(3) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2", "a-3")
			s.state.StartedAt = t0.Add(-time.Hour)
			p := s.pool("a")
			p.Min, p.Max, p.MaxRemovals, p.ScaleDownCooldown, p.Stabilization = 0, 10, 5, 0, 0
			s.class("web", 300)
			s.class("full", 900)
			s.pods("full", "a-1", 1)
			c.build(s, p)
			var gone []string
			for range 60 {
				s.now = s.now.Add(10 * time.Second)
				r := s.evaluate()
				require.Empty(t, r.Claims)
				require.Empty(t, r.Cancels)
				for _, n := range drained(r) {
					gone = append(gone, n)
					for i := range s.obs.Pods {
						if s.obs.Pods[i].Node == n {
							s.obs.Pods[i].Node = "a-2"
						}
					}
					s.drop(n)
				}
			}
			require.Len(t, gone, c.gone)
			if c.gone < 2 {
				d := only(t, s.evaluate())
				require.Equal(t, CodeHeadroom, d.Reason.Code, d.Reason.Message)
				require.NotNil(t, guardOf(d, "headroom"))
			}
		})
	}
}

func TestHeadroomHoldsForRequestsAndNotForANodeThatIsNamed(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	p := s.pool("a")
	p.Min, p.Headroom = 0, spareFor(6)
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1, Override: true})
	require.Empty(t, s.pass(time.Minute))
	d := only(t, s.evaluate())
	require.Equal(t, CodeRequestDeferred, d.Reason.Code)
	require.Contains(t, d.Reason.Message, "pool a may be left with room for 3 pods, its headroom is 6 pods of 300m CPU and 100Mi")
	s.state.Requests = nil

	// Who names a node wants another in its place.
	s.request(Request{Action: ActionRemove, Node: "a-1"})
	r := s.evaluate()
	require.Equal(t, []string{"a-1"}, drained(r))
	require.Len(t, r.Claims, 1)
}

func TestAnotherPoolsHeadroomIsKeptFromThePodsThatCouldGoThere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tainted bool
		want    int
	}{"they can": {false, 0}, "they can't": {true, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, testPool("a"), testPool("b"))
			b := s.pool("b")
			b.Headroom = spareFor(3)
			if c.tainted {
				b.Taints = teamOnly
			}
			s.node("a", "a-1")
			s.node("b", "b-1")
			s.foreign("server", 8000)
			s.class("web", 300)
			s.pods("web", "a-1", 1)
			s.state.StartedAt = t0.Add(-time.Hour)
			gone := 0
			for range 40 {
				s.now = s.now.Add(10 * time.Second)
				gone += len(drained(s.evaluate()))
			}
			require.Equal(t, c.want, gone)
		})
	}
}

// A removal that headroom allows never leads to a node for headroom, wherever the
// scheduler puts the pods that had to go.
func TestHeadroomDoesNotFlap(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		pools := []Pool{testPool("a"), testPool("b")}
		for i := range pools {
			p := &pools[i]
			p.Max, p.MaxRemovals, p.UtilizationThreshold = 10, rapid.IntRange(1, 3).Draw(rt, "at a time"), 0.9
			p.Unneeded, p.Stabilization, p.MinLifetime, p.ScaleDownAfterAdd, p.ScaleDownCooldown = 0, 0, 0, 0, 0
			p.Headroom = someHeadroom(rt)
		}
		s := newSetup(t, pools...)
		s.policy.StartupGrace = 0
		s.class("large", int64(rapid.IntRange(200, 900).Draw(rt, "large")))
		s.class("small", int64(rapid.IntRange(1, 200).Draw(rt, "small")))
		s.class("odd", int64(rapid.IntRange(1, 900).Draw(rt, "odd"))).Requests.MemoryBytes = int64(rapid.IntRange(1, 900).Draw(rt, "Mi")) << 20
		for i := range rapid.IntRange(1, 8).Draw(rt, "nodes") {
			name := fmt.Sprint("n-", i)
			s.node(pools[i%2].Name, name)
			for range rapid.IntRange(0, 6).Draw(rt, "pods") {
				s.put(rapid.SampledFrom([]string{"large", "small", "odd"}).Draw(rt, "class"), name)
			}
		}
		shrunk := false
		for range 20 {
			s.now = s.now.Add(10 * time.Second)
			r := s.evaluate()
			if shrunk {
				require.Empty(rt, r.Claims, "after a removal")
				require.Empty(rt, r.Cancels)
			}
			for _, c := range r.Claims {
				s.ready(c)
			}
			for _, n := range drained(r) {
				shrunk = true
				require.True(rt, !rapid.Bool().Draw(rt, "look again") || quiet(s))
				if !s.evict(rt, n) {
					return // the pods lie so badly that they don't fit
				}
			}
		}
	})
}

// quiet reports whether another look calls off nothing and adds nothing.
func quiet(s *setup) bool {
	before, now := s.state, s.now
	defer func() { s.state, s.now = before, now }()
	r := s.evaluate()
	return len(r.Claims)+len(r.Cancels) == 0
}

// put binds a pod of the class to the node if it fits there.
func (s *setup) put(class, node string) bool {
	if !s.fits(class, node) {
		return false
	}
	s.pods(class, node, 1)
	return true
}

func (s *setup) fits(class, node string) bool {
	sum := map[string]Resources{}
	for _, p := range s.obs.Pods {
		r := sum[p.Node]
		r.add(s.classOf(p.Class).Requests)
		sum[p.Node] = r
	}
	r := sum[node]
	r.add(s.classOf(class).Requests)
	all := s.nodeOf(node).Allocatable
	return r.CPUMilli <= all.CPUMilli && r.MemoryBytes <= all.MemoryBytes
}

func (s *setup) classOf(id string) *PodClass {
	i := slices.IndexFunc(s.obs.Classes, func(c PodClass) bool { return c.ID == id })
	return &s.obs.Classes[i]
}

// evict moves the pods of a node anywhere, and drops it.
func (s *setup) evict(t *rapid.T, node string) bool {
	for i := range s.obs.Pods {
		if s.obs.Pods[i].Node != node {
			continue
		}
		var to []string
		for _, n := range s.obs.Nodes {
			if _, leaves := s.state.Drains[n.Name]; !leaves && s.fits(s.obs.Pods[i].Class, n.Name) {
				to = append(to, n.Name)
			}
		}
		if len(to) == 0 {
			return false
		}
		s.obs.Pods[i].Node = rapid.SampledFrom(to).Draw(t, "to")
	}
	s.drop(node)
	return true
}
