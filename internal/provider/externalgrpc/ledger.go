package externalgrpc

import (
	"cmp"
	"slices"
	"time"
)

// keepTombstones is how long a claim that has gone may still get the instance
// that was asked for it.
const keepTombstones = 24 * time.Hour

// ledger is what is written down of one node group. It is changed by
// compare-and-swap, and holds everything that is needed to go on after a crash.
type ledger struct {
	// Target is the target size as it was, or must have become, when no call of
	// ours was in flight.
	Target int32 `json:"target"`
	Known  bool  `json:"known,omitempty"` // Target was read once
	// Version counts the changes of the group, and of what has its instances. What
	// was seen of the group before the last one is out of date.
	Version int64   `json:"version"`
	Claims  []claim `json:"claims,omitempty"` // in the order of their creation
	// Foreign are the instances that are not ours to give to a claim.
	Foreign []string `json:"foreign,omitempty"`
	// Busy is until when a call may be in flight that changes the target.
	Busy time.Time `json:"busy,omitzero"`
}

// stage is how far a claim has come.
type stage string

const (
	stageCreated stage = "created" // nothing was asked for
	// stageDoubtful: the call that asks for its instance is in flight, or its reply
	// was lost. It may have been carried out, and is not made again.
	stageDoubtful stage = "doubtful"
	stageAsked    stage = "asked" // an instance is to come
	stageBound    stage = "bound" // it has come
)

// claim is one machine.
type claim struct {
	Name      string    `json:"name"`
	Node      string    `json:"node,omitempty"` // its Node object, once it is known
	Cluster   string    `json:"cluster"`
	Pool      string    `json:"pool"`
	ClaimID   string    `json:"claim_id"`
	Epoch     string    `json:"epoch"`
	CreatedAt time.Time `json:"created_at"`
	Stage     stage     `json:"stage"`
	AskedAt   time.Time `json:"asked_at,omitzero"`
	Instance  string    `json:"instance,omitempty"`
	// StoppedAt is when its end was ordered: nothing waits for it any more.
	StoppedAt time.Time `json:"stopped_at,omitzero"`
	// Failure is what the provider said went wrong with the instance.
	Failure string `json:"failure,omitempty"`
	// OrderedAt is when the deletion of its instance was asked for.
	OrderedAt time.Time `json:"ordered_at,omitzero"`
	// Withdrawn says that the target was lowered again: no instance will come.
	Withdrawn bool `json:"withdrawn,omitempty"`
	// Gone says that nobody knows of it any more but the provider may: should an
	// instance come for it yet, that is deleted.
	Gone bool `json:"gone,omitempty"`
}

// instance is one machine of the group as the provider tells it.
type instance struct {
	id       string
	deleting bool
	failure  string // what went wrong; empty: nothing
}

// sight is what was seen of the group.
type sight struct {
	version   int64 // of the ledger before the look
	target    int32
	instances []instance // by id
}

func (s *sight) find(id string) (instance, bool) {
	i, ok := slices.BinarySearchFunc(s.instances, id, func(in instance, id string) int { return cmp.Compare(in.id, id) })
	if !ok {
		return instance{}, false
	}
	return s.instances[i], true
}

// find returns the machine of that name, which may be its node's.
func (l *ledger) find(name string) *claim {
	for i := range l.Claims {
		if c := &l.Claims[i]; c.visible() && (c.Name == name || c.Node == name) {
			return c
		}
	}
	return nil
}

// visible reports whether anybody is to know of the claim.
func (c *claim) visible() bool { return !c.Gone || c.Stage == stageBound }

// waits reports whether an instance may still come for it.
func (c *claim) waits() bool { return c.Stage == stageAsked && !c.Withdrawn }

// told is the name that List and Get tell.
func (c *claim) told() string { return cmp.Or(c.Node, c.Name) }

// settle brings the ledger up to date with what was seen of the group, which must
// be of its Version. It reports whether that changed anything.
func (l *ledger) settle(s *sight, now time.Time) bool {
	changed := l.promote(s, now)
	before := len(l.Foreign) + len(l.Claims)
	l.Foreign = slices.DeleteFunc(l.Foreign, func(id string) bool { _, there := s.find(id); return !there })
	for i := range l.Claims {
		c := &l.Claims[i]
		// Until the node is known an id may stand for an instance that is yet to get
		// its own, or one that never came up and is replaced.
		if _, there := s.find(c.Instance); c.Stage == stageBound && !there && c.Node == "" && c.StoppedAt.IsZero() {
			c.Stage, c.Instance, changed = stageAsked, "", true
		}
	}
	for _, in := range s.instances {
		c := l.holder(in.id)
		if w := l.waiting(); w != nil && l.free(in) {
			c = w
			c.Stage, c.Instance, changed = stageBound, in.id, true
		}
		if c != nil && in.failure != "" && c.Failure == "" {
			c.Failure, changed = in.failure, true
		}
	}
	l.Claims = slices.DeleteFunc(l.Claims, func(c claim) bool {
		if !c.Gone {
			return false
		}
		if c.Stage == stageBound {
			_, there := s.find(c.Instance)
			return !there
		}
		return now.Sub(c.AskedAt) > keepTombstones
	})
	if changed = changed || len(l.Foreign)+len(l.Claims) != before; changed {
		l.Version++
	}
	return changed
}

// free reports whether the instance may be given to a claim.
func (l *ledger) free(in instance) bool {
	return !in.deleting && l.holder(in.id) == nil && !slices.Contains(l.Foreign, in.id)
}

// replaced reports whether the group makes, or has made, another instance in the
// place of one that vanished: as groups do that keep their size by themselves.
func (l *ledger) replaced(s *sight) bool {
	live := 0
	for _, in := range s.instances {
		if l.free(in) {
			return true
		}
		if !in.deleting {
			live++
		}
	}
	return int(s.target)-live > len(l.byNeed((*claim).waits))
}

// promote finds out from the target size which doubtful calls were carried out.
func (l *ledger) promote(s *sight, now time.Time) bool {
	if now.Before(l.Busy) {
		return false // a call may be in flight
	}
	changed := !l.Busy.IsZero() || !l.Known || l.Target != s.target
	gained := int(s.target - l.Target)
	if !l.Known {
		gained = 0
	}
	l.Busy, l.Known, l.Target = time.Time{}, true, s.target
	for _, c := range l.byNeed(func(c *claim) bool { return c.Stage == stageDoubtful }) {
		if gained <= 0 {
			break
		}
		gained--
		c.Stage = stageAsked
	}
	return changed
}

// byNeed returns the claims that match, those that somebody waits for first.
func (l *ledger) byNeed(match func(*claim) bool) []*claim {
	var wanted, rest []*claim
	for i := range l.Claims {
		c := &l.Claims[i]
		switch {
		case !match(c):
		case c.StoppedAt.IsZero():
			wanted = append(wanted, c)
		default:
			rest = append(rest, c)
		}
	}
	return append(wanted, rest...)
}

// holder returns the claim that has the instance.
func (l *ledger) holder(id string) *claim {
	for i := range l.Claims {
		if l.Claims[i].Instance == id {
			return &l.Claims[i]
		}
	}
	return nil
}

// waiting returns the claim that gets the next instance.
func (l *ledger) waiting() *claim {
	if all := l.byNeed((*claim).waits); len(all) > 0 {
		return all[0]
	}
	return nil
}

// ask notes that the target is about to be raised for the claims. What is there
// and has no claim by now never gets one.
func (l *ledger) ask(s *sight, claims []*claim, now, until time.Time) {
	l.Foreign = nil
	for _, in := range s.instances {
		if !in.deleting && l.holder(in.id) == nil {
			l.Foreign = append(l.Foreign, in.id)
		}
	}
	for _, c := range claims {
		c.Stage, c.AskedAt = stageDoubtful, now
	}
	l.Version++
	l.Busy = until
}

// asked notes what has become of the call for the claims: of those, carried were
// carried out; the others were not, or nobody knows.
func (l *ledger) asked(names []string, carried int, certain bool) {
	l.Busy = time.Time{}
	l.Version++
	l.Target += int32(carried) //nolint:gosec // at most the length of a list
	for _, name := range names {
		c := l.find(name)
		if c == nil || c.Stage != stageDoubtful {
			continue
		}
		switch {
		case carried > 0:
			carried--
			c.Stage = stageAsked
		case certain:
			c.Stage, c.AskedAt = stageCreated, time.Time{}
		}
	}
}

// remove forgets the machine. An older look still shows its instance.
func (l *ledger) remove(c *claim) {
	l.Version++
	l.Claims = slices.DeleteFunc(l.Claims, func(o claim) bool { return o.Name == c.Name && o.ClaimID == c.ClaimID && o.Gone == c.Gone })
}
