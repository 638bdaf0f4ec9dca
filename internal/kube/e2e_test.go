//go:build e2e

package kube_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	klabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

// The right to act that deploy/ gives is all that the actor needs, and a real
// API server answers as it is taken to.
func TestTheActorOnARealCluster(t *testing.T) {
	ctx := t.Context()
	world, err := env.Start(ctx, env.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, world.Release(context.Background())) })
	admin := client(t, world.AdminKubeconfig)
	a, err := kube.NewActor(client(t, world.ActorKubeconfig), kube.Options{})
	require.NoError(t, err)
	namespace, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "actor-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	ns := namespace.Name
	t.Cleanup(func() {
		require.NoError(t, admin.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{}))
	})

	// A Node object without a kubelet: nothing happens on it but what we do.
	name := ns
	_, err = admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{events.LabelClaim: "c1", events.LabelCluster: ns}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
	ours, err := a.ListOurNodes(ctx, ns)
	require.NoError(t, err)
	require.Len(t, ours, 1)

	cordoned, err := a.Cordon(ctx, name, "r1")
	require.NoError(t, err)
	require.True(t, cordoned)
	n, err := a.GetNode(ctx, name)
	require.NoError(t, err)
	require.True(t, n.Spec.Unschedulable)
	undone, err := a.Uncordon(ctx, name, "r1")
	require.NoError(t, err)
	require.True(t, undone)
	n, err = a.GetNode(ctx, name)
	require.NoError(t, err)
	require.False(t, n.Spec.Unschedulable)

	// A budget that is used up. The pod runs, as far as the server knows.
	labels := map[string]string{"app": "web"}
	p, err := admin.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: labels},
		Spec: corev1.PodSpec{NodeName: name, TerminationGracePeriodSeconds: new(int64(7)), Containers: []corev1.Container{{Name: "main", Image: "pause"}}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	p, err = admin.CoreV1().Pods(ns).UpdateStatus(ctx, p, metav1.UpdateOptions{})
	require.NoError(t, err)
	one := intstr.FromInt32(1)
	_, err = admin.PolicyV1().PodDisruptionBudgets(ns).Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		b, err := admin.PolicyV1().PodDisruptionBudgets(ns).Get(ctx, "web", metav1.GetOptions{})
		require.NoError(ct, err)
		require.EqualValues(ct, 1, b.Status.CurrentHealthy)
	}, 20*time.Second, 50*time.Millisecond)
	pods, err := a.PodsOnNode(ctx, name)
	require.NoError(t, err)
	require.Len(t, pods, 1)
	err = a.Evict(ctx, ns, "web", string(p.UID))
	var blocked *kube.EvictionBlocked
	require.ErrorAs(t, err, &blocked)
	require.Equal(t, ns+"/web", blocked.PDB)
	require.Contains(t, blocked.Message, "needs 1 healthy pods and has 1 currently")

	require.True(t, pods[0].Ready)
	require.False(t, pods[0].Critical)
	require.Equal(t, 7*time.Second, pods[0].Grace)
	budgets, err := a.Budgets(ctx) // with no more than the actor's rights
	require.NoError(t, err)
	i := slices.IndexFunc(budgets, func(b kube.Budget) bool { return b.Namespace == ns && b.Name == "web" })
	require.GreaterOrEqual(t, i, 0)
	require.True(t, budgets[i].Current)
	require.True(t, budgets[i].Selector.Matches(klabels.Set(labels)))
	require.Equal(t, [4]int32{0, 1, 1, 1}, [4]int32{budgets[i].Allowed, budgets[i].Expected, budgets[i].Desired, budgets[i].Healthy})

	require.NoError(t, admin.PolicyV1().PodDisruptionBudgets(ns).Delete(ctx, "web", metav1.DeleteOptions{}))
	require.ErrorIs(t, a.Evict(ctx, ns, "web", "another-uid"), kube.ErrNotFound)
	asked := time.Now()
	require.NoError(t, a.Evict(ctx, ns, "web", string(p.UID)))
	pods, err = a.PodsOnNode(ctx, name)
	require.NoError(t, err)
	require.Len(t, pods, 1, "no kubelet ends it: it is there as long as nobody takes it")
	require.True(t, pods[0].Deleting)
	require.WithinDuration(t, asked.Add(7*time.Second), pods[0].DeletionDeadline, 3*time.Second, "an eviction leaves the pod its own grace period")
	require.NoError(t, a.Evict(ctx, ns, "web", string(p.UID)), "asked for again, it is on its way")
	again, err := a.PodsOnNode(ctx, name)
	require.NoError(t, err)
	require.Equal(t, pods[0].DeletionDeadline, again[0].DeletionDeadline, "and its time does not begin anew")
	require.ErrorIs(t, a.Evict(ctx, ns, "none", "uid"), kube.ErrNotFound)

	_, err = admin.CoreV1().Secrets("kube-system").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name + ".node-password.k3s"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, a.DeleteNodePassword(ctx, name))
	require.ErrorIs(t, a.DeleteNodePassword(ctx, name), kube.ErrNotFound)
	require.ErrorIs(t, a.DeleteNode(ctx, name, string(n.UID), "c2"), kube.ErrNotOurs)
	require.ErrorIs(t, a.DeleteNode(ctx, name, "another-uid", "c1"), kube.ErrReplaced)
	require.NoError(t, a.DeleteNode(ctx, name, string(n.UID), "c1"))
	require.ErrorIs(t, a.DeleteNode(ctx, name, string(n.UID), "c1"), kube.ErrNotFound)
}

func client(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	rc, err := kube.Load(kubeconfig)
	require.NoError(t, err)
	c, err := kube.NewClient(rc)
	require.NoError(t, err)
	return c
}
