package bus_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// ledger is an audit store: it takes only what follows its last sequence.
type ledger struct {
	mu    sync.Mutex
	ids   []string
	last  uint64
	sizes []int
	fail  func(call int) error
	calls int
}

func (l *ledger) Name() string { return events.HandlerAuditing }

func (l *ledger) HandleBatch(_ context.Context, ds []bus.Delivery) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if l.fail != nil {
		if err := l.fail(l.calls); err != nil {
			return err
		}
	}
	for _, d := range ds {
		if d.Sequence <= l.last {
			continue
		}
		if d.Sequence != l.last+1 {
			return errors.New("does not follow: " + num(int(d.Sequence)))
		}
		l.last = d.Sequence
		l.ids = append(l.ids, d.Event.ID())
	}
	l.sizes = append(l.sizes, len(ds))
	return nil
}

func (l *ledger) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

func TestBatchesHoldEverythingInStreamOrder(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	ctx := ctxT(t)
	var want []string
	for i := range 600 {
		id := "e" + num(i)
		want = append(want, id)
		require.NoError(t, b.Publish(ctx, observed(t, "home", "n"+num(i%7), id)))
	}
	l := &ledger{fail: func(call int) error {
		switch call {
		case 2:
			return errors.New("disk full")
		case 3:
			panic("oops")
		case 4:
			return bus.RetryAfter(errors.New("locked"), time.Millisecond)
		}
		return nil
	}}
	stop := background(t, func(ctx context.Context) error { return b.RunBatch(ctx, l) })
	eventually(t, func() bool { return l.length() == 600 }, "all arrive")
	require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "late")))
	eventually(t, func() bool { return l.length() == 601 }, "and the late one")
	stop()
	require.Equal(t, append(want, "late"), l.ids)
	require.Greater(t, slices.Max(l.sizes), 10, "many at once")

	again := &ledger{last: 601}
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, again) })
	require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "after")))
	eventually(t, func() bool { return again.length() == 1 }, "it goes on where it was")
	require.Equal(t, []string{"after"}, again.ids)
}

func TestASecondReaderOfBatchesTakesOverWithoutAGap(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	first, second := bustest.Open(t, server), bustest.Open(t, server)
	ctx := ctxT(t)
	shared := &ledger{}
	stop := background(t, func(ctx context.Context) error { return first.RunBatch(ctx, shared) })
	background(t, func(ctx context.Context) error { return second.RunBatch(ctx, shared) })
	for i := range 300 {
		require.NoError(t, first.Publish(ctx, observed(t, "home", "n"+num(i%7), "e"+num(i))))
		if i == 150 {
			stop()
		}
	}
	eventually(t, func() bool { return shared.length() == 300 }, "the second one finishes")
	shared.mu.Lock()
	defer shared.mu.Unlock()
	for i, id := range shared.ids {
		require.Equal(t, "e"+num(i), id)
	}
}

func TestGarbageReachesABatchAsTheRecordOfItsDeadLetter(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	for _, subject := range []string{"k3sas.home.node.n1.node.observed", "k3sas.UPPER.node.n1.node.observed"} {
		_, err = nc.RequestMsg(&nats.Msg{Subject: subject, Data: []byte("garbage")}, 5*time.Second)
		require.NoError(t, err)
	}
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "good")))
	l := &ledger{}
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, l) })
	eventually(t, func() bool { return l.length() >= 4 }, "no sequence is missing")
	dls := deadLetters(t, b)
	require.Len(t, dls, 2)
	rec := recorded(t, b)
	require.Equal(t, "message 1", rec[0].EventID)
	require.Equal(t, events.HandlerAuditing, rec[0].Handler)
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Equal(t, "good", l.ids[2])
	require.Contains(t, l.ids[3:], l.ids[0], "the same event follows on the record")
}

func TestEventsThatAnotherProcessHoldsAreWaitedFor(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	ctx := ctxT(t)
	for i := range 3 {
		require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "e"+num(i))))
	}
	first := &ledger{}
	stop := background(t, func(ctx context.Context) error { return b.RunBatch(ctx, first) })
	eventually(t, func() bool { return first.length() == 3 }, "the consumer exists")
	stop()
	for i := range 6 {
		require.NoError(t, b.Publish(ctx, observed(t, "home", "n1", "f"+num(i))))
	}
	// Another process takes three and dies.
	nc, err := server.Connect()
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	c, err := js.Consumer(ctx, bus.StreamName, events.HandlerAuditing)
	require.NoError(t, err)
	eventually(t, func() bool {
		batch, err := c.Fetch(3, jetstream.FetchPriorityGroup("pull"), jetstream.FetchMaxWait(time.Second))
		require.NoError(t, err)
		n := 0
		for range batch.Messages() {
			n++
		}
		return n == 3
	}, "it has three")
	nc.Close()
	second := &ledger{last: 3}
	background(t, func(ctx context.Context) error { return b.RunBatch(ctx, second) })
	eventually(t, func() bool { return second.length() == 6 }, "all arrive in the end")
	require.Equal(t, []string{"f0", "f1", "f2", "f3", "f4", "f5"}, second.ids)
	require.Equal(t, uint64(9), second.last)
}
