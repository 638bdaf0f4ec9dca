package app

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// moody is provisioning's handler that refuses everything until its mood changes.
type moody struct {
	good atomic.Bool
	mu   sync.Mutex
	ids  []string
}

func (*moody) Name() string { return events.HandlerProvisioning }

func (m *moody) Handle(_ context.Context, d bus.Delivery) error {
	if !m.good.Load() {
		return bus.Terminal(errors.New("in a bad mood"))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids = append(m.ids, d.Event.ID())
	return nil
}

func (m *moody) handled() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ids)
}

func TestARoleRedrivesItsDeadLettersWithItsOwnCredential(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	var log syncBuffer
	open := func(role string) *bus.Bus {
		o := n.options(role)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil)).With("process", role)
		b, err := bus.Open(t.Context(), o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	collector, gateway, provisioning := open(RoleCollector), open(RoleGateway), open(RoleProvisioning)
	for _, id := range []string{"first", "second", "third"} {
		e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "collector", ID: id, Time: time.Now()},
			events.NodeObserved{Node: "n1", What: events.ObservedReady, At: time.Now()})
		require.NoError(t, err)
		require.NoError(t, collector.Publish(t.Context(), e))
	}
	h := &moody{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- provisioning.Run(ctx, h) }()
	defer func() {
		cancel()
		require.NoError(t, <-done)
	}()
	letters := func() int {
		all, err := gateway.DeadLetters(t.Context())
		require.NoError(t, err)
		return len(all)
	}
	require.Eventually(t, func() bool { return letters() == 3 }, time.Minute, 20*time.Millisecond, "one is refused, two wait behind it: %s", &log)
	h.good.Store(true)
	e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "api", ID: "again", Time: time.Now()},
		events.DeadletterRedriveRequested{Handler: events.HandlerProvisioning, Actor: "test", Reason: "the mood is better"})
	require.NoError(t, err)
	require.NoError(t, gateway.Publish(t.Context(), e))
	require.Eventually(t, func() bool { return letters() == 0 && len(h.handled()) == 3 }, time.Minute, 20*time.Millisecond, "everything is handled: %s", &log)
	require.Equal(t, []string{"first", "second", "third"}, h.handled())
	require.NotContains(t, log.String(), "refused a request", "nobody tried what it may not")
}
