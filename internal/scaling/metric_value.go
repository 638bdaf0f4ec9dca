package scaling

import (
	"fmt"
	"time"
)

// KindUsage is the live usage of nodes: a kind of object that nothing else needs.
const KindUsage = "usage"

// Usage is the live usage of a node; a node without one is unknown.
type Usage struct {
	Node        string
	CPUMilli    int64
	MemoryBytes int64
	At          time.Time
}

// reading is a value of a metric rule, or why there is none.
type reading struct {
	value   *float64
	unknown string
	at      time.Time // when it was measured; zero: never
	event   string    // id of the one that brought it
	sampled bool      // it is a point of its own
}

func known(v float64, at time.Time) reading { return reading{value: &v, at: at} }

func unknown(format string, args ...any) reading {
	return reading{unknown: fmt.Sprintf(format, args...)}
}

// read returns the value of a rule now. last is the latest point that is kept.
func (e *evaluation) read(p *poolRun, r MetricRule, last time.Time) reading {
	var out reading
	if key := r.signal(); key != "" {
		out = e.readSignal(r, key)
		out.sampled = out.at.After(last)
	} else {
		out = e.readSnapshot(p, r)
		out.sampled = last.IsZero() || !last.Add(r.Interval).After(e.now)
		if out.at.IsZero() {
			out.at = e.now
		}
	}
	if age := e.now.Sub(out.at); out.value != nil && age > r.StaleAfter {
		out.value, out.unknown = nil, fmt.Sprintf("its last value, %s, is of %s and older than %s", number(*out.value), out.at.Format(time.RFC3339), lasts(r.StaleAfter))
	}
	return out
}

func (e *evaluation) readSignal(r MetricRule, key string) reading {
	s, ok := e.s.Signals[key]
	switch {
	case !ok && r.Query != "":
		return unknown("no answer to its query has arrived yet")
	case !ok:
		return unknown("nobody has pushed signal %s yet", r.Signal)
	}
	out := reading{value: s.Value, unknown: s.Reason, at: s.At, event: s.EventID}
	switch {
	case s.Value == nil && s.Reason == "":
		out.unknown = "its source says that it is unknown"
	case s.Value != nil && !s.ExpiresAt.After(e.now):
		out.value, out.unknown = nil, fmt.Sprintf("its last value, %s, of %s was good until %s", number(*s.Value), s.At.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339))
	}
	return out
}

// readSnapshot returns a value that the snapshot holds.
func (e *evaluation) readSnapshot(p *poolRun, r MetricRule) reading {
	kinds := []string{KindNode, KindPod}
	if r.Metric == MetricCPUUsage || r.Metric == MetricMemoryUsage {
		kinds = []string{KindNode, KindUsage}
	}
	at := e.obs.CapturedAt
	for _, kind := range kinds {
		fresh, ok := e.obs.Freshness[kind]
		if !ok {
			return unknown("objects of kind %s are unknown", kind)
		}
		if fresh.Before(at) {
			at = fresh
		}
	}
	if r.Metric == MetricPendingPods {
		return known(float64(e.pendingFor(p)), at)
	}
	var used, all Resources
	for _, n := range e.world.order {
		if n.pool != p.Name || n.node == nil || !n.node.Ready || n.leaves {
			continue
		}
		all.CPUMilli += n.alloc.CPUMilli
		all.MemoryBytes += n.alloc.MemoryBytes
		if kinds[1] == KindPod {
			used.CPUMilli += n.asked.CPUMilli
			used.MemoryBytes += n.asked.MemoryBytes
			continue
		}
		u, ok := e.usageOf(n.name)
		if !ok {
			return unknown("the live usage of node %s is unknown", n.name)
		}
		used.CPUMilli += u.CPUMilli
		used.MemoryBytes += u.MemoryBytes
		if u.At.Before(at) {
			at = u.At
		}
	}
	part, whole := used.CPUMilli, all.CPUMilli
	if r.Metric == MetricMemoryRequests || r.Metric == MetricMemoryUsage {
		part, whole = used.MemoryBytes, all.MemoryBytes
	}
	if whole <= 0 {
		return unknown("pool %s has no Ready node", p.Name)
	}
	return known(float64(part)/float64(whole), at)
}

func (e *evaluation) usageOf(node string) (Usage, bool) {
	if e.usage == nil {
		e.usage = map[string]Usage{}
		for _, u := range e.obs.Usage {
			e.usage[u.Node] = u
		}
	}
	u, ok := e.usage[node]
	return u, ok
}

// pendingFor counts the pods that the scheduler has refused and that a new node of
// the pool could take.
func (e *evaluation) pendingFor(p *poolRun) int {
	n := 0
	for _, pod := range e.world.pods {
		if pod.Node != "" || pod.Phase != "Pending" || pod.Deleting || pod.OwnerKind == "DaemonSet" || pod.UnschedulableSince.IsZero() {
			continue
		}
		if c := e.world.classes[pod.Class]; e.notCounted(pod, c) == nil && e.onTemplate(p, c) == nil {
			n++
		}
	}
	return n
}
