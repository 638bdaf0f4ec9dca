package bus_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Whether a key is parked is asked for the keys alone that may be: not for each
// of ten thousand nodes that a process meets for the first time.
func TestWhetherAKeyIsParkedIsAskedOnlyOfThoseThatMayBe(t *testing.T) {
	t.Parallel()
	srv := bustest.StartServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	b, err := bus.Open(ctxT(t), bus.Options{URL: srv.ClientURL(), Times: bustest.Times(), MaxBytes: 64 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	watcher, err := nats.Connect(srv.ClientURL())
	require.NoError(t, err)
	t.Cleanup(watcher.Close)
	asked := make(chan *nats.Msg, 1000)
	_, err = watcher.ChanSubscribe("$JS.API.DIRECT.GET.KV_k3sas-provisioning.$KV.k3sas-provisioning.parked.>", asked)
	require.NoError(t, err)
	require.NoError(t, watcher.Flush())

	var mu sync.Mutex
	handled := map[string]int{}
	handles := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			sum := 0
			for _, c := range handled {
				sum += c
			}
			return sum >= n
		}
	}
	serve := func() (stop func()) {
		return run(t, b, handler{events.HandlerProvisioning, func(_ context.Context, d bus.Delivery) error {
			if d.Event.ID() == "bad" {
				return bus.Terminal(errors.New("no such machine"))
			}
			mu.Lock()
			defer mu.Unlock()
			handled[d.Key.Name]++
			return nil
		}})
	}
	stop := serve()
	const nodes = 60
	for i := range nodes {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n"+num(i), "e"+num(i))))
	}
	eventually(t, handles(nodes), "all are handled")
	require.NoError(t, watcher.Flush())
	require.Empty(t, asked, "no key was ever parked")

	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n7", "bad")))
	eventually(t, func() bool { return len(parkedKeys(t, b)) == 1 }, "the node is parked")
	stop()
	for len(asked) > 0 {
		<-asked // parking looks at what is there
	}
	stop = serve() // as another process that takes the partitions over
	defer stop()
	for i := range nodes {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n"+num(i), "again"+num(i))))
	}
	eventually(t, handles(2*nodes-1), "all but the parked one are handled")
	eventually(t, func() bool {
		all, err := b.DeadLetters(ctxT(t))
		require.NoError(t, err)
		return len(all) == 2
	}, "what came for the parked one follows")
	require.NoError(t, watcher.Flush())
	require.NotEmpty(t, asked)
	for len(asked) > 0 {
		require.Contains(t, (<-asked).Subject, ".parked.home.n7")
	}
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 1, handled["n7"], "a parked node is not acted upon")
}
