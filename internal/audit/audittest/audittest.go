// Package audittest is the conformance suite of audit stores: a new
// implementation starts by calling Exercise.
package audittest

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// Opener opens the same database each time that it is called.
type Opener func(t *testing.T) audit.Store

// Epoch is the stream time of sequence 0 in the suite's records; sequence n
// follows n seconds later.
var Epoch = time.Date(2026, 11, 24, 6, 0, 0, 123456789, time.UTC)

// Record returns a valid record of a sequence. Its event id derives from
// incarnation and sequence.
func Record(incarnation string, sequence uint64, change ...func(*audit.Record)) audit.Record {
	r := audit.Record{
		Incarnation: incarnation, Sequence: sequence, StreamTime: Epoch.Add(time.Duration(sequence) * time.Second),
		ID: fmt.Sprintf("event-%s-%d", incarnation, sequence), Source: "/k3s-autoscaler/home/decision",
		Type: "dev.k3s-autoscaler.node.claimed.v1", Cluster: "home", Key: "burst-1", Pool: "burst",
		CorrelationID: "life-1", CausationID: "cause-1", Actor: "anna", Reason: "AtMin", Message: "the pool has fewer nodes than min",
	}
	for _, c := range change {
		c(&r)
	}
	r.Event = json.RawMessage(fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":%q,"type":%q,"data":{"text":"ä < \"b\""}}`, r.ID, r.Source, r.Type))
	return r
}

func batch(incarnation string, from, to uint64) []audit.Record {
	var rs []audit.Record
	for n := from; n <= to; n++ {
		rs = append(rs, Record(incarnation, n))
	}
	return rs
}

// Exercise runs the suite; fresh makes an empty database for each test.
func Exercise(t *testing.T, fresh func(t *testing.T) Opener) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(*testing.T, Opener)
	}{
		{"an empty store has no high-water mark, records or gaps", testEmpty},
		{"a record comes back as it was written", testRoundTrip},
		{"records survive closing and opening", testReopen},
		{"a batch that does not follow is refused whole", testGap},
		{"a batch with a hole is refused whole", testHole},
		{"a replay leaves no trace", testReplay},
		{"another event in a taken place is refused", testDiffers},
		{"a copy of an event is not stored again, the mark moves on", testCopy},
		{"a copy that was redriven is a record of its own", testRedriven},
		{"a new incarnation may start anywhere and retires the old one", testIncarnations},
		{"a gap is recorded, and the next batch follows it", testSkip},
		{"a late replay fills a gap", testLateFill},
		{"incomplete records are refused", testInvalid},
		{"listings filter by every field", testFilters},
		{"listings page in both orders without losing or repeating", testPages},
		{"readers work while a batch is written", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, fresh(t))
		})
	}
}

func open(t *testing.T, o Opener) audit.Store {
	t.Helper()
	s := o(t)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func requireHigh(t *testing.T, s audit.Store, incarnation string, sequence uint64) {
	t.Helper()
	gotIncarnation, gotSequence, err := s.High(t.Context())
	require.NoError(t, err)
	require.Equal(t, incarnation, gotIncarnation)
	require.Equal(t, sequence, gotSequence)
}

func list(t *testing.T, s audit.Store, q audit.Query) []audit.Record {
	t.Helper()
	rs, err := s.List(t.Context(), q)
	require.NoError(t, err)
	return rs
}

func places(rs []audit.Record) []string {
	out := []string{}
	for _, r := range rs {
		out = append(out, r.Cursor())
	}
	return out
}

func testEmpty(t *testing.T, o Opener) {
	s := open(t, o)
	requireHigh(t, s, "", 0)
	require.Empty(t, list(t, s, audit.Query{}))
	gaps, err := s.Gaps(t.Context())
	require.NoError(t, err)
	require.Empty(t, gaps)
	_, err = s.Get(t.Context(), "event-a-1")
	require.ErrorIs(t, err, audit.ErrNotFound)
	require.NoError(t, s.Append(t.Context(), nil), "nothing to write")
	requireHigh(t, s, "", 0)
}

func testRoundTrip(t *testing.T, o Opener) {
	s := open(t, o)
	want := Record("a", 7)
	require.NoError(t, s.Append(t.Context(), []audit.Record{want}))
	got, err := s.Get(t.Context(), want.ID)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, string(want.Event), string(got.Event), "byte for byte")
	require.Equal(t, []audit.Record{want}, list(t, s, audit.Query{}))
	requireHigh(t, s, "a", 7)
}

func testReopen(t *testing.T, o Opener) {
	s := o(t)
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 3)))
	require.NoError(t, s.Close())

	s = open(t, o)
	requireHigh(t, s, "a", 3)
	require.NoError(t, s.Append(t.Context(), batch("a", 4, 5)))
	require.Len(t, list(t, s, audit.Query{}), 5)
}

func testGap(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 3)))
	err := s.Append(t.Context(), batch("a", 5, 6))
	require.ErrorIs(t, err, audit.ErrGap)
	var gap *audit.GapError
	require.ErrorAs(t, err, &gap)
	require.Equal(t, audit.GapError{Incarnation: "a", Last: 3, Next: 5}, *gap)
	requireHigh(t, s, "a", 3)
	require.Len(t, list(t, s, audit.Query{}), 3)
}

func testHole(t *testing.T, o Opener) {
	s := open(t, o)
	err := s.Append(t.Context(), append(batch("a", 1, 2), batch("a", 4, 4)...))
	require.ErrorIs(t, err, audit.ErrGap)
	require.Empty(t, list(t, s, audit.Query{}))
	requireHigh(t, s, "", 0)
}

func testReplay(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 4)))
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 4)))
	require.NoError(t, s.Append(t.Context(), batch("a", 2, 3)), "a part of it")
	requireHigh(t, s, "a", 4)
	require.NoError(t, s.Append(t.Context(), batch("a", 3, 6)), "half old, half new")
	requireHigh(t, s, "a", 6)
	require.Equal(t, batch("a", 1, 6), list(t, s, audit.Query{}))
}

func testDiffers(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 2)))
	other := Record("a", 2, func(r *audit.Record) { r.ID = "another" })
	err := s.Append(t.Context(), []audit.Record{other, Record("a", 3)})
	require.ErrorIs(t, err, audit.ErrDiffers)
	require.ErrorContains(t, err, "event-a-2")
	require.ErrorContains(t, err, "another")
	requireHigh(t, s, "a", 2)
	_, err = s.Get(t.Context(), "another")
	require.ErrorIs(t, err, audit.ErrNotFound)
}

func testCopy(t *testing.T, o Opener) {
	s := open(t, o)
	asOne := func(r *audit.Record) { r.ID = "event-a-1" }
	require.NoError(t, s.Append(t.Context(), []audit.Record{Record("a", 1), Record("a", 2, asOne), Record("a", 3)}))
	requireHigh(t, s, "a", 3)
	require.Equal(t, []string{"a/1", "a/3"}, places(list(t, s, audit.Query{})))
	require.NoError(t, s.Append(t.Context(), []audit.Record{Record("a", 2, asOne), Record("a", 3), Record("a", 4, asOne)}), "the replay of a copy, and another copy")
	requireHigh(t, s, "a", 4)
	require.Equal(t, []string{"a/1", "a/3"}, places(list(t, s, audit.Query{})))

	otherSource := Record("a", 5, asOne, func(r *audit.Record) { r.Source = "/somebody/else" })
	require.NoError(t, s.Append(t.Context(), []audit.Record{otherSource}))
	require.Equal(t, []string{"a/1", "a/3", "a/5"}, places(list(t, s, audit.Query{})), "the pair of source and id is unique, not the id")
	got, err := s.Get(t.Context(), "event-a-1")
	require.NoError(t, err)
	require.Equal(t, uint64(1), got.Sequence)
}

func testRedriven(t *testing.T, o Opener) {
	s := open(t, o)
	copied := func(mark string) func(*audit.Record) {
		return func(r *audit.Record) { r.ID, r.Redrive = "event-a-1", mark }
	}
	again := Record("a", 2, copied("draining/9/1/1"))
	require.NoError(t, s.Append(t.Context(), []audit.Record{Record("a", 1), again, Record("a", 3, copied("draining/9/1/1")), Record("a", 4, copied("draining/12/1/1"))}))
	require.Equal(t, []string{"a/1", "a/2", "a/4"}, places(list(t, s, audit.Query{})), "each redrive once")
	require.Equal(t, again, list(t, s, audit.Query{})[1])
	got, err := s.Get(t.Context(), "event-a-1")
	require.NoError(t, err)
	require.Empty(t, got.Redrive, "the id is the event's own")
	require.NoError(t, s.Append(t.Context(), []audit.Record{again}), "the same again")
	other := Record("a", 2, copied("draining/99/1/1"))
	require.ErrorIs(t, s.Append(t.Context(), []audit.Record{other}), audit.ErrDiffers)
}

func testIncarnations(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("b", 900, 901)))
	require.NoError(t, s.Append(t.Context(), batch("a", 17, 18)))
	requireHigh(t, s, "a", 18)
	require.ErrorIs(t, s.Append(t.Context(), batch("b", 902, 902)), audit.ErrOldIncarnation)
	require.ErrorIs(t, s.Append(t.Context(), batch("b", 901, 901)), audit.ErrOldIncarnation)
	require.ErrorIs(t, s.Skip(t.Context(), audit.Gap{Incarnation: "b", From: 902, To: 903, At: Epoch}), audit.ErrOldIncarnation)
	requireHigh(t, s, "a", 18)
	require.Equal(t, []string{"b/900", "b/901", "a/17", "a/18"}, places(list(t, s, audit.Query{})), "in the order of the incarnations")

	// A stream that was filled again from an older one brings the same events.
	same := Record("a", 19, func(r *audit.Record) { r.ID = "event-b-900" })
	require.NoError(t, s.Append(t.Context(), []audit.Record{same}))
	require.Len(t, list(t, s, audit.Query{}), 4)
	requireHigh(t, s, "a", 19)
}

func testSkip(t *testing.T, o Opener) {
	s := open(t, o)
	gap := audit.Gap{Incarnation: "a", From: 3, To: 9, At: Epoch}
	require.Error(t, s.Skip(t.Context(), gap), "a stream without records has no gap")
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 2)))
	require.ErrorIs(t, s.Skip(t.Context(), audit.Gap{Incarnation: "a", From: 5, To: 9, At: Epoch}), audit.ErrGap)
	require.Error(t, s.Skip(t.Context(), audit.Gap{Incarnation: "a", From: 3, To: 2, At: Epoch}), "the wrong way round")
	require.NoError(t, s.Skip(t.Context(), gap))
	require.NoError(t, s.Skip(t.Context(), gap), "twice")
	requireHigh(t, s, "a", 9)
	require.NoError(t, s.Append(t.Context(), batch("a", 10, 11)))
	require.Equal(t, []string{"a/1", "a/2", "a/10", "a/11"}, places(list(t, s, audit.Query{})))
	gaps, err := s.Gaps(t.Context())
	require.NoError(t, err)
	require.Equal(t, []audit.Gap{gap}, gaps)
}

func testLateFill(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 1)))
	require.NoError(t, s.Skip(t.Context(), audit.Gap{Incarnation: "a", From: 2, To: 3, At: Epoch}))
	require.NoError(t, s.Append(t.Context(), batch("a", 2, 3)))
	require.Equal(t, []string{"a/1", "a/2", "a/3"}, places(list(t, s, audit.Query{})))
	requireHigh(t, s, "a", 3)
}

func testInvalid(t *testing.T, o Opener) {
	s := open(t, o)
	for name, change := range map[string]func(*audit.Record){
		"incarnation": func(r *audit.Record) { r.Incarnation = "" },
		"sequence":    func(r *audit.Record) { r.Sequence = 0 },
		"stream time": func(r *audit.Record) { r.StreamTime = time.Time{} },
		"id":          func(r *audit.Record) { r.ID = "" },
		"source":      func(r *audit.Record) { r.Source = "" },
		"type":        func(r *audit.Record) { r.Type = "" },
	} {
		require.ErrorContains(t, s.Append(t.Context(), []audit.Record{Record("a", 1, change)}), name)
	}
	notJSON := Record("a", 1)
	notJSON.Event = json.RawMessage("{")
	require.ErrorContains(t, s.Append(t.Context(), []audit.Record{notJSON}), "JSON")
	require.Error(t, s.Append(t.Context(), []audit.Record{Record("a", 1), Record("b", 2)}), "two incarnations")
	requireHigh(t, s, "", 0)
}

func testFilters(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), []audit.Record{
		Record("a", 1),
		Record("a", 2, func(r *audit.Record) { r.Type = "dev.k3s-autoscaler.node.ready.v1" }),
		Record("a", 3, func(r *audit.Record) { r.Cluster = "away" }),
		Record("a", 4, func(r *audit.Record) { r.Key = "burst-2" }),
		Record("a", 5, func(r *audit.Record) { r.Pool = "gpu" }),
		Record("a", 6, func(r *audit.Record) { r.CorrelationID = "life-2" }),
		Record("a", 7, func(r *audit.Record) { r.CausationID = "cause-2" }),
		Record("a", 8, func(r *audit.Record) { r.Actor = "o'neil" }),
		Record("a", 9, func(r *audit.Record) { r.Type, r.Key = "dev.k3s-autoscaler.node.lost.v1", "burst-2" }),
	}))
	at := func(sequence int) time.Time { return Epoch.Add(time.Duration(sequence) * time.Second) }
	for name, c := range map[string]struct {
		q    audit.Query
		want []string
	}{
		"one type":      {audit.Query{Types: []string{"dev.k3s-autoscaler.node.ready.v1"}}, []string{"a/2"}},
		"two types":     {audit.Query{Types: []string{"dev.k3s-autoscaler.node.ready.v1", "dev.k3s-autoscaler.node.lost.v1"}}, []string{"a/2", "a/9"}},
		"cluster":       {audit.Query{Cluster: "away"}, []string{"a/3"}},
		"node":          {audit.Query{Node: "burst-2"}, []string{"a/4", "a/9"}},
		"pool":          {audit.Query{Pool: "gpu"}, []string{"a/5"}},
		"correlation":   {audit.Query{CorrelationID: "life-2"}, []string{"a/6"}},
		"causation":     {audit.Query{CausationID: "cause-2"}, []string{"a/7"}},
		"actor":         {audit.Query{Actor: "o'neil"}, []string{"a/8"}},
		"since":         {audit.Query{Since: at(8)}, []string{"a/8", "a/9"}},
		"until":         {audit.Query{Until: at(3)}, []string{"a/1", "a/2"}},
		"a span":        {audit.Query{Since: at(3), Until: at(5)}, []string{"a/3", "a/4"}},
		"all together":  {audit.Query{Cluster: "home", Node: "burst-2", Types: []string{"dev.k3s-autoscaler.node.lost.v1"}, Since: at(9)}, []string{"a/9"}},
		"nothing":       {audit.Query{Node: "burst-2", Actor: "o'neil"}, []string{}},
		"newest, limit": {audit.Query{Order: audit.NewestFirst, Limit: 2}, []string{"a/9", "a/8"}},
	} {
		require.Equal(t, c.want, places(list(t, s, c.q)), name)
	}
}

func testPages(t *testing.T, o Opener) {
	s := open(t, o)
	require.NoError(t, s.Append(t.Context(), batch("b", 5, 9)))
	require.NoError(t, s.Append(t.Context(), batch("a", 1, 6)))
	all := places(list(t, s, audit.Query{}))
	require.Len(t, all, 11)
	for _, order := range []audit.Order{audit.OldestFirst, audit.NewestFirst} {
		var got []string
		q := audit.Query{Order: order, Limit: 3}
		for {
			page := list(t, s, q)
			if len(page) == 0 {
				break
			}
			got = append(got, places(page)...)
			q.Cursor = page[len(page)-1].Cursor()
		}
		want := append([]string{}, all...)
		if order == audit.NewestFirst {
			for i := range want {
				want[i] = all[len(all)-1-i]
			}
		}
		require.Equal(t, want, got)
	}
	for _, cursor := range []string{"nonsense", "/1", "a/", "a/-1", "unknown/1"} {
		_, err := s.List(t.Context(), audit.Query{Cursor: cursor})
		require.ErrorIs(t, err, audit.ErrCursor, cursor)
	}
}

func testConcurrent(t *testing.T, o Opener) {
	s := open(t, o)
	const batches, size = 20, 10
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				rs, err := s.List(t.Context(), audit.Query{Limit: audit.MaxLimit})
				if err != nil || len(rs)%size != 0 {
					t.Errorf("a reader saw %d records, no multiple of a batch (%v)", len(rs), err)
					return
				}
			}
		})
	}
	for i := range uint64(batches) {
		require.NoError(t, s.Append(t.Context(), batch("a", i*size+1, (i+1)*size)))
	}
	close(done)
	wg.Wait()
	require.Len(t, list(t, s, audit.Query{Limit: audit.MaxLimit}), batches*size)
}
