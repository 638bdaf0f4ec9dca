package scaling

import (
	"fmt"
	"slices"
	"time"
)

// flapsKept bounds what is remembered of a pool that needs its nodes again.
const flapsKept = 100

// neededAgain notes that the pool needs a node again soon after one was removed
// for nothing but low load. Several nodes for one removal count once.
func (p *poolRun) neededAgain(now time.Time) {
	at := p.st.ShrunkAt
	if p.FlapCount < 1 || at.IsZero() {
		return
	}
	p.st.ShrunkAt = time.Time{}
	if now.Sub(at) > p.FlapWithin {
		return
	}
	recent := slices.DeleteFunc(slices.Clone(p.st.Flaps), func(f Flap) bool { return !f.At.After(now.Add(-p.FlapFreeze)) })
	recent = append(recent, Flap{At: now, After: now.Sub(at)})
	p.st.Flaps = recent[max(0, len(recent)-max(p.FlapCount, flapsKept)):]
	if len(p.st.Flaps) >= p.FlapCount {
		p.st.FrozenUntil = now.Add(p.FlapFreeze)
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
			p.Name, p.FlapWithin, times(len(p.st.Flaps)), p.FlapFreeze, p.st.FrozenUntil.Format(time.RFC3339)),
		Lifts: fmt.Sprintf("by itself; it would not have come to this with scale_down.unneeded of %s instead of %s", longer, p.Unneeded)}
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
func (e *evaluation) noteRemoval() {
	if e.policy.MaxRemovalsPerHour < 1 {
		e.s.Removals = nil
		return
	}
	recent := e.recentRemovals()
	// More than the limit are never looked at.
	e.s.Removals = append(recent[max(0, len(recent)-e.policy.MaxRemovalsPerHour+1):], e.now)
}

func (e *evaluation) recentRemovals() []time.Time {
	return slices.DeleteFunc(slices.Clone(e.s.Removals), func(at time.Time) bool { return !at.After(e.now.Add(-blastWindow)) })
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
