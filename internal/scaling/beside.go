package scaling

import (
	"slices"
	"time"
)

// A candidate policy is judged beside the one in force: both evaluate the same
// events, and only what the one in force decides comes to pass. What happened is
// therefore the live state's, at every evaluation anew; what a policy concludes
// from it over time is the candidate's own.
//
//	live:  requests, holds, pauses, claims, drains, when nodes were added, removed,
//	       or not removed after all, when the program started
//	own:   alerts and signals that its rules know, what its metric rules remember,
//	       since when nodes are unneeded, for how long they are not Ready, what was needed
//	       within its stabilization window, backoff, flaps, which drains it has counted
//	       a need against, what was last said of a pool; and the removals of the last
//	       hour, which the live state remembers only as far as its limit needs

// Situation is the state that a candidate whose own state is own decides on, where
// the one in force has the state live.
func (own State) Situation(live State) State {
	s, mine := live.clone(), own.clone()
	s.Signals, s.Metrics = mine.Signals, mine.Metrics
	s.Unready = mine.Unready
	s.Alerts, s.Unneeded, s.TrustedAt, s.Removals, s.Pools = mine.Alerts, mine.Unneeded, mine.TrustedAt, mine.Removals, mine.Pools
	for node, d := range s.Drains {
		d.Counted = mine.Drains[node].Counted && mine.Drains[node].DecidedAt.Equal(d.DecidedAt)
		s.Drains[node] = d
	}
	for name, l := range live.Pools {
		p := s.Pools[name]
		p.AlertUpAt, p.MetricUpAt, p.AddedAt, p.RemovedAt, p.RemovalFailedAt = l.AlertUpAt, l.MetricUpAt, l.AddedAt, l.RemovedAt, l.RemovalFailedAt
		s.Pools[name] = p
	}
	return s
}

// Settle is the candidate's own state after it decided on a situation. None of that
// comes to pass, and all of live does: what the policy in force decided on the same
// event.
func Settle(situation State, decided, live Result) State {
	s := decided.State.clone()
	s.Requests, s.Holds, s.Pauses, s.Claims = nil, nil, nil, nil
	for _, d := range decided.Drains {
		if slices.ContainsFunc(live.Drains, func(o Order) bool { return o.Node == d.Node }) {
			continue // it does come to pass
		}
		delete(s.Drains, d.Node)
		if since, ok := situation.Unneeded[d.Node]; ok {
			s.Unneeded[d.Node] = since // it stays, as unneeded as it was
		}
	}
	for node, d := range s.Drains {
		if !d.Counted {
			delete(s.Drains, node)
		}
	}
	s.Removals = settledRemovals(situation, decided, live)
	return s
}

// settledRemovals are the removals that count for the candidate. Its evaluation took
// back those that came to nothing; what it decided itself is undone, and what the
// policy in force decided is done.
func settledRemovals(situation State, decided, live Result) []time.Time {
	now := decided.State.Now
	out := slices.DeleteFunc(slices.Clone(decided.State.Removals), func(at time.Time) bool { return !at.After(now.Add(-blastWindow)) })
	not := func(at time.Time) {
		if i := slices.IndexFunc(out, at.Equal); i >= 0 {
			out = slices.Delete(out, i, i+1)
		}
	}
	removes := func(o Order) bool { return o.Goal == GoalRemove }
	// A drain that lasts, and that nobody has called off before.
	lasting := func(o Order) (time.Time, bool) {
		d, ok := situation.Drains[o.Node]
		return d.DecidedAt, ok && d.CancelledAt.IsZero()
	}
	for _, o := range decided.Drains {
		if removes(o) {
			not(now)
		}
	}
	for _, o := range decided.Cancels {
		if at, ok := lasting(o); ok {
			out = append(out, at)
		}
	}
	for _, o := range live.Drains {
		if removes(o) {
			out = append(out, now)
		}
	}
	for _, o := range live.Cancels {
		if at, ok := lasting(o); ok {
			not(at)
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}
