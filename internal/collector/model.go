package collector

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// ref names an object of a snapshot.
type ref struct{ kind, key string }

// model is the cluster as it was last seen, in the form in which a snapshot
// shows it, kept up to date object by object.
type model struct {
	nodes      map[string]events.SnapshotNode
	pods       map[string]events.SnapshotPod
	classes    map[string]*classUse
	pdbs       map[string]events.SnapshotPDB
	daemonsets map[string]events.SnapshotDaemonSet
	usage      map[string]events.SnapshotUsage
	records    map[string]events.NodeRecord
	namespaces map[string]events.SnapshotNamespace

	// Whether the volume of a pod lives on its node, and where the pod can go for
	// it, is a matter of its claim, of the claim's volume and storage class. All
	// keys but those of volumes and storage classes are "namespace/name".
	claims     map[string]claimState
	volumes    map[string]volumeState
	storage    map[string]storageState
	claimPods  map[string]map[string]bool
	volumeOf   map[string]map[string]bool // volume: the claims bound to it
	claimsIn   map[string]map[string]bool // storage class: its claims
	withClaims map[string]*corev1.Pod     // pods that have claims, to convert them again
}

// classUse is a class and how many pods there are of it; one that has none is gone.
type classUse struct {
	class events.PodClass
	pods  int
}

func newModel() *model {
	return &model{
		nodes: map[string]events.SnapshotNode{}, pods: map[string]events.SnapshotPod{}, classes: map[string]*classUse{},
		pdbs: map[string]events.SnapshotPDB{}, daemonsets: map[string]events.SnapshotDaemonSet{},
		usage: map[string]events.SnapshotUsage{}, records: map[string]events.NodeRecord{},
		namespaces: map[string]events.SnapshotNamespace{}, claims: map[string]claimState{}, volumes: map[string]volumeState{},
		storage: map[string]storageState{}, claimsIn: map[string]map[string]bool{}, claimPods: map[string]map[string]bool{},
		volumeOf: map[string]map[string]bool{}, withClaims: map[string]*corev1.Pod{},
	}
}

// put stores an object and reports whether it differs from what was there.
func put[T any](m map[string]T, key string, now T) (old T, had, differs bool) {
	old, had = m[key]
	if had && reflect.DeepEqual(old, now) {
		return old, had, false
	}
	m[key] = now
	return old, had, true
}

// use counts a pod of a class, and release one less. They report whether the
// class is new or gone.
func (m *model) use(c events.PodClass) (isNew bool) {
	u, ok := m.classes[c.ID]
	if !ok {
		u = &classUse{class: c}
		m.classes[c.ID] = u
	}
	u.pods++
	return !ok
}

func (m *model) release(id string) (gone bool) {
	u, ok := m.classes[id]
	if !ok {
		return false
	}
	u.pods--
	if u.pods == 0 {
		delete(m.classes, id)
	}
	return u.pods == 0
}

// localClaim reports whether the volume behind a claim lives on the pod's node.
// A claim of a bound pod, or a bound volume, that has not been seen yet counts
// as local until it is.
func (m *model) localClaim(p *corev1.Pod, name string) bool {
	c, ok := m.claims[p.Namespace+"/"+name]
	switch {
	case !ok:
		return p.Spec.NodeName != ""
	case c.local:
		return true
	case c.volume == "":
		return false
	}
	v, ok := m.volumes[c.volume]
	return v.local || !ok
}

// remember keeps which claims a pod has, or forgets it when p is nil.
func (m *model) remember(key string, p *corev1.Pod) {
	if old := m.withClaims[key]; old != nil {
		for _, claim := range claimsOf(old) {
			remove(m.claimPods, claim, key)
		}
		delete(m.withClaims, key)
	}
	if p == nil {
		return
	}
	for _, claim := range claimsOf(p) {
		add(m.claimPods, claim, key)
		m.withClaims[key] = p
	}
}

func claimsOf(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		if name := kube.ClaimName(p, &p.Spec.Volumes[i]); name != "" {
			out = append(out, p.Namespace+"/"+name)
		}
	}
	return out
}

func add(m map[string]map[string]bool, key, member string) {
	if m[key] == nil {
		m[key] = map[string]bool{}
	}
	m[key][member] = true
}

func remove(m map[string]map[string]bool, key, member string) {
	delete(m[key], member)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// all returns every object.
func (m *model) all() events.SnapshotObjects {
	var o events.SnapshotObjects
	o.Nodes, o.Pods, o.PDBs = list(m.nodes), list(m.pods), list(m.pdbs)
	o.DaemonSets, o.Usage, o.Records = list(m.daemonsets), list(m.usage), list(m.records)
	o.Namespaces = list(m.namespaces)
	for _, u := range m.classes {
		o.Classes = append(o.Classes, u.class)
	}
	return o
}

func list[T any](m map[string]T) []T {
	out := make([]T, 0, len(m))
	for _, o := range m {
		out = append(out, o)
	}
	return out
}

// some returns the named objects, and by kind the names of those that are gone.
func (m *model) some(refs map[ref]struct{}) (o events.SnapshotObjects, gone map[string][]string) {
	gone = map[string][]string{}
	for r := range refs {
		var found bool
		switch r.kind {
		case events.KindNode:
			found = pick(m.nodes, r.key, &o.Nodes)
		case events.KindPod:
			found = pick(m.pods, r.key, &o.Pods)
		case events.KindPDB:
			found = pick(m.pdbs, r.key, &o.PDBs)
		case events.KindDaemonSet:
			found = pick(m.daemonsets, r.key, &o.DaemonSets)
		case events.KindUsage:
			found = pick(m.usage, r.key, &o.Usage)
		case events.KindRecord:
			found = pick(m.records, r.key, &o.Records)
		case events.KindNamespace:
			found = pick(m.namespaces, r.key, &o.Namespaces)
		case events.KindPodClass:
			var u *classUse
			if u, found = m.classes[r.key]; found {
				o.Classes = append(o.Classes, u.class)
			}
		}
		if !found {
			gone[r.kind] = append(gone[r.kind], r.key)
		}
	}
	return o, gone
}

func pick[T any](m map[string]T, key string, out *[]T) bool {
	o, ok := m[key]
	if ok {
		*out = append(*out, o)
	}
	return ok
}
