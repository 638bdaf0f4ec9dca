package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"k8s.io/utils/clock"
)

// Bus is a connection to the stream of record, the timers, the dead letters and
// the state of handlers. It is safe for concurrent use.
type Bus struct {
	opts       Options
	nc         *nats.Conn
	js         jetstream.JetStream
	stream     jetstream.Stream // of record
	incarn     string
	metrics    *metrics
	slots      *slots
	alive      *liveness
	reconnects *broadcast
	refusals   *refusals
	interrupts *interruptions
	wire       wireClock // the clock of the protocol with the server

	mu       sync.Mutex
	states   map[string]keeper // by handler
	payloads jetstream.Stream  // nil: not needed yet
	serves   map[string]int    // consumers that this process reads

	stop context.CancelFunc
	done sync.WaitGroup
	once sync.Once
}

// wireClock is what the protocol with the server needs of a clock.
type wireClock interface {
	clock.WithTicker
	AfterFunc(d time.Duration, f func()) clock.Timer
}

// Open connects and provisions what is absent: streams, and later the consumers
// and buckets of the handlers that run; or only looks them up, see
// Options.Provisioned. The error is ErrUnavailable when no server answers,
// ErrIncompatible when the stream of record was made with another schema or number
// of partitions, and ErrNotProvisioned when something is missing that had to be
// there.
func Open(ctx context.Context, o Options) (*Bus, error) {
	b, err := dial(o)
	if err != nil {
		return nil, err
	}
	if err := b.provision(ctx); err != nil {
		b.nc.Close()
		return nil, fmt.Errorf("streams: %w", unavailable(err))
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	b.alive = newLiveness(b.wire, b.opts.Times.AckWait)
	b.done.Go(func() { b.alive.run(run) })
	b.done.Go(func() { b.measureRoom(run) })
	return b, nil
}

// dial connects.
func dial(o Options) (*Bus, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("bus options: %w", err)
	}
	b := &Bus{opts: o, states: map[string]keeper{}, serves: map[string]int{}, wire: clock.RealClock{}}
	b.metrics = newMetrics(o.Registerer, o.Logger)
	b.slots = newSlots(o.InFlight)
	b.reconnects = newBroadcast()
	b.refusals = newRefusals()
	b.interrupts = newInterruptions(o.Logger, b.wire, o.Times)
	if err := b.connect(); err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", loginError(err))
	}
	return b, nil
}

func (b *Bus) connect() error {
	log := b.opts.Logger
	opts := append([]nats.Option{
		nats.Name("k3s-autoscaler " + b.opts.Instance),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.Timeout(b.opts.Times.Request),
		// Nothing may be sent later than it was meant: a buffered acknowledgement
		// would free the slot of a message that another process handles by then.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("bus connection lost, reconnecting", "instance", b.opts.Instance, "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.reconnects.send()
			log.Info("bus connection restored", "instance", b.opts.Instance, "server", nc.ConnectedServerName())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			b.metrics.failed("bus")
			if r := readRefusal(b.opts.Role, err); r != nil {
				log.Error("the NATS server refused a request of this process", "instance", b.opts.Instance, "role", b.opts.Role, "subject", r.subject, "error", r)
				b.refusals.refused(r)
				return
			}
			attrs := []any{"instance", b.opts.Instance, "error", err}
			if sub != nil {
				attrs = append(attrs, "subject", sub.Subject)
			}
			log.Warn("bus connection reports an error", attrs...)
		}),
	}, b.opts.Connect...)
	if b.opts.Role != "" {
		opts = append(opts, nats.CustomInboxPrefix(InboxPrefix(b.opts.Role)))
	}
	var err error
	if b.opts.Server != nil {
		b.nc, err = b.opts.Server.Connect(opts...)
	} else {
		b.nc, err = nats.Connect(b.opts.URL, opts...)
	}
	if err != nil {
		return err
	}
	b.js, err = jetstream.New(b.nc)
	return err
}

// Close ends the connection. Run, RunBatch and RunTimers must have returned. It
// may be called more than once.
func (b *Bus) Close() error {
	var err error
	b.once.Do(func() {
		b.stop()
		b.done.Wait()
		b.interrupts.flush()
		// Acknowledgements are not confirmed: let them leave.
		if ferr := b.nc.FlushTimeout(b.opts.Times.Request); ferr != nil && !errors.Is(ferr, nats.ErrConnectionClosed) && b.nc.IsConnected() {
			err = fmt.Errorf("close the bus: flush: %w", ferr)
		}
		b.nc.Close()
	})
	return err
}

// Incarnation identifies the stream of record for its whole life: a stream that
// was deleted and made anew has another one.
func (b *Bus) Incarnation() string { return b.incarn }

// Instance is the name of this process on the bus.
func (b *Bus) Instance() string { return b.opts.Instance }

// LastSequence returns the sequence of the last event of the stream of record, 0
// when it never held one.
func (b *Bus) LastSequence(ctx context.Context) (uint64, error) {
	info, err := b.info(ctx)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

func (b *Bus) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	info, err := b.stream.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the stream of record: %w", unavailable(err))
	}
	return info, nil
}

// bound limits one request.
func (b *Bus) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, b.opts.Times.Request)
}

// request limits one request on a subject; it ends at once when the server
// refuses the subject, see refusal.
func (b *Bus) request(ctx context.Context, subject string) (context.Context, context.CancelFunc) {
	ctx, cancel := b.bound(ctx)
	ctx, done := b.refusals.watch(ctx, subject)
	return ctx, func() { done(); cancel() }
}

// unavailable adds ErrUnavailable to errors that mean that no server
// acknowledged. A cancelled context stays what it is.
func unavailable(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) {
		return err
	}
	for _, known := range []error{
		context.DeadlineExceeded, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrNoServers,
		nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded, nats.ErrDisconnected,
		nats.ErrNoStreamResponse, nats.ErrStaleConnection, nats.ErrConnectionDraining,
		io.EOF, io.ErrUnexpectedEOF, // a proxy before servers that are away
		jetstream.ErrNoStreamResponse, jetstream.ErrStreamNotFound, jetstream.ErrJetStreamNotEnabled,
	} {
		if errors.Is(err, known) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	var api *jetstream.APIError
	var network net.Error // a server that takes a connection and says nothing
	if errors.As(err, &api) && api.Code >= 500 || errors.As(err, &network) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
