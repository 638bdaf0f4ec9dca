package bus_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

func TestAServerThatAcceptsAndSaysNothingIsUnavailable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	_, err = bus.Open(ctxT(t), bus.Options{URL: "nats://" + l.Addr().String(), Times: bus.Times{Request: 100 * time.Millisecond}})
	require.ErrorIs(t, err, bus.ErrUnavailable)
}

func TestAServerThatHangsUpIsUnavailable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	_, err = bus.Open(ctxT(t), bus.Options{URL: "nats://" + l.Addr().String()})
	require.ErrorIs(t, err, bus.ErrUnavailable)
}
