package bus

import (
	"errors"
	"fmt"
	"net"

	"github.com/nats-io/nats.go"
)

// remoteAlert is how package crypto/tls names the alert of the other side, whose
// type it does not export.
const remoteAlert = "remote error"

// loginError says in an operator's words why the server does not let this process
// in. Only what may pass by itself is ErrUnavailable.
//
// A TLS 1.3 client learns only after its handshake that the server refuses its
// certificate: it reads an alert, or, if it writes before the alert arrives, finds
// the connection closed. Which of the two is a matter of microseconds.
func loginError(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("%w: the server knows no user with the login (password, token, NKey, credentials, certificate) of this process", err)
	case errors.As(err, &op) && op.Op == remoteAlert, errors.Is(err, nats.ErrTLS):
		return fmt.Errorf("%w: the server refuses the certificate of this process, or wants one and got none", err)
	}
	return unavailable(err)
}
