package workload_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/workload"
)

func TestAQuarterOfAnHourFoldsToTheNextFullSnapshot(t *testing.T) {
	t.Parallel()
	m, err := workload.New(t.Context(), 20, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	require.NoError(t, err)
	es, err := m.Quarter()
	require.NoError(t, err)
	require.Len(t, es, 100)
	f := events.NewFold()
	used, replaced := 0, 0
	for i, e := range es {
		require.NoError(t, events.Check(e))
		if i == 0 {
			s, err := events.Decode[events.SnapshotCaptured](e)
			require.NoError(t, err)
			require.NoError(t, f.Capture(s))
			continue
		}
		d, err := events.Decode[events.SnapshotChanged](e)
		require.NoError(t, err)
		require.NoError(t, f.Change(d))
		used += len(d.Changed.Usage)
		replaced += len(d.Changed.Pods)
	}
	require.InDelta(t, 60*20, used, 20, "every node, every 15 s")
	require.InDelta(t, 20*12/40, replaced, 1)
	next, err := m.Full()
	require.NoError(t, err)
	s, err := events.Decode[events.SnapshotCaptured](next)
	require.NoError(t, err)
	require.Equal(t, s.Digest, f.Digest())
}

func TestALargeClusterIsMadeOfParts(t *testing.T) {
	t.Parallel()
	m, err := workload.New(t.Context(), 150, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	require.NoError(t, err)
	e, err := m.Full()
	require.NoError(t, err)
	s, err := events.Decode[events.SnapshotCaptured](e)
	require.NoError(t, err)
	f := events.NewFold()
	require.NoError(t, f.Capture(s), "what it refers to is there, and its digest holds")
	require.Len(t, f.Nodes(), 150)
	require.Len(t, f.Usage(), 150)
	require.Len(t, f.Pods(), 150*12)
	require.Len(t, f.PDBs(), 150)
	require.Len(t, f.Classes(), 152)
	for _, p := range f.Pods() {
		require.Contains(t, f.Nodes(), p.Node)
		require.Contains(t, f.Classes(), p.Class)
	}
	_, err = workload.New(t.Context(), 70, time.Time{})
	require.ErrorContains(t, err, "70 nodes")
}

func TestALifeIsOfTheGoldens(t *testing.T) {
	t.Parallel()
	es, err := workload.Life(os.DirFS("../../events/testdata"), "worker-7")
	require.NoError(t, err)
	ids := map[string]bool{}
	for _, e := range es {
		require.NoError(t, events.Check(e))
		ids[e.ID()] = true
	}
	require.Len(t, ids, len(es))
	require.Greater(t, len(es), 20)
}
