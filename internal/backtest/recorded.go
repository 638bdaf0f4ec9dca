package backtest

import (
	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// recorded is the cluster as its snapshots told of it.
type recorded struct {
	cluster string
	fold    *events.Fold
	ours    map[string]bool // names of nodes of our pools, ever
}

func newRecorded(cluster string) *recorded {
	return &recorded{cluster: cluster, fold: events.NewFold(), ours: map[string]bool{}}
}

// apply folds a snapshot, as decision does, and returns what it changes; false when it
// changes nothing because it does not follow.
func (r *recorded) apply(d bus.Delivery) (events.SnapshotChanged, bool) {
	if d.Event.Type() == events.TypeSnapshotChanged {
		p, err := events.Decode[events.SnapshotChanged](d.Event)
		if err != nil || r.fold.Change(p) != nil {
			return events.SnapshotChanged{}, false
		}
		r.learn(p.Changed)
		return p, true
	}
	p, err := events.Decode[events.SnapshotCaptured](d.Event)
	if err != nil {
		return events.SnapshotChanged{}, false
	}
	diff, _, err := r.fold.Diff(p.Objects)
	if err != nil || r.fold.Capture(p) != nil {
		return events.SnapshotChanged{}, false
	}
	diff.Epoch, diff.CapturedAt, diff.Freshness = p.Epoch, p.CapturedAt, p.Freshness
	r.learn(p.Objects)
	return diff, true
}

// learn remembers which nodes are ours: a name is never used twice.
func (r *recorded) learn(o events.SnapshotObjects) {
	for _, n := range o.Nodes {
		if n.Labels[events.LabelClaim] != "" && n.Labels[events.LabelCluster] == r.cluster {
			r.ours[n.Name] = true
		}
	}
	for _, n := range o.Records {
		r.ours[n.Name] = true
	}
}

// leaving reports whether pods leave a node of ours because of what became of it: it is
// being emptied, is not Ready, or is gone.
func (r *recorded) leaving(node string) bool {
	if !r.ours[node] {
		return false
	}
	n, ok := r.fold.Nodes()[node]
	if !ok || n.Unschedulable || n.Deleting || n.Ready != statusTrue {
		return true
	}
	rec, ok := r.fold.Records()[node]
	return ok && (rec.Phase == phaseRemoving || rec.Drain != nil && rec.Drain.Goal != events.GoalCordon &&
		(rec.Drain.Phase == drainRequested || rec.Drain.Phase == drainCordoned || rec.Drain.Phase == drainDraining || rec.Drain.Phase == drainDrained))
}

// waits reports whether a pod waits for a node.
func waits(p events.SnapshotPod) bool {
	return p.Node == "" && p.Phase == podPending && !p.Gated && !p.Deleting && p.VolumeProblem == "" && !isDaemon(p)
}

func isDaemon(p events.SnapshotPod) bool { return p.Owner != nil && p.Owner.Kind == "DaemonSet" }

// works reports whether a pod is what nodes are there for: none of the system that each
// node has, and none that is over.
func works(p events.SnapshotPod) bool { return !isDaemon(p) && !p.Mirror && !over(p) }

func over(p events.SnapshotPod) bool { return p.Phase == podSucceeded || p.Phase == podFailed }

// Words of snapshots and records.
const (
	statusTrue   = "True"
	podPending   = "Pending"
	podRunning   = "Running"
	podSucceeded = "Succeeded"
	podFailed    = "Failed"

	phaseClaimed    = "claimed"
	phaseCreated    = "created"
	phaseRegistered = "registered"
	phaseReady      = "ready"
	phaseUnready    = "unready"
	phaseRemoving   = "removing"

	drainRequested = "requested"
	drainCordoned  = "cordoned"
	drainFinishing = "finishing"
	drainDraining  = "draining"
	drainDrained   = "drained"
	drainDone      = "done"
)
