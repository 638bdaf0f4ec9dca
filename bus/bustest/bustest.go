// Package bustest gives tests a ready bus on an embedded server.
package bustest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
)

// Patience is how long a test waits for what must come: it ends when that is
// there, and machines that run tests may be busy.
const Patience = slow * time.Minute

// Times are short durations of the protocol for tests.
func Times() bus.Times {
	return bus.Times{
		AckWait:    max(2, slow) * time.Second, // a process that stalls for less than a second keeps its messages
		PullExpiry: time.Second,
		IdleExpiry: 2 * time.Second,
		Busy:       20 * time.Millisecond,
		BackoffMin: 20 * time.Millisecond,
		BackoffMax: 100 * time.Millisecond,
		Retry:      -1,
		Handle:     slow * 10 * time.Second,
		Shutdown:   slow * time.Second,
		Sweep:      500 * time.Millisecond,
		Metrics:    200 * time.Millisecond,
	}
}

// New returns a bus with short times on an embedded server of its own; both end
// with the test. opts change the options before the bus is opened.
func New(t testing.TB, opts ...func(*bus.Options)) *bus.Bus {
	t.Helper()
	return Open(t, Server(t), opts...)
}

// Server starts an embedded server in a directory of the test. It does not
// write synchronously: tests end processes, not machines.
func Server(t testing.TB) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Unsynced: true})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	return s
}

// Open returns another bus on a server.
func Open(t testing.TB, s *embedded.Server, opts ...func(*bus.Options)) *bus.Bus {
	t.Helper()
	o := bus.Options{Server: s, Times: Times(), MaxBytes: 256 << 20}
	for _, opt := range opts {
		opt(&o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	b, err := bus.Open(ctx, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}
