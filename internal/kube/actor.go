package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// AnnotationCordonedBy marks a cordon of ours with the drain request that it
// serves: a cordon without it is somebody else's, and is kept.
const AnnotationCordonedBy = "k3s-autoscaler.dev/cordoned-by"

// Actor changes nodes and evicts pods. Every act may be repeated: by a
// redelivered message, by another process, after a crash at any point.
type Actor struct{ *Reader }

// NewActor returns an Actor. It makes no call.
func NewActor(client kubernetes.Interface, o Options) (*Actor, error) {
	r, err := NewReader(client, o)
	if err != nil {
		return nil, err
	}
	return &Actor{Reader: r}, nil
}

// Cordon makes a node unschedulable in the name of a drain request, and reports
// whether the cordon is ours. A node that somebody else has cordoned stays so,
// and is left unmarked; a cordon of ours for an earlier request becomes this
// one's. ErrNotFound when there is no such node.
func (a *Actor) Cordon(ctx context.Context, node, requestID string) (ours bool, err error) {
	err = a.edit(ctx, node, func(n *corev1.Node) map[string]any {
		by, marked := n.Annotations[AnnotationCordonedBy]
		ours = marked || !n.Spec.Unschedulable
		if !ours || n.Spec.Unschedulable && by == requestID {
			return nil
		}
		return map[string]any{
			"metadata": map[string]any{"annotations": map[string]any{AnnotationCordonedBy: requestID}},
			"spec":     map[string]any{"unschedulable": true},
		}
	})
	return ours && err == nil, wrap(err, "cordon node %s", node)
}

// Uncordon undoes the cordon of any of the drain requests, or any cordon of ours
// when none is named, and reports whether there was one. A cordon of somebody
// else, or of another request, is kept. ErrNotFound when there is no such node.
func (a *Actor) Uncordon(ctx context.Context, node string, requests ...string) (undone bool, err error) {
	err = a.edit(ctx, node, func(n *corev1.Node) map[string]any {
		by, marked := n.Annotations[AnnotationCordonedBy]
		undone = marked && (len(requests) == 0 || slices.Contains(requests, by))
		if !undone {
			return nil
		}
		return map[string]any{
			"metadata": map[string]any{"annotations": map[string]any{AnnotationCordonedBy: nil}},
			"spec":     map[string]any{"unschedulable": nil},
		}
	})
	return undone && err == nil, wrap(err, "uncordon node %s", node)
}

// UncordonAny makes a node schedulable, whoever had cordoned it: a person asked
// for it. ErrNotFound when there is no such node.
func (a *Actor) UncordonAny(ctx context.Context, node string) error {
	err := a.edit(ctx, node, func(n *corev1.Node) map[string]any {
		if _, marked := n.Annotations[AnnotationCordonedBy]; !marked && !n.Spec.Unschedulable {
			return nil
		}
		return map[string]any{
			"metadata": map[string]any{"annotations": map[string]any{AnnotationCordonedBy: nil}},
			"spec":     map[string]any{"unschedulable": nil},
		}
	})
	return wrap(err, "uncordon node %s", node)
}

// edit reads a node and patches it, unless somebody changed it in between:
// then it decides again on what they left. A nil patch is no call.
func (a *Actor) edit(ctx context.Context, node string, decide func(*corev1.Node) map[string]any) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var n *corev1.Node
		err := a.call(ctx, "get", "nodes", func(ctx context.Context) (err error) {
			n, err = a.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
			return err
		})
		if err != nil {
			return err
		}
		patch := decide(n)
		if patch == nil {
			return nil
		}
		meta := patch["metadata"].(map[string]any)
		meta["uid"], meta["resourceVersion"] = n.UID, n.ResourceVersion
		body, err := json.Marshal(patch)
		if err != nil {
			return err
		}
		return a.call(ctx, "patch", "nodes", func(ctx context.Context) error {
			_, err := a.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, body, metav1.PatchOptions{})
			return err
		})
	})
}

// Claim puts labels on a node that no other claim has, so that it is the claim's.
// It must have that spec.providerID, or it is ErrNotOurs, as when it has another
// claim; ErrNotFound when there is no such node.
func (a *Actor) Claim(ctx context.Context, node, providerID, claimID string, labels map[string]string) error {
	var refused error
	err := a.edit(ctx, node, func(n *corev1.Node) map[string]any {
		refused = nil
		missing := map[string]any{}
		switch got := n.Labels[events.LabelClaim]; {
		case n.Spec.ProviderID != providerID:
			refused = fmt.Errorf("%w: its provider id is %q, expected %q", ErrNotOurs, n.Spec.ProviderID, providerID)
		case got != "" && got != claimID:
			refused = fmt.Errorf("%w: its label %s is %q, the claim is %q", ErrNotOurs, events.LabelClaim, got, claimID)
		default:
			for k, v := range labels {
				if n.Labels[k] != v {
					missing[k] = v
				}
			}
		}
		if len(missing) == 0 {
			return nil
		}
		return map[string]any{"metadata": map[string]any{"labels": missing}}
	})
	if err == nil {
		err = refused
	}
	return wrap(err, "claim node %s", node)
}

// DeleteNode deletes the Node object of a claim. The node must carry the claim
// label with this claim, or it is ErrNotOurs; a uid that is not empty must be
// the object's, or it is ErrReplaced. ErrNotFound when there is none: done.
func (a *Actor) DeleteNode(ctx context.Context, name, uid, claimID string) error {
	n, err := a.GetNode(ctx, name)
	if err != nil {
		return err
	}
	if got := n.Labels[events.LabelClaim]; claimID == "" || got != claimID {
		return fmt.Errorf("delete node %s: %w: its label %s is %q, the claim is %q", name, ErrNotOurs, events.LabelClaim, got, claimID)
	}
	if uid != "" && string(n.UID) != uid {
		return fmt.Errorf("delete node %s: %w: uid is %s, expected %s", name, ErrReplaced, n.UID, uid)
	}
	// The precondition closes the gap between looking and deleting.
	err = a.call(ctx, "delete", "nodes", func(ctx context.Context) error {
		return a.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &n.UID}})
	})
	if apierrors.IsConflict(err) {
		return fmt.Errorf("delete node %s: %w: %s", name, ErrReplaced, err.Error())
	}
	return wrap(err, "delete node %s", name)
}

// DeleteNodePassword deletes the secret by which a k3s server recognises an
// agent of this name: without it, a new machine could not take the name again.
// ErrNotFound when there is none: done.
func (a *Actor) DeleteNodePassword(ctx context.Context, node string) error {
	name := node + ".node-password.k3s"
	err := a.call(ctx, "delete", "secrets", func(ctx context.Context) error {
		return a.client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, name, metav1.DeleteOptions{})
	})
	return wrap(err, "delete secret %s/%s", metav1.NamespaceSystem, name)
}
