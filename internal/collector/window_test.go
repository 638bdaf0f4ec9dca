package collector_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

func refused(name string) func(b *testBundle) {
	return func(b *testBundle) { b.update(pod(name, unschedulable("0/1 nodes are available"))) }
}

func comes(name string) func(b *testBundle) {
	return func(b *testBundle) { b.create(pod(name)) }
}

func TestAPodThatComesAloneIsNotKeptWaiting(t *testing.T) {
	t.Parallel()
	type act struct {
		after time.Duration
		do    func(b *testBundle)
	}
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		acts []act
		want []time.Duration // of snapshots, since the beginning
	}{
		"one pod": {
			acts: []act{{0, comes("a")}, {6 * ms, refused("a")}},
			want: []time.Duration{6 * ms},
		},
		"one that the scheduler judges at once waits for a tenth of the window, in which another might come": {
			acts: []act{{0, comes("a")}, {2 * ms, refused("a")}},
			want: []time.Duration{5 * ms},
		},
		"another has no verdict yet": {
			acts: []act{{0, comes("a")}, {3 * ms, comes("b")}, {3 * ms, refused("a")}},
			want: []time.Duration{56 * ms},
		},
		"another has its verdict in time": {
			acts: []act{{0, comes("a")}, {3 * ms, comes("b")}, {3 * ms, refused("a")}, {7 * ms, refused("b")}},
			want: []time.Duration{13 * ms},
		},
		"another is bound": {
			acts: []act{{0, comes("a")}, {3 * ms, comes("b")}, {3 * ms, refused("a")}, {7 * ms, func(b *testBundle) { b.update(pod("b", on("w1"))) }}},
			want: []time.Duration{13 * ms},
		},
		"another is deleted": {
			acts: []act{{0, comes("a")}, {3 * ms, comes("b")}, {3 * ms, refused("a")}, {7 * ms, func(b *testBundle) { b.deletePod("b") }}},
			want: []time.Duration{13 * ms},
		},
		"one after the other": {
			acts: []act{{0, comes("a")}, {4 * ms, comes("b")}, {2 * ms, refused("a")}, {2 * ms, comes("c")}, {2 * ms, refused("b")}, {6 * ms, refused("c")}},
			want: []time.Duration{16 * ms},
		},
		"a second one within the window after the first": {
			acts: []act{{0, comes("a")}, {6 * ms, refused("a")}, {10 * ms, comes("b")}, {6 * ms, refused("b")}},
			want: []time.Duration{6 * ms, 56 * ms},
		},
		"a second one later": {
			acts: []act{{0, comes("a")}, {6 * ms, refused("a")}, {60 * ms, comes("b")}, {6 * ms, refused("b")}},
			want: []time.Duration{6 * ms, 72 * ms},
		},
		"a pod whose scheduler is away is not waited for": {
			acts: []act{{0, comes("odd")}, {1200 * ms, comes("a")}, {6 * ms, refused("a")}},
			want: []time.Duration{1000 * ms, 1206 * ms},
		},
		"a node that changes waits for what follows": {
			acts: []act{{0, func(b *testBundle) { b.create(node("w2")) }}},
			want: []time.Duration{50 * ms},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := setup(t, nil, node("w1"))
				defer b.stop()
				b.after(2500 * ms)
				begin := time.Now()
				var es []stored
				for _, a := range tt.acts {
					es = append(es, b.after(a.after)...)
					a.do(b)
				}
				es = append(es, b.after(200*ms)...)
				var got []time.Duration
				for _, e := range es {
					got = append(got, e.at.Sub(begin))
				}
				require.Equal(t, tt.want, got)
			})
		})
	}
}

func TestWithoutAWindowEveryPressingChangeIsPublishedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, func(o *collector.Options) { o.BatchWindow = -1 }, node("w1"))
		defer b.stop()
		b.after(time.Second)
		comes("a")(b)
		comes("b")(b)
		refused("a")(b)
		require.Len(t, one[events.SnapshotChanged](t, b.after(0)).Changed.Pods, 2)
		refused("b")(b)
		require.Len(t, one[events.SnapshotChanged](t, b.after(0)).Changed.Pods, 1)
		b.create(node("w2"))
		require.Len(t, one[events.SnapshotChanged](t, b.after(0)).Changed.Nodes, 1)
	})
}
