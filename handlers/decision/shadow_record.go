package decision

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// ShadowRecord is what the shadow keeps of one cluster.
type ShadowRecord struct {
	ID        string               `json:"id"`
	Started   events.ShadowStarted `json:"started"` // with the candidate policy
	StartedAt time.Time            `json:"started_at"`
	Sequence  uint64               `json:"sequence"` // of its shadow.started
	// Live is a copy of decision's record; nil until a checkpoint of decision.
	Live *LiveCopy `json:"live,omitempty"`
	// Own is what the candidate remembers by itself: see scaling.Settle.
	Own scaling.State `json:"own"`
	// ComparedSince is from when on both were compared.
	ComparedSince time.Time `json:"compared_since,omitzero"`
	// Open are the differences that there are now, by pool.
	Open map[string]OpenDifference `json:"open,omitempty"`
	// Tally counts since then.
	Tally Tally `json:"tally"`
	// Corrected is how often the copy was not what decision's checkpoint said.
	Corrected int `json:"corrected,omitempty"`
}

// LiveCopy is a copy of decision's record at a place in the stream.
type LiveCopy struct {
	Record      Record    `json:"record"`
	Incarnation string    `json:"incarnation"`
	Sequence    uint64    `json:"sequence"` // of the last event in it
	At          time.Time `json:"at"`       // of that turn
	Full        string    `json:"full"`     // digest of the core's state behind Record.Full
	Version     string    `json:"version"`  // of the program, by decision's last checkpoint
}

// OpenDifference is a difference that lasts.
type OpenDifference struct {
	ID      string    `json:"id"`
	Effect  string    `json:"effect"`
	Nodes   int       `json:"nodes,omitempty"`
	Removed []string  `json:"removed,omitempty"` // nodes that the candidate would remove, all that were named
	Since   time.Time `json:"since"`
}

// Tally counts what was compared. The nodes of a difference count once, at their
// most: it is the same need that is seen again with each event.
type Tally struct {
	Evaluations int `json:"evaluations"` // of a pool under both policies
	Differing   int `json:"differing"`   // of them
	Differences int `json:"differences"` // that began
	Added       int `json:"added"`       // nodes that the candidate would have added, and the policy in force did not
	Removed     int `json:"removed"`
	Held        int `json:"held"` // nodes that were added or removed, and under the candidate would not have been
}

// policy is the candidate in the core's words. Whether anybody acts is as it is
// for the policy in force.
func (r *ShadowRecord) policy() scaling.Policy {
	return (&Record{Config: &Config{Policy: r.Started.Policy, DryRun: r.Live.Record.DryRun()}}).Policy()
}

// rerun goes on with the copy.
func (r *ShadowRecord) rerun(h *Shadow, k bus.Key, v *view) (*Rerun, error) {
	l := r.Live
	run, err := bus.NewRerun(stateOptions(), k, l.Record, l.Incarnation, l.Sequence, l.At)
	if err != nil {
		return nil, err
	}
	return &Rerun{h: &Handler{history: h.history, version: l.Version}, v: v, run: run}, nil
}

// copied keeps what run came to; full is the digest of the core's state behind the
// last full snapshot.
func (r *ShadowRecord) copied(run *Rerun, incarnation, full string) error {
	rec, seq, at, err := run.run.Position()
	if err == nil {
		r.Live = &LiveCopy{Record: rec, Incarnation: incarnation, Sequence: seq, At: at, Full: full, Version: run.h.version}
	}
	return err
}

// full is the digest of the core's state behind the last full snapshot, if that was
// the last event that run decided on, or else what it was before.
func (r *Rerun) full(before string) (string, error) {
	rec, seq, _, err := r.run.Position()
	if err != nil || rec.Full != seq {
		return before, err
	}
	return rec.Core.Digest(), nil
}

// compare notes where the two decided otherwise, and returns what is to be said.
func (r *ShadowRecord) compare(d bus.Delivery, now time.Time, live, candidate []scaling.Decision, version string) []events.ShadowDecided {
	var out []events.ShadowDecided
	ls, cs := byPool(live), byPool(candidate)
	if r.Open == nil {
		r.Open = map[string]OpenDifference{}
	}
	pools := maps.Clone(ls)
	maps.Copy(pools, cs)
	for _, pool := range slices.Sorted(maps.Keys(pools)) {
		l, c := ls[pool], cs[pool]
		l, c = orUnknown(l, pool, "the policy in force has no pool of this name"), orUnknown(c, pool, "the candidate policy has no pool of this name")
		r.Tally.Evaluations++
		effect, nodes := effectOf(l, c)
		open, lasts := r.Open[pool]
		if effect == events.EffectNone {
			if lasts {
				delete(r.Open, pool)
				out = append(out, events.ShadowDecided{Shadow: r.ID, Difference: open.ID, Pool: pool, Effect: effect, Since: open.Since, Input: d.Sequence})
			}
			continue
		}
		r.Tally.Differing++
		if !lasts || open.Effect != effect {
			open = OpenDifference{ID: events.ID("difference", r.ID, pool, d.Incarnation, strconv.FormatUint(d.Sequence, 10)), Effect: effect, Since: now}
			lasts = false
			r.Tally.Differences++
		}
		grown := !lasts || nodes > open.Nodes
		if c.Verdict == scaling.Down {
			for _, n := range c.Nodes {
				if !slices.Contains(open.Removed, n) {
					open.Removed, grown = append(slices.Clone(open.Removed), n), true
				}
			}
		}
		if !grown {
			continue
		}
		r.Tally.count(effect, max(nodes-open.Nodes, 0))
		open.Nodes = max(nodes, open.Nodes)
		r.Open[pool] = open
		lp, cp := r.explained(d, l, version), r.explained(d, c, version)
		lp.Policy, cp.Policy = r.Live.Record.policyDigest(), r.Started.Digest
		if c.Verdict == scaling.Up {
			cp.Nodes = nil // they will never be
		}
		out = append(out, events.ShadowDecided{Shadow: r.ID, Difference: open.ID, Pool: pool, Effect: effect, Nodes: open.Nodes, Since: open.Since,
			Input: d.Sequence, Candidate: &cp, Live: &lp})
	}
	return out
}

func (t *Tally) count(effect string, nodes int) {
	switch effect {
	case events.EffectAdd:
		t.Added += nodes
	case events.EffectRemove:
		t.Removed += nodes
	case events.EffectHold:
		t.Held += nodes
	}
}

// explained is a decision in the words of the catalogue.
func (r *ShadowRecord) explained(d bus.Delivery, dec scaling.Decision, version string) events.Decision {
	p := payload(dec)
	p.Inputs, p.EvaluatedAt, p.Version = inputs(d, dec), r.Live.At, version
	return p
}

func byPool(ds []scaling.Decision) map[string]scaling.Decision {
	out := map[string]scaling.Decision{}
	for _, d := range ds {
		if d.Pool != "" { // else it is about a node of nobody's, for a person
			out[d.Pool] = d
		}
	}
	return out
}

func orUnknown(d scaling.Decision, pool, why string) scaling.Decision {
	if d.Verdict == "" {
		return scaling.Decision{Pool: pool, Verdict: scaling.Held, Reason: scaling.Reason{Code: scaling.CodeUnknownPool, Message: fmt.Sprintf("pool %s: %s", pool, why)}}
	}
	return d
}

// effectOf says what the candidate c would do that the policy in force, which
// decided l, does not, and with how many nodes.
func effectOf(l, c scaling.Decision) (effect string, nodes int) {
	more := c.Delta - l.Delta
	switch {
	case more > 0 && c.Delta > 0:
		return events.EffectAdd, c.Delta - max(l.Delta, 0)
	case more < 0 && c.Delta < 0:
		return events.EffectRemove, min(l.Delta, 0) - c.Delta
	case more > 0: // fewer are removed
		return events.EffectHold, more
	case more < 0: // fewer are added
		return events.EffectHold, -more
	case c.Delta < 0 && !sameNodes(l.Nodes, c.Nodes):
		return events.EffectOther, 0
	}
	return events.EffectNone, 0
}

func sameNodes(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
