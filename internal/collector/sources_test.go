package collector_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metricsfake "k8s.io/metrics/pkg/client/clientset/versioned/fake"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

func TestUsageIsReadWhereItIsServedAndUnknownElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Value
		answer.Store(func() (runtime.Object, error) {
			return &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{
				{ObjectMeta: metav1.ObjectMeta{Name: "w1"}, Timestamp: metav1.NewTime(time.Now().Truncate(time.Second)),
					Usage: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("1Gi")}},
				{ObjectMeta: metav1.ObjectMeta{Name: "w2"}},
			}}, nil
		})
		metrics := metricsfake.NewSimpleClientset()
		metrics.PrependReactor("list", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
			o, err := answer.Load().(func() (runtime.Object, error))()
			return true, o, err
		})
		b := setup(t, func(o *collector.Options) { o.Metrics = metrics }, node("w1"), node("w2"))
		defer b.stop()
		b.after(20 * time.Second)
		f := foldOf(t, b.bus.all())
		require.Len(t, f.Usage(), 1, "a node without a measurement is unknown")
		require.EqualValues(t, 250, f.Usage()["w1"].CPUMilli)
		require.EqualValues(t, 1<<30, f.Usage()["w1"].MemoryBytes)
		require.WithinDuration(t, time.Now(), f.Freshness[events.KindUsage], 25*time.Second)

		answer.Store(func() (runtime.Object, error) { return nil, errDown })
		cut := time.Now()
		b.after(time.Minute)
		f = foldOf(t, b.bus.all())
		require.Len(t, f.Usage(), 1)
		require.False(t, f.Freshness[events.KindUsage].After(cut))

		answer.Store(func() (runtime.Object, error) {
			return nil, apierrors.NewNotFound(schema.GroupResource{Group: "metrics.k8s.io", Resource: "nodes"}, "")
		})
		b.after(time.Minute)
		f = foldOf(t, b.bus.all())
		require.Empty(t, f.Usage())
		require.NotContains(t, f.Freshness, events.KindUsage)
	})
}

func TestRecordsAreTakenUpAgainWhenTheirWatchBreaks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		recs := &records{present: []events.NodeRecord{{Name: "w1", Phase: "ready"}, {Name: "w2", Phase: "created"}}}
		b := setup(t, func(o *collector.Options) { o.Records = recs })
		defer b.stop()
		b.after(30 * time.Second)
		require.Len(t, foldOf(t, b.bus.all()).Records(), 2)
		recs.cut(events.NodeRecord{Name: "w2", Phase: "ready"}, events.NodeRecord{Name: "w3", Phase: "claimed"})
		b.after(1100 * time.Millisecond)
		f := foldOf(t, b.bus.all())
		require.Equal(t, map[string]events.NodeRecord{"w2": {Name: "w2", Phase: "ready"}, "w3": {Name: "w3", Phase: "claimed"}}, f.Records())
		b.after(30 * time.Second)
		require.WithinDuration(t, time.Now(), foldOf(t, b.bus.all()).Freshness[events.KindRecord], 20*time.Second)
	})
}

func TestWhereAPodsDataLivesFollowsItsClaimsAndVolumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		withClaim := func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
				{Name: "shm", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			}
		}
		local := []events.LocalVolume{{Name: "data", Kind: events.LocalPersisted}}
		b := setup(t, nil, node("w1"), pod("a", withClaim))
		defer b.stop()
		problem, unsimulated := "does not exist", []string(nil)
		storage := func() []events.LocalVolume {
			b.after(2 * time.Second)
			f := foldOf(t, b.bus.all())
			p := f.Pods()["shop/a"]
			require.Contains(t, f.Classes(), p.Class)
			require.Equal(t, unsimulated, f.Classes()[p.Class].Unsimulated)
			if problem == "" {
				require.Empty(t, p.VolumeProblem)
			}
			require.Contains(t, p.VolumeProblem, problem)
			return p.LocalStorage
		}
		require.Empty(t, storage(), "not bound: nothing is on a node yet")
		b.update(pod("a", withClaim, on("w1")))
		problem = "" // it has been scheduled
		require.Equal(t, local, storage(), "a claim that is unknown counts as local")
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}}
		_, err := b.client.CoreV1().PersistentVolumeClaims("shop").Create(ctx, claim, metav1.CreateOptions{})
		require.NoError(t, err)
		require.Empty(t, storage(), "the claim has no volume")
		claim.Spec.VolumeName = "pv"
		_, err = b.client.CoreV1().PersistentVolumeClaims("shop").Update(ctx, claim, metav1.UpdateOptions{})
		require.NoError(t, err)
		unsimulated = []string{events.ConstraintVolumes}
		require.Equal(t, local, storage(), "a volume that is unknown counts as local")
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
		volume.Spec.NFS = &corev1.NFSVolumeSource{Server: "nas", Path: "/"}
		_, err = b.client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
		require.NoError(t, err)
		unsimulated = nil
		require.Empty(t, storage())
		require.NoError(t, b.client.CoreV1().PersistentVolumes().Delete(ctx, "pv", metav1.DeleteOptions{}))
		unsimulated = []string{events.ConstraintVolumes}
		require.Equal(t, local, storage())
		unsimulated = nil
		require.NoError(t, b.client.CoreV1().PersistentVolumeClaims("shop").Delete(ctx, "data", metav1.DeleteOptions{}))
		require.Equal(t, local, storage())
		b.deletePod("a")
		b.after(2 * time.Second)
		f := foldOf(t, b.bus.all())
		require.Empty(t, f.Pods())
		require.Empty(t, f.Classes(), "a class without pods is gone")
	})
}

func TestWhatAPodWaitsForFollowsStorageClassesAndNamespacesAreKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		name := "local-path"
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &name}}
		b := setup(t, nil, claim, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "red"}}},
			pod("a", func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
			}))
		defer b.stop()
		look := func() (*events.Fold, events.SnapshotPod) {
			b.after(2 * time.Second)
			f := foldOf(t, b.bus.all())
			require.Contains(t, f.Freshness, events.KindNamespace)
			return f, f.Pods()["shop/a"]
		}
		f, p := look()
		require.Contains(t, p.VolumeProblem, "storage class local-path does not exist")
		require.Equal(t, map[string]events.SnapshotNamespace{"shop": {Name: "shop", Labels: map[string]string{"team": "red"}}}, f.Namespaces())

		waits := storagev1.VolumeBindingWaitForFirstConsumer
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "rancher.io/local-path", VolumeBindingMode: &waits}
		_, err := b.client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{})
		require.NoError(t, err)
		f, p = look()
		require.Empty(t, p.VolumeProblem)
		require.Empty(t, f.Classes()[p.Class].Unsimulated, "it fits wherever its volume can be made")

		require.NoError(t, b.client.StorageV1().StorageClasses().Delete(ctx, name, metav1.DeleteOptions{}))
		require.NoError(t, b.client.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}))
		f, p = look()
		require.NotEmpty(t, p.VolumeProblem)
		require.Empty(t, f.Namespaces())
	})
}

func TestAMissingRightIsNamedAndHealsWhenItIsGranted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var granted atomic.Bool
		var out lines
		forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "storage.k8s.io", Resource: "storageclasses"}, "",
			errors.New(`User "reader" cannot list resource "storageclasses" in API group "storage.k8s.io" at the cluster scope`))
		b := setup(t, func(o *collector.Options) {
			o.Logger = slog.New(slog.NewTextHandler(&out, nil))
			o.Client.(*fake.Clientset).PrependReactor("list", "storageclasses", func(k8stesting.Action) (bool, runtime.Object, error) {
				return !granted.Load(), nil, forbidden
			})
		}, node("w1"))
		defer b.stop()
		b.after(2 * time.Minute)
		require.Empty(t, b.bus.all(), "pods that wait for volumes can't be judged")
		require.Len(t, out.with("lacks the right to list and watch storageclasses"), 1, "told once")
		told := out.with("lacks the right to list and watch storageclasses")[0]
		for _, part := range []string{"level=ERROR", "deploy/kubernetes/rbac.yaml", "no snapshot is published until it can", `cannot list resource`} {
			require.Contains(t, told, part)
		}
		require.Contains(t, out.with("no snapshot yet")[0], "is forbidden", "the reminder has the cause")
		require.ErrorContains(t, b.collector.Ready(), "waiting for [storageclasses]: storageclasses.storage.k8s.io is forbidden")

		granted.Store(true)
		require.NotEmpty(t, every[events.SnapshotCaptured](t, b.after(2*time.Minute)))
		require.NoError(t, b.collector.Ready())
		require.Len(t, out.with("can be watched again"), 1)
	})
}

func TestAnOutageThatTurnsOutToBeAMissingRightIsToldAsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		var out lines
		b := setup(t, func(o *collector.Options) {
			o.Logger = slog.New(slog.NewTextHandler(&out, nil))
			o.Client.(*fake.Clientset).PrependReactor("list", "namespaces", func(k8stesting.Action) (bool, runtime.Object, error) {
				if up.Load() {
					return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, "", errors.New("no"))
				}
				return true, nil, errDown
			})
		})
		defer b.stop()
		b.after(time.Minute)
		require.Len(t, out.with("can't be watched"), 1)
		require.Empty(t, out.with("lacks the right"))
		up.Store(true)
		b.after(2 * time.Minute)
		require.Len(t, out.with("lacks the right to list and watch namespaces"), 1)
	})
}

// lines is a log that can be searched.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) with(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.all), func(line string) bool { return !strings.Contains(line, text) })
}
