package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func someMetricRule(t *rapid.T, name string, pools []Pool) MetricRule {
	r := MetricRule{Name: name, Pool: rapid.SampledFrom(pools).Draw(t, "pool of "+name).Name, Interval: 15 * time.Second,
		StaleAfter: time.Duration(rapid.IntRange(1, 5).Draw(t, "stale after")) * time.Minute, MayAdd: rapid.Bool().Draw(t, "may add"), MayRemove: rapid.Bool().Draw(t, "may remove")}
	if rapid.Bool().Draw(t, "of the snapshot") {
		r.Metric = rapid.SampledFrom([]string{MetricCPURequests, MetricMemoryRequests, MetricCPUUsage, MetricPendingPods}).Draw(t, "metric")
	} else {
		r.Signal = name
	}
	some := func(label string, from, to int) *int { return new(rapid.IntRange(from, to).Draw(t, label)) }
	switch rapid.IntRange(0, 3).Draw(t, "strategy") {
	case 0:
		r.TargetValue = &TargetValue{Target: rapid.Float64Range(0, 4).Draw(t, "target"), DeadBand: 0.01}
	case 1:
		r.Threshold = &Threshold{AtLeast: new(rapid.Float64Range(0, 4).Draw(t, "at least")), Points: rapid.IntRange(0, 3).Draw(t, "points"), Of: rapid.IntRange(0, 5).Draw(t, "of")}
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			r.Threshold.Delta = some("delta", -3, 3)
		case 1:
			r.Threshold.Percent = new(rapid.Float64Range(-100, 200).Draw(t, "percent"))
		case 2:
			r.Threshold.Nodes = some("nodes", 0, 9)
		}
	case 2:
		r.PassThrough = true
	case 3:
		r.Fixed = some("fixed", 0, 9)
	}
	return r
}

// crowd is a pool whose metric rule alone decides, and the world around it.
func crowd(t testing.TB, r MetricRule, nodes int) *setup {
	s := quickSetup(t, nodes)
	s.policy.StartupGrace = 0
	s.pool("a").Min, s.pool("a").Max = 1, 12
	r.Name, r.Pool, r.Signal, r.Interval, r.StaleAfter, r.MayAdd, r.MayRemove = "m", "a", "m", 10*time.Second, time.Minute, true, true
	s.policy.MetricRules = []MetricRule{r}
	return s
}

// nodesNow is how many nodes are there or on their way.
func (s *setup) nodesNow() int { return physical(s, s.state, "a") }

func TestNoiseWithinTheDeadBandChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		band := rapid.Float64Range(0.01, 0.3).Draw(rt, "band")
		target := rapid.Float64Range(0.1, 1000).Draw(rt, "target")
		n := rapid.IntRange(1, 12).Draw(rt, "nodes")
		s := crowd(t, MetricRule{TargetValue: &TargetValue{target, band}}, n)
		for range 60 {
			s.now = s.now.Add(10 * time.Second)
			s.say("m", target*(1+rapid.Float64Range(-band*0.999, band*0.999).Draw(rt, "noise")))
			res := s.evaluate()
			require.Empty(rt, res.Claims)
			require.Empty(rt, res.Drains)
		}
	})
}

// A load of some nodes, spread over those that there are, with noise: the pool
// comes to rest, and adds no node that it then removes.
func TestATargetIsReachedAndKeptUnderNoise(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		load := rapid.Float64Range(0.5, 9).Draw(rt, "load") // in nodes at the target
		noise := rapid.Float64Range(0, 0.08).Draw(rt, "noise")
		s := crowd(t, MetricRule{TargetValue: &TargetValue{1, 0.1}}, rapid.IntRange(1, 12).Draw(rt, "nodes"))
		var turns []string
		last := ""
		for range 300 {
			s.now = s.now.Add(10 * time.Second)
			s.say("m", load/float64(s.nodesNow())*(1+rapid.Float64Range(-noise, noise).Draw(rt, "now")))
			res := s.evaluate()
			if d := only(t, res); d.Verdict != Held && d.Verdict != last {
				turns, last = append(turns, fmt.Sprint(s.now.Sub(t0), " ", d.Verdict, " ", d.Delta)), d.Verdict
			}
			s.arrive()
		}
		require.LessOrEqual(rt, len(turns), 2, "it goes up and down: %v", turns)
	})
}

func TestPointsThatCrossABoundTooSeldomDoNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		points := rapid.IntRange(2, 5).Draw(rt, "points")
		of := rapid.IntRange(points, 8).Draw(rt, "of")
		high, delta := 80.0, rapid.SampledFrom([]int{-2, -1, 1, 2}).Draw(rt, "delta")
		s := crowd(t, MetricRule{Threshold: &Threshold{AtLeast: &high, Points: points, Of: of, Delta: &delta}}, 4)
		var window []bool
		for range 60 {
			s.now = s.now.Add(10 * time.Second)
			in := rapid.IntRange(0, 2).Draw(rt, "in") == 0
			n := 0
			for _, w := range window[max(0, len(window)-of+1):] {
				if w {
					n++
				}
			}
			in = in && n+1 < points
			window = append(window, in)
			s.say("m", map[bool]float64{true: 90, false: 10}[in])
			res := s.evaluate()
			require.Empty(rt, res.Claims)
			require.Empty(rt, res.Drains)
		}
	})
}

// Whatever a rule said before, once it is unknown nothing goes below what it last
// asked for, or below what is there where nobody knows.
func TestAnUnknownMetricNeverScalesDown(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := quickSetup(t, rapid.IntRange(1, 8).Draw(rt, "nodes"))
		s.policy.StartupGrace = 0
		s.pool("a").UtilizationThreshold = 0.5
		s.rule("Quiet", "a", Down, 3)
		r := someMetricRule(rt, "m", s.policy.Pools)
		r.Metric, r.Signal = "", "m"
		s.policy.MetricRules = []MetricRule{r}
		for range rapid.IntRange(0, 20).Draw(rt, "steps") {
			s.now = s.now.Add(20 * time.Second)
			s.say("m", rapid.Float64Range(-1, 10).Draw(rt, "value"))
			s.evaluate()
			s.arrive()
		}
		st := s.state.Metrics["m"]
		s.now = s.now.Add(time.Second)
		if rapid.Bool().Draw(rt, "it says so") {
			s.signal("m", nil)
		} else {
			s.now = s.now.Add(time.Hour)
		}
		keeps := s.nodesNow()
		switch {
		case st.Value != nil && st.Nodes == nil:
			return // it asked for none in particular
		case st.Value != nil:
			keeps = min(*st.Nodes, keeps)
		}
		for range 60 {
			s.now = s.now.Add(20 * time.Second)
			s.fire("Quiet")
			for _, d := range s.evaluate().Decisions {
				require.NotEqual(rt, CodeMetric, d.Reason.Code, "a metric that is unknown adds and removes nothing")
			}
			s.arrive()
			require.GreaterOrEqual(rt, s.nodesNow(), keeps)
		}
	})
}
