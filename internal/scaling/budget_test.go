package scaling

import (
	"testing"
	"time"
	_ "time/tzdata" // wherever the tests run

	"github.com/stretchr/testify/require"
)

func TestABudgetIsUnderstoodOrNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		b     RemovalBudget
		field string
	}{
		"a number":          {RemovalBudget{Nodes: "2"}, ""},
		"none":              {RemovalBudget{Nodes: "0"}, ""},
		"a share":           {RemovalBudget{Nodes: "10%"}, ""},
		"a window":          {RemovalBudget{Nodes: "0", Window: Window{Schedule: "0 9 * * 1-5", Duration: 8 * time.Hour, Timezone: "Europe/Berlin"}}, ""},
		"a word":            {RemovalBudget{Nodes: "0", Window: Window{Schedule: "@daily", Duration: time.Hour}}, ""},
		"no number":         {RemovalBudget{Nodes: "few"}, "nodes"},
		"nothing":           {RemovalBudget{}, "nodes"},
		"below nothing":     {RemovalBudget{Nodes: "-1"}, "nodes"},
		"more than all":     {RemovalBudget{Nodes: "101%"}, "nodes"},
		"no schedule":       {RemovalBudget{Nodes: "1", Window: Window{Schedule: "at nine", Duration: time.Hour}}, "schedule"},
		"no beginning":      {RemovalBudget{Nodes: "1", Window: Window{Schedule: "@every 1h", Duration: time.Hour}}, "schedule"},
		"a zone inside":     {RemovalBudget{Nodes: "1", Window: Window{Schedule: "CRON_TZ=Asia/Tokyo 0 9 * * *", Duration: time.Hour}}, "schedule"},
		"a zone alone":      {RemovalBudget{Nodes: "1", Window: Window{Schedule: "TZ=UTC", Duration: time.Hour}}, "schedule"},
		"no such day":       {RemovalBudget{Nodes: "1", Window: Window{Schedule: "0 9 31 2 *", Duration: time.Hour}}, "schedule"},
		"no duration":       {RemovalBudget{Nodes: "1", Window: Window{Schedule: "0 9 * * *"}}, "duration"},
		"a duration alone":  {RemovalBudget{Nodes: "1", Window: Window{Duration: time.Hour}}, "duration"},
		"no zone":           {RemovalBudget{Nodes: "1", Window: Window{Timezone: "Mars/Olympus"}}, "timezone"},
		"any machine's own": {RemovalBudget{Nodes: "1", Window: Window{Timezone: "Local"}}, "timezone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			field, err := c.b.Check()
			require.Equal(t, c.field, field)
			if field != "" {
				require.Error(t, err)
			}
		})
	}
}

func TestAWindowBeginsAndEndsByItsOwnClock(t *testing.T) {
	t.Parallel()
	berlin := RemovalBudget{Nodes: "0", Window: Window{Schedule: "0 9 * * 1-5", Duration: 8 * time.Hour, Timezone: "Europe/Berlin"}}
	for _, c := range []struct {
		b    RemovalBudget
		at   string
		ends string // "": outside
	}{
		{berlin, "2026-03-02T07:59:59Z", ""},                     // a Monday, 8:59:59
		{berlin, "2026-03-02T08:00:00Z", "2026-03-02T16:00:00Z"}, // 9:00
		{berlin, "2026-03-02T15:59:59Z", "2026-03-02T16:00:00Z"},
		{berlin, "2026-03-02T16:00:00Z", ""},
		{berlin, "2026-03-07T12:00:00Z", ""},                     // Saturday
		{berlin, "2026-04-01T07:00:00Z", "2026-04-01T15:00:00Z"}, // summer time
		{RemovalBudget{Nodes: "0", Window: Window{Schedule: "0 22 * * *", Duration: 8 * time.Hour}}, "2026-03-02T05:00:00Z", "2026-03-02T06:00:00Z"}, // from the day before
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		require.NoError(t, err)
		ends, in := c.b.window(at)
		require.Equal(t, c.ends != "", in, c.at)
		if in {
			require.Equal(t, c.ends, ends.Format(time.RFC3339), c.at)
		}
	}
}

func TestTheLowestBudgetLimitsHowManyNodesLeave(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		budgets []RemovalBudget
		leave   int
		code    string
	}{
		"none":                    {nil, 3, CodeRemovalsInFlight},
		"a higher one":            {[]RemovalBudget{{Nodes: "4"}}, 3, CodeRemovalsInFlight},
		"a number":                {[]RemovalBudget{{Nodes: "2"}}, 2, CodeBudget},
		"a share, rounded up":     {[]RemovalBudget{{Nodes: "25%"}}, 2, CodeBudget}, // of five
		"the lowest of several":   {[]RemovalBudget{{Nodes: "2"}, {Nodes: "1"}}, 1, CodeBudget},
		"one whose time is not":   {[]RemovalBudget{{Nodes: "0", Window: Window{Schedule: "0 3 1 1 *", Duration: time.Hour}}}, 3, CodeRemovalsInFlight},
		"what is not understood":  {[]RemovalBudget{{Nodes: "some"}}, 0, CodeBudget},
		"no schedule that is one": {[]RemovalBudget{{Nodes: "0", Window: Window{Schedule: "x", Duration: time.Hour}}}, 0, CodeBudget},
		"no zone that is one":     {[]RemovalBudget{{Nodes: "0", Window: Window{Schedule: "* * * * *", Duration: time.Hour, Timezone: "x"}}}, 0, CodeBudget},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2", "a-3", "a-4", "a-5")
			p := s.pool("a")
			p.Min, p.Max, p.MaxRemovals, p.Budgets = 0, 10, 3, c.budgets
			s.foreign("server", 4000)
			var gone []string
			for s.now.Before(t0.Add(11 * time.Minute)) {
				s.now = s.now.Add(10 * time.Second)
				r := s.evaluate()
				for _, n := range drained(r) {
					gone = append(gone, n)
					s.record(n).Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: r.Drains[0].DecisionID}
				}
			}
			require.Len(t, gone, c.leave)
			d := only(t, s.evaluate())
			require.Equal(t, c.code, d.Reason.Code)
		})
	}
}

func TestABudgetThatIsSpentSaysWhenItLifts(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").Budgets = []RemovalBudget{{Nodes: "0", Window: Window{Schedule: t0.Add(5 * time.Minute).Format("4 15 * * *"), Duration: time.Hour}}}
	require.Empty(t, s.pass(30*time.Minute))
	d := only(t, s.evaluate())
	require.Equal(t, CodeBudget, d.Reason.Code)
	g := guardOf(d, "budget")
	require.NotNil(t, g)
	require.Equal(t, t0.Add(65*time.Minute), g.Until)
	require.Contains(t, g.Lifts, "when the window ends")

	// A person passes it with an override, and not without.
	s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
	require.Empty(t, s.pass(time.Minute))
	s.state.Requests[0].Override = true
	require.Len(t, drained(s.until(time.Minute)), 1)
}
