package scaling

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
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
	coming []*Pod  // pending ones that the simulation put here

	nominated  []*Pod       // room is being made for them here by preemption
	daemons    []*DaemonSet // whose pod it is still to get
	trial      []*PodClass  // of pods that are put here to see whether they fit
	ports      []HostPort   // taken
	expendable Resources    // what pods hold that give way to any other
	lowly      []lowly      // those pods
	pushed     bool         // they have given way
	startup    []corev1.Taint
	template   *simNode // it is made of, nil: of none alone
	attached   bool     // the index knows it
}

// world is the simulated cluster.
type world struct {
	nodes   map[string]*simNode
	names   []string // of nodes, sorted
	classes map[string]*PodClass
	pods    []*Pod // sorted by reference
	records map[string]*Record
	budgets []Budget
	daemons []DaemonSet
	memo    map[placement]*misfit // see barred

	topology        *topology
	expendableBelow int32
	startup         map[string][]corev1.Taint // of the policy, by pool
}

func newWorld(o Observation, s State, p Policy) *world {
	w := &world{nodes: map[string]*simNode{}, classes: map[string]*PodClass{}, records: map[string]*Record{},
		memo: map[placement]*misfit{}, expendableBelow: p.expendableBelow(), startup: map[string][]corev1.Taint{},
		budgets: slices.Clone(o.Budgets), daemons: slices.Clone(o.DaemonSets)}
	slices.SortFunc(w.budgets, func(a, b Budget) int { return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name) })
	slices.SortFunc(w.daemons, func(a, b DaemonSet) int { return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name) })
	for _, pool := range p.pools() {
		w.startup[pool.Name] = pool.StartupTaints
	}
	w.learnClasses(o)
	for i := range o.Records {
		w.records[o.Records[i].Name] = &o.Records[i]
	}
	for i := range o.Nodes {
		w.addReal(&o.Nodes[i], o.Cluster, s)
	}
	for i := range o.Pods {
		if p := &o.Pods[i]; p.Phase != string(corev1.PodSucceeded) && p.Phase != string(corev1.PodFailed) {
			w.pods = append(w.pods, p)
		}
	}
	slices.SortFunc(w.pods, func(a, b *Pod) int { return cmpStrings(a.Namespace, b.Namespace, a.Name, b.Name) })
	for _, p := range w.pods {
		at := p.Node
		if at == "" {
			at = p.NominatedNode // its room is being made by preemption
		}
		if n, ok := w.nodes[at]; ok && at != "" {
			if p.Node != "" {
				n.pods = append(n.pods, p)
			} else {
				n.nominated = append(n.nominated, p)
			}
			if c, ok := w.classes[p.Class]; ok {
				w.hold(c, n, 1, p.Deleting)
			}
		}
	}
	for _, n := range w.nodes {
		w.reserveDaemons(n)
	}
	w.names = slices.Sorted(maps.Keys(w.nodes))
	return w
}

// learnClasses parses the classes of the pods and of the DaemonSets.
func (w *world) learnClasses(o Observation) {
	var namespaces map[string]labels.Set
	if _, ok := o.Freshness[KindNamespace]; ok {
		namespaces = map[string]labels.Set{}
		for _, n := range o.Namespaces {
			namespaces[n.Name] = n.Labels
		}
	}
	var all []*PodClass
	for i := range o.Classes {
		c := countPod(&o.Classes[i])
		w.classes[c.ID] = c
	}
	for _, id := range sortedKeys(w.classes) {
		all = append(all, w.classes[id])
	}
	for i := range w.daemons {
		w.daemons[i].Class = *countPod(&w.daemons[i].Class)
		all = append(all, &w.daemons[i].Class)
	}
	for _, c := range all {
		if namespaces == nil && slices.ContainsFunc(slices.Concat(c.PodAffinity, c.PodAntiAffinity), func(t PodTerm) bool { return t.NamespaceSelector != nil }) {
			c.Unsimulated = append(slices.Clone(c.Unsimulated), "namespaceSelector")
		}
	}
	w.topology = newTopology(all, namespaces)
}

// countPod returns a class that asks for the one pod that it is.
func countPod(c *PodClass) *PodClass {
	out := *c
	out.Requests = out.Requests.clone()
	out.Requests.Pods = 1
	return &out
}

// addReal puts a node into the world as it is. One that carries the claim of
// another autoscaler on the same API server is capacity, and no more.
func (w *world) addReal(n *Node, cluster string, s State) {
	ours := n.Labels[LabelClaim] != "" && n.Labels[LabelCluster] == cluster
	sn := &simNode{name: n.Name, node: n, record: w.records[n.Name], labels: n.Labels, taints: lasting(*n),
		alloc: n.Allocatable.clone(), free: n.Allocatable.clone(), pool: n.Labels[LabelPool]}
	if sn.record != nil {
		sn.pool = sn.record.Pool
		sn.owned = ours && n.Labels[LabelClaim] == sn.record.ClaimID
	} else if !ours {
		sn.pool = ""
	}
	if c, ok := s.Claims[n.Name]; ok && sn.record == nil {
		sn.pool = c.Pool
	}
	if n.Ready && !n.Unschedulable && !n.Deleting {
		sn.kind = kindReady
	}
	sn.startup, sn.taints = splitStartup(sn.taints, w.startup[sn.pool])
	w.nodes[n.Name] = sn
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
	for i := range w.daemons {
		d := &w.daemons[i]
		if !d.on(n) && w.placeable(&d.Class, n) == nil {
			n.daemons = append(n.daemons, d)
			w.occupy(&d.Class, n)
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
	w.nodes[n.name] = n
	i, found := slices.BinarySearch(w.names, n.name)
	if !found {
		w.names = slices.Insert(w.names, i, n.name)
	}
	w.attach(n)
}

// targets returns the nodes of the given kinds in the order in which the
// simulation fills them: kinds as given, then by name.
func (w *world) targets(kinds ...kind) []*simNode {
	var out []*simNode
	for _, k := range kinds {
		for _, name := range w.names {
			if n := w.nodes[name]; n.kind == k && !n.leaves {
				out = append(out, n)
			}
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
	return append(out, n.coming...)
}
