package view

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

func TestANodeIsWhereItsRecordsSayAndElseWhereTheSnapshotSays(t *testing.T) {
	t.Parallel()
	x := setup(t)
	at := t0.Add(time.Minute)
	x.lives["burst-a"] = lifecycle.Position{Phase: "claimed", Since: t0, Until: at, Next: "its machine is created and started",
		Retry: &lifecycle.Retry{Of: "create the machine", Attempt: 2, Error: "no space", NextAt: at}}
	require.Equal(t, &api.Position{Phase: "claimed", Since: t0, Until: at, Next: "its machine is created and started",
		Retry: &api.Retry{Of: "create the machine", Attempt: 2, Error: "no space", NextAt: at}},
		x.view.position(&api.Node{Cluster: "home", Name: "burst-a", Phase: "ready"}, Memory{}))
	require.Equal(t, &api.Position{Phase: "created", Since: t0, Until: at},
		x.view.position(&api.Node{Cluster: "home", Name: "burst-b", Phase: "created", Since: t0, Deadline: at}, Memory{}))
	require.Nil(t, x.view.position(&api.Node{Cluster: "home", Name: "server"}, Memory{}))

	m := Memory{Rules: scaling.Policy{Pools: []scaling.Pool{{Name: "burst", RepairAfter: 10 * time.Minute}}},
		Core: scaling.State{Unready: map[string]scaling.Unwell{"burst-c": {For: 4 * time.Minute, Since: t0}}}}
	require.Equal(t, &api.Position{Phase: "unready", Since: t0, Until: t0.Add(6 * time.Minute)},
		x.view.position(&api.Node{Cluster: "home", Name: "burst-c", Pool: "burst", Phase: "unready", Since: t0}, m), "when it is repaired")
}
