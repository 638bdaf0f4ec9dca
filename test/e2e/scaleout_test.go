//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
)

// Provisioning and draining in three processes each, on three NATS servers with
// TLS and one credential for each role. A server and a process of provisioning
// are killed while ten nodes come, a process of draining while two go; all three
// stay dead, which leaves the servers without one to spare.
func TestAServerAndAProcessThatDieDuringAScaleUpOfTenCostNoNodeAndDoubleNone(t *testing.T) {
	const up, down = 10, 2
	n := startNATSCluster(t)
	// Two removals at a time are 10 % of max.
	p := newProduct(t, "e2e-ha", pool{Max: 2 * up, CPU: "200m", Memory: "256Mi", Unneeded: "1h", Register: "180s", DrainLimit: "180s", Extra: "        claim_expiry: 300s\n"})
	ns := namespace(t, "e2e-ha")
	f := newFleet(t, p, n)
	created, started, destroyed := containerActions(t, p.cluster, "create"), containerActions(t, p.cluster, "start"), containerActions(t, p.cluster, "destroy")
	mark, drainMark := filepath.Join(p.dir, "provisioning.killed"), filepath.Join(p.dir, "draining.killed")
	f.start(map[string][]string{
		// Whoever is first to create its second machine dies before it can say so.
		app.RoleProvisioning: {"K3S_AUTOSCALER_CRASH_AT=provisioning/create/after", "K3S_AUTOSCALER_CRASH_COUNT=2", "K3S_AUTOSCALER_CRASH_MARK=" + mark},
		app.RoleDraining:     {"K3S_AUTOSCALER_CRASH_AT=draining/cordon/after", "K3S_AUTOSCALER_CRASH_MARK=" + drainMark},
	})

	leader := n.leader(bus.StreamName)
	began := time.Now()
	p.mustCLI("scale", "up", "--pool", "burst", "--count", fmt.Sprint(up), "--reason", "a busy Friday")
	await(t, "the first machine exists", func() bool { return len(created()) > 0 })
	n.kill(leader)
	t.Logf("%.1f s: %s, which led the stream of record, is dead; %d machines exist, %d are started", time.Since(began).Seconds(), leader, len(created()), len(started()))
	require.Less(t, len(started()), up, "the server died when every machine was started")
	await(t, "a process of provisioning is killed", func() bool { return exists(mark) })
	victim := f.victim(app.RoleProvisioning)
	_, ready := ourNodes(t, p.cluster)
	t.Logf("%.1f s: a process of provisioning is dead; %d machines exist, %d nodes are Ready", time.Since(began).Seconds(), len(created()), ready)
	require.Less(t, ready, up, "the process died when every node was Ready")

	eventually(t, 4*time.Minute, "ten nodes are Ready", readyNodes(t, p, up))
	t.Logf("%.1f s: %d nodes are Ready", time.Since(began).Seconds(), up)
	f.audited(events.TypeNodeReady, up)
	f.settled()
	never(t, 10*time.Second, "an eleventh machine", func() bool { return len(created()) > up || len(containers(t, p.cluster)) > up })
	names, _ := ourNodes(t, p.cluster)
	require.Len(t, names, up)
	require.Len(t, created(), up, "containers created")
	require.Len(t, started(), up, "containers started")
	require.ElementsMatch(t, created(), started(), "one start for each container")
	adopted := 0
	for _, c := range payloads[events.NodeCreated](t, p) {
		if c.Adopted {
			adopted++
		}
	}
	require.NotZero(t, adopted, "another process goes on with the machine that the dead one created")
	for i, m := range f.members[app.RoleProvisioning] {
		t.Logf("process %d of provisioning asked for %d machines (killed: %t)", i, passed(t, m, "provisioning/create/before"), m == victim)
	}
	trail := readTrail(t, p)
	for _, name := range names {
		require.Equal(t, []string{"node.claimed", "node.created", "node.registered", "node.ready"}, trail.of(name), "life of %s", name)
	}
	f.noneSetAside()
	logStages(t, p)

	// Two nodes go, one process of draining dies.
	deployment(t, ns, "web", p.cluster, up, "60m")
	waitRunning(t, ns, "web", up, 90*time.Second)
	began = time.Now()
	p.mustCLI("scale", "down", "--pool", "burst", "--count", fmt.Sprint(down), "--reason", "a quiet Saturday")
	await(t, "a process of draining is killed", func() bool { return exists(drainMark) })
	f.victim(app.RoleDraining)
	t.Logf("%.1f s: a process of draining is dead", time.Since(began).Seconds())
	eventually(t, 4*time.Minute, "two nodes are gone", readyNodes(t, p, up-down))
	f.audited(events.TypeNodeRemoved, down)
	t.Logf("%.1f s: %d nodes are gone", time.Since(began).Seconds(), down)
	waitRunning(t, ns, "web", up, 90*time.Second)
	f.settled()
	never(t, 5*time.Second, "another removal", func() bool { return len(destroyed()) > down || len(created()) > up })
	left, _ := ourNodes(t, p.cluster)
	require.Len(t, left, up-down)
	require.Len(t, destroyed(), down, "containers removed")
	require.Len(t, containers(t, p.cluster), up-down)
	trail = readTrail(t, p)
	for _, name := range names {
		life := []string{"node.claimed", "node.created", "node.registered", "node.ready"}
		if !slices.Contains(left, name) {
			assertGone(t, p, name)
			life = append(life, "node.drain.requested", "node.cordoned", "node.drained",
				"node.removal.progressed instance-stopped", "node.removal.progressed node-deleted", "node.removal.progressed secret-deleted",
				"node.removal.progressed instance-deleted", "node.removed")
		}
		require.Equal(t, life, trail.of(name), "life of %s", name)
	}
	pods := evicted(t, p)
	slices.Sort(pods)
	require.Equal(t, slices.Compact(slices.Clone(pods)), pods, "each pod is evicted once")
	f.noneSetAside()
	f.alive()
	require.Empty(t, f.refusals(), "each credential allows what its role does")
}

// await looks more often than eventually does: a fault must hit what is under way.
func await(t *testing.T, what string, check func() bool) {
	t.Helper()
	doing.Store(t.Name(), what)
	require.Eventually(t, check, 2*time.Minute, 5*time.Millisecond, what)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// audited waits until so many events of a type are in the audit.
func (f *fleet) audited(eventType string, want int) {
	f.t.Helper()
	eventually(f.t, 90*time.Second, fmt.Sprintf("%d %s are audited", want, eventType), func() error {
		f.alive()
		list, err := f.gateway.audited(eventType)
		if err == nil && len(list) < want {
			err = fmt.Errorf("%d are", len(list))
		}
		return err
	})
}

// noneSetAside asks the product and the server for dead letters.
func (f *fleet) noneSetAside() {
	f.t.Helper()
	require.Zero(f.t, f.nats.info(bus.DeadLetterStream).State.Msgs, "dead letters on the bus")
	require.JSONEq(f.t, "[]", f.gateway.mustCLI("dlq", "list", "-o", "json"))
	require.Empty(f.t, f.gateway.history(events.TypeDeadletterRecorded))
}

// trail is the whole audit.
type trail []trailRecord

type trailRecord struct {
	Incarnation, Key, Type, ID string
	Sequence                   uint64
	Event                      events.Event
}

// readTrail reads everything that is audited, and verifies that it is one log in
// its order with no event twice.
func readTrail(t *testing.T, p *product) trail {
	t.Helper()
	var out trail
	require.NoError(t, json.Unmarshal([]byte(p.mustCLI("audit", "list", "--all", "-o", "json", "--oldest-first", "--limit", "100000")), &out))
	require.NotEmpty(t, out)
	ids := map[string]bool{}
	for i, r := range out {
		require.False(t, ids[r.ID], "event %s (%s) is audited twice", r.ID, r.Type)
		ids[r.ID] = true
		require.Equal(t, out[0].Incarnation, r.Incarnation)
		if i > 0 {
			require.Greater(t, r.Sequence, out[i-1].Sequence, "record %d", i)
		}
	}
	t.Logf("%d events are audited, of %d in the log", len(out), out[len(out)-1].Sequence)
	return out
}

// of returns the life of a node without what only watches it: observations,
// evictions, and that it was not Ready for a while.
func (tr trail) of(node string) []string {
	var out []string
	for _, r := range tr {
		if r.Key != node {
			continue
		}
		short := strings.TrimSuffix(strings.TrimPrefix(r.Type, events.TypePrefix), ".v1")
		switch r.Type {
		case events.TypeNodeObserved, events.TypeNodeUnready, events.TypeNodeDrainProgressed:
			continue
		case events.TypeNodeReady:
			if e, err := events.Decode[events.NodeReady](r.Event); err == nil && !e.First {
				continue
			}
		case events.TypeNodeRemovalProgressed:
			if e, err := events.Decode[events.NodeRemovalProgressed](r.Event); err == nil {
				short += " " + e.Step
			}
		}
		out = append(out, short)
	}
	return out
}
