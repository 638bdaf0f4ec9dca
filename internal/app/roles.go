package app

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/draining"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/provisioning"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/recording"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// openStore opens the audit store, once: auditing writes it, the gateway reads.
func (a *App) openStore(ctx context.Context) error {
	if a.store != nil {
		return nil
	}
	store, err := sqlite.Open(ctx, sqlite.Options{Path: a.opts.Config.Audit.SQLite.Path, Registerer: a.opts.Registry, Clock: a.opts.Clock})
	if err != nil {
		return err
	}
	a.store = store
	a.ready = append(a.ready, check{"audit", func(ctx context.Context) error {
		_, _, err := store.High(ctx)
		return err
	}})
	return nil
}

func (a *App) addAuditing(ctx context.Context) error {
	if err := a.openStore(ctx); err != nil {
		return err
	}
	h, err := auditing.New(auditing.Options{Store: recording.Store{Audit: a.store}, Log: a.bus, Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry})
	if err != nil {
		return err
	}
	a.last = append(a.last, role{RoleAuditing, func(ctx context.Context) error { return a.bus.RunBatch(ctx, h) }})
	return nil
}

func (a *App) addDecision(ctx context.Context) error {
	h, err := decision.New(ctx, decision.Options{
		Bus: a.bus, Version: a.opts.Version, Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry,
	})
	if err != nil {
		return err
	}
	a.handle(RoleDecision, h, nil)
	return nil
}

func (a *App) addProvisioning(ctx context.Context) error {
	clusters := map[string]provisioning.Cluster{}
	work := []func(context.Context) error{}
	notes, err := bus.OpenNotes(ctx, a.bus, events.HandlerProvisioning)
	if err != nil {
		return err
	}
	for _, c := range a.opts.Config.Clusters {
		actor, err := a.actor(c)
		if err != nil {
			return err
		}
		version := &serverVersion{ask: actor.ServerVersion, clock: a.opts.Clock}
		a.first = append(a.first, role{RoleProvisioning + ": version of cluster " + c.Name, version.run})
		pools, prepulls, err := a.poolMachines(c, notes, version.get)
		if err != nil {
			return err
		}
		work = append(work, prepulls...)
		clusters[c.Name] = provisioning.Cluster{Nodes: nodeObjects{actor: actor, cluster: c.Name}, Pools: pools}
	}
	h, err := provisioning.New(ctx, provisioning.Options{
		Bus: a.bus, Clusters: func() map[string]provisioning.Cluster { return clusters },
		Times: provisioning.Times{Sweep: a.opts.Config.Reconcile.Every.Std(), Grace: a.opts.Config.Reconcile.Grace.Std()},
		Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry, OnStep: crashHook(),
	})
	if err != nil {
		return err
	}
	work = append(work, h.Run)
	a.handle(RoleProvisioning, h, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, w := range work {
			g.Go(func() error { return w(ctx) })
		}
		return g.Wait()
	})
	return nil
}

// poolMachines are what makes and removes the machines of a cluster, by the names
// of its pools: those of now, and those under which machines and records were made.
// work is what goes on in the background for them.
func (a *App) poolMachines(c config.Cluster, notes *bus.Notes, serverVersion func(context.Context) (string, error)) (out map[string]provisioning.Machines, work []func(context.Context) error, err error) {
	out = map[string]provisioning.Machines{}
	for _, p := range c.Pools {
		provider, err := a.opts.World.Provider(c, p, notes)
		if err != nil {
			return nil, nil, err
		}
		if pp, ok := provider.(prepuller); ok && p.Docker != nil && p.Docker.Prepull {
			work = append(work, func(ctx context.Context) error { pp.Prepull(ctx, serverVersion); return ctx.Err() })
		}
		for _, name := range append([]string{p.Name}, p.RenamedFrom...) {
			out[name] = machines{provider: provider, serverVersion: serverVersion}
		}
	}
	return out, work, nil
}

func (a *App) addDraining(ctx context.Context) error {
	clusters := map[string]draining.Cluster{}
	for _, c := range a.opts.Config.Clusters {
		actor, err := a.actor(c)
		if err != nil {
			return err
		}
		clusters[c.Name] = drainCluster{actor}
	}
	h, err := draining.New(ctx, draining.Options{
		Bus: a.bus, Clusters: func() map[string]draining.Cluster { return clusters },
		Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry, OnStep: crashHook(),
	})
	if err != nil {
		return err
	}
	a.handle(RoleDraining, h, h.Run)
	return nil
}

func (a *App) actor(c config.Cluster) (*kube.Actor, error) {
	client, err := a.opts.World.Actor(c)
	if err != nil {
		return nil, err
	}
	return kube.NewActor(client, kube.Options{Registerer: a.opts.Registry})
}

// handle adds a handler with its work outside of messages, if it has any.
func (a *App) handle(name string, h bus.Handler, work func(context.Context) error) {
	a.first = append(a.first, role{name, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return a.bus.Run(ctx, h) })
		if work != nil {
			g.Go(func() error { return work(ctx) })
		}
		return g.Wait()
	}})
}

func (a *App) addCollectors(ctx context.Context) error {
	for _, c := range a.opts.Config.Clusters {
		client, metrics, err := a.opts.World.Reader(c)
		if err != nil {
			return err
		}
		records, err := openRecords(ctx, a.bus, c.Name)
		if err != nil {
			return err
		}
		epoch, err := a.nextEpoch(ctx, c.Name)
		if err != nil {
			return err
		}
		cc := a.opts.Config.Collector
		window := cc.BatchWindow.Std()
		if window == 0 {
			window = -1 // the collector's zero is its default
		}
		col, err := collector.New(collector.Options{
			Cluster: c.Name, Client: client, Metrics: metrics, Records: records, Publisher: a.bus, Epoch: epoch,
			FullEvery: cc.FullEvery.Std(), ChangedEvery: cc.ChangedEvery.Std(), BatchWindow: window,
			MetricsEvery: cc.MetricsInterval.Std(),
			Clock:        a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry,
		})
		if err != nil {
			return err
		}
		a.first = append(a.first, role{RoleCollector + " of cluster " + c.Name, col.Run})
		a.ready = append(a.ready, check{"cluster " + c.Name, func(context.Context) error { return col.Ready() }})
		if err := a.addQueries(ctx, c, epoch); err != nil {
			return err
		}
	}
	return nil
}

// epochs is the state of the collector role: how often it was started.
type epochs struct {
	Epoch int64 `json:"epoch"`
}

// nextEpoch raises the collector's epoch: whoever started later has the higher
// one, without comparing clocks.
func (a *App) nextEpoch(ctx context.Context, cluster string) (int64, error) {
	st, err := bus.OpenState(ctx, a.bus, bus.StateOptions[epochs]{Handler: RoleCollector})
	if err != nil {
		return 0, fmt.Errorf("open the collector's state: %w", err)
	}
	var epoch int64
	key := bus.Key{Cluster: cluster, Name: events.ClusterKey}
	// The operation emits nothing, so that its name need not be unique.
	if err := st.Amend(ctx, key, "epoch", func(t *bus.Turn[epochs]) error {
		t.State.Epoch++
		epoch = t.State.Epoch
		return nil
	}); err != nil {
		return 0, fmt.Errorf("raise the collector's epoch: %w", err)
	}
	return epoch, nil
}
