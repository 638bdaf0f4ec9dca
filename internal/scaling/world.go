package scaling

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// kind says what a node is to the simulation.
type kind int

const (
	kindIdle      kind = iota // exists, takes no pods: not Ready, cordoned, going
	kindReady                 // takes pods now
	kindStarting              // is Ready, but carries startup taints: takes pods soon
	kindRestoring             // is being uncordoned: takes pods soon
	kindInFlight              // is being made: takes pods soon
	kindNew                   // was decided in this evaluation
)

// simNode is a node of the simulation: a real one, or one that is to come.
type simNode struct {
	name   string
	at     int // of those that are there: in which place by name
	pool   string
	kind   kind
	labels map[string]string
	taints []corev1.Taint // startup taints aside
	alloc  Resources
	free   Resources
	node   *Node   // nil: has no Node object
	record *Record // nil: none
	owned  bool    // our claim label and a record that agrees
	leaves bool    // a removal is decided or under way
	pods   []*Pod  // bound and not over
	census []headcount
	asked  Resources // CPU and memory that they ask for, for the utilisation
	shared bool      // amounts of extended resources are in the index, too
	coming []*Pod    // pending ones that the simulation put here
	due    []*Pod    // those, while removals are looked at: see unsettle

	nominated  []*Pod       // room is being made for them here by preemption
	daemons    []*DaemonSet // whose pod it is still to get
	trial      []*PodClass  // of pods that are put here to see whether they fit
	ports      []HostPort   // taken
	expendable Resources    // what pods hold that give way to any other
	lowly      []lowly      // those pods
	pushed     bool         // they have given way
	startup    []corev1.Taint
	template   *simNode // it is made of, nil: of none alone
	memo       *memo    // nil: its labels and taints are not those that one is about
	attached   bool     // the topology knows it
	domains    []int    // by number of the topology key; nil: not located yet
	counts     []bool   // in which spreads, by index
}

// world is the simulated cluster.
type world struct {
	index    *Index
	nodes    map[string]*simNode
	order    []*simNode // nodes, by name
	classes  map[string]*PodClass
	pods     []*Pod // those that are not bound, by reference
	records  map[string]*Record
	budgets  []Budget
	covering map[*PodClass][]Budget // see budgetsOf
	daemons  []*DaemonSet
	common   *simNode // see learnCommon; nil: not known

	topology        *topology
	expendableBelow int32
	startup         map[string][]corev1.Taint // of the policy, by pool
	renamed         map[string]string         // likewise: former names
}

func newWorld(o Observation, s State, p Policy) *world {
	x := o.index
	if x == nil {
		x = NewIndex(o)
	}
	return x.world(s, p)
}

// countPod returns a class that asks for the one pod that it is.
func countPod(c *PodClass) *PodClass {
	out := *c
	out.Requests = out.Requests.clone()
	out.Requests.Pods = 1
	return &out
}

// doubt notes what of the class can't be simulated when the labels of namespaces
// are not known.
func (c *PodClass) doubt(known bool) {
	if !known && slices.ContainsFunc(slices.Concat(c.PodAffinity, c.PodAntiAffinity), func(t PodTerm) bool { return t.NamespaceSelector != nil }) {
		c.Unsimulated = append(slices.Clone(c.Unsimulated), "namespaceSelector")
	}
}

// real is a node as it is, without its pods. One that carries the claim of another
// autoscaler on the same API server is capacity, and no more. claimed is the pool of
// the claim of this name, if there is one.
func (w *world) real(n *Node, record *Record, cluster, claimed string) simNode {
	ours := n.Labels[LabelClaim] != "" && n.Labels[LabelCluster] == cluster
	sn := simNode{name: n.Name, node: n, record: record, labels: n.Labels, taints: lasting(*n),
		alloc: n.Allocatable.clone(), free: n.Allocatable.clone(), pool: n.Labels[LabelPool]}
	if sn.record != nil {
		sn.pool = sn.record.Pool
		sn.owned = ours && n.Labels[LabelClaim] == sn.record.ClaimID
	} else if !ours {
		sn.pool = ""
	}
	if claimed != "" && sn.record == nil {
		sn.pool = claimed
	}
	sn.pool = present(w.renamed, sn.pool)
	if n.Ready && !n.Unschedulable && !n.Deleting {
		sn.kind = kindReady
	}
	sn.startup, sn.taints = splitStartup(sn.taints, w.startup[sn.pool])
	return sn
}

// taintUninitialized is on a node until the cloud controller has seen it; the
// one of k3s does so within a moment.
const taintUninitialized = "node.cloudprovider.kubernetes.io/uninitialized"

// lasting returns the taints of a node without those that are about to go: the
// controllers that take them away lag a little behind the kubelet that says
// Ready. Without this, a new node would for that moment neither be on its way
// nor take pods, and a second one would be bought for the same need.
func lasting(n Node) []corev1.Taint {
	if !n.Ready {
		return n.Taints
	}
	return slices.DeleteFunc(slices.Clone(n.Taints), func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable || t.Key == taintUninitialized
	})
}

// reserveDaemons takes the room of the DaemonSet pods that the node is still
// to get.
func (w *world) reserveDaemons(n *simNode) {
	for _, d := range w.daemons {
		if !d.on(n) && w.placeable(d.class, n) == nil {
			n.daemons = append(n.daemons, d)
			w.occupy(d.class, n)
		}
	}
}

// on reports whether the node has its pod already.
func (d *DaemonSet) on(n *simNode) bool {
	return slices.ContainsFunc(n.pods, func(p *Pod) bool {
		return p.OwnerKind == "DaemonSet" && p.OwnerName == d.Name && p.Namespace == d.Namespace
	})
}

// add puts a node that is to come into the world.
func (w *world) add(n *simNode) {
	i, found := slices.BinarySearchFunc(w.order, n.name, func(o *simNode, name string) int { return cmpString(o.name, name) })
	if found {
		w.order[i] = n
	} else {
		w.order = slices.Insert(w.order, i, n)
	}
	w.put(n)
	w.attach(n)
}

// put has the name stand for the node. The index makes its own again.
func (w *world) put(n *simNode) {
	w.nodes[n.name], w.index.byName = n, nil
	w.common = nil
}

// targets returns the nodes of the given kinds in the order in which the
// simulation fills them: kinds as given, then by name.
func (w *world) targets(kinds ...kind) []*simNode {
	var next [kindNew + 1]int // where the next one of a kind goes
	for _, n := range w.order {
		if !n.leaves {
			next[n.kind]++
		}
	}
	all := 0
	for _, k := range kinds {
		all, next[k] = all+next[k], all
	}
	out := make([]*simNode, all)
	for _, n := range w.order {
		if !n.leaves && slices.Contains(kinds, n.kind) {
			out[next[n.kind]] = n
			next[n.kind]++
		}
	}
	return out
}

// toMove returns the pods that have to find a place when the node goes, and
// those among the pending that were to come here.
func (w *world) toMove(n *simNode) []*Pod {
	var out []*Pod
	for _, p := range n.pods {
		if p.Mirror || p.OwnerKind == "DaemonSet" || p.Deleting {
			continue
		}
		out = append(out, p)
	}
	return append(append(out, n.coming...), n.due...)
}
