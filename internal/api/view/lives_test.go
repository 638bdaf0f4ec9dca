package view

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

func TestANodeIsWhereItsRecordsSayAndElseWhereTheSnapshotSays(t *testing.T) {
	t.Parallel()
	x := setup(t)
	at := t0.Add(time.Minute)
	x.lives["burst-a"] = lifecycle.Position{Phase: "claimed", Since: t0, Until: at, Next: "its machine is created and started",
		Retry: &lifecycle.Retry{Of: "create the machine", Attempt: 2, Error: "no space", NextAt: at}}
	require.Equal(t, &api.Position{Phase: "claimed", Since: t0, Until: at, Next: "its machine is created and started",
		Retry: &api.Retry{Of: "create the machine", Attempt: 2, Error: "no space", NextAt: at}},
		x.view.position(&api.Node{Cluster: "home", Name: "burst-a", Phase: "ready"}))
	require.Equal(t, &api.Position{Phase: "created", Since: t0, Until: at},
		x.view.position(&api.Node{Cluster: "home", Name: "burst-b", Phase: "created", Since: t0, Deadline: at}))
	require.Nil(t, x.view.position(&api.Node{Cluster: "home", Name: "server"}))
}
