package collector_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

func TestStartPublishesEverythingOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		recs := &records{present: []events.NodeRecord{{Name: "w1", Pool: "p", Phase: "ready"}}}
		b := setup(t, func(o *collector.Options) { o.Records = recs }, node("w1"), pod("a", on("w1")), pod("b", unschedulable("no room")))
		defer b.stop()
		s := one[events.SnapshotCaptured](t, b.after(time.Millisecond))
		require.Len(t, s.Objects.Nodes, 1)
		require.Len(t, s.Objects.Pods, 2)
		require.Len(t, s.Objects.Classes, 1, "both pods are of one class")
		require.Equal(t, recs.present, s.Objects.Records)
		require.EqualValues(t, 1, s.Epoch)
		require.NotEmpty(t, s.ServerVersion)
		require.NotContains(t, string(b.bus.all()[0].event.Data()), "hush", "a snapshot holds no environment")
		for _, kind := range []string{events.KindNode, events.KindPod, events.KindPodClass, events.KindPDB, events.KindDaemonSet, events.KindRecord} {
			require.WithinDuration(t, time.Now(), s.Freshness[kind], time.Second, kind)
		}
		require.NotContains(t, s.Freshness, events.KindUsage, "without a metrics API usage is unknown")
		require.NoError(t, b.collector.Ready())
		require.Equal(t, s.Digest, foldOf(t, b.bus.all()).Digest())
	})
}

func TestAnUnchangedClusterRenewsItsFreshnessWithinTenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1"))
		defer b.stop()
		first := one[events.SnapshotCaptured](t, b.after(time.Millisecond))
		es := b.after(time.Minute)
		deltas := every[events.SnapshotChanged](t, es)
		require.GreaterOrEqual(t, len(deltas), 6)
		last := first.CapturedAt
		for _, d := range deltas {
			require.Empty(t, d.Changed)
			require.Empty(t, d.Deleted)
			require.Equal(t, first.Digest, d.Digest)
			require.Zero(t, d.FirstChangeAt)
			require.LessOrEqual(t, d.CapturedAt.Sub(last), 10*time.Second)
			require.LessOrEqual(t, d.CapturedAt.Sub(d.Freshness[events.KindNode]), 5*time.Second)
			last = d.CapturedAt
		}
	})
}

func TestAFullSnapshotFollowsEveryQuarterOfAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1"))
		defer b.stop()
		full := every[events.SnapshotCaptured](t, b.after(46*time.Minute))
		require.Len(t, full, 4)
		for _, s := range full[1:] {
			require.Equal(t, full[0].Digest, s.Digest)
		}
	})
}

func TestAPodThatBecomesUnschedulableIsPublishedWithinTheBatchWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1"), pod("a"))
		defer b.stop()
		b.after(3 * time.Second)
		b.create(pod("c")) // on its way: the window is used
		changed := time.Now()
		b.update(pod("a", unschedulable("0/1 nodes are available")))
		require.Empty(t, b.after(40*time.Millisecond))
		// A later change does not extend the window of the first.
		b.create(pod("b", unschedulable("0/1 nodes are available")))
		es := b.after(11 * time.Millisecond)
		d := one[events.SnapshotChanged](t, es)
		require.Equal(t, 50*time.Millisecond, es[0].at.Sub(changed))
		require.Len(t, d.Changed.Pods, 3)
		require.True(t, d.FirstChangeAt.Equal(changed))
		require.True(t, d.Changed.Pods[0].UnschedulableSince.Equal(changed.Truncate(time.Second)))
		require.Equal(t, "0/1 nodes are available", d.Changed.Pods[0].UnschedulableMessage)
		require.Empty(t, b.after(time.Second))
	})
}

func TestHowSoonAChangeIsPublished(t *testing.T) {
	t.Parallel()
	const batch, soon = 50 * time.Millisecond, time.Second
	for name, tt := range map[string]struct {
		change func(b *testBundle, recs *records)
		within time.Duration
	}{
		"an unschedulable pod is bound":   {func(b *testBundle, _ *records) { b.update(pod("waiting", on("w1"))) }, batch},
		"an unschedulable pod is deleted": {func(b *testBundle, _ *records) { b.deletePod("waiting") }, batch},
		"a node comes":                    {func(b *testBundle, _ *records) { b.create(node("w2")) }, batch},
		"a node becomes Ready":            {func(b *testBundle, _ *records) { b.update(node("w1", ready(time.Now(), corev1.ConditionTrue))) }, batch},
		"a node is cordoned":              {func(b *testBundle, _ *records) { b.update(node("w1", cordoned)) }, batch},
		"a node goes":                     {func(b *testBundle, _ *records) { b.deleteNode("w1") }, batch},
		"a record changes":                {func(_ *testBundle, r *records) { r.send(record("w1", "ready")) }, batch},
		"a record goes": {func(_ *testBundle, r *records) {
			r.send(collector.RecordChange{Record: events.NodeRecord{Name: "w0"}, Deleted: true})
		}, batch},
		"a pod comes":                       {func(b *testBundle, _ *records) { b.create(pod("new")) }, soon},
		"a pod is bound before any verdict": {func(b *testBundle, _ *records) { b.update(pod("fresh", on("w1"))) }, soon},
		"a running pod goes":                {func(b *testBundle, _ *records) { b.deletePod("running") }, soon},
		"a pod has finished":                {func(b *testBundle, _ *records) { b.update(pod("running", on("w1"), succeeded)) }, soon},
		"the scheduler words it otherwise": {func(b *testBundle, _ *records) {
			p := pod("waiting", unschedulable("another wording"))
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(time.Now().Add(-time.Second))
			b.update(p)
		}, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				recs := &records{present: []events.NodeRecord{{Name: "w0", Phase: "created"}}}
				b := setup(t, func(o *collector.Options) { o.Records = recs },
					node("w1"), pod("waiting", unschedulable("no room")), pod("fresh"), pod("running", on("w1")))
				defer b.stop()
				b.after(time.Second)
				tt.change(b, recs)
				require.Empty(t, every[events.SnapshotChanged](t, b.after(tt.within-time.Millisecond)))
				d := one[events.SnapshotChanged](t, b.after(time.Millisecond))
				require.NotEqual(t, d.Base, d.Digest)
				require.Equal(t, d.Digest, foldOf(t, b.bus.all()).Digest())
			})
		})
	}
}

func TestHeartbeatsAndFinishedPodsMakeNoDelta(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		since := time.Now()
		b := setup(t, nil, node("w1", ready(since, corev1.ConditionTrue)))
		defer b.stop()
		b.after(time.Second)
		for range 40 {
			b.update(node("w1", ready(since, corev1.ConditionTrue)))
			b.after(time.Second)
		}
		b.create(pod("done", on("w1"), succeeded))
		b.after(10 * time.Second)
		for _, d := range every[events.SnapshotChanged](t, b.bus.all()) {
			require.Empty(t, d.Changed)
		}
		require.Len(t, every[events.SnapshotChanged](t, b.bus.all()), 5)
	})
}

func TestNothingIsPublishedFromAHalfFilledCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &testBundle{}
		var refuse atomic.Bool
		refuse.Store(true)
		*b = *setup(t, func(o *collector.Options) {
			o.Client.(*fake.Clientset).PrependReactor("list", "poddisruptionbudgets", func(k8stesting.Action) (bool, runtime.Object, error) { return refuse.Load(), nil, errDown })
		}, node("w1", claimed))
		defer b.stop()
		require.Empty(t, b.after(5*time.Minute))
		require.ErrorContains(t, b.collector.Ready(), "waiting for [poddisruptionbudgets]")
		refuse.Store(false)
		require.NotEmpty(t, every[events.SnapshotCaptured](t, b.after(2*time.Minute)))
		require.NoError(t, b.collector.Ready())
	})
}

func TestFreshnessStandsStillWhileTheAPIServerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		b := setup(t, func(o *collector.Options) {
			o.Client.(*fake.Clientset).PrependReactor("get", "version", func(k8stesting.Action) (bool, runtime.Object, error) { return down.Load(), nil, errDown })
		}, node("w1"))
		defer b.stop()
		b.after(20 * time.Second)
		down.Store(true)
		cut := time.Now()
		deltas := every[events.SnapshotChanged](t, b.after(time.Minute))
		require.NotEmpty(t, deltas, "an unreachable API server stops no snapshot")
		last := deltas[len(deltas)-1]
		require.False(t, last.Freshness[events.KindNode].After(cut))
		require.False(t, last.Freshness[events.KindPod].After(cut))
		require.Len(t, foldOf(t, b.bus.all()).Nodes(), 1, "unknown is not zero")
		require.ErrorContains(t, b.collector.Ready(), "not known to be current")
		down.Store(false)
		deltas = every[events.SnapshotChanged](t, b.after(15*time.Second))
		require.WithinDuration(t, time.Now(), deltas[len(deltas)-1].Freshness[events.KindNode], 15*time.Second)
		require.NoError(t, b.collector.Ready())
	})
}

func TestFreshnessOfAKindStandsStillWhileItsWatchIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		watches := make(chan *watch.FakeWatcher, 10)
		var refuse atomic.Bool
		b := setup(t, func(o *collector.Options) {
			o.Client.(*fake.Clientset).PrependWatchReactor("persistentvolumes", func(k8stesting.Action) (bool, watch.Interface, error) {
				if refuse.Load() {
					return true, nil, errDown
				}
				w := watch.NewFake()
				watches <- w
				return true, w, nil
			})
		}, node("w1"))
		defer b.stop()
		b.after(20 * time.Second)
		require.Len(t, watches, 1)
		refuse.Store(true)
		(<-watches).Stop()
		cut := time.Now()
		deltas := every[events.SnapshotChanged](t, b.after(time.Minute))
		last := deltas[len(deltas)-1]
		require.False(t, last.Freshness[events.KindPod].After(cut), "where a pod's data lives is a matter of volumes")
		require.WithinDuration(t, last.CapturedAt, last.Freshness[events.KindNode], 5*time.Second)
		require.ErrorContains(t, b.collector.Ready(), "persistentvolumes")
		count, err := testutil.GatherAndCount(b.reg, "autoscaler_kubernetes_api_errors_total")
		require.NoError(t, err)
		require.Equal(t, 1, count)
		refuse.Store(false)
		deltas = every[events.SnapshotChanged](t, b.after(2*time.Minute))
		last = deltas[len(deltas)-1]
		require.WithinDuration(t, last.CapturedAt, last.Freshness[events.KindPod], 5*time.Second)
	})
}

func TestWhatTheBusDoesNotTakeIsSentAgainAsAFullSnapshot(t *testing.T) {
	t.Parallel()
	for name, stores := range map[string]bool{"refused": false, "stored, but the answer was lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := setup(t, nil, node("w1"))
				defer b.stop()
				b.after(2 * time.Second)
				b.bus.set(func() (bool, error) { return stores, errDown })
				b.create(pod("a", unschedulable("no room")))
				b.after(100 * time.Millisecond)
				b.create(pod("b", unschedulable("no room")))
				b.after(30 * time.Second)
				require.ErrorContains(t, b.collector.Ready(), "no answer")
				b.bus.set(nil)
				es := b.after(5 * time.Second)
				s := every[events.SnapshotCaptured](t, es)
				require.Len(t, s, 1)
				require.Len(t, s[0].Objects.Pods, 2)
				require.NoError(t, b.collector.Ready())
				// From there on it goes by deltas again.
				b.create(pod("c", unschedulable("no room")))
				d := one[events.SnapshotChanged](t, b.after(60*time.Millisecond))
				require.Equal(t, s[0].Digest, d.Base)
				require.Equal(t, d.Digest, foldOf(t, b.bus.all()).Digest())
			})
		})
	}
}

func TestALaggingDecisionGetsFewerSnapshots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lag atomic.Int64
		lag.Store(10)
		b := setup(t, func(o *collector.Options) { o.Lag = func() int { return int(lag.Load()) } }, node("w1"))
		defer b.stop()
		b.after(time.Second)
		b.create(node("w2"))
		require.Empty(t, b.after(499*time.Millisecond))
		require.Len(t, b.after(time.Millisecond), 1)
		lag.Store(0)
		b.create(node("w3"))
		require.Len(t, b.after(50*time.Millisecond), 1)
	})
}

func TestANewCollectorOfTheSameProcessStartsWithANewFullSnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1"))
		b.after(time.Second)
		b.stop()
		require.Empty(t, b.after(time.Minute))
		b.start(func(o *collector.Options) { o.Epoch = 2 })
		defer b.stop()
		require.EqualValues(t, 2, one[events.SnapshotCaptured](t, b.after(time.Millisecond)).Epoch)
		n, err := testutil.GatherAndCount(b.reg, "autoscaler_collector_snapshot_age_seconds")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

func TestOptionsAreValidatedTogether(t *testing.T) {
	t.Parallel()
	_, err := collector.New(collector.Options{Cluster: "No Label", FullEvery: -1})
	for _, says := range []string{"cluster", "client is nil", "publisher is nil", "epoch", "full every"} {
		require.ErrorContains(t, err, says)
	}
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }
func succeeded(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }
func record(name, phase string) collector.RecordChange {
	return collector.RecordChange{Record: events.NodeRecord{Name: name, Phase: phase}}
}
