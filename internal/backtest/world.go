package backtest

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// world is the cluster as it would be under a policy.
type world struct {
	rec       *recorded
	l         *ledger
	delays    map[string]Delays
	otherwise Delays
	pools     map[string]events.PoolPolicy // of the policy in force here
	then      map[string]events.PoolPolicy // of the recorded one
	models    map[string]events.SnapshotNode

	nodes     map[string]*node
	pods      map[string]*pod
	elsewhere map[string]map[string]bool // pods by node that is not ours
	daemons   map[string]events.SnapshotPod
	waiting   map[string]bool // pods that are to be put on a node
	evicted   map[string]bool
	retry     bool // something changed by which a pod that waits may find a node

	// What decision was told, and what it has to be told.
	fold       *events.Fold
	freshness  map[string]time.Time
	pass       events.SnapshotObjects // as the log has it
	gone       map[string][]string
	doomed     map[string]bool // classes that the log has no more
	dirtyNodes map[string]bool
	dirtyPods  map[string]bool
}

// epoch of the simulated collector.
const epoch = 1

// newWorld is the cluster as the log has it at the beginning of the range.
func newWorld(rec *recorded, l *ledger, state decision.Record, delays map[string]Delays, otherwise Delays) *world {
	w := &world{rec: rec, l: l, delays: delays, otherwise: otherwise, models: map[string]events.SnapshotNode{},
		nodes: map[string]*node{}, pods: map[string]*pod{}, elsewhere: map[string]map[string]bool{}, daemons: map[string]events.SnapshotPod{},
		waiting: map[string]bool{}, evicted: map[string]bool{}, fold: events.NewFold(), gone: map[string][]string{}, doomed: map[string]bool{},
		dirtyNodes: map[string]bool{}, dirtyPods: map[string]bool{}, retry: true}
	if state.Config != nil {
		w.then = byName(state.Config.Policy)
	}
	w.freshness = maps.Clone(rec.fold.Freshness)
	w.learnModels(values(rec.fold.Nodes()))
	now := l.start
	for _, r := range values(rec.fold.Records()) {
		w.adopt(r, now)
	}
	for _, name := range slices.Sorted(maps.Keys(state.Core.Claims)) {
		if c := state.Core.Claims[name]; w.nodes[name] == nil && !rec.ours[name] && !state.DryRun() {
			w.beginClaim(events.NodeRecord{Name: name, Pool: c.Pool, ClaimID: c.ID, ClaimedAt: c.ClaimedAt}, now)
		}
	}
	w.pass = events.SnapshotObjects{Classes: values(rec.fold.Classes()), PDBs: values(rec.fold.PDBs()), DaemonSets: values(rec.fold.DaemonSets()),
		Namespaces: values(rec.fold.Namespaces())}
	w.passUsage(values(rec.fold.Usage()))
	for name := range rec.fold.Nodes() {
		w.dirtyNodes[name] = true
	}
	var all []events.SnapshotPod
	for key, p := range rec.fold.Pods() {
		w.dirtyPods[key] = true
		if works(p) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, byAge)
	for _, p := range all {
		w.pods[p.Key()] = &pod{p: p}
		if _, there := rec.fold.Nodes()[p.Node]; p.Node != "" && there && (!rec.ours[p.Node] || w.nodes[p.Node] != nil) {
			w.place(p.Key(), p.Node, now)
		} else {
			w.wait(p.Key())
		}
	}
	for _, n := range w.nodes {
		w.finished(n)
	}
	return w
}

// values are those of a map in the order of its keys.
func values[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

func byName(p events.Policy) map[string]events.PoolPolicy {
	out := map[string]events.PoolPolicy{}
	for _, pool := range p.Pools {
		out[pool.Name] = pool
	}
	return out
}

// adopt takes over a node of ours that is there at the beginning. One that is not
// Ready will be at once: no node fails in the simulation.
func (w *world) adopt(r events.NodeRecord, now time.Time) {
	o, there := w.rec.fold.Nodes()[r.Name]
	switch r.Phase {
	case phaseClaimed, phaseCreated, phaseRegistered:
		w.beginClaim(r, now)
		return
	case phaseReady, phaseUnready, phaseRemoving:
	default:
		return // it is gone
	}
	if !there {
		return
	}
	w.l.existing(r.Name, r.Pool)
	if r.Phase == phaseUnready {
		r.Phase, r.Since = phaseReady, now
	}
	if o.Ready != statusTrue {
		o.Ready, o.ReadySince = statusTrue, now
	}
	n := &node{record: r, object: &o, fresh: true}
	w.add(n)
	if r.Phase != phaseRemoving && !active(r.Drain) {
		return
	}
	o.Unschedulable = true
	if r.Phase == phaseRemoving || removes(r.Drain) {
		w.l.requested(r.Name, now)
	}
	d := w.delay(r.Pool)
	switch {
	case r.Phase == phaseRemoving:
		n.due = later(r.Since.Add(d.Removed), now)
	case r.Drain.Phase == drainFinishing:
		n.due = later(r.Drain.Deadline, now)
	case r.Drain.Phase != drainDrained && r.Drain.Goal != events.GoalCordon:
		drain := *r.Drain
		drain.Phase = drainDraining
		n.record.Drain, n.due = &drain, later(drain.Since.Add(d.Drained), now)
	}
}

func active(d *events.DrainRecord) bool {
	return d != nil && (d.Phase == drainRequested || d.Phase == drainCordoned || d.Phase == drainFinishing || d.Phase == drainDraining || d.Phase == drainDrained)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// beginClaim takes over a node that is on its way at the beginning.
func (w *world) beginClaim(r events.NodeRecord, now time.Time) {
	r.Phase, r.Since = phaseClaimed, r.ClaimedAt
	w.l.existing(r.Name, r.Pool)
	w.add(&node{record: r, made: machineOf(w.then[r.Pool]), due: later(r.ClaimedAt.Add(w.delay(r.Pool).Ready), now)})
}

func (w *world) passUsage(us []events.SnapshotUsage) {
	for _, u := range us {
		if !w.rec.ours[u.Node] {
			w.pass.Usage = append(w.pass.Usage, u)
		}
	}
}

// update takes over what a snapshot of the log changes.
func (w *world) update(delta events.SnapshotChanged, now time.Time) {
	w.freshness = maps.Clone(delta.Freshness)
	c := delta.Changed
	w.pass.Classes = append(w.pass.Classes, c.Classes...)
	w.pass.PDBs = append(w.pass.PDBs, c.PDBs...)
	w.pass.DaemonSets = append(w.pass.DaemonSets, c.DaemonSets...)
	w.pass.Namespaces = append(w.pass.Namespaces, c.Namespaces...)
	w.passUsage(c.Usage)
	for _, k := range c.Classes {
		delete(w.doomed, k.ID)
	}
	for _, kind := range []string{events.KindPDB, events.KindDaemonSet, events.KindNamespace, events.KindUsage} {
		w.gone[kind] = append(w.gone[kind], delta.Deleted[kind]...)
	}
	for _, id := range delta.Deleted[events.KindPodClass] {
		w.doomed[id] = true
	}
	w.learnModels(c.Nodes)
	for _, n := range c.Nodes {
		if !w.rec.ours[n.Name] {
			w.dirtyNodes[n.Name], w.retry = true, true
		}
	}
	for _, name := range delta.Deleted[events.KindNode] {
		if w.rec.ours[name] {
			continue
		}
		w.dirtyNodes[name], w.retry = true, true
		for _, key := range slices.Sorted(maps.Keys(w.elsewhere[name])) {
			w.unplace(key)
		}
	}
	w.daemonSetsChanged(len(c.DaemonSets) > 0, delta.Deleted[events.KindDaemonSet])
	w.podsChanged(delta, now)
	w.forgetClasses()
}

// daemonSetsChanged has nodes get the pods of new DaemonSets, and lose those of ones
// that are gone.
func (w *world) daemonSetsChanged(changed bool, gone []string) {
	for _, n := range w.nodes {
		n.fresh = n.fresh || changed && n.object != nil
		n.daemons = slices.DeleteFunc(n.daemons, func(p events.SnapshotPod) bool {
			if !slices.Contains(gone, p.Namespace+"/"+p.Owner.Name) {
				return false
			}
			delete(w.daemons, p.Key())
			w.dirtyPods[p.Key()], w.retry = true, true
			return true
		})
	}
}

// forgetClasses drops classes that no pod has any more.
func (w *world) forgetClasses() {
	if len(w.doomed) == 0 {
		return
	}
	used := map[string]bool{}
	for key := range w.evicted {
		used[w.pods[key].p.Class] = true
	}
	for _, p := range w.daemons {
		used[p.Class] = true
	}
	for _, id := range slices.Sorted(maps.Keys(w.doomed)) {
		if !used[id] {
			w.gone[events.KindPodClass] = append(w.gone[events.KindPodClass], id)
			delete(w.doomed, id)
		}
	}
}

// tell is the snapshot that says what changed, and whether anything did. Pods are put
// on nodes before it is made, and it says where.
func (w *world) tell(now time.Time) (events.SnapshotChanged, bool, error) {
	first, _, err := w.advance(now)
	if err != nil {
		return first, false, err
	}
	if w.schedule(now) {
		second, _, err := w.advance(now)
		if err != nil {
			return first, false, err
		}
		first = merge(first, second)
	}
	w.l.wait(len(w.waiting), now)
	return first, first.Base != first.Digest, nil
}

// advance brings the fold up to date, and returns the delta.
func (w *world) advance(now time.Time) (events.SnapshotChanged, bool, error) {
	o, gone := w.candidates()
	d, differs, err := w.fold.Delta(o, gone)
	if err != nil {
		return d, false, err
	}
	d.Epoch, d.CapturedAt, d.Freshness = epoch, now, w.freshness
	return d, differs, w.fold.Change(d)
}

// begin is the first snapshot, which holds everything.
func (w *world) begin(now time.Time) (events.SnapshotCaptured, error) {
	o, _ := w.candidates()
	d, _, err := events.NewFold().Delta(o, nil)
	if err != nil {
		return events.SnapshotCaptured{}, err
	}
	s := events.SnapshotCaptured{Epoch: epoch, Digest: d.Digest, CapturedAt: now, Freshness: w.freshness, Objects: d.Changed, ServerVersion: w.rec.fold.ServerVersion}
	return s, w.fold.Capture(s)
}

// candidates are the objects that may have changed, and those that are gone.
func (w *world) candidates() (events.SnapshotObjects, map[string][]string) {
	o, gone := w.pass, w.gone
	w.pass, w.gone = events.SnapshotObjects{}, map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(w.dirtyNodes)) {
		n := w.nodes[name]
		other, there := w.rec.fold.Nodes()[name]
		switch {
		case n != nil && n.object != nil:
			o.Nodes = append(o.Nodes, *n.object)
		case n == nil && there && !w.rec.ours[name]:
			o.Nodes = append(o.Nodes, other)
		default:
			gone[events.KindNode] = append(gone[events.KindNode], name)
		}
		if n != nil {
			o.Records = append(o.Records, n.record)
		} else {
			gone[events.KindRecord] = append(gone[events.KindRecord], name)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.dirtyPods)) {
		p, simulated := w.pods[key]
		daemon, ours := w.daemons[key]
		other, there := w.rec.fold.Pods()[key]
		switch {
		case simulated:
			o.Pods = append(o.Pods, p.object())
		case ours:
			o.Pods = append(o.Pods, daemon)
		case there && other.Node != "" && !w.rec.ours[other.Node] && !over(other):
			o.Pods = append(o.Pods, other)
		default:
			gone[events.KindPod] = append(gone[events.KindPod], key)
		}
	}
	clear(w.dirtyNodes)
	clear(w.dirtyPods)
	return o, gone
}

// schedule puts pods that wait on nodes, and reports whether it changed anything.
func (w *world) schedule(now time.Time) bool {
	var fresh []string
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		if w.nodes[name].fresh {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) == 0 && (len(w.waiting) == 0 || !w.retry) {
		return false
	}
	w.retry = false
	s := scaling.NewScheduler(decision.Observe(w.rec.cluster, w.fold))
	for _, name := range fresh {
		w.daemonsOf(w.nodes[name], s.Daemons(name), now)
	}
	classes := w.fold.Classes()
	queue := slices.SortedFunc(maps.Keys(w.waiting), func(a, b string) int {
		p, q := w.pods[a].p, w.pods[b].p
		return cmp.Or(cmp.Compare(classes[q.Class].Priority, classes[p.Class].Priority), byAge(p, q))
	})
	for again := true; again && len(queue) > 0; {
		again = false // a pod that goes where others are may find a place once those have
		var left []string
		for _, key := range queue {
			preferred := w.pods[key].p.Node
			if w.rec.ours[preferred] {
				preferred = ""
			}
			if at, ok := s.Place(key, preferred); ok {
				w.place(key, at, now)
				again = true
			} else {
				left = append(left, key)
			}
		}
		queue = left
	}
	for _, key := range queue {
		if p := w.pods[key]; p.refused.IsZero() {
			p.refused = now
			w.dirtyPods[key] = true
		}
	}
	return len(w.dirtyPods) > 0
}

// daemonsOf gives a node the pods of the DaemonSets that it is to have.
func (w *world) daemonsOf(n *node, sets []string, now time.Time) {
	n.fresh = false
	for _, ref := range sets {
		ds, ok := w.rec.fold.DaemonSets()[ref]
		if !ok {
			continue
		}
		w.pass.Classes = append(w.pass.Classes, ds.Class)
		p := events.SnapshotPod{Namespace: ds.Namespace, Name: ds.Name + "-" + n.record.Name, UID: "simulated-" + ref + "-" + n.record.Name, Class: ds.Class.ID,
			Node: n.record.Name, Phase: podRunning, CreatedAt: now, Owner: &events.OwnerRef{Kind: "DaemonSet", Name: ds.Name}}
		n.daemons = append(n.daemons, p)
		w.daemons[p.Key()] = p
		w.dirtyPods[p.Key()] = true
	}
}

// merge is one delta in place of two that follow each other; the second one puts pods
// somewhere, adds some, and takes nothing away.
func merge(a, b events.SnapshotChanged) events.SnapshotChanged {
	a.Digest = b.Digest
	a.Changed.Classes = append(a.Changed.Classes, b.Changed.Classes...)
	at := map[string]int{}
	for i, p := range a.Changed.Pods {
		at[p.Key()] = i
	}
	for _, p := range b.Changed.Pods {
		if i, known := at[p.Key()]; known {
			a.Changed.Pods[i] = p
		} else {
			a.Changed.Pods = append(a.Changed.Pods, p)
		}
	}
	return a
}
