//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/groupserver"
)

// outside is a provider that speaks the externalgrpc protocol and whose machines
// are agents that register by themselves, under names of its own and without a
// label of ours.
type outside struct {
	cluster, token string
}

// newOutside serves a node group, and returns it with the pool that takes nodes from it.
func newOutside(t *testing.T, cluster string) (*groupserver.Server, pool) {
	t.Helper()
	token, err := os.ReadFile(world.JoinTokenFile)
	require.NoError(t, err)
	o := outside{cluster, strings.TrimSpace(string(token))}
	g := &groupserver.Server{Group: "workers", MaxSize: 5, Make: o.make, Remove: o.remove, Template: &corev1.Node{
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "pool", Value: cluster, Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("3840Mi")}},
	}}
	address := g.Serve(t)
	t.Cleanup(func() { // what is left of a test that failed
		for _, id := range g.IDs() {
			_ = o.remove(id)
			_ = admin.CoreV1().Nodes().Delete(context.Background(), nameOf(id), metav1.DeleteOptions{})
		}
	})
	return g, pool{Max: 3, Provider: fmt.Sprintf("        provider: externalgrpc\n        externalgrpc: {address: %q, node_group: workers, timeout: 10s}\n", address)}
}

func nameOf(id string) string { return strings.TrimPrefix(id, "k3s://") }

// make starts an agent, whose kubelet calls itself k3s://<name>.
func (o outside) make(n int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	name := fmt.Sprintf("%s-machine-%d", o.cluster, n)
	_ = engine.ContainerRemove(ctx, name, container.RemoveOptions{Force: true, RemoveVolumes: true}) // what a run that was cut off left
	c, err := engine.ContainerCreate(ctx, &container.Config{
		Image: world.Image, Hostname: name, Cmd: []string{"agent", "--node-name", name, "--node-taint", "pool=" + o.cluster + ":NoSchedule"},
		Env: []string{"K3S_URL=" + world.APIServerURLForNodes, "K3S_TOKEN=" + o.token},
	}, &container.HostConfig{Privileged: true, NetworkMode: container.NetworkMode(world.Network), Tmpfs: map[string]string{"/run": "", "/var/run": ""}}, nil, nil, name)
	if err != nil {
		return "", err
	}
	return "k3s://" + name, engine.ContainerStart(ctx, c.ID, container.StartOptions{})
}

func (o outside) remove(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return engine.ContainerRemove(ctx, nameOf(id), container.RemoveOptions{Force: true, RemoveVolumes: true})
}

// An outside provider makes the node that a pending pod needs, although the answer to
// the one call that asks for it is lost; and takes it back, drained, when the pod has
// gone. One machine comes, and nothing of it is left.
func TestAnOutsideProvidersNodeComesForAPodAndGoesWithIt(t *testing.T) {
	ctx := context.Background()
	g, pl := newOutside(t, "e2e-outside")
	g.Next("NodeGroupIncreaseSize", groupserver.Fault{Lose: groupserver.ErrLost})
	p := newProduct(t, "e2e-outside", pl)
	ns := namespace(t, "e2e-outside")
	p.start()
	deployment(t, ns, "web", p.cluster, 1, "100m")
	waitRunning(t, ns, "web", 1, 60*time.Second)

	require.Equal(t, 1, g.Calls("NodeGroupIncreaseSize"), "a call whose answer is lost is not made again")
	ids := g.IDs()
	require.Len(t, ids, 1)
	node := nameOf(ids[0])
	require.Equal(t, map[string]int{node: 1}, running(t, ns, "web"))
	n, err := admin.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, p.cluster, n.Labels[events.LabelCluster])
	eventually(t, 20*time.Second, "nodes lists it under the provider's name, ready", func() error {
		if out := p.mustCLI("nodes"); !strings.Contains(lineOf(out, node), "ready") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})

	scaleDeployment(t, ns, "web", 0)
	eventually(t, 60*time.Second, "the node is removed", func() error {
		for _, r := range payloads[events.NodeRemoved](t, p) {
			if r.Node == node {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	drained := payloads[events.NodeDrained](t, p)
	require.Len(t, drained, 1)
	require.Equal(t, node, drained[0].Node)
	require.Equal(t, ids, g.Deleted(), "its deletion is asked for once")
	require.Empty(t, g.IDs())
	require.Zero(t, g.Target())
	require.Equal(t, 1, g.Calls("NodeGroupIncreaseSize"))
	assertGone(t, p, node)
	_, err = engine.ContainerInspect(ctx, node)
	require.True(t, cerrdefs.IsNotFound(err), "container of %s: %v", node, err)
	noneOpen(t, p)
	require.NotContains(t, p.mustCLI("dlq", "list", "-o", "json"), `"handler"`)
	require.Len(t, payloads[events.NodeClaimed](t, p), 1)
	require.Empty(t, payloads[events.NodeFailed](t, p))
	require.Empty(t, payloads[events.NodeLost](t, p))
}

// noneOpen waits until machines, Node objects and records agree, and no record is open.
func noneOpen(t *testing.T, p *product) {
	t.Helper()
	eventually(t, 30*time.Second, "machines, Node objects and records agree, and no record is open", func() error {
		out, errOut, err := p.cli("reconcile", "--dry-run", "-o", "json")
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, errOut)
		}
		var r events.ReconcileReported
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return err
		}
		if r.Records > 0 || len(r.Differences) > 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
