package events_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestDeltaOfCandidatesEqualsDiffOfEverything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pods := func(label string) map[string]events.SnapshotPod {
			m := map[string]events.SnapshotPod{}
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 9), 0, 10, rapid.ID).Draw(t, label) {
				p := events.SnapshotPod{Namespace: "ns", Name: fmt.Sprint("p", i), UID: "u", Class: "c",
					Node: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, label+"-node")}
				m[p.Key()] = p
			}
			return m
		}
		before, after := pods("before"), pods("after")
		f := events.NewFold()
		full, _, err := f.Delta(events.SnapshotObjects{Pods: values(before)}, nil)
		require.NoError(t, err)
		require.NoError(t, f.Capture(events.SnapshotCaptured{Epoch: 1, Digest: full.Digest, Objects: full.Changed}))

		// Candidates: everything, known or not, changed or not.
		var gone []string
		for i := range 10 {
			if k := fmt.Sprint("ns/p", i); after[k].Name == "" {
				gone = append(gone, k)
			}
		}
		got, differs, err := f.Delta(events.SnapshotObjects{Pods: values(after)}, map[string][]string{events.KindPod: gone})
		require.NoError(t, err)
		want, wantDiffers, err := f.Diff(events.SnapshotObjects{Pods: values(after)})
		require.NoError(t, err)
		require.Equal(t, wantDiffers, differs)
		require.Equal(t, want.Digest, got.Digest)
		require.Equal(t, want.Changed, got.Changed)
		require.Equal(t, want.Deleted[events.KindPod], got.Deleted[events.KindPod])

		got.Epoch, got.CapturedAt = 1, time.Unix(1, 0)
		require.NoError(t, f.Change(got))
		require.Equal(t, want.Digest, f.Digest())
		require.Equal(t, after, f.Pods())
	})
}

func TestDeltaThatDoesNotAddUpLeavesTheFoldAsItWas(t *testing.T) {
	t.Parallel()
	f := events.NewFold()
	d, _, err := f.Delta(events.SnapshotObjects{Usage: []events.SnapshotUsage{{Node: "a"}, {Node: "b"}}}, nil)
	require.NoError(t, err)
	require.NoError(t, f.Capture(events.SnapshotCaptured{Epoch: 1, Digest: d.Digest, Objects: d.Changed}))
	before := f.Digest()

	next, _, err := f.Delta(events.SnapshotObjects{Usage: []events.SnapshotUsage{{Node: "a", CPUMilli: 5}}}, map[string][]string{events.KindUsage: {"b"}})
	require.NoError(t, err)
	next.Epoch, next.Digest = 1, "0"
	require.ErrorIs(t, f.Change(next), events.ErrStaleSnapshot)
	require.Equal(t, before, f.Digest())
	require.Equal(t, map[string]events.SnapshotUsage{"a": {Node: "a"}, "b": {Node: "b"}}, f.Usage())
}

func values(m map[string]events.SnapshotPod) []events.SnapshotPod {
	out := make([]events.SnapshotPod, 0, len(m))
	for _, p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b events.SnapshotPod) int {
		if a.Key() < b.Key() {
			return -1
		}
		return 1
	})
	return out
}
