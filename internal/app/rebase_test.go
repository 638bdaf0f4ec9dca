package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// start tries to start an app and returns what keeps it from starting.
func (b *testBundle) start(t *testing.T) error {
	t.Helper()
	a, err := New(t.Context(), Options{Config: b.config, DryRun: true, World: b.world, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		require.NoError(t, a.Close())
	}
	return err
}

func TestALostLogIsReportedAndARebaseIsAudited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, stop := b.run(t, true)
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeNodeClaimed) == 1 }, time.Minute, 50*time.Millisecond)
	stop()
	last, err := recordedUpTo(t.Context(), b.config)
	require.NoError(t, err)
	require.Positive(t, last.Sequence)

	require.NoError(t, os.RemoveAll(filepath.Join(b.dir, "bus")))
	for range 2 { // a start that is refused makes no log that the next one would find
		err := b.start(t)
		require.ErrorIs(t, err, bus.ErrLost)
		require.ErrorContains(t, err, "the log is gone")
		require.ErrorContains(t, err, "bus rebase")
	}

	o := RebaseOptions{Config: b.config, Actor: "alice", Reason: "the disk died", DryRun: true}
	r, err := Rebase(t.Context(), o)
	require.NoError(t, err)
	require.True(t, r.Made)
	require.Equal(t, last.Sequence, r.Known)
	require.ErrorIs(t, b.start(t), bus.ErrLost, "a dry run makes nothing")
	o.DryRun = false
	for range 2 { // run again, it is one event
		r, err = Rebase(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, last.Incarnation, r.Previous)
	}

	a, stop = b.run(t, true)
	defer stop()
	var found []audit.Record
	require.Eventually(t, func() bool {
		found, err = a.Audit().List(t.Context(), audit.Query{Types: []string{events.TypeLogRebased}})
		return err == nil && len(found) > 0
	}, time.Minute, 50*time.Millisecond)
	require.Len(t, found, 1)
	require.Equal(t, "alice", found[0].Actor)
	require.Equal(t, "the disk died", found[0].Reason)
	require.Equal(t, r.Incarnation, found[0].Incarnation)
	require.Eventually(t, func() bool {
		configs, err := a.Audit().List(t.Context(), audit.Query{Types: []string{events.TypeConfigApplied}, Order: audit.NewestFirst})
		return err == nil && configs[0].Incarnation == r.Incarnation
	}, time.Minute, 50*time.Millisecond, "the policy of the new log is an event of its own")
	before, err := a.Audit().List(t.Context(), audit.Query{Types: []string{events.TypeNodeClaimed}})
	require.NoError(t, err)
	require.NotEmpty(t, before, "what was recorded before stays")

	_, err = Rebase(t.Context(), o)
	require.ErrorContains(t, err, "stop the autoscaler first")
}
