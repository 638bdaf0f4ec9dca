package bus

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
	clocktest "k8s.io/utils/clock/testing"
)

// yes is a server that confirms every sign of life, as JetStream does: also one
// of a process whose message was given to another one meanwhile.
func yes(t *testing.T) (nc *nats.Conn, beats *atomic.Int64) {
	t.Helper()
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err = nats.Connect("", nats.InProcessServer(s))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	beats = &atomic.Int64{}
	_, err = nc.Subscribe("reply", func(m *nats.Msg) {
		beats.Add(1)
		_ = m.Respond(nil)
	})
	require.NoError(t, err)
	return nc, beats
}

// ownGoroutine is a fake clock that calls functions as a real one does.
type ownGoroutine struct{ *clocktest.FakeClock }

func (c ownGoroutine) AfterFunc(d time.Duration, fn func()) clock.Timer {
	return c.FakeClock.AfterFunc(d, func() { go fn() })
}

type replyTo struct{ jetstream.Msg }

func (replyTo) Reply() string { return "reply" }

// When a process wakes up all its timers have fired, and it must not ask for more
// time before it sees that its time is up: the server would grant it, and the
// acknowledgement would let the next message of the key overtake the one that
// another process handles now.
func TestAFrozenOwnerThatWakesUpDoesNotAskForMoreTime(t *testing.T) {
	t.Parallel()
	nc, beats := yes(t)
	for range 30 {
		clk := ownGoroutine{clocktest.NewFakeClock(time.Now())}
		o := Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Times: Times{AckWait: time.Minute}}
		l := &puller{Subscriber: &Subscriber{b: &Bus{opts: o, wire: clk, nc: nc}}}
		f := l.hold(t.Context(), replyTo{}, Delivery{}, clk.Now())
		before := beats.Load()
		clk.Step(20 * time.Second)
		// It beats once, and waits then for the next beat and for the end of its time.
		require.Eventually(t, func() bool { return beats.Load() == before+1 && clk.Waiters() == 2 }, time.Minute, time.Millisecond)
		require.True(t, f.owned())
		clk.Step(time.Hour)
		require.Eventually(t, func() bool { return f.ctx.Err() != nil }, time.Minute, time.Millisecond, "it still believes that it owns the message")
		require.ErrorIs(t, context.Cause(f.ctx), errFenced)
		require.False(t, f.owned())
		require.Equal(t, before+1, beats.Load(), "it asked for more time")
		f.drop()
	}
}

func TestAFrozenBatchReaderThatWakesUpDoesNotAskForMoreTime(t *testing.T) {
	t.Parallel()
	nc, beats := yes(t)
	clk := clocktest.NewFakeClock(time.Now())
	o := Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Times: Times{AckWait: time.Minute}}
	r := &batchRunner{b: &Bus{opts: o, wire: clk, nc: nc}, h: nobody{}, held: map[uint64]parcel{1: {msg: replyTo{}}}}
	held, lost := r.hold(t.Context())
	require.Eventually(t, func() bool { return clk.Waiters() == 1 }, time.Minute, time.Millisecond)
	clk.Step(20 * time.Second)
	require.Eventually(t, func() bool { return beats.Load() == 1 }, time.Minute, time.Millisecond)
	clk.Step(time.Hour)
	require.Eventually(t, func() bool { return held.Err() != nil || beats.Load() > 1 }, time.Minute, time.Millisecond)
	require.True(t, lost())
	require.EqualValues(t, 1, beats.Load(), "it asked for more time")
}
