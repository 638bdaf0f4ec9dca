//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Thirty nodes on real containers come at once and go at once, and nothing of them
// stays. Then they do so again, and the drain of one of them is blocked: the others
// don't wait for it.
func TestThirtyNodesComeAndGoAndOneBlockedDrainDelaysNoOther(t *testing.T) {
	const many = 30
	p := newProduct(t, "e2e-thirty", pool{Max: many, CPU: "50m", Memory: "64Mi", Unneeded: "1h", Register: "180s", DrainLimit: "180s",
		Extra: "        claim_expiry: 300s\n", Down: fmt.Sprintf(", max_removals: %d", many)})
	ns := namespace(t, p.cluster)
	p.start()

	come := func() {
		t.Helper()
		knowsAtRest(t, p, 0) // what still leaves counts for the maximum
		began := time.Now()
		p.mustCLI("scale", "to", "--pool", "burst", "--count", fmt.Sprint(many), "--reason", "a busy Friday")
		eventually(t, 5*time.Minute, "thirty nodes are Ready", readyNodes(t, p, many))
		knows(t, p, many)
		t.Logf("%d nodes are Ready after %.1f s", many, time.Since(began).Seconds())
	}
	// leave removes all but those that stay, and returns how long each took from the
	// request of its drain to its end, in seconds, sorted.
	leave := func(staying int) []float64 {
		t.Helper()
		had := len(payloads[events.NodeRemoved](t, p))
		began := time.Now()
		p.mustCLI("scale", "to", "--pool", "burst", "--count", "0", "--reason", "a quiet Sunday")
		var removed []events.NodeRemoved
		eventually(t, 5*time.Minute, "the nodes are gone", func() error {
			if removed = payloads[events.NodeRemoved](t, p)[had:]; len(removed) < many-staying {
				return fmt.Errorf("%d are", len(removed))
			}
			return nil
		})
		t.Logf("%d nodes are gone after %.1f s", len(removed), time.Since(began).Seconds())
		asked := map[string]time.Time{}
		for _, d := range payloads[events.NodeDrainRequested](t, p) {
			asked[d.Node] = d.DecidedAt
		}
		var took []float64
		for _, r := range removed {
			took = append(took, r.At.Sub(asked[r.Node]).Seconds())
		}
		slices.Sort(took)
		return took
	}
	ninety := func(took []float64) float64 { return took[(len(took)*9+9)/10-1] }

	come()
	logStages(t, p)
	free := leave(0)
	logRemovalStages(t, p)
	eventually(t, time.Minute, "no machine is left", func() error {
		if n := len(containers(t, p.cluster)); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})

	come()
	deployment(t, ns, "web", p.cluster, 1, "40m")
	waitRunning(t, ns, "web", 1, time.Minute)
	budget(t, ns, "web", 1)
	var busy string
	for n := range running(t, ns, "web") {
		busy = n
	}
	// One more may stay: the pod that is to be evicted needs a place.
	beside := leave(2)
	blocked := slices.ContainsFunc(payloads[events.NodeDrainBlocked](t, p), func(b events.NodeDrainBlocked) bool { return b.Node == busy })
	require.True(t, blocked, "the drain of %s is blocked by its budget", busy)
	names, _ := ourNodes(t, p.cluster)
	require.Contains(t, names, busy)
	require.LessOrEqual(t, len(names), 2)
	t.Logf("from the request of a drain to the node's end, p90: %.2f s of %d nodes; %.2f s of %d beside a blocked one: %.2f ×",
		ninety(free), len(free), ninety(beside), len(beside), ninety(beside)/ninety(free))
	require.LessOrEqual(t, ninety(beside), 1.5*ninety(free)+1, "the others don't wait for the blocked one")
}

// logRemovalStages prints how long each step of the removals took.
func logRemovalStages(t *testing.T, p *product) {
	t.Helper()
	var all []events.Stage
	for _, n := range payloads[events.NodeRemoved](t, p) {
		all = append(all, n.Stages...)
	}
	logTimes(t, all)
}
