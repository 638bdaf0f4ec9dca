package main

import (
	"context"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

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

// nodes compares 10,000 nodes with 10. No more events than waiting wait to be
// handled at a time; with as many as a run has, all are there before the first
// is handled, as after an outage.
func (w *world) nodes(ctx context.Context, odd bool, waiting int) (sample, error) {
	with := func(nodes int) (float64, error) {
		s, err := w.site(ctx)
		if err != nil {
			return 0, err
		}
		defer s.close()
		st, err := bus.OpenState(ctx, s.b, bus.StateOptions[state]{Handler: events.HandlerProvisioning})
		if err != nil {
			return 0, err
		}
		a := applier{newCounter(0), st}
		// What is published at once is the half: the next comes before the last is done.
		sent, step := 0, waiting/2
		if waiting >= applied {
			step = applied
			if err := s.fill(ctx, 0, applied, nodes); err != nil {
				return 0, err
			}
			sent = applied
		}
		stop := s.run(ctx, a)
		for ; sent < applied; sent += step {
			if _, err := a.until(ctx, int64(sent-step)); err != nil {
				return 0, firstError(err, stop())
			}
			if err := s.fill(ctx, sent, min(sent+step, applied), nodes); err != nil {
				return 0, firstError(err, stop())
			}
		}
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
