package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// noise is text of n letters that hardly shrinks, another for each seed.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	x := seed
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[x>>58]
	}
	return string(b)
}

// large is an event of n bytes on a node's key, read by provisioning.
func large(t testing.TB, node, id string, n int) events.Event {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Node: node, Publisher: "collector", ID: id, Time: start, CorrelationID: "life-" + node},
		events.NodeObserved{Node: node, What: events.ObservedReady, Reason: noise(uint64(n)+uint64(len(id)), n), At: start})
	require.NoError(t, err)
	return e
}

// admin is a plain JetStream connection.
func admin(t testing.TB, s *embedded.Server) jetstream.JetStream {
	t.Helper()
	nc, err := s.Connect()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

func objects(t testing.TB, js jetstream.JetStream) []*jetstream.ObjectInfo {
	t.Helper()
	store, err := js.ObjectStore(ctxT(t), "k3sas-payloads")
	require.NoError(t, err)
	all, err := store.List(ctxT(t))
	if !errors.Is(err, jetstream.ErrNoObjectsFound) {
		require.NoError(t, err)
	}
	return all
}

// sameEvent requires that what was read is what was published, to the byte.
func sameEvent(t testing.TB, want, got events.Event) {
	t.Helper()
	w, err := json.Marshal(want)
	require.NoError(t, err)
	g, err := json.Marshal(got)
	require.NoError(t, err)
	require.Equal(t, len(w), len(g))
	require.True(t, string(w) == string(g), "%.300s\n%.300s", w, g)
}

func TestAnEventWithoutRoomInAMessageIsReadAsItWasPublished(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	js := admin(t, server)
	e := large(t, "n1", "big", 5<<20)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "before"), e, observed(t, "home", "n1", "after")))
	require.NoError(t, b.Publish(ctxT(t), e), "publishing it twice is harmless")

	infos := objects(t, js)
	require.Len(t, infos, 1)
	s, err := js.Stream(ctxT(t), bus.StreamName)
	require.NoError(t, err)
	m, err := s.GetMsg(ctxT(t), 2)
	require.NoError(t, err)
	require.Empty(t, m.Data)
	require.Equal(t, "nats-object:/k3sas-payloads/"+infos[0].Name, m.Header.Get("ce-dataref"))
	require.Equal(t, "sha256:"+infos[0].Name, m.Header.Get("ce-datadigest"))
	require.Equal(t, uint64(3), s.CachedInfo().State.LastSeq)
	payloads, err := js.Stream(ctxT(t), bus.PayloadStream)
	require.NoError(t, err)
	require.Equal(t, 2*s.CachedInfo().Config.MaxAge, payloads.CachedInfo().Config.MaxAge)

	var got record
	var calls atomic.Int32
	run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		if d.Event.ID() == "big" && calls.Add(1) < 3 {
			return errors.New("not yet")
		}
		got.add(d)
		return nil
	}})
	ledger := &payloadLedger{}
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, ledger) })
	eventually(t, func() bool { return got.len() == 3 && ledger.len() == 3 }, "all are delivered")
	require.Equal(t, []string{"before", "big", "after"}, got.ids(), "in order")
	sameEvent(t, e, got.ds[1].Event)
	require.Equal(t, []string{"before", "big", "after"}, ledger.ids())
	sameEvent(t, e, ledger.ds[1].Event)

	last, ok, err := b.Last(ctxT(t), bus.Key{Cluster: "home", Name: "n1"}, events.TypeNodeObserved)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "after", last.Event.ID())
	r, err := bus.OpenReader(ctxT(t), bus.Options{Server: server, Times: bustest.Times()})
	require.NoError(t, err)
	defer r.Close()
	for d, err := range r.Read(ctxT(t), bus.ReadOptions{FromSequence: 2, UntilSequence: 2}) {
		require.NoError(t, err)
		sameEvent(t, e, d.Event)
	}
	require.Empty(t, deadLetters(t, b))

	// Another program reads it with nothing but a NATS client and zstd.
	store, err := js.ObjectStore(ctxT(t), "k3sas-payloads")
	require.NoError(t, err)
	raw, err := store.GetBytes(ctxT(t), infos[0].Name)
	require.NoError(t, err)
	data, err := bus.Decompress(raw)
	require.NoError(t, err)
	require.True(t, string(data) == string(e.Data()))
}

// payloadLedger is a BatchHandler that keeps what it is given.
type payloadLedger struct{ record }

func (*payloadLedger) Name() string { return events.HandlerAuditing }
func (l *payloadLedger) HandleBatch(_ context.Context, ds []bus.Delivery) error {
	for _, d := range ds {
		l.add(d)
	}
	return nil
}

func TestDataBeyondEveryLimitIsRefusedByName(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	err := b.Publish(ctxT(t), odd("endless", "/x", "n1", "v", make([]byte, 64<<20+1)))
	require.ErrorIs(t, err, bus.ErrTooLarge)
	require.ErrorContains(t, err, "event endless (dev.k3s-autoscaler.node.observed.v1)")
	require.ErrorContains(t, err, "its data has 67108865 bytes, at most 67108864")
	e := odd("taken", "/x", "n1", "v", []byte(noise(1, 2<<20)))
	e.SetExtension(events.ExtDataRef, "https://example.org/somewhere")
	err = b.Publish(ctxT(t), e)
	require.ErrorIs(t, err, bus.ErrTooLarge)
	require.ErrorContains(t, err, "needs the extension dataref")
	err = b.Publish(ctxT(t), odd("wide", "/x", "n1", noise(1, 1<<20), []byte(`{}`)))
	require.ErrorIs(t, err, bus.ErrTooLarge)
	require.ErrorContains(t, err, "its attributes have")
}

// spoiled publishes an event whose data is stored apart, after change of its
// message or its object.
type spoiled struct {
	b  *bus.Bus
	js jetstream.JetStream
}

func newSpoiled(t *testing.T) spoiled {
	server := bustest.Server(t)
	return spoiled{bustest.Open(t, server), admin(t, server)}
}

// message is the stored form of an event whose data is stored apart; its object
// exists.
func (s spoiled) message(t *testing.T, node string) *nats.Msg {
	t.Helper()
	require.NoError(t, s.b.Publish(ctxT(t), large(t, "source", "source-of-"+node, 2<<20)))
	st, err := s.js.Stream(ctxT(t), bus.StreamName)
	require.NoError(t, err)
	raw, err := st.GetMsg(ctxT(t), st.CachedInfo().State.LastSeq)
	require.NoError(t, err)
	m := &nats.Msg{Subject: "k3sas.home.node." + node + ".node.observed", Header: raw.Header}
	m.Header.Set("Nats-Msg-Id", node)
	m.Header.Set("ce-id", "of-"+node)
	m.Header.Set("ce-partitionkey", "home/"+node)
	return m
}

func TestDataThatIsGoneOrIsNotWhatWasPublishedBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	s := newSpoiled(t)
	other := strings.Repeat("0", 64)
	for node, change := range map[string]func(*nats.Msg){
		"absent": func(m *nats.Msg) {
			m.Header.Set("ce-dataref", "nats-object:/k3sas-payloads/"+other)
			m.Header.Set("ce-datadigest", "sha256:"+other)
		},
		"exchanged": func(m *nats.Msg) { m.Header.Set("ce-datadigest", "sha256:"+other) },
		"damaged": func(m *nats.Msg) {
			store, err := s.js.ObjectStore(ctxT(t), "k3sas-payloads")
			require.NoError(t, err)
			name := strings.TrimPrefix(m.Header.Get("ce-dataref"), "nats-object:/k3sas-payloads/")
			info, err := store.GetInfo(ctxT(t), name)
			require.NoError(t, err)
			info.NUID, info.Name, info.Size = "x", "copy", 100
			raw, err := json.Marshal(info)
			require.NoError(t, err)
			_, err = s.js.Publish(ctxT(t), "$O.k3sas-payloads.C.x", make([]byte, info.Size))
			require.NoError(t, err)
			_, err = s.js.Publish(ctxT(t), "$O.k3sas-payloads.M.Y29weQ==", raw)
			require.NoError(t, err)
			m.Header.Set("ce-dataref", "nats-object:/k3sas-payloads/copy")
		},
	} {
		m := s.message(t, node)
		change(m)
		_, err := s.js.PublishMsg(ctxT(t), m)
		require.NoError(t, err)
	}
	var got record
	run(t, s.b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }})
	ledger := &payloadLedger{}
	background(t, func(ctx context.Context) error { return s.b.RunBatch(ctx, ledger) })
	eventually(t, func() bool { return len(deadLetters(t, s.b)) == 6 }, "each is set aside by both")
	for _, dl := range deadLetters(t, s.b) {
		want := map[string]string{
			"absent":    "nats-object:/k3sas-payloads/" + other + ") is gone",
			"exchanged": "the event says sha256:" + other,
			"damaged":   "is stored with the digest SHA-256=",
		}[dl.Key.Name]
		require.Contains(t, dl.Reason, want, dl.Handler)
		require.Equal(t, "of-"+dl.Key.Name, dl.Event.ID())
		require.Equal(t, dl.Handler == events.HandlerProvisioning, dl.Parked)
	}
	eventually(t, func() bool { n, err := s.b.Pending(ctxT(t), events.HandlerProvisioning); return err == nil && n == 0 }, "none comes again")
	eventually(t, func() bool { return ledger.len() == 12 }, "everything stands in the ledger")
	for _, d := range ledger.ds {
		if strings.HasPrefix(d.Event.ID(), "of-") {
			require.Fail(t, "an event without its data was recorded", d.Event.ID())
		}
	}
	require.Len(t, got.ids(), 3, "the sources")

	// A redrive says why it can't be: what is gone stays gone.
	require.NoError(t, s.b.Publish(ctxT(t), payloadRedrive(t, "absent")))
	eventually(t, func() bool {
		for d, err := range s.b.Read(ctxT(t), bus.ReadOptions{Node: "absent", Types: []string{events.TypeDeadletterRedriven}}) {
			require.NoError(t, err)
			p, err := events.Decode[events.DeadletterRedriven](d.Event)
			require.NoError(t, err)
			return len(p.Left) == 1 && strings.Contains(p.Left[0].Note, "is gone")
		}
		return false
	}, "the redrive is over")
}

func payloadRedrive(t *testing.T, node string) events.Event {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Node: node, Publisher: "api", ID: "redrive-" + node, Time: start},
		events.DeadletterRedriveRequested{Handler: events.HandlerProvisioning, DeadLetters: []string{"any"}, Actor: "somebody", Reason: "a test"})
	require.NoError(t, err)
	return e
}

func TestDataThatCantBeReachedIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newSpoiled(t)
	e := large(t, "n1", "big", 2<<20)
	require.NoError(t, s.b.Publish(ctxT(t), e))
	// The bucket goes away and comes back with what it held.
	st, err := s.js.Stream(ctxT(t), bus.PayloadStream)
	require.NoError(t, err)
	cfg := st.CachedInfo().Config
	var kept []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= st.CachedInfo().State.LastSeq; seq++ {
		m, err := st.GetMsg(ctxT(t), seq)
		require.NoError(t, err)
		kept = append(kept, m)
	}
	require.NoError(t, s.js.DeleteStream(ctxT(t), bus.PayloadStream))
	_, _, err = s.b.Last(ctxT(t), bus.Key{Cluster: "home", Name: "n1"}, events.TypeNodeObserved)
	require.ErrorIs(t, err, bus.ErrUnavailable)
	for _, err := range s.b.Read(ctxT(t), bus.ReadOptions{}) {
		require.ErrorIs(t, err, bus.ErrUnavailable)
	}
	require.ErrorIs(t, s.b.Publish(ctxT(t), large(t, "n2", "later", 3<<20)), bus.ErrUnavailable)

	var got record
	ledger := &payloadLedger{}
	read := func() (stop func()) {
		ends := []func(){
			run(t, s.b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error { got.add(d); return nil }}),
			background(t, func(ctx context.Context) error { return s.b.RunBatch(ctx, ledger) }),
		}
		return func() {
			for _, end := range ends {
				end()
			}
		}
	}
	stop := read()
	c, err := s.js.Consumer(ctxT(t), bus.StreamName, fmt.Sprintf("provisioning-%d", mustPartition(t, "home", "n1")))
	for err != nil {
		c, err = s.js.Consumer(ctxT(t), bus.StreamName, fmt.Sprintf("provisioning-%d", mustPartition(t, "home", "n1")))
	}
	eventually(t, func() bool { i, err := c.Info(ctxT(t)); return err == nil && i.Delivered.Consumer > 20 }, "it is tried more often than a handler may fail")
	require.Zero(t, got.len())
	require.Empty(t, deadLetters(t, s.b), "nobody gave it up")

	// Nobody looks while it is filled: what a bucket does not hold is gone.
	stop()
	_, err = s.js.CreateStream(ctxT(t), cfg)
	require.NoError(t, err)
	for _, m := range kept {
		_, err := s.js.Publish(ctxT(t), m.Subject, m.Data)
		require.NoError(t, err)
	}
	read()
	eventually(t, func() bool { return got.len() == 1 && ledger.len() >= 1 }, "it is delivered")
	sameEvent(t, e, got.ds[0].Event)
	require.Equal(t, 1, got.ds[0].Attempt, "the absence was no failure of the handler")
	sameEvent(t, e, ledger.ds[0].Event)
	require.Empty(t, deadLetters(t, s.b))
}

func TestARedrivenEventHasItsDataAgain(t *testing.T) {
	t.Parallel()
	s := newSpoiled(t)
	e := large(t, "n1", "big", 3<<20)
	var shut atomic.Bool
	shut.Store(true)
	var got record
	run(t, s.b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
		if shut.Load() {
			return bus.Terminal(errors.New("shut"))
		}
		got.add(d)
		return nil
	}})
	require.NoError(t, s.b.Publish(ctxT(t), e))
	eventually(t, func() bool { return len(deadLetters(t, s.b)) == 1 }, "it is set aside")
	dl := deadLetters(t, s.b)[0]
	require.True(t, dl.Bodyless)
	require.Empty(t, dl.Data)
	shut.Store(false)
	require.NoError(t, s.b.Publish(ctxT(t), payloadRedrive(t, "n1")))
	eventually(t, func() bool { return got.len() == 1 }, "it is delivered again")
	require.Equal(t, e.ID(), got.ds[0].Event.ID())
	require.True(t, string(e.Data()) == string(got.ds[0].Event.Data()))
	require.Empty(t, events.Extension(got.ds[0].Event, events.ExtDataRef))
	require.Len(t, objects(t, s.js), 1, "the copy refers to the same data")
}

// huge emits one event that has no room in a message, and two that have no room
// in the record together.
func huge(turn *bus.Turn[counter]) error {
	turn.State.N++
	for i, n := range []int{1_200_000, 900_000, 3 << 20, 100} {
		if err := turn.Emit(events.NodeObserved{Node: turn.Key.Name, What: events.ObservedReady, Reason: noise(uint64(i), n), At: turn.Now}); err != nil {
			return err
		}
	}
	return nil
}

func (s *stateBundle) requireHuge(t *testing.T) {
	t.Helper()
	var sizes []int
	for _, r := range s.emitted(t) {
		sizes = append(sizes, len(r))
		require.True(t, r == noise(uint64(len(sizes)-1), len(r)))
	}
	require.Equal(t, []int{1_200_000, 900_000, 3 << 20, 100}, sizes)
}

func TestALargeOutboxIsNotLostWhereverItsProcessIsKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{
		"payload/chunk/after", "payload/info/after", "provisioning/write/before", "provisioning/write/after", "provisioning/publish/after",
	} {
		t.Run("message path, "+step, func(t *testing.T) {
			t.Parallel()
			s := newState(t)
			d := s.delivery(t, 1)
			s.k.dying(t, step, func() error { return s.st.Apply(ctxT(t), d, huge) })
			require.NoError(t, s.st.Apply(ctxT(t), d, huge))
			require.Equal(t, 1, s.get(t).N)
			s.requireHuge(t)
		})
	}
	for _, step := range []string{"payload/info/after", "provisioning/op/write/after"} {
		t.Run("work path, "+step, func(t *testing.T) {
			t.Parallel()
			s := newState(t)
			s.k.dying(t, step, func() error { return s.st.Amend(ctxT(t), s.key, "op", huge) })
			// Whoever touches the record next finds what is owed.
			require.NoError(t, s.st.Amend(ctxT(t), s.key, "another", increment))
			if step == "payload/info/after" {
				require.NoError(t, s.st.Amend(ctxT(t), s.key, "op", huge), "nothing was written")
			}
			s.requireHuge(t)
		})
	}
}
