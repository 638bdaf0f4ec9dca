package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

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
