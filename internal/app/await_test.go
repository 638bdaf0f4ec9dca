package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// beginning is a process that begins before its NATS server does.
type beginning struct {
	address string // where nobody listens yet
	log     syncBuffer
	clock   *testingclock.FakeClock
	app     *App
}

func begin(t *testing.T) *beginning {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b := &beginning{address: l.Addr().String(), clock: testingclock.NewFakeClock(time.Now())}
	require.NoError(t, l.Close())
	b.app = &App{opts: Options{Config: &config.Config{Bus: config.Bus{URL: "nats://" + b.address}}, Clock: b.clock, Logger: slog.New(slog.NewTextHandler(&b.log, nil))}}
	return b
}

func (b *beginning) open(ctx context.Context) chan error {
	done := make(chan error, 1)
	go func() {
		var err error
		b.app.bus, err = b.app.awaitBus(ctx, bus.Options{URL: "nats://" + b.address, MaxBytes: 64 << 20, Times: bustest.Times(), Logger: slog.New(slog.DiscardHandler)})
		done <- err
	}()
	return done
}

func (b *beginning) said() int { return strings.Count(b.log.String(), "no NATS server answers") }

// waits until the process waits for its next attempt.
func (b *beginning) waits(t *testing.T) {
	t.Helper()
	require.Eventually(t, b.clock.HasWaiters, time.Minute, time.Millisecond)
}

func TestAProcessWaitsForANATSServerAndSaysSo(t *testing.T) {
	t.Parallel()
	b := begin(t)
	done := b.open(t.Context())
	for range 3 {
		b.waits(t)
		b.clock.Step(awaitRetry)
	}
	b.waits(t)
	require.Equal(t, 1, b.said(), "not at every attempt: %s", b.log.String())
	require.Contains(t, b.log.String(), "nats://"+b.address)
	b.clock.Step(awaitLog)
	b.waits(t)
	require.Equal(t, 2, b.said())

	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: b.address})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	require.Eventually(t, func() bool {
		b.clock.Step(awaitRetry)
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, err)
	require.Contains(t, b.log.String(), "a NATS server answers, the process starts")
	require.NoError(t, b.app.bus.Close())
}

func TestAProcessThatWaitsForANATSServerCanBeStopped(t *testing.T) {
	t.Parallel()
	b := begin(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := b.open(ctx)
	b.waits(t)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestWhatAServerRefusesIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: "good"})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	b := begin(t)
	b.address = strings.TrimPrefix(s.URL(), "nats://")
	err = <-b.open(t.Context())
	require.ErrorContains(t, err, "the server knows no user with the login")
	require.Zero(t, b.said())
	require.False(t, noAnswer(fmt.Errorf("x: %w", bus.ErrLost)))
}
