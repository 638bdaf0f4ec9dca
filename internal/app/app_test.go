package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/draining"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/provisioning"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/simulated"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// simulatedWorld is a World that tells whether anyone asked for the means to act.
type simulatedWorld struct {
	world    *simulation.World
	machines provider.NodeProvider // outlives the processes, as an engine does
	acted    []string
}

func (w *simulatedWorld) Reader(config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	return w.world.Client(), nil, nil
}

func (w *simulatedWorld) Actor(config.Cluster) (kubernetes.Interface, error) {
	w.acted = append(w.acted, "actor")
	return w.world.Client(), nil
}

func (w *simulatedWorld) Provider(c config.Cluster, _ config.Pool, _ *bus.Notes) (provider.NodeProvider, error) {
	w.acted = append(w.acted, "provider")
	if w.machines == nil {
		var err error
		if w.machines, err = simulated.New(simulated.Options{World: w.world, Cluster: c.Name}); err != nil {
			return nil, err
		}
	}
	return w.machines, nil
}

type testBundle struct {
	dir    string
	world  *simulatedWorld
	config *config.Config
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{dir: t.TempDir(), world: &simulatedWorld{}}
	var err error
	b.world.world, err = simulation.New(simulation.Options{Delays: simulation.Delays{Join: 100 * time.Millisecond, Ready: 50 * time.Millisecond}})
	require.NoError(t, err)
	require.NoError(t, auth.NewKey().WriteFile(filepath.Join(b.dir, "token")))
	b.config, err = config.Parse("test.yaml", []byte(`
clusters: [{name: home, pools: [{name: burst, provider: simulated, min: 1, max: 2, cpu: 1, memory: 1Gi}]}]
collector: {changed_every: 1s}
bus: {embedded: {dir: bus}}
audit: {sqlite: {path: audit.db}}
api: {listen: "127.0.0.1:0", token_files: [token]}
`), b.dir)
	require.NoError(t, err)
	return b
}

// run starts an app and returns what ends it.
func (b *testBundle) run(t *testing.T, dryRun bool) (*App, func()) {
	t.Helper()
	a, err := New(t.Context(), Options{Config: b.config, Version: "test", DryRun: dryRun, World: b.world, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() {
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, a.Close())
		require.NoError(t, a.Close(), "closing twice is harmless")
	}
}

func (b *testBundle) count(t *testing.T, a *App, eventType string) (n int) {
	t.Helper()
	for d, err := range a.Events(t.Context(), bus.ReadOptions{Cluster: "home", Types: []string{eventType}}) {
		require.NoError(t, err)
		require.Equal(t, eventType, d.Event.Type())
		n++
	}
	return n
}

func TestADryRunHoldsNeitherACredentialToActNorAProvider(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, stop := b.run(t, true)
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeNodeClaimed) == 1 }, time.Minute, 50*time.Millisecond,
		"the minimum is decided")
	stop()
	require.Empty(t, b.world.acted)
}

func TestADryRunRefusesRolesThatAct(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := New(t.Context(), Options{Config: b.config, DryRun: true, Roles: []string{RoleDecision, RoleDraining, "barista"}, World: b.world})
	require.ErrorContains(t, err, `"draining" acts`)
	require.ErrorContains(t, err, `"barista" is unknown`)
}

func TestTheMinimumIsReachedAndEverythingIsAudited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, stop := b.run(t, false)
	worldCtx, endWorld := context.WithCancel(t.Context())
	defer endWorld()
	go func() { _ = b.world.world.Run(worldCtx) }() // ends with the test
	require.Eventually(t, func() bool { return b.count(t, a, events.TypeNodeReady) == 1 }, 60*time.Second, 50*time.Millisecond)
	require.Eventually(t, func() bool { return a.Audited(t.Context()) == nil }, time.Minute, 20*time.Millisecond)
	resp, err := http.Get("http://" + a.Address() + "/readyz")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
	stop()

	// The next start goes on where this one ended: a config.applied more, no
	// node more, and the collector has a higher epoch.
	a, stop = b.run(t, false)
	require.Eventually(t, func() bool {
		return b.count(t, a, events.TypeSnapshotCaptured) >= 2 && b.count(t, a, events.TypeConfigApplied) >= 2
	}, time.Minute, 50*time.Millisecond)
	require.Equal(t, 2, b.count(t, a, events.TypeConfigApplied))
	require.Equal(t, 1, b.count(t, a, events.TypeNodeClaimed))
	stop()
}

func TestARoleThatFailsEndsTheProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, err := New(t.Context(), Options{Config: b.config, DryRun: true, World: b.world, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	a.first = append(a.first, role{"broken", func(context.Context) error { return errors.New("no luck") }})
	require.ErrorContains(t, a.Run(t.Context()), "role broken: no luck")
	require.NoError(t, a.Close())
}

func TestErrorsOfTheWorldBecomeThoseOfThePorts(t *testing.T) {
	t.Parallel()
	for from, to := range map[error]error{
		provider.ErrNotFound: provisioning.ErrNotFound, provider.ErrNameTaken: provisioning.ErrNameTaken,
		provider.ErrImage: provisioning.ErrImage, provider.ErrRefused: provisioning.ErrRefused, kube.ErrNotFound: provisioning.ErrNotFound,
	} {
		err := translate(fmt.Errorf("act: %w", from))
		require.ErrorIs(t, err, to)
		require.ErrorIs(t, err, from)
		require.Equal(t, "act: "+from.Error(), err.Error())
	}
	other := errors.New("daemon gone")
	require.Equal(t, other, translate(other))
	require.NoError(t, translate(nil))

	var blocked *draining.Blocked
	require.ErrorAs(t, drainError(fmt.Errorf("evict: %w", &kube.EvictionBlocked{PDB: "ns/web", Message: "needs 3"})), &blocked)
	require.Equal(t, "ns/web", blocked.Budget)
	require.ErrorIs(t, drainError(kube.ErrNotFound), draining.ErrNotFound)
	require.NoError(t, drainError(nil))
}

func TestANodesRecordJoinsWhatBothHandlersKnow(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	k := bus.Key{Cluster: "home", Name: "burst-1"}
	j := newJoin()
	_, exists := j.joined(k)
	require.False(t, exists)

	j.node(bus.Record[lifecycle.Node]{Key: k, State: lifecycle.Node{Name: "burst-1", Pool: "burst", ClaimID: "c", Phase: lifecycle.Failed,
		Failure: &lifecycle.Failure{Stage: lifecycle.Created, Reason: lifecycle.Reason{Code: "X"}, Log: "a secret story", At: at}}})
	j.drain(bus.Record[lifecycle.Drain]{Key: k, State: lifecycle.Drain{Node: "burst-1", Goal: lifecycle.GoalRemove, Phase: lifecycle.DrainDraining,
		RequestID: "r", Blockers: []lifecycle.Blocker{{Kind: "PodDisruptionBudget", Name: "ns/web"}}}})
	r, exists := j.joined(k)
	require.True(t, exists)
	require.Equal(t, "failed", r.Phase)
	require.Equal(t, "X", r.Failure.Reason.Code)
	require.Empty(t, r.Failure.Log, "the log is in node.failed; a snapshot stays small")
	require.Equal(t, "ns/web", r.Drain.Blockers[0].Name)
	require.True(t, j.names("home")["burst-1"])
	require.Empty(t, j.names("elsewhere"))

	j.drain(bus.Record[lifecycle.Drain]{Key: k, State: lifecycle.Drain{Phase: lifecycle.DrainDone}})
	r, _ = j.joined(k)
	require.Nil(t, r.Drain, "a drain that ended is no longer said")
	j.node(bus.Record[lifecycle.Node]{Key: k, Deleted: true})
	j.drain(bus.Record[lifecycle.Drain]{Key: k, Deleted: true})
	_, exists = j.joined(k)
	require.False(t, exists)
}
