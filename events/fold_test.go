package events

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func capture(t require.TestingT, epoch int64, o SnapshotObjects) SnapshotCaptured {
	f := NewFold()
	require.NoError(t, f.put(o))
	return SnapshotCaptured{Epoch: epoch, Digest: f.Digest(), CapturedAt: time.Unix(100, 0).UTC(), Objects: o}
}

func nodes(names ...string) SnapshotObjects {
	var o SnapshotObjects
	for _, n := range names {
		o.Nodes = append(o.Nodes, SnapshotNode{Name: n, Ready: "True"})
	}
	return o
}

func TestADeltaNeedsTheSnapshotItBuildsOn(t *testing.T) {
	t.Parallel()
	f := NewFold()
	require.ErrorIs(t, f.Change(SnapshotChanged{Epoch: 1}), ErrStaleSnapshot)
	require.False(t, f.Known())
	require.NoError(t, f.Capture(capture(t, 2, nodes("a", "b"))))
	require.True(t, f.Known())

	d, differs, err := f.Diff(nodes("b", "c"))
	require.NoError(t, err)
	require.True(t, differs)
	require.Equal(t, []string{"a"}, d.Deleted[KindNode])
	require.Len(t, d.Changed.Nodes, 1)

	d.Epoch = 1
	require.ErrorIs(t, f.Change(d), ErrStaleSnapshot, "another epoch")
	d.Epoch = 2
	wrong := d
	wrong.Base = "00"
	require.ErrorIs(t, f.Change(wrong), ErrStaleSnapshot, "another base")
	lossy := d
	lossy.Deleted = nil
	require.ErrorIs(t, f.Change(lossy), ErrStaleSnapshot, "it does not add up")
	require.Contains(t, f.Nodes(), "a", "a refused delta changes nothing")

	require.NoError(t, f.Change(d))
	require.NotContains(t, f.Nodes(), "a")
	require.Contains(t, f.Nodes(), "c")
	require.ErrorIs(t, f.Change(d), ErrStaleSnapshot, "the same delta again")
}

func TestALowerEpochNeverReplacesAHigherOne(t *testing.T) {
	t.Parallel()
	f := NewFold()
	require.NoError(t, f.Capture(capture(t, 5, nodes("a"))))
	require.ErrorIs(t, f.Capture(capture(t, 4, nodes("b"))), ErrStaleSnapshot)
	require.Contains(t, f.Nodes(), "a")
	require.NoError(t, f.Capture(capture(t, 5, nodes("c"))), "the same leader captures again")
}

func TestACaptureWhoseDigestIsWrongIsRefused(t *testing.T) {
	t.Parallel()
	c := capture(t, 1, nodes("a"))
	c.Digest = "bad"
	require.ErrorContains(t, NewFold().Capture(c), "snapshot digest")
}

// Any row of deltas adds up to the same as a full snapshot of the end.
func TestFoldedDeltasEqualAFullSnapshot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		objects := func() SnapshotObjects {
			var o SnapshotObjects
			for i := range 5 {
				if rapid.Bool().Draw(t, "node") {
					o.Nodes = append(o.Nodes, SnapshotNode{Name: fmt.Sprint("n", i), Unschedulable: rapid.Bool().Draw(t, "cordoned")})
				}
				if rapid.Bool().Draw(t, "pod") {
					o.Pods = append(o.Pods, SnapshotPod{Namespace: "d", Name: fmt.Sprint("p", i), Node: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "on")})
					o.Classes = append(o.Classes, PodClass{ID: fmt.Sprint("c", i)})
					o.PDBs = append(o.PDBs, SnapshotPDB{Namespace: "d", Name: fmt.Sprint("b", i)})
				}
				if rapid.Bool().Draw(t, "rest") {
					o.Usage = append(o.Usage, SnapshotUsage{Node: fmt.Sprint("n", i), CPUMilli: rapid.Int64Range(0, 3).Draw(t, "cpu")})
					o.Records = append(o.Records, NodeRecord{Name: fmt.Sprint("n", i), Phase: "ready"})
					o.DaemonSets = append(o.DaemonSets, SnapshotDaemonSet{Namespace: "k", Name: fmt.Sprint("d", i)})
					o.Namespaces = append(o.Namespaces, SnapshotNamespace{Name: fmt.Sprint("s", i), Labels: map[string]string{"team": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "team")}})
				}
			}
			return o
		}
		f := NewFold()
		require.NoError(t, f.Capture(capture(t, 1, objects())))
		for range rapid.IntRange(1, 6).Draw(t, "deltas") {
			want := objects()
			d, differs, err := f.Diff(want)
			require.NoError(t, err)
			d.Epoch = 1
			require.Equal(t, d.Base != d.Digest, differs)
			require.NoError(t, f.Change(d))
			require.Equal(t, capture(t, 1, want).Digest, f.Digest())
			require.Len(t, f.Nodes(), len(want.Nodes))
			require.Len(t, f.Pods(), len(want.Pods))
			require.Len(t, f.Classes(), len(want.Classes))
			require.Len(t, f.PDBs(), len(want.PDBs))
			require.Len(t, f.DaemonSets(), len(want.DaemonSets))
			require.Len(t, f.Usage(), len(want.Usage))
			require.Len(t, f.Records(), len(want.Records))
			require.Len(t, f.Namespaces(), len(want.Namespaces))
		}
	})
}
