package bundle

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// firstLook is how far back the checkpoint before a range is looked for at first:
// four full snapshots of the default configuration. Each further look is twice as far.
const firstLook = time.Hour

// ExportOptions of an export. Log and Path are required.
type ExportOptions struct {
	Log replay.Log
	// Path is the file to make; it must not exist.
	Path string
	// From and To bound the range; To is a sequence (inclusive) or a time (exclusive).
	From, To replay.Position
	// Cluster is the only one; empty: all.
	Cluster string
	Version string // of the program
}

// ErrNothing means that the log holds no event in the range.
var ErrNothing = errors.New("the log holds no event in this range")

// Export writes a bundle. Nothing is left of it after an error.
func Export(ctx context.Context, o ExportOptions) (m Manifest, err error) {
	if o.Log == nil || o.Path == "" {
		return m, errors.New("export: log and path are required")
	}
	if _, err := os.Lstat(o.Path); err == nil {
		return m, fmt.Errorf("export: %s exists already", o.Path)
	}
	state, err := o.Log.LogState(ctx)
	if err == nil && !state.Exists {
		err = bus.ErrAbsent
	}
	if err != nil {
		return m, fmt.Errorf("export: %w", err)
	}
	e := &exporter{ExportOptions: o, state: state, m: Manifest{Format: Format, Version: o.Version, Incarnation: state.Incarnation, Cluster: o.Cluster},
		parts: map[string]*Part{}, checkpoints: map[string]checkpoint{}}
	dir := filepath.Dir(o.Path)
	for _, f := range []**spool{&e.before, &e.within} {
		if *f, err = newSpool(dir); err != nil {
			return m, fmt.Errorf("export: %w", err)
		}
		defer (*f).remove()
	}
	if err := e.gather(ctx); err != nil {
		return m, fmt.Errorf("export: %w", err)
	}
	if err := e.write(); err != nil {
		return m, fmt.Errorf("export to %s: %w", o.Path, err)
	}
	return e.m, nil
}

type exporter struct {
	ExportOptions
	state          bus.LogState
	m              Manifest
	before, within *spool // of the range
	parts          map[string]*Part
	checkpoints    map[string]checkpoint // the first one of each cluster that counts
}

// checkpoint is where decisions of a cluster can be taken again from.
type checkpoint struct {
	at uint64
	p  events.DecisionCheckpointed
}

// gather spools the range, and then what belongs before it.
func (e *exporter) gather(ctx context.Context) error {
	until := e.state.Last
	if e.To.Sequence > 0 {
		until = min(until, e.To.Sequence)
	}
	if until == 0 {
		return ErrNothing
	}
	var first bus.Delivery
	err := e.read(ctx, bus.ReadOptions{Cluster: e.Cluster, FromSequence: e.From.Sequence, Since: e.From.Time, UntilSequence: until, Until: e.To.Time}, func(d bus.Delivery) error {
		if first.Sequence == 0 {
			first = d
		}
		return e.take(e.within, d)
	})
	if err != nil {
		return err
	}
	if first.Sequence == 0 {
		return ErrNothing
	}
	e.m.RangeFirst = first.Sequence
	from := first.Sequence
	for _, name := range slices.Sorted(maps.Keys(e.parts)) {
		snapshot, err := e.lookBack(ctx, name, first)
		if err != nil {
			return err
		}
		if snapshot > 0 {
			from = min(from, snapshot)
		}
	}
	if from < first.Sequence {
		err = e.read(ctx, bus.ReadOptions{Cluster: e.Cluster, FromSequence: from, UntilSequence: first.Sequence - 1}, func(d bus.Delivery) error {
			return e.take(e.before, d)
		})
	}
	return err
}

// read gives the events of a range as the audit has them: a message that is none
// is the event that says so.
func (e *exporter) read(ctx context.Context, o bus.ReadOptions, take func(bus.Delivery) error) error {
	for d, err := range e.Log.Read(ctx, o) {
		var undecodable *bus.UndecodableError
		if errors.As(err, &undecodable) {
			d, err = bus.Undecoded(events.HandlerAuditing, d, undecodable)
		}
		switch {
		case err != nil:
			return err
		case d.Incarnation != e.state.Incarnation:
			return fmt.Errorf("the stream became %s, expected %s", d.Incarnation, e.state.Incarnation)
		case e.Cluster != "" && d.Key.Cluster != e.Cluster:
			continue
		}
		if err := take(d); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// lookBack is the sequence of the snapshot that the last checkpoint of a cluster
// before the range follows, 0 if there is none that is stored.
func (e *exporter) lookBack(ctx context.Context, cluster string, first bus.Delivery) (uint64, error) {
	if first.Sequence <= e.state.First {
		return 0, nil
	}
	for back := firstLook; ; back *= 2 {
		since := first.StreamTime.Add(-back)
		var found checkpoint
		err := e.read(ctx, bus.ReadOptions{Cluster: cluster, Types: []string{events.TypeDecisionCheckpointed}, Since: since, UntilSequence: first.Sequence - 1}, func(d bus.Delivery) error {
			if d.Event.Type() != events.TypeDecisionCheckpointed || d.Key.Cluster != cluster || d.Sequence >= first.Sequence {
				return nil
			}
			p, err := events.Decode[events.DecisionCheckpointed](d.Event)
			if err == nil && p.Snapshot >= e.state.First {
				found = checkpoint{d.Sequence, p}
			}
			return nil // one that can't be read begins nothing
		})
		if err != nil || found.at > 0 || !since.After(e.state.FirstTime) {
			return found.p.Snapshot, err
		}
	}
}

// take spools an event and notes what the manifest says of it.
func (e *exporter) take(s *spool, d bus.Delivery) error {
	line, redacted, err := encode(d)
	if err != nil {
		return err
	}
	if redacted {
		e.m.Redacted = append(e.m.Redacted, d.Sequence)
	}
	part := e.parts[d.Key.Cluster]
	if part == nil {
		part = &Part{Cluster: d.Key.Cluster}
		e.parts[d.Key.Cluster] = part
	}
	part.Events++
	switch d.Event.Type() {
	case events.TypeConfigApplied:
		if p, err := events.Decode[events.ConfigApplied](d.Event); err == nil {
			part.Policies = append(part.Policies, Policy{Sequence: d.Sequence, Digest: p.Digest, DryRun: p.DryRun})
		}
	case events.TypeDecisionCheckpointed:
		if p, err := events.Decode[events.DecisionCheckpointed](d.Event); err == nil {
			e.checkpoint(part, checkpoint{d.Sequence, p})
		}
	}
	return s.add(line, d.Sequence, d.StreamTime)
}

// checkpoint keeps the earliest one of a cluster.
func (e *exporter) checkpoint(part *Part, c checkpoint) {
	if !slices.Contains(part.Versions, c.p.Version) {
		part.Versions = append(part.Versions, c.p.Version)
		slices.Sort(part.Versions)
	}
	if was, ok := e.checkpoints[part.Cluster]; !ok || c.at < was.at {
		e.checkpoints[part.Cluster] = c
	}
}

// complete is the manifest of what was spooled.
func (e *exporter) complete() {
	head, tail := e.within, e.within
	if e.before.count > 0 {
		head = e.before
	}
	e.m.First, e.m.FirstTime, e.m.Last, e.m.LastTime = head.first, head.firstTime, tail.last, tail.lastTime
	e.m.Events, e.m.Bytes = e.before.count+e.within.count, e.before.bytes+e.within.bytes
	slices.Sort(e.m.Redacted)
	for _, name := range slices.Sorted(maps.Keys(e.parts)) {
		part := e.parts[name]
		slices.SortFunc(part.Policies, func(a, b Policy) int { return int(a.Sequence) - int(b.Sequence) })
		if c, ok := e.checkpoints[name]; ok && c.p.Snapshot >= e.m.First {
			part.Checkpoint, part.Snapshot = c.at, c.p.Snapshot
			if c.p.Config > 0 && !slices.ContainsFunc(part.Policies, func(p Policy) bool { return p.Sequence == c.p.Config }) {
				part.Policies = slices.Insert(part.Policies, 0, Policy{Sequence: c.p.Config, Digest: c.p.Policy, DryRun: dryRun(c.p)})
			}
		}
		e.m.Clusters = append(e.m.Clusters, *part)
	}
}

// dryRun reports whether the policy of a checkpoint is that of a dry run.
func dryRun(p events.DecisionCheckpointed) bool {
	var state struct {
		Config struct {
			DryRun bool `json:"dry_run"`
		} `json:"config"`
	}
	return json.Unmarshal(p.State, &state) == nil && state.Config.DryRun
}

// write puts the bundle together.
func (e *exporter) write() (err error) {
	e.complete()
	sum := sha256.New()
	for _, s := range []*spool{e.before, e.within} {
		if err := s.copyTo(sum); err != nil {
			return err
		}
	}
	e.m.Digest = hex.EncodeToString(sum.Sum(nil))
	f, err := os.OpenFile(e.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(e.Path))
		}
	}()
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1)) // one thread: the same input gives the same bytes
	if err != nil {
		return err
	}
	if err := e.archive(z); err != nil {
		return errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Sync()
}

func (e *exporter) archive(w io.Writer) error {
	manifest, err := json.MarshalIndent(e.m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the manifest: %w", err)
	}
	manifest = append(manifest, '\n')
	t := tar.NewWriter(w)
	entry := func(name string, size int64) error {
		return t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: size, ModTime: e.m.LastTime.Truncate(time.Second), Format: tar.FormatUSTAR})
	}
	if err := entry(manifestName, int64(len(manifest))); err != nil {
		return err
	}
	if _, err := t.Write(manifest); err != nil {
		return err
	}
	if err := entry(eventsName, e.m.Bytes); err != nil {
		return err
	}
	for _, s := range []*spool{e.before, e.within} {
		if err := s.copyTo(t); err != nil {
			return err
		}
	}
	sum := sha256.Sum256(manifest)
	sums := fmt.Sprintf("%s  %s\n%s  %s\n", hex.EncodeToString(sum[:]), manifestName, e.m.Digest, eventsName)
	if err := entry(sumsName, int64(len(sums))); err != nil {
		return err
	}
	if _, err := io.WriteString(t, sums); err != nil {
		return err
	}
	return t.Close()
}

// spool is lines in a temporary file.
type spool struct {
	f                   *os.File
	w                   *bufio.Writer
	count               int
	bytes               int64
	first, last         uint64
	firstTime, lastTime time.Time
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, ".k3s-autoscaler-export-*")
	if err != nil {
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 1<<16)}, nil
}

func (s *spool) add(line []byte, seq uint64, at time.Time) error {
	if s.count == 0 {
		s.first, s.firstTime = seq, at
	}
	s.last, s.lastTime = seq, at
	s.count++
	s.bytes += int64(len(line))
	_, err := s.w.Write(line)
	return err
}

func (s *spool) copyTo(w io.Writer) error {
	if err := s.w.Flush(); err != nil {
		return err
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(w, s.f)
	return err
}

func (s *spool) remove() {
	s.f.Close()
	_ = os.Remove(s.f.Name()) // a temporary file
}
