package scaling

import (
	"encoding/binary"
	"slices"
)

// searchLimit is how many arrangements of the unsettled pods are looked at. It is
// enough for what two or three nodes hold, and takes a few milliseconds.
const searchLimit = 2000

// search tries every order in which the scheduler may put the unsettled pods on
// nodes, and every node that it may choose, and returns the class of a pod that can
// be left over, or nil. Where that is too much to try, the answer is not known.
func (u *unsettled) search(targets []*simNode) (stuck *roamer, known bool) {
	s := &arrangements{unsettled: u, targets: targets, seen: map[string]bool{}, moves: moves{w: u.e.world}}
	if len(targets) > searchLimit/100 {
		return nil, false
	}
	if u.domains && slices.ContainsFunc(u.all, func(r *roamer) bool { return r.pods > 0 && len(r.class.rules.spread) > 0 }) {
		return nil, false // where such a pod may go changes with the nodes that come
	}
	ways := 1
	for _, r := range u.all {
		if r.pods == 0 {
			continue
		}
		open := 0
		for _, t := range targets {
			if u.reaches(r.class, []*simNode{t}) {
				open++
			}
		}
		if open == 0 && r.must > 0 {
			return r, true
		}
		if open == 0 {
			continue
		}
		// As many as there are ways to put up to so many alike pods on so many nodes.
		choose := 1
		for i := range open {
			if choose = choose * (r.pods + i + 1) / (i + 1); choose > searchLimit {
				return nil, false
			}
		}
		if ways *= choose; ways > searchLimit {
			return nil, false
		}
		s.roam = append(s.roam, r)
		s.left = append(s.left, r.pods)
		s.at = append(s.at, make([]int, len(targets)))
	}
	stuck = s.try()
	return stuck, stuck != nil || len(s.seen) <= searchLimit
}

// arrangements are the states of a search.
type arrangements struct {
	*unsettled
	moves
	targets []*simNode
	roam    []*roamer
	left    []int   // pods of each class that are on no node
	at      [][]int // pods of each class on each target
	seen    map[string]bool
}

func (s *arrangements) try() *roamer {
	key := s.key()
	if s.seen[key] || len(s.seen) > searchLimit {
		return nil
	}
	s.seen[key] = true
	settled := true
	for i, r := range s.roam {
		for j, t := range s.targets {
			if s.left[i] == 0 || !s.w.admits(r.class, t) {
				continue
			}
			settled = false
			before := len(s.done)
			s.put(r.class, t)
			s.left[i]--
			s.at[i][j]++
			stuck := s.try()
			s.at[i][j]--
			s.left[i]++
			s.undo(before)
			if stuck != nil {
				return stuck
			}
		}
	}
	for i, r := range s.roam {
		if settled && s.left[i] > 0 && r.must > 0 {
			return r
		}
	}
	return nil
}

// key tells states apart. Expendable pods are on a node until somebody has pushed
// them off, and who did that to whom depends on the order: it says which are left.
func (s *arrangements) key() string {
	var b []byte
	for _, t := range s.targets {
		b = binary.AppendUvarint(b, uint64(len(t.lowly)))
		for _, l := range t.lowly {
			b = append(append(b, l.class.ID...), 0)
		}
	}
	for _, at := range s.at {
		for _, n := range at {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	return string(b)
}
