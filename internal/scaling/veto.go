package scaling

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// vetoRounds is how often an evaluation looks for another node to remove when
	// the first would come back. Then the pool keeps all of its nodes.
	vetoRounds = 4
	// maxInstants is how many instants ahead are looked at, the earliest first.
	maxInstants = 8
	// maxReturning is how many nodes are told from those that may go. With more, all
	// from there on stay until the ones before them are gone.
	maxReturning = 8
)

// comesBack finds the removals of this evaluation after which nodes would be added
// again, each with the guard that keeps the node. The cluster is looked at as it
// will be without those nodes, now and at each instant that changes what is asked
// for, as far ahead as the policy calls a node that is needed again a flap.
//
// Most of it is known before a removal is decided: the minimum, headroom, alerts,
// and that the pods fit elsewhere. What is left is what comes of the removal itself:
// a place below max for pods that wait, another template, a pod for which room was
// being made on the node; and what comes soon, such as the window of a schedule.
func (e *evaluation) comesBack() map[string]*Guard {
	out := map[string]*Guard{}
	for names := slices.Clone(e.returnable); len(names) > 0; {
		g := e.returns(names...)
		if g == nil {
			break
		}
		// The shortest beginning that comes back ends with the one that makes it so.
		low, high := 0, len(names)-1
		for low < high {
			mid := (low + high) / 2
			if at := e.returns(names[:mid+1]...); at != nil {
				high, g = mid, at
			} else {
				low = mid + 1
			}
		}
		out[names[high]] = g
		names = slices.Delete(names, high, high+1)
		if len(out) == maxReturning {
			for _, name := range names[high:] {
				out[name] = g
			}
			break
		}
	}
	return out
}

// returns is the guard of removals after which nodes would be added, or nil.
func (e *evaluation) returns(names ...string) *Guard {
	stay, pools := map[string]bool{}, map[string]bool{}
	for _, name := range e.returnable {
		stay[name] = true
	}
	ahead := time.Duration(-1)
	for _, name := range names {
		delete(stay, name)
		p := e.pool(e.world.nodes[name].pool)
		pools[p.Name] = true
		if ahead < 0 || p.FlapWithin < ahead {
			ahead = p.FlapWithin
		}
	}
	for _, at := range e.turningPoints(ahead) {
		after := e.foresee(at, stay)
		var before *evaluation // the same without these removals
		for _, p := range after.pools {
			n := len(p.added)
			if n == 0 {
				continue
			}
			if !pools[p.Name] {
				if before == nil {
					for _, name := range names {
						stay[name] = true
					}
					before = e.foresee(at, stay)
					for _, name := range names {
						delete(stay, name)
					}
				}
				if n <= len(before.pool(p.Name).added) {
					continue // not on their account
				}
			}
			return e.returnGuard(names[len(names)-1], p, at)
		}
	}
	return nil
}

// returnGuard says which pool, of a cluster without the node, would add nodes.
func (e *evaluation) returnGuard(node string, p *poolRun, at time.Time) *Guard {
	when := ""
	if at.After(e.now) {
		when = " at " + instant(at, e.now, time.UTC)
	}
	again := ""
	if e.world.nodes[node].pool == p.Name {
		again = " again"
	}
	why := combine(p.upReason)
	g := &Guard{Guard: "would_return", code: CodeWouldReturn, Value: node,
		Message: fmt.Sprintf("without node %s pool %s would add %s%s%s: %s", node, p.Name, count(len(p.added), "node"), again, when, why.Message)}
	switch why.Code {
	case CodeBelowMin, CodeEmergency:
		g.Lifts = "when the minimum no longer asks for it, or the pool has grown"
	case CodeHeadroom:
		g.Lifts = "when the pool has more room, or with a lower headroom"
	case CodeUnschedulablePods:
		g.Lifts = "when the pods that wait have their places"
	default:
		g.Lifts = "when nothing would ask for it"
	}
	return g
}

// turningPoints are now, and the instants until then at which something ends or
// begins that may ask for nodes, with the world as it is.
func (e *evaluation) turningPoints(ahead time.Duration) []time.Time {
	out := []time.Time{e.now}
	for _, p := range e.pools {
		out = append(out, p.turns(e.now)...)
		out = append(out, e.givesUp(p)...)
		out = append(out, p.st.Backoff.Until, e.s.Pauses[p.Name].Until)
	}
	for _, n := range e.world.order {
		if n.kind == kindStarting {
			out = append(out, n.startsUntil())
		}
	}
	end := e.now.Add(ahead)
	out = slices.DeleteFunc(out, func(at time.Time) bool { return at.Before(e.now) || at.After(end) })
	slices.SortFunc(out, time.Time.Compare)
	out = slices.CompactFunc(out, time.Time.Equal)
	return out[:min(len(out), maxInstants)]
}

// foresee is what asks for nodes at an instant in the cluster as it will be then:
// everything that leaves is gone but what is to stay, its pods wait for a place
// elsewhere, and the scheduler has refused those that wait now.
func (e *evaluation) foresee(at time.Time, stay map[string]bool) *evaluation {
	gone := map[string]bool{}
	for _, n := range e.world.order {
		if n.leaves && !stay[n.name] {
			gone[n.name] = true
		}
	}
	for name, rec := range e.world.records {
		_, drained := e.s.Drains[name]
		if _, there := e.world.nodes[name]; !there && (rec.Phase == PhaseRemoving || drained || rec.Drain.removes()) {
			gone[name] = true
		}
	}
	s := e.s.clone()
	// What people ask for is not asked for because of a removal.
	s.Requests = nil
	for name := range e.s.Drains {
		if gone[name] || stay[name] {
			delete(s.Drains, name)
		}
	}
	for node, c := range s.Claims {
		c.NotAfter = c.NotAfter.Add(at.Sub(e.now) + time.Second) // it is taken up, as far as is known
		s.Claims[node] = c
	}
	for _, p := range e.pools {
		if p.known {
			s.Pools[p.Name] = p.st
		}
	}
	// A metric was measured with the nodes in place: what it would be without them is
	// not known. What it asks for is kept by its floor.
	policy := e.policy
	policy.MetricRules = nil
	x := newEvaluation(at, policy, s, e.without(at, gone), e.seed)
	x.world = newWorld(x.obs, x.s, x.policy)
	x.reconcile()
	x.measure()
	x.scaleUp()
	return x
}

// without is the observation of an instant at which nodes are gone.
func (e *evaluation) without(at time.Time, gone map[string]bool) Observation {
	if e.listed == nil {
		o := e.obs.listed()
		e.listed = &o
	}
	o := *e.listed
	o.CapturedAt, o.Freshness = at, map[string]time.Time{}
	for kind := range e.obs.Freshness {
		o.Freshness[kind] = at
	}
	o.Nodes = slices.DeleteFunc(slices.Clone(o.Nodes), func(n Node) bool { return gone[n.Name] })
	o.Records = slices.DeleteFunc(slices.Clone(o.Records), func(r Record) bool { return gone[r.Name] })
	o.Pods = make([]Pod, 0, len(e.listed.Pods))
	for _, p := range e.listed.Pods {
		over := p.Phase == string(corev1.PodSucceeded) || p.Phase == string(corev1.PodFailed)
		if p.Node != "" && gone[p.Node] && !over {
			if p.Mirror || p.Deleting || p.OwnerKind == "" || p.OwnerKind == "DaemonSet" {
				continue // nobody makes it again elsewhere
			}
			p.Node, p.Phase = "", string(corev1.PodPending)
		}
		if p.Node == "" && p.UnschedulableSince.IsZero() {
			p.UnschedulableSince = e.now
		}
		o.Pods = append(o.Pods, p)
	}
	return o
}

// kept is the guard of a node that would come back, or nil; it notes the node among
// those that were turned down.
func (e *evaluation) kept(n *simNode, p *poolRun) *Guard {
	g := e.returning[n.name]
	if g != nil {
		p.rejected = append(p.rejected, Alternative{Subject: "node " + n.name, quiet: true, Reason: Reason{g.code, g.Message}, Fix: g.Lifts})
	}
	return g
}

// keepAll keeps every node of the pools that would have removed one.
func (e *evaluation) keepAll(kept map[string]*Guard) map[string]*Guard {
	out := map[string]*Guard{}
	for _, at := range sortedKeys(kept) {
		pool := e.world.nodes[at].pool
		for _, n := range e.world.order {
			if n.pool == pool && out[n.name] == nil {
				out[n.name] = kept[at]
			}
		}
	}
	return out
}
