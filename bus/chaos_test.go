package bus_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest/chaos"
)

// The environment says how much of chaos there is:
//
//	CHAOS_SCHEDULES   how many schedules must count; default 0: the mutants alone run
//	CHAOS_PRODUCTION  how many of them run with the bus's default times; default 0
//	CHAOS_PARALLEL    how many run at a time; default 3
//	CHAOS_SEED        the first seed; default random
//	CHAOS_REPORT      a file for the summary, with CHAOS_COMMIT in it; default none
func envInt(t *testing.T, name string, def uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseUint(v, 10, 64)
	require.NoError(t, err, name)
	return n
}

// enough is from how many schedules on every kind of fault must have fired, at
// least once in twenty.
const enough = 20

func TestChaosLosesReordersAndDoublesNothing(t *testing.T) {
	t.Parallel()
	n, production := envInt(t, "CHAOS_SCHEDULES", 0), envInt(t, "CHAOS_PRODUCTION", 0)
	first := envInt(t, "CHAOS_SEED", uint64(rand.Uint32()))
	fmt.Printf("chaos: %d schedules from seed %d\n", n, first)
	s := &storm{t: t}
	began := time.Now()
	var wg sync.WaitGroup
	slots := make(chan struct{}, envInt(t, "CHAOS_PARALLEL", 3))
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			times := chaos.Times()
			if i < production {
				times = chaos.ProductionTimes()
			}
			s.run(first+i, func(seed uint64) chaos.Schedule { return chaos.Plan(seed, times) })
		})
	}
	wg.Wait()
	fmt.Printf("chaos: %s", s.sum)
	if n >= enough {
		for _, f := range chaos.Faults() {
			if got := s.sum.Fired[f]; got < int(n)/enough {
				t.Errorf("fault %s hit something in flight %d times in %d schedules, expected at least %d", f, got, n, n/enough)
			}
		}
	}
	if report := os.Getenv("CHAOS_REPORT"); report != "" {
		text := s.sum.Report(chaos.ReportOptions{Date: began.UTC(), Took: time.Since(began), Commit: os.Getenv("CHAOS_COMMIT"), FirstSeed: first})
		require.NoError(t, os.WriteFile(report, []byte(text), 0o600))
	}
}

// storm runs schedules and sums up what came of them.
type storm struct {
	t *testing.T

	mu  sync.Mutex
	sum chaos.Summary
}

// run runs the schedule of a seed. One whose faults hit nothing does not count:
// the next seed with the same certain fault takes its place.
func (s *storm) run(seed uint64, plan func(seed uint64) chaos.Schedule) {
	const attempts = 10
	for range attempts {
		sched := plan(seed)
		dir, err := os.MkdirTemp("", "chaos")
		if err != nil {
			s.t.Error(err)
			return
		}
		res, err := chaos.Run(s.t.Context(), sched, dir)
		s.mu.Lock()
		s.sum.Add(res, err)
		s.mu.Unlock()
		if err != nil || len(res.Violations) > 0 {
			s.t.Errorf("chaos: %s: error %v, %d violations; history and output of the processes: %s", sched, err, len(res.Violations), dir)
			for _, v := range res.Violations {
				s.t.Error(v)
			}
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			s.t.Error(err)
		}
		fmt.Printf("chaos: %s\n", res)
		if res.Counts() {
			return
		}
		seed = chaos.NextSeed(seed)
	}
	s.t.Errorf("%d schedules up to seed %d hit nothing in flight", attempts, seed)
}
