//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// agree waits until Docker, Kubernetes and the records say the same, within the
// pool's limits, and still do a while later.
func (w *walk) agree() {
	w.t.Helper()
	began := time.Now()
	eventually(w.t, 4*time.Minute, "Docker, Kubernetes and the records agree", w.differences)
	w.t.Logf("quiet after %.0f s", time.Since(began).Seconds())
	waitRunning(w.t, w.ns, "web", 3, time.Minute)
	// Low load may still take nodes away, one after the other.
	eventually(w.t, 3*time.Minute, "they agree for ten seconds", func() error {
		for range 10 {
			if err := w.differences(); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	})
}

// differences says in what Docker, Kubernetes and the records differ.
func (w *walk) differences() error {
	var machines, objects, records []string
	for _, m := range containers(w.t, w.p.cluster) {
		if m.State != "running" {
			return fmt.Errorf("machine %s is %s", m.Names[0], m.State)
		}
		machines = append(machines, strings.TrimPrefix(m.Names[0], "/"))
	}
	list, err := admin.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{LabelSelector: events.LabelCluster + "=" + w.p.cluster})
	if err != nil {
		return err
	}
	for _, n := range list.Items {
		objects = append(objects, n.Name)
		if n.Spec.Unschedulable {
			if _, errOut, err := w.p.cli("uncordon", n.Name, "--reason", "quiet"); err != nil {
				return fmt.Errorf("node %s is cordoned, and uncordon says: %s", n.Name, errOut)
			}
			return fmt.Errorf("node %s is cordoned", n.Name)
		}
		for _, taint := range n.Spec.Taints {
			if taint.Key != "pool" {
				return fmt.Errorf("node %s has the taint %s", n.Name, taint.Key)
			}
		}
	}
	var status struct {
		Pools []api.Pool `json:"pools"`
	}
	out, errOut, err := w.p.cli("status", "-o", "json")
	if err != nil {
		return fmt.Errorf("status: %s", errOut)
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return err
	}
	pool := status.Pools[0]
	if pool.Claims != 0 || pool.Leaving != 0 || pool.Ready != pool.Size || pool.Size < w.pool.Min || pool.Size > w.pool.Max {
		return fmt.Errorf("pool: %d nodes, %d ready, %d claims, %d leaving, of %d to %d", pool.Size, pool.Ready, pool.Claims, pool.Leaving, w.pool.Min, w.pool.Max)
	}
	var nodes []api.Node
	if out, errOut, err = w.p.cli("nodes", "-o", "json"); err != nil {
		return fmt.Errorf("nodes: %s", errOut)
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Pool == "" {
			continue
		}
		if n.Phase != "ready" || n.Ready != "True" {
			return fmt.Errorf("record of node %s: phase %s, Ready %s", n.Name, n.Phase, n.Ready)
		}
		records = append(records, n.Name)
	}
	for _, l := range [][]string{machines, objects, records} {
		slices.Sort(l)
	}
	if !slices.Equal(machines, objects) || !slices.Equal(objects, records) || len(records) != pool.Size {
		return fmt.Errorf("machines %v, Node objects %v, records %v, the pool has %d", machines, objects, records, pool.Size)
	}
	return nil
}

// nothingIsLeft looks for what removed nodes leave behind, and at what is not ours.
func (w *walk) nothingIsLeft() {
	t, ctx := w.t, context.Background()
	nodes, _ := ourNodes(t, w.p.cluster)
	secrets, err := admin.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	for _, s := range secrets.Items {
		node, is := strings.CutSuffix(s.Name, ".node-password.k3s")
		if is && strings.HasPrefix(node, "burst-") && w.machines.has(node) {
			require.Contains(t, nodes, node, "the password of a node that is gone is left")
		}
	}
	kept := volumesOf(t, w.p.cluster)
	for _, v := range volumeNames(t) {
		require.True(t, slices.Contains(w.volumes, v) || slices.Contains(kept, v), "volume %s belongs to no machine", v)
	}
	require.JSONEq(t, "[]", w.p.mustCLI("dlq", "list", "-o", "json"), "dead letters")
	in, err := engine.ContainerInspect(ctx, "e2e-walk-foreign")
	require.NoError(t, err)
	require.True(t, in.ID == w.foreign && in.State.Running, "a machine that is not ours is as it was")
	n, err := admin.CoreV1().Nodes().Get(ctx, "e2e-walk-foreign", metav1.GetOptions{})
	require.NoError(t, err)
	require.False(t, n.Spec.Unschedulable, "a node that is not ours is as it was")
}

// auditExplains looks for the reason of everything that happened to machines and
// Node objects.
func (w *walk) auditExplains() {
	t := w.t
	trail := readTrail(t, w.p)
	decisions, claims, claimOf, ended := map[string]bool{}, map[string]bool{}, map[string]string{}, map[string]bool{}
	for _, r := range trail {
		switch r.Type {
		case events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld:
			var d events.Decision
			require.NoError(t, json.Unmarshal(r.Event.Data(), &d))
			decisions[d.ID] = true
		case events.TypeNodeFailed, events.TypeNodeLost, events.TypeNodeRemoved, events.TypeNodeDiverged:
			ended[r.Key] = true
		case events.TypeDeadletterRecorded:
			t.Errorf("a dead letter is audited: %s", r.Event.Data())
		}
	}
	for _, r := range trail {
		switch r.Type {
		case events.TypeNodeClaimed:
			c, err := events.Decode[events.NodeClaimed](r.Event)
			require.NoError(t, err)
			claims[c.ClaimID], claimOf[c.Node] = true, c.ClaimID
			require.NotEmpty(t, c.Reason.Code, "claim %s", c.ClaimID)
			require.True(t, decisions[c.DecisionID], "claim %s follows decision %q, which is audited", c.ClaimID, c.DecisionID)
		case events.TypeNodeDrainRequested:
			d, err := events.Decode[events.NodeDrainRequested](r.Event)
			require.NoError(t, err)
			require.NotEmpty(t, d.Reason.Code, "drain of %s", d.Node)
			require.True(t, decisions[d.DecisionID], "drain of %s follows decision %q, which is audited", d.Node, d.DecisionID)
		}
	}
	starts := map[string][]string{}
	for _, m := range w.machines.all() {
		name, claim := m.Actor.Attributes["name"], m.Actor.Attributes[events.LabelClaim]
		require.Contains(t, claims, claim, "machine %s (%s) belongs to an audited claim", name, m.Action)
		require.Equal(t, claim, claimOf[name])
		switch m.Action {
		case eventtypes.ActionStart:
			starts[claim] = append(starts[claim], m.Actor.ID)
		case eventtypes.ActionDestroy:
			require.True(t, ended[name] || w.byHand[name], "the audit says why machine %s was removed", name)
		}
	}
	for claim, ids := range starts {
		require.Len(t, ids, 1, "machines started for claim %s", claim)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for node := range w.deleted {
		require.True(t, ended[node] || w.byHand[node], "the audit says why Node object %s was removed", node)
	}
	t.Logf("%d claims, %d machines started, %d nodes ended", len(claims), len(starts), len(ended))
}

// machineLog is what the engine says that happened to the machines of a cluster.
type machineLog struct {
	mu       sync.Mutex
	messages []eventtypes.Message
}

func watchMachines(t *testing.T, cluster string) *machineLog {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	l := &machineLog{}
	messages, errs := engine.Events(ctx, eventtypes.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"),
		filters.Arg("event", "create"), filters.Arg("event", "start"), filters.Arg("event", "destroy"), filters.Arg("label", events.LabelCluster+"="+cluster))})
	go func() {
		for {
			select {
			case m := <-messages:
				l.mu.Lock()
				l.messages = append(l.messages, m)
				l.mu.Unlock()
			case err := <-errs:
				if ctx.Err() == nil {
					t.Errorf("the engine's events broke off, so something may have been missed: %v", err)
				}
				return
			}
		}
	}()
	return l
}

func (l *machineLog) all() []eventtypes.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.messages)
}

// has reports whether there ever was a machine of this name.
func (l *machineLog) has(name string) bool {
	return slices.ContainsFunc(l.all(), func(m eventtypes.Message) bool { return m.Actor.Attributes["name"] == name })
}
