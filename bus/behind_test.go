package bus_test

import (
	"bytes"
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// late stands before a server and makes of it one that is behind its leader: for
// some times it says of a new consumer that nothing is pending for it.
type late struct {
	server string
	times  atomic.Int64 // how often it still says so
	said   atomic.Int64
}

var pending = regexp.MustCompile(`"num_pending":\d+`)

func (l *late) start(t *testing.T) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(client)
		}
	}()
	return "nats://" + listener.Addr().String()
}

func (l *late) serve(client net.Conn) {
	defer client.Close()
	srv, err := net.Dial("tcp", l.server)
	if err != nil {
		return
	}
	defer srv.Close()
	go func() { _, _ = io.Copy(srv, client) }()
	buf := make([]byte, 1<<20)
	for {
		n, err := srv.Read(buf)
		if err != nil {
			return
		}
		if _, err := client.Write(l.distort(buf[:n])); err != nil {
			return
		}
	}
}

// distort keeps the length, which the protocol counts.
func (l *late) distort(b []byte) []byte {
	if !bytes.Contains(b, []byte("consumer_create_response")) || l.times.Add(-1) < 0 {
		return b
	}
	l.said.Add(1)
	return pending.ReplaceAllFunc(b, func(m []byte) []byte {
		return []byte(`"num_pending":0` + strings.Repeat(" ", len(m)-len(`"num_pending":0`)))
	})
}

func openLate(t *testing.T) (*late, *bus.Bus) {
	t.Helper()
	srv := bustest.StartServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	l := &late{server: srv.Addr().String()}
	b, err := bus.Open(ctxT(t), bus.Options{URL: l.start(t), Times: bustest.Times(), MaxBytes: 64 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return l, b
}

// Of the servers of a cluster any serves a reader, and may not have yet what was
// acknowledged: reading up to the present then goes on where the leader says that
// there is more.
func TestAReaderUpToThePresentAsksTheLeaderWhetherThatIsAll(t *testing.T) {
	t.Parallel()
	l, b := openLate(t)
	all := func() []string { return readIDs(t, b, bus.ReadOptions{}) }
	l.times.Store(1)
	require.Empty(t, all())
	require.EqualValues(t, 1, l.said.Load())
	before := time.Now()
	for i, node := range []string{"n1", "n2", "n1"} {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", node, "e"+num(i))))
	}
	require.NoError(t, b.Publish(ctxT(t), paused(t, "p")))
	for _, c := range []struct {
		name string
		o    bus.ReadOptions
		want []string
		// What a reader wants of what is there; if nothing, a late server is right.
		again bool
	}{
		{"all", bus.ReadOptions{}, []string{"e0", "e1", "e2", "p"}, true},
		{"a node", bus.ReadOptions{Cluster: "home", Node: "n2"}, []string{"e1"}, true},
		{"types", bus.ReadOptions{Types: []string{events.TypePoolResumed, events.TypePoolPaused}}, []string{"p"}, true},
		{"since", bus.ReadOptions{Since: before.Add(-time.Minute)}, []string{"e0", "e1", "e2", "p"}, true},
		{"since and from", bus.ReadOptions{Since: before.Add(-time.Minute), FromSequence: 3, Node: "n1"}, []string{"e2"}, true},
		{"until", bus.ReadOptions{FromSequence: 2, UntilSequence: 3}, []string{"e1", "e2"}, true},
		{"nothing of that node", bus.ReadOptions{Cluster: "home", Node: "n3"}, nil, false},
		{"nothing since then", bus.ReadOptions{Since: time.Now().Add(time.Hour)}, nil, false},
		{"nothing until then", bus.ReadOptions{Types: []string{events.TypePoolPaused}, UntilSequence: 3}, nil, false},
		{"nothing from there on", bus.ReadOptions{Cluster: "home", Node: "n1", FromSequence: 4}, nil, false},
	} {
		l.times.Store(2)
		require.Equal(t, c.want, readIDs(t, b, c.o), c.name)
		if c.again {
			require.Negative(t, l.times.Load(), "%s: it was read from a third server", c.name)
		} else {
			require.EqualValues(t, 1, l.times.Load(), "%s: nothing more was asked for", c.name)
		}
	}
}

// A server that stays behind is no reason to take a part for the whole.
func TestReadingFromServersThatStayBehindFails(t *testing.T) {
	t.Parallel()
	l, b := openLate(t)
	require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e0")))
	l.times.Store(1 << 30)
	for _, err := range b.Read(ctxT(t), bus.ReadOptions{}) {
		require.ErrorIs(t, err, bus.ErrUnavailable)
		require.ErrorContains(t, err, "stream K3SAS, message 1: the server that was read from is behind the leader of the stream")
		return
	}
	require.Fail(t, "it read nothing, and said that this is all")
}
