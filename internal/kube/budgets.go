package kube

import (
	"context"
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Budget is a pod disruption budget and what it allows now.
type Budget struct {
	Namespace, Name string
	Selector        labels.Selector
	// Current says that the numbers are of its present specification.
	Current bool
	// Allowed disruptions now, and of the Expected pods that it covers, how many have
	// to be healthy (Desired) and are (Healthy).
	Allowed, Expected, Desired, Healthy int32
}

// Budgets returns the disruption budgets of the cluster. ErrForbidden when the
// credential may not read them.
func (r *Reader) Budgets(ctx context.Context) ([]Budget, error) {
	var list *policyv1.PodDisruptionBudgetList
	err := r.call(ctx, "list", "poddisruptionbudgets", func(ctx context.Context) (err error) {
		list, err = r.client.PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		return err
	})
	if err != nil {
		return nil, wrap(err, "list disruption budgets")
	}
	out := make([]Budget, 0, len(list.Items))
	for i := range list.Items {
		b := &list.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("disruption budget %s/%s: selector: %w", b.Namespace, b.Name, err)
		}
		out = append(out, Budget{Namespace: b.Namespace, Name: b.Name, Selector: selector, Current: b.Status.ObservedGeneration >= b.Generation,
			Allowed: b.Status.DisruptionsAllowed, Expected: b.Status.ExpectedPods, Desired: b.Status.DesiredHealthy, Healthy: b.Status.CurrentHealthy})
	}
	return out, nil
}
