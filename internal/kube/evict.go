package kube

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Evict asks for a pod to leave, through the eviction API: its disruption
// budget is respected and its own grace period holds. nil means that the
// server has accepted: the pod is terminating, not gone. ErrNotFound when there
// is no pod of this uid. *EvictionBlocked when the server refuses for now.
func (a *Actor) Evict(ctx context.Context, ns, name, uid string) error {
	id := types.UID(uid)
	err := a.call(ctx, "create", "pods/eviction", func(ctx context.Context) error {
		return a.client.CoreV1().Pods(ns).EvictV1(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: ns, Name: name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &id}},
		})
	})
	if blocked := evictionBlocked(ns, err); blocked != nil {
		return fmt.Errorf("evict pod %s/%s: %w", ns, name, blocked)
	}
	if apierrors.IsConflict(err) {
		return a.evictConflict(ctx, ns, name, uid, err)
	}
	return wrap(err, "evict pod %s/%s", ns, name)
}

// evictConflict finds out what a conflict means: a pod of another uid has taken
// the name, so that the one that was meant is gone, or the server lost a race
// with itself and may be asked again.
func (a *Actor) evictConflict(ctx context.Context, ns, name, uid string, conflict error) error {
	var found types.UID
	err := a.call(ctx, "get", "pods", func(ctx context.Context) error {
		p, err := a.client.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			found = p.UID
		}
		return err
	})
	if apierrors.IsNotFound(err) || err == nil && string(found) != uid {
		return fmt.Errorf("evict pod %s/%s: %w: no pod of uid %s", ns, name, ErrNotFound, uid)
	}
	return fmt.Errorf("evict pod %s/%s: %w", ns, name, conflict)
}

// budgetName finds the budget in the server's message, which is the only place
// that names it ("The disruption budget web needs 6 healthy pods and has 6
// currently", "… is still being processed by the server.").
var budgetName = regexp.MustCompile(`(?i)disruption budget (\S+) (?:needs|is)`)

// evictionBlocked returns what err says about a refusal, or nil when it is none.
// A server that is merely busy also answers 429, without the cause: that is no
// refusal.
func evictionBlocked(ns string, err error) *EvictionBlocked {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return nil
	}
	s := status.Status()
	// The eviction API does not serve a pod with two budgets at all (code 500,
	// without a reason).
	if strings.Contains(s.Message, "more than one PodDisruptionBudget") {
		return &EvictionBlocked{Message: s.Message}
	}
	if !apierrors.IsTooManyRequests(err) || s.Details == nil {
		return nil
	}
	for _, c := range s.Details.Causes {
		if c.Type != policyv1.DisruptionBudgetCause {
			continue
		}
		b := &EvictionBlocked{Message: c.Message, RetryAfter: time.Duration(s.Details.RetryAfterSeconds) * time.Second}
		if m := budgetName.FindStringSubmatch(c.Message); m != nil {
			b.PDB = ns + "/" + m[1]
		}
		return b
	}
	return nil
}
