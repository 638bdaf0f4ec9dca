package cli

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func report(mod func(*events.ReconcileReported)) events.ReconcileReported {
	r := events.ReconcileReported{RequestID: "REQUEST", Nodes: 3, Records: 2, At: t0}
	mod(&r)
	return r
}

func TestReconcilePrintsWhatDiffersAndWhatIsDone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.env["WAIT"] = "1"
	b.stream = append(b.stream,
		happened(t, events.Meta{}, events.ReconcileReported{RequestID: "another", Nodes: 9, At: t0}),
		happened(t, events.Meta{}, report(func(r *events.ReconcileReported) {
			r.DryRun, r.More, r.Unknown = true, 1, []string{"list machines of pool ci of cluster home: the Docker engine does not answer"}
			r.Differences = []events.Difference{
				{Node: "burst-aaaaaaaaaa", Pool: "burst", Kind: events.DivergedOrphanInstance, Detail: "machine 0123 is exited, and there is no record of it",
					Action: "the machine is removed", Since: t0.Add(-30 * time.Second), Due: t0.Add(90 * time.Second)},
				{Node: "burst-bbbbbbbbbb", Pool: "burst", Detail: "machine 4567 is running, and there is no record of it",
					Action: "left alone: it belongs to another log", Since: t0},
			}
		})))
	require.Equal(t, ExitFailure, b.run("reconcile", "--dry-run", "--cluster", "home", "--reason", "a look"))
	golden(t, "reconcile", b.stdout.String())
	require.Empty(t, b.stderr.String())
	require.Len(t, b.posted, 1)
	p, err := events.Decode[events.ReconcileRequested](b.posted[0])
	require.NoError(t, err)
	require.Equal(t, events.ReconcileRequested{DryRun: true, Actor: "ada", Reason: "a look"}, p)
}

func TestReconcileSaysThatAllAgree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.env["WAIT"] = "1"
	b.stream = append(b.stream, happened(t, events.Meta{}, report(func(*events.ReconcileReported) {})))
	require.Equal(t, "3 nodes compared: machines, Node objects and records agree\n", b.ok(t, "reconcile"))
	b.posted = nil
	var r events.ReconcileReported
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "reconcile", "-o", "json")), &r))
	require.Equal(t, 2, r.Records)
}
