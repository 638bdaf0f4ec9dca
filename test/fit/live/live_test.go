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
	sum      outcome
	cases    int
	decided  map[string]int
	unjudged int
}

// TestTheRealSchedulerDoesWhatTheSimulationSays runs FIT_CASES cases from FIT_SEED
// on, and then as many more as it takes until each constraint has decided one in
// twenty.
func TestTheRealSchedulerDoesWhatTheSimulationSays(t *testing.T) {
	clusters := newClusters(t)
	first, n := firstSeed(t), number(t, "FIT_CASES", 150)
	a := &tally{decided: map[string]int{}}
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = uint64(first + i)
	}
	seed, last := uint64(first+n), uint64(first+41*n)
	for len(seeds) > 0 {
		for some := range slices.Chunk(seeds, 100) {
			a.try(t, clusters, some)
			t.Logf("%d cases so far, %d pods promised a place", a.cases, a.sum.Promised)
		}
		seeds = nil
		lacking := a.lacking()
		for ; len(lacking) > 0 && seed < last && a.cases+len(seeds) < 2*n && len(seeds) < 4*len(clusters); seed++ {
			// Before the scheduler has placed anything it is only likely.
			by, err := fit.DecidedBy(fit.Generate(seed))
			require.NoError(t, err)
			if slices.ContainsFunc(by, func(k string) bool { return slices.Contains(lacking, k) }) {
				seeds = append(seeds, seed)
			}
		}
	}
	a.verdict(t)
}

func (a *tally) try(t *testing.T, clusters []*cluster, seeds []uint64) {
	t.Helper()
	outcomes, errs := each(t, clusters, seeds, func(ctx context.Context, k *cluster, seed uint64) (outcome, error) {
		return newTrial(k, seed).run(ctx)
	})
	a.cases += len(seeds)
	for i, o := range outcomes {
		if errs[i] != nil {
			a.unjudged++
			continue
		}
		a.sum.add(o)
		for _, k := range o.By {
			a.decided[k]++
		}
		for _, what := range slices.Concat(o.Refused, o.Unasked, o.Stranded, o.Wrong, o.Outrun) {
			t.Logf("seed %d: %s", seeds[i], what)
		}
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
	t.Logf("%d cases, %d of them not judged: %d pods wait, %d promised a place in %d placements, of which the framework refuses %d; %d pods stranded (%.2f %%), %d outrun by others (%.2f %%)",
		a.cases, a.unjudged, sum.Pods, sum.Promised, sum.Placed, len(sum.Refused), len(sum.Stranded), share(len(sum.Stranded), sum.Promised), len(sum.Outrun), share(len(sum.Outrun), sum.Promised))
	t.Logf("%d pods can't fit, %d of them could (%.2f %%); %d nodes added, %d of them at once, for %d pods; first-fit-decreasing adds %d for %d",
		sum.Rejected, len(sum.Wrong), share(len(sum.Wrong), sum.Rejected), sum.Nodes, sum.First, sum.Promised-len(sum.Stranded)-len(sum.Outrun), sum.Packed, sum.Fitted)
	for _, k := range fit.Constraints {
		t.Logf("decides %4.1f %% of the cases: %s", share(a.decided[k.Name], a.cases), k.Name)
	}
	assert.Empty(t, a.lacking(), "constraints that decide fewer than 5 %% of the cases")
	assert.LessOrEqual(t, a.unjudged, fit.Tolerated(a.cases, 0.001), "cases that could not be judged")
	assert.Empty(t, sum.Unasked, "pods that wait for no node")
	assert.LessOrEqual(t, len(sum.Refused), fit.Tolerated(sum.Placed, 0.001), "placements that the framework refuses")
	assert.LessOrEqual(t, len(sum.Stranded), fit.Tolerated(sum.Promised, 0.001), "pods that were promised a place and have none")
	assert.Zero(t, sum.Endless, "cases that ask for nodes again and again")
	assert.LessOrEqual(t, len(sum.Outrun), fit.Tolerated(sum.Promised, 0.02), "pods that lost their place to others that the scheduler came to first")
	assert.LessOrEqual(t, len(sum.Wrong), fit.Tolerated(sum.Rejected, 0.01), "pods that are said not to fit and would")
	assert.LessOrEqual(t, sum.First, sum.Packed, "nodes")
	require.Positive(t, sum.Rejected)
	require.Greater(t, sum.Promised, a.cases)
}
