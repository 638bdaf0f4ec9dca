package decision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// ShadowOptions of a Shadow. Bus is required.
type ShadowOptions struct {
	Bus *bus.Bus
	// Version of the program, noted in what it decides.
	Version    string
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // default none
}

// Shadow is a subscriber of its own that judges a candidate policy beside the one
// in force. It implements bus.Handler. On each event that decision decides on it
//
//   - does what decision does, by the same code, on a copy of decision's record; what
//     that leads to is thrown away,
//   - evaluates the candidate on the same observation and in the same situation (see
//     scaling.State.Situation),
//   - says where the two decide otherwise, and nothing else.
//
// So the candidate is judged in the situation of the policy in force, event by
// event, never in one that it would have brought about itself. The copy is checked
// against each checkpoint of decision, and taken from it where it differs: after
// events that decision set aside or handled again, or a change of the program.
//
// It may publish nothing that anybody acts on, and has no port to the world.
type Shadow struct {
	state   *bus.State[ShadowRecord]
	history History
	version string
	log     *slog.Logger
	metrics *shadowMetrics

	mu    sync.Mutex
	views map[string]*shadowView // by cluster
}

// shadowView is what a Shadow has in memory of a cluster: the fold of its
// snapshots, a cache as in Handler.
type shadowView struct {
	mu sync.Mutex // one message of a cluster at a time
	*view
}

// NewShadow opens the shadow's state.
func NewShadow(ctx context.Context, o ShadowOptions) (*Shadow, error) {
	if o.Bus == nil {
		return nil, errors.New("shadow: Bus is required")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	state, err := bus.OpenState(ctx, o.Bus, bus.StateOptions[ShadowRecord]{Handler: events.HandlerShadow})
	if err != nil {
		return nil, fmt.Errorf("shadow: open state: %w", err)
	}
	log := o.Logger.With("handler", events.HandlerShadow)
	return &Shadow{state: state, history: o.Bus, version: o.Version, log: log, metrics: newShadowMetrics(o.Registerer, log),
		views: map[string]*shadowView{}}, nil
}

// Name implements bus.Handler.
func (h *Shadow) Name() string { return events.HandlerShadow }

// Handle judges one event of a cluster that has a shadow; most have none.
func (h *Shadow) Handle(ctx context.Context, d bus.Delivery) error {
	v := h.view(d.Key.Cluster)
	v.mu.Lock()
	defer v.mu.Unlock()
	if d.Event.Type() != events.TypeShadowStarted {
		_, ok, err := h.state.Get(ctx, d.Key)
		if err != nil {
			return fmt.Errorf("look for a candidate policy of cluster %s: %w", d.Key.Cluster, err)
		}
		if !ok {
			v.view = newView()
			return nil
		}
	}
	var said []events.ShadowDecided
	err := h.state.Apply(ctx, d, func(t *bus.Turn[ShadowRecord]) error {
		var err error
		said, err = h.turn(ctx, d, v, t)
		return err
	})
	if err != nil {
		return fmt.Errorf("judge the candidate policy of cluster %s on %s %s: %w", d.Key.Cluster, d.Event.Type(), d.Event.ID(), err)
	}
	h.report(ctx, d.Key.Cluster, said)
	return nil
}

func (h *Shadow) view(cluster string) *shadowView {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.views[cluster]
	if !ok {
		v = &shadowView{view: newView()}
		h.views[cluster] = v
	}
	return v
}

// turn is what one event comes to. It is repeatable.
func (h *Shadow) turn(ctx context.Context, d bus.Delivery, v *shadowView, t *bus.Turn[ShadowRecord]) ([]events.ShadowDecided, error) {
	rec := t.State
	switch d.Event.Type() {
	case events.TypeShadowStarted:
		p, err := events.Decode[events.ShadowStarted](d.Event)
		if err != nil {
			return nil, bus.Terminal(err)
		}
		*rec = ShadowRecord{ID: d.Event.ID(), Started: p, StartedAt: t.Now, Sequence: d.Sequence}
		return nil, h.begin(ctx, d, v, rec)
	case events.TypeShadowStopped:
		p, err := events.Decode[events.ShadowStopped](d.Event)
		if err != nil {
			return nil, bus.Terminal(err)
		}
		if p.Shadow == rec.ID {
			t.Delete()
		} else {
			t.Unchanged()
		}
		return nil, nil
	case events.TypeDecisionCheckpointed:
		changed, err := h.check(ctx, d, v, rec)
		if !changed {
			t.Unchanged()
		}
		return nil, err
	}
	in, err := decode(d.Event)
	if err != nil { // decision sets it aside
		t.Unchanged()
		return nil, nil
	}
	if p, ok := in.(events.ConfigApplied); ok && p.Promotion != nil && p.Promotion.Shadow == rec.ID {
		t.Delete() // it is the policy in force now
		return nil, nil
	}
	if rec.Live == nil {
		t.Unchanged()
		return nil, nil
	}
	return h.judge(ctx, d, in, v, t)
}

// begin takes the state of the policy in force from the checkpoint that the event
// names. Without one, or when the log no longer holds it, the next one begins.
func (h *Shadow) begin(ctx context.Context, d bus.Delivery, v *shadowView, rec *ShadowRecord) error {
	if rec.Started.Checkpoint == 0 {
		return nil
	}
	for e, err := range h.history.Read(ctx, bus.ReadOptions{Cluster: d.Key.Cluster, Node: events.ClusterKey,
		Types: []string{events.TypeDecisionCheckpointed}, FromSequence: rec.Started.Checkpoint, UntilSequence: rec.Started.Checkpoint}) {
		var undecodable *bus.UndecodableError
		if err != nil && !errors.As(err, &undecodable) {
			return fmt.Errorf("read decision's checkpoint at sequence %d: %w", rec.Started.Checkpoint, err)
		}
		if err == nil && e.Sequence == rec.Started.Checkpoint {
			return h.follow(ctx, e, d.Sequence, v, rec)
		}
	}
	return nil
}

// check compares the copy of decision's record with a checkpoint, and takes it from
// there where it is another. It reports whether the record was changed.
func (h *Shadow) check(ctx context.Context, d bus.Delivery, v *shadowView, rec *ShadowRecord) (bool, error) {
	p, err := events.Decode[events.DecisionCheckpointed](d.Event)
	if err != nil {
		return false, bus.Terminal(err)
	}
	if l := rec.Live; l != nil && l.Incarnation == d.Incarnation {
		switch {
		case p.Snapshot < l.Record.Full: // decision is behind; its next one tells
			return false, nil
		case p.Snapshot == l.Record.Full && p.StateDigest == l.Full:
			return false, nil
		}
		rec.Corrected++
		h.log.WarnContext(ctx, "the shadow had another state of the policy in force than decision has, and takes it from decision's checkpoint; a few decisions may have been compared wrongly",
			"cluster", d.Key.Cluster, "snapshot", p.Snapshot, "version", h.version, "version_of_decision", p.Version)
	}
	return true, h.follow(ctx, d, d.Sequence, v, rec)
}

// follow makes the copy what decision's record is behind the event at a sequence,
// from a checkpoint on.
func (h *Shadow) follow(ctx context.Context, checkpoint bus.Delivery, until uint64, v *shadowView, rec *ShadowRecord) error {
	r, err := NewRerun(h.history, checkpoint)
	if err != nil {
		return bus.Terminal(err)
	}
	_, from, _, err := r.run.Position()
	if err != nil {
		return bus.Terminal(err)
	}
	full, err := r.full("")
	if err != nil {
		return bus.Terminal(err)
	}
	for e, err := range h.history.Read(ctx, bus.ReadOptions{Cluster: checkpoint.Key.Cluster, Node: events.ClusterKey, FromSequence: from + 1, UntilSequence: until}) {
		var undecodable *bus.UndecodableError
		switch {
		case errors.As(err, &undecodable):
			continue // decision set it aside
		case err != nil:
			return fmt.Errorf("read the events of cluster %s since sequence %d: %w", checkpoint.Key.Cluster, from, err)
		case e.Sequence <= from || e.Sequence > until || !Reads(e):
			continue
		}
		if _, err := r.Handle(ctx, e); err != nil {
			return err
		}
		if full, err = r.full(full); err != nil {
			return bus.Terminal(err)
		}
	}
	first := rec.Live == nil
	if err := rec.copied(r, checkpoint.Incarnation, full); err != nil {
		return bus.Terminal(err)
	}
	if first {
		rec.Own, rec.ComparedSince = rec.Live.Record.Core, rec.Live.At
	}
	v.view = r.v
	return nil
}

// judge evaluates both policies on an event and says where they decide otherwise.
func (h *Shadow) judge(ctx context.Context, d bus.Delivery, in any, v *shadowView, t *bus.Turn[ShadowRecord]) ([]events.ShadowDecided, error) {
	rec := t.State
	r, err := rec.rerun(h, d.Key, v.view)
	if err != nil {
		return nil, bus.Terminal(err)
	}
	facts := rec.Live.Record.facts(d, in)
	var live *outcome
	_, err = r.run.Apply(d, func(lt *bus.Turn[Record]) error {
		var err error
		live, err = r.h.turn(ctx, d, in, v.view, lt)
		return err
	})
	switch {
	case errors.Is(err, bus.ErrIncarnation): // until decision's next checkpoint in the new stream
		rec.Live = nil
		return nil, nil
	case bus.IsTerminal(err), err == nil && live == nil: // set aside, or in the copy already
		t.Unchanged()
		return nil, nil
	case err != nil:
		return nil, err
	}
	full, err := r.full(rec.Live.Full)
	if err == nil {
		err = rec.copied(r, d.Incarnation, full)
	}
	if err != nil {
		return nil, bus.Terminal(err)
	}
	for _, f := range facts {
		rec.Own = rec.Own.Apply(live.at, f)
	}
	situation := rec.Own.Situation(live.situation)
	seed := scaling.Seed{Event: fmt.Sprintf("%s/%s@%d", rec.ID, d.Event.ID(), d.Sequence), ID: events.ID, NodeName: events.NodeName}
	decided := scaling.Evaluate(live.at, rec.policy(), situation, live.observation, seed)
	rec.Own = scaling.Settle(situation, decided, live.result)
	said := rec.compare(d, live.at, live.result.Decisions, decided.Decisions, h.version)
	for _, p := range said {
		if err := t.Emit(p, bus.DryRun(true)); err != nil {
			return nil, err
		}
	}
	return said, nil
}

// report logs and counts what was said.
func (h *Shadow) report(ctx context.Context, cluster string, said []events.ShadowDecided) {
	for _, p := range said {
		if p.Effect == events.EffectNone {
			h.log.InfoContext(ctx, "the candidate policy and the one in force agree again", "cluster", cluster, "pool", p.Pool, "difference", p.Difference)
			continue
		}
		h.metrics.differences.WithLabelValues(p.Effect, cluster, p.Pool).Inc()
		h.log.InfoContext(ctx, "the candidate policy decides otherwise than the one in force", "cluster", cluster, "pool", p.Pool, "difference", p.Difference,
			"effect", p.Effect, "nodes", p.Nodes, "candidate", p.Candidate.Reason.Message, "live", p.Live.Reason.Message)
	}
}
