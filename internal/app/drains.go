package app

import (
	"context"
	"errors"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/draining"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
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
	}
	return err
}

func (c drainCluster) Node(ctx context.Context, name string) (draining.Node, error) {
	n, err := c.actor.GetNode(ctx, name)
	if err != nil {
		return draining.Node{}, drainError(err)
	}
	return draining.Node{Name: n.Name, ClaimID: n.Labels[events.LabelClaim]}, nil
}

func (c drainCluster) Cordon(ctx context.Context, name, request string) (bool, error) {
	ours, err := c.actor.Cordon(ctx, name, request)
	return ours, drainError(err)
}

func (c drainCluster) Uncordon(ctx context.Context, name, request string, anyone bool) error {
	if anyone {
		return drainError(c.actor.UncordonAny(ctx, name))
	}
	_, err := c.actor.Uncordon(ctx, name, request)
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

// drainPod is a pod as draining sees it: what its node keeps of it is judged as by
// the decision to remove the node.
func drainPod(p kube.Pod) draining.Pod {
	out := draining.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, OwnerKind: p.OwnerKind, DaemonSet: p.DaemonSet,
		Mirror: p.Mirror, Finished: p.Finished, Deleting: p.Deleting, DeletionDeadline: p.DeletionDeadline, Annotations: p.Annotations,
	}
	var local []scaling.LocalVolume
	for _, v := range p.LocalStorage {
		local = append(local, scaling.LocalVolume(v))
	}
	for _, v := range scaling.KeepsOnNode(p.Namespace, p.Labels, p.Annotations, local) {
		out.LocalStorage = append(out.LocalStorage, v.Name+" ("+v.Kind+")")
	}
	return out
}

func (c drainCluster) Evict(ctx context.Context, p draining.Pod) error {
	return drainError(c.actor.Evict(ctx, p.Namespace, p.Name, p.UID))
}
