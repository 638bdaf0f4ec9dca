package app

import (
	"context"
	"errors"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/draining"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// drainCluster makes the API server the Cluster port of draining.
type drainCluster struct{ actor *kube.Actor }

func drainError(err error) error {
	var blocked *kube.EvictionBlocked
	switch {
	case errors.As(err, &blocked):
		return &draining.Blocked{Budget: blocked.PDB, Message: blocked.Message}
	case errors.Is(err, kube.ErrNotFound):
		return &translated{err: err, kind: draining.ErrNotFound}
	case errors.Is(err, kube.ErrForbidden):
		return &translated{err: err, kind: draining.ErrForbidden}
	}
	return err
}

func (c drainCluster) Node(ctx context.Context, name string) (draining.Node, error) {
	n, err := c.actor.GetNode(ctx, name)
	if err != nil {
		return draining.Node{}, drainError(err)
	}
	return draining.Node{Name: n.Name, ClaimID: n.Labels[events.LabelClaim], Ready: nodeObject(n).Ready}, nil
}

func (c drainCluster) Cordon(ctx context.Context, name, request string) (bool, error) {
	ours, err := c.actor.Cordon(ctx, name, request)
	return ours, drainError(err)
}

func (c drainCluster) Uncordon(ctx context.Context, name string, requests []string, anyone bool) error {
	if anyone {
		return drainError(c.actor.UncordonAny(ctx, name))
	}
	_, err := c.actor.Uncordon(ctx, name, requests...)
	return drainError(err)
}

func (c drainCluster) Pods(ctx context.Context, node string) ([]draining.Pod, error) {
	pods, err := c.actor.PodsOnNode(ctx, node)
	if err != nil {
		return nil, drainError(err)
	}
	out := make([]draining.Pod, len(pods))
	for i, p := range pods {
		out[i] = drainPod(p)
	}
	return out, nil
}

func drainPod(p kube.Pod) draining.Pod {
	out := draining.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, OwnerKind: p.OwnerKind, DaemonSet: p.DaemonSet,
		Mirror: p.Mirror, Finished: p.Finished, Ready: p.Ready, Critical: p.Critical, Deleting: p.Deleting, DeletionDeadline: p.DeletionDeadline,
		Grace: p.Grace, Labels: p.Labels, Annotations: p.Annotations,
	}
	for _, v := range p.LocalStorage {
		out.Local = append(out.Local, evictable.Volume(v))
	}
	return out
}

func (c drainCluster) Budgets(ctx context.Context) ([]draining.Budget, error) {
	budgets, err := c.actor.Budgets(ctx)
	if err != nil {
		return nil, drainError(err)
	}
	out := make([]draining.Budget, len(budgets))
	for i, b := range budgets {
		out[i] = draining.Budget(b)
	}
	return out, nil
}

func (c drainCluster) Evict(ctx context.Context, p draining.Pod) error {
	return drainError(c.actor.Evict(ctx, p.Namespace, p.Name, p.UID))
}
