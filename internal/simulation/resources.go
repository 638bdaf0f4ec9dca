package simulation

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
)

var (
	nodesResource       = corev1.SchemeGroupVersion.WithResource("nodes")
	podsResource        = corev1.SchemeGroupVersion.WithResource("pods")
	secretsResource     = corev1.SchemeGroupVersion.WithResource("secrets")
	namespacesResource  = corev1.SchemeGroupVersion.WithResource("namespaces")
	deploymentsResource = appsv1.SchemeGroupVersion.WithResource("deployments")
	replicaSetsResource = appsv1.SchemeGroupVersion.WithResource("replicasets")
	daemonSetsResource  = appsv1.SchemeGroupVersion.WithResource("daemonsets")
	budgetsResource     = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
)

// The controllers read what is stored without copying it; they change nothing
// but through modify.

func (s *store) nodes() []*corev1.Node {
	return typed[*corev1.Node](s.list(nodesResource, "", nil, nil))
}

func (s *store) pods() []*corev1.Pod {
	return typed[*corev1.Pod](s.list(podsResource, "", nil, nil))
}

func (s *store) deployments() []*appsv1.Deployment {
	return typed[*appsv1.Deployment](s.list(deploymentsResource, "", nil, nil))
}

func (s *store) replicaSets() []*appsv1.ReplicaSet {
	return typed[*appsv1.ReplicaSet](s.list(replicaSetsResource, "", nil, nil))
}

func (s *store) daemonSets() []*appsv1.DaemonSet {
	return typed[*appsv1.DaemonSet](s.list(daemonSetsResource, "", nil, nil))
}

func (s *store) budgets() []*policyv1.PodDisruptionBudget {
	return typed[*policyv1.PodDisruptionBudget](s.list(budgetsResource, "", nil, nil))
}

func typed[T object](found []object, _ int64) []T {
	out := make([]T, 0, len(found))
	for _, o := range found {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

func (s *store) modifyPod(p *corev1.Pod, fn func(*corev1.Pod)) {
	_ = s.modify(podsResource, keyOf(p), func(o object) { // gone is fine: seen at the next pass
		if pod, ok := o.(*corev1.Pod); ok && pod.UID == p.UID {
			fn(pod)
		}
	})
}

func (s *store) modifyNode(name string, fn func(*corev1.Node)) {
	_ = s.modify(nodesResource, key{name: name}, func(o object) { // gone is fine: seen at the next pass
		if node, ok := o.(*corev1.Node); ok {
			fn(node)
		}
	})
}
