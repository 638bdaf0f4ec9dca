package scaling

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// beside judges a candidate beside what s evaluates.
type beside struct {
	*setup
	candidate Policy
	own       State
}

func newBeside(s *setup, candidate Policy) *beside {
	return &beside{setup: s, candidate: candidate, own: s.state.clone()}
}

func (b *beside) judge() (live, candidate Result) {
	b.t.Helper()
	b.own.Alerts, b.own.Signals = cloneMap(b.state.Alerts), cloneMap(b.state.Signals) // the same facts
	before := b.state
	live = b.evaluate()
	situation := b.own.Situation(before)
	candidate = Evaluate(b.now, b.candidate, situation, b.obs, testSeed(fmt.Sprint("candidate-", b.step)))
	b.own = Settle(situation, candidate, live)
	return live, candidate
}

func TestACandidateThatIsThePolicyInForceDecidesTheSameWhateverHappens(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		s.policy.MaxRemovalsPerHour = rapid.IntRange(0, 3).Draw(rt, "removals an hour")
		b := newBeside(s, s.policy)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			happen(rt, s)
			b.candidate = s.policy // which may have been changed, too
			live, candidate := b.judge()
			require.Len(rt, candidate.Decisions, len(live.Decisions))
			for i, l := range live.Decisions {
				c := candidate.Decisions[i]
				require.Equal(rt, l.Pool, c.Pool)
				require.Equal(rt, l.Verdict, c.Verdict, "%s: in force %s, candidate %s", l.Pool, l.Reason.Message, c.Reason.Message)
				require.Equal(rt, l.Delta, c.Delta)
				require.Equal(rt, l.Reason.Code, c.Reason.Code)
				if l.Verdict == Down {
					require.Equal(rt, l.Nodes, c.Nodes)
				}
			}
		}
	})
}

func TestWhatACandidateDecidesIsNotKeptWhateverItIs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		other := s.policy
		other.Pools = append([]Pool(nil), other.Pools...)
		for i := range other.Pools {
			p := &other.Pools[i]
			p.Max += rapid.IntRange(0, 4).Draw(rt, "more")
			p.Unneeded = time.Duration(rapid.IntRange(0, 3).Draw(rt, "unneeded")) * time.Minute
			p.UtilizationThreshold = rapid.Float64Range(0, 1).Draw(rt, "threshold")
			p.MinLifetime, p.ScaleDownAfterAdd, p.Stabilization = 0, 0, 0
		}
		b := newBeside(s, other)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			happen(rt, s)
			unneeded := b.own.Unneeded
			live, candidate := b.judge()
			require.Empty(rt, b.own.Claims)
			require.Empty(rt, b.own.Requests)
			for node := range b.own.Drains {
				require.Contains(rt, b.state.Drains, node, "a drain that nobody asked for")
			}
			for _, d := range candidate.Drains {
				taken := slices.ContainsFunc(live.Drains, func(o Order) bool { return o.Node == d.Node })
				if since, ok := unneeded[d.Node]; ok && !taken {
					require.Equal(rt, since, b.own.Unneeded[d.Node], "it stays, as unneeded as it was")
				}
			}
			for name, p := range b.own.Situation(b.state).Pools {
				require.Equal(rt, b.state.Pools[name].AddedAt, p.AddedAt)
				require.Equal(rt, b.state.Pools[name].RemovedAt, p.RemovedAt)
			}
		}
	})
}

func TestTheOwnStateOfACandidateSurvivesItsEncoding(t *testing.T) {
	t.Parallel()
	s := newSetup(t, testPool("a"))
	b := newBeside(s, s.policy)
	b.judge()
	raw, err := json.Marshal(b.own)
	require.NoError(t, err)
	var back State
	require.NoError(t, json.Unmarshal(raw, &back))
	require.Equal(t, back.Situation(s.state).Digest(), b.own.Situation(s.state).Digest())
}

func TestRemovalsOfThePolicyInForceCountForTheCandidatesLimitAndItsOwnDoNot(t *testing.T) {
	t.Parallel()
	now := t0.Add(time.Minute)
	situation := State{Drains: map[string]Drain{"lasts": {Node: "lasts", DecidedAt: t0}, "off": {Node: "off", DecidedAt: t0.Add(time.Second)}}}
	// The candidate would remove a node and call one off; the policy in force removes
	// two and calls the other one off.
	decided := Result{State: State{Now: now, Removals: []time.Time{now.Add(-time.Hour), t0.Add(time.Second), now}},
		Drains: []Order{{Node: "a", Goal: GoalRemove}, {Node: "c", Goal: GoalDrain}}, Cancels: []Order{{Node: "lasts"}}}
	live := Result{Drains: []Order{{Node: "x", Goal: GoalRemove}, {Node: "y", Goal: GoalRemove}}, Cancels: []Order{{Node: "off"}, {Node: "cordoned"}}}
	require.Equal(t, []time.Time{t0, now, now}, settledRemovals(situation, decided, live))
}
