package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	delivered = 40_000    // events of one throughput run
	replayed  = 100_000   // events of one replay run
	stored    = 1_000_000 // events of the large stream
	applied   = 20_000    // events of one run that changes records
	rate      = 200       // events a second of a latency run
	lasting   = 5 * time.Second
)

func (w *world) figures() []figure {
	var replaySite, small, large *site
	return []figure{
		{
			name: "router and handler / bare consumers", how: fmt.Sprintf("events a second, %d partitions, one in flight each; %s", bus.Partitions, mode),
			unit: "×", target: 0.80,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.throughput(ctx, odd) },
		},
		{
			name: "publish to handler, p50 / bare consumers' p50", how: fmt.Sprintf("%d events a second; %s", rate, mode),
			unit: "×", target: 1.3, atMost: true,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.latency(ctx, odd, 0.50) },
		},
		{
			name: "publish to handler, p99 / bare consumers' p99", how: fmt.Sprintf("%d events a second; %s", rate, mode),
			unit: "×", target: 3, atMost: true,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.latency(ctx, odd, 0.99) },
		},
		{
			name: "replay / bare ordered consumer", how: fmt.Sprintf("%d events; the replay decodes them, the bare consumer drops them in its callback; both ask for 2,000 at once; %s", replayed, mode),
			unit: "×", target: 0.7,
			prepare: func(ctx context.Context) (err error) {
				if replaySite, err = w.shared(ctx); err != nil {
					return err
				}
				return replaySite.fill(ctx, 0, replayed, 400)
			},
			measure: func(ctx context.Context, odd bool) (sample, error) { return replay(ctx, replaySite, odd) },
		},
		{
			name: "four processes / one", how: "events a second, 4 handlers in flight each, 20 ms of waiting; " + mode,
			unit: "×", target: 3.2,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.scaleOut(ctx, odd) },
		},
		{
			name: "cost of an event with 10,000 nodes / with 10", how: "time to handle, with a record changed and an event published; " + mode,
			unit: "×", target: 1.5, atMost: true,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.nodes(ctx, odd) },
		},
		{
			name: "cost of an event in a stream of 1,000,000 / in an empty one", how: "time to publish and handle; " + mode,
			unit: "×", target: 1.5, atMost: true,
			prepare: func(ctx context.Context) (err error) {
				if small, err = w.shared(ctx); err != nil {
					return err
				}
				if large, err = w.shared(ctx); err != nil {
					return err
				}
				if err := large.fill(ctx, 0, stored, 400); err != nil {
					return err
				}
				_, err = large.drain(ctx, stored)
				return err
			},
			measure: func(ctx context.Context, odd bool) (sample, error) { return streams(ctx, small, large, odd) },
		},
	}
}

// shared is a site that lives until the program ends.
func (w *world) shared(ctx context.Context) (*site, error) {
	s, err := w.site(ctx)
	if err == nil {
		w.sites = append(w.sites, s)
	}
	return s, err
}

// both measures two sides in either order and returns a / b.
func both(odd bool, unit string, a, b func() (float64, error)) (sample, error) {
	var va, vb float64
	var err error
	first, second := func() { va, err = a() }, func() { vb, err = b() }
	if odd {
		first, second = second, first
	}
	if first(); err != nil {
		return sample{}, err
	}
	if second(); err != nil {
		return sample{}, err
	}
	return sample{va / vb, fmt.Sprintf("%.4g / %.4g %s", va, vb, unit)}, nil
}

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

func (w *world) throughput(ctx context.Context, odd bool) (sample, error) {
	s, err := w.site(ctx)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	if err := s.fill(ctx, 0, delivered, 400); err != nil {
		return sample{}, err
	}
	return both(odd, "/s",
		func() (float64, error) { return s.drain(ctx, delivered) },
		func() (float64, error) {
			c := newCounter(0)
			stop, err := s.bare(ctx, "bare", func(jetstream.Msg) { c.tick() })
			if err != nil {
				return 0, err
			}
			defer stop()
			return c.until(ctx, delivered)
		})
}

func (w *world) latency(ctx context.Context, odd bool, quantile float64) (sample, error) {
	s, err := w.site(ctx)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	n, from := int(lasting.Seconds()*rate), 0
	// pace publishes n events and returns the quantile of what lags collects, in µs.
	pace := func(lags *lags) (float64, error) {
		tick := time.NewTicker(time.Second / rate)
		defer tick.Stop()
		for i := range n {
			<-tick.C
			e, err := observed(from+i, 40)
			if err != nil {
				return 0, err
			}
			if err := s.b.Publish(ctx, e); err != nil {
				return 0, err
			}
		}
		from += n
		return lags.quantile(ctx, n, quantile)
	}
	return both(odd, "µs",
		func() (float64, error) {
			l := &lags{}
			c := newCounter(0)
			c.lag = func(d bus.Delivery) { l.add(time.Since(d.Event.Time())) }
			skip := int64(from)
			stop := s.run(ctx, c)
			if _, err := c.until(ctx, max(skip, 0)); err != nil { // what the other side published
				return 0, err
			}
			time.Sleep(200 * time.Millisecond) // the pulls are open
			l.reset()
			v, err := pace(l)
			return v, firstError(err, stop())
		},
		func() (float64, error) {
			l := &lags{}
			var seen atomic.Int64
			stop, err := s.bare(ctx, "bare", func(m jetstream.Msg) {
				at, err := time.Parse(time.RFC3339Nano, m.Headers().Get("ce-time"))
				if err == nil {
					l.add(time.Since(at))
				}
				seen.Add(1)
			})
			if err != nil {
				return 0, err
			}
			defer stop()
			for seen.Load() < int64(from) {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(200 * time.Millisecond)
			l.reset()
			return pace(l)
		})
}

func replay(ctx context.Context, s *site, odd bool) (sample, error) {
	rate := func(begin time.Time, n int) (float64, error) {
		if n != replayed {
			return 0, fmt.Errorf("%d events were read, %d are stored", n, replayed)
		}
		return float64(n) / time.Since(begin).Seconds(), nil
	}
	return both(odd, "/s",
		func() (float64, error) {
			begin, n := time.Now(), 0
			for _, err := range s.b.Read(ctx, bus.ReadOptions{}) {
				if err != nil {
					return 0, err
				}
				n++
			}
			return rate(begin, n)
		},
		func() (float64, error) {
			begin, n := time.Now(), 0
			c, err := s.js.OrderedConsumer(ctx, bus.StreamName, jetstream.OrderedConsumerConfig{})
			if err != nil {
				return 0, err
			}
			done := make(chan struct{})
			cc, err := c.Consume(func(jetstream.Msg) {
				if n++; n == replayed {
					close(done)
				}
			}, jetstream.PullMaxMessages(2000))
			if err != nil {
				return 0, err
			}
			defer cc.Stop()
			select {
			case <-done:
				return rate(begin, n)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
}

func (w *world) scaleOut(ctx context.Context, odd bool) (sample, error) {
	const window = 5 * time.Second
	s, err := w.site(ctx)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	if err := s.fill(ctx, 0, 15_000, 400); err != nil {
		return sample{}, err
	}
	with := func(n int) (float64, error) {
		var ps []*process
		defer func() {
			for _, p := range ps {
				p.end()
			}
		}()
		for i := range n {
			p, _, err := start(role{Work: s.url, Name: fmt.Sprintf("worker-%d-of-%d", i, n), InFlight: 4, Wait: 20 * time.Millisecond})
			if err != nil {
				return 0, err
			}
			ps = append(ps, p)
		}
		total := func() (int, error) {
			sum := 0
			for _, p := range ps {
				c, err := p.count()
				if err != nil {
					return 0, err
				}
				sum += c
			}
			return sum, nil
		}
		time.Sleep(2 * time.Second)
		begin := time.Now()
		before, err := total()
		if err != nil {
			return 0, err
		}
		time.Sleep(window)
		after, err := total()
		if err != nil {
			return 0, err
		}
		if before == 0 || after == before {
			return 0, fmt.Errorf("%d processes handled %d, then %d events", n, before, after-before)
		}
		return float64(after-before) / time.Since(begin).Seconds(), nil
	}
	return both(odd, "/s", func() (float64, error) { return with(4) }, func() (float64, error) { return with(1) })
}

// state is a record that a handler changes with every event.
type state struct {
	Seen int `json:"seen"`
}

// applier changes a record and publishes an event for each event.
type applier struct {
	*counter
	st *bus.State[state]
}

func (a applier) Handle(ctx context.Context, d bus.Delivery) error {
	err := a.st.Apply(ctx, d, func(t *bus.Turn[state]) error {
		t.State.Seen++
		return t.Emit(events.NodeReady{Node: d.Key.Name})
	})
	if err == nil {
		a.tick()
	}
	return err
}

func (w *world) nodes(ctx context.Context, odd bool) (sample, error) {
	with := func(nodes int) (float64, error) {
		s, err := w.site(ctx)
		if err != nil {
			return 0, err
		}
		defer s.close()
		if err := s.fill(ctx, 0, applied, nodes); err != nil {
			return 0, err
		}
		st, err := bus.OpenState(ctx, s.b, bus.StateOptions[state]{Handler: events.HandlerProvisioning})
		if err != nil {
			return 0, err
		}
		a := applier{newCounter(0), st}
		stop := s.run(ctx, a)
		perSecond, err := a.until(ctx, applied)
		return 1e6 / perSecond, firstError(err, stop())
	}
	return both(odd, "µs", func() (float64, error) { return with(10_000) }, func() (float64, error) { return with(10) })
}

func streams(ctx context.Context, small, large *site, odd bool) (sample, error) {
	const n = 10_000
	with := func(s *site) (float64, error) {
		info, err := s.b.LastSequence(ctx)
		if err != nil {
			return 0, err
		}
		c := newCounter(0)
		stop := s.run(ctx, c)
		time.Sleep(500 * time.Millisecond) // the pulls are open
		begin := time.Now()
		if err := s.fill(ctx, int(info), int(info)+n, 400); err != nil {
			return 0, err
		}
		if _, err := c.until(ctx, n); err != nil {
			return 0, err
		}
		return float64(time.Since(begin).Microseconds()) / n, stop()
	}
	return both(odd, "µs", func() (float64, error) { return with(large) }, func() (float64, error) { return with(small) })
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
