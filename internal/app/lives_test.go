package app

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

func TestTheGatewayFollowsWhereEachLifeIs(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	a := &App{bus: b}
	nodes, err := bus.OpenState(t.Context(), b, bus.StateOptions[lifecycle.Node]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	drains, err := bus.OpenState(t.Context(), b, bus.StateOptions[lifecycle.Drain]{Handler: events.HandlerDraining})
	require.NoError(t, err)
	key := bus.Key{Cluster: "home", Name: "burst-a"}
	require.NoError(t, nodes.Amend(t.Context(), key, "claim", func(t *bus.Turn[lifecycle.Node]) error {
		t.State.Phase, t.State.Deadline = lifecycle.Claimed, t.Now.Add(time.Minute)
		return nil
	}))
	l, err := a.newLives(t.Context())
	require.NoError(t, err)
	_, known := l.Position("home", "burst-a")
	require.False(t, known, "nothing was read yet")

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.follow(ctx) }()
	at := func(phase string) {
		t.Helper()
		require.Eventually(t, func() bool { p, ok := l.Position("home", "burst-a"); return ok && p.Phase == phase }, bustest.Patience, 5*time.Millisecond)
	}
	at("claimed")
	require.NoError(t, nodes.Amend(t.Context(), key, "ready", func(t *bus.Turn[lifecycle.Node]) error {
		t.State.Phase = lifecycle.Ready
		return nil
	}))
	at("ready")
	require.NoError(t, drains.Amend(t.Context(), key, "drain", func(t *bus.Turn[lifecycle.Drain]) error {
		return t.State.Request(lifecycle.GoalRemove, time.Minute, t.Now)
	}))
	at("drain requested")
	_, known = l.Position("home", "another")
	require.False(t, known)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}
