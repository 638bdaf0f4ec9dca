package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func startServer(t testing.TB, dir string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	return s
}

func readIDs(t testing.TB, b *bus.Bus, o bus.ReadOptions) []string {
	t.Helper()
	var out []string
	for d, err := range b.Read(ctxT(t), o) {
		require.NoError(t, err)
		out = append(out, d.Event.ID())
	}
	return out
}

func TestReadSelectsStoredEvents(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	ctx := ctxT(t)
	require.Empty(t, readIDs(t, b, bus.ReadOptions{}), "an empty stream ends at once")
	for i := range 6 {
		require.NoError(t, b.Publish(ctx, observed(t, []string{"home", "lab"}[i%2], "n"+num(i%3), "e"+num(i))))
	}
	require.NoError(t, b.Publish(ctx, paused(t, "p")))
	for _, c := range []struct {
		name string
		o    bus.ReadOptions
		want []string
	}{
		{"all", bus.ReadOptions{}, []string{"e0", "e1", "e2", "e3", "e4", "e5", "p"}},
		{"a cluster", bus.ReadOptions{Cluster: "lab"}, []string{"e1", "e3", "e5"}},
		{"a node", bus.ReadOptions{Cluster: "home", Node: "n1"}, []string{"e4"}},
		{"a cluster's own", bus.ReadOptions{Node: events.ClusterKey}, []string{"p"}},
		{"types", bus.ReadOptions{Types: []string{events.TypePoolPaused, events.TypePoolResumed}}, []string{"p"}},
		{"from a sequence", bus.ReadOptions{FromSequence: 6}, []string{"e5", "p"}},
		{"until a sequence", bus.ReadOptions{FromSequence: 2, UntilSequence: 3}, []string{"e1", "e2"}},
		{"some", bus.ReadOptions{Limit: 2}, []string{"e0", "e1"}},
		{"nothing that recent", bus.ReadOptions{Since: time.Now().Add(time.Hour)}, nil},
		{"since and from", bus.ReadOptions{Since: time.Now().Add(-time.Hour), FromSequence: 7}, []string{"p"}},
		{"a range without a match", bus.ReadOptions{Cluster: "lab", FromSequence: 7}, nil},
	} {
		require.Equal(t, c.want, readIDs(t, b, c.o), c.name)
	}
	for _, o := range []bus.ReadOptions{{Cluster: "No Cluster"}, {Node: "UPPER"}, {Types: []string{"nonsense"}}} {
		n := 0
		for _, err := range b.Read(ctx, o) {
			n++
			require.Error(t, err)
		}
		require.Equal(t, 1, n)
	}
	last, err := b.LastSequence(ctx)
	require.NoError(t, err)
	require.Equal(t, uint64(7), last)
}

func TestFollowingGoesOnWithNewEvents(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "old")))
	ctx, cancel := context.WithCancel(ctxT(t))
	got := make(chan string, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for d, err := range b.Read(ctx, bus.ReadOptions{Follow: true}) {
			if err != nil {
				t.Errorf("follow: %v", err)
				return
			}
			got <- d.Event.ID()
		}
	}()
	require.Equal(t, "old", <-got)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "new")))
	require.Equal(t, "new", <-got)
	cancel()
	<-done
}

func TestLastFindsTheNewestEventOfAKey(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	ctx := ctxT(t)
	k := bus.Key{Cluster: "home", Name: "pi4.lan"}
	_, ok, err := b.Last(ctx, k, events.TypeNodeObserved)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, b.Publish(ctx, observed(t, "home", "pi4.lan", "a"), observed(t, "home", "pi4.lan", "b"), observed(t, "home", "n2", "c")))
	d, ok, err := b.Last(ctx, k, events.TypeNodeObserved)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "b", d.Event.ID())
	require.Equal(t, k, d.Key)
	_, _, err = b.Last(ctx, k, "nonsense")
	require.Error(t, err)
	_, _, err = b.Last(ctx, bus.Key{Cluster: "home", Name: "NO"}, events.TypeNodeObserved)
	require.Error(t, err)
}

func TestPublishExpectingRefusesWhatOthersOvertook(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	ctx := ctxT(t)
	first, err := b.PublishExpecting(ctx, paused(t, "a"), 0)
	require.NoError(t, err)
	_, err = b.PublishExpecting(ctx, paused(t, "b"), 0)
	require.ErrorIs(t, err, bus.ErrConflict)
	second, err := b.PublishExpecting(ctx, paused(t, "b"), first)
	require.NoError(t, err)
	require.Greater(t, second, first)
	again, err := b.PublishExpecting(ctx, paused(t, "b"), first)
	require.NoError(t, err, "the same event again")
	require.Equal(t, second, again)
}

func TestAnEventIsStoredOnce(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	for range 3 {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	}
	require.Equal(t, []string{"e"}, readIDs(t, b, bus.ReadOptions{}))
}

func TestAServerThatDoesNotAnswerIsUnavailable(t *testing.T) {
	t.Parallel()
	server := startServer(t, t.TempDir())
	b, err := bus.Open(ctxT(t), bus.Options{Server: server, Times: bus.Times{Request: shortRequest}})
	require.NoError(t, err)
	require.NoError(t, b.Ready(ctxT(t)))
	require.NotEmpty(t, b.Instance())
	server.Shutdown()
	require.ErrorIs(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")), bus.ErrUnavailable)
	require.ErrorIs(t, b.Ready(ctxT(t)), bus.ErrUnavailable)
	_, err = b.LastSequence(ctxT(t))
	require.ErrorIs(t, err, bus.ErrUnavailable)
	require.NoError(t, b.Close())
	require.NoError(t, b.Close(), "closing twice is fine")
	_, err = bus.Open(ctxT(t), bus.Options{URL: "nats://127.0.0.1:1", Times: bus.Times{Request: 300 * time.Millisecond}})
	require.ErrorIs(t, err, bus.ErrUnavailable)
}

func TestWhatWasAcknowledgedSurvivesARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st, b, end := openDir(t, dir)
	k := bus.Key{Cluster: "home", Name: "n1"}
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "a"), observed(t, "home", "n2", "b")))
	require.NoError(t, st.Amend(ctxT(t), k, "op", increment))
	incarnation := b.Incarnation()
	end()
	st, b, _ = openDir(t, dir)
	require.Equal(t, incarnation, b.Incarnation())
	require.ElementsMatch(t, []string{"a", "b"}, readIDs(t, b, bus.ReadOptions{}))
	r, ok, err := st.Get(ctxT(t), k)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, 1, r.State.N)
}

func TestAnIncompatibleStreamIsRefused(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	bustest.Open(t, server)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(ctxT(t), bus.StreamName)
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	cfg.Metadata["k3sas_partitions"] = "64"
	_, err = js.UpdateStream(ctxT(t), cfg)
	require.NoError(t, err)
	_, err = bus.Open(ctxT(t), bus.Options{Server: server})
	require.ErrorIs(t, err, bus.ErrIncompatible)
	require.ErrorContains(t, err, `k3sas_partitions: is "64", this version needs "16"`)
}

func TestTheRecordCantBeTakenBack(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	b := bustest.Open(t, server)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e")))
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(ctxT(t), bus.StreamName)
	require.NoError(t, err)
	require.Error(t, s.Purge(ctxT(t)))
	require.Error(t, s.DeleteMsg(ctxT(t), 1))
	_, err = js.PublishMsg(ctxT(t), &nats.Msg{Subject: "k3sas.home.node.n1.node.observed", Header: nats.Header{"Nats-Rollup": {"all"}}})
	require.Error(t, err)
	require.Equal(t, []string{"e"}, readIDs(t, b, bus.ReadOptions{}))
}

func TestLimitsOfTheStreamFollowTheOptions(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	a := bustest.Open(t, server)
	b := bustest.Open(t, server, func(o *bus.Options) { o.MaxAge = time.Hour; o.MaxBytes = 128 << 20 })
	require.Equal(t, a.Incarnation(), b.Incarnation())
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(ctxT(t), bus.StreamName)
	require.NoError(t, err)
	require.Equal(t, time.Hour, s.CachedInfo().Config.MaxAge)
	require.Equal(t, int64(128<<20), s.CachedInfo().Config.MaxBytes)
}

func TestWrongOptionsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := bus.Open(ctxT(t), bus.Options{InFlight: -1, Replicas: -3, Times: bus.Times{Retry: time.Minute, AckWait: time.Nanosecond}})
	for _, want := range []string{"url, server", "in_flight", "replicas", "times.retry", "times.ack_wait"} {
		require.ErrorContains(t, err, want)
	}
}
