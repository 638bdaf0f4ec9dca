// Package workload makes the events of a cluster that runs for a while, for
// measurements of their size.
//
// The objects are those that the collector publishes of a simulated cluster. The
// model of what happens in it, per quarter of an hour, is that of a cluster with
// a metrics server and moderate change:
//
//   - a full snapshot, then a delta every 9 s (what the collector makes of
//     changed_every: 10s);
//   - the usage of every node is measured every 15 s, and differs each time;
//   - ten pods on each node in deployments of ten, and two DaemonSets; one pod in
//     forty is replaced;
//   - one node in ten is added and removed again per day, see Life.
//
// A simulated cluster takes time that grows with the square of its size: beyond
// 50 nodes it is made of parts of 50, each with names and ids of its own.
package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

const (
	// Cluster is the name of the cluster.
	Cluster = "home"
	// Quarters is how many quarters of an hour a day has, and LivesPerDay the share
	// of the nodes that come and go in it.
	Quarters    = 24 * 4
	LivesPerDay = 0.1

	part         = 50 // nodes that are simulated at once
	podsPerNode  = 10
	deltaEvery   = 9 * time.Second
	usageEvery   = 15 * time.Second
	replacements = 40 // one pod in so many
)

// Model is a cluster and what has been published of it.
type Model struct {
	now  time.Time
	full events.SnapshotCaptured
	fold *events.Fold
	rand *rand.Rand
	n    int // events so far
}

// New simulates a cluster of so many nodes, at most 50 or a multiple of that, until
// all of its pods run.
func New(ctx context.Context, nodes int, now time.Time) (*Model, error) {
	if nodes < 1 || nodes > part && nodes%part > 0 {
		return nil, fmt.Errorf("a cluster of %d nodes: expected 1 to %d, or a multiple of that", nodes, part)
	}
	full, err := capture(ctx, min(nodes, part))
	if err != nil {
		return nil, fmt.Errorf("simulate a cluster of %d nodes: %w", nodes, err)
	}
	m := &Model{now: now, full: full, fold: events.NewFold(), rand: rand.New(rand.NewPCG(1, uint64(nodes)))}
	m.multiply(nodes / part)
	m.measure()
	return m, m.refresh()
}

// first keeps the first snapshot that a collector publishes.
type first chan events.Event

func (f first) Publish(_ context.Context, es ...events.Event) error {
	for _, e := range es {
		if e.Type() == events.TypeSnapshotCaptured {
			select {
			case f <- e:
			default:
			}
		}
	}
	return nil
}

func capture(ctx context.Context, nodes int) (full events.SnapshotCaptured, err error) {
	o := simulation.Options{Seed: 1, Delays: simulation.Delays{Schedule: -1, PodStart: -1}}
	for i := range nodes {
		o.Servers = append(o.Servers, simulation.Agent{Name: "worker-" + strconv.Itoa(i), CPUMilli: 4000, MemoryBytes: 8 << 30,
			Labels: map[string]string{events.LabelCluster: Cluster, events.LabelPool: "pool-" + strconv.Itoa(i%5), events.LabelClaim: events.ID("claim", strconv.Itoa(i))}})
	}
	w, err := simulation.New(o)
	if err != nil {
		return full, err
	}
	for i := range nodes {
		name := "service-" + strconv.Itoa(i)
		if err := w.Deploy(ctx, simulation.Workload{Name: name, Replicas: podsPerNode, CPUMilli: 200, MemoryBytes: 256 << 20}); err != nil {
			return full, err
		}
		if err := w.Protect(ctx, "default", name, intstr.FromInt32(podsPerNode-1)); err != nil {
			return full, err
		}
	}
	for _, name := range []string{"node-exporter", "log-shipper"} {
		if err := w.RunOnEveryNode(ctx, simulation.Workload{Namespace: "kube-system", Name: name, CPUMilli: 50, MemoryBytes: 64 << 20}); err != nil {
			return full, err
		}
	}
	for next := w.Settle(); !next.IsZero() && ctx.Err() == nil; next = w.Settle() {
		time.Sleep(time.Until(next))
	}
	got := make(first, 1)
	c, err := collector.New(collector.Options{Cluster: Cluster, Client: w.Client(), Publisher: got, Epoch: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return full, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case e := <-got:
		full, err = events.Decode[events.SnapshotCaptured](e)
	case err = <-done:
		done <- nil // it is waited for below
		err = fmt.Errorf("the collector ended: %w", err)
	}
	cancel()
	err = errors.Join(err, <-done)
	if err == nil && (len(full.Objects.Nodes) != nodes || len(full.Objects.Pods) != nodes*(podsPerNode+2)) {
		err = fmt.Errorf("the snapshot has %d nodes and %d pods, expected %d and %d", len(full.Objects.Nodes), len(full.Objects.Pods), nodes, nodes*(podsPerNode+2))
	}
	return full, err
}

// multiply adds parts until there are so many.
func (m *Model) multiply(parts int) {
	o := &m.full.Objects
	one := *o
	for p := 1; p < parts; p++ {
		rename := func(name string) string { // worker-3, service-3 and what is called after them
			base, rest, _ := strings.Cut(name, "-")
			digits, tail, more := strings.Cut(rest, "-")
			i, err := strconv.Atoi(digits)
			if err != nil {
				return name // a DaemonSet: there is one of it
			}
			name = base + "-" + strconv.Itoa(p*part+i)
			if more {
				name += "-" + tail
			}
			return name
		}
		labels := func(in map[string]string) map[string]string {
			out := maps.Clone(in)
			for k, v := range out {
				if k == events.LabelClaim {
					out[k] = events.ID("claim", strconv.Itoa(p), v)
				} else if k != events.LabelPool {
					out[k] = rename(v)
				}
			}
			return out
		}
		for _, n := range one.Nodes {
			n.Name, n.UID, n.Labels = rename(n.Name), m.text(len(n.UID)), labels(n.Labels)
			o.Nodes = append(o.Nodes, n)
		}
		ids := map[string]string{}
		for _, c := range one.Classes {
			l := labels(c.Labels)
			if maps.Equal(l, c.Labels) {
				continue
			}
			ids[c.ID] = m.text(len(c.ID))
			c.ID, c.Labels = ids[c.ID], l
			o.Classes = append(o.Classes, c)
		}
		for _, pod := range one.Pods {
			owner := *pod.Owner
			owner.Name = rename(owner.Name)
			pod.Name, pod.UID, pod.Node, pod.Owner = owner.Name+"-"+m.text(5), m.text(len(pod.UID)), rename(pod.Node), &owner
			if id, ok := ids[pod.Class]; ok {
				pod.Class = id
			}
			o.Pods = append(o.Pods, pod)
		}
		for _, b := range one.PDBs {
			b.Name, b.Selector.MatchLabels = rename(b.Name), labels(b.Selector.MatchLabels)
			o.PDBs = append(o.PDBs, b)
		}
	}
}

// Full is a full snapshot of the cluster as it is now.
func (m *Model) Full() (events.Event, error) { return m.event(m.full) }

// Quarter returns the snapshots of the next quarter of an hour.
func (m *Model) Quarter() ([]events.Event, error) {
	full, err := m.Full()
	if err != nil {
		return nil, err
	}
	out := []events.Event{full}
	const deltas = int(15*time.Minute/deltaEvery) - 1
	replaced := len(m.full.Objects.Pods) / replacements
	for i := range deltas {
		measured := m.now.Truncate(usageEvery)
		m.now = m.now.Add(deltaEvery)
		if m.now.Truncate(usageEvery) != measured {
			m.measure()
		}
		for range (i+1)*replaced/deltas - i*replaced/deltas {
			p := &m.full.Objects.Pods[m.rand.IntN(len(m.full.Objects.Pods))]
			p.Name, p.UID, p.CreatedAt = p.Owner.Name+"-"+m.text(5), m.text(36), m.now
		}
		delta, err := m.delta()
		if err != nil {
			return nil, err
		}
		out = append(out, delta)
	}
	return out, m.refresh()
}

// measure gives every node another usage.
func (m *Model) measure() {
	m.full.Objects.Usage = m.full.Objects.Usage[:0]
	for _, n := range m.full.Objects.Nodes {
		m.full.Objects.Usage = append(m.full.Objects.Usage, events.SnapshotUsage{Node: n.Name, CPUMilli: 100 + m.rand.Int64N(3000),
			MemoryBytes: 1<<30 + 4096*m.rand.Int64N(1<<20), At: m.now.Add(-time.Duration(m.rand.Int64N(int64(usageEvery)))).Truncate(time.Second)})
	}
}

// refresh makes the full snapshot the one of now.
func (m *Model) refresh() error {
	d, _, err := events.NewFold().Diff(m.full.Objects)
	if err != nil {
		return err
	}
	m.full.Digest, m.full.CapturedAt, m.full.Freshness = d.Digest, m.now, m.freshness()
	return m.fold.Capture(m.full)
}

func (m *Model) delta() (events.Event, error) {
	d, _, err := m.fold.Diff(m.full.Objects)
	if err != nil {
		return events.Event{}, err
	}
	d.Epoch, d.CapturedAt, d.Freshness = m.full.Epoch, m.now, m.freshness()
	if err := m.fold.Change(d); err != nil {
		return events.Event{}, err
	}
	return m.event(d)
}

func (m *Model) freshness() map[string]time.Time {
	out := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindUsage, events.KindRecord} {
		out[k] = m.now
	}
	return out
}

func (m *Model) event(p events.Payload) (events.Event, error) {
	m.n++
	return events.New(events.Meta{Cluster: Cluster, Publisher: "collector", ID: events.ID("workload", strconv.Itoa(m.n)), Time: m.now}, p)
}

func (m *Model) text(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "bcdfghjklmnpqrstvwxz2456789"[m.rand.IntN(27)]
	}
	return string(b)
}

// Life returns what is published about a node from its claim to its removal:
// every event about nodes and decisions of the catalogue once, as in their golden
// files, which goldens holds.
func Life(goldens fs.FS, node string) ([]events.Event, error) {
	var out []events.Event
	for _, d := range events.Catalog() {
		name := strings.TrimPrefix(d.Type, events.TypePrefix)
		if !strings.HasPrefix(name, "node.") && !slices.Contains([]string{events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld}, d.Type) {
			continue
		}
		raw, err := fs.ReadFile(goldens, name+".golden.json")
		if err != nil {
			return nil, err
		}
		var e events.Event
		var data bytes.Buffer // without the indentation of the file
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := json.Compact(&data, e.Data()); err != nil {
			return nil, fmt.Errorf("%s: data: %w", name, err)
		}
		e.DataEncoded = data.Bytes()
		key := node
		if d.Key == events.KeyCluster {
			key = events.ClusterKey
		}
		e.SetID(events.ID(name, node))
		e.SetSubject(key)
		e.SetExtension(events.ExtPartitionKey, Cluster+"/"+key)
		out = append(out, e)
	}
	return out, nil
}
