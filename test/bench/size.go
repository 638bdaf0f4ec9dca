package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/workload"
)

// week is for how long the stream of record keeps events, in days.
const week = 7

const modelled = "a quarter of an hour as test/workload describes it, decided upon, times 672, and a tenth of the nodes added and removed a day; bytes of the file store"

// sizes are the figures of what is stored and written.
func (w *world) sizes() []figure {
	return []figure{
		{
			name: "log of 7 days, 100 nodes", how: modelled, unit: "GiB", target: 1, atMost: true, once: true,
			measure: func(ctx context.Context, _ bool) (sample, error) { return w.logSize(ctx, 100) },
		},
		{
			name: "log of 7 days, 1,000 nodes", how: modelled, unit: "GiB", once: true,
			measure: func(ctx context.Context, _ bool) (sample, error) { return w.logSize(ctx, 1000) },
		},
		{
			name: "bytes written per idle day", how: fmt.Sprintf("run with every role, %d nodes, usage every 15 s, sync always; what the process wrote to disk in a minute, times 1,440: log, consumers, records and audit", idleNodes),
			unit: "MiB", once: true,
			measure: func(ctx context.Context, _ bool) (sample, error) { return w.idleDay(ctx) },
		},
	}
}

// logSize measures the second quarter of an hour of a cluster: the first one has
// what happens only once.
func (w *world) logSize(ctx context.Context, nodes int) (sample, error) {
	s, err := w.site(ctx)
	if err != nil {
		return sample{}, err
	}
	defer s.close()
	m, err := workload.New(ctx, nodes, time.Now().UTC())
	if err != nil {
		return sample{}, err
	}
	h, err := decision.New(ctx, decision.Options{Bus: s.b, Version: "bench", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return sample{}, err
	}
	if err := s.b.Publish(ctx, policy(nodes)); err != nil {
		return sample{}, err
	}
	stop := s.run(ctx, h)
	var before, after size
	if err = s.quarter(ctx, m); err == nil {
		before, err = s.size(ctx)
	}
	if err == nil {
		err = s.quarter(ctx, m)
	}
	if err == nil {
		after, err = s.size(ctx)
	}
	if err := firstError(err, stop()); err != nil {
		return sample{}, err
	}
	const lives = 20
	for i := range lives {
		es, err := workload.Life(os.DirFS("events/testdata"), "worker-"+strconv.Itoa(i))
		if err != nil {
			return sample{}, err
		}
		if err := s.b.Publish(ctx, es...); err != nil {
			return sample{}, err
		}
	}
	end, err := s.size(ctx)
	if err != nil {
		return sample{}, err
	}
	quarters := float64(after.log-before.log) * workload.Quarters * week
	// Large data is kept for twice as long as its event.
	large := 2 * float64(after.payloads-before.payloads) * workload.Quarters * week
	life := float64(end.log-after.log) / lives
	scaling := life * workload.LivesPerDay * float64(nodes) * week
	return sample{(quarters + large + scaling) / (1 << 30), fmt.Sprintf("snapshots, decisions and checkpoints %.0f MiB (%d events of %.0f bytes a quarter of an hour), large data %.0f MiB, scaling %.0f MiB (%.0f bytes the life of a node)",
		quarters/(1<<20), after.events-before.events, float64(after.log-before.log)/float64(after.events-before.events), large/(1<<20), scaling/(1<<20), life)}, nil
}

// quarter publishes a quarter of an hour, and waits until it is decided upon.
func (s *site) quarter(ctx context.Context, m *workload.Model) error {
	es, err := m.Quarter()
	if err != nil {
		return err
	}
	if err := s.b.Publish(ctx, es...); err != nil {
		return err
	}
	for {
		n, err := s.b.Pending(ctx, events.HandlerDecision)
		if n == 0 || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// size is what the stream of record and the payload bucket hold.
type size struct{ log, payloads, events uint64 }

func (s *site) size(ctx context.Context) (size, error) {
	if dead, err := s.b.DeadLetters(ctx); err != nil || len(dead) > 0 {
		return size{}, firstError(err, fmt.Errorf("%d events were set aside: %s", len(dead), reason(dead)))
	}
	info := func(name string) (jetstream.StreamState, error) {
		st, err := s.js.Stream(ctx, name)
		if err != nil {
			return jetstream.StreamState{}, err
		}
		return st.CachedInfo().State, nil
	}
	log, err := info(bus.StreamName)
	if err != nil {
		return size{}, err
	}
	payloads, err := info(bus.PayloadStream)
	return size{log.Bytes, payloads.Bytes, log.Msgs}, err
}

func reason(dead []bus.DeadLetter) string {
	if len(dead) == 0 {
		return ""
	}
	return dead[0].Reason
}

// policy is the configuration that the cluster is decided upon with.
func policy(nodes int) events.Event {
	p := events.Policy{StartupGrace: events.Duration(10 * time.Minute), StaleAfter: events.Duration(30 * time.Second), MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}
	minute := events.Duration(time.Minute)
	for i := range 5 {
		p.Pools = append(p.Pools, events.PoolPolicy{Name: "pool-" + strconv.Itoa(i), Provider: "docker", Max: nodes,
			Size:            events.Resources{CPUMilli: 4000, MemoryBytes: 8 << 30, Pods: 110},
			ScaleUpCooldown: minute, ScaleDownAfterAdd: 10 * minute, ScaleDownAfterFail: 3 * minute, ScaleDownCooldown: minute, Stabilization: 5 * minute,
			UtilizationThreshold: 0.5, Unneeded: 10 * minute, MinLifetime: 10 * minute, MaxRemovals: 1, RegisterDeadline: 2 * minute, ClaimExpiry: minute,
			DrainDeadline: 10 * minute, BackoffInitial: minute, BackoffMax: 30 * minute, BackoffReset: 60 * minute})
	}
	now := time.Now().UTC()
	e, err := events.New(events.Meta{Cluster: workload.Cluster, Publisher: "app", ID: "policy", Time: now},
		events.ConfigApplied{Digest: "bench", Version: "bench", Start: now, Policy: p})
	if err != nil {
		panic(err) // it is written above
	}
	return e
}

// idleDay measures a process of its own with /proc.
func (w *world) idleDay(ctx context.Context) (sample, error) {
	dir, err := os.MkdirTemp(w.dir, "idle-")
	if err != nil {
		return sample{}, err
	}
	p, _, err := start(role{Idle: dir, Name: "idle"})
	if err != nil {
		return sample{}, err
	}
	defer p.end()
	before, err := written(p.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	select {
	case <-ctx.Done():
		return sample{}, ctx.Err()
	case <-time.After(time.Minute):
	}
	after, err := written(p.cmd.Process.Pid)
	if err != nil {
		return sample{}, err
	}
	if after.disk == before.disk {
		return sample{}, errors.New("nothing was written to a disk: is the folder for temporary files in memory?")
	}
	const day = 24 * 60
	return sample{float64(after.disk-before.disk) * day / (1 << 20), fmt.Sprintf("%.3g MiB a day were asked for by %d writes a minute",
		float64(after.asked-before.asked)*day/(1<<20), after.calls-before.calls)}, nil
}

// io is what a process has written: pages that go to a disk, bytes that it asked
// to write anywhere, and in how many calls.
type ioCount struct{ disk, asked, calls int64 }

func written(pid int) (c ioCount, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return c, err
	}
	defer f.Close()
	for {
		var name string
		var n int64
		_, err := fmt.Fscanln(f, &name, &n)
		switch {
		case errors.Is(err, io.EOF):
			return c, nil
		case err != nil:
			return c, fmt.Errorf("%s: %w", f.Name(), err)
		}
		switch name {
		case "write_bytes:":
			c.disk = n
		case "wchar:":
			c.asked = n
		case "syscw:":
			c.calls = n
		}
	}
}
