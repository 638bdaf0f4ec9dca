package app

import (
	"context"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// nodeRecord joins what provisioning and draining know of a node into what a
// snapshot carries. The machine's log stays out: it is in node.failed.
func nodeRecord(name string, n *lifecycle.Node, d *lifecycle.Drain) events.NodeRecord {
	r := events.NodeRecord{Name: name}
	if n != nil {
		r.Pool, r.ClaimID, r.CorrelationID = n.Pool, n.ClaimID, n.CorrelationID
		r.Phase, r.Since, r.Deadline = string(n.Phase), n.Since, n.Deadline
		r.ClaimedAt, r.ReadyAt = n.ClaimedAt, n.ReadyAt
		if f := n.Failure; f != nil {
			r.Failure = &events.Failure{Stage: string(f.Stage), Reason: events.Reason(f.Reason), At: f.At}
		}
	}
	if d != nil && d.Phase != "" && d.Phase != lifecycle.DrainDone {
		r.Drain = &events.DrainRecord{Goal: d.Goal, Phase: string(d.Phase), Since: d.Since, Deadline: d.Deadline,
			RequestID: d.RequestID, Reason: d.Reason.Message}
		if d.Phase == lifecycle.DrainFinishing {
			r.Drain.Deadline, r.Drain.WaitingFor = d.JobsUntil, d.WaitingFor
		}
		for _, b := range d.Blockers {
			r.Drain.Blockers = append(r.Drain.Blockers, events.Blocker(b))
		}
		if n == nil {
			r.Pool, r.ClaimID, r.CorrelationID = d.Pool, d.ClaimID, d.CorrelationID
		}
	}
	return r
}

// records joins the record buckets of provisioning and draining. It only reads.
type records struct {
	cluster string
	nodes   *bus.State[lifecycle.Node]
	drains  *bus.State[lifecycle.Drain]
}

func openRecords(ctx context.Context, b *bus.Bus, cluster string) (*records, error) {
	nodes, err := bus.ReadState[lifecycle.Node](ctx, b, events.HandlerProvisioning)
	if err != nil {
		return nil, fmt.Errorf("open node records: %w", err)
	}
	drains, err := bus.ReadState[lifecycle.Drain](ctx, b, events.HandlerDraining)
	if err != nil {
		return nil, fmt.Errorf("open drain records: %w", err)
	}
	return &records{cluster: cluster, nodes: nodes, drains: drains}, nil
}

// Watch implements collector.Records: what there is, the mark, then every change.
func (r *records) Watch(ctx context.Context) (<-chan collector.RecordChange, error) {
	nodes, err := r.nodes.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("read node records: %w", err)
	}
	drains, err := r.drains.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("read drain records: %w", err)
	}
	// The watches begin with the present records too, so that nothing is missed
	// between the reading above and them.
	nodeChanges, err := r.nodes.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch node records: %w", err)
	}
	drainChanges, err := r.drains.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch drain records: %w", err)
	}
	out := make(chan collector.RecordChange)
	go func() {
		defer close(out)
		f := follower{cluster: r.cluster, join: newJoin(), out: out}
		for _, n := range nodes {
			f.join.node(n)
		}
		for _, d := range drains {
			f.join.drain(d)
		}
		for name := range f.join.names(f.cluster) {
			if !f.send(ctx, name) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case out <- collector.RecordChange{Synced: true}:
		}
		f.run(ctx, nodeChanges, drainChanges)
	}()
	return out, nil
}

// follower turns the changes of two buckets into changes of one record.
type follower struct {
	cluster string
	join    *join
	out     chan<- collector.RecordChange
}

func (f follower) run(ctx context.Context, nodes <-chan bus.Record[lifecycle.Node], drains <-chan bus.Record[lifecycle.Drain]) {
	for {
		var k bus.Key
		select {
		case <-ctx.Done():
			return
		case n, ok := <-nodes:
			if !ok {
				return
			}
			k = n.Key
			f.join.node(n)
		case d, ok := <-drains:
			if !ok {
				return
			}
			k = d.Key
			f.join.drain(d)
		}
		if k.Cluster == f.cluster && !f.send(ctx, k.Name) {
			return
		}
	}
}

// send sends one record as it is; false when ctx ended.
func (f follower) send(ctx context.Context, name string) bool {
	rec, exists := f.join.joined(bus.Key{Cluster: f.cluster, Name: name})
	select {
	case <-ctx.Done():
		return false
	case f.out <- collector.RecordChange{Record: rec, Deleted: !exists}:
		return true
	}
}

// join holds the two halves of each record of every cluster.
type join struct {
	nodes  map[bus.Key]*lifecycle.Node
	drains map[bus.Key]*lifecycle.Drain
}

func newJoin() *join {
	return &join{nodes: map[bus.Key]*lifecycle.Node{}, drains: map[bus.Key]*lifecycle.Drain{}}
}

func (j *join) node(n bus.Record[lifecycle.Node]) {
	if n.Deleted {
		delete(j.nodes, n.Key)
		return
	}
	j.nodes[n.Key] = &n.State
}

func (j *join) drain(d bus.Record[lifecycle.Drain]) {
	if d.Deleted {
		delete(j.drains, d.Key)
		return
	}
	j.drains[d.Key] = &d.State
}

// names returns the names of the nodes of a cluster.
func (j *join) names(cluster string) map[string]bool {
	out := map[string]bool{}
	for k := range j.nodes {
		if k.Cluster == cluster {
			out[k.Name] = true
		}
	}
	for k := range j.drains {
		if k.Cluster == cluster {
			out[k.Name] = true
		}
	}
	return out
}

// joined returns the record of a node, and whether there is one.
func (j *join) joined(k bus.Key) (events.NodeRecord, bool) {
	n, d := j.nodes[k], j.drains[k]
	r := nodeRecord(k.Name, n, d)
	return r, n != nil || r.Drain != nil
}
