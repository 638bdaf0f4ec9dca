//go:build fit

package fit

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var program string // path of the scheduler

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fit-")
	if err == nil {
		program, err = BuildScheduler(context.Background(), "../..", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// number is a setting of the environment: FIT_SEED is the first seed, FIT_CASES
// how many there are.
func number(t *testing.T, name string, standard int) int {
	v := os.Getenv(name)
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	require.NoError(t, err, "%s is %q, expected a number", name, v)
	return n
}

// each runs the cases of n seeds from first on, as the autoscaler meets them, on
// every core.
func each(t *testing.T, first, n int, run func(s *Scheduler, c *Case) error) {
	t.Helper()
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		s, err := StartScheduler(program)
		require.NoError(t, err)
		wg.Go(func() {
			defer func() { assert.NoError(t, s.Close()) }()
			for seed := range seeds {
				c, err := Settle(s, Generate(seed))
				if err == nil {
					err = run(s, c)
				}
				assert.NoError(t, err, "seed %d", seed)
			}
		})
	}
	for i := range n {
		seeds <- uint64(first + i)
	}
	close(seeds)
	wg.Wait()
}

// share is part of all, in percent.
func share(part, all int) float64 { return 100 * float64(part) / float64(max(all, 1)) }

func TestTheSchedulerDoesWhatTheSimulationSays(t *testing.T) {
	first, n := number(t, "FIT_SEED", 1), number(t, "FIT_CASES", 2000)
	var mu sync.Mutex
	var sum Outcome
	decided := map[string]int{}
	each(t, first, n, func(s *Scheduler, c *Case) error {
		// Before the nodes come: Compare changes the case.
		by, err := DecidedBy(c)
		if err != nil {
			return err
		}
		o, err := Compare(s, c, func(c *Case) *Case { return c })
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		sum.Add(o)
		for _, k := range by {
			decided[k]++
		}
		for _, what := range slices.Concat(o.Refused, o.Unasked, o.Stranded, o.Wrong) {
			t.Logf("seed %d: %s", c.Seed, what)
		}
		return nil
	})
	t.Logf("seeds %d to %d: %d pods wait, %d promised a place, %d placements of which the scheduler refuses %d (%.2f %%), %d pods stranded (%.2f %%)",
		first, first+n-1, sum.Pods, sum.Promised, sum.Placed, len(sum.Refused), share(len(sum.Refused), sum.Placed), len(sum.Stranded), share(len(sum.Stranded), sum.Promised))
	t.Logf("%d pods can't fit, %d of them could (%.2f %%); %d nodes added, %d of them at once, for %d pods; first-fit-decreasing adds %d for %d",
		sum.Rejected, len(sum.Wrong), share(len(sum.Wrong), sum.Rejected), sum.Nodes, sum.First, sum.Pods-sum.Rejected-len(sum.Stranded), sum.Packed, sum.Fitted)
	for _, k := range Constraints {
		t.Logf("decides %4.1f %% of the cases: %s", share(decided[k.Name], n), k.Name)
		if n >= 500 { // below, chance has its way
			assert.GreaterOrEqual(t, share(decided[k.Name], n), 5.0, k.Name)
		}
	}
	assert.Less(t, share(len(sum.Refused), sum.Placed), 0.1, "placements that the scheduler refuses")
	assert.Empty(t, sum.Unasked, "pods that wait for no node")
	assert.Less(t, share(len(sum.Stranded), sum.Promised), 0.1, "pods that were promised a place and have none")
	assert.LessOrEqual(t, share(len(sum.Wrong), sum.Rejected), 1.0, "pods that are said not to fit and would")
	// What is decided at once, as first fit does; what comes later makes up for
	// pods that the scheduler has put elsewhere.
	assert.LessOrEqual(t, sum.First, sum.Packed, "nodes")
	require.Positive(t, sum.Rejected)
	require.Greater(t, sum.Promised, n)
}

// A simulation that did not know one of the constraints would be found out. Only
// the cases are looked at that the constraint decides, which are one in twenty
// or more: what must hold there is twenty times as strict.
func TestASimulationThatIgnoresAConstraintIsCaught(t *testing.T) {
	first, n := number(t, "FIT_SEED", 1), min(number(t, "FIT_CASES", 2000), 300)
	const enough = 12 // cases for a constraint
	var mu sync.Mutex
	sums, decides := map[string]*Outcome{}, map[string][]uint64{} // by constraint: seeds
	for _, k := range Constraints {
		sums[k.Name] = &Outcome{}
	}
	each(t, first, n, func(_ *Scheduler, c *Case) error {
		as, err := Answer(c)
		if err != nil {
			return err
		}
		for _, k := range Constraints {
			if !c.Has[k.Name] {
				continue
			}
			without, err := Answer(k.Stripped(c))
			if err != nil {
				return err
			}
			if without != as {
				mu.Lock()
				decides[k.Name] = append(decides[k.Name], c.Seed)
				mu.Unlock()
			}
		}
		return nil
	})
	for name, seeds := range decides { // the same ones, whoever was faster
		slices.Sort(seeds)
		decides[name] = seeds[:min(enough, len(seeds))]
	}
	each(t, first, n, func(s *Scheduler, c *Case) error {
		for _, k := range Constraints {
			if !slices.Contains(decides[k.Name], c.Seed) {
				continue
			}
			o, err := Compare(s, c.Clone(), k.Stripped)
			if err != nil {
				return err
			}
			mu.Lock()
			sums[k.Name].Add(o)
			mu.Unlock()
		}
		return nil
	})
	for _, k := range Constraints {
		sum := sums[k.Name]
		t.Logf("%-20s in %d cases: of %d placements %.0f %% are refused, %.0f %% unasked; of %d pods promised a place %.0f %% are stranded; of %d that can't fit %.0f %% could", k.Name, len(decides[k.Name]),
			sum.Placed, share(len(sum.Refused), sum.Placed), share(len(sum.Unasked), sum.Placed), sum.Promised, share(len(sum.Stranded), sum.Promised), sum.Rejected, share(len(sum.Wrong), sum.Rejected))
		assert.True(t, share(len(sum.Refused), sum.Placed) >= 2 || share(len(sum.Stranded), sum.Promised) >= 2 || share(len(sum.Wrong), sum.Rejected) >= 20 || len(sum.Unasked) > 0,
			"nobody noticed that %s were ignored", k.Name)
		assert.NotEmpty(t, decides[k.Name], k.Name)
	}
}

const orders = 2 // in which the pods of removed nodes are scheduled

func TestThePodsOfRemovedNodesFindAPlace(t *testing.T) {
	first, n := number(t, "FIT_SEED", 1), number(t, "FIT_CASES", 2000)
	var mu sync.Mutex
	var sum Removal
	decided := map[string]int{}
	removing(t, first, n, func(s *Scheduler, c *Case) error {
		by, err := SparedBy(c)
		if err != nil {
			return err
		}
		r, err := Remove(s, c, func(c *Case) *Case { return c }, orders)
		mu.Lock()
		defer mu.Unlock()
		sum.Add(r)
		for _, k := range by {
			decided[k]++
		}
		for _, what := range r.Stranded {
			t.Logf("seed %d: %s", c.Seed, what)
		}
		return err
	})
	t.Logf("seeds %d to %d: of %d nodes %d are removed; %d pods moved, %d of them stranded (%.2f %%)",
		first, first+n-1, sum.Owned, sum.Nodes, sum.Moved, len(sum.Stranded), share(len(sum.Stranded), sum.Moved))
	for _, k := range RemovalConstraints() {
		t.Logf("decides %4.1f %% of the removals: %s", share(decided[k.Name], n), k.Name)
		if n >= 500 && !slices.Contains(harmless, k.Name) {
			assert.GreaterOrEqual(t, share(decided[k.Name], n), 0.5, k.Name)
		}
	}
	assert.LessOrEqual(t, share(len(sum.Stranded), sum.Moved), 0.1, "pods of removed nodes that have no place")
	require.Positive(t, sum.Moved)
}

// harmless are constraints without which nothing that moves can be left over: who
// carries the first three waits, and expendable pods would only keep more nodes.
var harmless = []string{"nominated nodes", "scheduling gates", "other schedulers", "expendable pods"}

// As for new nodes: only the cases are looked at in which the constraint decides.
func TestARemovalThatIgnoresAConstraintIsCaught(t *testing.T) {
	first, n := number(t, "FIT_SEED", 1), number(t, "FIT_CASES", 2000)
	var mu sync.Mutex
	sums, cases := map[string]*Removal{}, map[string]int{}
	for _, k := range RemovalConstraints() {
		sums[k.Name] = &Removal{}
	}
	removing(t, first, n, func(s *Scheduler, c *Case) error {
		by, err := SparedBy(c)
		if err != nil {
			return err
		}
		for _, k := range RemovalConstraints() {
			if !slices.Contains(by, k.Name) {
				continue
			}
			r, err := Remove(s, c, k.Stripped, orders)
			if err != nil {
				return err
			}
			mu.Lock()
			sums[k.Name].Add(r)
			cases[k.Name]++
			mu.Unlock()
		}
		return nil
	})
	for _, k := range RemovalConstraints() {
		sum := sums[k.Name]
		t.Logf("%-20s in %d cases: of %d pods that move %.0f %% are stranded", k.Name, cases[k.Name], sum.Moved, share(len(sum.Stranded), sum.Moved))
		if n >= 2000 && !slices.Contains(harmless, k.Name) {
			assert.GreaterOrEqual(t, share(len(sum.Stranded), sum.Moved), 2.0, "nobody noticed that %s were ignored", k.Name)
		}
	}
}

// removing runs the cases of n seeds, with the nodes that were added and some of the
// pods gone.
func removing(t *testing.T, first, n int, run func(s *Scheduler, c *Case) error) {
	t.Helper()
	each(t, first, n, func(s *Scheduler, c *Case) error {
		if _, err := Compare(s, c, func(c *Case) *Case { return c }); err != nil {
			return err
		}
		return run(s, Thin(c, 0.45))
	})
}
