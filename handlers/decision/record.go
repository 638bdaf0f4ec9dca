package decision

import (
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// Record is what decision keeps of one cluster.
type Record struct {
	Core scaling.State `json:"core"`
	// Config is the policy in force, nil before the first config.applied.
	Config *Config `json:"config,omitempty"`
	// Full and Last are the sequences of the last full snapshot and of the last
	// snapshot of any kind that was folded; Digest is that of the fold.
	Full   uint64 `json:"full,omitempty"`
	Last   uint64 `json:"last,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Stale says why the snapshots since Last can't be folded; empty when they can.
	Stale string `json:"stale,omitempty"`
	// WakeAt is when the next evaluation is due though no fact arrives.
	WakeAt time.Time `json:"wake_at,omitzero"`
}

// Config is the policy in force.
type Config struct {
	Sequence uint64        `json:"sequence"` // of its config.applied
	Digest   string        `json:"digest"`
	DryRun   bool          `json:"dry_run,omitempty"`
	Policy   events.Policy `json:"policy"`
	// Promotion is why it is another than the configuration file's, nil: it is not.
	Promotion *events.Promotion `json:"promotion,omitempty"`
}

// decode returns the payload of an event that decision reads.
func decode(e events.Event) (any, error) {
	switch e.Type() {
	case events.TypeSnapshotCaptured:
		return events.Decode[events.SnapshotCaptured](e)
	case events.TypeSnapshotChanged:
		return events.Decode[events.SnapshotChanged](e)
	case events.TypeAlertReceived:
		return events.Decode[events.AlertReceived](e)
	case events.TypeSignalReceived:
		return events.Decode[events.SignalReceived](e)
	case events.TypeScaleRequested:
		return events.Decode[events.ScaleRequested](e)
	case events.TypePoolPaused:
		return events.Decode[events.PoolPaused](e)
	case events.TypePoolResumed:
		return events.Decode[events.PoolResumed](e)
	case events.TypePoolBackoffReset:
		return events.Decode[events.PoolBackoffReset](e)
	case events.TypeConfigApplied:
		return events.Decode[events.ConfigApplied](e)
	case events.TypeTimerFired:
		return events.Decode[events.TimerFired](e)
	}
	return nil, fmt.Errorf("event %s of type %s is none that decision reads", e.ID(), e.Type())
}

// fold takes a fact into the record. Snapshots are folded by the view, and a timer
// says that something has ended: they only move the clock.
func (r *Record) fold(now time.Time, d bus.Delivery, in any) {
	for _, f := range r.facts(d, in) {
		r.Core = r.Core.Apply(now, f)
	}
	if p, ok := in.(events.ConfigApplied); ok {
		r.Config = &Config{Sequence: d.Sequence, Digest: p.Digest, DryRun: p.DryRun, Policy: p.Policy, Promotion: p.Promotion}
	}
}

// facts are what an event tells the core, in this order.
func (r *Record) facts(d bus.Delivery, in any) []scaling.Input {
	id := d.Event.ID()
	switch p := in.(type) {
	case events.AlertReceived:
		if p.Status == events.AlertFiring {
			return []scaling.Input{scaling.AlertFired{EventID: id, Fingerprint: p.Fingerprint, Labels: p.Labels, StartsAt: p.StartsAt, ExpiresAt: p.ExpiresAt}}
		}
		return []scaling.Input{scaling.AlertResolved{EventID: id, Fingerprint: p.Fingerprint, Labels: p.Labels, StartsAt: p.StartsAt, ExpiresAt: p.ExpiresAt}}
	case events.SignalReceived:
		source := scaling.SourcePush
		if p.Source == events.SignalQueried {
			source = scaling.SourceQuery
		}
		return []scaling.Input{scaling.SignalReceived{Source: source, Name: p.Name, Signal: scaling.Signal{Value: p.Value, Reason: p.Reason, At: p.ObservedAt,
			ExpiresAt: p.ExpiresAt, EventID: id, Query: p.Query, Epoch: p.Epoch}}}
	case events.ScaleRequested:
		return []scaling.Input{scaling.Requested{Request: scaling.Request{ID: id, Action: p.Action, Pool: p.Pool, Node: p.Node, Count: p.Count,
			Actor: p.Actor, Reason: p.Reason, Override: p.Override, ExpiresAt: p.ExpiresAt, HoldUntil: p.HoldUntil}}}
	case events.PoolPaused:
		return []scaling.Input{scaling.Paused{Pool: p.Pool, Actor: p.Actor, Reason: p.Reason, Until: p.Until}}
	case events.PoolResumed:
		return []scaling.Input{scaling.Resumed{Pool: p.Pool}}
	case events.PoolBackoffReset:
		return []scaling.Input{scaling.BackoffReset{Pool: p.Pool}}
	case events.ConfigApplied:
		started := scaling.Started{At: p.Start}
		if r.DryRun() && !p.DryRun {
			return []scaling.Input{scaling.DryRunEnded{}, started}
		}
		return []scaling.Input{started}
	}
	return nil
}

// DryRun reports whether nobody acts on what is decided.
func (r *Record) DryRun() bool { return r.Config != nil && r.Config.DryRun }

// policyDigest identifies the policy in force, "" before the first.
func (r *Record) policyDigest() string {
	if r.Config == nil {
		return ""
	}
	return r.Config.Digest
}

// promotion is why the policy in force is another than the configuration file's.
func (r *Record) promotion() *events.Promotion {
	if r.Config == nil {
		return nil
	}
	return r.Config.Promotion
}
