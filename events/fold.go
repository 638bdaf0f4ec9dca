package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"time"
)

// ErrStaleSnapshot says that a delta does not build on the snapshot at hand,
// or comes from a collector that is no longer the leader.
var ErrStaleSnapshot = errors.New("stale snapshot")

// Digest is a sum of object hashes: adding and removing an object each cost
// one hash, whatever the size of the snapshot, and the order does not matter.
// It detects lost and reordered deltas; it is no defence against forgery.
type Digest [2]uint64

func (d *Digest) add(h Digest) {
	var carry uint64
	d[1], carry = bits.Add64(d[1], h[1], 0)
	d[0], _ = bits.Add64(d[0], h[0], carry)
}

func (d *Digest) sub(h Digest) {
	var borrow uint64
	d[1], borrow = bits.Sub64(d[1], h[1], 0)
	d[0], _ = bits.Sub64(d[0], h[0], borrow)
}

func (d Digest) String() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], d[0])
	binary.BigEndian.PutUint64(b[8:], d[1])
	return hex.EncodeToString(b[:])
}

// hashBuffers hold what is hashed: every object of a snapshot is, once.
var hashBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// objectHash is a hash of the kind, the key and the JSON of what v points to.
func objectHash(kind, key string, v any) (Digest, error) {
	b, _ := hashBuffers.Get().(*bytes.Buffer)
	defer hashBuffers.Put(b)
	b.Reset()
	b.WriteString(kind)
	b.WriteByte(0)
	b.WriteString(key)
	b.WriteByte(0)
	if err := json.NewEncoder(b).Encode(v); err != nil {
		return Digest{}, fmt.Errorf("encode %s %s: %w", kind, key, err)
	}
	s := sha256.Sum256(bytes.TrimSuffix(b.Bytes(), []byte("\n"))) // which Encode adds
	return Digest{binary.BigEndian.Uint64(s[:8]), binary.BigEndian.Uint64(s[8:16])}, nil
}

// Keys of the objects of a snapshot, as used in SnapshotChanged.Deleted.
func (o SnapshotNode) Key() string      { return o.Name }
func (o PodClass) Key() string          { return o.ID }
func (o SnapshotPod) Key() string       { return o.Namespace + "/" + o.Name }
func (o SnapshotPDB) Key() string       { return o.Namespace + "/" + o.Name }
func (o SnapshotDaemonSet) Key() string { return o.Namespace + "/" + o.Name }
func (o SnapshotUsage) Key() string     { return o.Node }
func (o NodeRecord) Key() string        { return o.Name }

type keyed interface{ Key() string }

// table holds the objects of one kind with their hashes.
type table[T keyed] struct {
	kind    string
	objects map[string]T
	hashes  map[string]Digest
}

func newTable[T keyed](kind string) table[T] {
	return table[T]{kind: kind, objects: map[string]T{}, hashes: map[string]Digest{}}
}

func (t table[T]) put(sum *Digest, objects []T) error {
	for i := range objects {
		key := objects[i].Key()
		h, err := objectHash(t.kind, key, &objects[i])
		if err != nil {
			return err
		}
		if old, ok := t.hashes[key]; ok {
			sum.sub(old)
		}
		sum.add(h)
		t.objects[key], t.hashes[key] = objects[i], h
	}
	return nil
}

// Fold is the state of a cluster that a row of snapshot events adds up to. The
// collector builds its deltas with it and decision reads it, so both agree on
// the digest. It is not safe for concurrent use.
type Fold struct {
	Epoch         int64
	CapturedAt    time.Time
	Freshness     map[string]time.Time
	ServerVersion string

	nodes      table[SnapshotNode]
	classes    table[PodClass]
	pods       table[SnapshotPod]
	pdbs       table[SnapshotPDB]
	daemonsets table[SnapshotDaemonSet]
	usage      table[SnapshotUsage]
	records    table[NodeRecord]
	namespaces table[SnapshotNamespace]
	sum        Digest
	full       bool
}

// NewFold returns an empty fold, which only a full snapshot can follow.
func NewFold() *Fold {
	return &Fold{
		Freshness: map[string]time.Time{},
		nodes:     newTable[SnapshotNode](KindNode), classes: newTable[PodClass](KindPodClass),
		pods: newTable[SnapshotPod](KindPod), pdbs: newTable[SnapshotPDB](KindPDB),
		daemonsets: newTable[SnapshotDaemonSet](KindDaemonSet), usage: newTable[SnapshotUsage](KindUsage),
		records: newTable[NodeRecord](KindRecord), namespaces: newTable[SnapshotNamespace](KindNamespace),
	}
}

// Known reports whether a full snapshot has been folded.
func (f *Fold) Known() bool { return f.full }

// Digest returns the digest of the objects.
func (f *Fold) Digest() string { return f.sum.String() }

// The objects by key. The maps are the fold's own: read, don't write.
func (f *Fold) Nodes() map[string]SnapshotNode           { return f.nodes.objects }
func (f *Fold) Classes() map[string]PodClass             { return f.classes.objects }
func (f *Fold) Pods() map[string]SnapshotPod             { return f.pods.objects }
func (f *Fold) PDBs() map[string]SnapshotPDB             { return f.pdbs.objects }
func (f *Fold) DaemonSets() map[string]SnapshotDaemonSet { return f.daemonsets.objects }
func (f *Fold) Usage() map[string]SnapshotUsage          { return f.usage.objects }
func (f *Fold) Records() map[string]NodeRecord           { return f.records.objects }
func (f *Fold) Namespaces() map[string]SnapshotNamespace { return f.namespaces.objects }

// Capture replaces everything by a full snapshot. An epoch lower than the
// present one is ErrStaleSnapshot; a digest that does not match the objects is
// an error of its own. In both cases the fold is unchanged.
func (f *Fold) Capture(s SnapshotCaptured) error {
	if s.Epoch < f.Epoch {
		return fmt.Errorf("%w: epoch %d, already at %d", ErrStaleSnapshot, s.Epoch, f.Epoch)
	}
	n := NewFold()
	n.Epoch, n.CapturedAt, n.ServerVersion, n.full = s.Epoch, s.CapturedAt, s.ServerVersion, true
	maps.Copy(n.Freshness, s.Freshness)
	if err := n.put(s.Objects); err != nil {
		return err
	}
	if n.Digest() != s.Digest {
		return fmt.Errorf("snapshot digest: objects add up to %s, event says %s", n.Digest(), s.Digest)
	}
	*f = *n
	return nil
}

// Change applies a delta. It is ErrStaleSnapshot unless the delta has this
// fold's epoch and builds on its digest; the fold is then unchanged.
func (f *Fold) Change(d SnapshotChanged) error {
	switch {
	case !f.full:
		return fmt.Errorf("%w: no full snapshot yet", ErrStaleSnapshot)
	case d.Epoch != f.Epoch:
		return fmt.Errorf("%w: epoch %d, at %d", ErrStaleSnapshot, d.Epoch, f.Epoch)
	case d.Base != f.Digest():
		return fmt.Errorf("%w: builds on %s, at %s", ErrStaleSnapshot, d.Base, f.Digest())
	}
	s, err := f.stage(d.Changed, d.Deleted)
	if err != nil {
		return err
	}
	if s.sum.String() != d.Digest {
		return fmt.Errorf("%w: delta adds up to %s, event says %s", ErrStaleSnapshot, s.sum, d.Digest)
	}
	s.commit()
	f.sum, f.CapturedAt, f.Freshness = s.sum, d.CapturedAt, maps.Clone(d.Freshness)
	return nil
}

func (f *Fold) put(o SnapshotObjects) error {
	return errors.Join(f.nodes.put(&f.sum, o.Nodes), f.classes.put(&f.sum, o.Classes), f.pods.put(&f.sum, o.Pods),
		f.pdbs.put(&f.sum, o.PDBs), f.daemonsets.put(&f.sum, o.DaemonSets), f.usage.put(&f.sum, o.Usage),
		f.records.put(&f.sum, o.Records), f.namespaces.put(&f.sum, o.Namespaces))
}

// Diff returns the delta that leads from f to the given full set of objects,
// and whether anything differs. Epoch, times and freshness are the caller's.
func (f *Fold) Diff(now SnapshotObjects) (SnapshotChanged, bool, error) {
	n := NewFold()
	if err := n.put(now); err != nil {
		return SnapshotChanged{}, false, err
	}
	d := SnapshotChanged{Base: f.Digest(), Digest: n.Digest(), Deleted: map[string][]string{}}
	diffTable(f.nodes, n.nodes, now.Nodes, &d.Changed.Nodes, d.Deleted)
	diffTable(f.classes, n.classes, now.Classes, &d.Changed.Classes, d.Deleted)
	diffTable(f.pods, n.pods, now.Pods, &d.Changed.Pods, d.Deleted)
	diffTable(f.pdbs, n.pdbs, now.PDBs, &d.Changed.PDBs, d.Deleted)
	diffTable(f.daemonsets, n.daemonsets, now.DaemonSets, &d.Changed.DaemonSets, d.Deleted)
	diffTable(f.usage, n.usage, now.Usage, &d.Changed.Usage, d.Deleted)
	diffTable(f.records, n.records, now.Records, &d.Changed.Records, d.Deleted)
	diffTable(f.namespaces, n.namespaces, now.Namespaces, &d.Changed.Namespaces, d.Deleted)
	return d, d.Base != d.Digest, nil
}

func diffTable[T keyed](old, now table[T], objects []T, changed *[]T, deleted map[string][]string) {
	for _, o := range objects {
		if h, ok := old.hashes[o.Key()]; !ok || h != now.hashes[o.Key()] {
			*changed = append(*changed, o)
		}
	}
	var gone []string
	for k := range old.hashes {
		if _, ok := now.hashes[k]; !ok {
			gone = append(gone, k)
		}
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		deleted[old.kind] = gone
	}
}
