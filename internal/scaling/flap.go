package scaling

import (
	"fmt"
	"slices"
	"time"
)

// flapsKept bounds what is remembered of a pool that needs its nodes again.
const flapsKept = 100

// neededAgain notes that the pool needs a node again soon after one was removed
// for nothing but low load. Several nodes for one removal count once. A removal that
// was called off is none.
func (e *evaluation) neededAgain(p *poolRun) {
	at := p.st.ShrunkAt
	for _, name := range sortedKeys(e.s.Drains) { // those that are not over
		if d := e.s.Drains[name]; d.shrinks(p.Name) && d.DecidedAt.Before(e.now) {
			if d.DecidedAt.After(at) {
				at = d.DecidedAt
			}
			d.Counted = true
			e.s.Drains[name] = d
		}
	}
	if p.FlapCount < 1 || at.IsZero() {
		return
	}
	p.st.ShrunkAt = time.Time{}
	if e.now.Sub(at) > p.FlapWithin {
		return
	}
	p.st.Flaps = append(p.flaps(e.now), Flap{At: e.now, After: e.now.Sub(at)})
	p.st.Flaps = p.st.Flaps[max(0, len(p.st.Flaps)-max(p.FlapCount, flapsKept)):]
	if len(p.st.Flaps) >= p.FlapCount {
		p.st.FrozenUntil = e.now.Add(p.FlapFreeze)
	}
}

// flaps are those that count now.
func (p *poolRun) flaps(now time.Time) []Flap { return p.FlapsAt(p.st, now) }

// FlapsAt are the flaps of the pool that count at an instant, oldest first.
func (p Pool) FlapsAt(s PoolState, now time.Time) []Flap {
	return slices.DeleteFunc(slices.Clone(s.Flaps), func(f Flap) bool { return !f.At.After(now.Add(-p.FlapFreeze)) })
}

// shrinks reports whether the drain removes a node of the pool that nobody asked to
// be removed, and no need of a node was counted against it yet.
func (d Drain) shrinks(pool string) bool {
	return d.Pool == pool && d.RequestID == "" && d.CancelledAt.IsZero() && !d.Counted
}

// shrunk remembers a removal that can't be called off any more, or is over.
func (p *poolRun) shrunk(d Drain) {
	if d.shrinks(p.Name) && d.DecidedAt.After(p.st.ShrunkAt) {
		p.st.ShrunkAt = d.DecidedAt
	}
}

// frozen is the guard of a pool whose nodes come back again and again, or nil. It
// proposes how long a node would have to be unneeded for that not to happen.
func (e *evaluation) frozen(p *poolRun) *Guard {
	if p.FlapCount < 1 || !p.st.FrozenUntil.After(e.now) {
		return nil
	}
	var gap time.Duration
	for _, f := range p.st.Flaps {
		gap = max(gap, f.After)
	}
	longer := (p.Unneeded + gap).Truncate(time.Minute) + time.Minute
	return &Guard{Guard: "flap", code: CodeFlapping, Value: fmt.Sprint(len(p.st.Flaps)), Until: p.st.FrozenUntil,
		Message: fmt.Sprintf("pool %s needed nodes again within %s of a removal, %s within %s: it removes none by itself until %s",
			p.Name, lasts(p.FlapWithin), times(len(p.st.Flaps)), lasts(p.FlapFreeze), p.st.FrozenUntil.Format(time.RFC3339)),
		Lifts: fmt.Sprintf("by itself; it would not have come to this with scale_down.unneeded of %s instead of %s", lasts(longer), lasts(p.Unneeded))}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// blastWindow is the time for which removals of a cluster are counted together.
const blastWindow = time.Hour

// noteRemoval counts a removal, whoever asked for it.
func (e *evaluation) noteRemoval(at time.Time) {
	limit := e.policy.MaxRemovalsPerHour
	if limit < 1 {
		e.s.Removals = nil
		return
	}
	recent := append(e.recentRemovals(), at)
	slices.SortFunc(recent, time.Time.Compare)
	// More are never looked at: any that is not over may be called off.
	e.s.Removals = recent[max(0, len(recent)-limit-len(e.s.Drains)):]
}

// unnoteRemoval takes back what noteRemoval counted: the node stays.
func (e *evaluation) unnoteRemoval(at time.Time) {
	if i := slices.IndexFunc(e.s.Removals, at.Equal); i >= 0 {
		e.s.Removals = slices.Delete(slices.Clone(e.s.Removals), i, i+1)
	}
}

func (e *evaluation) recentRemovals() []time.Time { return e.s.RemovalsWithin(e.now) }

// RemovalsWithin are the removals of the last hour that count against the limit of
// the policy, oldest first: those that were called off, or failed, do not.
func (s State) RemovalsWithin(now time.Time) []time.Time {
	return slices.DeleteFunc(slices.Clone(s.Removals), func(at time.Time) bool { return !at.After(now.Add(-blastWindow)) })
}

// blastGuard is the guard of a cluster that has lost as many nodes as it may
// within an hour, or nil.
func (e *evaluation) blastGuard() *Guard {
	limit := e.policy.MaxRemovalsPerHour
	recent := e.recentRemovals()
	if limit < 1 || len(recent) < limit {
		return nil
	}
	return &Guard{Guard: "max_removals_per_hour", code: CodeRemovalsPerHour, Value: fmt.Sprintf("%d of %d", len(recent), limit),
		Until:   recent[len(recent)-limit].Add(blastWindow),
		Message: fmt.Sprintf("%s removed in all pools within an hour, at most %d may be", agree(len(recent), "node was", "nodes were"), limit),
		Lifts:   "by itself, or with a higher policy.max_removals_per_hour"}
}
