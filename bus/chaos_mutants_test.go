package bus_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest/chaos"
)

// A checker that finds nothing wrong with a correct bus proves nothing until it
// finds what is wrong with a broken one.
func TestChaosFindsABrokenRule(t *testing.T) {
	t.Parallel()
	freeze := func(at, length time.Duration, worker int) chaos.Injection {
		return chaos.Injection{Fault: chaos.FaultFreeze, At: at, For: length, Worker: worker}
	}
	kill := func(at time.Duration, worker int) chaos.Injection {
		return chaos.Injection{Fault: chaos.FaultKillStep, At: at, Worker: worker, Step: "provisioning/write/after", Nth: 1}
	}
	for _, tt := range []struct {
		mutant string
		faults []chaos.Injection // nil: a redrive
		rules  []string          // any of these shows it
	}{
		{"late ack", []chaos.Injection{freeze(500*time.Millisecond, 1300*time.Millisecond, 0), freeze(time.Second, 1300*time.Millisecond, 1), freeze(2*time.Second, 1300*time.Millisecond, 2),
			freeze(2800*time.Millisecond, 1300*time.Millisecond, 0)}, []string{chaos.RuleLost, chaos.RuleOverlap}},
		{"no lease check", []chaos.Injection{freeze(time.Second, 4*time.Second, 1)}, []string{chaos.RuleOverlap, chaos.RuleOnce}},
		{"no CAS", []chaos.Injection{freeze(time.Second, 2*time.Second, 1)}, []string{chaos.RuleLost, chaos.RuleOnce, chaos.RuleOutput}},
		{"no outbox replay", []chaos.Injection{kill(500*time.Millisecond, 0), kill(time.Second, 1), kill(1500*time.Millisecond, 2)}, []string{chaos.RuleOutput}},
		{"same id in redrive", nil, []string{chaos.RuleLost}},
	} {
		hunt := func(seed uint64, mutant string) chaos.Schedule {
			if tt.faults == nil {
				return chaos.HuntRedrive(seed, mutant)
			}
			return chaos.Hunt(seed, mutant, tt.faults...)
		}
		t.Run("without "+tt.mutant, func(t *testing.T) {
			t.Parallel()
			res, err := chaos.Run(t.Context(), hunt(0, ""), t.TempDir())
			require.NoError(t, err)
			require.Empty(t, res.Violations, "the same faults do no harm to a bus that keeps its rules")
		})
		t.Run(tt.mutant, func(t *testing.T) {
			t.Parallel()
			const enough = 8
			for seed := range uint64(enough) {
				res, err := chaos.Run(t.Context(), hunt(seed, tt.mutant), t.TempDir())
				require.NoError(t, err)
				for _, v := range res.Violations {
					for _, rule := range tt.rules {
						if v.Rule == rule {
							t.Logf("found by schedule %d of at most %d: %s", seed+1, enough, v)
							return
						}
					}
				}
			}
			t.Errorf("%d schedules did not show it", enough)
		})
	}
}
