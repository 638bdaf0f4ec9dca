package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// decider is decision's own handler on a record in memory: all that a live one
// does with an event but for the server that it reads from and writes to. It keeps
// what a live one keeps between two events, the fold of the snapshots among it.
type decider struct {
	run  *decision.Rerun
	fold *events.Fold // of the collector
	now  time.Time
	n    uint64 // events so far
}

const benchIncarnation = "bench"

// noHistory is a stream that holds nothing: a decider that has seen everything
// itself need not read it.
type noHistory struct{}

func (noHistory) Read(context.Context, bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		yield(bus.Delivery{}, fmt.Errorf("the decider reads what it has seen before"))
	}
}

// newDecider is one that knows a policy and a cluster.
func newDecider(ctx context.Context, p events.Policy, o events.SnapshotObjects) (*decider, error) {
	d := &decider{fold: events.NewFold(), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	begin, err := d.delivery(events.DecisionCheckpointed{State: []byte(`{}`), StateDigest: "none", Snapshot: 1, At: d.now, Version: "bench"})
	if err != nil {
		return nil, err
	}
	if d.run, err = decision.NewRerun(noHistory{}, begin); err != nil {
		return nil, err
	}
	if _, err := d.handle(ctx, events.ConfigApplied{Digest: "bench", Version: "bench", Start: d.now.Add(-time.Hour), Policy: p}); err != nil {
		return nil, err
	}
	all, _, err := d.fold.Delta(o, nil)
	if err != nil {
		return nil, err
	}
	full := events.SnapshotCaptured{Epoch: 1, Digest: all.Digest, CapturedAt: d.now, Freshness: d.freshness(), Objects: all.Changed}
	if err := d.fold.Capture(full); err != nil {
		return nil, err
	}
	_, err = d.handle(ctx, full)
	return d, err
}

func (d *decider) freshness() map[string]time.Time {
	out := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindUsage, events.KindRecord, events.KindNamespace} {
		out[k] = d.now
	}
	return out
}

// delivery encodes an event as the bus hands it over.
func (d *decider) delivery(p events.Payload) (bus.Delivery, error) {
	d.n++
	d.now = d.now.Add(10 * time.Millisecond)
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "bench", ID: "e" + strconv.FormatUint(d.n, 10), Time: d.now}, p)
	return bus.Delivery{Event: e, Key: bus.Key{Cluster: cluster, Name: events.ClusterKey}, Sequence: d.n, Incarnation: benchIncarnation,
		StreamTime: d.now, Attempt: 1}, err
}

// delta is what the collector publishes when these objects change and those are gone.
func (d *decider) delta(o events.SnapshotObjects, gone map[string][]string) (events.SnapshotChanged, error) {
	c, _, err := d.fold.Delta(o, gone)
	if err != nil {
		return c, err
	}
	c.Epoch, c.CapturedAt, c.Freshness = 1, d.now, d.freshness()
	return c, d.fold.Change(c)
}

// turn is what one event led to, and what that cost.
type turn struct {
	cost
	out    []events.Event
	placed int // pods that have a node now
}

type cost struct {
	wall, cpu time.Duration
	bytes     float64 // allocated
}

func (c *cost) add(o cost) { c.wall, c.cpu, c.bytes = c.wall+o.wall, c.cpu+o.cpu, c.bytes+o.bytes }

func (d *decider) handle(ctx context.Context, p events.Payload) (turn, error) {
	in, err := d.delivery(p)
	if err != nil {
		return turn{}, err
	}
	return measured(func() (turn, error) {
		out, err := d.run.Handle(ctx, in)
		return turn{out: out, placed: len(d.run.Result().Placements)}, err
	})
}

// changed handles a delta.
func (d *decider) changed(ctx context.Context, o events.SnapshotObjects) (turn, error) {
	p, err := d.delta(o, nil)
	if err != nil {
		return turn{}, err
	}
	return d.handle(ctx, p)
}

// settle handles the pods of a delta, and then empty ones until no more nodes are
// claimed: an event claims so many of a pool at most. It returns what all of that
// cost, the claims, and the pods that have a node.
func (d *decider) settle(ctx context.Context, o events.SnapshotObjects) (sum cost, claims []events.NodeClaimed, placed int, err error) {
	for {
		t, err := d.changed(ctx, o)
		if err != nil {
			return sum, nil, 0, err
		}
		sum.add(t.cost)
		before := len(claims)
		if claims, err = claimed(claims, t.out); err != nil {
			return sum, nil, 0, err
		}
		if placed = t.placed; len(claims) == before {
			return sum, claims, placed, nil
		}
		if placed == len(d.fold.Pods()) {
			return sum, claims, placed, nil // all of them: nothing is left for another event
		}
		o = events.SnapshotObjects{}
	}
}

func claimed(claims []events.NodeClaimed, out []events.Event) ([]events.NodeClaimed, error) {
	for _, e := range out {
		if e.Type() != events.TypeNodeClaimed {
			continue
		}
		var c events.NodeClaimed
		if err := json.Unmarshal(e.Data(), &c); err != nil {
			return nil, err
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// measured runs fn after a garbage collection, so that it pays for its own only.
func measured(fn func() (turn, error)) (turn, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cpu, begin := cpuTime(), time.Now()
	t, err := fn()
	t.wall, t.cpu = time.Since(begin), cpuTime()-cpu
	runtime.ReadMemStats(&after)
	t.bytes = float64(after.TotalAlloc - before.TotalAlloc)
	return t, err
}

// cpuTime is what this process has used of all cores.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
