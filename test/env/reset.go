package env

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// resetTimeout bounds how long the deleted pods may take to be gone.
const resetTimeout = time.Minute

// Reset gives the next test an empty cluster: the doors open, no agent
// container, no node, no node password, and no workload outside kube-system.
func (e *Env) Reset(ctx context.Context) error {
	if e.ToxiproxyURL != "" {
		if err := errors.Join(e.HealNodes(ctx), e.HealControl(ctx)); err != nil {
			return err
		}
	}
	client, err := e.adminClient()
	if err != nil {
		return err
	}
	// Workloads first, or their controllers would replace the pods; containers
	// before nodes, or an agent could register again.
	if err := deleteWorkloads(ctx, client); err != nil {
		return err
	}
	engine, err := openEngine(e.DockerHost, e.PrivateEngine)
	if err != nil {
		return err
	}
	defer engine.close()
	if err := engine.removeNodeContainers(ctx, e.Network); err != nil {
		return err
	}
	if err := deleteNodes(ctx, client); err != nil {
		return err
	}
	return deletePods(ctx, client)
}

func deleteWorkloads(ctx context.Context, client kubernetes.Interface) error {
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	background := metav1.DeletePropagationBackground
	deletion := metav1.DeleteOptions{PropagationPolicy: &background}
	all := metav1.ListOptions{}
	var errs []error
	for _, namespace := range namespaces.Items {
		name := namespace.Name
		if name == metav1.NamespaceSystem {
			continue
		}
		errs = append(errs,
			client.AppsV1().Deployments(name).DeleteCollection(ctx, deletion, all),
			client.AppsV1().StatefulSets(name).DeleteCollection(ctx, deletion, all),
			client.AppsV1().DaemonSets(name).DeleteCollection(ctx, deletion, all),
			client.AppsV1().ReplicaSets(name).DeleteCollection(ctx, deletion, all),
			client.BatchV1().CronJobs(name).DeleteCollection(ctx, deletion, all),
			client.BatchV1().Jobs(name).DeleteCollection(ctx, deletion, all),
			client.PolicyV1().PodDisruptionBudgets(name).DeleteCollection(ctx, deletion, all),
		)
	}
	return errors.Join(errs...)
}

func deleteNodes(ctx context.Context, client kubernetes.Interface) error {
	if err := client.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("delete nodes: %w", err)
	}
	secrets, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list node passwords: %w", err)
	}
	for _, secret := range secrets.Items {
		if !strings.HasSuffix(secret.Name, ".node-password.k3s") {
			continue
		}
		err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, secret.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete node password %s: %w", secret.Name, err)
		}
	}
	return nil
}

// deletePods repeats itself until none is left: a controller may have made one
// more before it learned that its owner is gone. Finalizers, which tests use to
// hold pods, are dropped.
func deletePods(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, resetTimeout)
	defer cancel()
	now := int64(0)
	for {
		pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "metadata.namespace!=" + metav1.NamespaceSystem})
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		if len(pods.Items) == 0 {
			return nil
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			if len(pod.Finalizers) > 0 {
				pod.Finalizers = nil
				if _, err := client.CoreV1().Pods(pod.Namespace).Update(ctx, pod, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
					return fmt.Errorf("drop the finalizers of pod %s/%s: %w", pod.Namespace, pod.Name, err)
				}
			}
			err := client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the pods are gone: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
