package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// daily is a window that begins at t0 plus after, every day.
func daily(after, lasts time.Duration) Window {
	return Window{Schedule: t0.Add(after).Format("4 15 * * *"), Duration: lasts}
}

func TestOfSeveralOpenSchedulesTheHighestMinAndTheLowestMaxCount(t *testing.T) {
	t.Parallel()
	now := daily(0, time.Hour)
	later := daily(time.Hour, time.Hour)
	for name, c := range map[string]struct {
		schedules []Schedule
		min, max  int
	}{
		"none":                      {nil, 2, 8},
		"one that is closed":        {[]Schedule{{Name: "a", Window: later, Min: new(5), Max: new(6)}}, 2, 8},
		"a higher min":              {[]Schedule{{Name: "a", Window: now, Min: new(5)}}, 5, 8},
		"a lower min":               {[]Schedule{{Name: "a", Window: now, Min: new(0)}}, 0, 8},
		"a higher max":              {[]Schedule{{Name: "a", Window: now, Max: new(20)}}, 2, 20},
		"a lower max":               {[]Schedule{{Name: "a", Window: now, Max: new(3)}}, 2, 3},
		"two of one name":           {[]Schedule{{Name: "a", Window: now, Min: new(3)}, {Name: "a", Window: now, Min: new(5)}}, 3, 8},
		"the highest min":           {[]Schedule{{Name: "a", Window: now, Min: new(3)}, {Name: "b", Window: now, Min: new(5)}, {Name: "c", Window: later, Min: new(7)}}, 5, 8},
		"the lowest max":            {[]Schedule{{Name: "a", Window: now, Max: new(9)}, {Name: "b", Window: now, Max: new(20)}, {Name: "c", Window: later, Max: new(1)}}, 2, 9},
		"never more than the max":   {[]Schedule{{Name: "a", Window: now, Min: new(5)}, {Name: "b", Window: now, Max: new(3)}}, 3, 3},
		"what is not understood":    {[]Schedule{{Name: "a", Window: Window{Schedule: "x", Duration: time.Hour}, Min: new(5)}}, 2, 8},
		"a min above the pool's":    {[]Schedule{{Name: "a", Window: now, Min: new(50)}}, 8, 8},
		"a max below the pool's":    {[]Schedule{{Name: "a", Window: now, Max: new(1)}}, 1, 1},
		"an end that is not found":  {[]Schedule{{Name: "a", Window: Window{Schedule: "* * * * *", Duration: time.Minute}, Min: new(4)}}, 4, 8},
		"a zone that there is not":  {[]Schedule{{Name: "a", Window: Window{Schedule: "* * * * *", Duration: time.Hour, Timezone: "Mars"}, Min: new(4)}}, 2, 8},
		"min and max of two others": {[]Schedule{{Name: "a", Window: now, Min: new(4), Max: new(9)}, {Name: "b", Window: now, Min: new(3), Max: new(10)}}, 4, 9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testPool("a")
			p.Min, p.Max, p.Schedules = 2, 8, c.schedules
			l := p.LimitsAt(t0.Add(time.Second))
			require.Equal(t, [2]int{c.min, c.max}, [2]int{l.Min, l.Max})
		})
	}
}

func TestAWindowThatBeginsAddsNodesWithoutASnapshotAndOneThatEndsObeysTheGuards(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1")
	p := s.pool("a")
	p.Min, p.Max, p.ScaleDownAfterAdd, p.MinLifetime = 1, 5, 0, 0
	p.Schedules = []Schedule{{Name: "office-hours", Min: new(3),
		Window: Window{Schedule: "30 13 * * *", Duration: 2 * time.Hour, Timezone: "Europe/Berlin"}}} // 12:30 UTC
	s.state.StartedAt = t0.Add(-time.Hour)

	d := only(t, s.evaluate())
	require.Equal(t, 1, d.Min)
	rule := ruleOf(d, "schedule office-hours")
	require.Equal(t, "closed", rule.Value)
	require.Equal(t, "opens at 13:30 Europe/Berlin", rule.Message)
	r := s.evaluate()
	for r.NextAt.Before(t0.Add(30 * time.Minute)) { // unneeded clocks and the like
		s.now, s.frozen = r.NextAt, true
		r = s.evaluate()
		require.Empty(t, r.Claims)
	}

	// What wakes decision is a timer: the snapshot is an old one.
	require.Equal(t, t0.Add(30*time.Minute), r.NextAt, "the window begins then")
	s.now = r.NextAt
	r = s.evaluate()
	require.Len(t, r.Claims, 2)
	require.Equal(t, CauseMinimum, r.Claims[0].Cause)
	d = only(t, r)
	require.Equal(t, 3, d.Min)
	require.Equal(t, "pool a has 1 node, its minimum is 3 until 15:30 Europe/Berlin (schedule office-hours)", d.Reason.Message)
	require.Equal(t, "min is 3 until 15:30 Europe/Berlin (schedule office-hours)", ruleOf(d, "schedule office-hours").Message)
	for _, c := range r.Claims {
		s.ready(c)
	}
	s.frozen = false
	require.Empty(t, s.pass(119*time.Minute))
	d = only(t, s.evaluate())
	require.Equal(t, CodeAtMin, d.Reason.Code)
	g := guardOf(d, "min")
	require.Equal(t, t0.Add(150*time.Minute), g.Until)
	require.Contains(t, g.Message, "its minimum is 3 until 15:30 Europe/Berlin (schedule office-hours)")
	require.Equal(t, t0.Add(150*time.Minute), s.evaluate().NextAt, "and ends then")

	// The end lifts the minimum and no other guard: one node at a time.
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "x", Until: s.now.Add(10 * time.Minute)})
	require.Empty(t, s.pass(9*time.Minute), "a pause holds")
	first := drained(s.until(5 * time.Minute))
	require.Len(t, first, 1)
	require.Empty(t, drained(s.evaluate()), "one at a time")
	s.drop(first[0])
	second := drained(s.until(5 * time.Minute))
	require.Len(t, second, 1)
	s.drop(second[0])
	require.Empty(t, s.pass(time.Hour), "the pool's own minimum is back")
	require.Equal(t, "opens at 2026-03-02 13:30 Europe/Berlin", ruleOf(only(t, s.evaluate()), "schedule office-hours").Message)
}

func TestAMaximumOfAScheduleCapsAndRemovesNothing(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	p := s.pool("a")
	p.Max, p.UtilizationThreshold = 5, 0.1
	p.Schedules = []Schedule{{Name: "night", Window: daily(0, 6*time.Hour), Max: new(2)}}
	s.class("web", 800)
	for _, n := range []string{"a-1", "a-2", "a-3"} {
		s.pods("web", n, 1)
	}
	s.pods("web", "", 1)
	require.Empty(t, s.pass(time.Hour))
	d := only(t, s.evaluate())
	require.Equal(t, CodeAtMax, d.Reason.Code)
	g := guardOf(d, "max")
	require.Contains(t, g.Message, "of at most 2 until 18:00 UTC (schedule night)")
	require.Equal(t, t0.Add(6*time.Hour), g.Until)
	require.Contains(t, d.WouldChange, "raise max of pool a above 2 until 18:00 UTC (schedule night)")

	s.now, s.frozen = s.evaluate().NextAt, true
	require.Equal(t, t0.Add(6*time.Hour), s.now)
	require.Len(t, s.evaluate().Claims, 1, "the pod gets its node when the window ends")
}

func TestAWindowsBeginningAndEndAreSaidOnce(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1")
	p := s.pool("a")
	p.Min = 1
	p.Schedules = []Schedule{{Name: "x", Window: daily(30*time.Minute, time.Hour), Min: new(1)}}
	said := 0
	s.pass(20 * time.Minute)
	for s.now.Before(t0.Add(2 * time.Hour)) {
		s.now = s.now.Add(10 * time.Second)
		if only(t, s.evaluate()).Changed {
			said++
		}
	}
	require.Equal(t, 2, said)
}

func TestWindowsThatFollowEachOtherAreOne(t *testing.T) {
	t.Parallel()
	week := Window{Schedule: "0 8 * * 1-5", Duration: 24 * time.Hour}
	until, in := week.window(time.Date(2026, 3, 3, 12, 0, 0, 0, time.UTC)) // a Tuesday
	require.True(t, in)
	require.Equal(t, time.Date(2026, 3, 7, 8, 0, 0, 0, time.UTC), until, "Saturday")
	until, in = Window{Schedule: "@daily", Duration: 24 * time.Hour}.window(t0)
	require.True(t, in)
	require.Zero(t, until, "always")
}

func TestOverlapsAreFoundHoweverRare(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		a, b Window
		want bool
	}{
		"day and night":             {Window{"0 8 * * *", 12 * time.Hour, ""}, Window{"0 20 * * *", 12 * time.Hour, ""}, false},
		"a minute too long":         {Window{"0 8 * * *", 12*time.Hour + time.Minute, ""}, Window{"0 20 * * *", 12 * time.Hour, ""}, true},
		"a window within another":   {Window{"0 8 * * 1-5", 10 * time.Hour, ""}, Window{"0 12 * * *", time.Hour, ""}, true},
		"weekdays and weekends":     {Window{"0 0 * * 1-5", 24 * time.Hour, ""}, Window{"0 0 * * 0,6", 24 * time.Hour, ""}, false},
		"Christmas on a weekday":    {Window{"0 0 * * 1-5", 24 * time.Hour, ""}, Window{"0 0 25 12 *", 24 * time.Hour, ""}, true},
		"the leap day":              {Window{"0 0 29 2 *", time.Hour, ""}, Window{"30 0 * 2 *", time.Hour, ""}, true},
		"one clock, two zones":      {Window{"0 8 * * *", time.Hour, "Europe/Berlin"}, Window{"0 8 * * *", time.Hour, "America/New_York"}, false},
		"summer time alone":         {Window{"0 6 * * *", time.Hour, "UTC"}, Window{"0 8 * * *", time.Hour, "Europe/Berlin"}, true},
		"the same":                  {Window{"0 8 * * *", time.Hour, ""}, Window{"0 8 * * *", time.Hour, ""}, true},
		"often and seldom":          {Window{"*/5 * * * *", time.Minute, ""}, Window{"2 0 1 1 *", time.Minute, ""}, false},
		"what can't be understood":  {Window{"x", time.Hour, ""}, Window{"0 8 * * *", time.Hour, ""}, false},
		"a day that does not come":  {Window{"0 0 30 2 *", time.Hour, ""}, Window{"* * * * *", time.Hour, ""}, false},
		"a day long, an hour short": {Window{"0 12 * * *", 23 * time.Hour, ""}, Window{"0 11 * * *", time.Hour, ""}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, ws := range [][2]Window{{c.a, c.b}, {c.b, c.a}} {
				at, found := ws[0].Overlap(ws[1])
				require.Equal(t, c.want, found)
				if found {
					_, a := ws[0].window(at)
					_, b := ws[1].window(at)
					require.True(t, a && b, at)
				}
			}
		})
	}
}

func ruleOf(d Decision, name string) *Rule {
	for i := range d.Rules {
		if d.Rules[i].Rule == name {
			return &d.Rules[i]
		}
	}
	return &Rule{}
}
