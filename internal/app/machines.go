package app

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/provisioning"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// machines makes a NodeProvider the Machines port of provisioning.
type machines struct {
	provider provider.NodeProvider
	// serverVersion asks the API server for its version: an agent is never newer.
	serverVersion func(ctx context.Context) (string, error)
}

// translate maps the provider's errors to the port's. The original stays in
// the chain and in the text.
func translate(err error) error {
	var hosts *provider.HostsError
	if errors.As(err, &hosts) {
		t := &provisioning.HostsError{Answered: hosts.Answered, Err: err}
		for _, m := range hosts.Missing {
			t.Missing = append(t.Missing, m.Name)
		}
		if len(t.Missing) == 0 {
			t.Err = &translated{err: err, kind: provisioning.ErrNotFound}
		}
		return t
	}
	for from, to := range map[error]error{
		provider.ErrNotFound:  provisioning.ErrNotFound,
		provider.ErrNameTaken: provisioning.ErrNameTaken,
		provider.ErrImage:     provisioning.ErrImage,
		provider.ErrRefused:   provisioning.ErrRefused,
		provider.ErrNoSpace:   provisioning.ErrNoSpace,
		provider.ErrNoRoom:    provisioning.ErrNoRoom,
		kube.ErrNotFound:      provisioning.ErrNotFound,
	} {
		if errors.Is(err, from) {
			return &translated{err: err, kind: to}
		}
	}
	return err
}

type translated struct{ err, kind error }

func (t *translated) Error() string   { return t.err.Error() }
func (t *translated) Unwrap() []error { return []error{t.err, t.kind} }

func (m machines) Create(ctx context.Context, s provisioning.Spec) (provisioning.Machine, error) {
	version, err := m.serverVersion(ctx)
	if err != nil {
		return provisioning.Machine{}, fmt.Errorf("ask the API server for its version, which the agent must not exceed: %w", err)
	}
	labels := map[string]string{}
	maps.Copy(labels, s.Node.Labels)
	// Ours last: no pool label can take the place of a claim.
	maps.Copy(labels, map[string]string{events.LabelCluster: s.Cluster, events.LabelPool: s.Pool, events.LabelClaim: s.ClaimID})
	made, err := m.provider.Create(ctx, specOf(s, labels, version))
	return machine(made), translate(err)
}

// Place implements provisioning.Placer, for providers that have hosts to choose
// from.
func (m machines) Place(ctx context.Context, s provisioning.Spec) (string, error) {
	p, ok := m.provider.(provider.Placer)
	if !ok {
		return "", nil
	}
	host, err := p.Place(ctx, specOf(s, nil, ""))
	return host, translate(err)
}

func specOf(s provisioning.Spec, labels map[string]string, serverVersion string) provider.Spec {
	spec := provider.Spec{
		Name: s.Name, Cluster: s.Cluster, Pool: s.Pool, ClaimID: s.ClaimID, Epoch: s.Epoch,
		CPUMilli: s.Node.CPUMilli, MemoryBytes: s.Node.MemoryBytes, MaxPods: s.Node.MaxPods,
		Labels: labels, ServerVersion: serverVersion, Host: s.Host,
	}
	for _, t := range s.Node.Taints {
		spec.Taints = append(spec.Taints, provider.Taint(t))
	}
	return spec
}

func (m machines) Start(ctx context.Context, name string) error {
	return translate(m.provider.Start(ctx, name))
}

func (m machines) Stop(ctx context.Context, name string) error {
	return translate(m.provider.Stop(ctx, name))
}

func (m machines) Delete(ctx context.Context, name string) error {
	return translate(m.provider.Delete(ctx, name))
}

func (m machines) Get(ctx context.Context, name string) (provisioning.Machine, error) {
	got, err := m.provider.Get(ctx, name)
	return machine(got), translate(err)
}

func (m machines) List(ctx context.Context) ([]provisioning.Machine, error) {
	list, err := m.provider.List(ctx)
	out := make([]provisioning.Machine, len(list))
	for i, x := range list {
		out[i] = machine(x)
	}
	return out, translate(err) // with the machines of the hosts that answered
}

func (m machines) Logs(ctx context.Context, name string, maxBytes int) (string, error) {
	s, err := m.provider.Logs(ctx, name, maxBytes)
	return s, translate(err)
}

func (m machines) Named(ctx context.Context, name, node string) error {
	n, ok := m.provider.(provider.Namer)
	if !ok {
		return fmt.Errorf("machine %s is node %s: %w: its provider gives machines the names they are asked for", name, node, provisioning.ErrNameTaken)
	}
	return translate(n.Named(ctx, name, node))
}

func machine(m provider.Machine) provisioning.Machine {
	return provisioning.Machine{
		Name: m.Name, ID: m.ID, Host: m.Host, Image: m.Image, Cluster: m.Cluster, Pool: m.Pool,
		ClaimID: m.ClaimID, Epoch: m.Epoch, State: provisioning.MachineState(m.State), ExitCode: m.ExitCode, CreatedAt: m.CreatedAt,
		ProviderID: m.ProviderID,
	}
}

// nodeObjects makes the API server the Nodes port of provisioning.
type nodeObjects struct {
	actor   *kube.Actor
	cluster string
}

func (n nodeObjects) GetNode(ctx context.Context, name string) (provisioning.NodeObject, error) {
	node, err := n.actor.GetNode(ctx, name)
	if err != nil {
		return provisioning.NodeObject{}, translate(err)
	}
	return nodeObject(node), nil
}

func (n nodeObjects) ListNodes(ctx context.Context) ([]provisioning.NodeObject, error) {
	nodes, err := n.actor.ListOurNodes(ctx, n.cluster)
	if err != nil {
		return nil, translate(err)
	}
	out := make([]provisioning.NodeObject, len(nodes))
	for i := range nodes {
		out[i] = nodeObject(&nodes[i])
	}
	return out, nil
}

func (n nodeObjects) ListByProviderID(ctx context.Context) (map[string]provisioning.NodeObject, error) {
	nodes, err := n.actor.ListNodes(ctx)
	if err != nil {
		return nil, translate(err)
	}
	out := map[string]provisioning.NodeObject{}
	for i := range nodes {
		if o := nodeObject(&nodes[i]); o.ProviderID != "" {
			out[o.ProviderID] = o
		}
	}
	return out, nil
}

func (n nodeObjects) ClaimNode(ctx context.Context, c provisioning.NodeClaim) error {
	labels := map[string]string{}
	maps.Copy(labels, c.Labels)
	maps.Copy(labels, map[string]string{events.LabelCluster: n.cluster, events.LabelPool: c.Pool, events.LabelClaim: c.ClaimID})
	err := n.actor.Claim(ctx, c.Name, c.ProviderID, c.ClaimID, labels)
	if errors.Is(err, kube.ErrNotOurs) {
		return &translated{err: err, kind: provisioning.ErrNameTaken}
	}
	return translate(err)
}

func (n nodeObjects) DeleteNode(ctx context.Context, name, uid string) error {
	node, err := n.actor.GetNode(ctx, name)
	if err != nil {
		return translate(err)
	}
	// The claim label is looked at once more: what lost it is no longer ours.
	return translate(n.actor.DeleteNode(ctx, name, uid, node.Labels[events.LabelClaim]))
}

func (n nodeObjects) DeleteNodePassword(ctx context.Context, name string) error {
	return translate(n.actor.DeleteNodePassword(ctx, name))
}

func nodeObject(n *corev1.Node) provisioning.NodeObject {
	o := provisioning.NodeObject{Name: n.Name, UID: string(n.UID), Pool: n.Labels[events.LabelPool], ClaimID: n.Labels[events.LabelClaim],
		ProviderID: n.Spec.ProviderID}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			o.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return o
}
