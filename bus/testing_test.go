package bus_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// shortRequest bounds requests where a test waits for one that nobody answers. A
// busy machine must get the answers that there are within it.
const shortRequest = 3 * time.Second

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// observed is an event that provisioning reads, on a node's key.
func observed(t testing.TB, cluster, node, id string) events.Event {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: cluster, Node: node, Publisher: "collector", ID: id, Time: start, CorrelationID: "life-" + node},
		events.NodeObserved{Node: node, What: events.ObservedReady, At: start})
	require.NoError(t, err)
	return e
}

// handler is a Handler made of a function.
type handler struct {
	name string
	fn   func(context.Context, bus.Delivery) error
}

func (h handler) Name() string                                     { return h.name }
func (h handler) Handle(ctx context.Context, d bus.Delivery) error { return h.fn(ctx, d) }

// run runs handlers until the test or the returned function ends them.
func run(t testing.TB, b *bus.Bus, hs ...bus.Handler) (stop func()) {
	t.Helper()
	return background(t, func(ctx context.Context) error { return b.Run(ctx, hs...) })
}

func background(t testing.TB, fn func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("background: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// record collects deliveries.
type record struct {
	mu sync.Mutex
	ds []bus.Delivery
}

func (r *record) add(d bus.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ds = append(r.ds, d)
}

func (r *record) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, len(r.ds))
	for i, d := range r.ds {
		out[i] = d.Event.ID()
	}
	return out
}

func (r *record) len() int { return len(r.ids()) }

func eventually(t testing.TB, ok func() bool, msg string) {
	t.Helper()
	require.Eventually(t, ok, bustest.Patience, 5*time.Millisecond, msg)
}

func ctxT(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*bustest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func num(i int) string { return strconv.Itoa(i) }
