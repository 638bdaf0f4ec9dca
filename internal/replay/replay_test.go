package replay

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/auditing"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/recording"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit/sqlite"
)

var epoch = time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)

type testBundle struct {
	t      *testing.T
	server *embedded.Server
	bus    *bus.Bus
	live   *sqlite.Store
	n      int
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	server := bustest.Server(t)
	return &testBundle{t: t, server: server, bus: bustest.Open(t, server), live: store(t)}
}

func store(t *testing.T) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Path: filepath.Join(t.TempDir(), "audit.db")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func (b *testBundle) event(node string) events.Event {
	b.t.Helper()
	b.n++
	e, err := events.New(events.Meta{Cluster: "home", Node: node, Publisher: "provisioning", ID: fmt.Sprintf("event-%d", b.n), Time: epoch, CorrelationID: "life-" + node},
		events.NodeLost{Node: node, Pool: "burst", Reason: events.Reason{Code: "MachineGone", Message: "it is <gone> & forgotten"}})
	require.NoError(b.t, err)
	return e
}

// publish publishes n events.
func (b *testBundle) publish(n int) {
	b.t.Helper()
	for range n {
		require.NoError(b.t, b.bus.Publish(b.t.Context(), b.event(fmt.Sprintf("n%d", b.n%7))))
	}
}

// store puts a message on the stream that no version of ours would.
func (b *testBundle) garbage(m *nats.Msg) {
	b.t.Helper()
	nc, err := b.server.Connect()
	require.NoError(b.t, err)
	defer nc.Close()
	_, err = nc.RequestMsg(m, 10*time.Second)
	require.NoError(b.t, err)
}

// record runs the live handler until everything is recorded. Between two batches
// a new process goes on, whenever die says so.
func (b *testBundle) record(die func(step string) bool) (deaths int) {
	b.t.Helper()
	for {
		ctx, kill := context.WithCancel(b.t.Context())
		var dead atomic.Bool
		other := bustest.Open(b.t, b.server)
		h, err := auditing.New(auditing.Options{Store: recording.Store{Audit: b.live}, Log: other, OnStep: func(step string) {
			if die != nil && die(step) {
				dead.Store(true)
				kill()
				panic("killed at " + step)
			}
		}})
		require.NoError(b.t, err)
		done := make(chan error, 1)
		go func() { done <- other.RunBatch(ctx, h) }()
		require.Eventually(b.t, func() bool { return dead.Load() || b.recorded() }, bustest.Patience, 5*time.Millisecond)
		kill()
		require.NoError(b.t, <-done)
		if !dead.Load() {
			return deaths
		}
		deaths++
	}
}

func (b *testBundle) recorded() bool {
	last, err := b.bus.LastSequence(b.t.Context())
	require.NoError(b.t, err)
	_, high, err := b.live.High(b.t.Context())
	require.NoError(b.t, err)
	return high >= last
}

func (b *testBundle) replay(opts ...func(*Options)) (Report, *sqlite.Store) {
	b.t.Helper()
	r, err := bus.OpenReader(b.t.Context(), bus.Options{Server: b.server, Times: bustest.Times()})
	require.NoError(b.t, err)
	defer r.Close()
	into := store(b.t)
	o := Options{Log: r, Live: b.live, Into: into}
	for _, f := range opts {
		f(&o)
	}
	report, err := Audit(b.t.Context(), o)
	require.NoError(b.t, err)
	return report, into
}

func all(t *testing.T, s *sqlite.Store) []audit.Record {
	t.Helper()
	rs, err := s.List(t.Context(), audit.Query{Limit: audit.MaxLimit})
	require.NoError(t, err)
	return rs
}

// mixed fills the stream with what is hard to tell twice in the same way:
// messages that are no events, with several faults, copies of events, and events
// whose data is stored apart, or is gone.
func (b *testBundle) mixed() {
	b.publish(40)
	faults := nats.Header{"ce-specversion": {"1.0"}, "ce-type": {""}, "ce-source": {"%zz"}, "ce-time": {"yesterday"}, "ce-Bad_Name": {"x"}}
	b.garbage(&nats.Msg{Subject: "k3sas.home.node.n1.node.observed", Header: faults, Data: []byte("{}")})
	b.garbage(&nats.Msg{Subject: "k3sas.UPPER.node.n1.node.observed", Data: []byte("garbage")})
	b.garbage(&nats.Msg{Subject: "k3sas.home.node.n2.node.observed", Header: nats.Header{"ce-specversion": {"1.0", "0.3"}, "ce-id": {"a", "b"}}})
	b.apart()
	b.publish(300)
	// Copies of events that JetStream no longer recognises.
	for i := range 20 {
		m, err := bus.EncodeEvent(b.numbered(i + 1))
		require.NoError(b.t, err)
		m.Header.Set("Nats-Msg-Id", fmt.Sprintf("copy-%d", i))
		b.garbage(m)
	}
	b.publish(40)
}

// apart publishes an event that has no room in a message, and one whose data is gone.
func (b *testBundle) apart() {
	text := make([]byte, 2<<20)
	_, err := rand.Read(text)
	require.NoError(b.t, err)
	e, err := events.New(events.Meta{Cluster: "home", Node: "n3", Publisher: "provisioning", ID: "apart", Time: epoch},
		events.NodeLost{Node: "n3", Pool: "burst", Reason: events.Reason{Code: "MachineGone", Message: base64.StdEncoding.EncodeToString(text)}})
	require.NoError(b.t, err)
	require.NoError(b.t, b.bus.Publish(b.t.Context(), e))
	e.SetID("gone")
	e.DataEncoded = nil
	e.SetExtension(events.ExtDataRef, "nats-object:/k3sas-payloads/gone")
	e.SetExtension(events.ExtDataDigest, "sha256:gone")
	m, err := bus.EncodeEvent(e)
	require.NoError(b.t, err)
	b.garbage(m)
}

func (b *testBundle) numbered(n int) events.Event {
	keep := b.n
	defer func() { b.n = keep }()
	b.n = n - 1
	return b.event(fmt.Sprintf("n%d", b.n%7))
}

func TestAReplayGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mixed()
	b.record(nil)
	report, into := b.replay()
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, report.Digest, report.LiveDigest)
	require.Equal(t, all(t, b.live), all(t, into))
	require.Equal(t, len(all(t, into)), report.Rebuilt)
	require.Zero(t, report.Copies, "a replay of everything knows the first of each")
	require.GreaterOrEqual(t, report.Events, 405)
	whole, lost := 0, 0
	for _, r := range all(t, into) {
		switch {
		case r.ID == "apart":
			whole = len(r.Event)
		case strings.Contains(string(r.Event), "nats-object:/k3sas-payloads/gone) is gone"):
			lost++
		}
		require.NotContains(t, string(r.Event), "datadigest")
	}
	require.Greater(t, whole, 2<<20, "the record has all of it")
	require.Equal(t, 1, lost, "and what is gone is said to be")
}

func TestAReplayGivesTheSameBytesThoughAuditingDied(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mixed()
	steps := 0
	deaths := b.record(func(string) bool {
		steps++
		return steps <= 5 // before and after each of the first transactions
	})
	require.Equal(t, 5, deaths)
	report, into := b.replay()
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, all(t, b.live), all(t, into))
}

func TestAStoreFromABackupThatWasFilledIsTheSame(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish(5)
	b.record(nil)
	kept := b.live
	b.live = store(t) // the store of a later time, which is lost
	b.mixed()
	b.record(nil)
	b.live = kept
	b.publish(1)
	b.record(nil) // reads what is missing, messages that are no events too
	gaps, err := b.live.Gaps(t.Context())
	require.NoError(t, err)
	require.Empty(t, gaps)
	report, into := b.replay()
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, all(t, b.live), all(t, into))
}

func TestAPartIsReplayedAndComparedByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mixed()
	b.record(nil)
	report, into := b.replay(func(o *Options) { o.From.Sequence, o.To.Sequence = 300, 380 })
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, uint64(300), report.From)
	require.Equal(t, uint64(380), report.To)
	require.Equal(t, 81, report.Events)
	require.Positive(t, report.Copies, "what was recorded before the range is recognised")
	require.Equal(t, report.Events, report.Rebuilt+report.Copies)
	require.Equal(t, uint64(300), all(t, into)[0].Sequence)

	at := all(t, b.live)[100].StreamTime
	report, _ = b.replay(func(o *Options) { o.From.Time = at })
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, uint64(101), report.From)
	report, _ = b.replay(func(o *Options) { o.To.Time = at })
	require.True(t, report.Equal(), "%+v", report.First)
	require.Equal(t, uint64(100), report.To)
	report, _ = b.replay(func(o *Options) { o.Node, o.Types, o.Cluster = "n3", []string{events.TypeNodeLost}, "home" })
	require.True(t, report.Equal(), "%+v", report.First)
	require.Less(t, report.Rebuilt, 100)
	require.Positive(t, report.Rebuilt)
	report, _ = b.replay(func(o *Options) { o.From.Time = time.Now().Add(time.Hour) })
	require.True(t, report.Equal(), "nothing is as nothing")
	require.Zero(t, report.Events)
}

// changed is a live store that lies about some records.
type changed struct {
	Live
	change func([]audit.Record) []audit.Record
}

func (c changed) List(ctx context.Context, q audit.Query) ([]audit.Record, error) {
	rs, err := c.Live.List(ctx, q)
	return c.change(rs), err
}

func (c changed) Get(context.Context, string) (audit.Record, error) {
	return audit.Record{}, audit.ErrNotFound
}

func TestEveryDifferenceIsFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish(10)
	b.record(nil)
	for name, c := range map[string]struct {
		change func(rs []audit.Record) []audit.Record
		says   string
	}{
		"a record is missing": {func(rs []audit.Record) []audit.Record { return append(rs[:3:3], rs[4:]...) },
			"the stream has event event-4, the live audit store lacks it"},
		"another reason": {func(rs []audit.Record) []audit.Record { rs[3].Reason = "Weather"; return rs }, "the records differ in reason"},
		"another moment": {func(rs []audit.Record) []audit.Record { rs[3].StreamTime = rs[3].StreamTime.Add(1); return rs },
			"the records differ in stream time"},
		"one byte of an event": {func(rs []audit.Record) []audit.Record {
			rs[3].Event = json.RawMessage(strings.Replace(string(rs[3].Event), `"specversion"`, ` "specversion"`, 1))
			return rs
		}, "the records differ in event"},
	} {
		t.Run(name, func(t *testing.T) {
			report, _ := b.replay(func(o *Options) { o.Live = changed{o.Live, c.change} })
			require.False(t, report.Equal())
			require.NotEqual(t, report.Digest, report.LiveDigest)
			require.Equal(t, c.says, report.First.What)
			require.NotEmpty(t, report.First.Sequence)
		})
	}
}

// hiding is a log that does not give one sequence.
type hiding struct {
	Log
	seq uint64
}

func (h hiding) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for d, err := range h.Log.Read(ctx, o) {
			if d.Sequence != h.seq && !yield(d, err) {
				return
			}
		}
	}
}

func TestAnEventThatTheStreamDoesNotGiveIsADifference(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish(10)
	b.record(nil)
	report, _ := b.replay(func(o *Options) { o.Log = hiding{o.Log, 4} })
	require.Equal(t, "the live audit store has event event-4, the stream does not give it", report.First.What)
	require.Equal(t, uint64(4), report.First.Sequence)
	require.Equal(t, 1, report.Differences)
	require.False(t, report.Equal())
}

func TestAReplayLeavesTheBusAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mixed()
	b.record(nil)
	before, err := b.bus.LogState(t.Context())
	require.NoError(t, err)
	dead, err := b.bus.DeadLetters(t.Context())
	require.NoError(t, err)
	b.replay()
	after, err := b.bus.LogState(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after, "messages that are no events are not set aside a second time")
	deadAfter, err := b.bus.DeadLetters(t.Context())
	require.NoError(t, err)
	require.Len(t, deadAfter, len(dead))
}

// TestAReplayHoldsNoPublisher fails when a replay is given anything that could
// send: what it reads from can read and nothing else.
func TestAReplayHoldsNoPublisher(t *testing.T) {
	t.Parallel()
	may := map[string]bool{"Read": true, "LogState": true, "Close": true, "High": true, "List": true, "Get": true, "Gaps": true}
	for _, typ := range []reflect.Type{reflect.TypeFor[*bus.Reader](), reflect.TypeFor[Log](), reflect.TypeFor[Live]()} {
		for i := range typ.NumMethod() {
			require.True(t, may[typ.Method(i).Name], "%s.%s", typ, typ.Method(i).Name)
		}
	}
	options := reflect.TypeFor[Options]()
	for i := range options.NumField() {
		f := options.Field(i)
		for j := range f.Type.NumMethod() {
			require.NotRegexp(t, "Publish|Emit|Send|Run|Connect", f.Type.Method(j).Name, "Options.%s", f.Name)
		}
	}
}

func TestWhatCanNotBeReplayedIsSaid(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reader, err := bus.OpenReader(t.Context(), bus.Options{Server: b.server, Times: bustest.Times()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reader.Close()) })
	_, err = Audit(t.Context(), Options{Log: reader, Live: b.live, Into: store(t)})
	require.ErrorContains(t, err, "has recorded nothing")
	b.publish(3)
	b.record(nil)
	_, err = Audit(t.Context(), Options{Log: reader, Live: b.live, Into: b.live})
	require.ErrorContains(t, err, "holds records already")
	_, err = Audit(t.Context(), Options{Log: reader, Live: b.live, Into: store(t), From: Position{Sequence: 9}})
	require.ErrorContains(t, err, "the stream ends at sequence 3")
	_, err = Audit(t.Context(), Options{From: Position{Sequence: 9}, To: Position{Sequence: 8}})
	for _, want := range []string{"log is required", "live is required", "into is required", "sequence 8 is before from, 9"} {
		require.ErrorContains(t, err, want)
	}

	elsewhere := setup(t)
	elsewhere.publish(1)
	elsewhere.record(nil)
	_, err = Audit(t.Context(), Options{Log: reader, Live: elsewhere.live, Into: store(t)})
	require.ErrorContains(t, err, "of another stream nothing can be replayed")

	empty := bustest.Server(t)
	_, err = bus.OpenReader(t.Context(), bus.Options{Server: empty, Times: bustest.Times()})
	require.True(t, errors.Is(err, bus.ErrAbsent), "%v", err)
}
