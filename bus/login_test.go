package bus

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

func TestALoginThatIsRefusedIsNotAnOutage(t *testing.T) {
	t.Parallel()
	const certificate = "the server refuses the certificate of this process, or wants one and got none"
	pipe := &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
	for what, c := range map[string]struct {
		err  error
		says string
	}{
		"unknown user":                {nats.ErrAuthorization, "the server knows no user with the login"},
		"the server's alert was read": {&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, certificate},
		"closed while this process wrote": {
			fmt.Errorf("%w: connection closed by remote after TLS handshake: %w", nats.ErrTLS, pipe), certificate,
		},
		"closed before the alert was read": {
			fmt.Errorf("%w: connection closed by remote after TLS handshake: %w", nats.ErrTLS, io.EOF), certificate,
		},
	} {
		got := loginError(c.err)
		require.ErrorContains(t, got, c.says, what)
		require.ErrorIs(t, got, c.err, what)
		require.NotErrorIs(t, got, ErrUnavailable, what)
	}
	require.ErrorIs(t, loginError(nats.ErrNoServers), ErrUnavailable)
}
