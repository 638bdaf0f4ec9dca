package backtest

import (
	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// watcher keeps the books of what happened, as the log tells it.
type watcher struct {
	rec     *recorded
	l       *ledger
	waiting map[string]bool // pods that wait
}

// begin takes over what is there when the range begins.
func (w *watcher) begin(state decision.Record) {
	for name, r := range w.rec.fold.Records() {
		switch r.Phase {
		case phaseClaimed, phaseCreated, phaseRegistered, phaseReady, phaseUnready, phaseRemoving:
			w.l.existing(name, r.Pool)
			if r.Phase == phaseRemoving || removes(r.Drain) {
				w.l.requested(name, w.l.start)
			}
		}
	}
	for name, c := range state.Core.Claims {
		if _, known := w.rec.fold.Records()[name]; !known && !state.DryRun() {
			w.l.existing(name, c.Pool)
		}
	}
	w.waiting = map[string]bool{}
	for key, p := range w.rec.fold.Pods() {
		if waits(p) {
			w.waiting[key] = true
		}
	}
	w.l.wait(len(w.waiting), w.l.start)
}

func removes(d *events.DrainRecord) bool {
	return d != nil && d.Goal == events.GoalRemove && d.Phase != drainDone && d.Phase != "uncordoning"
}

// snapshot notes where pods are.
func (w *watcher) snapshot(d bus.Delivery, delta events.SnapshotChanged) {
	for _, p := range delta.Changed.Pods {
		delete(w.waiting, p.Key())
		if waits(p) {
			w.waiting[p.Key()] = true
		}
		if p.Node != "" && works(p) {
			w.l.used(p.Node, d.StreamTime)
		}
	}
	for _, key := range delta.Deleted[events.KindPod] {
		delete(w.waiting, key)
	}
	w.l.wait(len(w.waiting), d.StreamTime)
}

// take notes what happened to a node. What a dry run decided did not.
func (w *watcher) take(d bus.Delivery) {
	if events.IsDryRun(d.Event) {
		return
	}
	node, at := d.Key.Name, d.StreamTime
	switch d.Event.Type() {
	case events.TypeNodeClaimed:
		if p, err := events.Decode[events.NodeClaimed](d.Event); err == nil {
			w.l.claimed(node, p.Pool, at)
		}
	case events.TypeNodeReady:
		w.l.ready(node, at)
	case events.TypeNodeDrainRequested:
		if p, err := events.Decode[events.NodeDrainRequested](d.Event); err == nil && p.Goal == events.GoalRemove {
			w.l.requested(node, at)
		}
	case events.TypeNodeDrainCancelled, events.TypeNodeUncordoned:
		w.l.kept(node)
	case events.TypeNodeDrainProgressed:
		if p, err := events.Decode[events.NodeDrainProgressed](d.Event); err == nil {
			w.l.evicted(len(p.Evicted))
		}
	case events.TypeNodeFailed, events.TypeNodeLost:
		w.l.kept(node) // it ends by itself
		w.l.ended(node, at)
	case events.TypeNodeRemoved:
		w.l.ended(node, at)
	}
}
