package scaling

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// KindClass is the kind of pod classes among what is gone; see Index.Apply.
const KindClass = "class"

// Index is a cluster in the form in which it is evaluated: the pods of each node
// added up, the constraints parsed. Evaluate makes one of an Observation that has
// none. Who learns of changes keeps one and has it follow: then an evaluation costs
// what has changed and a little for each node, however many pods there are.
//
// It holds nothing but what follows from its objects and the last policy: with it
// an evaluation comes to the same bytes as without. It is not safe for concurrent
// use, nor are evaluations of its observations, which work in its memory.
type Index struct {
	o Observation // without objects

	nodes   map[string]*nodeEntry
	order   []*nodeEntry // those that have a Node, by name
	byAge   []*nodeEntry // those, the newest first
	aged    bool         // byAge counts
	unbound []*Pod       // by reference
	classes map[string]*classEntry
	budgets []Budget     // by reference
	daemons []*DaemonSet // by reference
	records []*Record    // by name
	bare    []*Record    // those without a Node, by name
	bared   bool         // bare counts
	spaces  map[string]labels.Set
	// siblings are by pool, without the pools that never had a node.
	siblings map[string]*siblings

	// What one evaluation leaves to the next.
	topology    *topology // nil: classes have changed
	byClass     map[string]*PodClass
	spacesKnown bool // when the classes were parsed
	startup     map[string][]corev1.Taint
	renamed     map[string]string
	expendable  int32
	sims        []simNode           // in the order of order
	byName      map[string]*simNode // nil: an evaluation has put other nodes there
	byRecord    map[string]*Record

	// pods are all pods and users their number by class; nil before the first change.
	pods  map[podKey]*Pod
	users map[string]int
}

type podKey struct{ namespace, name string }

// nodeEntry is what is known of one node.
type nodeEntry struct {
	name             string
	node             *Node // nil: there are only pods that are bound to it, or a record
	record           *Record
	bound, nominated []*Pod // by reference

	sum     simNode   // as it is before an evaluation touches it
	summed  bool      // sum counts
	claimed string    // the pool of the claim that sum was made with
	counted *topology // that the census of sum was taken for
	among   *siblings // that it is counted with; nil: none
	at      int       // where in Index.order
}

// classEntry is a class as it was observed and the copy that evaluations use.
type classEntry struct {
	observed PodClass
	class    *PodClass
}

// NewIndex returns the index of an observation, whose objects it keeps.
func NewIndex(o Observation) *Index {
	x := &Index{nodes: make(map[string]*nodeEntry, len(o.Nodes)), classes: make(map[string]*classEntry, len(o.Classes)),
		byRecord: make(map[string]*Record, len(o.Records)), spaces: map[string]labels.Set{}, siblings: map[string]*siblings{}}
	x.meet(o)
	for i := range o.Classes {
		x.classes[o.Classes[i].ID] = &classEntry{observed: o.Classes[i]}
	}
	for i := range o.Nodes {
		x.entry(o.Nodes[i].Name).node = &o.Nodes[i]
	}
	for i := range o.Records {
		x.putRecord(&o.Records[i])
	}
	x.sortRecords()
	x.putPods(o.Pods)
	x.budgets = slices.Clone(o.Budgets)
	for _, d := range o.DaemonSets {
		x.daemons = append(x.daemons, &d)
	}
	for _, n := range o.Namespaces {
		x.spaces[n.Name] = n.Labels
	}
	x.sortNodes()
	x.sortRest()
	return x
}

// meet takes over what an observation says beside its objects.
func (x *Index) meet(o Observation) {
	if o.Usage == nil {
		o.Usage = x.o.Usage
	}
	x.o = Observation{Cluster: o.Cluster, Known: o.Known, Problem: o.Problem, CapturedAt: o.CapturedAt, Freshness: o.Freshness, Usage: o.Usage, index: x}
}

// Observation is what the index holds now, until the next change of it.
func (x *Index) Observation() Observation { return x.o }

// listed is the observation with its objects in slices and no index, so that it can
// be changed. Pods that have ended are not among them.
func (o Observation) listed() Observation {
	x := o.index
	if x == nil {
		return o
	}
	o.index = nil
	for _, e := range x.order {
		o.Nodes = append(o.Nodes, *e.node)
	}
	for _, p := range x.unbound {
		o.Pods = append(o.Pods, *p)
	}
	for _, name := range sortedKeys(x.nodes) {
		for _, p := range x.nodes[name].bound {
			o.Pods = append(o.Pods, *p)
		}
	}
	for _, id := range sortedKeys(x.classes) {
		o.Classes = append(o.Classes, x.classes[id].observed)
	}
	o.Budgets = x.budgets
	for _, d := range x.daemons {
		o.DaemonSets = append(o.DaemonSets, DaemonSet{Namespace: d.Namespace, Name: d.Name, Class: d.Class})
	}
	for _, r := range x.records {
		o.Records = append(o.Records, *r)
	}
	for _, name := range sortedKeys(x.spaces) {
		o.Namespaces = append(o.Namespaces, Namespace{Name: name, Labels: x.spaces[name]})
	}
	return o
}

func (x *Index) entry(name string) *nodeEntry {
	e := x.nodes[name]
	if e == nil {
		e = &nodeEntry{name: name}
		x.nodes[name] = e
	}
	return e
}

func (x *Index) putRecord(r *Record) {
	x.byRecord[r.Name] = r
	e := x.entry(r.Name)
	e.record, e.summed = r, false
	x.bared = x.bared && e.node != nil
}

// withoutNode are the records of nodes that the API server does not have.
func (x *Index) withoutNode() []*Record {
	if !x.bared {
		x.bare, x.bared = nil, true
		for _, r := range x.records {
			if x.nodes[r.Name].node == nil {
				x.bare = append(x.bare, r)
			}
		}
	}
	return x.bare
}

func (x *Index) sortNodes() {
	x.order = x.order[:0]
	for _, e := range x.nodes {
		if e.node != nil {
			x.order = append(x.order, e)
		}
	}
	slices.SortFunc(x.order, func(a, b *nodeEntry) int { return cmpString(a.name, b.name) })
	for i, e := range x.order {
		e.at = i
	}
	x.byName, x.byAge, x.bared = nil, nil, false
}

func (x *Index) sortRecords() {
	x.bared = false
	x.records = slices.SortedFunc(maps.Values(x.byRecord), func(a, b *Record) int { return cmpString(a.Name, b.Name) })
}

func (x *Index) sortRest() {
	slices.SortFunc(x.budgets, func(a, b Budget) int { return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name) })
	slices.SortFunc(x.daemons, func(a, b *DaemonSet) int { return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name) })
}

func byReference(a, b *Pod) int {
	return cmp.Or(cmpString(a.Namespace, b.Namespace), cmpString(a.Name, b.Name))
}

// over reports whether the pod has ended: it takes no room.
func (p *Pod) over() bool {
	return p.Phase == string(corev1.PodSucceeded) || p.Phase == string(corev1.PodFailed)
}

// putPods puts all pods where they are. The pods of a node share one array.
func (x *Index) putPods(pods []Pod) {
	all := make([]*Pod, 0, len(pods))
	for i := range pods {
		if !pods[i].over() {
			all = append(all, &pods[i])
		}
	}
	if !slices.IsSortedFunc(all, byReference) {
		slices.SortFunc(all, byReference)
	}
	at := make([]*nodeEntry, len(all))
	count := make(map[*nodeEntry]int, len(x.nodes))
	for i, p := range all {
		if p.Node == "" {
			x.unbound = append(x.unbound, p)
			if p.NominatedNode != "" {
				e := x.entry(p.NominatedNode)
				e.nominated = append(e.nominated, p)
			}
			continue
		}
		at[i] = x.entry(p.Node)
		count[at[i]]++
	}
	array := make([]*Pod, len(all))
	for e, n := range count {
		e.bound, array = array[:0:n], array[n:]
	}
	for i, p := range all {
		if at[i] != nil {
			at[i].bound = append(at[i].bound, p)
		}
	}
}

// world is the simulated cluster before anything is decided.
func (x *Index) world(s State, p Policy) *world {
	w := &world{index: x, records: x.byRecord, budgets: x.budgets, daemons: x.daemons, pods: x.unbound,
		expendableBelow: p.expendableBelow(), startup: map[string][]corev1.Taint{}, renamed: p.renamed()}
	for _, pool := range p.pools() {
		w.startup[pool.Name] = pool.StartupTaints
	}
	if x.topology != nil && x.topology.crowded(len(x.order)) {
		x.topology = nil
	}
	x.compile()
	w.topology, w.classes = x.topology, x.byClass
	w.topology.reset()
	if x.expendable != w.expendableBelow || !maps.EqualFunc(x.startup, w.startup, slices.Equal) || !maps.Equal(x.renamed, w.renamed) {
		x.expendable, x.startup, x.renamed = w.expendableBelow, w.startup, w.renamed
		x.recount()
	}
	x.populate(w, s)
	return w
}

// recount has every node added up anew.
func (x *Index) recount() {
	for _, e := range x.nodes {
		e.summed = false
	}
}

// compile parses the constraints of the classes, those of the DaemonSets included.
func (x *Index) compile() {
	_, known := x.o.Freshness[KindNamespace]
	if known != x.spacesKnown {
		x.forget()
	}
	if x.topology != nil {
		return
	}
	x.spacesKnown = known
	all := make([]*PodClass, 0, len(x.classes)+len(x.daemons))
	x.byClass = make(map[string]*PodClass, len(x.classes))
	for _, id := range sortedKeys(x.classes) {
		c := x.classes[id]
		if c.class == nil {
			c.class = countPod(&c.observed)
			c.class.doubt(known)
		}
		all, x.byClass[id] = append(all, c.class), c.class
	}
	for _, d := range x.daemons {
		if d.class == nil {
			d.class = countPod(&d.Class)
			d.class.doubt(known)
		}
		all = append(all, d.class)
	}
	var spaces map[string]labels.Set
	if known {
		spaces = x.spaces
	}
	x.topology = newTopology(all, spaces)
}

// forget has every class parsed anew.
func (x *Index) forget() {
	x.topology = nil
	for _, c := range x.classes {
		c.class = nil
	}
	for _, d := range x.daemons {
		d.class = nil
	}
	x.recount()
}

// populate puts the nodes into the world, as they are.
func (x *Index) populate(w *world, s State) {
	if len(x.sims) != len(x.order) {
		x.sims, x.byName = make([]simNode, len(x.order)), nil
	}
	if x.byName == nil {
		x.byName = make(map[string]*simNode, len(x.order))
		for i, e := range x.order {
			x.byName[e.name] = &x.sims[i]
		}
	}
	w.order = make([]*simNode, len(x.order), len(x.order)+16)
	for i, e := range x.order {
		claimed := ""
		if e.record == nil {
			claimed = s.Claims[e.name].Pool
		}
		if !e.summed || e.claimed != claimed {
			x.add(e, w, claimed)
		}
		if e.counted != w.topology {
			e.sum.census, e.counted = w.census(e.bound, e.nominated), w.topology
			w.topology.locate(&e.sum)
			e.sum.memo = &memo{}
		}
		n := &x.sims[i]
		counts := n.counts
		*n = e.sum
		n.counts, n.at = counts[:0], i
		// What an evaluation changes in place is its own.
		n.ports, n.lowly, n.shared = slices.Clone(n.ports), slices.Clone(n.lowly), true
		w.order[i] = n
	}
	w.nodes = x.byName
}

// add adds up what is on the node.
func (x *Index) add(e *nodeEntry, w *world, claimed string) {
	since := e.sum.readyAt()
	e.leave()
	e.sum = w.real(e.node, e.record, x.o.Cluster, claimed)
	n := &e.sum
	n.pods, n.nominated = e.bound, e.nominated
	for _, pods := range [][]*Pod{e.bound, e.nominated} {
		for _, p := range pods {
			if c, ok := w.classes[p.Class]; ok {
				w.hold(c, n, 1, p.Deleting)
				if p.Node != "" {
					n.asked.CPUMilli += c.Requests.CPUMilli
					n.asked.MemoryBytes += c.Requests.MemoryBytes
				}
			}
		}
	}
	w.reserveDaemons(n)
	e.summed, e.claimed, e.counted = true, claimed, nil
	x.join(e)
	x.aged = x.aged && n.readyAt().Equal(since)
}

// newestFirst are the nodes in the order in which they became Ready, the last one
// first, and those of one instant by name.
func (x *Index) newestFirst() []*nodeEntry {
	if x.byAge == nil {
		x.byAge, x.aged = slices.Clone(x.order), false
	}
	if !x.aged { // most of it is in order
		slices.SortFunc(x.byAge, func(a, b *nodeEntry) int {
			if a.newer(b) {
				return -1
			}
			return 1
		})
		x.aged = true
	}
	return x.byAge
}
