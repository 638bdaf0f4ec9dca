package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// threshold is how long after a node was unneeded for as long as the policy asks
// its drain is requested, though nothing happens meanwhile that would wake anybody.
func (w *world) threshold() figure {
	return figure{
		name: "end to end: unneeded for long enough to drain requested", unit: "ms", target: 1000, atMost: true,
		how:     "two idle nodes, unneeded: 3s; decision and the bus's timers on a server in a process of its own, sync always; between what is due and the stream's time of the event (Cluster Autoscaler 5,600 to 12,000 ms, Karpenter 20,000 ms)",
		measure: func(ctx context.Context, _ bool) (sample, error) { return w.unneeded(ctx) },
	}
}

func (w *world) unneeded(ctx context.Context) (sample, error) {
	const after = 3 * time.Second
	s, err := w.durableSite(ctx)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	h, err := decision.New(ctx, decision.Options{Bus: s.b, Version: "bench", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return sample{}, err
	}
	p, o := running(2, 0)
	o.Pods = nil
	pool := &p.Pools[0]
	pool.Unneeded, p.StartupGrace = events.Duration(after), events.Duration(time.Millisecond)
	for _, d := range []*events.Duration{&pool.ScaleDownAfterAdd, &pool.ScaleDownAfterFail, &pool.ScaleDownCooldown, &pool.Stabilization, &pool.MinLifetime} {
		*d = events.Duration(time.Millisecond)
	}
	if err := s.snapshot(ctx, p, o); err != nil {
		return sample{}, err
	}
	timers, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.b.RunTimers(timers) }()
	stop := s.run(ctx, h)
	late, err := s.drainRequested(ctx, after)
	cancel()
	return sample{ms(late), "from unneeded_since + unneeded"}, firstError(err, stop(), ignoreEnd(<-ended))
}

func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// snapshot publishes a policy and a full snapshot.
func (s *site) snapshot(ctx context.Context, p events.Policy, o events.SnapshotObjects) error {
	all, _, err := events.NewFold().Delta(o, nil)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	fresh := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindUsage, events.KindRecord, events.KindNamespace} {
		fresh[k] = now
	}
	for i, payload := range []events.Payload{
		events.ConfigApplied{Digest: "bench", Version: "bench", Start: now.Add(-time.Hour), Policy: p},
		events.SnapshotCaptured{Epoch: 1, Digest: all.Digest, CapturedAt: now, Freshness: fresh, Objects: all.Changed},
	} {
		e, err := events.New(events.Meta{Cluster: cluster, Publisher: "bench", ID: fmt.Sprint("threshold-", i), Time: now}, payload)
		if err != nil {
			return err
		}
		if err := s.b.Publish(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// drainRequested waits for the first removal, and returns how late it is.
func (s *site) drainRequested(ctx context.Context, after time.Duration) (time.Duration, error) {
	end := time.Now().Add(time.Minute)
	for time.Now().Before(end) {
		var due, at time.Time
		for d, err := range s.b.Read(ctx, bus.ReadOptions{Types: []string{events.TypeScaledownDecided, events.TypeNodeDrainRequested}}) {
			if err != nil {
				return 0, err
			}
			if d.Event.Type() == events.TypeNodeDrainRequested {
				at = d.StreamTime
				continue
			}
			p, err := events.Decode[events.ScaledownDecided](d.Event)
			if err != nil {
				return 0, err
			}
			due = p.TriggerSince.Add(after)
		}
		if !at.IsZero() && !due.IsZero() {
			return at.Sub(due), nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return 0, fmt.Errorf("no drain was requested within a minute")
}
