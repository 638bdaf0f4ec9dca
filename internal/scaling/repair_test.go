package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
	"pgregory.net/rapid"
)

// ill is a pool of two nodes, the second of which is not Ready from now on.
func ill(t *testing.T) *setup {
	t.Helper()
	s := newSetup(t)
	p := s.pool("a")
	p.Min, p.Max, p.RepairAfter, p.UtilizationThreshold = 2, 3, 10*time.Minute, 0
	s.policy.StartupGrace = 0
	for _, n := range []string{"a-1", "a-2"} {
		s.node("a", n)
	}
	s.health("a-2", false)
	return s
}

// health makes a node Ready or not, as the API server and provisioning say it.
func (s *setup) health(name string, ready bool) {
	n, r := s.nodeOf(name), s.record(name)
	n.Ready, n.ReadySince, r.Since = ready, s.now, s.now
	r.Phase = map[bool]string{true: PhaseReady, false: PhaseUnready}[ready]
}

func TestANodeThatIsNotReadyForTooLongIsRemovedAndReplaced(t *testing.T) {
	t.Parallel()
	s := ill(t)
	r := s.evaluate()
	require.Equal(t, t0.Add(10*time.Minute), r.NextAt, "then, without a snapshot")
	rule := ruleOf(only(t, r), "readiness of a-2")
	require.Equal(t, []string{"0s", "10m", None}, []string{rule.Value, rule.Threshold, rule.Verdict})
	require.Empty(t, s.pass(9*time.Minute+50*time.Second))
	s.now = t0.Add(10 * time.Minute)
	r = s.evaluate()
	require.Len(t, r.Drains, 1)
	o := r.Drains[0]
	require.Equal(t, []any{"a-2", GoalRemove, true, CodeUnready}, []any{o.Node, o.Goal, o.Unready, o.Reason.Code})
	require.Equal(t, "node a-2 has not been Ready for 10m, longer than repair.after of pool a, 10m: it is removed without waiting for its pods, whose kubelet answers nobody", o.Reason.Message)
	require.Len(t, r.Claims, 1, "the minimum gets another one at once")
	d := only(t, r)
	require.Equal(t, Up, d.Verdict)
	require.Contains(t, d.Overruled, o.Reason)
	require.Empty(t, s.state.Pools["a"].ShrunkAt, "it is no sign of a flap")

	// Gone, and the new one is there: all is well.
	s.drop("a-2")
	s.ready(r.Claims[0])
	require.Empty(t, s.pass(time.Hour))
	require.Empty(t, s.state.Unready)
	require.Empty(t, s.state.Pools["a"].Flaps)
}

func TestWithoutNeedARepairedNodeIsNotReplaced(t *testing.T) {
	t.Parallel()
	s := ill(t)
	s.pool("a").Min = 1
	s.now = s.now.Add(10 * time.Minute)
	r := s.evaluate()
	require.Equal(t, []string{"a-2"}, drained(r))
	require.Empty(t, r.Claims)
	require.Equal(t, Down, only(t, r).Verdict)
}

func TestWhatKeepsANodeFromBeingRepaired(t *testing.T) {
	t.Parallel()
	pod := func(s *setup, v LocalVolume) {
		s.class("db", 10)
		s.pods("db", "a-2", 1).LocalStorage = []LocalVolume{v}
	}
	for name, c := range map[string]struct {
		change func(s *setup)
		guard  string // empty: it is repaired
	}{
		"nothing":            {func(*setup) {}, ""},
		"no repair":          {func(s *setup) { s.pool("a").RepairAfter = 0 }, "-"},
		"a pause":            {func(s *setup) { s.apply(Paused{Pool: "a", Actor: "ada", Reason: "x"}) }, "pause"},
		"a start":            {func(s *setup) { s.policy.StartupGrace = time.Hour; s.apply(Started{At: t0}) }, "startup_grace"},
		"a backoff":          {func(s *setup) { s.state.Pools = backedOff() }, "backoff"},
		"too many not Ready": {func(s *setup) { s.policy.MaxUnreadyCount = 0 }, "too_many_unready"},
		"removals of an hour": {func(s *setup) {
			s.policy.MaxRemovalsPerHour = 1
			s.state.Removals = []time.Time{t0.Add(5 * time.Minute)}
		}, "max_removals_per_hour"},
		"another that leaves": {func(s *setup) {
			s.record("a-1").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
		}, "max_removals"},
		"a pod of which nothing is known": {func(s *setup) {
			pod(s, LocalVolume{Name: "tmp", Kind: evictable.EmptyDir})
			s.obs.Classes = nil
		}, "repair"},
		"a pod of a DaemonSet": {func(s *setup) {
			pod(s, LocalVolume{Name: "data", Kind: "hostPath"})
			s.obs.Pods[0].OwnerKind = "DaemonSet"
		}, ""},
		"two reasons": {func(s *setup) {
			s.policy.ProtectedNodes = []string{"a-2"}
			s.nodeOf("a-2").Annotations = map[string]string{AnnotationDoNotDisrupt: "true"}
		}, "repair"},
		"protection":    {func(s *setup) { s.policy.ProtectedNodes = []string{"a-2"} }, "repair"},
		"an annotation": {func(s *setup) { s.nodeOf("a-2").Annotations = map[string]string{AnnotationDoNotDisrupt: "true"} }, "repair"},
		"data":          {func(s *setup) { pod(s, LocalVolume{Name: "data", Kind: "persistentVolumeClaim"}) }, "repair"},
		"scratch data":  {func(s *setup) { pod(s, LocalVolume{Name: "tmp", Kind: evictable.EmptyDir}) }, ""},
		"data that may be lost": {func(s *setup) {
			pod(s, LocalVolume{Name: "data", Kind: "hostPath"})
			s.obs.Pods[0].Annotations = map[string]string{evictable.SafeToEvict: "true"}
		}, ""},
		"a pod that asks to stay": {func(s *setup) {
			pod(s, LocalVolume{Name: "tmp", Kind: evictable.EmptyDir})
			s.obs.Pods[0].Annotations, s.obs.Pods[0].OwnerKind = map[string]string{AnnotationDoNotDisrupt: "true"}, ""
		}, ""},
		"a window without removals": {func(s *setup) { s.pool("a").Budgets = []RemovalBudget{{Nodes: "0"}} }, ""},
		"low load elsewhere":        {func(s *setup) { s.pool("a").MinLifetime = 48 * time.Hour }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ill(t)
			c.change(s)
			s.now = s.now.Add(10 * time.Minute)
			r := s.evaluate()
			if c.guard == "" {
				require.Equal(t, []string{"a-2"}, drained(r))
				return
			}
			require.Empty(t, r.Drains)
			if c.guard != "-" {
				require.NotNil(t, guardOf(only(t, r), c.guard))
			}
		})
	}
}

func TestANodeOfWhichNobodySaysSinceWhenIsNotReadySinceItIsSeen(t *testing.T) {
	t.Parallel()
	s := ill(t)
	s.nodeOf("a-2").ReadySince, s.record("a-2").Since = time.Time{}, time.Time{}
	require.Empty(t, drained(s.evaluate()))
	require.Equal(t, s.now, s.state.Unready["a-2"].Since)
	s.now = s.now.Add(10 * time.Minute)
	require.Equal(t, []string{"a-2"}, drained(s.evaluate()))
}

func TestOfTwoThatSaySinceWhenTheLaterCounts(t *testing.T) {
	t.Parallel()
	s := ill(t)
	s.now = s.now.Add(5 * time.Minute)
	s.record("a-2").Since = s.now // an end of the stretch before that the API server no longer tells
	s.evaluate()
	s.now = s.now.Add(9 * time.Minute)
	require.Empty(t, drained(s.evaluate()))
	s.now = s.now.Add(time.Minute)
	require.Equal(t, []string{"a-2"}, drained(s.evaluate()))
}

func TestUnknownRepairsNothing(t *testing.T) {
	t.Parallel()
	for name, blind := range map[string]func(s *setup){
		"old":     func(s *setup) { s.frozen = true },
		"unknown": func(s *setup) { s.obs.Known = false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ill(t)
			s.evaluate()
			was := s.state.Unready
			blind(s)
			s.now = s.now.Add(time.Hour)
			require.Empty(t, s.evaluate().Drains)
			require.Equal(t, was, s.state.Unready, "nor is anything forgotten")
			s.frozen, s.obs.Known = false, true
			require.Equal(t, []string{"a-2"}, drained(s.evaluate()))
		})
	}
}

func TestANodeThatWasReadyUnseenBeginsAnew(t *testing.T) {
	t.Parallel()
	s := ill(t)
	s.evaluate()
	s.now = s.now.Add(20 * time.Minute)
	s.nodeOf("a-2").ReadySince = s.now.Add(-time.Minute) // the record did not hear of it
	require.Empty(t, s.evaluate().Drains)
	require.Equal(t, Unwell{Since: s.now.Add(-time.Minute)}, s.state.Unready["a-2"])
}

func TestTimesThatCanNotBeAreNow(t *testing.T) {
	t.Parallel()
	later, well := t0.Add(time.Minute), 2*time.Minute
	node := func(ready bool, changed time.Time) *simNode {
		return &simNode{node: &Node{Ready: ready, ReadySince: changed}, record: &Record{Phase: PhaseReady}}
	}
	require.Equal(t, Unwell{Since: later}, Unwell{}.now(later, node(false, time.Time{}), well), "nobody knows since when")
	require.Equal(t, Unwell{Since: later}, Unwell{}.now(later, node(false, later.Add(time.Hour)), well), "another clock is ahead")
	for _, changed := range []time.Time{{}, t0.Add(-time.Hour), later.Add(time.Hour)} {
		require.Equal(t, Unwell{For: time.Minute, ReadyAt: later}, Unwell{Since: t0}.now(later, node(true, changed), well))
	}
	require.Equal(t, time.Minute, Unwell{For: time.Minute}.At(later), "it is Ready")
	require.Zero(t, Pool{}.RepairsAt(Unwell{Since: t0}))
}

func TestANodeThatComesAndGoesIsRepairedOnlyIfItIsNeverWell(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		up, down time.Duration
		repaired bool
	}{
		"Ready for moments only":         {30 * time.Second, 2 * time.Minute, true},
		"Ready most of the time":         {5 * time.Minute, time.Minute, false},
		"Ready long enough in between":   {2 * time.Minute, 9 * time.Minute, false},
		"not Ready for moments for long": {100 * time.Second, 10 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ill(t)
			s.now = s.now.Add(-time.Second)
			s.health("a-2", true)
			var removed []string
			var away time.Duration // not Ready in all
			for range 70 {
				s.health("a-2", true)
				for range int(c.up / (10 * time.Second)) {
					require.Empty(t, s.evaluate().Drains, "never while it is Ready")
					s.now = s.now.Add(10 * time.Second)
				}
				s.health("a-2", false)
				for range int(c.down / (10 * time.Second)) {
					s.evaluate()
					s.now, away = s.now.Add(10*time.Second), away+10*time.Second
					if removed = drained(s.evaluate()); removed != nil {
						break
					}
				}
				if removed != nil {
					break
				}
			}
			require.Equal(t, c.repaired, removed != nil)
			if c.repaired {
				require.Equal(t, 10*time.Minute, away)
			}
		})
	}
}

// Whatever happens: what is repaired was not Ready for as long as the pool says, is not
// Ready now, and most others are.
func TestNothingIsRepairedThatWasNotUnreadyForLongEnough(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		away, last := map[string]time.Duration{}, s.now
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			sick := map[string]bool{}
			for _, n := range s.obs.Nodes {
				sick[n.Name] = !n.Ready
			}
			happen(rt, s)
			for name, is := range sick {
				if is {
					away[name] += s.now.Sub(last)
				}
			}
			last = s.now
			unready := 0
			for _, n := range s.obs.Nodes {
				if !n.Ready {
					unready++
				}
			}
			for _, o := range s.evaluate().Drains {
				if !o.Unready {
					continue
				}
				p := s.pool(o.Pool)
				require.False(t, s.nodeOf(o.Node).Ready)
				require.NotZero(t, p.RepairAfter)
				require.GreaterOrEqual(t, away[o.Node], p.RepairAfter)
				require.Equal(t, GoalRemove, o.Goal)
				_, paused := s.state.Pauses[o.Pool]
				require.False(t, paused)
			}
		}
	})
}
