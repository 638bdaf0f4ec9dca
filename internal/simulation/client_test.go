package simulation

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

func secret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": "test"}}, Data: map[string][]byte{"a": []byte("1")}}
}

func next(t *testing.T, w watch.Interface) (watch.EventType, metav1.Object) {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		require.True(t, ok, "the watch has ended")
		o, ok := e.Object.(metav1.Object)
		require.True(t, ok, "%T", e.Object)
		return e.Type, o
	case <-time.After(10 * time.Second):
		require.Fail(t, "nothing to watch")
		return "", nil
	}
}

func TestWritesAreCheckedAgainstVersionAndUid(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	ctx, secrets := t.Context(), b.Client().CoreV1().Secrets("default")
	made, err := secrets.Create(ctx, secret("a"), metav1.CreateOptions{})
	require.NoError(t, err)
	require.NotEmpty(t, made.UID)
	require.NotEmpty(t, made.ResourceVersion)
	require.Equal(t, epoch, made.CreationTimestamp.UTC())
	_, err = secrets.Create(ctx, secret("a"), metav1.CreateOptions{})
	require.True(t, apierrors.IsAlreadyExists(err))
	_, err = secrets.Create(ctx, made, metav1.CreateOptions{})
	require.True(t, apierrors.IsAlreadyExists(err))
	_, err = secrets.Create(ctx, &corev1.Secret{}, metav1.CreateOptions{})
	require.True(t, apierrors.IsBadRequest(err))

	same, err := secrets.Update(ctx, made, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, made.ResourceVersion, same.ResourceVersion, "no change is no write")
	changed := made.DeepCopy()
	changed.Data["a"] = []byte("2")
	changed, err = secrets.Update(ctx, changed, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NotEqual(t, made.ResourceVersion, changed.ResourceVersion)
	_, err = secrets.Update(ctx, made, metav1.UpdateOptions{})
	require.True(t, apierrors.IsConflict(err), "of an old version")

	patch := func(format string, args ...any) error {
		_, err := secrets.Patch(ctx, "a", types.StrategicMergePatchType, fmt.Appendf(nil, format, args...), metav1.PatchOptions{})
		return err
	}
	require.True(t, apierrors.IsConflict(patch(`{"metadata":{"resourceVersion":%q},"data":{"a":"Mw=="}}`, made.ResourceVersion)))
	require.True(t, apierrors.IsConflict(patch(`{"metadata":{"uid":"other"}}`)))
	require.NoError(t, patch(`{"metadata":{"uid":%q,"resourceVersion":%q},"data":{"a":"Mw=="}}`, changed.UID, changed.ResourceVersion))
	require.True(t, apierrors.IsBadRequest(patch(`{`)))
	_, err = secrets.Patch(ctx, "a", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/labels/of"}]`), metav1.PatchOptions{})
	require.NoError(t, err)
	_, err = secrets.Patch(ctx, "a", types.ApplyPatchType, []byte(`{}`), metav1.PatchOptions{})
	require.True(t, apierrors.IsBadRequest(err), "server-side apply is not served")
	got, err := secrets.Get(ctx, "a", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "3", string(got.Data["a"]))
	require.Empty(t, got.Labels)

	other := types.UID("other")
	require.True(t, apierrors.IsConflict(secrets.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}})))
	require.True(t, apierrors.IsConflict(secrets.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &made.ResourceVersion}})))
	require.NoError(t, secrets.Delete(ctx, "a", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}))
	require.NoError(t, secrets.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &got.UID}}))
	require.True(t, apierrors.IsNotFound(secrets.Delete(ctx, "a", metav1.DeleteOptions{})))
	_, err = secrets.Get(ctx, "a", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
	_, err = secrets.Update(ctx, got, metav1.UpdateOptions{})
	require.True(t, apierrors.IsNotFound(err))
	require.True(t, apierrors.IsNotFound(patch(`{}`)))
}

func TestDryRunWritesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	ctx, nodes := t.Context(), b.Client().CoreV1().Nodes()
	dry := []string{metav1.DryRunAll}
	_, err := b.Client().CoreV1().Secrets("default").Create(ctx, secret("a"), metav1.CreateOptions{DryRun: dry})
	require.NoError(t, err)
	_, err = b.Client().CoreV1().Secrets("default").Get(ctx, "a", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
	n, err := nodes.Patch(ctx, "server-0", types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{DryRun: dry})
	require.NoError(t, err)
	require.True(t, n.Spec.Unschedulable)
	_, err = nodes.Update(ctx, n, metav1.UpdateOptions{DryRun: dry})
	require.NoError(t, err)
	require.False(t, b.node("server-0").Spec.Unschedulable)
}

func TestStatusAndSpecAreWrittenApart(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	ctx, nodes := t.Context(), b.Client().CoreV1().Nodes()
	n, err := nodes.Get(ctx, "server-0", metav1.GetOptions{})
	require.NoError(t, err)
	n.Spec.Unschedulable, n.Status.NodeInfo.KernelVersion = true, "6.1"
	_, err = nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.False(t, b.node("server-0").Spec.Unschedulable)
	require.Equal(t, "6.1", b.node("server-0").Status.NodeInfo.KernelVersion)

	n, err = nodes.Get(ctx, "server-0", metav1.GetOptions{})
	require.NoError(t, err)
	before := n.Generation
	n.Spec.Unschedulable, n.Status.NodeInfo.KernelVersion = true, "6.2"
	n, err = nodes.Update(ctx, n, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.True(t, n.Spec.Unschedulable)
	require.Equal(t, "6.1", n.Status.NodeInfo.KernelVersion)
	require.Equal(t, before+1, n.Generation)
}

func TestFinalizersKeepAnObjectUntilTheyAreGone(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	ctx, secrets := t.Context(), b.Client().CoreV1().Secrets("default")
	held := secret("a")
	held.Finalizers = []string{"example.com/hold"}
	_, err := secrets.Create(ctx, held, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, secrets.Delete(ctx, "a", metav1.DeleteOptions{}))
	got, err := secrets.Get(ctx, "a", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotNil(t, got.DeletionTimestamp)
	got.Finalizers = nil
	_, err = secrets.Update(ctx, got, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = secrets.Get(ctx, "a", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}

func TestPodsAreListedAndWatchedByNode(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	onServer := metav1.ListOptions{FieldSelector: "spec.nodeName=server-0", LabelSelector: "app=web"}
	pods := b.Client().CoreV1().Pods("")
	w, err := pods.Watch(t.Context(), onServer)
	require.NoError(t, err)
	defer w.Stop()
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 1, CPUMilli: 1500}))
	b.advance(time.Second)
	require.NoError(t, b.Scale(t.Context(), "default", "web", 2)) // the second does not fit
	b.advance(time.Second)
	list, err := pods.List(t.Context(), onServer)
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	all, err := pods.List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, all.Items, 2)

	event, o := next(t, w)
	require.Equal(t, watch.Added, event, "it enters the selection when it is bound")
	require.Equal(t, list.Items[0].Name, o.GetName())
	event, _ = next(t, w)
	require.Equal(t, watch.Modified, event, "Running")
	require.NoError(t, pods.DeleteCollection(t.Context(), metav1.DeleteOptions{}, onServer))
	event, o = next(t, w)
	require.Equal(t, watch.Modified, event)
	require.NotNil(t, o.GetDeletionTimestamp())
	b.advance(time.Second)
	event, _ = next(t, w)
	require.Equal(t, watch.Deleted, event)

	relabelled := metav1.ListOptions{LabelSelector: "role=a"}
	nodes, err := b.Client().CoreV1().Nodes().Watch(t.Context(), relabelled)
	require.NoError(t, err)
	defer nodes.Stop()
	for _, role := range []string{`"a"`, `null`} {
		_, err := b.Client().CoreV1().Nodes().Patch(t.Context(), "server-0", types.MergePatchType, []byte(`{"metadata":{"labels":{"role":`+role+`}}}`), metav1.PatchOptions{})
		require.NoError(t, err)
	}
	event, _ = next(t, nodes)
	require.Equal(t, watch.Added, event)
	event, _ = next(t, nodes)
	require.Equal(t, watch.Deleted, event, "it has left the selection")
}

func TestWatchResumesWhereTheListEndedAndSaysWhenThatIsTooOld(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	ctx, secrets := t.Context(), b.Client().CoreV1().Secrets("default")
	list, err := secrets.List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	const many = 2*historyLength + 10
	for i := range 300 { // more than client-go's own fake survives unread
		_, err := secrets.Create(ctx, secret(fmt.Sprintf("s-%03d", i)), metav1.CreateOptions{})
		require.NoError(t, err)
	}
	w, err := secrets.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	require.NoError(t, err)
	for i := range 300 {
		event, o := next(t, w)
		require.Equal(t, watch.Added, event)
		require.Equal(t, fmt.Sprintf("s-%03d", i), o.GetName())
	}
	w.Stop()
	w.Stop()
	_, open := <-w.ResultChan()
	require.False(t, open)

	_, err = secrets.Watch(ctx, metav1.ListOptions{ResourceVersion: "x"})
	require.True(t, apierrors.IsBadRequest(err))
	for i := range many {
		require.NoError(t, b.store.modify(secretsResource, key{"default", "s-000"}, func(o object) { o.SetAnnotations(map[string]string{"i": fmt.Sprint(i)}) }))
	}
	_, err = secrets.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	require.True(t, apierrors.IsResourceExpired(err))
}

// TestInformersFollow runs client-go's own reflectors, as the collector does.
func TestInformersFollow(t *testing.T) {
	t.Parallel()
	w, err := New(Options{Delays: Delays{Join: time.Millisecond, Ready: time.Millisecond, PodStart: -1, Schedule: -1, PodStop: time.Millisecond}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	factory := informers.NewSharedInformerFactory(w.Client(), 0)
	nodes, pods := factory.Core().V1().Nodes(), factory.Core().V1().Pods()
	changed := make(chan struct{}, 1)
	for _, i := range []cache.SharedIndexInformer{nodes.Informer(), pods.Informer()} {
		signal := func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { signal() }, UpdateFunc: func(any, any) { signal() }, DeleteFunc: func(any) { signal() },
		})
		require.NoError(t, err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	require.NoError(t, w.StartAgent("m", worker("small-a")))
	require.NoError(t, w.Deploy(ctx, Workload{Name: "web", Replicas: 100, CPUMilli: 1}))
	timeout := time.After(30 * time.Second)
	for {
		ns, err := nodes.Lister().Get("small-a")
		all := len(pods.Informer().GetStore().List())
		if err == nil && nodeReady(ns) && all == 100 {
			break
		}
		select {
		case <-changed:
		case <-timeout:
			require.Fail(t, "the informers do not follow", "%d pods", all)
		}
	}
	cancel()
	require.NoError(t, <-done)
}

func TestLeaderElectionLeasesConflict(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	leases := b.Client().CoordinationV1().Leases("kube-system")
	holder := func(c kubernetes.Interface, l *coordinationv1.Lease, who string) error {
		l = l.DeepCopy()
		l.Spec.HolderIdentity = &who
		_, err := c.CoordinationV1().Leases("kube-system").Update(t.Context(), l, metav1.UpdateOptions{})
		return err
	}
	l, err := leases.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "collector"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, holder(b.Client(), l, "a"))
	require.True(t, apierrors.IsConflict(holder(b.Client(), l, "b")))
}
