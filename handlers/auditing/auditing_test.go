package auditing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
)

var epoch = time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)

// sqliteStore is the port on the real store.
type sqliteStore struct {
	*sqlite.Store
	appends int
	fail    error
}

func (s *sqliteStore) Append(ctx context.Context, batch []Record) error {
	if s.fail != nil {
		return s.fail
	}
	s.appends++
	out := make([]audit.Record, len(batch))
	for i, r := range batch {
		out[i] = audit.Record{Incarnation: r.Incarnation, Sequence: r.Sequence, StreamTime: r.StreamTime,
			ID: r.ID, Source: r.Source, Redrive: r.Redrive, Type: r.Type, Cluster: r.Cluster, Key: r.Key, Pool: r.Details.Pool,
			CorrelationID: r.CorrelationID, CausationID: r.CausationID, Actor: r.Details.Actor,
			Reason: r.Details.Reason, Message: r.Details.Message, Event: r.Event}
	}
	err := s.Store.Append(ctx, out)
	var gap *audit.GapError
	if errors.As(err, &gap) {
		return errors.Join(err, &GapError{Last: gap.Last, Next: gap.Next})
	}
	return err
}

func (s *sqliteStore) Skip(ctx context.Context, g Gap) error {
	return s.Store.Skip(ctx, audit.Gap(g))
}

// shelf is a stream in memory that holds some sequences.
type shelf struct {
	held []bus.Delivery
	bad  map[uint64]error
	err  error
}

func (s *shelf) Read(_ context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range s.held {
			if d.Sequence < o.FromSequence || o.UntilSequence != 0 && d.Sequence > o.UntilSequence {
				continue
			}
			if !yield(d, s.bad[d.Sequence]) {
				return
			}
		}
		if s.err != nil {
			yield(bus.Delivery{}, s.err)
		}
	}
}

type testBundle struct {
	t     *testing.T
	h     *Handler
	store *sqliteStore
	shelf *shelf
	log   *bytes.Buffer
	path  string
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{t: t, shelf: &shelf{}, log: &bytes.Buffer{}, path: filepath.Join(t.TempDir(), "audit.db")}
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: b.path})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	b.store = &sqliteStore{Store: s}
	b.h, err = New(Options{Store: b.store, Log: b.shelf, Clock: clocktesting.NewFakePassiveClock(epoch),
		Logger: slog.New(slog.NewJSONHandler(b.log, nil)), Registerer: prometheus.NewPedanticRegistry()})
	require.NoError(t, err)
	return b
}

func event(t testing.TB, id string, p events.Payload, mod ...func(*events.Meta)) events.Event {
	t.Helper()
	m := events.Meta{Cluster: "home", Publisher: "api", ID: id, Time: epoch, CorrelationID: "life-1", CausationID: "cause-1"}
	for _, f := range mod {
		f(&m)
	}
	e, err := events.New(m, p)
	require.NoError(t, err)
	return e
}

func paused(t testing.TB, n uint64) bus.Delivery {
	return bus.Delivery{Event: event(t, fmt.Sprintf("event-%d", n), events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "maintenance"}),
		Key: bus.Key{Cluster: "home", Name: events.ClusterKey}, Sequence: n, Incarnation: "a", StreamTime: epoch.Add(time.Duration(n) * time.Second), Attempt: 1}
}

func span(t testing.TB, from, to uint64) []bus.Delivery {
	var ds []bus.Delivery
	for n := from; n <= to; n++ {
		ds = append(ds, paused(t, n))
	}
	return ds
}

func (b *testBundle) recorded() []uint64 {
	b.t.Helper()
	rs, err := b.store.List(b.t.Context(), audit.Query{Limit: audit.MaxLimit})
	require.NoError(b.t, err)
	out := []uint64{}
	for _, r := range rs {
		out = append(out, r.Sequence)
	}
	return out
}

func (b *testBundle) gaps() [][2]uint64 {
	b.t.Helper()
	gs, err := b.store.Gaps(b.t.Context())
	require.NoError(b.t, err)
	var out [][2]uint64
	for _, g := range gs {
		require.Equal(b.t, epoch, g.At)
		out = append(out, [2]uint64{g.From, g.To})
	}
	return out
}

func TestEveryEventIsRecordedWithItsReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	node := func(m *events.Meta) { m.Node, m.Publisher = "pi4.lan", "provisioning" }
	for n, c := range []struct {
		event events.Event
		want  Details
	}{
		{event(t, "1", events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "maintenance"}),
			Details{Pool: "burst", Actor: "anna", Reason: "maintenance"}},
		{event(t, "2", events.NodeLost{Node: "pi4.lan", Pool: "burst", Reason: events.Reason{Code: "MachineGone", Message: "the container is gone"}}, node),
			Details{Pool: "burst", Reason: "MachineGone", Message: "the container is gone"}},
		{event(t, "3", events.NodeFailed{Node: "pi4.lan", Pool: "burst", Failure: events.Failure{Reason: events.Reason{Code: "NotReady", Message: "in 2m"}}}, node),
			Details{Pool: "burst", Reason: "NotReady", Message: "in 2m"}},
		{event(t, "4", events.ScaleHeld{Decision: events.Decision{ID: "d", Pool: "burst", Verdict: "held", Actor: "bert", EvaluatedAt: epoch,
			Reason: events.Reason{Code: "AtMax", Message: "3 of 3"}}}), Details{Pool: "burst", Actor: "bert", Reason: "AtMax", Message: "3 of 3"}},
		{event(t, "5", events.ConfigApplied{Digest: "x", Start: epoch}), Details{}},
	} {
		d := paused(t, uint64(n+1))
		d.Event = c.event
		_, d.Key.Name, _ = events.PartitionKey(c.event)
		require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{d}))
		r, err := b.store.Get(t.Context(), c.event.ID())
		require.NoError(t, err)
		require.Equal(t, c.want, Details{Pool: r.Pool, Actor: r.Actor, Reason: r.Reason, Message: r.Message}, c.event.Type())
		require.Equal(t, d.Key.Name, r.Key)
		require.Equal(t, "life-1", r.CorrelationID)
		require.Equal(t, "cause-1", r.CausationID)
		require.Equal(t, d.StreamTime, r.StreamTime)
		var structured events.Event
		require.NoError(t, json.Unmarshal(r.Event, &structured))
		require.Equal(t, c.event.String(), structured.String(), "the event itself comes back")
	}
	require.Equal(t, []uint64{1, 2, 3, 4, 5}, b.recorded())
	require.Equal(t, "auditing", b.h.Name())
}

func TestAnEventOfAnotherVersionIsRecordedAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	unknown := paused(t, 1)
	unknown.Event = unknown.Event.Clone()
	unknown.Event.SetType("dev.k3s-autoscaler.pool.painted.v7")
	require.NoError(t, unknown.Event.SetData("application/json", map[string]any{"pool": 7, "actor": "anna", "reason": []int{1}}))
	lying := paused(t, 2)
	lying.Event = lying.Event.Clone()
	lying.Event.DataEncoded = []byte("{cut off")
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{unknown, lying}))
	r, err := b.store.Get(t.Context(), "event-1")
	require.NoError(t, err)
	require.Equal(t, "anna", r.Actor)
	require.Empty(t, r.Pool)
	require.Empty(t, r.Reason)
	r, err = b.store.Get(t.Context(), "event-2")
	require.NoError(t, err)
	require.Contains(t, string(r.Event), "data_base64")

	broken := paused(t, 3)
	broken.Event = events.Event{}
	require.ErrorContains(t, b.h.HandleBatch(t.Context(), []bus.Delivery{broken}), "record sequences 3 to 3")
}

func TestABatchThatComesTwiceLeavesNoTrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 5, 8)))
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 5, 8)))
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 7, 9)))
	duplicate := paused(t, 10)
	duplicate.Event = paused(t, 6).Event
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{duplicate}))
	require.Equal(t, []uint64{5, 6, 7, 8, 9}, b.recorded())
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 11, 11)))
	require.Empty(t, b.gaps())
}

func TestAnErrorLeavesTheBatchOnTheBus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store.fail = errors.New("disk is full")
	require.ErrorContains(t, b.h.HandleBatch(t.Context(), span(t, 1, 3)), "record sequences 1 to 3: disk is full")
	require.InDelta(t, 1, testutil.ToFloat64(b.h.metrics.errors.WithLabelValues("auditing")), 0)
	b.store.fail = nil
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 1, 3)))
	require.Equal(t, []uint64{1, 2, 3}, b.recorded())
}

func TestWhatIsMissingIsReadFromTheStream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first, batch []bus.Delivery
		held         []bus.Delivery
		bad          map[uint64]error
		want         []uint64
		gaps         [][2]uint64
		lost         float64
	}{
		"the stream has all of it": {first: span(t, 1, 2), batch: span(t, 6, 7), held: span(t, 1, 9), want: []uint64{1, 2, 3, 4, 5, 6, 7}},
		"the stream has none of it": {first: span(t, 1, 2), batch: span(t, 6, 7), held: span(t, 6, 9), want: []uint64{1, 2, 6, 7},
			gaps: [][2]uint64{{3, 5}}, lost: 3},
		"the stream has the newer part": {first: span(t, 1, 2), batch: span(t, 9, 9), held: span(t, 5, 9), want: []uint64{1, 2, 5, 6, 7, 8, 9},
			gaps: [][2]uint64{{3, 4}}, lost: 2},
		"one of them is no event": {first: span(t, 1, 2), batch: span(t, 6, 6), held: span(t, 1, 6), bad: map[uint64]error{4: &bus.UndecodableError{Err: errors.New("no JSON")}},
			want: []uint64{1, 2, 3, 4, 5, 6}},
		"nothing was recorded yet":         {batch: span(t, 6, 7), held: span(t, 3, 9), want: []uint64{3, 4, 5, 6, 7}},
		"the stream begins with the batch": {batch: span(t, 6, 7), held: span(t, 6, 9), want: []uint64{6, 7}},
		"nothing was recorded yet, and there is a hole": {batch: span(t, 6, 7), held: append(span(t, 2, 2), span(t, 4, 9)...), want: []uint64{2, 4, 5, 6, 7},
			gaps: [][2]uint64{{3, 3}}, lost: 1},
		"a hole within the batch": {first: nil, batch: append(span(t, 1, 2), span(t, 5, 6)...), held: span(t, 1, 6), want: []uint64{1, 2, 3, 4, 5, 6}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			if c.first != nil {
				require.NoError(t, b.h.HandleBatch(t.Context(), c.first))
			}
			b.shelf.held, b.shelf.bad = c.held, c.bad
			for range 2 {
				require.NoError(t, b.h.HandleBatch(t.Context(), c.batch))
			}
			require.Equal(t, c.want, b.recorded())
			require.Equal(t, c.gaps, b.gaps())
			require.InDelta(t, c.lost, testutil.ToFloat64(b.h.metrics.lost), 0)
			if c.lost > 0 {
				require.Contains(t, b.log.String(), "dropped by the limits of the stream")
			}
		})
	}
}

func TestANewStreamIsRecordedBehindTheOldOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 1, 2)))
	other := span(t, 1, 4)
	for i := range other {
		other[i].Incarnation = "b"
		other[i].Event = event(t, fmt.Sprintf("other-%d", i), events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "again"})
	}
	b.shelf.held = other
	require.NoError(t, b.h.HandleBatch(t.Context(), other[2:3]))
	require.Contains(t, b.log.String(), "another one than before")
	require.Equal(t, []uint64{1, 2, 1, 2, 3}, b.recorded())
	b.shelf.held = nil
	require.ErrorIs(t, b.h.HandleBatch(t.Context(), span(t, 3, 3)), audit.ErrOldIncarnation)
	require.EqualError(t, &GapError{Last: 2, Next: 5}, "the last record is sequence 2, the batch begins with 5")
}

func TestAStoreThatDoesNotAnswerKeepsTheBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.h.HandleBatch(ctx, span(t, 1, 1)), context.Canceled)
}

func TestManyMissingEventsAreRecordedInBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const all = 3*fillSize + 10
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 1, 1)))
	b.shelf.held = span(t, 1, all)
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, all, all)))
	require.Len(t, b.recorded(), all)
	require.Equal(t, 1+4+2, b.store.appends)
}

func TestWhatCanNotBeFilledIsNotSkipped(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		break_ func(b *testBundle, cancel func())
		says   string
	}{
		"the stream does not answer": {func(b *testBundle, _ func()) { b.shelf.err = errors.New("no answer") }, "read what is missing: no answer"},
		"the stream was replaced": {func(b *testBundle, _ func()) {
			d := paused(b.t, 3)
			d.Incarnation = "b"
			b.shelf.held = []bus.Delivery{d}
		}, "became b, expected a"},
		"the store refuses the first of many": {func(b *testBundle, _ func()) {
			b.shelf.held = append(span(b.t, 3, 3), span(b.t, 5, 5)...)
			b.h.opts.OnStep = func(step string) {
				if step == "auditing/append/before" && b.store.appends == 2 {
					b.store.fail = errors.New("disk is full")
				}
			}
		}, "disk is full"},
		"the store refuses the last": {func(b *testBundle, _ func()) {
			b.shelf.held = span(b.t, 3, 5)
			b.h.opts.OnStep = func(step string) {
				if step == "auditing/append/before" && b.store.appends == 2 {
					b.store.fail = errors.New("disk is full")
				}
			}
		}, "disk is full"},
		"the process is stopped": {func(b *testBundle, cancel func()) {
			b.h.opts.OnStep = func(step string) {
				if step == "auditing/append/before" {
					cancel()
				}
			}
		}, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 1, 2)))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.break_(b, cancel)
			require.ErrorContains(t, b.h.HandleBatch(ctx, span(t, 6, 6)), c.says)
			require.Empty(t, b.gaps())
			require.NotContains(t, b.recorded(), uint64(6))
		})
	}
}

func TestAGapThatCanNotBeRecordedKeepsTheBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.h.HandleBatch(t.Context(), span(t, 1, 2)))
	b.shelf.held = span(t, 5, 6)
	b.h.opts.Clock = clocktesting.NewFakePassiveClock(time.Time{}) // which the store refuses
	require.ErrorContains(t, b.h.HandleBatch(t.Context(), span(t, 6, 6)), "record that sequences 3 to 4 are lost")
	require.Zero(t, testutil.ToFloat64(b.h.metrics.lost))
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := New(Options{})
	require.ErrorContains(t, err, "store is required")
	require.ErrorContains(t, err, "log is required")
	h, err := New(Options{Store: &sqliteStore{}, Log: &shelf{}})
	require.NoError(t, err)
	require.NotNil(t, h.opts.Clock)
}

// run starts auditing on a bus of its own, until stop or the test's end.
func run(t *testing.T, s *embedded.Server, store Store, onStep func(step string, kill func())) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	own := bustest.Open(t, s)
	o := Options{Store: store, Log: own, Logger: slog.New(slog.DiscardHandler)}
	if onStep != nil {
		o.OnStep = func(step string) { onStep(step, cancel) }
	}
	h, err := New(o)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { _ = own.RunBatch(ctx, h) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func TestTheWholeStreamIsRecordedOnceThoughProcessesDie(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := bustest.Server(t)
	out := bustest.Open(t, server)
	const all = 600
	publish := func(from, to int) {
		var es []events.Event
		for n := from; n <= to; n++ {
			es = append(es, event(t, fmt.Sprintf("event-%d", n), events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "maintenance"}))
		}
		require.NoError(t, out.Publish(t.Context(), es...))
	}
	publish(1, all/2)
	// The first dies before it writes, the second between writing and acknowledging.
	for _, at := range []string{"auditing/append/before", "auditing/append/after"} {
		died := make(chan struct{})
		once := sync.OnceFunc(func() { close(died) })
		stop := run(t, server, b.store, func(step string, kill func()) {
			if step == at {
				kill()
				once()
			}
		})
		select {
		case <-died:
		case <-time.After(bustest.Patience):
			t.Fatalf("%s was not passed", at)
		}
		stop()
	}
	publish(all/2+1, all)
	run(t, server, b.store, nil)
	require.Eventually(t, func() bool {
		_, high, err := b.store.High(t.Context())
		require.NoError(t, err)
		return high == all
	}, time.Minute, 20*time.Millisecond)
	want := make([]uint64, all)
	for i := range want {
		want[i] = uint64(i + 1)
	}
	require.Equal(t, want, b.recorded())
	require.Empty(t, b.gaps())
}

func TestAStoreFromABackupIsFilledFromTheStream(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	out := bustest.Open(t, server)
	publish := func(n int) {
		require.NoError(t, out.Publish(t.Context(), event(t, fmt.Sprintf("event-%d", n), events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "maintenance"})))
	}
	current, backup := setup(t), setup(t)
	stop := run(t, server, current.store, nil)
	reached := func(b *testBundle, high uint64) {
		require.Eventually(t, func() bool {
			_, got, err := b.store.High(t.Context())
			require.NoError(t, err)
			return got == high
		}, time.Minute, 10*time.Millisecond)
	}
	for n := 1; n <= 6; n++ {
		publish(n)
	}
	reached(current, 6)
	stop()
	// The backup was made at sequence 2; everything to 6 is acknowledged.
	var old []bus.Delivery
	for d, err := range out.Read(t.Context(), bus.ReadOptions{UntilSequence: 2}) {
		require.NoError(t, err)
		old = append(old, d)
	}
	require.NoError(t, backup.h.HandleBatch(t.Context(), old))
	run(t, server, backup.store, nil)
	publish(7)
	reached(backup, 7)
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6, 7}, backup.recorded())
	require.Empty(t, backup.gaps())
}

func TestACopyThatWasRedrivenIsRecordedAsSuch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, again := paused(t, 1), paused(t, 1)
	again.Sequence, again.Redrive = 2, events.Redrive{Handler: events.HandlerDecision, Round: 9, Number: 1, Origin: 1}
	again.Event.SetExtension(events.ExtRedrive, again.Redrive.String())
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{first, again, paused(t, 3)}))
	rs, err := b.store.List(t.Context(), audit.Query{})
	require.NoError(t, err)
	require.Len(t, rs, 3)
	require.Equal(t, rs[0].ID, rs[1].ID)
	require.Equal(t, []string{"", "decision/9/1/1", ""}, []string{rs[0].Redrive, rs[1].Redrive, rs[2].Redrive})
	require.Contains(t, string(rs[1].Event), `"redrive":"decision/9/1/1"`)
}
