package simulation

import (
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// evict answers the eviction subresource as the API server does: a pod that is
// not protected by a budget, or whose budget allows it, is deleted; any other
// eviction is 429, without Retry-After, with the budget's name in the cause.
func (s *store) evict(namespace string, e *policyv1.Eviction) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{namespace, e.Name}
	o, err := s.lookup(podsResource, k)
	if err != nil {
		return err
	}
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("%T in place of a pod", o))
	}
	options := metav1.DeleteOptions{}
	if e.DeleteOptions != nil {
		options = *e.DeleteOptions
	}
	if !ignoresBudgets(pod) {
		if err := s.allowed(pod); err != nil {
			return err
		}
	}
	return s.deleteLocked(podsResource, k, options)
}

// ignoresBudgets: such a pod serves nobody, so that it is missed by nobody.
func ignoresBudgets(p *corev1.Pod) bool {
	switch p.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	default:
		return p.DeletionTimestamp != nil
	}
}

func (s *store) allowed(pod *corev1.Pod) error {
	var matching []*policyv1.PodDisruptionBudget
	for _, o := range s.selected(budgetsResource, pod.Namespace, nil, nil) {
		if b, ok := o.(*policyv1.PodDisruptionBudget); ok && selects(b.Spec.Selector, pod) {
			matching = append(matching, b)
		}
	}
	if len(matching) == 0 {
		return nil
	}
	if len(matching) > 1 {
		return apierrors.NewInternalError(errors.New("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")) //nolint:staticcheck // the API server's words
	}
	budget := matching[0]
	status := budgetStatus(budget,
		typed[*corev1.Pod](s.selected(podsResource, pod.Namespace, nil, nil), 0),
		typed[*appsv1.ReplicaSet](s.selected(replicaSetsResource, pod.Namespace, nil, nil), 0))
	if status.DisruptionsAllowed > 0 {
		return nil
	}
	if !ready(pod) {
		always := budget.Spec.UnhealthyPodEvictionPolicy != nil && *budget.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
		if always || status.DesiredHealthy > 0 && status.CurrentHealthy >= status.DesiredHealthy {
			return nil
		}
	}
	refused := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
	refused.ErrStatus.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{
		Type: policyv1.DisruptionBudgetCause,
		Message: fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently",
			budget.Name, status.DesiredHealthy, status.CurrentHealthy),
	}}}
	return refused
}

func selects(s *metav1.LabelSelector, pod *corev1.Pod) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(pod.Labels))
}

// budgetStatus counts as the disruption controller does: expected are the
// replicas that the pods' owners ask for, and the pods that nobody owns.
func budgetStatus(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, sets []*appsv1.ReplicaSet) policyv1.PodDisruptionBudgetStatus {
	var expected, healthy int32
	counted := map[types.UID]bool{}
	for _, p := range pods {
		if p.Namespace != b.Namespace || !selects(b.Spec.Selector, p) || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		if ready(p) && p.DeletionTimestamp == nil {
			healthy++
		}
		owner := metav1.GetControllerOf(p)
		if owner == nil {
			expected++
			continue
		}
		for _, rs := range sets {
			if rs.UID == owner.UID && !counted[rs.UID] {
				counted[rs.UID] = true
				expected += replicas(rs.Spec.Replicas)
			}
		}
	}
	desired := expected
	switch {
	case b.Spec.MinAvailable != nil:
		desired = scaled(*b.Spec.MinAvailable, expected)
	case b.Spec.MaxUnavailable != nil:
		desired = max(0, expected-scaled(*b.Spec.MaxUnavailable, expected))
	}
	allowed := healthy - desired
	if expected == 0 || allowed < 0 {
		allowed = 0
	}
	return policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: b.Generation, ExpectedPods: expected,
		CurrentHealthy: healthy, DesiredHealthy: desired, DisruptionsAllowed: allowed,
	}
}

func scaled(v intstr.IntOrString, of int32) int32 {
	n, err := intstr.GetScaledValueFromIntOrPercent(&v, int(of), true)
	if err != nil {
		return of // as strict as can be
	}
	return int32(n) //nolint:gosec // a share of an int32
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// updateBudgets keeps the status of every budget.
func (w *World) updateBudgets() {
	pods, sets := w.store.pods(), w.store.replicaSets()
	for _, b := range w.store.budgets() {
		status := budgetStatus(b, pods, sets)
		_ = w.store.modify(budgetsResource, keyOf(b), func(o object) { // gone is fine
			if budget, ok := o.(*policyv1.PodDisruptionBudget); ok {
				status.Conditions = budget.Status.Conditions
				budget.Status = status
			}
		})
	}
}
