package main

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// counter counts what it handles and notes when the first and the latest came.
type counter struct {
	wait        time.Duration
	n           atomic.Int64
	first, last atomic.Int64 // nanoseconds
	lag         func(d bus.Delivery)
}

func newCounter(wait time.Duration) *counter { return &counter{wait: wait} }

func (c *counter) Name() string { return events.HandlerProvisioning }

func (c *counter) Handle(_ context.Context, d bus.Delivery) error {
	if c.lag != nil {
		c.lag(d)
	}
	if c.wait > 0 {
		time.Sleep(c.wait)
	}
	c.tick()
	return nil
}

func (c *counter) tick() {
	now := time.Now().UnixNano()
	c.first.CompareAndSwap(0, now)
	c.last.Store(now)
	c.n.Add(1)
}

// until waits for n events and returns how many came in a second.
func (c *counter) until(ctx context.Context, n int64) (float64, error) {
	for c.n.Load() < n {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return float64(n-1) / (time.Duration(c.last.Load() - c.first.Load())).Seconds(), nil
}

// drain handles everything that the bus's handler has not handled yet, n events,
// and returns how many it was a second.
func (s *site) drain(ctx context.Context, n int64) (float64, error) {
	c := newCounter(0)
	stop := s.run(ctx, c)
	v, err := c.until(ctx, n)
	return v, firstError(err, stop())
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// run runs a handler until the returned function is called.
func (s *site) run(ctx context.Context, h bus.Handler) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.b.Run(ctx, h) }()
	return func() error {
		cancel()
		return <-done
	}
}

// bare consumes each partition by itself with nothing around it, calling fn for
// every message.
func (s *site) bare(ctx context.Context, name string, fn func(jetstream.Msg)) (stop func(), err error) {
	var all []jetstream.ConsumeContext
	stop = func() {
		for _, c := range all {
			c.Stop()
		}
	}
	for p := range bus.Partitions {
		c, err := s.js.CreateOrUpdateConsumer(ctx, bus.StreamName, jetstream.ConsumerConfig{
			Durable: name + "-" + strconv.Itoa(p), FilterSubjects: subjects(p), AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1,
		})
		if err != nil {
			stop()
			return nil, err
		}
		cc, err := c.Consume(func(m jetstream.Msg) {
			fn(m)
			_ = m.Ack()
		})
		if err != nil {
			stop()
			return nil, err
		}
		all = append(all, cc)
	}
	return stop, nil
}

// lags collects how long events were on their way.
type lags struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *lags) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

func (l *lags) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = nil
}

// quantile waits for n values and returns their quantile in µs.
func (l *lags) quantile(ctx context.Context, n int, q float64) (float64, error) {
	for {
		l.mu.Lock()
		have := slices.Clone(l.all)
		l.mu.Unlock()
		if len(have) >= n {
			slices.Sort(have)
			return float64(have[min(int(q*float64(len(have))), len(have)-1)].Nanoseconds()) / 1000, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
