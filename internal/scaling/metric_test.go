package scaling

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// metric adds a rule on a pushed signal of the same name, which may do both.
func (s *setup) metric(name, pool string, change ...func(*MetricRule)) {
	r := MetricRule{Name: name, Pool: pool, Signal: name, Interval: 10 * time.Second, StaleAfter: time.Minute, MayAdd: true, MayRemove: true, PassThrough: true}
	for _, c := range change {
		c(&r)
	}
	s.policy.MetricRules = append(s.policy.MetricRules, r)
}

// say pushes a value, measured now.
func (s *setup) say(name string, v float64) { s.signal(name, &v) }

func (s *setup) signal(name string, v *float64) {
	s.apply(SignalReceived{Source: SourcePush, Name: name, Signal: Signal{Value: v, At: s.now, ExpiresAt: s.now.Add(24 * time.Hour),
		EventID: fmt.Sprint("signal-", name, "-", s.now.Unix())}})
}

// saying lets time go by while a value is pushed again and again.
func (s *setup) saying(name string, v float64, d time.Duration) []Result {
	s.t.Helper()
	var out []Result
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(10 * time.Second)
		s.say(name, v)
		if r := s.evaluate(); len(r.Claims)+len(r.Drains)+len(r.Cancels) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// arrive makes every claim a Ready node, and lets every node that leaves be gone.
func (s *setup) arrive() {
	for _, c := range sortedClaims(s.state) {
		s.ready(c)
	}
	for _, name := range sortedKeys(s.state.Drains) {
		s.drop(name)
	}
}

// quick has no delays that a test of metrics would only wait for.
func quick(p *Pool) {
	p.ScaleDownAfterAdd, p.MinLifetime, p.ScaleDownCooldown, p.MaxRemovals, p.Max = 0, 0, 0, 10, 20
	p.UtilizationThreshold = 0 // nothing is removed for low utilization
}

func quickSetup(t testing.TB, nodes int) *setup {
	p := testPool("a")
	quick(&p)
	s := newSetup(t, p)
	for i := range nodes {
		s.node("a", fmt.Sprint("n", i))
	}
	return s
}

func TestAMetricRuleAsksForAsManyNodesAsItsStrategySays(t *testing.T) {
	t.Parallel()
	target := func(v, band float64) func(*MetricRule) {
		return func(r *MetricRule) { r.PassThrough, r.TargetValue = false, &TargetValue{v, band} }
	}
	threshold := func(th Threshold) func(*MetricRule) {
		return func(r *MetricRule) { r.PassThrough, r.Threshold = false, &th }
	}
	up := func(n int) *int { return &n }
	f := func(v float64) *float64 { return &v }
	for name, c := range map[string]struct {
		rule  func(*MetricRule)
		nodes int
		value float64
		asks  int // -1: none in particular
	}{
		"target value, above":                  {target(10, 0.01), 4, 12, 5},
		"target value, far above":              {target(0.5, 0.01), 3, 1, 6},
		"target value, noise of a float":       {target(0.1, 0.01), 3, 0.2, 6},
		"target value, below":                  {target(10, 0.01), 4, 6, 3},
		"target value, just within the band":   {target(100, 0.01), 4, 101, 4},
		"target value, just out of the band":   {target(100, 0.01), 4, 101.1, 5},
		"target value, a little below":         {target(10, 0.01), 4, 9, 4},
		"target value, nothing":                {target(10, 0.01), 4, 0, 0},
		"target value, less than nothing":      {target(10, 0.01), 4, -3, 0},
		"target value, of no nodes":            {target(10, 0.01), 0, 25, 3},
		"target value, of no nodes and load":   {target(10, 0.01), 0, 0, 0},
		"target value without a target":        {target(0, 0.01), 4, 25, -1},
		"pass-through":                         {func(*MetricRule) {}, 4, 7, 7},
		"pass-through rounds up":               {func(*MetricRule) {}, 4, 6.2, 7},
		"pass-through of less than nothing":    {func(*MetricRule) {}, 4, -6, 0},
		"pass-through of more than is counted": {func(*MetricRule) {}, 4, 1e300, 1 << 20},
		"fixed":                                {func(r *MetricRule) { r.PassThrough, r.Fixed = false, up(6) }, 4, 0, 6},
		"threshold, delta":                     {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1, Delta: up(2)}), 4, 80, 6},
		"threshold, out of bounds":             {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1, Delta: up(2)}), 4, 79.9, -1},
		"threshold, at the upper bound":        {threshold(Threshold{AtLeast: f(1), Below: f(80), Points: 1, Of: 1, Delta: up(2)}), 4, 80, -1},
		"threshold, fewer":                     {threshold(Threshold{Below: f(20), Points: 1, Of: 1, Delta: up(-1)}), 4, 10, 3},
		"threshold, fewer than there are":      {threshold(Threshold{Below: f(20), Points: 1, Of: 1, Delta: up(-9)}), 4, 10, 0},
		"threshold, percent":                   {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1, Percent: f(50)}), 4, 90, 6},
		"threshold, percent of a part":         {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1, Percent: f(10)}), 4, 90, 5},
		"threshold, percent fewer":             {threshold(Threshold{Below: f(20), Points: 1, Of: 1, Percent: f(-30)}), 4, 10, 3},
		"threshold, in all":                    {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1, Nodes: up(9)}), 4, 90, 9},
		"threshold that says nothing":          {threshold(Threshold{AtLeast: f(80), Points: 1, Of: 1}), 4, 90, -1},
		"threshold, too few points":            {threshold(Threshold{AtLeast: f(80), Points: 2, Of: 3, Nodes: up(9)}), 4, 90, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := quickSetup(t, c.nodes)
			s.metric("m", "a", c.rule)
			s.say("m", c.value)
			d := only(t, s.evaluate())
			st := s.state.Metrics["m"]
			if c.asks < 0 {
				require.Nil(t, st.Nodes)
				require.Equal(t, None, st.Verdict)
				return
			}
			require.NotNil(t, st.Nodes)
			require.Equal(t, c.asks, *st.Nodes)
			rule := ruleOf(d, "metric m")
			require.Equal(t, number(c.value), rule.Value)
			require.NotEmpty(t, rule.Threshold)
			require.Contains(t, rule.Message, "to change that: ")
			switch {
			case c.asks > c.nodes:
				require.Equal(t, Up, rule.Verdict)
				require.Equal(t, min(c.asks, 20)-c.nodes, len(sortedClaims(s.state)))
			case c.asks < c.nodes:
				require.Equal(t, Down, rule.Verdict)
			default:
				require.Equal(t, None, rule.Verdict)
			}
		})
	}
}

func TestWhatTheRuleSaysWouldChangeItDoes(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 4)
	s.metric("m", "a", func(r *MetricRule) { r.PassThrough, r.TargetValue = false, &TargetValue{10, 0.01} })
	s.say("m", 10)
	require.Contains(t, ruleOf(only(t, s.evaluate()), "metric m").Message, "more above 10.1, fewer at 7.5 or less")
	for v, want := range map[float64]int{10.1: 4, 10.11: 5, 7.51: 4, 7.5: 3} {
		s := quickSetup(t, 4)
		s.policy.MetricRules = []MetricRule{{Name: "m", Pool: "a", Signal: "m", StaleAfter: time.Minute, MayAdd: true, TargetValue: &TargetValue{10, 0.01}}}
		s.say("m", v)
		s.evaluate()
		require.Equal(t, want, *s.state.Metrics["m"].Nodes, "at %g", v)
	}
}

func TestOfSeveralMetricRulesUpBeatsNoneBeatsDownAndTheHighestCounts(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 4)
	s.metric("few", "a")
	s.metric("many", "a")
	s.metric("more", "a")
	s.say("few", 1)
	s.say("many", 7)
	s.say("more", 5)
	res := s.evaluate()
	d := only(t, res)
	require.Len(t, res.Claims, 3)
	require.Equal(t, CodeMetric, d.Reason.Code)
	require.Contains(t, d.Reason.Message, "many")
	require.Contains(t, d.Inputs, "signal-many-"+fmt.Sprint(s.now.Unix()))
	require.Contains(t, fmt.Sprint(d.Overruled), "more", "what was beaten is said")
	require.Equal(t, CauseMetric, sortedClaims(s.state)[0].Cause)

	// Content is heard before fewer; and all that want fewer, the one that wants most.
	s = quickSetup(t, 4)
	s.policy.StartupGrace = 0
	s.metric("few", "a")
	s.metric("content", "a")
	for range 60 {
		s.now = s.now.Add(10 * time.Second)
		s.say("few", 1)
		s.say("content", 4)
		require.Empty(t, s.evaluate().Drains)
	}
	var out []string
	for range 60 {
		s.now = s.now.Add(10 * time.Second)
		s.say("few", 1)
		s.say("content", 3)
		res := s.evaluate()
		out = append(out, drained(res)...)
		s.arrive()
	}
	require.Len(t, out, 1, "one of them still asks for three")
}

func TestARuleThatMayNotDoesNot(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 2)
	s.policy.StartupGrace = 0
	s.metric("m", "a", func(r *MetricRule) { r.MayAdd = false })
	require.Empty(t, s.saying("m", 5, 10*time.Minute), "it may not add")
	require.Contains(t, ruleOf(only(t, s.evaluate()), "metric m").Message, "may not add")
	s = quickSetup(t, 2)
	s.policy.StartupGrace = 0
	s.metric("m", "a", func(r *MetricRule) { r.MayRemove = false })
	require.Empty(t, s.saying("m", 0, 20*time.Minute), "it may not remove")
}

func TestMetricsAddOncePerCooldownAndCountWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	s.metric("m", "a", func(r *MetricRule) { r.PassThrough, r.TargetValue = false, &TargetValue{10, 0.01} })
	s.say("m", 20)
	res := s.evaluate()
	require.Len(t, res.Claims, 1)
	require.Equal(t, s.now.Add(time.Minute), s.state.Pools["a"].MetricUpAt.Add(s.pool("a").ScaleUpCooldown))
	require.Empty(t, s.saying("m", 20, 40*time.Second), "claims in flight are what it asked for")
	s.arrive()
	s.now = s.now.Add(time.Second)
	s.say("m", 20)
	d := only(t, s.evaluate())
	require.Equal(t, CodeCooldown, d.Reason.Code)
	require.Equal(t, s.state.Pools["a"].MetricUpAt.Add(time.Minute), guardOf(d, "scale_up_cooldown").Until)
	res = s.evaluate()
	require.Equal(t, s.state.Pools["a"].MetricUpAt.Add(time.Minute), res.NextAt, "it is decided again when the cooldown ends")
	require.Len(t, s.saying("m", 20, time.Minute), 1)
	require.Len(t, sortedClaims(s.state), 2)
}

func TestAValueIsMultipliedWithTheNodesThatItWasMeasuredWith(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 0)
	s.metric("m", "a", func(r *MetricRule) {
		r.PassThrough, r.TargetValue, r.StaleAfter = false, &TargetValue{10, 0.01}, time.Hour
	})
	s.say("m", 18)
	require.Len(t, s.evaluate().Claims, 2)
	s.arrive()
	require.Empty(t, s.pass(10*time.Minute), "it has brought two nodes, and nothing was measured since")
	require.Equal(t, 2, *s.state.Metrics["m"].Nodes)
	s.say("m", 18)
	require.Len(t, s.evaluate().Claims, 2, "now two are not enough")
}

func TestAMetricAsksForWhatAlertsAndTheMinimumBroughtAsWell(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 0)
	s.pool("a").Min = 1
	s.rule("Busy", "a", Up, 2)
	s.fire("Busy")
	s.metric("m", "a")
	s.say("m", 2)
	res := s.evaluate()
	require.Len(t, res.Claims, 2, "one is the minimum's and serves all of them")
	require.Equal(t, s.now, res.State.Pools["a"].MetricUpAt)
}

func TestAMetricIsBoundedByMaxAndSaysSo(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 0)
	s.pool("a").Max = 3
	s.metric("m", "a")
	s.say("m", 9)
	res := s.evaluate()
	require.Len(t, res.Claims, 3)
	d := only(t, res)
	require.NotNil(t, guardOf(d, "max"))
	require.Contains(t, fmt.Sprint(d.Overruled), "6 of 9 nodes", "a capped count keeps the reason that it overruled")
	s.arrive()
	s.saying("m", 9, 2*time.Minute)
	require.Equal(t, CodeAtMax, only(t, s.evaluate()).Reason.Code)
}

func TestAMetricRemovesAfterTheStabilizationWindowWhatFitsElsewhere(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 4)
	s.policy.StartupGrace = 0
	s.class("web", 600)
	s.pods("web", "n3", 1)
	s.pods("web", "n2", 1)
	s.pods("web", "n1", 1)
	s.metric("m", "a")
	s.say("m", 4)
	s.evaluate()
	require.Empty(t, s.saying("m", 1, 4*time.Minute+50*time.Second), "the highest of five minutes counts")
	d := only(t, s.evaluate())
	require.Equal(t, CodeStabilizing, d.Reason.Code)
	out := s.saying("m", 1, time.Minute)
	require.NotEmpty(t, out)
	require.Equal(t, Down, only(t, out[0]).Verdict)
	require.Equal(t, CodeMetric, only(t, out[0]).Reason.Code)
	require.Equal(t, []string{"n3"}, drained(out[0]), "n0 takes the pod of one of them, and no more")
	require.NotNil(t, rejects(only(t, out[0]), "node n2", "NoOtherNodeFits"), only(t, out[0]).Rejected)
}

func TestUnknownIsNotZero(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	for name, become := range map[string]func(s *setup){
		"it says so":      func(s *setup) { s.signal("m", nil) },
		"NaN":             func(s *setup) { s.signal("m", &nan) },
		"too old":         func(s *setup) {},
		"another source":  func(s *setup) { s.policy.MetricRules[0].Signal = "other" },
		"expired":         func(s *setup) { sg := s.state.Signals["push/m"]; sg.ExpiresAt = s.now; s.state.Signals["push/m"] = sg },
		"a query instead": func(s *setup) { s.policy.MetricRules[0].Signal, s.policy.MetricRules[0].Query = "", "q" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := quickSetup(t, 4)
			s.policy.StartupGrace = 0
			s.pool("a").UtilizationThreshold = 0.5
			s.metric("m", "a")
			s.say("m", 3)
			s.evaluate()
			become(s)
			// Longer than any delay: nothing is removed below what it last asked for.
			var gone []string
			for range 120 {
				s.now = s.now.Add(10 * time.Second)
				if name == "it says so" {
					s.signal("m", nil)
				}
				gone = append(gone, drained(s.evaluate())...)
				s.arrive()
			}
			d := only(t, s.evaluate())
			require.Equal(t, Unknown, ruleOf(d, "metric m").Verdict)
			require.Equal(t, CodeMetricUnknown, d.Reason.Code, d.Reason.Message)
			g := guardOf(d, "metric")
			require.NotNil(t, g)
			if name == "another source" || name == "a query instead" {
				require.Empty(t, gone, "nobody knows what this one needs")
				require.Contains(t, g.Message, "was never known")
				return
			}
			require.Len(t, gone, 1, "three are left, as it last asked for")
			require.Contains(t, g.Message, "last asked for 3 nodes")
		})
	}
}

func TestAMetricKeepsItsNodesFromEverythingElseThatRemoves(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 3)
	s.policy.StartupGrace = 0
	s.pool("a").UtilizationThreshold = 0.5
	s.rule("Quiet", "a", Down, 2)
	s.metric("m", "a", func(r *MetricRule) { r.MayRemove = false })
	s.fire("Quiet")
	require.Empty(t, s.saying("m", 3, 14*time.Minute), "neither for low utilization nor for an alert")
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	s.say("m", 3)
	d := only(t, s.evaluate())
	require.Equal(t, CodeRequestDeferred, d.Reason.Code, "a person reads why it waits")
	require.Contains(t, d.Reason.Message, "it asks for 3 nodes")
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1, Override: true})
	require.Len(t, s.evaluate().Drains, 1, "and may insist")

	// What is unknown does not hold a person.
	s = quickSetup(t, 3)
	s.metric("m", "a")
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	require.Len(t, s.evaluate().Drains, 1)
}

func TestAPersonDoesNotRemoveWhatAMetricWouldAddAgain(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 3)
	s.pool("a").Max = 3
	s.metric("m", "a")
	s.say("m", 5)
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	res := s.evaluate()
	require.Empty(t, res.Drains)
	require.NotNil(t, guardOf(only(t, res), "metric"))
}

func TestPointsAreCountedWhenTheyAreMeasuredAndAnewAfterAGap(t *testing.T) {
	t.Parallel()
	eighty, two := 80.0, 2
	s := quickSetup(t, 1)
	s.metric("m", "a", func(r *MetricRule) {
		r.PassThrough, r.Threshold = false, &Threshold{AtLeast: &eighty, Points: 3, Of: 5, Delta: &two}
	})
	s.say("m", 90)
	for range 20 { // evaluations are no points
		require.Empty(t, s.evaluate().Claims)
	}
	require.Len(t, s.state.Metrics["m"].Points, 1)
	require.Empty(t, s.saying("m", 10, 20*time.Second))
	require.Empty(t, s.saying("m", 90, 10*time.Second), "two of four")
	require.Len(t, s.saying("m", 90, 10*time.Second), 1, "three of five")
	s.saying("m", 90, 5*time.Minute)
	require.Len(t, s.state.Metrics["m"].Points, 5, "no more are kept than count")

	s.now = s.now.Add(2 * time.Minute)
	s.say("m", 90)
	s.evaluate()
	require.Len(t, s.state.Metrics["m"].Points, 1, "nobody knows what was in between")
	require.Equal(t, None, s.state.Metrics["m"].Verdict)
}

func TestThresholdsRemoveOneAfterTheOther(t *testing.T) {
	t.Parallel()
	twenty, one := 20.0, -1
	s := quickSetup(t, 4)
	s.policy.StartupGrace = 0
	s.metric("m", "a", func(r *MetricRule) {
		r.PassThrough, r.Threshold = false, &Threshold{Below: &twenty, Points: 2, Of: 2, Delta: &one}
	})
	var at []time.Time
	for range 120 {
		s.now = s.now.Add(10 * time.Second)
		s.say("m", 5)
		if len(drained(s.evaluate())) > 0 {
			at = append(at, s.now)
		}
		s.arrive()
	}
	require.Greater(t, len(at), 1)
	for i := 1; i < len(at); i++ {
		require.GreaterOrEqual(t, at[i].Sub(at[i-1]), s.pool("a").Stabilization, "what a removal changes is measured first")
	}
}

func TestMetricsOfTheSnapshot(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 2)
	s.class("web", 400)
	s.class("huge", 5000)
	s.pods("web", "n0", 2)
	s.pods("web", "", 3)
	s.pods("huge", "", 2)
	s.foreign("server", 8000)
	names := []string{MetricCPURequests, MetricMemoryRequests, MetricCPUUsage, MetricMemoryUsage, MetricPendingPods}
	for _, n := range names {
		s.metric(n, "a", func(r *MetricRule) { r.Signal, r.Metric, r.MayAdd, r.Interval = "", n, false, 15*time.Second })
	}
	s.evaluate()
	value := func(n string) *float64 { return s.state.Metrics[n].Value }
	require.InDelta(t, 0.4, *value(MetricCPURequests), 1e-9)
	require.InDelta(t, 128.0/2048, *value(MetricMemoryRequests), 1e-9)
	require.InDelta(t, 3, *value(MetricPendingPods), 1e-9, "those that a node of the pool could take")
	require.Nil(t, value(MetricCPUUsage))
	require.Contains(t, s.state.Metrics[MetricCPUUsage].Unknown, "kind usage are unknown")

	s.obs.Usage = []Usage{{Node: "n0", CPUMilli: 500, MemoryBytes: gi / 2, At: s.now}}
	s.frozen = true
	s.obs.Freshness[KindUsage] = s.now
	s.evaluate()
	require.Contains(t, s.state.Metrics[MetricCPUUsage].Unknown, "live usage of node n1")
	s.obs.Usage = append(s.obs.Usage, Usage{Node: "n1", CPUMilli: 100, MemoryBytes: 0, At: s.now})
	s.evaluate()
	require.InDelta(t, 0.3, *value(MetricCPUUsage), 1e-9)
	require.InDelta(t, 0.25, *value(MetricMemoryUsage), 1e-9)
	s.now = s.now.Add(2 * time.Minute)
	s.evaluate()
	for _, n := range names {
		require.Contains(t, s.state.Metrics[n].Unknown, "older than 1m", n)
	}

	s = quickSetup(t, 0)
	s.metric("m", "a", func(r *MetricRule) { r.Signal, r.Metric = "", MetricCPURequests })
	s.evaluate()
	require.Contains(t, s.state.Metrics["m"].Unknown, "has no Ready node")
}

func TestPointsOfASnapshotAreAnIntervalApart(t *testing.T) {
	t.Parallel()
	half, one := 0.5, 1
	s := quickSetup(t, 1)
	s.class("web", 900)
	s.pods("web", "n0", 1)
	s.metric("m", "a", func(r *MetricRule) {
		r.Signal, r.Metric, r.Interval, r.PassThrough = "", MetricCPURequests, 30*time.Second, false
		r.Threshold = &Threshold{AtLeast: &half, Points: 3, Of: 3, Delta: &one}
	})
	s.evaluate()
	require.Empty(t, s.pass(50*time.Second))
	require.Len(t, s.state.Metrics["m"].Points, 2)
	require.Len(t, s.pass(20*time.Second), 1, "the third point")
}

func TestOfTwoCollectorsTheLaterOneIsBelieved(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	answer := func(v float64, epoch int64, at time.Time, query string) {
		s.apply(SignalReceived{Source: SourceQuery, Name: "m", Signal: Signal{Value: &v, At: at, ExpiresAt: at.Add(time.Minute), Query: query, Epoch: epoch,
			EventID: fmt.Sprint("answer-", v, epoch, at.Unix())}})
	}
	value := func() float64 { return *s.state.Signals["query/q1"].Value }
	s.metric("m", "a", func(r *MetricRule) { r.Signal, r.Query, r.QueryID = "", "sum(x)", "q1" })
	answer(1, 2, s.now, "q1")
	answer(9, 1, s.now.Add(10*time.Second), "q1")
	require.InDelta(t, 1, value(), 0, "an earlier collector does not lead any more")
	answer(3, 2, s.now.Add(-time.Second), "q1")
	require.InDelta(t, 1, value(), 0, "a late copy")
	answer(4, 3, s.now.Add(-time.Second), "q1")
	require.InDelta(t, 4, value(), 0)
	s.now = s.now.Add(2 * time.Minute)
	answer(5, 1, s.now, "q1")
	require.InDelta(t, 5, value(), 0, "the later one is gone")

	s.evaluate()
	require.Equal(t, 5, *s.state.Metrics["m"].Nodes)
	s.policy.MetricRules[0].QueryID = "q2"
	s.evaluate()
	require.Contains(t, s.state.Metrics["m"].Unknown, "no answer to its query")
	answer(6, 1, s.now, "q1")
	s.evaluate()
	require.Contains(t, s.state.Metrics["m"].Unknown, "no answer to its query", "it is another policy's")
	require.Empty(t, s.state.clone().Signals["push/m"])
}

func TestAClockThatIsAheadDoesNotMakeAValueLastLonger(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	v := 1.0
	in := SignalReceived{Source: SourcePush, Name: "m", Signal: Signal{Value: &v, At: s.now.Add(time.Hour), ExpiresAt: s.now.Add(2 * time.Hour), EventID: "e"}}
	s.apply(in)
	require.Equal(t, s.now, s.state.Signals["push/m"].At)
	before := s.state
	s.now = s.now.Add(time.Minute)
	s.apply(in)
	require.Equal(t, before.Signals, s.state.Signals, "the same fact twice is the same state")
}

func TestWhatNoRuleLooksAtIsNotKept(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	s.metric("m", "a")
	s.say("m", 1)
	s.say("other", 1)
	s.evaluate()
	require.Len(t, s.state.Signals, 1)
	require.Len(t, s.state.Metrics, 1)
	s.policy.MetricRules = nil
	s.evaluate()
	require.Empty(t, s.state.Signals)
	require.Empty(t, s.state.Metrics)
}

func TestAMetricThatBecomesUnknownIsSaidOnce(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	s.metric("m", "a")
	s.say("m", 1)
	s.evaluate()
	s.now = s.now.Add(10 * time.Second)
	s.say("m", 1)
	require.False(t, only(t, s.evaluate()).Changed)
	s.now = s.now.Add(10 * time.Second)
	s.signal("m", nil)
	d := only(t, s.evaluate())
	require.True(t, d.Changed)
	require.Equal(t, CodeMetricUnknown, d.Reason.Code)
	s.now = s.now.Add(10 * time.Second)
	s.signal("m", nil)
	require.False(t, only(t, s.evaluate()).Changed)
}

func TestWithoutASnapshotEveryMetricRuleIsUnknown(t *testing.T) {
	t.Parallel()
	s := quickSetup(t, 1)
	s.metric("m", "a")
	s.say("m", 9)
	s.obs.Known = false
	res := s.evaluate()
	require.Empty(t, res.Claims)
	require.Equal(t, Unknown, ruleOf(only(t, res), "metric m").Verdict)
}

func TestNumbersAreWrittenForPeople(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 12: "12", 0.8733333: "0.873", 123456789: "123456789", 1e300: "1e+300", 0.00012: "0.00012", -2.5: "-2.5"} {
		require.Equal(t, want, number(v))
	}
}
