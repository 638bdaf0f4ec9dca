package app

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// providers makes a provider that is nothing but its pool.
type providers struct{ World }

type ofPool struct {
	provider.NodeProvider
	pool string
}

func (providers) Provider(_ config.Cluster, p config.Pool, _ *bus.Notes) (provider.NodeProvider, error) {
	return ofPool{pool: p.Name}, nil
}

func TestMachinesOfAFormerNameAreThoseOfThePool(t *testing.T) {
	t.Parallel()
	a := &App{opts: Options{World: providers{}}}
	got, _, err := a.poolMachines(config.Cluster{Name: "home", Pools: []config.Pool{{Name: "new", RenamedFrom: []string{"old", "older"}}, {Name: "ci"}}},
		nil, func(context.Context) (string, error) { return "", nil })
	require.NoError(t, err)
	of := map[string]string{}
	for name, m := range got {
		of[name] = m.(machines).provider.(ofPool).pool
	}
	require.Equal(t, map[string]string{"new": "new", "old": "new", "older": "new", "ci": "ci"}, of)
}
