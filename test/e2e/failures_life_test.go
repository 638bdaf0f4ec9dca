//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env/faults"
)

// What goes wrong with a node that was Ready, each in a pool of its own that is to
// have one node.
func TestNodesThatFailAfterTheyWereReady(t *testing.T) {
	ctx := context.Background()
	lost := func(code string) func(*testing.T, *faulty, string) {
		return func(t *testing.T, f *faulty, node string) {
			l := awaits(t, f, 60*time.Second, func(l events.NodeLost) bool { return l.Node == node })
			require.Equal(t, code, l.Reason.Code, l.Reason.Message)
			f.counts(t, `autoscaler_node_failures_total{reason="`+code+`"}`)
			replaced := awaits(t, f, 60*time.Second, func(r events.NodeReady) bool { return r.Pool == l.Pool && r.Node != node && r.First })
			require.NotEqual(t, node, replaced.Node)
			eventually(t, 30*time.Second, "what was left of it is gone", func() error { return goneNow(f.product, node) })
		}
	}
	removed := func(t *testing.T, f *faulty, node string) {
		r := awaits(t, f, 60*time.Second, func(r events.NodeRemoved) bool { return r.Node == node })
		steps := told(f, func(s events.NodeRemovalProgressed) bool { return s.Node == node })
		require.Len(t, steps, 4, "each step is done once")
		require.Equal(t, "Requested", r.Reason.Code)
	}
	cases := []struct {
		name   string
		happen func(t *testing.T, f *faulty, e *faults.Docker, node string)
		then   func(t *testing.T, f *faulty, node string)
	}{
		{"gone", func(t *testing.T, _ *faulty, _ *faults.Docker, node string) {
			require.NoError(t, engine.ContainerRemove(ctx, node, container.RemoveOptions{Force: true, RemoveVolumes: true}))
		}, lost("MachineGone")},
		{"deleted", func(t *testing.T, _ *faulty, _ *faults.Docker, node string) {
			require.NoError(t, admin.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{}))
		}, lost("NodeDeleted")},
		{"rebooted", func(t *testing.T, _ *faulty, e *faults.Docker, node string) {
			// The engine restarts no agent; while the host boots it does not answer.
			require.NoError(t, e.Down())
			require.NoError(t, engine.ContainerKill(ctx, node, "KILL"))
			time.Sleep(3 * time.Second)
			require.NoError(t, e.Up())
		}, lost("MachineExited")},
		{"flaps", func(t *testing.T, _ *faulty, _ *faults.Docker, node string) {
			unready(t, node)
		}, func(t *testing.T, f *faulty, node string) {
			awaits(t, f, 30*time.Second, func(u events.NodeUnready) bool { return u.Node == node })
			awaits(t, f, 60*time.Second, func(r events.NodeReady) bool { return r.Node == node && !r.First })
			require.Empty(t, told(f, func(l events.NodeLost) bool { return l.Node == node }))
			require.Len(t, claimsOf(f, "flaps"), 1, "nothing takes its place")
		}},
		{"no-stop", func(t *testing.T, f *faulty, e *faults.Docker, node string) {
			e.Inject(faults.Fault{Method: http.MethodPost, Path: "/stop$", Status: 500, Message: "cannot stop container: tried to kill container, but did not receive an exit event", Times: 2})
			f.keeps(t, "no-stop", 0)
		}, removed},
		{"no-delete", func(t *testing.T, f *faulty, e *faults.Docker, node string) {
			e.Inject(faults.Fault{Method: http.MethodDelete, Path: "^/containers/", Status: 500, Message: "driver \"overlay2\" failed to remove root filesystem: device or resource busy", Times: 2})
			f.keeps(t, "no-delete", 0)
		}, removed},
		{"lost-stop", func(t *testing.T, f *faulty, e *faults.Docker, node string) {
			e.Inject(faults.Fault{Method: http.MethodPost, Path: "/stop$", Cut: faults.CutAfter, Times: 1})
			f.keeps(t, "lost-stop", 0)
		}, removed},
		{"lost-delete", func(t *testing.T, f *faulty, e *faults.Docker, node string) {
			e.Inject(faults.Fault{Method: http.MethodDelete, Path: "^/containers/", Cut: faults.CutAfter, Times: 1})
			f.keeps(t, "lost-delete", 0)
		}, removed},
	}
	var pools []pool
	for _, c := range cases {
		pools = append(pools, pool{Name: c.name, CPU: "100m", Memory: "128Mi"})
	}
	f := newFaulty(t, "e2e-fl", pools...)
	f.begin()
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				f.keeps(t, c.name, 1)
				node := f.readyOf(t, c.name, 60*time.Second).Node
				began := time.Now()
				c.happen(t, f, f.engines[c.name], node)
				c.then(t, f, node)
				t.Logf("settled after %.1f s", time.Since(began).Seconds())
			})
		}
	})
	f.leavesNothing()
}

// goneNow says what of a node is left.
func goneNow(p *product, node string) error {
	if _, err := admin.CoreV1().Nodes().Get(context.Background(), node, metav1.GetOptions{}); err == nil {
		return fmt.Errorf("its Node object is there")
	}
	if _, err := engine.ContainerInspect(context.Background(), node); err == nil {
		return fmt.Errorf("its container is there")
	}
	return nil
}

// unready lets the API server believe for a moment that a node is not Ready. Its
// kubelet says otherwise with its next status.
func unready(t *testing.T, node string) {
	t.Helper()
	_, err := admin.CoreV1().Nodes().Patch(context.Background(), node, types.StrategicMergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady","message":"a moment"}]}}`), metav1.PatchOptions{}, "status")
	require.NoError(t, err)
}

// The API server is away, or far, while nodes come and go: what can't be known is
// waited for, and nothing is lost.
func TestAnAPIServerThatIsAwayOrSlowDelaysNodesAndLosesNone(t *testing.T) {
	ctx := context.Background()
	door, err := world.OpenDoor(ctx, "e2e-fa")
	if errors.Is(err, env.ErrNoDoors) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = door.Remove(context.Background()) })
	f := newFaulty(t, "e2e-fa", pool{Name: "away", CPU: "100m", Memory: "128Mi"})
	dir := t.TempDir()
	f.reader, f.actor = filepath.Join(dir, "reader"), filepath.Join(dir, "actor")
	require.NoError(t, door.Kubeconfig(world.ReaderKubeconfig, f.reader))
	require.NoError(t, door.Kubeconfig(world.ActorKubeconfig, f.actor))
	text, err := os.ReadFile(f.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.config, []byte(strings.NewReplacer(world.ReaderKubeconfig, f.reader, world.ActorKubeconfig, f.actor).Replace(string(text))), 0o600))
	f.begin()

	f.keeps(t, "away", 1)
	awaits(t, f, 30*time.Second, func(c events.NodeClaimed) bool { return true })
	require.NoError(t, door.Cut(ctx))
	never(t, 4*time.Second, "the claim fails", func() bool { return len(told(f, func(events.NodeFailed) bool { return true })) > 0 })
	require.NoError(t, door.Heal(ctx))
	node := f.readyOf(t, "away", 60*time.Second).Node
	require.Len(t, claimsOf(f, "away"), 1)

	require.NoError(t, door.Slow(ctx, 300*time.Millisecond))
	f.keeps(t, "away", 0)
	awaits(t, f, 60*time.Second, func(e events.NodeRemovalProgressed) bool {
		return e.Node == node && e.Step == events.StepInstanceStopped
	})
	require.NoError(t, door.Cut(ctx))
	never(t, 3*time.Second, "the machine goes before its Node object", func() bool {
		_, gone := engine.ContainerInspect(ctx, node)
		_, left := admin.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		return gone != nil && left == nil
	})
	require.NoError(t, door.Heal(ctx))
	require.NoError(t, door.Slow(ctx, 0))
	awaits(t, f, 60*time.Second, func(r events.NodeRemoved) bool { return r.Node == node })
	f.leavesNothing()
}

// agentByHand makes a container as the product does, and its node.
func agentByHand(t *testing.T, name string, labels map[string]string, start bool) {
	t.Helper()
	ctx := context.Background()
	token, err := os.ReadFile(world.JoinTokenFile)
	require.NoError(t, err)
	cmd := []string{"agent", "--node-name", name}
	for _, key := range []string{events.LabelCluster, events.LabelPool, events.LabelClaim} {
		if labels[key] != "" {
			cmd = append(cmd, "--node-label", key+"="+labels[key])
		}
	}
	c, err := engine.ContainerCreate(ctx, &container.Config{
		Image: world.Image, Hostname: name, Cmd: cmd, Labels: labels,
		Env: []string{"K3S_URL=" + world.APIServerURLForNodes, "K3S_TOKEN=" + strings.TrimSpace(string(token))},
	}, &container.HostConfig{Privileged: true, NetworkMode: container.NetworkMode(world.Network), Tmpfs: map[string]string{"/run": "", "/var/run": ""}}, nil, nil, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		_ = admin.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
		_ = admin.CoreV1().Secrets("kube-system").Delete(ctx, name+".node-password.k3s", metav1.DeleteOptions{})
	})
	if start {
		require.NoError(t, engine.ContainerStart(ctx, c.ID, container.StartOptions{}))
	}
}

// What is ours and recorded nowhere is adopted when it is Ready, removed when it is
// not, and left alone when another log or nobody of us made it.
func TestWhatIsOursWithoutARecordIsAdoptedOrRemovedAndTheRestIsLeftAlone(t *testing.T) {
	f := newFaulty(t, "e2e-fo", pool{Name: "found", CPU: "100m", Memory: "128Mi"})
	f.begin()
	// The epoch that the product's own machines carry.
	f.keeps(t, "found", 1)
	own := f.readyOf(t, "found", 60*time.Second).Node
	in, err := engine.ContainerInspect(context.Background(), own)
	require.NoError(t, err)
	const labelEpoch = "k3s-autoscaler.dev/epoch"
	epoch := in.Config.Labels[labelEpoch]
	require.NotEmpty(t, epoch)
	labels := func(claim, epoch string) map[string]string {
		return map[string]string{events.LabelCluster: f.cluster, events.LabelPool: "found", events.LabelClaim: claim, labelEpoch: epoch}
	}
	agentByHand(t, "found-adopted000", labels("claim-adopted", epoch), true)
	agentByHand(t, "found-orphan0000", labels("claim-orphan", epoch), false)
	agentByHand(t, "found-another000", labels("claim-another", "another-log"), false)
	agentByHand(t, "found-stranger00", nil, false)

	adopted := awaits(t, f, 60*time.Second, func(a events.NodeAdopted) bool { return a.Node == "found-adopted000" })
	require.Equal(t, "found", adopted.Pool)
	require.Equal(t, epoch, adopted.Machine.Epoch)
	gone := awaits(t, f, 60*time.Second, func(r events.NodeRemoved) bool { return r.Node == "found-orphan0000" })
	require.Equal(t, "OrphanInstance", gone.Reason.Code)
	out := f.mustCLI("reconcile", "--dry-run")
	t.Logf("reconcile --dry-run says:\n%s", out)
	require.Contains(t, out, "it belongs to another log")
	require.NotContains(t, out, "found-stranger00")

	// It is drained and removed like any other.
	f.mustCLI("remove", "found-adopted000", "--reason", "not needed")
	removed := awaits(t, f, 60*time.Second, func(r events.NodeRemoved) bool { return r.Node == "found-adopted000" })
	require.Equal(t, "Requested", removed.Reason.Code)
	require.NoError(t, goneNow(f.product, "found-adopted000"))
	for _, left := range []string{"found-another000", "found-stranger00"} {
		in, err := engine.ContainerInspect(context.Background(), left)
		require.NoError(t, err, left)
		require.Equal(t, "created", in.State.Status, left)
	}
	require.NoError(t, engine.ContainerRemove(context.Background(), "found-another000", container.RemoveOptions{Force: true, RemoveVolumes: true}))
	require.NoError(t, engine.ContainerRemove(context.Background(), "found-stranger00", container.RemoveOptions{Force: true, RemoveVolumes: true}))
	f.leavesNothing()
}
