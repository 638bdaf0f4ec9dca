package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// memory is a stream of record in memory.
type memory struct {
	state bus.LogState
	log   []bus.Delivery
	bad   map[uint64]bool // sequences that are no events
}

func (m *memory) LogState(context.Context) (bus.LogState, error) { return m.state, nil }

func (m *memory) Read(_ context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range m.log {
			switch {
			case d.Sequence < o.FromSequence || o.UntilSequence > 0 && d.Sequence > o.UntilSequence,
				d.StreamTime.Before(o.Since) || !o.Until.IsZero() && !d.StreamTime.Before(o.Until),
				o.Cluster != "" && d.Key.Cluster != o.Cluster,
				len(o.Types) > 0 && !slices.Contains(o.Types, d.Event.Type()):
				continue
			}
			var err error
			if m.bad[d.Sequence] {
				err = &bus.UndecodableError{Sequence: d.Sequence, Subject: "x", Err: fmt.Errorf("no event")}
			}
			if !yield(d, err) {
				return
			}
		}
	}
}

// say puts an event on the log, a minute after the one before.
func (m *memory) say(t *testing.T, cluster, node string, p events.Payload) uint64 {
	t.Helper()
	seq := uint64(len(m.log) + 1)
	at := t0.Add(time.Duration(seq) * time.Minute)
	e, err := events.New(events.Meta{Cluster: cluster, Node: node, Publisher: "test", ID: fmt.Sprint("event-", seq), Time: at}, p)
	require.NoError(t, err)
	d, err := bus.Delivered(e, seq, "incarnation", at)
	require.NoError(t, err)
	m.log = append(m.log, d)
	m.state.Last, m.state.LastTime = seq, at
	if m.state.First == 0 {
		m.state = bus.LogState{Exists: true, Incarnation: "incarnation", First: seq, FirstTime: at, Last: seq, LastTime: at}
	}
	return seq
}

func (m *memory) snapshot(t *testing.T, cluster string) {
	t.Helper()
	seq := m.say(t, cluster, "", events.SnapshotCaptured{Epoch: 1, Digest: "d", CapturedAt: t0})
	m.say(t, cluster, "", events.DecisionCheckpointed{State: events.Raw(`{"config":{"dry_run":true}}`), StateDigest: "s", Snapshot: seq, Config: 1, Policy: "policy-1", At: t0, Version: "v1"})
}

// story holds, by sequence: 1 policy, 2-3 checkpoint of home, 4-5 of edge, 6 a lost node,
// 7-8 checkpoint of home, 9 a pause, 10 a node's end, 11-12 checkpoint of home, 13 another policy.
func story(t *testing.T) *memory {
	t.Helper()
	m := &memory{}
	m.say(t, "home", "", events.ConfigApplied{Digest: "policy-1", DryRun: true, Start: t0})
	m.snapshot(t, "home")
	m.snapshot(t, "edge")
	m.say(t, "home", "n1", events.NodeLost{Node: "n1", Pool: "a", Reason: events.Reason{Code: "Gone", Message: "<vanished> & \"gone\""}, At: t0})
	m.snapshot(t, "home")
	m.say(t, "edge", "", events.PoolPaused{Pool: "a", Actor: "ada", Reason: "upgrade"})
	m.say(t, "home", "n2", events.NodeFailed{Node: "n2", Pool: "a", ClaimID: "c", Failure: events.Failure{Stage: "created", Reason: events.Reason{Code: "Exited", Message: "x"},
		Log: "joining with K10" + strings.Repeat("ab", 20) + "::server:supersecret", At: t0}})
	m.snapshot(t, "home")
	m.say(t, "home", "", events.ConfigApplied{Digest: "policy-2", Previous: 1, Start: t0})
	return m
}

func export(t *testing.T, m *memory, edit ...func(*ExportOptions)) (string, Manifest) {
	t.Helper()
	o := ExportOptions{Log: m, Path: filepath.Join(t.TempDir(), "incident.tar.zst"), Version: "v2"}
	for _, e := range edit {
		e(&o)
	}
	manifest, err := Export(t.Context(), o)
	require.NoError(t, err)
	return o.Path, manifest
}

func read(t *testing.T, r *Reader, o bus.ReadOptions) []bus.Delivery {
	t.Helper()
	var out []bus.Delivery
	for d, err := range r.Read(t.Context(), o) {
		require.NoError(t, err)
		out = append(out, d)
	}
	return out
}

func sequences(ds []bus.Delivery) []uint64 {
	var out []uint64
	for _, d := range ds {
		out = append(out, d.Sequence)
	}
	return out
}

func TestABundleHoldsTheEventsAsTheyWere(t *testing.T) {
	t.Parallel()
	m := story(t)
	path, manifest := export(t, m)
	r, err := Open(path)
	require.NoError(t, err)
	require.Equal(t, manifest, r.Manifest())
	require.Equal(t, []uint64{10}, manifest.Redacted)
	got := read(t, r, bus.ReadOptions{})
	require.Len(t, got, len(m.log))
	for i, d := range got {
		if d.Sequence == 10 {
			require.NotContains(t, string(d.Event.Data()), "supersecret")
			require.Contains(t, string(d.Event.Data()), "K10(redacted)")
			_, err := events.Decode[events.NodeFailed](d.Event)
			require.NoError(t, err)
			continue
		}
		want, err := m.log[i].Event.MarshalJSON()
		require.NoError(t, err)
		have, err := d.Event.MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, string(want), string(have))
		d.Event, m.log[i].Event = events.Event{}, events.Event{}
		require.Equal(t, m.log[i], d)
	}
	state, err := r.LogState(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(13), state.Last)
	require.Equal(t, "incarnation", state.Incarnation)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	again, _ := export(t, story(t))
	a, err := os.ReadFile(path)
	require.NoError(t, err)
	b, err := os.ReadFile(again)
	require.NoError(t, err)
	require.Equal(t, a, b, "the same log gives the same bytes")

	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary file is left")
}

func TestABundleBeginsWithTheLastCheckpointBeforeTheRange(t *testing.T) {
	t.Parallel()
	m := story(t)
	from := func(seq uint64) func(*ExportOptions) {
		return func(o *ExportOptions) { o.From.Sequence = seq }
	}
	_, manifest := export(t, m, from(9))
	require.Equal(t, uint64(9), manifest.RangeFirst)
	require.Equal(t, uint64(4), manifest.First, "the snapshot of edge, of which there is an event in the range")
	require.Equal(t, []Part{
		{Cluster: "edge", Events: 3, Checkpoint: 5, Snapshot: 4, Versions: []string{"v1"}, Policies: []Policy{{Sequence: 1, Digest: "policy-1", DryRun: true}}},
		{Cluster: "home", Events: 7, Checkpoint: 8, Snapshot: 7, Versions: []string{"v1"},
			Policies: []Policy{{Sequence: 1, Digest: "policy-1", DryRun: true}, {Sequence: 13, Digest: "policy-2"}}},
	}, manifest.Clusters)

	_, manifest = export(t, m, from(9), func(o *ExportOptions) { o.Cluster = "home"; o.To.Sequence = 10 })
	require.Equal(t, uint64(7), manifest.First)
	require.Equal(t, uint64(10), manifest.RangeFirst)
	require.Equal(t, uint64(10), manifest.Last)
	require.Equal(t, 3, manifest.Events)

	_, manifest = export(t, m, func(o *ExportOptions) { o.From.Time = t0.Add(9 * time.Minute); o.To.Time = t0.Add(11 * time.Minute) })
	require.Equal(t, uint64(9), manifest.RangeFirst)
	require.Equal(t, uint64(10), manifest.Last)

	// The stream no longer holds what is before.
	m.log, m.state.First, m.state.FirstTime = m.log[8:], 9, t0.Add(9*time.Minute)
	_, manifest = export(t, m, from(10))
	require.Equal(t, uint64(10), manifest.First)
	require.Equal(t, uint64(12), manifest.Clusters[0].Checkpoint, "that of the range")

	_, err := Export(t.Context(), ExportOptions{Log: m, Path: filepath.Join(t.TempDir(), "x"), From: replay.Position{Time: t0.Add(time.Hour)}})
	require.ErrorIs(t, err, ErrNothing)
}

func TestAMessageThatIsNoEventIsTheEventThatSaysSo(t *testing.T) {
	t.Parallel()
	m := story(t)
	m.bad = map[uint64]bool{6: true}
	path, _ := export(t, m)
	r, err := Open(path)
	require.NoError(t, err)
	ds := read(t, r, bus.ReadOptions{FromSequence: 6, UntilSequence: 6})
	require.Len(t, ds, 1)
	require.Equal(t, events.TypeDeadletterRecorded, ds[0].Event.Type())
}

func TestReadingSelectsAsTheBusDoes(t *testing.T) {
	t.Parallel()
	m := story(t)
	path, _ := export(t, m)
	r, err := Open(path)
	require.NoError(t, err)
	for name, o := range map[string]bus.ReadOptions{
		"a range":     {FromSequence: 3, UntilSequence: 6},
		"times":       {Since: t0.Add(3 * time.Minute), Until: t0.Add(6 * time.Minute)},
		"a cluster":   {Cluster: "edge"},
		"types":       {Types: []string{events.TypeDecisionCheckpointed, events.TypePoolPaused}},
		"nothing":     {Cluster: "nowhere"},
		"from beyond": {FromSequence: 99},
	} {
		var want []uint64
		for d := range m.Read(t.Context(), o) {
			want = append(want, d.Sequence)
		}
		require.Equal(t, want, sequences(read(t, r, o)), name)
	}
	require.Equal(t, []uint64{6}, sequences(read(t, r, bus.ReadOptions{Node: "n1"})))
	require.Equal(t, []uint64{1, 2}, sequences(read(t, r, bus.ReadOptions{Limit: 2})))
	for range r.Read(t.Context(), bus.ReadOptions{}) {
		break // who has enough stops
	}
}

// repack makes a bundle of other files.
func repack(t *testing.T, names []string, content map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	require.NoError(t, err)
	w := tar.NewWriter(z)
	for _, n := range names {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: n, Typeflag: tar.TypeReg, Size: int64(len(content[n])), Mode: 0o600}))
		_, err := w.Write(content[n])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	return out.Bytes()
}

func files(t *testing.T, bundle []byte) map[string][]byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(bundle))
	require.NoError(t, err)
	defer z.Close()
	out := map[string][]byte{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out[h.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
}

func TestAFileThatIsNotWhatWasExportedIsRefused(t *testing.T) {
	t.Parallel()
	path, _ := export(t, story(t))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	all := []string{manifestName, eventsName, sumsName}
	with := func(edit func(fs map[string][]byte)) []byte {
		fs := files(t, whole)
		edit(fs)
		return repack(t, all, fs)
	}
	require.NoError(t, os.WriteFile(path, repack(t, all, files(t, whole)), 0o600))
	_, err = Open(path)
	require.NoError(t, err, "packed by another program it is the same")

	for name, c := range map[string]struct {
		content []byte
		is      error
		says    string
	}{
		"empty":            {nil, ErrForeign, "expected a file that 'k3s-autoscaler export' made"},
		"text":             {[]byte("clusters: []\n"), ErrForeign, ""},
		"another archive":  {repack(t, []string{"etc/passwd"}, nil), ErrForeign, ""},
		"another manifest": {with(func(fs map[string][]byte) { fs[manifestName] = []byte(`{"name":"npm"}`) }), ErrForeign, ""},
		"half of it":       {whole[:len(whole)/2], ErrTruncated, "copy or export it again"},
		"all but a byte":   {whole[:len(whole)-1], ErrTruncated, ""},
		"something behind": {append(slices.Clone(whole), "more"...), ErrChanged, ""},
		"a file less":      {repack(t, all[:2], files(t, whole)), ErrChanged, "it lacks SHA256SUMS"},
		"a file more":      {repack(t, append(slices.Clone(all), "x"), files(t, whole)), ErrChanged, "one file more, x"},
		"another order":    {repack(t, []string{manifestName, sumsName, eventsName}, files(t, whole)), ErrChanged, "expected events.jsonl"},
		"another version": {with(func(fs map[string][]byte) {
			fs[manifestName] = bytes.Replace(fs[manifestName], []byte("/v1"), []byte("/v9"), 1)
		}), ErrFormat, "incident/v9"},
		"an edited manifest": {with(func(fs map[string][]byte) {
			fs[manifestName] = bytes.Replace(fs[manifestName], []byte("v2"), []byte("v3"), 1)
		}), ErrChanged, "SHA256SUMS"},
		"an edited event": {with(func(fs map[string][]byte) {
			fs[eventsName] = bytes.Replace(fs[eventsName], []byte("ada"), []byte("eve"), 1)
		}), ErrChanged, "SHA-256"},
		"a line less": {with(func(fs map[string][]byte) {
			_, fs[eventsName], _ = bytes.Cut(fs[eventsName], []byte("\n"))
		}), ErrChanged, ""},
		"lines in another order": {with(func(fs map[string][]byte) {
			ls := bytes.SplitAfter(fs[eventsName], []byte("\n"))
			ls[0], ls[1] = ls[1], ls[0]
			fs[eventsName] = bytes.Join(ls, nil)
		}), ErrChanged, "event 1 follows event 2"},
		"an open line": {with(func(fs map[string][]byte) { fs[eventsName] = bytes.TrimSuffix(fs[eventsName], []byte("\n")) }), ErrChanged, "within a line"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := filepath.Join(t.TempDir(), "f.tar.zst")
			require.NoError(t, os.WriteFile(p, c.content, 0o600))
			_, err := Open(p)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, p)
			require.ErrorContains(t, err, c.says)
		})
	}
	// A changed byte anywhere is found: by the compression's checksum, or by the digests.
	for i := 0; i < len(whole); i += max(1, len(whole)/60) {
		b := slices.Clone(whole)
		b[i] ^= 0x10
		p := filepath.Join(t.TempDir(), "f.tar.zst")
		require.NoError(t, os.WriteFile(p, b, 0o600))
		_, err := Open(p)
		require.Error(t, err, "byte %d", i)
	}
	_, err = Open(filepath.Join(t.TempDir(), "nowhere"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestNothingIsOverwrittenAndNothingIsLeftOfAFailure(t *testing.T) {
	t.Parallel()
	m := story(t)
	path, _ := export(t, m)
	_, err := Export(t.Context(), ExportOptions{Log: m, Path: path})
	require.ErrorContains(t, err, "exists already")

	dir := t.TempDir()
	m.log[5].Incarnation = "another"
	_, err = Export(t.Context(), ExportOptions{Log: m, Path: filepath.Join(dir, "x")})
	require.ErrorContains(t, err, "the stream became another, expected incarnation")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestOtherProgramsReadABundle(t *testing.T) {
	t.Parallel()
	path, manifest := export(t, story(t))
	dir := t.TempDir()
	run := func(in io.Reader, name string, args ...string) {
		c := exec.CommandContext(t.Context(), name, args...)
		c.Dir, c.Stdin = dir, in
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	plain, err := zstd.NewReader(f) // the program of that name is not on every machine
	require.NoError(t, err)
	defer plain.Close()
	run(plain, "tar", "-xf", "-")
	run(nil, "sha256sum", "-c", "SHA256SUMS")
	raw, err := os.ReadFile(filepath.Join(dir, eventsName))
	require.NoError(t, err)
	ls := bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	require.Len(t, ls, manifest.Events)
	for _, l := range ls {
		require.True(t, json.Valid(l))
	}
}
