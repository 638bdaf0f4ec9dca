package events

import (
	"maps"
	"slices"
)

// stage is what a set of objects and of keys of gone ones would do to a fold,
// worked out without doing it. Its cost grows with the change, never with the
// snapshot.
type stage struct {
	sum        Digest
	nodes      staged[SnapshotNode]
	classes    staged[PodClass]
	pods       staged[SnapshotPod]
	pdbs       staged[SnapshotPDB]
	daemonsets staged[SnapshotDaemonSet]
	usage      staged[SnapshotUsage]
	records    staged[NodeRecord]
	namespaces staged[SnapshotNamespace]
}

// staged is the part of a stage that concerns one kind: the objects that are
// new or differ, and the keys that are there and would go.
type staged[T keyed] struct {
	table   table[T]
	objects []T // as given
	put     map[string]stagedObject
	gone    map[string]bool
}

// stagedObject is one that is new or differs: where it is among those given, and its
// hash.
type stagedObject struct {
	index int
	hash  Digest
}

func (f *Fold) stage(o SnapshotObjects, deleted map[string][]string) (*stage, error) {
	s := &stage{sum: f.sum}
	var err error
	if s.nodes, err = f.nodes.stage(&s.sum, o.Nodes, deleted); err != nil {
		return nil, err
	}
	if s.classes, err = f.classes.stage(&s.sum, o.Classes, deleted); err != nil {
		return nil, err
	}
	if s.pods, err = f.pods.stage(&s.sum, o.Pods, deleted); err != nil {
		return nil, err
	}
	if s.pdbs, err = f.pdbs.stage(&s.sum, o.PDBs, deleted); err != nil {
		return nil, err
	}
	if s.daemonsets, err = f.daemonsets.stage(&s.sum, o.DaemonSets, deleted); err != nil {
		return nil, err
	}
	if s.usage, err = f.usage.stage(&s.sum, o.Usage, deleted); err != nil {
		return nil, err
	}
	if s.records, err = f.records.stage(&s.sum, o.Records, deleted); err != nil {
		return nil, err
	}
	if s.namespaces, err = f.namespaces.stage(&s.sum, o.Namespaces, deleted); err != nil {
		return nil, err
	}
	return s, nil
}

func (t table[T]) stage(sum *Digest, objects []T, deleted map[string][]string) (staged[T], error) {
	s := staged[T]{table: t, objects: objects, put: make(map[string]stagedObject, len(objects)), gone: map[string]bool{}}
	for i := range objects {
		key := objects[i].Key()
		h, err := objectHash(t.kind, key, &objects[i])
		if err != nil {
			return s, err
		}
		old, had := s.current(key)
		if had && old == h {
			continue
		}
		if had {
			sum.sub(old)
		}
		sum.add(h)
		s.put[key] = stagedObject{i, h}
	}
	for _, k := range deleted[t.kind] {
		old, had := s.current(k)
		if !had {
			continue
		}
		sum.sub(old)
		delete(s.put, k)
		if _, present := t.hashes[k]; present {
			s.gone[k] = true
		}
	}
	return s, nil
}

// current returns the hash that the object would have by now.
func (s staged[T]) current(key string) (Digest, bool) {
	if s.gone[key] {
		return Digest{}, false
	}
	if o, ok := s.put[key]; ok {
		return o.hash, true
	}
	h, ok := s.table.hashes[key]
	return h, ok
}

func (s *stage) commit() {
	s.nodes.commit()
	s.classes.commit()
	s.pods.commit()
	s.pdbs.commit()
	s.daemonsets.commit()
	s.usage.commit()
	s.records.commit()
	s.namespaces.commit()
}

func (s staged[T]) commit() {
	for k, o := range s.put {
		s.table.objects[k], s.table.hashes[k] = s.objects[o.index], o.hash
	}
	for k := range s.gone {
		delete(s.table.objects, k)
		delete(s.table.hashes, k)
	}
}

// describe fills in the objects and keys of one kind, sorted by key.
func (s staged[T]) describe(changed *[]T, deleted map[string][]string) {
	for _, k := range slices.Sorted(maps.Keys(s.put)) {
		*changed = append(*changed, s.objects[s.put[k].index])
	}
	if len(s.gone) > 0 {
		deleted[s.table.kind] = slices.Sorted(maps.Keys(s.gone))
	}
}

// Delta returns the delta that leads from f to the state in which the given
// objects are as given and those with the given keys are gone, and whether it
// says anything. Objects that are as f has them, and keys that f lacks, are
// left out; a key given in both counts as gone. Unlike Diff it looks at the
// candidates alone, so that its cost does not grow with the cluster. Epoch,
// times and freshness are the caller's.
func (f *Fold) Delta(candidates SnapshotObjects, deleted map[string][]string) (SnapshotChanged, bool, error) {
	s, err := f.stage(candidates, deleted)
	if err != nil {
		return SnapshotChanged{}, false, err
	}
	d := SnapshotChanged{Base: f.Digest(), Digest: s.sum.String(), Deleted: map[string][]string{}}
	s.nodes.describe(&d.Changed.Nodes, d.Deleted)
	s.classes.describe(&d.Changed.Classes, d.Deleted)
	s.pods.describe(&d.Changed.Pods, d.Deleted)
	s.pdbs.describe(&d.Changed.PDBs, d.Deleted)
	s.daemonsets.describe(&d.Changed.DaemonSets, d.Deleted)
	s.usage.describe(&d.Changed.Usage, d.Deleted)
	s.records.describe(&d.Changed.Records, d.Deleted)
	s.namespaces.describe(&d.Changed.Namespaces, d.Deleted)
	if len(d.Deleted) == 0 {
		d.Deleted = nil
	}
	return d, d.Base != d.Digest, nil
}
