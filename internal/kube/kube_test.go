package kube_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

type testBundle struct {
	client *fake.Clientset
	actor  *kube.Actor
	reg    *prometheus.Registry
}

func setup(t *testing.T, objects ...runtime.Object) *testBundle {
	t.Helper()
	b := &testBundle{client: fake.NewClientset(objects...), reg: prometheus.NewRegistry()}
	var err error
	b.actor, err = kube.NewActor(b.client, kube.Options{Registerer: b.reg, Timeout: time.Minute})
	require.NoError(t, err)
	return b
}

func (b *testBundle) fail(verb, resource string, err error) {
	b.client.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, err })
}

func (b *testBundle) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := b.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return n
}

func node(name, uid, claim string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), Labels: map[string]string{}}}
	if claim != "" {
		n.Labels[events.LabelClaim] = claim
	}
	return n
}

func TestCordonIsOursOnceHoweverOftenItIsAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t, node("w1", "u1", "c1"))
	for range 2 {
		ours, err := b.actor.Cordon(t.Context(), "w1", "r1")
		require.NoError(t, err)
		require.True(t, ours)
	}
	n := b.node(t, "w1")
	require.True(t, n.Spec.Unschedulable)
	require.Equal(t, "r1", n.Annotations[kube.AnnotationCordonedBy])

	undone, err := b.actor.Uncordon(t.Context(), "w1", "r0")
	require.NoError(t, err)
	require.False(t, undone, "the cordon serves another request")
	undone, err = b.actor.Uncordon(t.Context(), "w1", "r1")
	require.NoError(t, err)
	require.True(t, undone)
	n = b.node(t, "w1")
	require.False(t, n.Spec.Unschedulable)
	require.NotContains(t, n.Annotations, kube.AnnotationCordonedBy)
	undone, err = b.actor.Uncordon(t.Context(), "w1", "r1")
	require.NoError(t, err)
	require.False(t, undone)
}

func TestNodeIsClaimedOnceByTheMachineThatItIs(t *testing.T) {
	t.Parallel()
	mine, theirs := node("w1", "u1", ""), node("w2", "u2", "c9")
	mine.Spec.ProviderID, theirs.Spec.ProviderID = "fake://1", "fake://2"
	b := setup(t, mine, theirs)
	labels := map[string]string{events.LabelClaim: "c1", events.LabelPool: "p", "tier": "batch"}
	for range 2 {
		require.NoError(t, b.actor.Claim(t.Context(), "w1", "fake://1", "c1", labels))
	}
	require.Equal(t, labels, b.node(t, "w1").Labels)
	require.ErrorIs(t, b.actor.Claim(t.Context(), "w1", "fake://other", "c1", labels), kube.ErrNotOurs)
	require.ErrorIs(t, b.actor.Claim(t.Context(), "w2", "fake://2", "c1", labels), kube.ErrNotOurs)
	require.Equal(t, "c9", b.node(t, "w2").Labels[events.LabelClaim], "another claim's node is left alone")
	require.ErrorIs(t, b.actor.Claim(t.Context(), "w3", "", "c1", labels), kube.ErrNotFound)
	all, err := b.actor.ListNodes(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 2)
}

func TestCordonOfALaterRequestTakesOver(t *testing.T) {
	t.Parallel()
	b := setup(t, node("w1", "u1", "c1"))
	for _, id := range []string{"r1", "r2"} {
		ours, err := b.actor.Cordon(t.Context(), "w1", id)
		require.NoError(t, err)
		require.True(t, ours)
	}
	require.Equal(t, "r2", b.node(t, "w1").Annotations[kube.AnnotationCordonedBy])
	undone, err := b.actor.Uncordon(t.Context(), "w1")
	require.NoError(t, err)
	require.True(t, undone)
}

func TestCordonOfAPersonIsKept(t *testing.T) {
	t.Parallel()
	n := node("w1", "u1", "c1")
	n.Spec.Unschedulable = true
	b := setup(t, n)
	ours, err := b.actor.Cordon(t.Context(), "w1", "r1")
	require.NoError(t, err)
	require.False(t, ours)
	undone, err := b.actor.Uncordon(t.Context(), "w1")
	require.NoError(t, err)
	require.False(t, undone)
	got := b.node(t, "w1")
	require.True(t, got.Spec.Unschedulable)
	require.NotContains(t, got.Annotations, kube.AnnotationCordonedBy)
}

func TestAPersonMayUndoAnyCordon(t *testing.T) {
	t.Parallel()
	theirs := node("w1", "u1", "c1")
	theirs.Spec.Unschedulable = true
	b := setup(t, theirs, node("w2", "u2", "c2"))
	_, err := b.actor.Cordon(t.Context(), "w2", "r1")
	require.NoError(t, err)
	for _, name := range []string{"w1", "w2", "w2"} {
		require.NoError(t, b.actor.UncordonAny(t.Context(), name))
		n := b.node(t, name)
		require.False(t, n.Spec.Unschedulable)
		require.NotContains(t, n.Annotations, kube.AnnotationCordonedBy)
	}
	require.ErrorIs(t, b.actor.UncordonAny(t.Context(), "w3"), kube.ErrNotFound)
}

func TestCordonLooksAgainAfterAConflict(t *testing.T) {
	t.Parallel()
	b := setup(t, node("w1", "u1", "c1"))
	conflicts := 0
	b.client.PrependReactor("patch", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
		conflicts++
		if conflicts > 1 {
			return false, nil, nil
		}
		return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "w1", errors.New("changed"))
	})
	ours, err := b.actor.Cordon(t.Context(), "w1", "r1")
	require.NoError(t, err)
	require.True(t, ours)
	require.True(t, b.node(t, "w1").Spec.Unschedulable)
}

func TestActsOnAMissingNodeAreNotFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ours, err := b.actor.Cordon(t.Context(), "w1", "r1")
	require.ErrorIs(t, err, kube.ErrNotFound)
	require.False(t, ours)
	_, err = b.actor.Uncordon(t.Context(), "w1", "r1")
	require.ErrorIs(t, err, kube.ErrNotFound)
	_, err = b.actor.GetNode(t.Context(), "w1")
	require.ErrorIs(t, err, kube.ErrNotFound)
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "w1", "u1", "c1"), kube.ErrNotFound)
	require.ErrorIs(t, b.actor.DeleteNodePassword(t.Context(), "w1"), kube.ErrNotFound)
	require.ErrorIs(t, b.actor.Evict(t.Context(), "shop", "web", "u"), kube.ErrNotFound)
	count, err := testutil.GatherAndCount(b.reg, "autoscaler_kubernetes_api_errors_total")
	require.NoError(t, err)
	require.Zero(t, count, "not found is an answer, no error of the API")
}

func TestFailuresAreWrappedWithTheActAndCounted(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	for name, tt := range map[string]struct {
		verb, resource string
		act            func(ctx context.Context, a *kube.Actor) error
		says           string
	}{
		"get":      {"get", "nodes", func(ctx context.Context, a *kube.Actor) error { _, err := a.GetNode(ctx, "w1"); return err }, "read node w1"},
		"list":     {"list", "nodes", func(ctx context.Context, a *kube.Actor) error { _, err := a.ListOurNodes(ctx, "c"); return err }, "list nodes"},
		"budgets":  {"list", "poddisruptionbudgets", func(ctx context.Context, a *kube.Actor) error { _, err := a.Budgets(ctx); return err }, "list disruption budgets"},
		"pods":     {"list", "pods", func(ctx context.Context, a *kube.Actor) error { _, err := a.PodsOnNode(ctx, "w1"); return err }, "list pods on node w1"},
		"cordon":   {"patch", "nodes", func(ctx context.Context, a *kube.Actor) error { _, err := a.Cordon(ctx, "w1", "r"); return err }, "cordon node w1"},
		"version":  {"get", "version", func(ctx context.Context, a *kube.Actor) error { _, err := a.ServerVersion(ctx); return err }, "version"},
		"evict":    {"create", "pods", func(ctx context.Context, a *kube.Actor) error { return a.Evict(ctx, "shop", "web", "u") }, "evict pod shop/web"},
		"delete":   {"delete", "nodes", func(ctx context.Context, a *kube.Actor) error { return a.DeleteNode(ctx, "w1", "u1", "c1") }, "delete node w1"},
		"password": {"delete", "secrets", func(ctx context.Context, a *kube.Actor) error { return a.DeleteNodePassword(ctx, "w1") }, "delete secret kube-system/w1.node-password.k3s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, node("w1", "u1", "c1"))
			b.fail(tt.verb, tt.resource, down)
			err := tt.act(t.Context(), b.actor)
			require.ErrorIs(t, err, down)
			require.ErrorContains(t, err, tt.says)
			count, err := testutil.GatherAndCount(b.reg, "autoscaler_kubernetes_api_errors_total")
			require.NoError(t, err)
			require.Equal(t, 1, count)
		})
	}
}

func TestNodesWithAClaimOfThisClusterAreOurs(t *testing.T) {
	t.Parallel()
	theirs := node("w3", "u3", "c3")
	theirs.Labels[events.LabelCluster] = "other"
	mine := node("w2", "u2", "c2")
	mine.Labels[events.LabelCluster] = "lab"
	b := setup(t, node("server", "u0", ""), node("w1", "u1", "c1"), mine, theirs)
	nodes, err := b.actor.ListOurNodes(t.Context(), "lab")
	require.NoError(t, err)
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	require.ElementsMatch(t, []string{"w1", "w2"}, names)
}

func TestDeleteNodeDeletesOnlyTheNodeOfTheClaim(t *testing.T) {
	t.Parallel()
	b := setup(t, node("server", "u0", ""), node("w1", "u1", "c1"))
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "server", "u0", "c1"), kube.ErrNotOurs)
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "server", "u0", ""), kube.ErrNotOurs)
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "w1", "u1", "c2"), kube.ErrNotOurs)
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "w1", "u2", "c1"), kube.ErrReplaced)
	b.node(t, "w1")
	require.NoError(t, b.actor.DeleteNode(t.Context(), "w1", "u1", "c1"))
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "w1", "u1", "c1"), kube.ErrNotFound)
	b.node(t, "server")
}

func TestDeleteNodeGivesTheUIDAsAPrecondition(t *testing.T) {
	t.Parallel()
	b := setup(t, node("w1", "u1", "c1"))
	b.client.PrependReactor("delete", "nodes", func(a k8stesting.Action) (bool, runtime.Object, error) {
		require.Equal(t, "u1", string(*a.(k8stesting.DeleteActionImpl).DeleteOptions.Preconditions.UID))
		return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "w1", errors.New("precondition failed"))
	})
	require.ErrorIs(t, b.actor.DeleteNode(t.Context(), "w1", "", "c1"), kube.ErrReplaced)
}

func TestDeleteNodePasswordDeletesTheSecretOfTheServer(t *testing.T) {
	t.Parallel()
	b := setup(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "w1.node-password.k3s"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "w2.node-password.k3s"}})
	require.NoError(t, b.actor.DeleteNodePassword(t.Context(), "w1"))
	require.ErrorIs(t, b.actor.DeleteNodePassword(t.Context(), "w1"), kube.ErrNotFound)
	left, err := b.client.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, left.Items, 1)
}

func TestEvictionGivesTheUIDAndSaysWhichBudgetForbidsIt(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/eviction-429.json")
	require.NoError(t, err)
	var recorded metav1.Status
	require.NoError(t, json.Unmarshal(raw, &recorded))
	busy := apierrors.NewTooManyRequests("slow down", 1)
	for name, tt := range map[string]struct {
		answer error
		want   *kube.EvictionBlocked
		is     error
	}{
		"accepted": {},
		"budget used up": {answer: &apierrors.StatusError{ErrStatus: recorded},
			want: &kube.EvictionBlocked{PDB: "shop/web", Message: "The disruption budget web needs 6 healthy pods and has 6 currently"}},
		"two budgets": {answer: &apierrors.StatusError{ErrStatus: metav1.Status{Code: 500, Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}},
			want: &kube.EvictionBlocked{Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}},
		"a server that is merely busy": {answer: busy, is: busy},
		"gone":                         {answer: apierrors.NewNotFound(corev1.Resource("pods"), "web-1"), is: kube.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.client.PrependReactor("create", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
				e := a.(k8stesting.CreateActionImpl).Object.(*policyv1.Eviction)
				require.Equal(t, "u1", string(*e.DeleteOptions.Preconditions.UID))
				require.Equal(t, "eviction", a.GetSubresource())
				return true, nil, tt.answer
			})
			err := b.actor.Evict(t.Context(), "shop", "web-1", "u1")
			var blocked *kube.EvictionBlocked
			switch {
			case tt.want != nil:
				require.ErrorAs(t, err, &blocked)
				require.Equal(t, tt.want, blocked)
				require.ErrorContains(t, err, "shop/web-1")
				require.ErrorContains(t, err, tt.want.Message)
			case tt.is != nil:
				require.ErrorIs(t, err, tt.is)
				require.False(t, errors.As(err, &blocked))
			default:
				require.NoError(t, err)
			}
		})
	}
}

func TestEvictionConflictOfAnotherPodMeansThatOursIsGone(t *testing.T) {
	t.Parallel()
	conflict := apierrors.NewConflict(corev1.Resource("pods"), "web-1", errors.New("uid precondition"))
	b := setup(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", UID: "u2"}})
	b.fail("create", "pods", conflict)
	require.ErrorIs(t, b.actor.Evict(t.Context(), "shop", "web-1", "u1"), kube.ErrNotFound)
	err := b.actor.Evict(t.Context(), "shop", "web-1", "u2")
	require.ErrorIs(t, err, conflict)
	require.NotErrorIs(t, err, kube.ErrNotFound)
}

func TestPodsOnNodeSayWhatADrainNeeds(t *testing.T) {
	t.Parallel()
	yes, grace := true, int64(5)
	owner := func(kind, name string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &yes}}
	}
	deadline := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	critical := int32(2_000_000_000)
	pod := func(name, on string, edit func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("u-" + name)},
			Spec: corev1.PodSpec{NodeName: on}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		edit(p)
		return p
	}
	volumes := []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "shm", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "log", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/log"}}},
		claim("local"), claim("pinned"), claim("network"), claim("unknown"), claim("k3s"), claim("unbound"),
		{Name: "tmp", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
	}
	b := setup(t,
		pod("web", "w1", func(p *corev1.Pod) {
			p.OwnerReferences, p.Spec.TerminationGracePeriodSeconds, p.Spec.Volumes = owner("ReplicaSet", "web"), &grace, volumes
		}),
		pod("agent", "w1", func(p *corev1.Pod) {
			p.OwnerReferences, p.Spec.Priority = owner("DaemonSet", "agent"), &critical
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}),
		pod("static", "w1", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }),
		pod("job", "w1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("leaving", "w1", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &deadline, []string{"x"} }),
		pod("elsewhere", "w2", func(*corev1.Pod) {}),
		pvc("local", "pv-local"), pvc("pinned", "pv-pinned"), pvc("network", "pv-network"), pvc("unbound", ""), pvc("web-tmp", "pv-network"),
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "k3s",
			Annotations: map[string]string{"volume.kubernetes.io/storage-provisioner": "rancher.io/local-path"}}},
		pv("pv-local", func(v *corev1.PersistentVolume) { v.Spec.Local = &corev1.LocalVolumeSource{Path: "/x"} }),
		pv("pv-network", func(v *corev1.PersistentVolume) { v.Spec.NFS = &corev1.NFSVolumeSource{Server: "nas"} }),
		pv("pv-pinned", func(v *corev1.PersistentVolume) {
			v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"w1"}}}}}}}
		}),
	)
	pods, err := b.actor.PodsOnNode(t.Context(), "w1")
	require.NoError(t, err)
	got := map[string]kube.Pod{}
	for _, p := range pods {
		got[p.Name] = p
	}
	require.Len(t, got, 5)
	require.Equal(t, kube.Pod{Namespace: "shop", Name: "web", UID: "u-web", OwnerKind: "ReplicaSet", OwnerName: "web",
		Phase: "Running", Grace: 5 * time.Second, LocalStorage: []events.LocalVolume{
			{Name: "scratch", Kind: events.LocalEmptyDir}, {Name: "log", Kind: events.LocalHostPath},
			{Name: "local", Kind: events.LocalPersisted}, {Name: "pinned", Kind: events.LocalPersisted},
			{Name: "unknown", Kind: events.LocalPersisted}, {Name: "k3s", Kind: events.LocalPersisted},
		}}, got["web"])
	require.Equal(t, "shop/web", got["web"].Ref())
	require.True(t, got["agent"].DaemonSet)
	require.Equal(t, 30*time.Second, got["agent"].Grace)
	require.True(t, got["agent"].Critical)
	require.True(t, got["agent"].Ready)
	require.True(t, got["static"].Mirror)
	require.True(t, got["job"].Finished)
	require.True(t, got["leaving"].Deleting)
	require.Equal(t, deadline.UTC(), got["leaving"].DeletionDeadline)
}

func TestBudgetsSayWhatTheyCoverAndAllow(t *testing.T) {
	t.Parallel()
	budget := func(name string, edit func(*policyv1.PodDisruptionBudget)) *policyv1.PodDisruptionBudget {
		b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 2},
			Spec:   policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
			Status: policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, DisruptionsAllowed: 1, CurrentHealthy: 3, DesiredHealthy: 2, ExpectedPods: 4}}
		edit(b)
		return b
	}
	b := setup(t, budget("web", func(*policyv1.PodDisruptionBudget) {}),
		budget("all", func(b *policyv1.PodDisruptionBudget) { b.Spec.Selector, b.Generation = &metav1.LabelSelector{}, 3 }),
		budget("none", func(b *policyv1.PodDisruptionBudget) { b.Spec.Selector = nil }))
	budgets, err := b.actor.Budgets(t.Context())
	require.NoError(t, err)
	got := map[string]kube.Budget{}
	for _, x := range budgets {
		got[x.Name] = x
	}
	require.Len(t, got, 3)
	web, other := labels.Set{"app": "web"}, labels.Set{"app": "other"}
	for name, covers := range map[string][2]bool{"web": {true, false}, "all": {true, true}, "none": {false, false}} {
		require.Equal(t, covers, [2]bool{got[name].Selector.Matches(web), got[name].Selector.Matches(other)}, name)
	}
	require.True(t, got["web"].Current)
	require.False(t, got["all"].Current, "its numbers are of an earlier specification")
	require.Equal(t, [4]int32{1, 4, 2, 3}, [4]int32{got["web"].Allowed, got["web"].Expected, got["web"].Desired, got["web"].Healthy})

	b = setup(t, budget("odd", func(b *policyv1.PodDisruptionBudget) {
		b.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	}))
	_, err = b.actor.Budgets(t.Context())
	require.ErrorContains(t, err, "disruption budget shop/odd: selector")

	b = setup(t)
	b.fail("list", "poddisruptionbudgets", apierrors.NewForbidden(policyv1.Resource("poddisruptionbudgets"), "", errors.New("no right")))
	_, err = b.actor.Budgets(t.Context())
	require.ErrorIs(t, err, kube.ErrForbidden)
}

func TestUncordonUndoesTheCordonOfAnyOfTheRequests(t *testing.T) {
	t.Parallel()
	b := setup(t, node("w1", "u1", "c1"))
	_, err := b.actor.Cordon(t.Context(), "w1", "r2")
	require.NoError(t, err)
	undone, err := b.actor.Uncordon(t.Context(), "w1", "r1", "r3")
	require.NoError(t, err)
	require.False(t, undone)
	undone, err = b.actor.Uncordon(t.Context(), "w1", "r1", "r2", "r3")
	require.NoError(t, err)
	require.True(t, undone)
}

func TestServerVersionIsTheServersOwn(t *testing.T) {
	t.Parallel()
	v, err := setup(t).actor.ServerVersion(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, v)
}

func TestTwoClientsShareOneCounter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := kube.NewReader(b.client, kube.Options{Registerer: b.reg})
	require.NoError(t, err)
	_, err = kube.NewReader(nil, kube.Options{})
	require.ErrorContains(t, err, "client is nil")
}

func claim(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
}

func pvc(name, volume string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume}}
}

func pv(name string, edit func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}
	edit(v)
	return v
}
