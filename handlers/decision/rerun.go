package decision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// Rerun decides again on one cluster what was decided, from a checkpoint on. It
// runs the handler's own code on a record in memory, and publishes nothing.
type Rerun struct {
	h     *Handler
	v     *view
	run   *bus.Rerun[Record]
	under func(Config) Config // nil: as recorded
	res   scaling.Result
}

// RerunOption changes how a Rerun decides.
type RerunOption func(*Rerun)

// Under has it decide under another policy than the recorded one: policy is given
// the one of the checkpoint and of each config.applied behind it, and returns what
// is decided under from there on. It must be pure.
func Under(policy func(recorded Config) Config) RerunOption {
	return func(r *Rerun) { r.under = policy }
}

// NewRerun begins after the full snapshot that the checkpoint d follows. history
// must hold that.
func NewRerun(history History, d bus.Delivery, opts ...RerunOption) (*Rerun, error) {
	p, err := events.Decode[events.DecisionCheckpointed](d.Event)
	if err != nil {
		return nil, fmt.Errorf("begin with the checkpoint of cluster %s: %w", d.Key.Cluster, err)
	}
	var rec Record
	if err := json.Unmarshal(p.State, &rec); err != nil {
		return nil, fmt.Errorf("begin with the checkpoint of cluster %s: read its state: %w", d.Key.Cluster, err)
	}
	r := &Rerun{h: &Handler{history: history, version: p.Version}, v: &view{fold: events.NewFold()}}
	for _, o := range opts {
		o(r)
	}
	if r.under != nil && rec.Config != nil {
		c := r.under(*rec.Config)
		if rec.Config.DryRun && !c.DryRun {
			rec.Core = rec.Core.Apply(p.At, scaling.DryRunEnded{})
		}
		rec.Config = &c
	}
	r.run, err = bus.NewRerun(stateOptions(), d.Key, rec, d.Incarnation, p.Snapshot, p.At)
	if err != nil {
		return nil, fmt.Errorf("begin with the checkpoint of cluster %s: %w", d.Key.Cluster, err)
	}
	return r, nil
}

// Reads reports whether the live handler received a delivery: its type and key are
// decision's, and it is no copy for another handler.
func Reads(d bus.Delivery) bool {
	if !d.Key.IsCluster() || d.Redrive.Handler != "" && d.Redrive.Handler != events.HandlerDecision {
		return false
	}
	if events.Addressed(d.Event.Type()) {
		// What else is addressed to a handler the bus carries out itself.
		p, err := events.Decode[events.TimerFired](d.Event)
		return d.Event.Type() == events.TypeTimerFired && err == nil && p.Handler == events.HandlerDecision
	}
	def, ok := events.Lookup(d.Event.Type())
	return ok && def.ReadBy(events.HandlerDecision)
}

// Result is what the last evaluation came to; some of it is in no event.
func (r *Rerun) Result() scaling.Result { return r.res }

// Handle returns what follows from a delivery that the live handler received. What
// that set aside at once leads to nothing.
func (r *Rerun) Handle(ctx context.Context, d bus.Delivery) ([]events.Event, error) {
	in, err := decode(d.Event)
	if err != nil {
		return nil, nil
	}
	if p, ok := in.(events.ConfigApplied); ok && r.under != nil {
		c := r.under(Config{Sequence: d.Sequence, Digest: p.Digest, DryRun: p.DryRun, Policy: p.Policy})
		p.Digest, p.DryRun, p.Policy = c.Digest, c.DryRun, c.Policy
		in = p
	}
	out, err := r.run.Apply(d, func(t *bus.Turn[Record]) error {
		o, err := r.h.turn(ctx, d, in, r.v, t)
		if err == nil {
			r.res = o.result
		}
		return err
	})
	if bus.IsTerminal(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("decide again on %s %s of cluster %s: %w", d.Event.Type(), d.Event.ID(), d.Key.Cluster, err)
	}
	return slices.Clone(out), nil
}

// WakeAt is when a timer.fired is due though no other event arrives; zero: never.
func (r *Rerun) WakeAt() time.Time { return r.run.Due() }
