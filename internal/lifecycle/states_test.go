package lifecycle

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// spots are the states of a table, each with each goal that it has.
type spot struct{ state, goal string }

// spotsOf walks the table from nothing; a goal may change with a new request only.
func spotsOf(t Table) map[spot][]spot {
	goals := []string{""}
	if t.Name == "drain" {
		goals = []string{GoalCordon, GoalDrain, GoalRemove}
	}
	out := map[spot][]spot{}
	var walk func(from spot)
	walk = func(from spot) {
		if _, seen := out[from]; seen {
			return
		}
		out[from] = []spot{}
		for _, r := range t.Rows {
			if r.From != from.state || from.state != "" && r.Goals != nil && !slices.Contains(r.Goals, from.goal) {
				continue
			}
			for _, g := range goals {
				if g != from.goal && r.On != string(OnDrainRequested) {
					continue
				}
				out[from] = append(out[from], spot{r.To, g})
				walk(spot{r.To, g})
			}
		}
	}
	for _, g := range goals {
		walk(spot{"", g})
	}
	return out
}

func tables() []Table { return []Table{NodeTable(), DrainTable()} }

func TestEveryStateOfATableIsDescribedAndReached(t *testing.T) {
	t.Parallel()
	for _, table := range tables() {
		spots := spotsOf(table)
		for s := range spots {
			if s.state == "" {
				continue
			}
			d := describe(table.States, s.state, s.goal)
			require.NotEmpty(t, d.Means, "%s %s with goal %q is not described", table.Name, s.state, s.goal)
		}
		for _, d := range table.States {
			goals := d.Goals
			if goals == nil {
				goals = []string{map[string]string{"node": "", "drain": GoalRemove}[table.Name]}
			}
			for _, g := range goals {
				require.Contains(t, spots, spot{d.Name, g}, "%s %s is never reached", table.Name, d.Name)
			}
		}
	}
}

func TestFromEveryStateAWayLeadsToAnEnd(t *testing.T) {
	t.Parallel()
	for _, table := range tables() {
		spots := spotsOf(table)
		final := func(s spot) bool { return s.state != "" && describe(table.States, s.state, s.goal).Waits == "" }
		ends := map[spot]bool{}
		for grown := true; grown; {
			grown = false
			for s, next := range spots {
				if !ends[s] && (final(s) || slices.ContainsFunc(next, func(n spot) bool { return ends[n] })) {
					ends[s], grown = true, true
				}
			}
		}
		for s := range spots {
			require.True(t, ends[s], "from %s %q (goal %q) nothing leads to an end", table.Name, s.state, s.goal)
		}
	}
}

func TestAStateThatIsNotFinalHasADeadlineOrNamesWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	for _, table := range tables() {
		for _, r := range table.Rows {
			goals := r.Goals
			if goals == nil {
				goals = []string{GoalRemove}
			}
			for _, g := range goals {
				d := describe(table.States, r.To, g)
				leaves := slices.ContainsFunc(table.Rows, func(o Row) bool { return o.From == r.To && o.On != string(OnDrainRequested) })
				require.Equal(t, leaves, d.Waits != "", "%s %s: waits %q", table.Name, r.To, d.Waits)
				if r.Deadline == DeadlineNone && leaves {
					require.NotEmpty(t, d.Waits, "%s %s has no deadline", table.Name, r.To)
				}
				require.NotEmpty(t, d.Effect.Explain(), "%s %s: effect %q", table.Name, r.To, d.Effect)
			}
		}
	}
}

func TestAStateIsUndoneTheSameWayHoweverItWasReached(t *testing.T) {
	t.Parallel()
	for _, table := range tables() {
		undo := map[string]Undo{}
		for _, r := range table.Rows {
			for _, g := range []string{"", GoalCordon, GoalDrain, GoalRemove} {
				if r.Goals != nil && !slices.Contains(r.Goals, g) || r.Goals == nil && g != "" {
					continue
				}
				key := fmt.Sprint(r.To, "/", g)
				if was, seen := undo[key]; seen {
					require.Equal(t, was, r.Undo, "%s %s", table.Name, key)
				}
				undo[key] = r.Undo
			}
		}
	}
}

func TestWhatAMessageSaysIsPossibleOrNoNewsOrRefused(t *testing.T) {
	t.Parallel()
	for e, phases := range nodeMoot {
		for _, p := range phases {
			require.False(t, p.Can(e), "%s in %s is possible: it can't be no news", e, p)
		}
	}
	for _, c := range []struct {
		phase Phase
		on    NodeEvent
	}{
		{Failed, OnReady},    // it came up after its deadline
		{Lost, OnRegistered}, // it came back
		{Removed, OnReady},
		{Failed, OnDrained},
		{Lost, OnDrained},
	} {
		require.True(t, c.phase.Impossible(c.on), "%s in %s", c.on, c.phase)
	}
	require.False(t, Ready.Impossible(OnReady))
	require.False(t, Ready.Impossible(OnUnready))
	require.False(t, Phase("").Impossible(OnReady))
}

// Whatever happens to a node, in whatever order: what is refused changes nothing,
// and what is not leads to a state of the table with its deadline.
func TestARecordIsAlwaysInAStateOfTheTable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := Node{NotAfter: t0.Add(time.Minute), RegisterWithin: time.Minute}
		now, started := t0, 0
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			e := rapid.SampledFrom(NodeEvents).Draw(t, "event")
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			before := n
			if err := n.On(e, now); err != nil {
				require.Equal(t, before, n)
				require.False(t, before.Phase.Can(e))
				continue
			}
			if e == OnStarted {
				started++
			}
			require.LessOrEqual(t, started, 1, "a machine was started twice for one claim")
			require.NotEmpty(t, describe(nodeStates, string(n.Phase), "").Means, n.Phase)
			require.Equal(t, n.Phase == Claimed || n.Phase.Waiting(), !n.Deadline.IsZero(), "deadline of %s", n.Phase)
			require.Equal(t, now, n.Since)
		}
	})
}

func TestADrainIsAlwaysInAStateOfTheTable(t *testing.T) {
	t.Parallel()
	goals := []string{GoalCordon, GoalDrain, GoalRemove}
	rapid.Check(t, func(t *rapid.T) {
		var d Drain
		now := t0
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			e := rapid.SampledFrom(DrainEvents).Draw(t, "event")
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			before, final := d, d.Goal == GoalRemove && d.Phase == DrainDrained
			var err error
			if e == OnDrainRequested {
				err = d.Request(rapid.SampledFrom(goals).Draw(t, "goal"), time.Minute, now)
			} else {
				err = d.On(e, now)
			}
			if err != nil {
				require.Equal(t, before, d)
				continue
			}
			if final {
				require.Equal(t, DrainDone, d.Phase, "past the point of no return only the node's end follows")
			}
			require.NotEmpty(t, describe(drainStates, string(d.Phase), d.Goal).Means, "%s with goal %s", d.Phase, d.Goal)
			require.Equal(t, now, d.Since)
		}
	})
}
