package scaling

import (
	"slices"
	"time"
)

// defaultRequestExpiry is how long a request that says nothing else waits to
// come to pass.
const defaultRequestExpiry = time.Hour

// Actions of a request.
const (
	ActionUp       = "up"
	ActionDown     = "down"
	ActionTo       = "to"
	ActionDrain    = "drain"
	ActionRemove   = "remove"
	ActionCordon   = "cordon"
	ActionUncordon = "uncordon"
)

// Input is a fact that changes the state: one of Started, DryRunEnded, AlertFired,
// AlertResolved, SignalReceived, Requested, Paused, Resumed and BackoffReset.
type Input interface{ apply(s *State) }

// Apply folds a fact into the state. It is idempotent: the same fact twice
// is the same state. Apart from the clock the order of facts about different
// subjects does not matter.
func (s State) Apply(now time.Time, in Input) State {
	s = s.clone()
	s.Now = s.advance(now)
	in.apply(&s)
	return s
}

// Started says that a process with this policy started.
type Started struct{ At time.Time }

func (in Started) apply(s *State) {
	if at := in.At.UTC().Round(0); at.After(s.StartedAt) {
		s.StartedAt = at
	}
}

// DryRunEnded says that from now on there is somebody who acts. What was decided
// before is void: nobody made those nodes and nobody will.
type DryRunEnded struct{}

func (DryRunEnded) apply(s *State) {
	s.Claims, s.Drains, s.Pools = nil, nil, nil
}

// AlertFired says that an alert fires, again or for the first time.
type AlertFired struct {
	EventID, Fingerprint string
	Labels               map[string]string
	StartsAt, ExpiresAt  time.Time
}

func (in AlertFired) apply(s *State) {
	old, known := s.Alerts[in.Fingerprint]
	switch {
	case known && in.StartsAt.Before(old.StartsAt):
		return // a late copy of an earlier activation
	case known && old.Resolved && in.StartsAt.Equal(old.StartsAt):
		return // a late copy of what has been resolved since
	case known && in.StartsAt.Equal(old.StartsAt) && in.ExpiresAt.Before(old.ExpiresAt):
		return // a late copy of an earlier repeat
	}
	s.Alerts[in.Fingerprint] = Alert{Labels: in.Labels, StartsAt: in.StartsAt.UTC(), ExpiresAt: in.ExpiresAt.UTC(), EventID: in.EventID}
}

// AlertResolved says that the activation of an alert that began at StartsAt is
// over.
type AlertResolved struct {
	EventID, Fingerprint string
	Labels               map[string]string
	StartsAt, ExpiresAt  time.Time
}

func (in AlertResolved) apply(s *State) {
	if old, known := s.Alerts[in.Fingerprint]; known && in.StartsAt.Before(old.StartsAt) {
		return
	}
	s.Alerts[in.Fingerprint] = Alert{Labels: in.Labels, StartsAt: in.StartsAt.UTC(), ExpiresAt: in.ExpiresAt.UTC(),
		EventID: in.EventID, Resolved: true}
}

// Requested is a manual action. Of its times, a zero At means now and a zero
// ExpiresAt an hour from then.
type Requested struct{ Request }

func (in Requested) apply(s *State) {
	r := in.Request
	if slices.ContainsFunc(s.Requests, func(o Request) bool { return o.ID == r.ID }) {
		return
	}
	if r.At.IsZero() {
		r.At = s.Now
	}
	r.At = r.At.UTC()
	if r.ExpiresAt.IsZero() {
		r.ExpiresAt = r.At.Add(defaultRequestExpiry)
	}
	r.ExpiresAt = r.ExpiresAt.UTC()
	if !r.HoldUntil.IsZero() {
		r.HoldUntil = r.HoldUntil.UTC()
		if r.HoldUntil.Before(r.ExpiresAt) {
			r.ExpiresAt = r.HoldUntil // nobody would want it after
		}
	}
	s.release(r)
	s.Requests = append(s.Requests, r)
}

// Paused stops every change of a pool until Until, or until it is resumed.
type Paused struct {
	Pool, Actor, Reason string
	Until               time.Time
}

func (in Paused) apply(s *State) {
	p := Pause{Actor: in.Actor, Reason: in.Reason, Since: s.Now, Until: in.Until.UTC()}
	if in.Until.IsZero() {
		p.Until = time.Time{}
	}
	if old, ok := s.Pauses[in.Pool]; ok {
		p.Since = old.Since
	}
	s.Pauses[in.Pool] = p
}

// Resumed ends a pause.
type Resumed struct{ Pool string }

func (in Resumed) apply(s *State) { delete(s.Pauses, in.Pool) }

// BackoffReset ends the backoff of a pool and forgets its failures.
type BackoffReset struct{ Pool string }

func (in BackoffReset) apply(s *State) {
	p := s.Pools[in.Pool]
	p.Backoff = Backoff{}
	s.Pools[in.Pool] = p
}
