package backtest

import (
	"maps"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// inherit is how long after a recorded drain took a pod away another one of its owner
// may come and be the same pod. Controllers make it within a moment.
const inherit = time.Minute

// pod is one of the workload.
type pod struct {
	p       events.SnapshotPod // as the log has it
	at      string             // the node that it is on in the simulation; "": none
	refused time.Time          // since when no node takes it; zero: not
	// evicted says that the log took it away, or is about to, because of what became of
	// its node there. In the simulation it stays until another takes its place, or no
	// other comes.
	evicted bool
	until   time.Time // then it goes, if the log has no such pod any more
}

// waits reports whether the pod is to be put on a node.
func (p *pod) waits() bool {
	return p.at == "" && !p.p.Gated && p.p.VolumeProblem == "" && (!p.p.Deleting || p.evicted)
}

// object is the pod as it is in the simulation.
func (p *pod) object() events.SnapshotPod {
	o := p.p
	o.Node, o.NominatedNode, o.UnschedulableMessage, o.UnschedulableSince = p.at, "", "", p.refused
	if p.evicted && o.Owner != nil {
		o.Deleting = false
	}
	switch {
	case p.at == "":
		o.Phase = podPending
	case o.Phase == podPending:
		o.Phase = podRunning
	}
	return o
}

// place puts a pod on a node that is there, and unplace takes it away from where it is.
func (w *world) place(key, at string, now time.Time) {
	p := w.pods[key]
	p.at, p.refused = at, time.Time{}
	delete(w.waiting, key)
	w.dirtyPods[key] = true
	if n := w.nodes[at]; n != nil {
		n.pods[key] = true
		w.l.used(at, now)
		return
	}
	if w.elsewhere[at] == nil {
		w.elsewhere[at] = map[string]bool{}
	}
	w.elsewhere[at][key] = true
}

func (w *world) unplace(key string) {
	p := w.pods[key]
	if n := w.nodes[p.at]; n != nil {
		delete(n.pods, key)
		w.finished(n)
	} else {
		delete(w.elsewhere[p.at], key)
	}
	p.at, p.refused = "", time.Time{}
	w.dirtyPods[key] = true
	w.retry = true
	w.wait(key)
}

// wait notes whether a pod is to be put on a node.
func (w *world) wait(key string) {
	if p := w.pods[key]; p == nil || !p.waits() {
		delete(w.waiting, key)
	} else if !w.waiting[key] {
		w.waiting[key], w.retry = true, true
	}
}

func (w *world) drop(key string) {
	if w.pods[key].at != "" {
		w.unplace(key)
	}
	delete(w.pods, key)
	delete(w.evicted, key)
	delete(w.waiting, key)
	w.dirtyPods[key] = true
	w.retry = true
}

// podsChanged takes over what the log says of pods: known ones first, then those that
// are gone, so that new ones find whose place they may take.
func (w *world) podsChanged(delta events.SnapshotChanged, now time.Time) {
	var fresh []events.SnapshotPod
	for _, p := range delta.Changed.Pods {
		key := p.Key()
		known := w.pods[key]
		switch {
		case !works(p):
			if known != nil {
				w.drop(key)
			}
			w.dirtyPods[key] = true // one of the system may be on a node of the log
		case known == nil:
			fresh = append(fresh, p)
		default:
			w.podChanged(key, known, p)
		}
	}
	for _, key := range delta.Deleted[events.KindPod] {
		w.dirtyPods[key] = true
		switch p := w.pods[key]; {
		case p == nil:
		case p.p.Owner != nil && (p.evicted || w.rec.leaving(p.p.Node)):
			w.evict(key, now.Add(inherit))
		default:
			w.drop(key)
		}
	}
	slices.SortFunc(fresh, byAge)
	for _, p := range fresh {
		w.podCame(p, now)
	}
	for _, key := range slices.Sorted(maps.Keys(w.evicted)) {
		if p := w.pods[key]; !p.until.IsZero() && now.After(p.until) {
			w.drop(key)
		}
	}
}

func (w *world) podChanged(key string, known *pod, p events.SnapshotPod) {
	replaced := known.p.UID != p.UID // a StatefulSet's next pod has the name of the one before
	known.p = p
	if replaced {
		known.evicted, known.until = false, time.Time{}
		delete(w.evicted, key)
	}
	if p.Deleting && p.Owner != nil && w.rec.leaving(p.Node) {
		w.evict(key, time.Time{})
	}
	w.dirtyPods[key] = true
	w.wait(key)
}

func (w *world) evict(key string, until time.Time) {
	p := w.pods[key]
	p.evicted = true
	if p.until.IsZero() {
		p.until = until
	}
	w.evicted[key] = true
	w.dirtyPods[key] = true
	w.wait(key)
}

// podCame takes a pod into the simulation: in the place of one that the log evicted, or
// where the log has it, on a node that is not ours, or to be put somewhere.
func (w *world) podCame(p events.SnapshotPod, now time.Time) {
	key := p.Key()
	at := ""
	if before, ok := w.before(p); ok {
		at = w.pods[before].at
		refused := w.pods[before].refused
		w.drop(before)
		w.pods[key] = &pod{p: p, refused: refused}
	} else {
		w.pods[key] = &pod{p: p}
	}
	if at != "" {
		w.place(key, at, now)
		return
	}
	w.dirtyPods[key] = true
	w.wait(key)
}

// before is the evicted pod whose place another takes: one of its owner and class, the
// first by name.
func (w *world) before(p events.SnapshotPod) (string, bool) {
	if p.Owner == nil {
		return "", false
	}
	for _, key := range slices.Sorted(maps.Keys(w.evicted)) {
		if o := w.pods[key].p; o.Namespace == p.Namespace && o.Class == p.Class && *o.Owner == *p.Owner && key != p.Key() {
			return key, true
		}
	}
	return "", false
}

// byAge orders pods as the scheduler's queue does, priorities aside.
func byAge(a, b events.SnapshotPod) int {
	if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
		return c
	}
	if a.Key() < b.Key() {
		return -1
	}
	return 1
}
