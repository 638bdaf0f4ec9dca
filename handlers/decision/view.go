package decision

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// view is the fold of a cluster's snapshots in memory. It is a cache: it is
// valid only for a record whose last folded snapshot is its own, in the same
// incarnation of the stream.
type view struct {
	mu sync.Mutex // one message of a cluster at a time

	fold        *events.Fold
	incarnation string
	last        uint64 // sequence of the last snapshot in the fold
	// before is what last was before that snapshot, so that a turn that is
	// repeated after a conflict recognises its own work.
	before uint64

	// index is the fold in the core's words, which follows it; nil: made when it is
	// needed.
	index *scaling.Index
}

func newView() *view { return &view{fold: events.NewFold()} }

func (h *Handler) view(cluster string) *view {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.views[cluster]
	if !ok {
		v = newView()
		h.views[cluster] = v
	}
	return v
}

// observe brings the view to the state of the record, and a snapshot into both.
// It reports whether that was a full one.
func (h *Handler) observe(ctx context.Context, d bus.Delivery, in any, v *view, rec *Record) (full bool, err error) {
	captured, isFull := in.(events.SnapshotCaptured)
	changed, isDelta := in.(events.SnapshotChanged)
	repeated := v.incarnation == d.Incarnation && v.last == d.Sequence && v.before == rec.Last && (isFull || isDelta)
	if !repeated {
		if err := h.catchUp(ctx, d, v, rec); err != nil {
			return false, err
		}
		switch {
		case isFull:
			err = v.fold.Capture(captured)
			v.index = nil
		case isDelta && changed.Epoch < v.fold.Epoch:
			return false, nil // of a collector that no longer leads
		case isDelta:
			if err = v.fold.Change(changed); err == nil {
				v.follow(d.Key.Cluster, changed)
			}
		default:
			return false, nil
		}
		switch {
		case err != nil && isFull && errors.Is(err, events.ErrStaleSnapshot):
			return false, nil // likewise
		case err != nil:
			rec.Stale = err.Error()
			return false, nil
		}
		v.before, v.last, v.incarnation = v.last, d.Sequence, d.Incarnation
	}
	rec.Last, rec.Digest = d.Sequence, v.fold.Digest()
	if isFull {
		rec.Full, rec.Stale = d.Sequence, ""
	}
	return isFull, nil
}

// catchUp makes the view agree with the record: this process has not seen the
// snapshots that another one folded. A fold that can't be rebuilt, because the
// stream no longer holds all of it, holds the pools until the next full
// snapshot; a stream that can't be read is an error, and the message waits.
func (h *Handler) catchUp(ctx context.Context, d bus.Delivery, v *view, rec *Record) error {
	if v.incarnation == d.Incarnation && v.last == rec.Last {
		return nil
	}
	v.reset(d.Incarnation)
	if rec.Full == 0 {
		return nil
	}
	from := rec.Full
	for e, err := range h.history.Read(ctx, bus.ReadOptions{
		Cluster: d.Key.Cluster, Node: events.ClusterKey, Types: []string{events.TypeSnapshotCaptured, events.TypeSnapshotChanged},
		FromSequence: from, UntilSequence: rec.Last,
	}) {
		if err != nil {
			v.reset("")
			return fmt.Errorf("read the snapshots of cluster %s from sequence %d: %w", d.Key.Cluster, from, err)
		}
		if e.Sequence < from || e.Sequence > rec.Last {
			continue
		}
		if err := foldInto(v.fold, e.Event); err != nil && !errors.Is(err, events.ErrStaleSnapshot) {
			break // the digest below tells
		}
	}
	v.last, v.before = rec.Last, 0
	if v.fold.Digest() != rec.Digest {
		rec.Stale = fmt.Sprintf("the snapshots since sequence %d can't be folded again: they give digest %s, expected %s", from, v.fold.Digest(), rec.Digest)
		v.fold, v.index = events.NewFold(), nil
	}
	return nil
}

// reset forgets everything; the caller holds mu.
func (v *view) reset(incarnation string) {
	v.fold, v.incarnation, v.last, v.before = events.NewFold(), incarnation, 0, 0
	v.index = nil
}

func foldInto(f *events.Fold, e events.Event) error {
	switch e.Type() {
	case events.TypeSnapshotCaptured:
		p, err := events.Decode[events.SnapshotCaptured](e)
		if err != nil {
			return err
		}
		return f.Capture(p)
	default:
		p, err := events.Decode[events.SnapshotChanged](e)
		if err != nil {
			return err
		}
		return f.Change(p)
	}
}

// follow has the index follow a delta that the fold has taken.
func (v *view) follow(cluster string, d events.SnapshotChanged) {
	if v.index == nil {
		return
	}
	o := objects(d.Changed)
	known(&o, cluster, v.fold)
	if len(d.Changed.Usage)+len(d.Deleted[events.KindUsage]) > 0 {
		o.Usage = usage(v.fold)
	}
	v.index.Apply(o, gone(d.Deleted))
}

// gone are the keys of what is gone, by the core's kinds.
func gone(deleted map[string][]string) map[string][]string {
	out := map[string][]string{}
	for theirs, ours := range map[string]string{events.KindNode: scaling.KindNode, events.KindPodClass: scaling.KindClass, events.KindPod: scaling.KindPod,
		events.KindPDB: scaling.KindBudget, events.KindDaemonSet: scaling.KindDaemonSet, events.KindRecord: scaling.KindRecord, events.KindNamespace: scaling.KindNamespace} {
		if keys := deleted[theirs]; len(keys) > 0 {
			out[ours] = keys
		}
	}
	return out
}

// observation is the view as the core sees it.
func (v *view) observation(cluster string, rec Record) scaling.Observation {
	if rec.Stale != "" || !v.fold.Known() {
		return scaling.Observation{Cluster: cluster, Problem: rec.Stale}
	}
	if v.index == nil {
		v.index = scaling.NewIndex(Observe(cluster, v.fold))
	}
	return v.index.Observation()
}
