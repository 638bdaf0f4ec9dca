package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"

	"github.com/k3s-autoscaler/k3s-autoscaler/alerting"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api/view"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// addGateway publishes the configuration, opens the HTTP interface and relays
// the timers.
func (a *App) addGateway(ctx context.Context) error {
	if err := a.openStore(ctx); err != nil {
		return err
	}
	c := a.opts.Config
	tokens, err := auth.Open(c.API.TokenFiles, a.opts.Logger)
	if err != nil {
		return err
	}
	alerts, err := alerting.NewHandler(alerting.Options{
		Publisher: a.bus, Clusters: func() []string { return clusterNames(c) }, DefaultCluster: func() string { return c.Alerting.DefaultCluster },
		Logger: a.opts.Logger, Registerer: a.opts.Registry, Clock: a.opts.Clock,
		ClusterLabel: c.Alerting.ClusterLabel, Expiry: c.Alerting.Expiry.Std(), MaxBody: int64(c.API.Limits.BodyBytes), Timeout: c.API.Limits.PublishWait.Std(),
	})
	if err != nil {
		return err
	}
	if err := a.openMemory(ctx); err != nil {
		return err
	}
	records, err := a.newLives(ctx)
	if err != nil {
		return err
	}
	now, err := a.newView(records)
	if err != nil {
		return err
	}
	candidates, err := a.newShadows(ctx)
	if err != nil {
		return err
	}
	o := api.Options{
		Version: a.opts.Version, Publisher: a.bus, Log: a.bus, DeadLetters: a.bus, Audit: a.store, World: now, Shadows: candidates, Alerts: alerts, Tokens: tokens,
		Targets:        func() []api.Target { return targets(c) },
		DefaultCluster: func() string { return defaultCluster(c) },
		Gatherer:       a.opts.Registry, Registerer: a.opts.Registry, Logger: a.opts.Logger, Clock: a.opts.Clock,
		Limits: limits(c.API.Limits),
	}
	for _, r := range a.ready {
		o.Ready = append(o.Ready, api.Check{Name: r.name, Check: r.ask})
	}
	server, err := api.New(o)
	if err != nil {
		return err
	}
	listener, err := a.listen()
	if err != nil {
		return err
	}
	a.address = listener.Addr().String()
	a.closers = append(a.closers, listener)
	a.first = append(a.first, role{RoleGateway, func(ctx context.Context) error {
		// Decisions follow the log: without the policy in it nothing is decided.
		if err := a.applyConfig(ctx); err != nil {
			return err
		}
		a.opts.Logger.Info("listening", "address", a.address, "tls", c.API.TLS != nil, "dry_run", a.opts.DryRun)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return server.Serve(ctx, listener) })
		g.Go(func() error { return now.Run(ctx) })
		g.Go(func() error { return a.runLives(ctx, records) })
		g.Go(func() error { return a.bus.RunTimers(ctx) })
		return g.Wait()
	}})
	return nil
}

// newView opens what the queries show: the log, the audit store, what decision
// remembers, and the records of the nodes.
func (a *App) newView(l view.Lives) (*view.View, error) {
	return view.New(view.Options{
		Observe: decision.Observe, Lives: l,
		Log: a.bus, Audit: a.store, Clusters: clusterNames(a.opts.Config), Clock: a.opts.Clock, Logger: a.opts.Logger,
		Memories: view.MemoriesFunc(func(ctx context.Context, cluster string) (view.Memory, bool, error) {
			r, ok, err := a.memory.Get(ctx, bus.Key{Cluster: cluster, Name: events.ClusterKey})
			if err != nil || !ok {
				return view.Memory{}, false, err
			}
			m := view.Memory{Core: r.State.Core, Stale: r.State.Stale}
			if c := r.State.Config; c != nil {
				m.Policy, m.Digest, m.DryRun, m.Rules = c.Policy, c.Digest, c.DryRun, r.State.Policy()
				if p := c.Promotion; p != nil {
					if own, err := policyDigest(c.Policy, false); err != nil || own != p.File {
						m.Promotion = p
					}
				}
			}
			return m, true, nil
		}),
	})
}

func (a *App) listen() (net.Listener, error) {
	c := a.opts.Config.API
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on api.listen %s: %w", c.Listen, err)
	}
	if c.TLS == nil {
		return l, nil
	}
	cert, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load api.tls: %w", err)
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}), nil
}

func clusterNames(c *config.Config) []string {
	out := make([]string, len(c.Clusters))
	for i, cl := range c.Clusters {
		out[i] = cl.Name
	}
	return out
}

func targets(c *config.Config) []api.Target {
	out := make([]api.Target, len(c.Clusters))
	for i, cl := range c.Clusters {
		out[i].Cluster, out[i].Signals = cl.Name, c.Signals(cl.Name)
		for _, p := range cl.Pools {
			out[i].Pools = append(out[i].Pools, p.Name)
		}
	}
	return out
}

// defaultCluster is the cluster of requests that name none.
func defaultCluster(c *config.Config) string {
	if len(c.Clusters) == 1 {
		return c.Clusters[0].Name
	}
	return c.Alerting.DefaultCluster
}

func limits(l config.Limits) api.Limits {
	return api.Limits{
		BodyBytes: int64(l.BodyBytes), HeaderBytes: int(l.HeaderBytes), HeaderTimeout: l.HeaderTimeout.Std(), ReadTimeout: l.ReadTimeout.Std(),
		WriteTimeout: l.WriteTimeout.Std(), IdleTimeout: l.IdleTimeout.Std(), PublishWait: l.PublishWait.Std(),
	}
}
