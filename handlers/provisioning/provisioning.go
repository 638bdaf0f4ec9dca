package provisioning

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// MaxLog is how much of a machine's log a node.failed carries, in bytes.
const MaxLog = 8 << 10

// Times are the waiting times of the handler. A zero value means its default.
type Times struct {
	// RetryBase and RetryMax bound the waiting time after a failed step, which
	// doubles with each attempt. Defaults 1 s and 30 s.
	RetryBase, RetryMax time.Duration
	// Call is how long one call to the provider or the API server may take.
	// Default 1 min.
	Call time.Duration
	// Create is how long creating a machine may take; an image may have to be
	// pulled. Default 10 min.
	Create time.Duration
	// Watch is how often machines that have yet to become Ready are looked at.
	// Default 3 s.
	Watch time.Duration
	// Sweep is how often provider, API server and records are compared.
	// Default 1 min.
	Sweep time.Duration
	// Grace is how long an orphan must have been one before it is reported, and
	// how long a record may be past its deadline. Default 2 min.
	Grace time.Duration
	// Asked is how long a sweep that was asked for may take: whoever asked waits,
	// and so do the messages behind the request. Default 20 s.
	Asked time.Duration
	// Keep is how long the record of a node that is gone is kept. Default 24 h.
	Keep time.Duration
	// Lease is how long a worker that stopped answering keeps its record.
	// Default 30 s.
	Lease time.Duration
}

func (t Times) withDefaults() Times {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&t.RetryBase, time.Second}, {&t.RetryMax, 30 * time.Second}, {&t.Call, time.Minute},
		{&t.Create, 10 * time.Minute}, {&t.Watch, 3 * time.Second}, {&t.Sweep, time.Minute},
		{&t.Grace, 2 * time.Minute}, {&t.Asked, 20 * time.Second}, {&t.Keep, 24 * time.Hour}, {&t.Lease, 30 * time.Second},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return t
}

// Options of a Handler. Bus and Clusters are required.
type Options struct {
	Bus *bus.Bus
	// Clusters returns the clusters by name. It is asked at every use, so that a
	// new configuration takes effect.
	Clusters func() map[string]Cluster
	// Concurrency is how many nodes are worked on at once. Default 8.
	Concurrency int
	Times       Times
	Clock       clock.WithTicker      // default the wall clock
	Logger      *slog.Logger          // default slog.Default()
	Registerer  prometheus.Registerer // default none
	// OnStep is called before and after every effect, e.g. with
	// "provisioning/create/before", for tests that kill the process there.
	OnStep func(step string)
}

// Handler is the subscriber and worker. Handle and Run may be used at once.
type Handler struct {
	bus         *bus.Bus
	state       *bus.State[lifecycle.Node]
	clusters    func() map[string]Cluster
	concurrency int
	times       Times
	clock       clock.WithTicker
	log         *slog.Logger
	metrics     *metrics
	onStep      func(string)
	sweeper     *sweeper
}

// New opens the handler's state.
func New(ctx context.Context, o Options) (*Handler, error) {
	var errs []error
	if o.Bus == nil {
		errs = append(errs, errors.New("bus is required"))
	}
	if o.Clusters == nil {
		errs = append(errs, errors.New("clusters is required"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("provisioning: %w", err)
	}
	h := &Handler{
		bus: o.Bus, clusters: o.Clusters, concurrency: o.Concurrency, times: o.Times.withDefaults(),
		clock: o.Clock, log: o.Logger, onStep: o.OnStep,
	}
	if h.concurrency <= 0 {
		h.concurrency = 8
	}
	if h.clock == nil {
		h.clock = clock.RealClock{}
	}
	if h.log == nil {
		h.log = slog.Default()
	}
	h.log = h.log.With("handler", events.HandlerProvisioning)
	if h.onStep == nil {
		h.onStep = func(string) {}
	}
	h.metrics = newMetrics(o.Registerer, h.log)
	h.sweeper = newSweeper(h)
	var err error
	h.state, err = bus.OpenState(ctx, o.Bus, bus.StateOptions[lifecycle.Node]{
		Handler: events.HandlerProvisioning,
		// A record is woken at its deadline even when every worker was down.
		Deadline: func(_ bus.Key, n lifecycle.Node) time.Time { return n.Deadline },
	})
	if err != nil {
		return nil, fmt.Errorf("provisioning: open state: %w", err)
	}
	return h, nil
}

// Name implements bus.Handler.
func (h *Handler) Name() string { return events.HandlerProvisioning }

// Run works on what the records ask for, watches machines that have yet to
// become Ready, and reconciles, until ctx ends. It returns the first error
// that is not the end of ctx.
func (h *Handler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	run := func(what string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { first = fmt.Errorf("provisioning: %s: %w", what, err) })
				cancel()
			}
		})
	}
	run("worker", func(ctx context.Context) error {
		return h.state.RunWorker(ctx, bus.WorkerOptions[lifecycle.Node]{
			Due: h.due, Step: h.work, Concurrency: h.concurrency, TTL: h.times.Lease,
		})
	})
	run("watch", h.watch)
	run("reconcile", h.reconcile)
	wg.Wait()
	return first
}

func (h *Handler) machines(cluster, pool string) (Machines, error) {
	c, ok := h.clusters()[cluster]
	if !ok {
		return nil, fmt.Errorf("cluster %q is not configured here: %w", cluster, errUnknownPool)
	}
	m, ok := c.Pools[pool]
	if !ok || m == nil {
		return nil, fmt.Errorf("pool %q of cluster %q is not configured here: %w", pool, cluster, errUnknownPool)
	}
	return m, nil
}

func (h *Handler) nodes(cluster string) (Nodes, error) {
	c, ok := h.clusters()[cluster]
	if !ok || c.Nodes == nil {
		return nil, fmt.Errorf("cluster %q is not configured here", cluster)
	}
	return c.Nodes, nil
}

var errUnknownPool = errors.New("it has no provider")

// effect makes one call to the world with a deadline.
func (h *Handler) effect(ctx context.Context, name string, limit time.Duration, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	h.onStep("provisioning/" + name + "/before")
	err := f(ctx)
	h.onStep("provisioning/" + name + "/after")
	return err
}
