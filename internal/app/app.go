package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// settle is how long auditing may go on after everything else has ended, to
// record the last events of the process.
const settle = 3 * time.Second

// App is one process of the product.
type App struct {
	opts    Options
	started time.Time
	server  *embedded.Server // nil with an external bus
	bus     *bus.Bus
	store   audit.Store
	memory  *bus.State[decision.Record] // decision's, for the gateway

	// first is everything that publishes; last is what must outlive it.
	first, last []role
	ready       []check
	closers     []io.Closer
	address     string
}

// role is one thing that runs until its context ends.
type role struct {
	name string
	run  func(ctx context.Context) error
}

// check says why something is not ready, or nil.
type check struct {
	name string
	ask  func(ctx context.Context) error
}

// New opens everything that the roles need and starts none of them. Close
// releases it; Run does both.
func New(ctx context.Context, o Options) (_ *App, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	if !o.DryRun {
		if err := o.Config.CheckActing(); err != nil {
			return nil, err
		}
	}
	a := &App{opts: o, started: o.Clock.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if o.has(RoleAuditing) { // it knows how long the log was
		if err := a.openStore(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.openBus(ctx); err != nil {
		return nil, err
	}
	// In the order of Roles: who listens before who speaks.
	for _, r := range []struct {
		name string
		add  func(context.Context) error
	}{
		{RoleAuditing, a.addAuditing}, {RoleAnnouncing, a.addAnnouncing}, {RoleDecision, a.addDecision}, {RoleShadow, a.addShadow}, {RoleProvisioning, a.addProvisioning},
		{RoleDraining, a.addDraining}, {RoleCollector, a.addCollectors}, {RoleGateway, a.addGateway},
	} {
		if !o.has(r.name) {
			continue
		}
		if err := r.add(ctx); err != nil {
			return nil, fmt.Errorf("start role %s: %w", r.name, err)
		}
	}
	return a, nil
}

// Address is where the HTTP interface listens, empty without the gateway role.
func (a *App) Address() string { return a.address }

// Events reads the stream of record.
func (a *App) Events(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return a.bus.Read(ctx, o)
}

// Audit is the audit store, nil in a process that neither writes nor serves it.
func (a *App) Audit() audit.Store { return a.store }

// Audited says whether everything in the log is in the audit store, and if not,
// how far it is.
func (a *App) Audited(ctx context.Context) error {
	end, err := a.bus.LastSequence(ctx)
	if err != nil {
		return err
	}
	_, high, err := a.store.High(ctx)
	if err != nil {
		return err
	}
	if high < end {
		return fmt.Errorf("events up to sequence %d of %d are recorded", high, end)
	}
	return nil
}

// Run runs every role until ctx ends or one of them fails, then ends them in
// order: what publishes first, auditing last, so that the last events of the
// process are recorded too.
func (a *App) Run(ctx context.Context) error {
	lastCtx, endLast := context.WithCancel(context.WithoutCancel(ctx))
	defer endLast()
	firstCtx, endFirst := context.WithCancel(ctx)
	defer endFirst()

	var first, last errgroup.Group
	start := func(g *errgroup.Group, ctx context.Context, roles []role) {
		for _, r := range roles {
			g.Go(func() error {
				err := r.run(ctx)
				if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
					return nil
				}
				if err == nil {
					err = errors.New("ended unasked")
				}
				a.opts.Logger.Error("a role failed, the process ends", "role", r.name, "error", err)
				endFirst()
				return fmt.Errorf("role %s: %w", r.name, err)
			})
		}
	}
	start(&last, lastCtx, a.last)
	start(&first, firstCtx, a.first)
	<-firstCtx.Done()
	err := first.Wait()
	a.awaitAudit(lastCtx)
	endLast()
	return errors.Join(err, last.Wait())
}

// awaitAudit waits until everything in the log is in the audit store, at most
// settle.
func (a *App) awaitAudit(ctx context.Context) {
	if !a.opts.has(RoleAuditing) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	tick := a.opts.Clock.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for a.Audited(ctx) != nil {
		select {
		case <-ctx.Done():
			a.opts.Logger.Warn("not every event was audited before the end; the next start goes on where this one stopped")
			return
		case <-tick.C():
		}
	}
}

// Close releases what New opened. It is idempotent.
func (a *App) Close() error {
	var errs []error
	for _, c := range a.closers {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	a.closers = nil
	if a.bus != nil {
		errs = append(errs, a.bus.Close())
		a.bus = nil
	}
	if a.server != nil {
		a.server.Shutdown()
		a.server = nil
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
		a.store = nil
	}
	return errors.Join(errs...)
}
