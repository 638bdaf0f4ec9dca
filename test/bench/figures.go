package main

import (
	"context"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

const (
	delivered = 40_000    // events of one throughput run
	replayed  = 100_000   // events of one replay run
	stored    = 1_000_000 // events of the large stream
	applied   = 20_000    // events of one run that changes records
	waiting   = 1000      // of these, at a time
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
			name: "cost of an event with 10,000 nodes / with 10", how: fmt.Sprintf("time to publish and handle, with a record changed and an event published, at most %d waiting; %s", waiting, mode),
			unit: "×", target: 1.5, atMost: true,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.nodes(ctx, odd, waiting) },
		},
		{
			name: "the same while a backlog is worked off", how: fmt.Sprintf("%d events waiting at first; docs/design/0006; %s", applied, mode),
			unit: "×", atMost: true,
			measure: func(ctx context.Context, odd bool) (sample, error) { return w.nodes(ctx, odd, applied) },
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
