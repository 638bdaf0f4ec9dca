package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	clocktest "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestPrioritiesSpreadOverProcesses(t *testing.T) {
	t.Parallel()
	wins := map[string]int{}
	for p := range 1600 {
		best, who := uint32(10), ""
		for _, pod := range []string{"autoscaler-0", "autoscaler-1", "autoscaler-2"} {
			if prio := mix32(pod, "provisioning", fmt.Sprint(p)) % 10; prio < best {
				best, who = prio, pod
			}
		}
		wins[who]++
	}
	for who, n := range wins {
		require.InDelta(t, 533, n, 200, "%s: %v", who, wins)
	}
}

func TestAFreezeMakesTheNextMessagesSuspicious(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(time.Now())
	l := newLiveness(clk, 10*time.Second)
	clk.Step(time.Second)
	require.False(t, l.suspicious())
	clk.Step(2 * time.Second)
	l.note()
	require.False(t, l.suspicious(), "a little late is no freeze")
	clk.Step(time.Minute)
	require.True(t, l.suspicious(), "frozen for a minute")
	for range 11 {
		clk.Step(time.Second)
		l.note()
	}
	require.False(t, l.suspicious(), "whatever waited is read by now")
	clk.Step(time.Minute)
	l.note() // the ticker may run first
	require.True(t, l.suspicious())
}

func TestElapsedTimeCountsASuspendedMachine(t *testing.T) {
	t.Parallel()
	from := time.Now()
	require.Equal(t, time.Hour, elapsed(from, from.Add(time.Hour)))
	// Round drops the monotonic reading, as if only the wall clock had gone on.
	require.Equal(t, time.Hour, elapsed(from, from.Round(0).Add(time.Hour)))
}

func TestSlotsEndPullsWhenTheLastOneIsTaken(t *testing.T) {
	t.Parallel()
	s := newSlots(2)
	full := 0
	stop := s.watch(func() { full++ })
	require.True(t, s.take())
	require.Zero(t, full)
	require.True(t, s.take())
	require.Equal(t, 1, full)
	require.True(t, s.full())
	require.False(t, s.take())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.wait(ctx) }()
	s.give()
	require.NoError(t, <-done)
	stop()
	require.True(t, s.take())
	require.Equal(t, 1, full)
	cancel()
	require.ErrorIs(t, s.wait(ctx), context.Canceled)
}

func TestBackoffGrowsToItsMaximum(t *testing.T) {
	t.Parallel()
	times := Times{}.withDefaults()
	for n, want := range map[int]time.Duration{0: 500 * time.Millisecond, 1: 500 * time.Millisecond, 2: time.Second, 5: 8 * time.Second, 8: 30 * time.Second, 1000: 30 * time.Second} {
		d := backoff(times, n)
		require.LessOrEqual(t, d, want)
		require.GreaterOrEqual(t, d, want*3/4)
	}
}

func TestTheRetentionThatAnEventHasUsed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	info := func(bytes uint64) *jetstream.StreamInfo {
		return &jetstream.StreamInfo{
			Config: jetstream.StreamConfig{MaxBytes: 1000, MaxAge: 10 * time.Hour},
			State:  jetstream.StreamState{Msgs: 100, Bytes: bytes, FirstSeq: 101, LastSeq: 200},
		}
	}
	for _, c := range []struct {
		name string
		info *jetstream.StreamInfo
		seq  uint64
		age  time.Duration
		want float64
	}{
		{"the first of a full stream", info(1000), 101, time.Hour, 1},
		{"the middle of a full stream", info(1000), 151, time.Hour, 0.5},
		{"the middle of a stream that is half full", info(500), 151, time.Hour, 0.25},
		{"the last of a full stream", info(1000), 200, 0, 0.01},
		{"an old one with much behind it", info(500), 151, 9 * time.Hour, 0.9},
		{"one that is overdue", info(500), 151, 11 * time.Hour, 1},
		{"one that came after the state was read", info(1000), 201, 0, 0},
		{"one that was discarded meanwhile", info(900), 99, 0, 0.9},
		{"a clock that is behind the server's", info(0), 151, -time.Hour, 0},
		{"a stream without limits", &jetstream.StreamInfo{State: info(1).State}, 101, time.Hour, 0},
	} {
		require.InDelta(t, c.want, retentionUsed(c.info, c.seq, now.Add(-c.age), now), 1e-9, c.name)
	}
}

func TestErrorsOfTheServerAreUnavailability(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		context.DeadlineExceeded, nats.ErrNoResponders, nats.ErrReconnectBufExceeded, jetstream.ErrStreamNotFound,
		&jetstream.APIError{Code: 503, ErrorCode: 10008}, fmt.Errorf("wrapped: %w", nats.ErrTimeout),
	} {
		require.ErrorIs(t, unavailable(err), ErrUnavailable, "%v", err)
		require.ErrorIs(t, unavailable(err), err)
	}
	for _, err := range []error{nil, context.Canceled, &jetstream.APIError{Code: 400}, errors.New("other")} {
		require.NotErrorIs(t, unavailable(err), ErrUnavailable)
	}
}

func TestCollectorsAreSharedAndAClashIsLogged(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	a, b := newMetrics(reg, log), newMetrics(reg, log)
	require.Same(t, a.errs, b.errs)
	require.Same(t, a.depth, b.depth)
	require.Same(t, a.errs, ErrorsTotal(reg, log))
	clash := Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "autoscaler_errors_total", Help: "other"}, []string{"component", "more"}))
	require.NotSame(t, a.errs, clash)
	clash.WithLabelValues("x", "y").Inc()
}

func TestErrorsOfHandlersSayWhatTheyAre(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	require.NoError(t, Terminal(nil))
	require.NoError(t, RetryAfter(nil, time.Second))
	term := fmt.Errorf("wrapped: %w", Terminal(boom))
	require.True(t, IsTerminal(term))
	require.ErrorIs(t, term, boom)
	require.Contains(t, explain(term).stack, "TestErrorsOfHandlersSayWhatTheyAre")
	later := fmt.Errorf("wrapped: %w", RetryAfter(boom, 3*time.Second))
	d, ok := RetryDelay(later)
	require.True(t, ok)
	require.Equal(t, 3*time.Second, d)
	require.ErrorIs(t, later, boom)
	require.Contains(t, later.Error(), "again in 3s")
	for _, err := range []error{term, later, ErrUnavailable, context.Canceled} {
		require.False(t, retriable(err))
	}
	require.True(t, retriable(boom))
	require.Equal(t, "ab …", clip("abcdef", 2))
	require.ErrorIs(t, &UndecodableError{Err: boom}, boom)
}

func TestSubjectsThatAreNotOursAreRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "p.1.k3sas.home.node.n1", "q.1.k3sas.home.node.n1.x.y", "p.x.k3sas.home.node.n1.x.y", "p.16.k3sas.home.node.n1.x.y",
		"p.1.k3sas.HOME.node.n1.x.y", "p.1.k3sas.home.node.-.x.y", "p.1.other.home.node.n1.x.y",
	} {
		_, _, err := parseStored(s)
		require.Error(t, err, s)
	}
	for _, s := range []string{"parked.home.n1", "record.home", "record.home._x_"} {
		_, err := parseBucketKey(s)
		require.Error(t, err, s)
	}
	_, err := Key{Cluster: "home", Name: "NO"}.token()
	require.Error(t, err)
}

func TestAGapIsGivenUpWhenNobodyCanHoldTheEventsAnyMore(t *testing.T) {
	t.Parallel()
	clk := clocktest.NewFakeClock(time.Now())
	o := Options{}.withDefaults()
	r := &batchRunner{b: &Bus{opts: o, wire: clk, metrics: newMetrics(nil, o.Logger)}, h: nobody{}}
	require.False(t, r.waited(7))
	clk.Step(4*o.Times.AckWait - time.Second)
	require.False(t, r.waited(7))
	clk.Step(time.Second)
	require.True(t, r.waited(7))
}

type nobody struct{}

func (nobody) Name() string                                  { return "auditing" }
func (nobody) HandleBatch(context.Context, []Delivery) error { return nil }

// Between the moment when Run has found the bucket of a handler and the one when
// the router subscribes, a server may go away.
func TestASubscriptionOfRunBeginsWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Unsynced: true})
	require.NoError(t, err)
	b, err := Open(t.Context(), Options{Server: s, Times: Times{Request: 3 * time.Second}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	sub, err := b.subscriber(t.Context(), events.HandlerProvisioning)
	require.NoError(t, err)
	s.Shutdown()
	ctx, cancel := context.WithCancel(t.Context())
	out, err := sub.Subscribe(ctx, AllClusters)
	require.NoError(t, err)
	cancel()
	_, more := <-out
	require.False(t, more)
}

func TestWhatIsPlainlyValidIsValid(t *testing.T) {
	t.Parallel()
	valid := func() *cloudevents.EventContextV1 {
		e, err := events.New(events.Meta{Cluster: "home", Publisher: "api", ID: "x", Time: time.Now()}, events.PoolPaused{Pool: "burst", Actor: "anna", Reason: "maintenance"})
		require.NoError(t, err)
		return e.Context.(*cloudevents.EventContextV1)
	}
	require.True(t, plain(valid()))
	require.NoError(t, events.Event{Context: valid()}.Validate())
	blank, other, relative := " ", "text/plain;", types.ParseURI("relative")
	for name, change := range map[string]func(*cloudevents.EventContextV1){
		"no id":                  func(ec *cloudevents.EventContextV1) { ec.ID = "" },
		"a blank id":             func(ec *cloudevents.EventContextV1) { ec.ID = "\u00a0" },
		"no source":              func(ec *cloudevents.EventContextV1) { ec.Source = types.URIRef{} },
		"no type":                func(ec *cloudevents.EventContextV1) { ec.Type = "\t" },
		"a blank subject":        func(ec *cloudevents.EventContextV1) { ec.Subject = &blank },
		"another media type":     func(ec *cloudevents.EventContextV1) { ec.DataContentType = &other },
		"a blank media type":     func(ec *cloudevents.EventContextV1) { ec.DataContentType = &blank },
		"a relative data schema": func(ec *cloudevents.EventContextV1) { ec.DataSchema = relative },
	} {
		ec := valid()
		change(ec)
		require.False(t, plain(ec), name)
	}
}
