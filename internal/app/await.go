package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

const (
	// awaitRetry is how often a process that starts looks for a NATS server.
	awaitRetry = time.Second
	// awaitLog is how often it says that it waits.
	awaitLog = 30 * time.Second
)

// awaitBus connects to an external bus. As long as no server answers it waits and
// says so: servers and processes of a cluster start in any order, after a power cut
// all at once. What a server refuses is the error that it is.
func (a *App) awaitBus(ctx context.Context, o bus.Options) (*bus.Bus, error) {
	log, since := a.opts.Logger, a.opts.Clock.Now()
	var said time.Time
	for {
		b, err := bus.Open(ctx, o)
		if err == nil {
			if !said.IsZero() {
				log.InfoContext(ctx, "a NATS server answers, the process starts", "waited", a.opts.Clock.Since(since).Round(time.Second).String())
			}
			return b, nil
		}
		if !noAnswer(err) || a.opts.Config.Bus.URL == "" {
			return nil, err
		}
		if now := a.opts.Clock.Now(); said.IsZero() || now.Sub(said) >= awaitLog {
			said = now
			log.WarnContext(ctx, "no NATS server answers, the process waits for one; see that the servers run, that bus.url names them, and that the network lets this process through",
				"servers", strings.Join(a.opts.Config.Bus.Servers(), ","), "since", since.UTC(), "error", err)
		}
		t := a.opts.Clock.NewTimer(awaitRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w while no NATS server answered: %w", ctx.Err(), err)
		case <-t.C():
		}
	}
}

// codeNotReady is what a server says until its cluster has elected a leader
// (JSClusterNotAvailErr of nats-server).
const codeNotReady jetstream.ErrorCode = 10008

// noAnswer reports whether no server answered, or none that is ready yet. What a
// server refuses, such as more replicas than there are servers, will not come by
// waiting.
func noAnswer(err error) bool {
	var refused *jetstream.APIError
	if errors.As(err, &refused) && refused.ErrorCode != codeNotReady {
		return false
	}
	return errors.Is(err, bus.ErrUnavailable) && !errors.Is(err, jetstream.ErrStreamNotFound) && !errors.Is(err, jetstream.ErrJetStreamNotEnabled) &&
		!errors.Is(err, context.Canceled)
}
