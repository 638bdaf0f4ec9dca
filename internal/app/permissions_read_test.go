package app

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// patient is a handler that waits until it is stopped.
type patient struct{ name string }

func (p patient) Name() string { return p.name }

func (p patient) Handle(ctx context.Context, _ bus.Delivery) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestTheCredentialOfARoleReadsTheLogAndMeasuresHowLateItIs(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	open := func(o bus.Options) *bus.Bus {
		b, err := bus.Open(t.Context(), o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	admin := open(n.options("admin"))
	for i := range 3 {
		at := time.Date(2026, 11, 24, 6, 0, i, 0, time.UTC)
		e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "collector", ID: fmt.Sprint("e", i), Time: at},
			events.NodeObserved{Node: "n1", What: events.ObservedReady, At: at})
		require.NoError(t, err)
		require.NoError(t, admin.Publish(t.Context(), e))
	}
	for _, role := range Roles() {
		if role == RoleCollector {
			continue // it does not read the log
		}
		b := open(n.options(role))
		read := 0
		for _, err := range b.Read(t.Context(), bus.ReadOptions{}) {
			require.NoError(t, err, role)
			read++
		}
		require.Equal(t, 3, read, role)
	}

	o, reg := n.options(RoleProvisioning), prometheus.NewRegistry()
	o.Registerer = reg
	b := open(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx, patient{events.HandlerProvisioning}) }()
	require.Eventually(t, func() bool {
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "autoscaler_bus_retention_used_ratio" {
				return f.GetMetric()[0].GetGauge().GetValue() > 0
			}
		}
		return false
	}, time.Minute, 10*time.Millisecond, "its oldest event has used some of the retention")
	require.NoError(t, b.Ready(t.Context()))
	cancel()
	require.NoError(t, <-done)
}
