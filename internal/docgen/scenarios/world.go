package scenarios

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// begin is when every scenario begins: a Tuesday morning.
var begin = time.Date(2026, 3, 3, 9, 0, 0, 0, time.UTC)

const gi = 1 << 30

// world is a cluster as its collector and its people tell of it, and decision's
// own code that decides on what they say. An error stays until the end.
type world struct {
	now     time.Time
	stream  *stream
	rerun   *decision.Rerun
	fold    *events.Fold
	objects events.SnapshotObjects
	policy  events.Policy
	unknown string // a kind of object that the collector lost sight of
	err     error
}

// newWorld is a cluster of one server with a pool "burst" of Docker nodes, whose
// scale_down keys are given.
func newWorld(scaleDown string) *world {
	w := &world{now: begin, stream: &stream{read: make(chan struct{})}, fold: events.NewFold()}
	c, err := config.Parse("scenario.yaml", fmt.Appendf(nil, `
clusters:
  - name: %s
    kubeconfig: in-cluster
    pools:
      - {name: burst, provider: docker, min: 0, max: 3, cpu: 2, memory: 4Gi, scale_down: {%s}}
`, cluster, scaleDown), ".")
	if w.fail(err) {
		return w
	}
	w.policy = c.Policy(cluster)
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "decision", ID: "beginning", Time: w.now},
		events.DecisionCheckpointed{State: events.Raw("{}"), StateDigest: "-", At: w.now})
	if w.fail(err) {
		return w
	}
	key := bus.Key{Cluster: cluster, Name: events.ClusterKey}
	w.rerun, err = decision.NewRerun(w.stream, bus.Delivery{Event: e, Key: key, Incarnation: incarnation, StreamTime: w.now})
	w.fail(err)
	w.node("server", "", 2000)
	w.say("app", events.ConfigApplied{Digest: "policy", Start: w.now.Add(-time.Hour), Policy: w.policy})
	w.look()
	return w
}

func (w *world) fail(err error) bool {
	w.err = errors.Join(w.err, err)
	return w.err != nil
}

// say puts a fact on the stream, and behind it what decision makes of it. It
// returns the id of the fact.
func (w *world) say(publisher string, p events.Payload) string {
	if w.err != nil {
		return ""
	}
	id := events.ID("fact", fmt.Sprint(len(w.stream.all)+1))
	m := events.Meta{Cluster: cluster, Publisher: publisher, ID: id, Time: w.now}
	if def, _ := events.Lookup(p.EventType()); def.Key == events.KeyNode {
		m.Node = nodeOf(p)
	}
	e, err := events.New(m, p)
	if w.fail(err) {
		return ""
	}
	d := w.append(e)
	if !decision.Reads(d) {
		return id
	}
	out, err := w.rerun.Handle(context.Background(), d) // all of it is in memory
	w.fail(err)
	for _, e := range out {
		w.append(e)
	}
	return id
}

func nodeOf(p events.Payload) string {
	switch p := p.(type) {
	case events.NodeCordoned:
		return p.Node
	case events.NodeDrained:
		return p.Node
	case events.NodeRemoved:
		return p.Node
	}
	return ""
}

func (w *world) append(e events.Event) bus.Delivery {
	_, name, err := events.PartitionKey(e)
	w.fail(err)
	d := bus.Delivery{Event: e, Key: bus.Key{Cluster: cluster, Name: name}, Sequence: uint64(len(w.stream.all) + 1),
		Incarnation: incarnation, StreamTime: w.now, Attempt: 1}
	w.stream.all = append(w.stream.all, d)
	return d
}

// look is a full snapshot, and with it a checkpoint of what decision remembers.
func (w *world) look() {
	diff, _, err := events.NewFold().Diff(w.objects)
	if w.fail(err) {
		return
	}
	fresh := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindRecord} {
		if k != w.unknown {
			fresh[k] = w.now
		}
	}
	w.say("collector", events.SnapshotCaptured{Epoch: 1, Digest: diff.Digest, CapturedAt: w.now, Freshness: fresh, Objects: w.objects})
}

// pass lets time go by with a snapshot every ten seconds.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.err == nil && w.now.Before(end); {
		w.now = w.now.Add(10 * time.Second)
		w.look()
	}
}

// until lets time go by until decision publishes an event of a type, and returns it.
func until[T events.Payload](w *world, limit time.Duration) (p T) {
	for end := w.now.Add(limit); w.err == nil; {
		from := len(w.stream.all)
		w.now = w.now.Add(10 * time.Second)
		w.look()
		for _, d := range w.stream.all[min(from, len(w.stream.all)):] {
			if d.Event.Type() == p.EventType() {
				p, err := events.Decode[T](d.Event)
				w.fail(err)
				return p
			}
		}
		if w.now.After(end) {
			w.fail(fmt.Errorf("no %s within %s", p.EventType(), limit))
		}
	}
	return p
}

// node adds a Ready node; a pool makes it ours, there for an hour.
func (w *world) node(name, pool string, cpu int64) {
	size := events.Resources{CPUMilli: cpu, MemoryBytes: 4 * gi, Pods: 110}
	at := w.now.Add(-time.Hour).Add(time.Duration(len(w.objects.Nodes)) * time.Minute)
	n := events.SnapshotNode{Name: name, UID: "uid-" + name, CreatedAt: at, Ready: "True", ReadySince: at, Capacity: size, Allocatable: size,
		Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}}
	if pool != "" {
		maps.Copy(n.Labels, map[string]string{events.LabelCluster: cluster, events.LabelPool: pool, events.LabelClaim: "claim-" + name})
		w.objects.Records = append(w.objects.Records, events.NodeRecord{Name: name, Pool: pool, ClaimID: "claim-" + name, Phase: "ready",
			CorrelationID: "life-" + name, Since: at, ClaimedAt: at, ReadyAt: at})
	}
	w.objects.Nodes = append(w.objects.Nodes, n)
}

// join makes a claimed node Ready now.
func (w *world) join(c events.NodeClaimed) {
	w.node(c.Node, c.Pool, 2000)
	n := &w.objects.Nodes[len(w.objects.Nodes)-1]
	n.CreatedAt, n.ReadySince, n.Labels[events.LabelClaim] = w.now, w.now, c.ClaimID
	r := &w.objects.Records[len(w.objects.Records)-1]
	r.ClaimID, r.Since, r.ClaimedAt, r.ReadyAt = c.ClaimID, w.now, w.now, w.now
	w.look()
}

// leave is what draining and provisioning publish of a removal that goes well.
func (w *world) leave(r events.NodeDrainRequested) {
	ref := events.DrainRef{Node: r.Node, Pool: r.Pool, ClaimID: r.ClaimID, Goal: r.Goal, RequestID: r.DecisionID, At: w.now}
	w.say("draining", events.NodeCordoned{DrainRef: ref, Reason: r.Reason})
	w.now = w.now.Add(2 * time.Second)
	w.say("draining", events.NodeDrained{DrainRef: ref, DecisionID: r.DecisionID, Reason: r.Reason, DecidedAt: r.DecidedAt})
	w.now = w.now.Add(3 * time.Second)
	w.say("provisioning", events.NodeRemoved{Node: r.Node, Pool: r.Pool, ClaimID: r.ClaimID, DecisionID: r.DecisionID, Reason: r.Reason, At: w.now})
	w.objects.Nodes = slices.DeleteFunc(slices.Clone(w.objects.Nodes), func(n events.SnapshotNode) bool { return n.Name == r.Node })
	w.objects.Records = slices.DeleteFunc(slices.Clone(w.objects.Records), func(n events.NodeRecord) bool { return n.Name == r.Node })
	w.look()
}

// pod adds a pod of a deployment; on no node it is pending and refused by the
// scheduler. edit may change it and what it asks for.
func (w *world) pod(namespace, name, node string, cpu int64, edit ...func(*events.SnapshotPod, *events.PodClass)) {
	c := events.PodClass{ID: namespace + "/" + name, Namespace: namespace, Labels: map[string]string{"app": name},
		Requests: events.Resources{CPUMilli: cpu, MemoryBytes: gi / 4}}
	p := events.SnapshotPod{Namespace: namespace, Name: name, UID: "uid-" + name, Class: c.ID, Node: node, Phase: "Running", CreatedAt: w.now,
		Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: name}}
	if node == "" {
		p.Phase, p.UnschedulableSince = "Pending", w.now
		p.UnschedulableMessage = fmt.Sprintf("0/%d nodes are available: insufficient cpu", len(w.objects.Nodes))
	}
	for _, e := range edit {
		e(&p, &c)
	}
	w.objects.Classes = append(slices.Clone(w.objects.Classes), c)
	w.objects.Pods = append(slices.Clone(w.objects.Pods), p)
}

// pods adds pods that are alike.
func (w *world) pods(namespace, app, node string, cpu int64, n int) {
	for i := range n {
		w.pod(namespace, fmt.Sprintf("%s-%d", app, i), node, cpu, func(p *events.SnapshotPod, c *events.PodClass) {
			c.ID, c.Labels["app"], p.Class = namespace+"/"+app, app, namespace+"/"+app
			p.Owner.Name = app
		})
	}
	w.objects.Classes = slices.CompactFunc(w.objects.Classes, func(a, b events.PodClass) bool { return a.ID == b.ID })
}

// gone takes the pods of an app away.
func (w *world) gone(app string) {
	w.objects.Pods = slices.DeleteFunc(slices.Clone(w.objects.Pods), func(p events.SnapshotPod) bool { return p.Owner != nil && p.Owner.Name == app })
	w.objects.Classes = slices.DeleteFunc(slices.Clone(w.objects.Classes), func(c events.PodClass) bool { return c.Labels["app"] == app })
}
