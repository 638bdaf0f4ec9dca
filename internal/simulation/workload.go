package simulation

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
)

// Workload is a deployment or daemon set of identical pods with one container.
type Workload struct {
	Namespace   string // default "default"
	Name        string // also the value of the pods' label "app"
	Replicas    int32  // of a deployment
	CPUMilli    int64  // request of a pod, in thousandths of a core
	MemoryBytes int64  // request of a pod, in bytes
	// NodeSelector and Tolerations of a pod.
	NodeSelector map[string]string
	Tolerations  []corev1.Toleration
	Annotations  map[string]string
}

func (wl Workload) template() corev1.PodTemplateSpec {
	requests := corev1.ResourceList{}
	if wl.CPUMilli > 0 {
		requests[corev1.ResourceCPU] = *resource.NewMilliQuantity(wl.CPUMilli, resource.DecimalSI)
	}
	if wl.MemoryBytes > 0 {
		requests[corev1.ResourceMemory] = *resource.NewQuantity(wl.MemoryBytes, resource.BinarySI)
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": wl.Name}, Annotations: wl.Annotations},
		Spec: corev1.PodSpec{
			Containers:   []corev1.Container{{Name: "main", Image: "registry.k8s.io/pause:3.10", Resources: corev1.ResourceRequirements{Requests: requests}}},
			NodeSelector: wl.NodeSelector, Tolerations: wl.Tolerations,
		},
	}
}

func (wl Workload) meta() metav1.ObjectMeta {
	ns := wl.Namespace
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	return metav1.ObjectMeta{Namespace: ns, Name: wl.Name, Labels: map[string]string{"app": wl.Name}}
}

func (wl Workload) selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": wl.Name}}
}

// Deploy makes a Deployment; one that exists is scaled.
func (w *World) Deploy(ctx context.Context, wl Workload) error {
	d := &appsv1.Deployment{ObjectMeta: wl.meta(), Spec: appsv1.DeploymentSpec{Replicas: &wl.Replicas, Selector: wl.selector(), Template: wl.template()}}
	_, err := w.client.AppsV1().Deployments(d.Namespace).Create(ctx, d, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return w.Scale(ctx, d.Namespace, d.Name, wl.Replicas)
	}
	if err != nil {
		return fmt.Errorf("deploy %s/%s: %w", d.Namespace, d.Name, err)
	}
	return nil
}

// Scale sets the replicas of a Deployment.
func (w *World) Scale(ctx context.Context, namespace, name string, n int32) error {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := w.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		d.Spec.Replicas = &n
		_, err = w.client.AppsV1().Deployments(namespace).Update(ctx, d, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("scale %s/%s to %d: %w", namespace, name, n, err)
	}
	return nil
}

// RunOnEveryNode makes a DaemonSet.
func (w *World) RunOnEveryNode(ctx context.Context, wl Workload) error {
	ds := &appsv1.DaemonSet{ObjectMeta: wl.meta(), Spec: appsv1.DaemonSetSpec{Selector: wl.selector(), Template: wl.template()}}
	if _, err := w.client.AppsV1().DaemonSets(ds.Namespace).Create(ctx, ds, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make daemon set %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	return nil
}

// Protect makes a disruption budget for the pods of a workload, which at least
// minAvailable of must stay ready.
func (w *World) Protect(ctx context.Context, namespace, app string, minAvailable intstr.IntOrString) error {
	b := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: app},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &minAvailable,
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		},
	}
	if _, err := w.client.PolicyV1().PodDisruptionBudgets(namespace).Create(ctx, b, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("protect %s/%s: %w", namespace, app, err)
	}
	return nil
}

// Unprotect removes the disruption budget of a workload.
func (w *World) Unprotect(ctx context.Context, namespace, app string) error {
	if err := w.client.PolicyV1().PodDisruptionBudgets(namespace).Delete(ctx, app, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("unprotect %s/%s: %w", namespace, app, err)
	}
	return nil
}
