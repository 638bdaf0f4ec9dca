package backtest

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// node is a node of ours in the simulation. Its record says what it is:
//
//	claimed ─► ready ─► (drain: finishing ─► draining) ─► removing ─► gone
//	                      │ cancelled      at the end of the last Job, or of the wait for it;
//	                      └─► ready        each other arrow at its due time
type node struct {
	record events.NodeRecord
	object *events.SnapshotNode // nil: there is no Node object yet
	made   machine
	due    time.Time // of the next step; zero: none
	pods   map[string]bool
	// daemons are the DaemonSet pods of the node, once they are known.
	daemons []events.SnapshotPod
	fresh   bool // they are not
}

// machine is how a node is made.
type machine struct {
	size   events.Resources
	labels map[string]string
	taints []events.Taint // that last
}

func machineOf(p events.PoolPolicy) machine {
	return machine{p.Size, p.Labels, p.Taints}
}

// delay are the delays of a pool.
func (w *world) delay(pool string) Delays {
	if d, ok := w.delays[pool]; ok {
		return d
	}
	return w.otherwise
}

// claim makes a node that is to be.
func (w *world) claim(p events.NodeClaimed, correlation string, at time.Time) {
	if w.nodes[p.Node] != nil {
		return
	}
	m := machine{p.Size, p.Labels, p.Taints}
	if pool, ok := w.pools[p.Pool]; ok { // those of the claim are with the ones that go away
		m.taints = pool.Taints
	}
	w.add(&node{made: m, due: at.Add(w.delay(p.Pool).Ready), record: events.NodeRecord{Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID,
		CorrelationID: correlation, Phase: phaseClaimed, Since: at, ClaimedAt: at}})
	w.l.claimed(p.Node, p.Pool, at)
}

func (w *world) add(n *node) {
	n.pods = map[string]bool{}
	w.nodes[n.record.Name] = n
	w.dirtyNodes[n.record.Name] = true
}

// next is when the next step of a node is due; zero: none is.
func (w *world) next() time.Time {
	var at time.Time
	for _, n := range w.nodes {
		if !n.due.IsZero() && (at.IsZero() || n.due.Before(at)) {
			at = n.due
		}
	}
	return at
}

// step takes the steps that are due by now.
func (w *world) step(now time.Time) {
	var due []*node
	for _, n := range w.nodes {
		if !n.due.IsZero() && !n.due.After(now) {
			due = append(due, n)
		}
	}
	slices.SortFunc(due, func(a, b *node) int {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.record.Name, b.record.Name))
	})
	for _, n := range due {
		n.due = time.Time{}
		w.dirtyNodes[n.record.Name] = true
		switch {
		case n.record.Phase == phaseClaimed:
			w.ready(n, now)
		case n.record.Phase == phaseRemoving:
			w.vanish(n, now)
		case n.record.Drain == nil:
		case n.record.Drain.Phase == drainFinishing:
			w.evicting(n, now)
		case n.record.Drain.Phase == drainDraining:
			w.emptied(n, now)
		}
	}
}

func (w *world) ready(n *node, now time.Time) {
	n.record.Phase, n.record.Since, n.record.ReadyAt = phaseReady, now, now
	n.object, n.fresh = w.object(n, now), true
	w.retry = true
	w.l.ready(n.record.Name, now)
}

// object is the Node object of a node that becomes Ready: what its pool says, and what
// the log showed of the pool's nodes, as the core judges a node that is to come.
func (w *world) object(n *node, now time.Time) *events.SnapshotNode {
	size := n.made.size
	size.Extended = maps.Clone(size.Extended)
	if size.Pods <= 0 {
		size.Pods = defaultMaxPods
	}
	labels := map[string]string{}
	if m, ok := w.model(n.record.Pool); ok {
		if then, ok := w.then[n.record.Pool]; ok && then.Size.CPUMilli == size.CPUMilli && then.Size.MemoryBytes == size.MemoryBytes {
			size.CPUMilli, size.MemoryBytes = min(size.CPUMilli, m.Allocatable.CPUMilli), min(size.MemoryBytes, m.Allocatable.MemoryBytes)
			size.Pods = min(size.Pods, m.Allocatable.Pods)
		}
		size.Extended = maps.Clone(m.Allocatable.Extended)
		for _, k := range systemLabels {
			if v, ok := m.Labels[k]; ok {
				labels[k] = v
			}
		}
	} else {
		labels["kubernetes.io/os"] = "linux"
		for _, k := range systemLabels {
			if v, ok := w.common(k); ok {
				labels[k] = v
			}
		}
		if v, ok := w.leastStorage(); ok {
			size.Extended = map[string]int64{ephemeralStorage: v}
		}
	}
	maps.Copy(labels, n.made.labels)
	r := n.record
	maps.Copy(labels, map[string]string{"kubernetes.io/hostname": r.Name, events.LabelCluster: w.rec.cluster, events.LabelPool: r.Pool, events.LabelClaim: r.ClaimID})
	return &events.SnapshotNode{Name: r.Name, UID: "simulated-" + r.Name, CreatedAt: now, Labels: labels, Taints: n.made.taints, Ready: statusTrue, ReadySince: now,
		Capacity: size, Allocatable: size}
}

const (
	// defaultMaxPods is the kubelet's own.
	defaultMaxPods   = 110
	ephemeralStorage = "ephemeral-storage"
)

// systemLabels are set by the kubelet: a node has what its siblings have.
var systemLabels = []string{"kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch", "node.kubernetes.io/instance-type"}

// model is the node of a pool that the log showed to be Ready last.
func (w *world) model(pool string) (events.SnapshotNode, bool) {
	n, ok := w.models[pool]
	return n, ok
}

func (w *world) learnModels(nodes []events.SnapshotNode) {
	for _, n := range nodes {
		pool := n.Labels[events.LabelPool]
		if !w.rec.ours[n.Name] || n.Ready != statusTrue || pool == "" {
			continue
		}
		if m, ok := w.models[pool]; !ok || n.ReadySince.After(m.ReadySince) || n.ReadySince.Equal(m.ReadySince) && n.Name >= m.Name {
			w.models[pool] = n
		}
	}
}

// common is the value of a label on which all nodes of the log agree.
func (w *world) common(label string) (string, bool) {
	value, found := "", false
	for _, n := range w.rec.fold.Nodes() {
		if v, ok := n.Labels[label]; ok {
			if found && v != value {
				return "", false
			}
			value, found = v, true
		}
	}
	return value, found
}

func (w *world) leastStorage() (int64, bool) {
	least, found := int64(0), false
	for _, n := range w.rec.fold.Nodes() {
		if v, ok := n.Allocatable.Extended[ephemeralStorage]; ok && (!found || v < least) {
			least, found = v, true
		}
	}
	return least, found
}

// drain begins to empty a node, or only cordons it.
func (w *world) drain(p events.NodeDrainRequested, request string, at time.Time) {
	n := w.nodes[p.Node]
	if n == nil || n.object == nil || n.record.Phase == phaseRemoving {
		return
	}
	if p.Goal == events.GoalRemove {
		w.l.requested(p.Node, at)
	}
	d := events.DrainRecord{Goal: p.Goal, Phase: drainFinishing, Since: at, Deadline: at.Add(p.Deadline.Std()), RequestID: request, Reason: p.Reason.Message}
	if was := n.record.Drain; active(was) && was.Goal == p.Goal { // asked for again, it does not begin anew
		d.Phase, d.Since, d.Deadline = was.Phase, was.Since, was.Deadline
		n.record.Drain = &d
		w.dirtyNodes[p.Node] = true
		return
	}
	n.record.Drain = &d
	w.cordon(n, true)
	switch {
	case p.Goal == events.GoalCordon:
		d.Phase, d.Deadline, n.due = drainCordoned, time.Time{}, time.Time{}
	case p.JobsDeadline > 0 && w.runsJobs(n):
		n.due = at.Add(p.JobsDeadline.Std())
	default:
		w.evicting(n, at)
	}
}

// evicting has the pods of a node leave it, in a while.
func (w *world) evicting(n *node, at time.Time) {
	d := *n.record.Drain
	d.Phase, d.Since = drainDraining, at
	n.record.Drain, n.due = &d, at.Add(w.delay(n.record.Pool).Drained)
	w.dirtyNodes[n.record.Name] = true
}

// runsJobs reports whether a pod of a Job is on the node, for which a drain may wait.
func (w *world) runsJobs(n *node) bool {
	for key := range n.pods {
		if p := w.pods[key].p; p.Owner != nil && p.Owner.Kind == "Job" && (!p.Deleting || w.pods[key].evicted) {
			return true
		}
	}
	return false
}

// finished ends the wait for the Jobs of a node when the last one has ended.
func (w *world) finished(n *node) {
	if d := n.record.Drain; d != nil && d.Phase == drainFinishing && !w.runsJobs(n) {
		n.due = d.Since // at once
	}
}

// cordon sets whether a node takes pods. The object is replaced: the fold shares it.
func (w *world) cordon(n *node, on bool) {
	o := *n.object
	o.Unschedulable = on
	n.object = &o
	w.dirtyNodes[n.record.Name] = true
}

// cancel makes a node capacity again, unless it is empty and about to go.
func (w *world) cancel(p events.NodeDrainCancelled, at time.Time) {
	n := w.nodes[p.Node]
	if n == nil || n.object == nil || n.record.Phase == phaseRemoving || n.record.Drain == nil {
		return
	}
	d := *n.record.Drain
	d.Phase, d.Since, d.Deadline = drainDone, at, time.Time{}
	n.record.Drain, n.due = &d, time.Time{}
	w.cordon(n, false)
	w.retry = true
	w.l.kept(p.Node)
}

// emptied moves the pods off a node; a removal goes on.
func (w *world) emptied(n *node, now time.Time) {
	d := *n.record.Drain
	d.Phase, d.Since, d.Deadline = drainDrained, now, time.Time{}
	n.record.Drain = &d
	if d.Goal == events.GoalRemove {
		n.record.Phase, n.record.Since = phaseRemoving, now
		n.due = now.Add(w.delay(n.record.Pool).Removed)
	}
	w.l.evicted(len(n.pods))
	for _, key := range slices.Sorted(maps.Keys(n.pods)) {
		w.unplace(key)
	}
}

func (w *world) vanish(n *node, now time.Time) {
	name := n.record.Name
	for _, p := range n.daemons {
		w.dirtyPods[p.Key()] = true
		delete(w.daemons, p.Key())
	}
	for _, key := range slices.Sorted(maps.Keys(n.pods)) {
		w.unplace(key)
	}
	delete(w.nodes, name)
	w.retry = true
	w.l.ended(name, now)
}
