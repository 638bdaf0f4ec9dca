package scaling

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Apply has the index follow its cluster: the objects of changed are new or replace
// those of the same name, those that gone names by kind are no more (a pod, budget or
// DaemonSet as "namespace/name", a class by its ID). The rest of changed is how things
// stand now.
func (x *Index) Apply(changed Observation, gone map[string][]string) {
	x.meet(changed)
	if x.pods == nil {
		x.enrol()
	}
	x.applyClasses(changed.Classes, nil)
	x.applyNodes(changed.Nodes, gone[KindNode])
	x.applyPods(changed.Pods, gone[KindPod])
	x.applyClasses(nil, gone[KindClass])
	x.applyRecords(changed.Records, gone[KindRecord])
	x.applyDaemons(changed.DaemonSets, gone[KindDaemonSet])
	for i := range changed.Budgets {
		b := changed.Budgets[i]
		x.budgets = append(without(x.budgets, b.Namespace, b.Name, Budget.ref), b)
	}
	for _, key := range gone[KindBudget] {
		namespace, name, _ := strings.Cut(key, "/")
		x.budgets = without(x.budgets, namespace, name, Budget.ref)
	}
	for _, n := range changed.Namespaces {
		if old, ok := x.spaces[n.Name]; !ok || !maps.Equal(old, n.Labels) {
			x.spaces[n.Name], x.topology = n.Labels, nil
		}
	}
	for _, name := range gone[KindNamespace] {
		delete(x.spaces, name)
		x.topology = nil
	}
	if len(changed.Budgets)+len(changed.DaemonSets) > 0 {
		x.sortRest()
	}
}

func (b Budget) ref() (string, string)     { return b.Namespace, b.Name }
func (d *DaemonSet) ref() (string, string) { return d.Namespace, d.Name }

// without is the slice less the object of that reference. The array is a new one:
// an evaluation may hold the old one.
func without[T any](in []T, namespace, name string, ref func(T) (string, string)) []T {
	return slices.DeleteFunc(slices.Clone(in), func(o T) bool {
		ns, n := ref(o)
		return ns == namespace && n == name
	})
}

// enrol notes all pods by reference.
func (x *Index) enrol() {
	x.pods, x.users = map[podKey]*Pod{}, map[string]int{}
	note := func(ps []*Pod) {
		for _, p := range ps {
			x.pods[podKey{p.Namespace, p.Name}] = p
			x.users[p.Class]++
		}
	}
	note(x.unbound)
	for _, e := range x.nodes {
		note(e.bound)
	}
}

// applyClasses replaces and forgets classes. Nodes that have pods of one have to be
// added up again; with the collector's snapshots there are none, since a class comes
// with its first pod and goes with its last.
func (x *Index) applyClasses(changed []PodClass, gone []string) {
	for i := range changed {
		c := &changed[i]
		if old := x.classes[c.ID]; old != nil && reflect.DeepEqual(old.observed, *c) {
			continue
		}
		x.classes[c.ID], x.topology = &classEntry{observed: *c}, nil
		if x.users[c.ID] > 0 {
			x.recount()
		}
	}
	for _, id := range gone {
		if x.classes[id] == nil {
			continue
		}
		delete(x.classes, id)
		x.topology = nil
		if x.users[id] > 0 {
			x.recount()
		}
	}
}

func (x *Index) applyNodes(changed []Node, gone []string) {
	sort := false
	for i := range changed {
		e := x.entry(changed[i].Name)
		sort = sort || e.node == nil
		e.node, e.summed = &changed[i], false
	}
	for _, name := range gone {
		if e := x.nodes[name]; e != nil && e.node != nil {
			e.leave()
			e.node, e.summed, sort = nil, false, true
			x.tidy(e)
		}
	}
	if sort {
		x.sortNodes()
	}
}

// tidy forgets an entry that says nothing any more.
func (x *Index) tidy(e *nodeEntry) {
	if e.node == nil && e.record == nil && len(e.bound)+len(e.nominated) == 0 {
		delete(x.nodes, e.name)
	}
}

func (x *Index) applyRecords(changed []Record, gone []string) {
	sort := len(gone) > 0
	for i := range changed {
		_, known := x.byRecord[changed[i].Name]
		sort = sort || !known
		x.putRecord(&changed[i])
		if known {
			at, _ := slices.BinarySearchFunc(x.records, changed[i].Name, func(r *Record, name string) int { return cmpString(r.Name, name) })
			if at < len(x.records) && x.records[at].Name == changed[i].Name {
				x.records[at] = &changed[i]
			}
		}
	}
	for _, name := range gone {
		delete(x.byRecord, name)
		if e := x.nodes[name]; e != nil {
			e.record, e.summed = nil, false
			x.tidy(e)
		}
	}
	if sort {
		x.sortRecords()
	}
}

func (x *Index) applyDaemons(changed []DaemonSet, gone []string) {
	if len(changed)+len(gone) == 0 {
		return
	}
	for i := range changed {
		d := &changed[i]
		x.daemons = append(without(x.daemons, d.Namespace, d.Name, (*DaemonSet).ref), d)
	}
	for _, key := range gone {
		namespace, name, _ := strings.Cut(key, "/")
		x.daemons = without(x.daemons, namespace, name, (*DaemonSet).ref)
	}
	x.topology = nil
	x.recount()
}

func (x *Index) applyPods(changed []Pod, gone []string) {
	if len(changed)+len(gone) == 0 {
		return
	}
	if len(changed) > len(x.pods) { // as it is, it would grow several times
		pods := make(map[podKey]*Pod, len(x.pods)+len(changed))
		maps.Copy(pods, x.pods)
		x.pods = pods
	}
	sort := false
	for i := range changed {
		p := &changed[i]
		x.leave(podKey{p.Namespace, p.Name})
		if p.over() {
			continue
		}
		x.pods[podKey{p.Namespace, p.Name}] = p
		x.users[p.Class]++
		if p.Node != "" {
			e := x.entry(p.Node)
			e.bound, e.summed = insert(e.bound, p), false
			continue
		}
		x.unbound, sort = append(x.unbound, p), true
		if p.NominatedNode != "" {
			e := x.entry(p.NominatedNode)
			e.nominated, e.summed = insert(e.nominated, p), false
		}
	}
	for _, key := range gone {
		namespace, name, _ := strings.Cut(key, "/")
		x.leave(podKey{namespace, name})
	}
	x.unbound = slices.DeleteFunc(x.unbound, func(p *Pod) bool { return p.left })
	if sort {
		slices.SortFunc(x.unbound, byReference)
	}
}

// leave takes a pod from where it is. Of those that are not bound it is only marked.
func (x *Index) leave(key podKey) {
	p := x.pods[key]
	if p == nil {
		return
	}
	delete(x.pods, key)
	if x.users[p.Class]--; x.users[p.Class] == 0 {
		delete(x.users, p.Class)
	}
	is := func(o *Pod) bool { return o == p }
	if p.Node != "" {
		e := x.nodes[p.Node]
		e.bound, e.summed = slices.DeleteFunc(slices.Clone(e.bound), is), false
		x.tidy(e)
		return
	}
	p.left = true
	if p.NominatedNode != "" {
		e := x.nodes[p.NominatedNode]
		e.nominated, e.summed = slices.DeleteFunc(slices.Clone(e.nominated), is), false
		x.tidy(e)
	}
}

func insert(in []*Pod, p *Pod) []*Pod {
	i, _ := slices.BinarySearchFunc(in, p, byReference)
	return slices.Insert(slices.Clip(in), i, p)
}
