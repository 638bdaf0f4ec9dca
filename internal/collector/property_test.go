package collector_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

// Whatever happens to the cluster and to the bus, and in whatever order: what
// the published snapshots add up to is what a fresh look at the cluster gives.
func TestTheSumOfAllSnapshotsIsWhatAFreshLookGives(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 1))
				recs := &records{}
				b := setup(t, func(o *collector.Options) { o.Records = recs }, node("n0"))
				defer b.stop()
				b.after(time.Second)
				w := world{b: b, r: r, records: recs}
				for step := range 150 {
					w.change()
					switch r.IntN(8) {
					case 0:
						b.after(time.Duration(r.IntN(12000)) * time.Millisecond)
					case 1, 2:
						b.after(time.Duration(r.IntN(100)) * time.Millisecond)
					default:
						synctest.Wait()
					}
					switch r.IntN(12) {
					case 0:
						store := r.IntN(2) == 0
						b.bus.set(func() (bool, error) { return store, errDown })
					case 1, 2, 3:
						b.bus.set(nil)
					}
					if step%25 == 24 {
						b.bus.set(nil)
						b.after(20 * time.Second)
						w.compare(t)
					}
				}
			})
		})
	}
}

type world struct {
	b       *testBundle
	r       *rand.Rand
	records *records
}

func (w *world) compare(t *testing.T) {
	t.Helper()
	published := foldOf(t, w.b.bus.all())
	var present []events.NodeRecord
	for _, rec := range published.Records() {
		present = append(present, rec)
	}
	look := &testBundle{t: t, client: w.b.client, bus: &bus{ids: map[string]bool{}}, reg: nil}
	look.start(func(o *collector.Options) { o.Registerer, o.Records = nil, &records{present: present} })
	defer look.stop()
	s := one[events.SnapshotCaptured](t, look.after(time.Millisecond))
	fresh := events.NewFold()
	require.NoError(t, fresh.Capture(s))
	require.Equal(t, fresh.Nodes(), published.Nodes())
	require.Equal(t, fresh.Pods(), published.Pods())
	require.Equal(t, fresh.Classes(), published.Classes())
	require.Equal(t, fresh.PDBs(), published.PDBs())
	require.Equal(t, fresh.Namespaces(), published.Namespaces())
	require.Equal(t, fresh.Digest(), published.Digest())
	for _, p := range published.Pods() {
		require.Contains(t, published.Classes(), p.Class)
	}
	// The records port of this test has no second reader to compare with.
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	want := map[string]events.NodeRecord{}
	for _, rec := range w.records.present {
		want[rec.Name] = rec
	}
	require.Equal(t, want, published.Records())
}

// change does one random thing to the cluster. What is not there to be changed
// is no error.
func (w *world) change() {
	ctx, r, client := context.Background(), w.r, w.b.client
	name := fmt.Sprint("p", r.IntN(6))
	nodeName := fmt.Sprint("n", r.IntN(4))
	pods, nodes := client.CoreV1().Pods("shop"), client.CoreV1().Nodes()
	edit := func(p *corev1.Pod) {
		p.Labels["app"] = fmt.Sprint("app", r.IntN(3))
		if r.IntN(3) == 0 {
			p.Spec.Volumes = []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: fmt.Sprint("c", r.IntN(2))}}}}
		}
	}
	switch r.IntN(16) {
	case 0, 1:
		_, _ = pods.Create(ctx, pod(name, edit), metav1.CreateOptions{})
	case 2, 3:
		_, _ = pods.Create(ctx, pod(name, edit, unschedulable("no room")), metav1.CreateOptions{})
	case 4:
		_, _ = pods.Update(ctx, pod(name, edit, unschedulable(fmt.Sprint("no room", r.IntN(9)))), metav1.UpdateOptions{})
	case 5:
		_, _ = pods.Update(ctx, pod(name, edit, on(nodeName)), metav1.UpdateOptions{})
	case 6:
		_, _ = pods.Update(ctx, pod(name, on(nodeName), succeeded), metav1.UpdateOptions{})
	case 7:
		_ = pods.Delete(ctx, name, metav1.DeleteOptions{})
	case 8:
		_, _ = nodes.Create(ctx, node(nodeName, claimed), metav1.CreateOptions{})
	case 9:
		_, _ = nodes.Update(ctx, node(nodeName, claimed, ready(time.Now().Truncate(time.Second), corev1.ConditionTrue)), metav1.UpdateOptions{})
	case 10:
		_ = nodes.Delete(ctx, nodeName, metav1.DeleteOptions{})
	case 11:
		w.changeRecord(nodeName)
	case 12:
		w.changeVolume(fmt.Sprint("c", r.IntN(2)))
	case 13:
		budgets := client.PolicyV1().PodDisruptionBudgets("shop")
		if r.IntN(3) == 0 {
			_ = budgets.Delete(ctx, "web", metav1.DeleteOptions{})
			return
		}
		_, _ = budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}}}, metav1.CreateOptions{})
	case 14:
		w.changeStorageClass(fmt.Sprint("s", r.IntN(2)))
	case 15:
		namespaces := client.CoreV1().Namespaces()
		if r.IntN(3) == 0 {
			_ = namespaces.Delete(ctx, nodeName, metav1.DeleteOptions{})
			return
		}
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"team": name}}}
		_, _ = namespaces.Create(ctx, n, metav1.CreateOptions{})
		_, _ = namespaces.Update(ctx, n, metav1.UpdateOptions{})
	}
}

func (w *world) changeStorageClass(name string) {
	ctx, classes := context.Background(), w.b.client.StorageV1().StorageClasses()
	if w.r.IntN(3) == 0 {
		_ = classes.Delete(ctx, name, metav1.DeleteOptions{})
		return
	}
	mode := []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}[w.r.IntN(2)]
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "p", VolumeBindingMode: &mode}
	_, _ = classes.Create(ctx, class, metav1.CreateOptions{})
	_, _ = classes.Update(ctx, class, metav1.UpdateOptions{})
}

func (w *world) changeVolume(name string) {
	ctx, client := context.Background(), w.b.client
	switch w.r.IntN(5) {
	case 4:
		class := fmt.Sprint("s", w.r.IntN(2))
		_, _ = client.CoreV1().PersistentVolumeClaims("shop").Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class}}, metav1.CreateOptions{})
	case 0:
		_, _ = client.CoreV1().PersistentVolumeClaims("shop").Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}}, metav1.CreateOptions{})
	case 1:
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}}
		if w.r.IntN(2) == 0 {
			v.Spec.Local, v.Labels = &corev1.LocalVolumeSource{Path: "/x"}, map[string]string{corev1.LabelTopologyZone: "x"}
		}
		_, _ = client.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	case 2:
		_ = client.CoreV1().PersistentVolumes().Delete(ctx, "pv-"+name, metav1.DeleteOptions{})
	case 3:
		_ = client.CoreV1().PersistentVolumeClaims("shop").Delete(ctx, name, metav1.DeleteOptions{})
	}
}

// changeRecord changes or deletes a record, or cuts the watch instead.
func (w *world) changeRecord(name string) {
	recs := w.records
	recs.mu.Lock()
	var present []events.NodeRecord
	for _, rec := range recs.present {
		if rec.Name != name {
			present = append(present, rec)
		}
	}
	now := collector.RecordChange{Record: events.NodeRecord{Name: name, Phase: fmt.Sprint("phase", w.r.IntN(5))}, Deleted: w.r.IntN(3) == 0}
	if !now.Deleted {
		present = append(present, now.Record)
	}
	recs.present = present
	recs.mu.Unlock()
	if w.r.IntN(4) == 0 {
		recs.cut(present...)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		return
	}
	recs.send(now)
}
