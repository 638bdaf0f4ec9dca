package replay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest/chaos"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/recording"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
)

func TestMain(m *testing.M) {
	if chaos.Child(chaos.ChildOptions{Audit: liveAudit}) {
		return
	}
	os.Exit(m.Run())
}

func livePath(dir string) string { return filepath.Join(dir, "audit.db") }

// liveAudit is the audit of a process that faults are injected into; all processes
// of a schedule write one store.
func liveAudit(dir string, b *bus.Bus) (bus.BatchHandler, error) {
	live, err := sqlite.Open(context.Background(), sqlite.Options{Path: livePath(dir)})
	if err != nil {
		return nil, err
	}
	return auditing.New(auditing.Options{Store: recording.Store{Audit: live}, Log: b})
}

// faulty are schedules of fresh seeds, one for each way in which the servers of a
// replay's log died before; all but the first redrive their dead letters.
func faulty(t *testing.T) []chaos.Schedule {
	t.Helper()
	seed := uint64(rand.Uint32())
	fmt.Printf("replay after faults: first seed %d\n", seed)
	find := func(fits func(chaos.Schedule) bool) chaos.Schedule {
		for ; ; seed++ {
			if s := chaos.Plan(seed, chaos.Times()); s.Topology != chaos.Cluster && fits(s) {
				seed++
				return s
			}
		}
	}
	return []chaos.Schedule{
		find(func(s chaos.Schedule) bool { return s.Topology == chaos.Embedded && s.Has(chaos.FaultKill) }),
		find(func(s chaos.Schedule) bool { return s.Topology == chaos.Embedded && s.Redrive }),
		find(func(s chaos.Schedule) bool {
			return s.Topology == chaos.Single && s.Has(chaos.FaultRestart) && s.Redrive
		}),
	}
}

func TestChaosLeavesALogThatReplaysToTheSameBytes(t *testing.T) {
	t.Parallel()
	for _, s := range faulty(t) {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "replay")
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			res, err := chaos.Run(t.Context(), s, dir)
			require.NoError(t, err)
			require.Empty(t, res.Violations)
			server, err := embedded.Start(embedded.Options{Dir: chaos.DataDir(dir), Unsynced: true})
			require.NoError(t, err)
			defer server.Shutdown()
			live, err := sqlite.Open(t.Context(), sqlite.Options{Path: livePath(dir)})
			require.NoError(t, err)
			defer live.Close()
			log, err := bus.OpenReader(t.Context(), bus.Options{Server: server, Times: bustest.Times()})
			require.NoError(t, err)
			defer log.Close()
			report, err := Audit(t.Context(), Options{Log: log, Live: live, Into: store(t)})
			require.NoError(t, err)
			require.True(t, report.Equal(), "%+v", report.First)
			require.EqualValues(t, res.Events, report.Events, "everything was replayed")
			require.Equal(t, report.Live, report.Rebuilt)
			require.Zero(t, report.Lost)
			gaps, err := live.Gaps(t.Context())
			require.NoError(t, err)
			require.Empty(t, gaps)
		})
	}
}
