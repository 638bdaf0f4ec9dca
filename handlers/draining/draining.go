// Package draining empties nodes: it cordons, evicts through the eviction API,
// waits, and gives up at the deadline, after which the node is as it was.
//
// A request is the intent; the record moves through the states of
// lifecycle.Drain by steps under a lease: look, act, commit. A process may die
// between any two lines, another repeats the step: every act is idempotent.
// Nothing is ever deleted here, and no pod leaves against its budget.
package draining

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Times are the waiting times of the handler. A zero value means its default.
type Times struct {
	// Call is how long one call to the API server may take. Default 30 s.
	Call time.Duration
	// Poll is how often a node with terminating pods is looked at. Default 1 s.
	Poll time.Duration
	// Jobs is how often a node that waits for pods of Jobs is looked at. Default 5 s.
	Jobs time.Duration
	// RetryBase and RetryMax bound the waiting time after a refused eviction or
	// a failed call, which doubles. Defaults 1 s and 5 s: a budget is often free
	// again as soon as the replacement of an evicted pod is Ready.
	RetryBase, RetryMax time.Duration
	// Stuck is how long a pod may outlive its grace period before it is named
	// as a blocker. Default 30 s.
	Stuck time.Duration
	// Look is how often a node that stays cordoned or drained is looked for, to
	// forget its record when it is gone. Default 1 min; 5 s for one that is
	// being removed.
	Look time.Duration
	// Keep is how long the record of a drain that ended is kept. Default 24 h.
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
		{&t.Call, 30 * time.Second}, {&t.Poll, time.Second}, {&t.Jobs, 5 * time.Second}, {&t.RetryBase, time.Second}, {&t.RetryMax, 5 * time.Second},
		{&t.Stuck, 30 * time.Second}, {&t.Look, time.Minute}, {&t.Keep, 24 * time.Hour}, {&t.Lease, 30 * time.Second},
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
	// Clusters returns the API servers by the name of the cluster. It is asked
	// at every use, so that a new configuration takes effect.
	Clusters func() map[string]Cluster
	// Concurrency is how many nodes are drained at once. Default 8.
	Concurrency int
	// Evictions is how many evictions of one node are asked for at once.
	// Default 10.
	Evictions  int
	Times      Times
	Clock      clock.WithTicker      // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
	// OnStep is called before and after every effect, e.g. with
	// "draining/evict/before", for tests that kill the process there.
	OnStep func(step string)
}

// Handler is the subscriber and worker. Handle and Run may be used at once.
type Handler struct {
	opts    Options
	state   *bus.State[lifecycle.Drain]
	log     *slog.Logger
	metrics *metrics
}

type (
	lease = bus.Lease[lifecycle.Drain]
	turn  = bus.Turn[lifecycle.Drain]
)

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
		return nil, fmt.Errorf("draining: %w", err)
	}
	o.Times = o.Times.withDefaults()
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
	if o.Evictions <= 0 {
		o.Evictions = 10
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OnStep == nil {
		o.OnStep = func(string) {}
	}
	h := &Handler{opts: o, log: o.Logger.With("handler", events.HandlerDraining)}
	h.metrics = newMetrics(o.Registerer, h.log)
	var err error
	h.state, err = bus.OpenState(ctx, o.Bus, bus.StateOptions[lifecycle.Drain]{
		Handler: events.HandlerDraining,
		// A drain is woken at its deadline even when every worker was down.
		Deadline: func(_ bus.Key, d lifecycle.Drain) time.Time {
			switch {
			case d.Phase == lifecycle.DrainFinishing:
				return d.JobsUntil
			case d.Active():
				return d.Deadline
			}
			return time.Time{}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("draining: open state: %w", err)
	}
	return h, nil
}

// Name implements bus.Handler.
func (h *Handler) Name() string { return events.HandlerDraining }

// Run works on what the records ask for until ctx ends.
func (h *Handler) Run(ctx context.Context) error {
	return h.state.RunWorker(ctx, bus.WorkerOptions[lifecycle.Drain]{
		Due: h.due, Step: h.work, Concurrency: h.opts.Concurrency, TTL: h.opts.Times.Lease,
	})
}

func (h *Handler) cluster(name string) (Cluster, error) {
	c, ok := h.opts.Clusters()[name]
	if !ok || c == nil {
		return nil, fmt.Errorf("cluster %q is not configured here", name)
	}
	return c, nil
}

// effect makes one call to the world with a deadline.
func (h *Handler) effect(ctx context.Context, name string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, h.opts.Times.Call)
	defer cancel()
	h.opts.OnStep("draining/" + name + "/before")
	err := f(ctx)
	h.opts.OnStep("draining/" + name + "/after")
	return err
}
