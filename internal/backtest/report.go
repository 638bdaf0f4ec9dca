package backtest

import (
	"cmp"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Report is what a backtest came to.
type Report struct {
	Incarnation string    `json:"incarnation"` // of the stream
	Clusters    []Cluster `json:"clusters"`    // by name
}

// Cluster is what the policies came to in one cluster.
type Cluster struct {
	Cluster string `json:"cluster"`
	// From is the sequence of the full snapshot that it begins with, To that of the last
	// event that was read; Since and Until are their times.
	From  uint64    `json:"from"`
	To    uint64    `json:"to"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`

	RecordedPolicies []string `json:"recorded_policies"` // digests, in the order in which they applied
	Policy           string   `json:"policy"`            // digest of the one that is tried

	Recorded  Figures `json:"recorded"`  // what happened
	Simulated Figures `json:"simulated"` // the recorded policy in the simulation
	Candidate Figures `json:"candidate"` // the other policy in the simulation

	Delays []PoolDelays `json:"delays"` // of the simulation, by pool

	// Differences counts the instants at which one of the two simulated policies adds
	// or removes nodes of a pool and the other does not do the same; First are the first.
	Differences int          `json:"differences"`
	First       []Difference `json:"first_differences,omitempty"`
}

// Difference is an instant at which the two simulated policies part.
type Difference struct {
	At   time.Time `json:"at"`
	Pool string    `json:"pool"`
	// Simulated and Candidate are what each of them says of the pool: its decision at
	// that instant, or, where it makes none, the last one, which stands. Absent: it has
	// said nothing yet.
	Simulated *Said `json:"simulated,omitempty"`
	Candidate *Said `json:"candidate,omitempty"`
}

// Said is a decision, and whether it was made earlier and stands.
type Said struct {
	Stands   bool            `json:"stands,omitempty"`
	At       time.Time       `json:"at"`
	Decision events.Decision `json:"decision"`
}

// instant is what was decided about one pool at one time.
type instant struct {
	at   time.Time
	pool string
}

// side is one policy's decisions, by instant, with the sum of what they change.
type side struct {
	moments []moment
	delta   map[instant]int
	acting  map[instant]events.Decision // the first one that adds or removes
	next    int
	last    map[string]Said // by pool, so far
	here    map[string]Said // by pool, at this instant
}

func newSide(ms []moment) *side {
	s := &side{moments: ms, delta: map[instant]int{}, acting: map[instant]events.Decision{}, last: map[string]Said{}}
	for _, m := range ms {
		if m.d.Verdict == events.VerdictHeld {
			continue
		}
		k := instant{m.at, m.d.Pool}
		if _, known := s.acting[k]; !known {
			s.acting[k] = m.d
		}
		s.delta[k] += m.d.Delta
	}
	return s
}

// advance goes on to an instant.
func (s *side) advance(at time.Time) {
	for pool, said := range s.here {
		said.Stands = true
		s.last[pool] = said
	}
	s.here = map[string]Said{}
	for ; s.next < len(s.moments) && !s.moments[s.next].at.After(at); s.next++ {
		m := s.moments[s.next]
		said := Said{Stands: m.at.Before(at), At: m.at, Decision: m.d}
		if said.Stands {
			s.last[m.d.Pool] = said
		} else {
			s.here[m.d.Pool] = said
		}
	}
}

func (s *side) says(k instant) *Said {
	if d, ok := s.acting[k]; ok {
		return &Said{At: k.at, Decision: d}
	}
	if said, ok := s.here[k.pool]; ok {
		return &said
	}
	if said, ok := s.last[k.pool]; ok {
		return &said
	}
	return nil
}

// compare finds where the decisions of two policies part.
func (c *Cluster) compare(simulated, candidate []moment, limit int) {
	a, b := newSide(simulated), newSide(candidate)
	all := map[instant]bool{}
	for k := range a.acting {
		all[k] = true
	}
	for k := range b.acting {
		all[k] = true
	}
	order := make([]instant, 0, len(all))
	for k := range all {
		order = append(order, k)
	}
	slices.SortFunc(order, func(x, y instant) int { return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.pool, y.pool)) })
	var at time.Time
	for _, k := range order {
		if k.at.After(at) {
			a.advance(k.at)
			b.advance(k.at)
			at = k.at
		}
		if a.delta[k] == b.delta[k] {
			continue
		}
		c.Differences++
		if len(c.First) < limit {
			c.First = append(c.First, Difference{At: k.at, Pool: k.pool, Simulated: a.says(k), Candidate: b.says(k)})
		}
	}
}
