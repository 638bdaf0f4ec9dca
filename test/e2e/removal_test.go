//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// foreignNode joins a node that is not ours, but takes a test's pods.
func foreignNode(t *testing.T, name, cluster string) {
	t.Helper()
	ctx := context.Background()
	token, err := os.ReadFile(world.JoinTokenFile)
	require.NoError(t, err)
	info, err := engine.Info(ctx)
	require.NoError(t, err)
	// Room for two pods of 200m, however many cores the host has.
	reserved := fmt.Sprintf("system-reserved=cpu=%dm", info.NCPU*1000-500)
	c, err := engine.ContainerCreate(ctx, &container.Config{
		Image: world.Image, Hostname: name,
		Cmd: []string{"agent", "--node-name", name, "--node-label", "pool=" + cluster, "--kubelet-arg", reserved},
		Env: []string{"K3S_URL=" + world.APIServerURLForNodes, "K3S_TOKEN=" + strings.TrimSpace(string(token))},
	}, &container.HostConfig{Privileged: true, NetworkMode: container.NetworkMode(world.Network), Tmpfs: map[string]string{"/run": "", "/var/run": ""}}, nil, nil, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		_ = admin.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
		_ = admin.CoreV1().Secrets("kube-system").Delete(ctx, name+".node-password.k3s", metav1.DeleteOptions{})
	})
	require.NoError(t, engine.ContainerStart(ctx, c.ID, container.StartOptions{}))
	eventually(t, 60*time.Second, name+" is Ready", func() error {
		n, err := admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
}

// volumesOf returns the names of the volumes of a cluster's containers.
func volumesOf(t *testing.T, cluster string) []string {
	t.Helper()
	var out []string
	for _, c := range containers(t, cluster) {
		in, err := engine.ContainerInspect(context.Background(), c.ID)
		require.NoError(t, err)
		for _, m := range in.Mounts {
			if m.Name != "" {
				out = append(out, m.Name)
			}
		}
	}
	return out
}

// volumeNames returns the names of all volumes of the engine.
func volumeNames(t *testing.T) []string {
	t.Helper()
	list, err := engine.VolumeList(context.Background(), volume.ListOptions{})
	require.NoError(t, err)
	var out []string
	for _, v := range list.Volumes {
		out = append(out, v.Name)
	}
	return out
}

// c. The load goes, and with it the nodes, newest first, down to the minimum.
func TestNodesLeaveAfterTheLoadAndNothingOfThemStays(t *testing.T) {
	// The pods of several nodes end one after the other: which node is the newest
	// of those that may go is judged when all have ended.
	p := newProduct(t, "e2e-c", pool{Min: 1, Max: 4, Stabilize: "8s"})
	ns := namespace(t, "e2e-c")
	foreignNode(t, "e2e-c-foreign", p.cluster)
	p.start()
	eventually(t, 90*time.Second, "the pool is at its minimum", readyNodes(t, p, 1))

	// The foreign node and the first of ours have room for two pods each.
	deployment(t, ns, "web", p.cluster, 7, "200m")
	waitRunning(t, ns, "web", 7, 120*time.Second)
	names, ready := ourNodes(t, p.cluster)
	require.Equal(t, len(names), ready)
	require.GreaterOrEqual(t, len(names), 3)
	var order []string
	eventually(t, 30*time.Second, "every node is recorded as Ready", func() error {
		if order = readyOrder(t, p); len(order) < len(names) {
			return fmt.Errorf("%d of %d are", len(order), len(names))
		}
		return nil
	})
	volumes := volumesOf(t, p.cluster)
	require.NotEmpty(t, volumes, "the agents' image declares volumes")

	// The pod that outlives the load runs on the newest node, so that removing
	// this node has to evict it.
	survivor := outlives(t, ns, "web", order[len(order)-1])
	scaleDeployment(t, ns, "web", 2)
	began := time.Now()
	eventually(t, 180*time.Second, "the pool is at its minimum again", readyNodes(t, p, 1))
	t.Logf("%d nodes left within %.1f s", len(names)-1, time.Since(began).Seconds())
	waitRunning(t, ns, "web", 2, 60*time.Second)
	left, _ := ourNodes(t, p.cluster)

	// A Node object goes first, the machine last: wait for the end of the last.
	var removed []events.NodeRemoved
	eventually(t, 60*time.Second, "every removal is recorded", func() error {
		if removed = payloads[events.NodeRemoved](t, p); len(removed) < len(names)-1 {
			return fmt.Errorf("%d are", len(removed))
		}
		return nil
	})
	var removedNames []string
	for _, r := range removed {
		removedNames = append(removedNames, r.Node)
	}
	// All are unneeded when the first one goes. After that the scheduler decides
	// which of the others are: it may put the evicted pod on any of them.
	require.Equal(t, order[len(order)-1], removedNames[0], "newest first")
	require.ElementsMatch(t, names, slices.Concat(removedNames, left), "each is removed once, or is the one that stays")
	require.Contains(t, evicted(t, p), ns+"/"+survivor, "a pod of a removed node is evicted")
	var cordoned []string
	for _, c := range payloads[events.NodeCordoned](t, p) {
		cordoned = append(cordoned, c.Node)
	}
	require.Equal(t, removedNames, cordoned, "each is cordoned once, in the order of removal")
	for _, n := range removedNames {
		assertGone(t, p, n)
	}
	require.Len(t, containers(t, p.cluster), 1)
	kept := volumesOf(t, p.cluster)
	for _, v := range volumeNames(t) {
		require.False(t, slices.Contains(volumes, v) && !slices.Contains(kept, v), "volume %s of a removed node is left", v)
	}
	// Steps of a removal, in their order, each once.
	for _, n := range removedNames {
		var steps []string
		for _, s := range payloads[events.NodeRemovalProgressed](t, p) {
			if s.Node == n {
				steps = append(steps, s.Step)
			}
		}
		require.Equal(t, []string{events.StepInstanceStopped, events.StepNodeDeleted, events.StepSecretDeleted, events.StepInstanceDeleted}, steps)
	}

	// Idle: the minimum and what is not ours stay.
	scaleDeployment(t, ns, "web", 0)
	never(t, 10*time.Second, "a removal below the minimum", func() bool { names, _ := ourNodes(t, p.cluster); return len(names) < 1 })
	foreign, err := admin.CoreV1().Nodes().Get(context.Background(), "e2e-c-foreign", metav1.GetOptions{})
	require.NoError(t, err)
	require.False(t, foreign.Spec.Unschedulable)
}

// readyOrder is the nodes in the order in which they became Ready. Two that do so
// at once may be audited in either order: their partitions don't wait for each
// other.
func readyOrder(t *testing.T, p *product) []string {
	t.Helper()
	ready := slices.DeleteFunc(payloads[events.NodeReady](t, p), func(r events.NodeReady) bool { return !r.First })
	slices.SortStableFunc(ready, func(a, b events.NodeReady) int { return a.At.Compare(b.At) })
	var out []string
	for _, r := range ready {
		out = append(out, r.Node)
	}
	return out
}

// evicted returns the pods that draining evicted, as namespace/name.
func evicted(t *testing.T, p *product) []string {
	t.Helper()
	var out []string
	for _, d := range payloads[events.NodeDrainProgressed](t, p) {
		out = append(out, d.Evicted...)
	}
	return out
}

// assertGone verifies that nothing of a node is left anywhere.
func assertGone(t *testing.T, p *product, node string) {
	t.Helper()
	ctx := context.Background()
	_, err := admin.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "Node object of %s: %v", node, err)
	_, err = admin.CoreV1().Secrets("kube-system").Get(ctx, node+".node-password.k3s", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "password secret of %s: %v", node, err)
	for _, c := range containers(t, p.cluster) {
		require.NotContains(t, c.Names, "/"+node)
	}
}

// d. A budget that forbids eviction stops a drain, which is undone in time.
func TestABudgetThatForbidsEvictionStopsTheDrain(t *testing.T) {
	p := newProduct(t, "e2e-d", pool{Min: 1, Max: 3, DrainLimit: "8s", Unneeded: "1h"})
	ns := namespace(t, "e2e-d")
	p.start()
	eventually(t, 90*time.Second, "the pool is at its minimum", readyNodes(t, p, 1))
	deployment(t, ns, "web", p.cluster, 3, "150m")
	waitRunning(t, ns, "web", 3, 60*time.Second)
	budget(t, ns, "web", 3)
	p.mustCLI("scale", "up", "--pool", "burst", "--count", "1", "--reason", "room for what is evicted")
	eventually(t, 90*time.Second, "a second node", readyNodes(t, p, 2))
	knows(t, p, 2)
	var busy string
	for n := range running(t, ns, "web") {
		busy = n
	}
	var blocked []events.NodeDrainBlocked
	isBlocked := func(n int) {
		eventually(t, 30*time.Second, "the drain is blocked", func() error {
			if blocked = payloads[events.NodeDrainBlocked](t, p); len(blocked) < n {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		require.Equal(t, busy, blocked[n-1].Node)
		require.Equal(t, ns+"/web", blocked[n-1].Blockers[0].Name)
		require.Equal(t, "PodDisruptionBudget", blocked[n-1].Blockers[0].Kind)
	}
	// As many healthy pods as there are: that never allows one to go.
	p.mustCLI("remove", busy, "--reason", "an old disk")
	isBlocked(1)
	require.Contains(t, blocked[0].Blockers[0].Message, "never allows an eviction")
	eventually(t, 30*time.Second, "the drain is refused", func() error {
		if u := payloads[events.NodeUncordoned](t, p); len(u) == 0 || u[0].Reason.Code != "NotDrainable" {
			return fmt.Errorf("not yet: %+v", u)
		}
		return nil
	})
	require.Empty(t, p.history(events.TypeNodeCordoned), "nothing was touched")

	// One more pod, which is not healthy: nothing may go now.
	spare(t, ns, "web")
	eventually(t, 20*time.Second, "the budget counts it", func() error {
		b, err := admin.PolicyV1().PodDisruptionBudgets(ns).Get(context.Background(), "web", metav1.GetOptions{})
		if err == nil && b.Status.ExpectedPods != 4 {
			err = fmt.Errorf("status %+v", b.Status)
		}
		return err
	})
	knowsAtRest(t, p, 2) // else it is being removed already
	p.mustCLI("remove", busy, "--reason", "an old disk")
	isBlocked(2)
	eventually(t, 40*time.Second, "the node is uncordoned", func() error {
		for _, u := range payloads[events.NodeUncordoned](t, p) {
			if u.Node == busy && u.Reason.Code == "DrainDeadline" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	n, err := admin.CoreV1().Nodes().Get(context.Background(), busy, metav1.GetOptions{})
	require.NoError(t, err)
	require.False(t, n.Spec.Unschedulable)
	require.Equal(t, 3, running(t, ns, "web")[busy], "every pod still runs where it did")
	require.Empty(t, p.history(events.TypeNodeRemoved))
	require.Len(t, containers(t, p.cluster), 2)
}
