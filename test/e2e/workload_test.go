//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// namespace makes a namespace for a test and removes it at its end.
func namespace(t *testing.T, name string) string {
	t.Helper()
	ctx := context.Background()
	// A name of its own: the namespace of an earlier run may still be terminating.
	made, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	name = made.Name
	eventually(t, 30*time.Second, "default service account", func() error {
		_, err := admin.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	t.Cleanup(func() {
		zero := int64(0)
		_ = admin.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	})
	return name
}

// deployment makes pods that run on the nodes of a test's cluster alone.
func deployment(t *testing.T, ns, name, cluster string, replicas int32, cpu string, edit ...func(*corev1.PodSpec)) {
	t.Helper()
	labels := map[string]string{"app": name}
	grace := int64(1)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &grace,
					NodeSelector:                  map[string]string{"pool": cluster},
					Tolerations:                   []corev1.Toleration{{Key: "pool", Operator: corev1.TolerationOpExists}},
					Containers: []corev1.Container{{Name: "c", Image: "registry.invalid/c:1", Resources: corev1.ResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("32Mi")},
					}}},
				},
			},
		},
	}
	for _, e := range edit {
		e(&d.Spec.Template.Spec)
	}
	_, err := admin.AppsV1().Deployments(ns).Create(context.Background(), d, metav1.CreateOptions{})
	require.NoError(t, err)
}

func scaleDeployment(t *testing.T, ns, name string, replicas int32) {
	t.Helper()
	ctx := context.Background()
	s, err := admin.AppsV1().Deployments(ns).GetScale(ctx, name, metav1.GetOptions{})
	require.NoError(t, err)
	s.Spec.Replicas = replicas
	_, err = admin.AppsV1().Deployments(ns).UpdateScale(ctx, name, s, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// running returns the running pods of a deployment by node.
func running(t *testing.T, ns, name string) map[string]int {
	t.Helper()
	list, err := admin.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=" + name})
	require.NoError(t, err)
	out := map[string]int{}
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			out[p.Spec.NodeName]++
		}
	}
	return out
}

func waitRunning(t *testing.T, ns, name string, want int, limit time.Duration) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("%d pods of %s run", want, name), func() error {
		n := 0
		for _, c := range running(t, ns, name) {
			n += c
		}
		if n != want {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
}

// budget makes a PodDisruptionBudget and waits until its controller counted.
func budget(t *testing.T, ns, app string, minAvailable int) {
	t.Helper()
	ctx := context.Background()
	min := intstr.FromInt32(int32(minAvailable))
	_, err := admin.PolicyV1().PodDisruptionBudgets(ns).Create(ctx, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: app, Namespace: ns},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &min, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	eventually(t, 20*time.Second, "the budget is counted", func() error {
		b, err := admin.PolicyV1().PodDisruptionBudgets(ns).Get(ctx, app, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if b.Status.ObservedGeneration != b.Generation || b.Status.ExpectedPods == 0 {
			return fmt.Errorf("status %+v", b.Status)
		}
		return nil
	})
}

// outlives makes a pod of the deployment on the node the last one that the
// controller ends, and returns its name.
func outlives(t *testing.T, ns, deployment, node string) string {
	t.Helper()
	ctx := context.Background()
	pods, err := admin.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + deployment, FieldSelector: "spec.nodeName=" + node})
	require.NoError(t, err)
	require.NotEmpty(t, pods.Items, "pods on %s", node)
	name := pods.Items[0].Name
	_, err = admin.CoreV1().Pods(ns).Patch(ctx, name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"1000"}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	return name
}
