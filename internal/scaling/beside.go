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
//	own:   alerts and signals that its rules know, what these remember, since when nodes are unneeded, what was needed
//	       within its stabilization window, backoff, flaps, which drains it has counted
//	       a need against, what was last said of a pool; and the removals of the last
//	       hour, which the live state remembers only as far as its limit needs

// Situation is the state that a candidate whose own state is own decides on, where
// the one in force has the state live.
func (own State) Situation(live State) State {
	s, mine := live.clone(), own.clone()
	s.Alerts, s.Unneeded, s.TrustedAt, s.Removals, s.Pools = mine.Alerts, mine.Unneeded, mine.TrustedAt, mine.Removals, mine.Pools
	s.Signals, s.Metrics = mine.Signals, mine.Metrics
	for node, d := range s.Drains {
		d.Counted = mine.Drains[node].Counted && mine.Drains[node].DecidedAt.Equal(d.DecidedAt)
		s.Drains[node] = d
	}
	for name, l := range live.Pools {
		p := s.Pools[name]
		p.AlertUpAt, p.MetricUpAt = l.AlertUpAt, l.MetricUpAt
		p.AddedAt, p.RemovedAt, p.RemovalFailedAt = l.AddedAt, l.RemovedAt, l.RemovalFailedAt
		s.Pools[name] = p
	}
	return s
}

// Settle is the candidate's own state after it decided on a situation. None of that
// comes to pass, and all of what the policy in force decided on the same event,
// whose state was before and is after.
func Settle(situation State, decided Result, before, after State) State {
	s := decided.State.clone()
	s.Requests, s.Holds, s.Pauses, s.Claims = nil, nil, nil, nil
	for _, d := range decided.Drains {
		delete(s.Drains, d.Node)
		// A node that people have emptied is emptied for both.
		if since, ok := situation.Unneeded[d.Node]; ok && d.Goal == GoalRemove {
			s.Unneeded[d.Node] = since // it stays, as unneeded as it was
		}
	}
	for node, d := range s.Drains {
		if !d.Counted {
			delete(s.Drains, node)
		}
	}
	s.Removals = removals(situation.Removals, before, after)
	return s
}

// removals are those that count within an hour, after those that counted before and
// what became of drains.
func removals(counted []time.Time, before, after State) []time.Time {
	out := slices.DeleteFunc(slices.Clone(counted), func(at time.Time) bool { return !at.After(after.Now.Add(-blastWindow)) })
	not := func(at time.Time) {
		if i := slices.IndexFunc(out, at.Equal); i >= 0 {
			out = slices.Delete(out, i, i+1)
		}
	}
	for _, node := range sortedKeys(after.Drains) {
		switch d, old := after.Drains[node], before.Drains[node]; {
		case !old.DecidedAt.Equal(d.DecidedAt), !old.CancelledAt.IsZero() && d.CancelledAt.IsZero(): // new, or too late to be called off
			out = append(out, d.DecidedAt)
		case old.CancelledAt.IsZero() && !d.CancelledAt.IsZero():
			not(d.DecidedAt)
		}
	}
	for _, node := range sortedKeys(before.Drains) {
		d := before.Drains[node]
		now, drained := after.Drains[node]
		over := !drained || !now.DecidedAt.Equal(d.DecidedAt) // or decided anew at once
		if over && d.CancelledAt.IsZero() && after.Pools[d.Pool].RemovalFailedAt.Equal(after.Now) {
			not(d.DecidedAt) // it came to nothing
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}
