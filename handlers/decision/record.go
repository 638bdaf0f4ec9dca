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
	id := d.Event.ID()
	var fact scaling.Input
	switch p := in.(type) {
	case events.AlertReceived:
		if p.Status == events.AlertFiring {
			fact = scaling.AlertFired{EventID: id, Fingerprint: p.Fingerprint, Labels: p.Labels, StartsAt: p.StartsAt, ExpiresAt: p.ExpiresAt}
		} else {
			fact = scaling.AlertResolved{EventID: id, Fingerprint: p.Fingerprint, Labels: p.Labels, StartsAt: p.StartsAt, ExpiresAt: p.ExpiresAt}
		}
	case events.SignalReceived:
		source := scaling.SourcePush
		if p.Source == events.SignalQueried {
			source = scaling.SourceQuery
		}
		fact = scaling.SignalReceived{Source: source, Name: p.Name, Signal: scaling.Signal{Value: p.Value, Reason: p.Reason, At: p.ObservedAt,
			ExpiresAt: p.ExpiresAt, EventID: id, Query: p.Query, Epoch: p.Epoch}}
	case events.ScaleRequested:
		fact = scaling.Requested{Request: scaling.Request{ID: id, Action: p.Action, Pool: p.Pool, Node: p.Node, Count: p.Count,
			Actor: p.Actor, Reason: p.Reason, Override: p.Override, ExpiresAt: p.ExpiresAt, HoldUntil: p.HoldUntil}}
	case events.PoolPaused:
		fact = scaling.Paused{Pool: p.Pool, Actor: p.Actor, Reason: p.Reason, Until: p.Until}
	case events.PoolResumed:
		fact = scaling.Resumed{Pool: p.Pool}
	case events.PoolBackoffReset:
		fact = scaling.BackoffReset{Pool: p.Pool}
	case events.ConfigApplied:
		if r.DryRun() && !p.DryRun {
			r.Core = r.Core.Apply(now, scaling.DryRunEnded{})
		}
		r.Config = &Config{Sequence: d.Sequence, Digest: p.Digest, DryRun: p.DryRun, Policy: p.Policy}
		fact = scaling.Started{At: p.Start}
	default:
		return
	}
	r.Core = r.Core.Apply(now, fact)
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
