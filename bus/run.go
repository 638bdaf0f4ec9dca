package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
)

// Run delivers events to handlers until ctx ends; then it finishes or hands back
// what is in flight, which takes at most twice Times.Shutdown. Any number of
// processes may run the same handlers. The error is about the handlers
// themselves: trouble with the server is waited for.
func (b *Bus) Run(ctx context.Context, hs ...Handler) error {
	if len(hs) == 0 {
		return errors.New("run: no handlers given")
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 3 * b.opts.Times.Shutdown}, watermillLog{b.opts.Logger})
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	chain, err := middleware.Chain(middleware.Options{
		Observe:     observe,
		Now:         b.wire.Now,
		Poison:      poison{},
		IsPermanent: IsTerminal,
		ShouldRetry: retriable,
		Retry:       b.opts.Times.Retry,
		Timeout:     b.opts.Times.Handle,
	})
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	router.AddMiddleware(chain...)
	names := map[string]bool{}
	for _, h := range hs {
		if names[h.Name()] {
			return fmt.Errorf("run: two handlers are named %s", h.Name())
		}
		names[h.Name()] = true
		if state := b.state(h.Name()); state != nil {
			if err := state.check(ctx); err != nil {
				return ignoreEnd(ctx, fmt.Errorf("run: %w", err))
			}
		}
		sub, err := b.subscriber(ctx, h.Name())
		if err != nil {
			return ignoreEnd(ctx, fmt.Errorf("run: %w", err))
		}
		if err := b.openable(ctx, StreamName, sub.configs()...); err != nil {
			return ignoreEnd(ctx, fmt.Errorf("run: %w", err))
		}
		router.AddConsumerHandler(h.Name(), AllClusters, sub, func(msg *message.Message) error {
			d, ok := DeliveryFrom(msg.Context())
			if !ok {
				return Terminal(errors.New("message without a delivery"))
			}
			f := inflightFrom(msg.Context())
			if !f.owned() {
				return errFenced // frozen on the way from the subscriber to here
			}
			err := h.Handle(msg.Context(), d)
			f.failed(err) // the poison queue asks for it
			return err
		})
	}
	var background sync.WaitGroup
	defer background.Wait()
	bctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for name := range names {
		background.Go(func() { b.measure(bctx, name) })
		if state := b.state(name); state != nil {
			background.Go(func() { state.keep(bctx) })
		}
	}
	if err := router.Run(ctx); err != nil {
		return ignoreEnd(ctx, fmt.Errorf("run: %w", err))
	}
	return nil
}

// state returns what a handler keeps, nil if nothing.
func (b *Bus) state(handler string) keeper {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.states[handler]
}

// subscriber returns a Subscriber that has what it needs to begin: the router
// gives up when a subscription fails, but a server that is away is waited for.
func (b *Bus) subscriber(ctx context.Context, handler string) (*Subscriber, error) {
	sub, err := NewSubscriber(b, SubscriberOptions{Handler: handler})
	if err != nil {
		return nil, err
	}
	err = b.persist(ctx, handler, func() (err error) {
		sub.kv, err = b.openBucket(ctx, handler)
		return err
	})
	return sub, err
}

// ignoreEnd drops an error that only says that ctx ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// observe hands the handler's error to who decides about the message.
func observe(msg *message.Message, d time.Duration, err error) {
	if f := inflightFrom(msg.Context()); f != nil {
		f.failed(err)
		f.b.metrics.durations.WithLabelValues(f.l.opts.Handler).Observe(d.Seconds())
	}
}

// retriable tells which errors may be gone in a moment.
func retriable(err error) bool {
	_, later := RetryDelay(err)
	return !later && !IsTerminal(err) && !errors.Is(err, ErrUnavailable) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// poison is the publisher behind the poison queue: it sets the event aside.
type poison struct{}

func (poison) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		f := inflightFrom(msg.Context())
		if f == nil {
			return errors.New("message without a delivery")
		}
		if err := f.poison(); err != nil {
			return RetryAfter(err, f.b.opts.Times.BackoffMin)
		}
	}
	return nil
}

func (poison) Close() error { return nil }

// measure reports what waits for a handler.
func (b *Bus) measure(ctx context.Context, handler string) {
	tick := b.wire.NewTicker(b.opts.Times.Metrics)
	defer tick.Stop()
	waiting := backlog{b: b, handler: handler, consumers: Access{Handler: handler}.consumers()}
	for {
		waiting.measure(ctx)
		b.measureDead(ctx, handler, true)
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

// Pending returns how many events wait for a handler or are being handled.
func (b *Bus) Pending(ctx context.Context, handler string) (uint64, error) {
	var n uint64
	for p := range Partitions {
		info, err := b.consumerInfo(ctx, consumerName(handler, p))
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("pending events of %s: %w", handler, err)
		}
		n += info.NumPending + uint64(info.NumAckPending)
	}
	return n, nil
}

func (b *Bus) consumerInfo(ctx context.Context, name string) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	c, err := b.stream.Consumer(ctx, name)
	if err != nil {
		return nil, unavailable(err)
	}
	return c.CachedInfo(), nil
}

// watermillLog keeps the router's own reports at Debug: the errors of handlers
// are logged where it is decided what happens to their messages.
type watermillLog struct {
	log interface {
		Debug(msg string, args ...any)
	}
}

func (w watermillLog) say(msg string, fields watermill.LogFields) {
	args := make([]any, 0, 2*len(fields)+2)
	args = append(args, "message", msg)
	for k, v := range fields {
		args = append(args, k, v)
	}
	w.log.Debug("message router", args...)
}

func (w watermillLog) Error(msg string, err error, fields watermill.LogFields) {
	w.say(msg, fields.Add(watermill.LogFields{"error": err}))
}
func (w watermillLog) Info(msg string, fields watermill.LogFields)  { w.say(msg, fields) }
func (w watermillLog) Debug(msg string, fields watermill.LogFields) { w.say(msg, fields) }
func (w watermillLog) Trace(string, watermill.LogFields)            {}

// With implements watermill.LoggerAdapter; the fields are in each report anyway.
func (w watermillLog) With(watermill.LogFields) watermill.LoggerAdapter { return w }
