package scaling

import (
	"slices"
	"time"
)

// newcomersEvery is how often a decision is said again because of pods that it
// did not name before: where pods come and go by the second, there are always some.
const newcomersEvery = 30 * time.Second

// holdPods notes pods that would fit on a new node of the pool, but for a guard
// or its maximum. That the pool is held says the guard; their coming and going
// does not make another verdict of it.
func (p *poolRun) holdPods(pods []*Pod, why Reason, fix string) {
	p.rejected = append(p.rejected, Alternative{Subject: "pod " + pods[0].Ref(), Reason: why, Fix: fix, Pods: refs(pods), quiet: true})
}

// refs names as many pods as a decision does.
func refs(pods []*Pod) []string {
	out := make([]string, 0, min(len(pods), maxNamed))
	for _, p := range pods[:cap(out)] {
		out = append(out, p.Ref())
	}
	return out
}

// nameUnserved keeps as many pods as a decision names, and says which.
func (d *Decision) nameUnserved() (named []string) {
	for i := range d.Rejected {
		a := &d.Rejected[i]
		a.Pods = a.Pods[:min(len(a.Pods), maxNamed-len(named))]
		named = append(named, a.Pods...)
	}
	return named
}

// newcomers reports whether there are pods that get no node of the pool and of
// which that was not said yet, and whether it is time to say it.
func (e *evaluation) newcomers(p *poolRun, unserved []string) bool {
	return !e.now.Before(p.st.UnservedAt.Add(newcomersEvery)) &&
		slices.ContainsFunc(unserved, func(ref string) bool { return !slices.Contains(p.st.Unserved, ref) })
}

// nameUnserved remembers which pods were named: those of now if it was said, else
// those of before that still wait, so that one that comes back is named again.
func (s *PoolState) nameUnserved(unserved []string, said bool, now time.Time) {
	if said {
		if s.Unserved = unserved; len(unserved) > 0 {
			s.UnservedAt = now
		}
		return
	}
	s.Unserved = slices.DeleteFunc(slices.Clone(s.Unserved), func(ref string) bool { return !slices.Contains(unserved, ref) })
	if len(s.Unserved) == 0 {
		s.Unserved = nil
	}
}
