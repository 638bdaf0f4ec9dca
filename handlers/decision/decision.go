package decision

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// Options of a Handler. Bus is required.
type Options struct {
	Bus *bus.Bus
	// Version of the program, noted in decisions and checkpoints.
	Version    string
	Clock      clock.PassiveClock    // for latencies only; default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
}

// History reads the stream of record; *bus.Bus is one.
type History interface {
	Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error]
}

// Handler is the subscriber. It implements bus.Handler.
type Handler struct {
	state   *bus.State[Record]
	history History
	version string
	clock   clock.PassiveClock
	log     *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	views map[string]*view // by cluster
}

// New opens the handler's state.
func New(ctx context.Context, o Options) (*Handler, error) {
	if o.Bus == nil {
		return nil, errors.New("decision: Bus is required")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	state, err := bus.OpenState(ctx, o.Bus, stateOptions())
	if err != nil {
		return nil, fmt.Errorf("decision: open state: %w", err)
	}
	log := o.Logger.With("handler", events.HandlerDecision)
	return &Handler{state: state, history: o.Bus, version: o.Version, clock: o.Clock, log: log,
		metrics: newMetrics(o.Registerer, log), views: map[string]*view{}}, nil
}

func stateOptions() bus.StateOptions[Record] {
	return bus.StateOptions[Record]{
		Handler: events.HandlerDecision,
		// Cooldowns, pauses, alerts and requests end at an instant of their own, not
		// with the next snapshot.
		Deadline: func(_ bus.Key, r Record) time.Time { return r.WakeAt },
	}
}

// Name implements bus.Handler.
func (h *Handler) Name() string { return events.HandlerDecision }

// Handle folds one event of a cluster and publishes what follows from it.
func (h *Handler) Handle(ctx context.Context, d bus.Delivery) error {
	in, err := decode(d.Event)
	if err != nil {
		return bus.Terminal(err)
	}
	v := h.view(d.Key.Cluster)
	v.mu.Lock()
	defer v.mu.Unlock()
	var out *outcome
	err = h.state.Apply(ctx, d, func(t *bus.Turn[Record]) error {
		var err error
		out, err = h.turn(ctx, d, in, v, t)
		return err
	})
	if err != nil {
		return fmt.Errorf("decide on %s %s of cluster %s: %w", d.Event.Type(), d.Event.ID(), d.Key.Cluster, err)
	}
	if out != nil { // nil when it was handled before
		h.report(ctx, d, out)
	}
	return nil
}

// outcome is what a turn came to, for logs and metrics, and for a candidate policy
// that is judged on the same.
type outcome struct {
	result      scaling.Result
	known       bool // the cluster was: counts of unknown things are no zeros
	problem     string
	situation   scaling.State // before the evaluation, with what the event says
	observation scaling.Observation
	at          time.Time // of the turn
}

// turn is one evaluation: fold, evaluate, emit. It is repeatable.
func (h *Handler) turn(ctx context.Context, d bus.Delivery, in any, v *view, t *bus.Turn[Record]) (*outcome, error) {
	rec := t.State
	before, promoted := rec.Core, rec.promotion()
	full, err := h.observe(ctx, d, in, v, rec)
	if err != nil {
		return nil, err
	}
	rec.fold(t.Now, d, in)
	o := v.observation(d.Key.Cluster, *rec)
	seed := scaling.Seed{
		// The sequence tells apart two copies of an event that the stream holds.
		Event: fmt.Sprintf("%s@%d", d.Event.ID(), d.Sequence), ID: events.ID, NodeName: events.NodeName,
	}
	situation := rec.Core
	res := scaling.Evaluate(t.Now, rec.Policy(), situation, o, seed)
	rec.Core, rec.WakeAt = res.State, res.NextAt
	if p := rec.promotion(); p != nil && (promoted == nil || promoted.Shadow != p.Shadow) {
		if err := t.Emit(events.PolicyPromoted{Digest: rec.policyDigest(), Actor: p.Actor, Reason: p.Reason, Shadow: p.Shadow, Replaced: p.Replaced},
			bus.DryRun(rec.DryRun())); err != nil {
			return nil, err
		}
	}
	if err := h.emit(d, t, before, res, v); err != nil {
		return nil, err
	}
	if full {
		if err := h.checkpoint(t); err != nil {
			return nil, err
		}
	}
	return &outcome{result: res, known: o.Known, problem: rec.Stale, situation: situation, observation: o, at: t.Now}, nil
}

// report logs and counts a turn that is done.
func (h *Handler) report(ctx context.Context, d bus.Delivery, out *outcome) {
	cluster := d.Key.Cluster
	h.metrics.observe(cluster, out, h.clock.Since(d.StreamTime))
	if out.problem != "" {
		h.log.WarnContext(ctx, "pools are held until the next full snapshot", "cluster", cluster, "event", d.Event.ID(), "reason", out.problem)
	}
	for _, dec := range out.result.Decisions {
		if !dec.Changed {
			continue
		}
		h.log.InfoContext(ctx, "decision", "cluster", cluster, "pool", dec.Pool, "decision_id", dec.ID, "verdict", dec.Verdict,
			"delta", dec.Delta, "reason", dec.Reason.Code, "message", dec.Reason.Message, "nodes", dec.Nodes, "actor", dec.Actor)
	}
}
