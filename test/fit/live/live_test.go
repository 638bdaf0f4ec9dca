//go:build e2e

package live

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// tally is what the cases of a test came to.
type tally struct {
	sum      fit.Outcome
	cases    int
	decided  map[string]int
	unjudged int
}

// TestTheRealSchedulerDoesWhatTheSimulationSays runs FIT_CASES cases from FIT_SEED
// on, and then as many more as it takes until each constraint has decided one in
// twenty.
func TestTheRealSchedulerDoesWhatTheSimulationSays(t *testing.T) {
	k := newCluster(t)
	s, err := fit.StartScheduler(program)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	first, n := firstSeed(t), number(t, "FIT_CASES", 150)
	a := &tally{decided: map[string]int{}}
	seed := uint64(first)
	for range n {
		a.try(t, k, s, seed)
		seed++
	}
	for last := seed + 40*uint64(n); seed < last && a.cases < 2*n; seed++ {
		lacking := a.lacking()
		if len(lacking) == 0 {
			break
		}
		// Before the scheduler has placed anything it is only likely.
		by, err := fit.DecidedBy(fit.Generate(seed))
		require.NoError(t, err)
		if slices.ContainsFunc(by, func(k string) bool { return slices.Contains(lacking, k) }) {
			a.try(t, k, s, seed)
		}
	}
	a.verdict(t)
}

func (a *tally) try(t *testing.T, k *cluster, s *fit.Scheduler, seed uint64) {
	t.Helper()
	ctx := context.Background()
	require.NoError(t, k.clear(ctx), "clear the cluster for seed %d", seed)
	o, err := newTrial(k, s, seed).run(ctx)
	a.cases++
	if err != nil {
		a.unjudged++
		t.Logf("seed %d could not be judged: %v", seed, err)
		return
	}
	a.sum.Add(o.Outcome)
	for _, k := range o.By {
		a.decided[k]++
	}
	for _, what := range slices.Concat(o.Unasked, o.Stranded, o.Wrong) {
		t.Logf("seed %d: %s", seed, what)
	}
}

// lacking are the constraints that have decided too few cases.
func (a *tally) lacking() []string {
	var out []string
	for _, k := range fit.Constraints {
		if share(a.decided[k.Name], a.cases) < 5 {
			out = append(out, k.Name)
		}
	}
	return out
}

func (a *tally) verdict(t *testing.T) {
	t.Helper()
	sum := a.sum
	t.Logf("%d cases, %d of them not judged: %d pods wait, %d promised a place, %d of them stranded (%.2f %%)",
		a.cases, a.unjudged, sum.Pods, sum.Promised, len(sum.Stranded), share(len(sum.Stranded), sum.Promised))
	t.Logf("%d pods can't fit, %d of them could (%.2f %%); %d nodes added, %d of them at once, for %d pods; first-fit-decreasing adds %d for %d",
		sum.Rejected, len(sum.Wrong), share(len(sum.Wrong), sum.Rejected), sum.Nodes, sum.First, sum.Promised-len(sum.Stranded), sum.Packed, sum.Fitted)
	for _, k := range fit.Constraints {
		t.Logf("decides %4.1f %% of the cases: %s", share(a.decided[k.Name], a.cases), k.Name)
	}
	assert.Empty(t, a.lacking(), "constraints that decide fewer than 5 %% of the cases")
	assert.LessOrEqual(t, share(a.unjudged, a.cases), 2.0, "cases that could not be judged")
	assert.Empty(t, sum.Unasked, "pods that wait for no node")
	assert.LessOrEqual(t, len(sum.Stranded), fit.Tolerated(sum.Promised, 0.001), "pods that were promised a place and have none")
	assert.LessOrEqual(t, len(sum.Wrong), fit.Tolerated(sum.Rejected, 0.01), "pods that are said not to fit and would")
	assert.LessOrEqual(t, sum.First, sum.Packed, "nodes")
	require.Positive(t, sum.Rejected)
	require.Greater(t, sum.Promised, a.cases)
}
