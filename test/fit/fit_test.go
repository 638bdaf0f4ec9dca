//go:build fit

package fit

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

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
	os.RemoveAll(dir)
	os.Exit(code)
}

func number(t *testing.T, name string, standard int) int {
	v := os.Getenv(name)
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	require.NoError(t, err, "%s is %q, expected a number", name, v)
	return n
}

// each runs the cases of n seeds from first on, on every core.
func each(t *testing.T, first, n int, run func(s *Scheduler, seed uint64)) {
	t.Helper()
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		s, err := StartScheduler(program)
		require.NoError(t, err)
		wg.Go(func() {
			defer s.Close()
			for seed := range seeds {
				run(s, seed)
			}
		})
	}
	for i := range n {
		seeds <- uint64(first + i)
	}
	close(seeds)
	wg.Wait()
}

func asIs(c *Case) *Case { return c }

func TestTheSchedulerDoesWhatTheSimulationSays(t *testing.T) {
	first, n := number(t, "FIT_SEED", 1), number(t, "FIT_CASES", 2000)
	var mu sync.Mutex
	var sum Outcome
	sum.Plugins = map[string]bool{}
	plugins := map[string]int{}
	each(t, first, n, func(s *Scheduler, seed uint64) {
		c, err := Settle(s, Generate(seed))
		var o Outcome
		if err == nil {
			o, err = Compare(s, c, asIs)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
			return
		}
		sum.add(o)
		for p := range o.Plugins {
			plugins[p]++
		}
		for _, list := range [][]string{o.Refused, o.Stranded, o.Wrong} {
			for _, what := range list {
				t.Logf("seed %d: %s", seed, what)
			}
		}
	})
	t.Logf("seeds %d to %d: %d pods, %d placements, %d refused; %d stranded; %d rejected, %d of them wrongly; %d nodes, first-fit-decreasing %d; rounds %d",
		first, first+n-1, sum.Pods, sum.Placed, len(sum.Refused), len(sum.Stranded), sum.Rejected, len(sum.Wrong), sum.Nodes, sum.Packed, sum.Rounds)
	t.Log(plugins)
}
