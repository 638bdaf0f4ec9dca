package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// bytesIn says what every figure of a decision covers.
const bytesIn = "from the bytes of a snapshot to the events that are published: decoded, folded, translated, evaluated, the record read and written as JSON; the decider is a live one that has the cluster's earlier snapshots folded, as handlers/decision keeps them; one core's work, fresh data in every run"

// scale is one workload at five sizes, of which the largest is promised.
type scale struct {
	name, how string
	unit      string
	target    float64
	atMost    bool
	sizes     [5]int
	what      string // is counted by size
	// run is the cost at a size. value is what is promised of it.
	run   func(ctx context.Context, size int) (cost, error)
	value func(size int, c cost) float64

	costs []cost // of the last run, by size
}

// once measures all sizes.
func (s *scale) once(ctx context.Context) error {
	s.costs = nil
	for _, n := range s.sizes {
		c, err := s.run(ctx, n)
		if err != nil {
			return fmt.Errorf("with %d %s: %w", n, s.what, err)
		}
		s.costs = append(s.costs, c)
	}
	return nil
}

func (s *scale) detail() string {
	parts := make([]string, len(s.sizes))
	for i, n := range s.sizes {
		c := s.costs[i]
		parts[i] = fmt.Sprintf("%d: %.3g ms (CPU %.3g ms, %.3g kB)", n, ms(c.wall), ms(c.cpu), c.bytes/1000)
	}
	return s.what + ": " + strings.Join(parts, ", ")
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// growth is the slope of log time over log (n log n), by least squares: 1 when the
// time grows with n log n.
func (s *scale) growth() float64 {
	var sx, sy, sxx, sxy float64
	for i, n := range s.sizes {
		x, y := math.Log(float64(n)*math.Log(float64(n))), math.Log(float64(s.costs[i].wall))
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	k := float64(len(s.sizes))
	return (k*sxy - sx*sy) / (k*sxx - sx*sx)
}

// figures are what is promised of the scale, and how it grows.
func (s *scale) figures() []figure {
	var grown []sample // of the runs of the first figure
	return []figure{
		{
			name: s.name, how: s.how, unit: s.unit, target: s.target, atMost: s.atMost,
			measure: func(ctx context.Context, _ bool) (sample, error) {
				if err := s.once(ctx); err != nil {
					return sample{}, err
				}
				grown = append(grown, sample{s.growth(), s.detail()})
				last := len(s.sizes) - 1
				return sample{s.value(s.sizes[last], s.costs[last]), s.detail()}, nil
			},
		},
		{
			name: s.name + ", growth", how: "exponent of n log n over the five sizes, by least squares; measured in the same runs", unit: "", target: 1, atMost: true,
			measure: func(ctx context.Context, _ bool) (sample, error) {
				if len(grown) == 0 { // it is measured alone
					if err := s.once(ctx); err != nil {
						return sample{}, err
					}
					return sample{s.growth(), s.detail()}, nil
				}
				out := grown[0]
				grown = grown[1:]
				return out, nil
			},
		},
	}
}

func milliseconds(_ int, c cost) float64 { return ms(c.wall) }
func perSecond(n int, c cost) float64    { return float64(n) / c.wall.Seconds() }
func garbage(n int, c cost) float64      { return c.bytes / float64(n) / 1000 }

// sizesTo are five sizes that double up to the last.
func sizesTo(last int) (out [5]int) {
	for i := range out {
		out[i] = last >> (len(out) - 1 - i)
	}
	return out
}

// decisions are the figures of deciding.
func decisions() []figure {
	var out []figure
	for _, s := range scales() {
		out = append(out, s.figures()...)
	}
	return append(out, nodesOfMixed(), onOneHost(), fromScratch(), fullSnapshot(), garbageOf("pods of 20 shapes", identical, 2), garbageOf("mixed pods", mixed, 0))
}

func scales() []*scale {
	return []*scale{
		{
			name: "decide: nothing to do, 1,000 nodes with 40,000 pods", what: "nodes", unit: "ms", target: 15, atMost: true, value: milliseconds, sizes: sizesTo(1000),
			how: "a delta without a change (Cluster Autoscaler: 168 ms a loop); " + bytesIn,
			run: func(ctx context.Context, nodes int) (cost, error) {
				return steady(ctx, nodes, func(events.SnapshotObjects, int) events.SnapshotObjects { return events.SnapshotObjects{} }, 80)
			},
		},
		{
			name: "decide: one changed node of 1,000 with 40,000 pods", what: "nodes", unit: "ms", target: 1, atMost: true, value: milliseconds, sizes: sizesTo(1000),
			how: "a delta with one node; " + bytesIn,
			run: func(ctx context.Context, nodes int) (cost, error) { return steady(ctx, nodes, oneNode, 80) },
		},
		{
			name: "decide: 5,000 pods of 20 shapes, one template", what: "pods", unit: "pods/s", target: 100_000, value: perSecond, sizes: sizesTo(5000),
			how: "a delta with all of them in an empty cluster, until each has a node (Cluster Autoscaler: 15,000 to 24,000 pods/s of one shape, objects in memory); " + bytesIn,
			run: identical,
		},
		{
			name: "decide: 50,000 pods, 1,000 new nodes", what: "pods", unit: "ms", target: 1000, atMost: true, value: milliseconds, sizes: sizesTo(50_000),
			how: "as before; one pool, of which an event claims 300 nodes at most, so that it takes four events (Cluster Autoscaler: 16 s)",
			run: manyNodes,
		},
		{
			name: "decide: 5,000 mixed pods, half of them of their own shape, 20 pools", what: "pods", unit: "pods/s", target: 10_000, value: perSecond, sizes: sizesTo(5000),
			how: "fifths: generic pods, spread over zones, over hosts, affinity by zone, anti-affinity by host, as in Karpenter's own benchmark (Karpenter: 300 pods/s with 400 instance types); " + bytesIn,
			run: mixed,
		},
		{
			name: "decide: removals, 2,000 nodes with 80,000 pods", what: "nodes", unit: "ms", target: 2000, atMost: true, value: milliseconds, sizes: sizesTo(2000),
			how: "every node is used by 40 %, below the threshold: whose pods fit elsewhere is asked of all of them (Cluster Autoscaler: 22 s); " + bytesIn,
			run: removals,
		},
	}
}

// steady is the cost of an event in a cluster in which no pod waits and nothing
// follows; its nodes are used by so many hundredths.
func steady(ctx context.Context, nodes int, change func(o events.SnapshotObjects, i int) events.SnapshotObjects, used int) (cost, error) {
	p, o := running(nodes, used)
	d, err := newDecider(ctx, p, o)
	if err != nil {
		return cost{}, err
	}
	// The first delta finds nothing that the one before it left: a live process is
	// always past that.
	if _, err := d.changed(ctx, events.SnapshotObjects{}); err != nil {
		return cost{}, err
	}
	var sum cost
	for i := range repeated {
		t, err := d.changed(ctx, change(o, i))
		if err != nil {
			return cost{}, err
		}
		if len(t.out) > 0 {
			return cost{}, fmt.Errorf("there was something to do: %s", t.out[0].Type())
		}
		sum.add(t.cost)
	}
	return cost{wall: sum.wall / repeated, cpu: sum.cpu / repeated, bytes: sum.bytes / repeated}, nil
}

// repeated is how many deltas the cost of one is the mean of.
const repeated = 20

func oneNode(o events.SnapshotObjects, i int) events.SnapshotObjects {
	n := o.Nodes[len(o.Nodes)/2+i]
	n.Allocatable.MemoryBytes -= 1 << 20
	return events.SnapshotObjects{Nodes: []events.SnapshotNode{n}}
}

func identical(ctx context.Context, pods int) (cost, error) {
	return served(ctx, policyOf(sized("pool-0", 16, 64, 1000)), waitingPods(pods, plainClasses(20)), pods, 0)
}

func manyNodes(ctx context.Context, pods int) (cost, error) {
	// 50 pods of each class fill a node.
	classes := plainClasses(20)
	for i := range classes {
		classes[i].Requests = events.Resources{CPUMilli: 100, MemoryBytes: 128 << 20}
	}
	return served(ctx, policyOf(sized("pool-0", 5, 16, 1000)), waitingPods(pods, classes), pods, (pods+49)/50)
}

func mixed(ctx context.Context, pods int) (cost, error) {
	return served(ctx, mixedPolicy(), mixedPods(pods, false), pods, 0)
}

// served is the cost of finding a node for each of the pods, in a cluster of one
// server that takes none.
func served(ctx context.Context, p events.Policy, o events.SnapshotObjects, pods, nodes int) (cost, error) {
	d, err := newDecider(ctx, p, serverOnly())
	if err != nil {
		return cost{}, err
	}
	c, claims, placed, err := d.settle(ctx, o)
	switch {
	case err != nil:
		return c, err
	case placed != pods:
		return c, fmt.Errorf("%d of %d pods have a node", placed, pods)
	case nodes > 0 && len(claims) != nodes:
		return c, fmt.Errorf("%d nodes were claimed, expected %d", len(claims), nodes)
	}
	return c, nil
}

// removals is the cost of an event in a cluster whose nodes are used too little.
func removals(ctx context.Context, nodes int) (cost, error) {
	return steady(ctx, nodes, oneNode, 40)
}

// nodesOfMixed compares how many nodes the mixed pods get with what first-fit-decreasing
// in Karpenter's manner would make.
func nodesOfMixed() figure {
	const pods = 5000
	return figure{
		name: "decide: nodes for 5,000 mixed pods / first-fit-decreasing", once: true, unit: "×", target: 1, atMost: true,
		how: "claims of the mixed pods above with pool_choice least-nodes, beside what first-fit-decreasing in Karpenter's manner makes of the same pods and pools (test/bench/ffd.go)",
		measure: func(ctx context.Context, _ bool) (sample, error) {
			o := mixedPods(pods, false)
			d, err := newDecider(ctx, mixedPolicy(), serverOnly())
			if err != nil {
				return sample{}, err
			}
			_, claims, placed, err := d.settle(ctx, o)
			if err != nil {
				return sample{}, err
			}
			ours := map[string]int{}
			for _, c := range claims {
				ours[c.Pool]++
			}
			ffd, left := firstFitDecreasing(o, mixedPolicy().Pools)
			return sample{float64(len(claims)) / float64(ffd), fmt.Sprintf("%d nodes for %d pods / %d nodes for %d pods; ours by pool: %v", len(claims), placed, ffd, pods-left, ours)}, nil
		},
	}
}

// onOneHost is what pods cost that may find no place because of others of their group.
func onOneHost() figure {
	const pods = 5000
	return figure{
		name: "decide: 5,000 mixed pods, a sixth of which have to be on the node of their group", unit: "pods/s",
		how: "as above with a sixth kind, affinity by host: the nodes of those that find none are full, and they are tried again and again",
		measure: func(ctx context.Context, _ bool) (sample, error) {
			d, err := newDecider(ctx, mixedPolicy(), serverOnly())
			if err != nil {
				return sample{}, err
			}
			c, claims, placed, err := d.settle(ctx, mixedPods(pods, true))
			return sample{perSecond(pods, c), fmt.Sprintf("%d nodes for %d pods, CPU %.3g ms, %.3g kB", len(claims), placed, ms(c.cpu), c.bytes/1000)}, err
		},
	}
}

// fromScratch is the pure function on an observation that it has never seen.
func fromScratch() figure {
	return figure{
		name: "decide: nothing to do, all of it translated and evaluated anew", unit: "ms",
		how: "1,000 nodes with 40,000 pods, nothing kept from earlier evaluations; a live decider does this after a full snapshot, every 15 minutes",
		measure: func(ctx context.Context, _ bool) (sample, error) {
			p, o := running(1000, 80)
			d, err := newDecider(ctx, p, o)
			if err != nil {
				return sample{}, err
			}
			rec := decision.Record{Config: &decision.Config{Policy: p}}
			t, err := measured(func() (turn, error) {
				obs := decision.Observe(cluster, d.fold)
				res := scaling.Evaluate(d.now, rec.Policy(), scaling.State{}, obs, scaling.Seed{Event: "e", ID: events.ID, NodeName: events.NodeName})
				return turn{placed: len(res.Claims)}, nil
			})
			return sample{ms(t.wall), fmt.Sprintf("CPU %.3g ms, %.3g kB", ms(t.cpu), t.bytes/1000)}, err
		},
	}
}

func fullSnapshot() figure {
	return figure{
		name: "decide: a full snapshot of 1,000 nodes with 40,000 pods", unit: "ms",
		how: "every 15 minutes, and when another process takes over; " + bytesIn,
		measure: func(ctx context.Context, _ bool) (sample, error) {
			p, o := running(1000, 80)
			d, err := newDecider(ctx, p, o)
			if err != nil {
				return sample{}, err
			}
			again := events.SnapshotCaptured{Epoch: 1, Digest: d.fold.Digest(), CapturedAt: d.now, Freshness: d.freshness(), Objects: o}
			t, err := d.handle(ctx, again)
			return sample{ms(t.wall), fmt.Sprintf("CPU %.3g ms, %.3g kB", ms(t.cpu), t.bytes/1000)}, err
		},
	}
}

func garbageOf(what string, run func(ctx context.Context, pods int) (cost, error), target float64) figure {
	const pods = 5000
	return figure{
		name: "decide: memory allocated for each of 5,000 " + what, unit: "kB", target: target, atMost: true,
		how: "everything from the bytes of the snapshot on (Cluster Autoscaler: 140 kB, Karpenter: 350 kB)",
		measure: func(ctx context.Context, _ bool) (sample, error) {
			c, err := run(ctx, pods)
			return sample{garbage(pods, c), fmt.Sprintf("%.3g MB in all", c.bytes/1e6)}, err
		},
	}
}
