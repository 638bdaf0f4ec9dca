package simulated_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/providertest"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/simulated"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// run starts a world in which nothing takes long.
func run(t *testing.T) *simulation.World {
	t.Helper()
	w, err := simulation.New(simulation.Options{Delays: simulation.Delays{Join: time.Millisecond, Ready: time.Millisecond}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

func readyNode(ctx context.Context, t *testing.T, w *simulation.World, name string) *corev1.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var found *corev1.Node
	require.NoError(t, w.Until(ctx, func(v simulation.View) bool {
		for _, n := range v.Nodes {
			if n.Name == name && n.Status.Conditions[0].Status == corev1.ConditionTrue {
				found = n
			}
		}
		return found != nil
	}))
	return found
}

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Exercise(t, func(t *testing.T) providertest.Subject {
		w, engine := run(t), &simulated.Engine{}
		open := func(t *testing.T, cluster string, f simulated.Fault) provider.NodeProvider {
			p, err := simulated.New(simulated.Options{World: w, Engine: engine, Cluster: cluster, Fault: func(provider.Spec) simulated.Fault { return f }})
			require.NoError(t, err)
			return p
		}
		return providertest.Subject{
			Provider: func(t *testing.T, cluster string) provider.NodeProvider { return open(t, cluster, simulated.Fault{}) },
			Clusters: [2]string{"home", "office"},
			CPUMilli: 500, MemoryBytes: 256 << 20, ServerVersion: w.ServerVersion(),
			Allocatable: func(ctx context.Context, t *testing.T, node string) (int64, int64, int64) {
				a := readyNode(ctx, t, w, node).Status.Allocatable
				return a.Cpu().MilliValue(), a.Memory().Value(), a.Pods().Value()
			},
			Exits: func(t *testing.T, cluster string) provider.NodeProvider {
				return open(t, cluster, simulated.Fault{Exits: "fatal: this agent fails on purpose"})
			},
			Complaint: "fails on purpose",
		}
	})
}

func TestOptionsAreRequired(t *testing.T) {
	t.Parallel()
	p, err := simulated.New(simulated.Options{})
	require.ErrorContains(t, err, "world is required")
	require.ErrorContains(t, err, "cluster is required")
	require.Nil(t, p)
}

func TestStoppedMachineLeavesItsNodeAndARunningOneThatNeverRegistersHasNone(t *testing.T) {
	t.Parallel()
	w := run(t)
	p, err := simulated.New(simulated.Options{World: w, Cluster: "home", Fault: func(s provider.Spec) simulated.Fault {
		return simulated.Fault{NeverRegisters: s.Name == "stuck"}
	}})
	require.NoError(t, err)
	for _, name := range []string{"stuck", "good"} {
		_, err := p.Create(t.Context(), provider.Spec{Name: name, Cluster: "home", Pool: "p", ClaimID: name, Epoch: "e", CPUMilli: 1, MemoryBytes: 1})
		require.NoError(t, err)
		require.NoError(t, p.Start(t.Context(), name))
	}
	readyNode(t.Context(), t, w, "good")
	require.NoError(t, p.Stop(t.Context(), "good"))
	require.NoError(t, p.Delete(t.Context(), "good"))
	require.Len(t, w.View().Nodes, 2, "the server and what a machine has left")
	m, err := p.Get(t.Context(), "stuck")
	require.NoError(t, err)
	require.Equal(t, provider.Running, m.State)
}
