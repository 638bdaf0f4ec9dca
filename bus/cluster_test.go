package bus_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// openClustered opens a bus that stays with one server of a cluster of three.
func openClustered(t *testing.T, s *server.Server, opts ...func(*bus.Options)) *bus.Bus {
	t.Helper()
	o := bus.Options{URL: s.ClientURL(), Times: bustest.Times(), Replicas: 3, MaxBytes: 64 << 20, Connect: []nats.Option{nats.IgnoreDiscoveredServers()}}
	o.Times.Request = 10 * time.Second
	for _, opt := range opts {
		opt(&o)
	}
	b, err := bus.Open(ctxT(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// Two servers of three follow the one that leads a bucket, and are a little late.
// An owner that reads its own record from them finds it without its lease.
func TestAnOwnerOnAClusterSeesWhatItWrote(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for i, srv := range bustest.Cluster(t) {
		st, err := bus.OpenState(ctxT(t), openClustered(t, srv), bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
		require.NoError(t, err)
		for j := range 8 {
			key := bus.Key{Cluster: "home", Name: fmt.Sprintf("n%d-%d", i, j)}
			wg.Go(func() {
				for round := range 25 {
					if err := ownOnce(t, st, key, round); err != nil {
						t.Errorf("%s, round %d: %v", key, round, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

// ownOnce is the life of a lease, on a record that nobody else writes.
func ownOnce(t *testing.T, st *bus.State[counter], key bus.Key, round int) error {
	l, err := st.Acquire(ctxT(t), key, time.Minute)
	if err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	if err := l.Confirm(ctxT(t)); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	if err := l.Commit(ctxT(t), fmt.Sprintf("op%d", round), increment); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if n := l.Record().N; n != round+1 {
		return fmt.Errorf("the record says %d, expected %d", n, round+1)
	}
	if err := l.Release(ctxT(t)); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	rec, _, err := st.Get(ctxT(t), key)
	if err == nil && (rec.LeaseOwner != "" || rec.State.N != round+1) {
		err = fmt.Errorf("the record has owner %q and says %d, expected none and %d", rec.LeaseOwner, rec.State.N, round+1)
	}
	return err
}

// What one server alone had, a dead one does not give back: whoever reads on asks
// another one, and can be ended at any time.
func TestReadersOfAClusterOutliveOneServer(t *testing.T) {
	t.Parallel()
	const readers, before, after = 12, 5, 20
	servers := bustest.Cluster(t)
	b := openClustered(t, servers[0], func(o *bus.Options) {
		// The connection is to the server that ends: readers ask for another consumer
		// before the others know that it is gone.
		o.URL = strings.Join([]string{servers[2].ClientURL(), servers[0].ClientURL(), servers[1].ClientURL()}, ",")
		o.Connect = append(o.Connect, nats.DontRandomize())
		o.Times.Heartbeat = 500 * time.Millisecond
		o.Times.Request = 5 * time.Second
	})
	for i := range before {
		publishPatiently(t, b, observed(t, "home", "n1", "e"+num(i)))
	}
	ctx, cancel := context.WithCancel(ctxT(t))
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := make([][]string, readers)
	for i := range readers {
		wg.Go(func() {
			for d, err := range b.Read(ctx, bus.ReadOptions{Follow: true}) {
				if err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
				mu.Lock()
				got[i] = append(got[i], d.Event.ID())
				mu.Unlock()
			}
		})
	}
	have := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, ids := range got {
				if len(ids) < n {
					return false
				}
			}
			return true
		}
	}
	eventually(t, have(before), "every reader is at the present")
	servers[2].Shutdown()
	var want []string
	for i := range before + after {
		want = append(want, "e"+num(i))
		if i >= before {
			publishPatiently(t, b, observed(t, "home", "n1", "e"+num(i)))
		}
	}
	eventually(t, have(before+after), "every reader reads on")
	cancel()
	wg.Wait()
	for i, ids := range got {
		require.Equal(t, want, ids, "reader %d", i)
	}
}

// publishPatiently publishes while servers elect a leader.
func publishPatiently(t *testing.T, b *bus.Bus, e events.Event) {
	t.Helper()
	eventually(t, func() bool {
		err := b.Publish(ctxT(t), e)
		if err != nil {
			require.ErrorIs(t, err, bus.ErrUnavailable)
		}
		return err == nil
	}, "published")
}

// The servers of a cluster don't answer in the moments in which it forms.
func TestProvisionWaitsForACluster(t *testing.T) {
	t.Parallel()
	options := bustest.ClusterOptions(t)
	first := bustest.StartServer(t, options[0])
	var log bustest.Log
	times := bustest.Times()
	times.Request = shortRequest
	type outcome struct {
		done []bus.Provisioned
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		done, err := bus.Provision(ctxT(t), bus.Options{URL: first.ClientURL(), Times: times, Replicas: 3, MaxBytes: 64 << 20, Logger: log.Logger()},
			[]bus.Access{{Name: "draining", Handler: events.HandlerDraining}})
		ended <- outcome{done, err}
	}()
	eventually(t, func() bool { return len(log.Entries(t, "waiting for the bus")) > 0 }, "it says that it waits")
	for _, o := range options[1:] {
		bustest.StartServer(t, o)
	}
	got := <-ended
	require.NoError(t, got.err)
	require.Len(t, got.done, 4+1+bus.Partitions, "streams, a bucket, consumers")
	seen := map[string]bool{}
	for _, p := range got.done {
		require.False(t, seen[p.Kind+p.Name], "%s %s comes twice", p.Kind, p.Name)
		seen[p.Kind+p.Name] = true
	}
}

// An owner must find its own lease, and a handler that the key of its message was
// parked: servers that follow are late.
func TestAReplicatedBusIsReadFromItsLeaders(t *testing.T) {
	t.Parallel()
	srv := bustest.Cluster(t)[0]
	b := openClustered(t, srv)
	_, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: events.HandlerDraining})
	require.NoError(t, err)
	nc, err := nats.Connect(srv.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	config := func(stream string) jetstream.StreamConfig {
		s, err := js.Stream(ctxT(t), stream)
		require.NoError(t, err)
		return s.CachedInfo().Config
	}
	streams := []string{bus.StreamName, "KV_k3sas-draining"}
	for _, name := range streams {
		c := config(name)
		require.Equal(t, 3, c.Replicas)
		require.False(t, c.AllowDirect, name)
		c.AllowDirect = true // as something else made it
		_, err := js.UpdateStream(ctxT(t), c)
		require.NoError(t, err)
	}
	times := bustest.Times()
	times.Request = 10 * time.Second
	provisioned := bus.Options{URL: srv.ClientURL(), Times: times, Replicas: 3, MaxBytes: 64 << 20, Provisioned: true}
	_, err = bus.Open(ctxT(t), provisioned)
	require.ErrorIs(t, err, bus.ErrNotProvisioned)
	require.ErrorContains(t, err, "stream K3SAS may be read from servers that are late")
	done, err := bus.Provision(ctxT(t), bus.Options{URL: srv.ClientURL(), Times: times, Replicas: 3, MaxBytes: 64 << 20},
		[]bus.Access{{Name: "draining", Handler: events.HandlerDraining}})
	require.NoError(t, err)
	for _, name := range streams {
		require.False(t, config(name).AllowDirect, name)
	}
	require.Contains(t, done, bus.Provisioned{Kind: "bucket", Name: "k3sas-draining", Action: bus.ActionUpdated})
	again, err := bus.Open(ctxT(t), provisioned)
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

// Processes that start together on a new cluster all find what one of them makes.
func TestProcessesThatStartTogetherOnAClusterAllFindTheirState(t *testing.T) {
	t.Parallel()
	servers := bustest.Cluster(t)
	var wg sync.WaitGroup
	var buses []*bus.Bus
	for i := range 9 {
		buses = append(buses, openClustered(t, servers[i%len(servers)]))
	}
	for _, handler := range []string{events.HandlerProvisioning, events.HandlerDraining, events.HandlerDecision} {
		for i, b := range buses {
			wg.Go(func() {
				if _, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: handler}); err != nil {
					t.Errorf("process %d, %s: %v", i, handler, err)
				}
			})
		}
	}
	wg.Wait()
}
