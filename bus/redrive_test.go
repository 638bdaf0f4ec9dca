package bus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const prov = events.HandlerProvisioning

// ask publishes a request about dead letters.
func ask(t testing.TB, b *bus.Bus, node, id string, p events.Payload) {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Node: node, Publisher: "api", ID: id, Time: start, CorrelationID: id}, p)
	require.NoError(t, err)
	require.NoError(t, b.Publish(ctxT(t), e))
}

func redrive(t testing.TB, b *bus.Bus, node, id string, letters ...string) {
	t.Helper()
	ask(t, b, node, id, events.DeadletterRedriveRequested{Handler: prov, DeadLetters: letters, Actor: "ann", Reason: "fixed"})
}

func drop(t testing.TB, b *bus.Bus, node, id string, letters ...string) {
	t.Helper()
	ask(t, b, node, id, events.DeadletterDropRequested{Handler: prov, DeadLetters: letters, Actor: "ann", Reason: "no use"})
}

// said returns the payloads of a type that the stream holds.
func said[T events.Payload](t testing.TB, b *bus.Bus) []T {
	t.Helper()
	var zero T
	var out []T
	for d, err := range b.Read(ctxT(t), bus.ReadOptions{Types: []string{zero.EventType()}}) {
		require.NoError(t, err)
		p, err := events.Decode[T](d.Event)
		require.NoError(t, err)
		out = append(out, p)
	}
	return out
}

func parkedKeys(t testing.TB, b *bus.Bus) []bus.ParkedKey {
	t.Helper()
	ks, err := b.Parked(ctxT(t), prov)
	require.NoError(t, err)
	return ks
}

// gate is a handler that refuses the ids that are shut.
type gate struct {
	mu   sync.Mutex
	shut map[string]bool
	got  record
}

func newGate(shut ...string) *gate {
	g := &gate{shut: map[string]bool{}}
	for _, id := range shut {
		g.shut[id] = true
	}
	return g
}

func (g *gate) open(ids ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range ids {
		delete(g.shut, id)
	}
}

func (g *gate) Name() string { return prov }

func (g *gate) Handle(_ context.Context, d bus.Delivery) error {
	g.mu.Lock()
	shut := g.shut[d.Event.ID()]
	g.mu.Unlock()
	if shut {
		return bus.Terminal(errors.New("shut: " + d.Event.ID()))
	}
	g.got.add(d)
	return nil
}

func observe(t testing.TB, b *bus.Bus, node string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", node, id)))
	}
}

func TestARedriveHandlesWhatWasSetAsideInItsOrderAndUnparksTheNode(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := bustest.New(t, func(o *bus.Options) { o.Registerer = reg })
	g := newGate("e1")
	run(t, b, g)
	observe(t, b, "n1", "e1", "e2", "e3")
	eventually(t, func() bool { return len(recorded(t, b)) == 3 }, "all three are set aside")
	gauges := func(waiting, parked string) string {
		return "# HELP autoscaler_bus_dead_letters_waiting Dead letters of a handler that wait to be redriven or dropped.\n# TYPE autoscaler_bus_dead_letters_waiting gauge\n" +
			`autoscaler_bus_dead_letters_waiting{handler="provisioning"} ` + waiting + "\n" +
			"# HELP autoscaler_bus_parked_keys Nodes on which a handler does not act until their dead letters are redriven or dropped.\n# TYPE autoscaler_bus_parked_keys gauge\n" +
			`autoscaler_bus_parked_keys{handler="provisioning"} ` + parked + "\n"
	}
	measured := func(waiting, parked string) func() bool {
		return func() bool {
			return testutil.GatherAndCompare(reg, strings.NewReader(gauges(waiting, parked)), "autoscaler_bus_dead_letters_waiting", "autoscaler_bus_parked_keys") == nil
		}
	}
	eventually(t, measured("3", "1"), "what waits is measured")
	g.open("e1")
	redrive(t, b, "n1", "r1")
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 0 }, "the node is unparked")
	observe(t, b, "n1", "e4")
	eventually(t, func() bool { return g.got.len() == 4 }, "all are handled")
	require.Equal(t, []string{"e1", "e2", "e3", "e4"}, g.got.ids())
	require.Empty(t, deadLetters(t, b))
	require.Empty(t, said[events.DeadletterRequestRefused](t, b))
	done := said[events.DeadletterRedriven](t, b)
	require.Len(t, done, 1)
	require.Equal(t, events.DeadletterRedriven{Handler: prov, RequestID: "r1", Actor: "ann", Reason: "fixed", Round: done[0].Round, Count: 3}, done[0])
	eventually(t, measured("0", "0"), "nothing waits any more")

	d := g.got.ds[0]
	require.Equal(t, events.Redrive{Handler: prov, Round: done[0].Round, Number: 1, Origin: 1}, d.Redrive, "the copy says where it belongs")
	require.Greater(t, d.Sequence, done[0].Round, "it has a place of its own in the stream")
	require.Equal(t, "life-n1", events.Extension(d.Event, events.ExtCorrelationID))
	require.Zero(t, g.got.ds[3].Redrive)
}

func TestWhatIsPublishedDuringARedriveStaysBehindIt(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	g := newGate("e0")
	run(t, b, g)
	var want []string
	for i := range 30 {
		want = append(want, "e"+num(i))
	}
	observe(t, b, "n1", want...)
	eventually(t, func() bool { return len(recorded(t, b)) == 30 }, "all are set aside")
	g.open("e0")
	stop := make(chan struct{})
	var more atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 30; ; i++ {
			if b.Publish(ctxT(t), observed(t, "home", "n1", "e"+num(i))) != nil {
				return
			}
			more.Store(int32(i + 1))
			// A node has a few events a minute. A key that gets them faster than they
			// can be copied would stay parked, as on a machine with the race detector.
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(10*max(i-20, 1)) * time.Millisecond): // ever slower, so that it ends on any machine
			}
		}
	})
	redrive(t, b, "n1", "r1")
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 0 }, "it ends, though events keep coming")
	unparked := more.Load()
	eventually(t, func() bool { return more.Load() > unparked+1 }, "some come afterwards, too")
	close(stop)
	wg.Wait()
	n := int(more.Load())
	eventually(t, func() bool { return g.got.len() == n }, "all are handled")
	for i := 30; i < n; i++ {
		want = append(want, "e"+num(i))
	}
	require.Equal(t, want, g.got.ids(), "in order, each once")
	rounds := said[events.DeadletterRedriven](t, b)
	require.GreaterOrEqual(t, rounds[0].Count, 30)
	t.Logf("%d events, %d rounds", n, len(rounds))
}

func TestACopyThatFailsAgainParksTheNodeAndTheOrderHolds(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	g := newGate("e1", "e2")
	observe(t, b, "n1", "e1", "e2", "e3")
	run(t, b, g)
	eventually(t, func() bool { return len(recorded(t, b)) == 3 }, "all three are set aside")
	g.open("e1")
	// What comes between the request and the copies is set aside before e2 is, again.
	redrive(t, b, "n1", "r1")
	observe(t, b, "n1", "e4")
	eventually(t, func() bool {
		ks := parkedKeys(t, b)
		return len(ks) == 1 && !ks[0].Redriving && ks[0].Reason == "shut: e2" && len(deadLetters(t, b)) == 3
	}, "the round is broken and over")
	require.Equal(t, []string{"e1"}, g.got.ids())
	ids := func() (out []string) {
		for _, dl := range deadLetters(t, b) {
			out = append(out, dl.Event.ID())
		}
		return out
	}
	require.Equal(t, []string{"e2", "e3", "e4"}, ids(), "the order of their events, whenever they were set aside")
	require.Equal(t, parkedKeys(t, b)[0].DeadLetter, deadLetters(t, b)[0].ID)
	require.Equal(t, uint64(2), deadLetters(t, b)[0].Origin)
	g.open("e2")
	redrive(t, b, "n1", "r2")
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 0 }, "the node is unparked")
	require.Equal(t, []string{"e1", "e2", "e3", "e4"}, g.got.ids())
	require.Empty(t, deadLetters(t, b))
}

func TestTwoRequestsAtOnceRedriveOnce(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	g := newGate("e1")
	stop := run(t, b, g)
	observe(t, b, "n1", "e1", "e2")
	eventually(t, func() bool { return len(recorded(t, b)) == 2 }, "both are set aside")
	stop()
	g.open("e1")
	redrive(t, b, "n1", "r1")
	redrive(t, b, "n1", "r2")
	run(t, b, g)
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 0 }, "the node is unparked")
	require.Equal(t, []string{"e1", "e2"}, g.got.ids())
	no := said[events.DeadletterRequestRefused](t, b)
	require.Len(t, no, 1)
	require.Equal(t, "r2", no[0].RequestID)
	require.Contains(t, no[0].Message, "under way (request r1 of ann)")

	redrive(t, b, "n1", "r3")
	eventually(t, func() bool { return len(said[events.DeadletterRequestRefused](t, b)) == 2 }, "there is nothing left to redrive")
	require.Contains(t, said[events.DeadletterRequestRefused](t, b)[1].Message, "no dead letters on home/n1")
}

func TestASecondRequestBehindABrokenRoundKeepsTheOrder(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	var g *gate
	failed := 0
	h := handler{prov, func(ctx context.Context, d bus.Delivery) error {
		if d.Event.ID() == "e1" {
			// The first copy fails, with the next request right behind it.
			if failed++; failed == 2 {
				redrive(t, b, "n1", "r2")
			}
			if failed <= 2 {
				return bus.Terminal(errors.New("not yet"))
			}
		}
		return g.Handle(ctx, d)
	}}
	g = newGate()
	run(t, b, h)
	observe(t, b, "n1", "e1", "e2", "e3")
	eventually(t, func() bool { return len(recorded(t, b)) == 3 }, "all are set aside")
	redrive(t, b, "n1", "r1")
	eventually(t, func() bool { return g.got.len() == 3 && len(parkedKeys(t, b)) == 0 }, "all are handled")
	require.Equal(t, []string{"e1", "e2", "e3"}, g.got.ids())
	require.Empty(t, deadLetters(t, b))
}

func TestOtherHandlersDoNotHandleACopy(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	g := newGate("e1")
	run(t, b, g)
	other, err := bus.NewSubscriber(b, bus.SubscriberOptions{Handler: "watcher", Suffixes: []string{"node.observed"}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	msgs, err := other.Subscribe(ctx, bus.AllClusters)
	require.NoError(t, err)
	var seen record
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range msgs {
			d, _ := bus.DeliveryFrom(m.Context())
			seen.add(d)
			m.Ack()
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	var batch batchRecord
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, &batch) })

	observe(t, b, "n1", "e1")
	eventually(t, func() bool { return len(recorded(t, b)) == 1 && seen.len() == 1 }, "one handler set it aside, the other handled it")
	g.open("e1")
	redrive(t, b, "n1", "r1")
	observe(t, b, "n1", "e2")
	eventually(t, func() bool { return slices.Equal(g.got.ids(), []string{"e1", "e2"}) && seen.len() == 2 }, "the copy is handled where it failed")
	require.Equal(t, []string{"e1", "e2"}, seen.ids(), "and nowhere else")
	eventually(t, func() bool {
		n := 0
		for _, d := range batch.all() {
			if d.Event.ID() == "e1" {
				n++
			}
		}
		return n == 2
	}, "the record of everything holds both")
}

// batchRecord collects what a batch handler receives.
type batchRecord struct{ got record }

func (r *batchRecord) Name() string { return events.HandlerAuditing }
func (r *batchRecord) HandleBatch(_ context.Context, ds []bus.Delivery) error {
	for _, d := range ds {
		r.got.add(d)
	}
	return nil
}
func (r *batchRecord) all() []bus.Delivery {
	r.got.mu.Lock()
	defer r.got.mu.Unlock()
	return slices.Clone(r.got.ds)
}

func TestADropDeletesAndUnparksWhenNothingIsLeft(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	g := newGate("e1")
	run(t, b, g)
	observe(t, b, "n1", "e1", "e2")
	eventually(t, func() bool { return len(recorded(t, b)) == 2 }, "both are set aside")
	dls := deadLetters(t, b)
	drop(t, b, "n1", "d1", dls[0].ID, "unknown")
	eventually(t, func() bool { return len(said[events.DeadletterDropped](t, b)) == 1 && len(deadLetters(t, b)) == 1 }, "one is gone")
	out := said[events.DeadletterDropped](t, b)[0]
	require.Equal(t, 1, out.Remaining)
	require.False(t, out.Unparked)
	require.Equal(t, "e1", out.Letters[0].EventID)
	require.Contains(t, out.Letters[1].Note, "no such dead letter on home/n1")
	eventually(t, func() bool {
		ks := parkedKeys(t, b)
		return len(ks) == 1 && ks[0].DeadLetter == dls[1].ID
	}, "the marker names one that is there")
	drop(t, b, "n1", "d2", dls[1].ID)
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 0 }, "the node is unparked")
	observe(t, b, "n1", "e3")
	eventually(t, func() bool { return g.got.len() == 1 }, "it goes on")
	require.Equal(t, []string{"e3"}, g.got.ids())
	drop(t, b, "n1", "d3", dls[1].ID)
	eventually(t, func() bool { return len(said[events.DeadletterRequestRefused](t, b)) == 1 }, "it is gone")
	require.Equal(t, "d3", said[events.DeadletterRequestRefused](t, b)[0].RequestID)
}

func TestDeadLettersOfAClusterAreRedrivenOneByOne(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	var got record
	var open atomic.Bool
	run(t, b, handler{events.HandlerDecision, func(_ context.Context, d bus.Delivery) error {
		if !open.Load() && strings.HasPrefix(d.Event.ID(), "bad") {
			return bus.Terminal(errors.New("no"))
		}
		got.add(d)
		return nil
	}})
	require.NoError(t, b.Publish(ctxT(t), paused(t, "bad1"), paused(t, "bad2"), paused(t, "good")))
	snap, err := events.New(events.Meta{Cluster: "home", Publisher: "collector", ID: "bad-snapshot", Time: start}, events.SnapshotCaptured{Epoch: 1, Digest: "d", CapturedAt: start})
	require.NoError(t, err)
	require.NoError(t, b.Publish(ctxT(t), snap))
	eventually(t, func() bool { return len(recorded(t, b)) == 3 && got.len() == 1 }, "three are set aside")
	dls := deadLetters(t, b)
	open.Store(true)
	ask(t, b, "", "r1", events.DeadletterRedriveRequested{Handler: events.HandlerDecision, DeadLetters: []string{dls[1].ID, dls[2].ID, "unknown"}, Actor: "ann", Reason: "fixed"})
	eventually(t, func() bool { return len(said[events.DeadletterRedriven](t, b)) == 1 && got.len() == 2 }, "one is handled")
	require.Equal(t, []string{"good", "bad2"}, got.ids())
	done := said[events.DeadletterRedriven](t, b)[0]
	require.Equal(t, 1, done.Count)
	require.Len(t, done.Left, 2)
	require.Contains(t, done.Left[0].Note, "later snapshots have replaced it")
	require.Equal(t, "unknown", done.Left[1].DeadLetter)
	require.Len(t, deadLetters(t, b), 2)
	ask(t, b, "", "r2", events.DeadletterRedriveRequested{Handler: events.HandlerDecision, DeadLetters: []string{dls[2].ID}, Actor: "ann", Reason: "fixed"})
	eventually(t, func() bool { return len(said[events.DeadletterRequestRefused](t, b)) == 1 }, "a snapshot is not redriven")
}

func TestWhatIsNoEventCanOnlyBeDropped(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	for _, subject := range []string{"k3sas.home.node.n1.node.observed", "k3sas.HOME.node.n1.node.observed"} {
		_, err := nc.RequestMsg(&nats.Msg{Subject: subject, Data: []byte("garbage")}, 5*time.Second)
		require.NoError(t, err)
	}
	g := newGate()
	run(t, b, g)
	var batch batchRecord
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, &batch) })
	eventually(t, func() bool { return len(deadLetters(t, b)) == 4 && len(recorded(t, b)) == 4 }, "both handlers set both aside")
	redrive(t, b, "n1", "r1")
	eventually(t, func() bool { return len(said[events.DeadletterRequestRefused](t, b)) == 1 }, "it is refused")
	ask(t, b, "n1", "r2", events.DeadletterRedriveRequested{Handler: events.HandlerAuditing, Actor: "ann", Reason: "fixed"})
	eventually(t, func() bool { return len(said[events.DeadletterRequestRefused](t, b)) == 2 }, "it is refused")
	require.Contains(t, said[events.DeadletterRequestRefused](t, b)[1].Message, "can only be dropped")
	for i, dl := range deadLetters(t, b) {
		require.Contains(t, []bus.Key{{Cluster: "home", Name: "n1"}, {Cluster: bus.UnknownCluster, Name: events.ClusterKey}}, dl.Key)
		m := events.Meta{Cluster: dl.Key.Cluster, Publisher: "api", ID: "d" + num(i), Time: start}
		if !dl.Key.IsCluster() {
			m.Node = dl.Key.Name
		}
		e, err := events.New(m, events.DeadletterDropRequested{Handler: dl.Handler, DeadLetters: []string{dl.ID}, Actor: "ann", Reason: "garbage"})
		require.NoError(t, err)
		require.NoError(t, b.Publish(ctxT(t), e))
	}
	eventually(t, func() bool { return len(deadLetters(t, b)) == 0 }, "all are dropped")
	require.Len(t, said[events.DeadletterDropped](t, b), 4)
	require.Zero(t, g.got.len())
}

func TestALetterThatCannotBeCopiedStopsTheOnesBehindIt(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	g := newGate("e1")
	run(t, b, g)
	observe(t, b, "n1", "e1")
	bad, err := bus.EncodeEvent(observed(t, "home", "n1", "e2"))
	require.NoError(t, err)
	bad.Data = []byte(`{"node":7}`)
	_, err = nc.RequestMsg(bad, 5*time.Second)
	require.NoError(t, err)
	observe(t, b, "n1", "e3")
	eventually(t, func() bool { return len(recorded(t, b)) == 3 }, "all are set aside")
	g.open("e1")
	redrive(t, b, "n1", "r1")
	eventually(t, func() bool {
		ks := parkedKeys(t, b)
		return len(ks) == 1 && !ks[0].Redriving && strings.HasPrefix(ks[0].Reason, "it can't be redriven: ") && g.got.len() == 1
	}, "what stands before it is redriven")
	dls := deadLetters(t, b)
	require.Len(t, dls, 2)
	done := said[events.DeadletterRedriven](t, b)[0]
	require.Equal(t, 1, done.Count)
	require.Equal(t, "e2", done.Left[0].EventID)
	require.Equal(t, "it follows "+dls[0].ID, done.Left[1].Note)
	drop(t, b, "n1", "d1", dls[0].ID)
	redrive(t, b, "n1", "r2")
	eventually(t, func() bool { return g.got.len() == 2 && len(parkedKeys(t, b)) == 0 }, "without it the rest goes")
	require.Equal(t, []string{"e1", "e3"}, g.got.ids())
}
