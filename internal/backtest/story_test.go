package backtest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

const (
	home  = "home"
	gi    = 1 << 30
	every = 10 * time.Second // how often the log has a snapshot
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

// memory is a stored log.
type memory []bus.Delivery

func (m memory) LogState(context.Context) (bus.LogState, error) {
	return bus.LogState{Exists: len(m) > 0, Incarnation: "recorded"}, nil
}

func (m memory) Read(context.Context, bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range m {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// story writes a log: what the collector and people say, and, as the test has it, what
// became of nodes. Checkpoints are those of decision's own code.
type story struct {
	t       testing.TB
	now     time.Time
	log     memory
	fold    *events.Fold
	objects events.SnapshotObjects
	run     *decision.Rerun
	decided []events.Event // what decision made of the last event
}

// policy has one pool "a" of at most three nodes of one core, which go five minutes
// after they are needed.
func policy(edit ...func(*events.Policy)) events.Policy {
	second := events.Duration(time.Second)
	minute := 60 * second
	p := events.Policy{
		Pools: []events.PoolPolicy{{Name: "a", Provider: "p", Max: 3, Price: 0.6, Size: events.Resources{CPUMilli: 1000, MemoryBytes: 4 * gi, Pods: 110},
			ScaleUpCooldown: 3 * minute, ScaleDownAfterAdd: 10 * minute, ScaleDownAfterFail: 3 * minute, ScaleDownCooldown: 10 * second, Stabilization: 5 * minute,
			UtilizationThreshold: 0.5, Unneeded: 5 * minute, MinLifetime: 10 * minute, MaxRemovals: 1, RegisterDeadline: 2 * minute, ClaimExpiry: 2 * minute,
			DrainDeadline: 2 * minute, BackoffInitial: 30 * second, BackoffMax: 10 * minute, BackoffReset: 60 * minute}},
		AlertRules:   []events.AlertRule{{Name: "busy", Pool: "a", Direction: "up", Amount: 1, Matchers: []events.Matcher{{Label: "alertname", Op: "=", Value: "Busy"}}}},
		StartupGrace: 10 * minute, StaleAfter: 30 * second, MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3,
	}
	for _, e := range edit {
		e(&p)
	}
	return p
}

// begin is a cluster of one server, with no room for pods, at noon.
func begin(t testing.TB, p events.Policy, edit ...func(*story)) *story {
	t.Helper()
	s := &story{t: t, now: noon, fold: events.NewFold()}
	e, err := events.New(events.Meta{Cluster: home, Publisher: "decision", ID: "beginning", Time: s.now}, events.DecisionCheckpointed{State: events.Raw("{}"), StateDigest: "-", At: s.now})
	require.NoError(t, err)
	s.run, err = decision.NewRerun(s.log, bus.Delivery{Event: e, Key: bus.Key{Cluster: home, Name: events.ClusterKey}, Incarnation: "recorded", StreamTime: s.now})
	require.NoError(t, err)
	s.objects.Nodes = []events.SnapshotNode{{Name: "server", UID: "server", CreatedAt: noon.Add(-24 * time.Hour), Ready: "True", ReadySince: noon.Add(-24 * time.Hour),
		Labels: map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}, Allocatable: events.Resources{CPUMilli: 100, MemoryBytes: gi, Pods: 110}}}
	for _, f := range edit {
		f(s)
	}
	s.say("app", "", events.ConfigApplied{Digest: "recorded-policy", Version: "v1", Start: noon.Add(-time.Hour), Policy: p})
	s.full()
	return s
}

// at is a time of the day as "12:34:56" would be, from noon on.
func at(minutes, seconds int) time.Time {
	return noon.Add(time.Duration(minutes)*time.Minute + time.Duration(seconds)*time.Second)
}

// say puts an event on the log; decision decides on it, if it reads it, and of what it
// makes of it the log gets the checkpoint alone.
func (s *story) say(publisher, node string, p events.Payload) {
	s.t.Helper()
	e, err := events.New(events.Meta{Cluster: home, Node: node, Publisher: publisher, ID: fmt.Sprint("recorded-", len(s.log)+1), Time: s.now}, p)
	require.NoError(s.t, err)
	d := s.append(e)
	s.decided = nil
	if !decision.Reads(d) {
		return
	}
	s.decided, err = s.run.Handle(s.t.Context(), d)
	require.NoError(s.t, err)
	for _, e := range s.decided {
		if e.Type() == events.TypeDecisionCheckpointed {
			s.append(e)
		}
	}
}

func (s *story) append(e events.Event) bus.Delivery {
	d, err := bus.Delivered(e, uint64(len(s.log)+1), "recorded", s.now)
	require.NoError(s.t, err)
	s.log = append(s.log, d)
	return d
}

func (s *story) freshness() map[string]time.Time {
	out := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindRecord, events.KindNamespace} {
		out[k] = s.now
	}
	return out
}

func (s *story) full() {
	s.t.Helper()
	diff, _, err := events.NewFold().Diff(s.objects)
	require.NoError(s.t, err)
	p := events.SnapshotCaptured{Epoch: 1, Digest: diff.Digest, CapturedAt: s.now, Freshness: s.freshness(), Objects: s.objects}
	require.NoError(s.t, s.fold.Capture(p))
	s.say("collector", "", p)
}

func (s *story) snapshot() {
	s.t.Helper()
	d, _, err := s.fold.Diff(s.objects)
	require.NoError(s.t, err)
	d.Epoch, d.CapturedAt, d.Freshness = 1, s.now, s.freshness()
	require.NoError(s.t, s.fold.Change(d))
	s.say("collector", "", d)
}

// until lets time go by, with a snapshot every ten seconds, and one at its end.
func (s *story) until(t time.Time) {
	s.t.Helper()
	for s.now.Before(t) {
		s.now = s.now.Add(every - s.now.Sub(noon)%every)
		if s.now.After(t) {
			s.now = t
		}
		s.snapshot()
	}
}

// pod adds a pod that waits, or is on a node.
func (s *story) pod(name, node string, cpu int64, edit ...func(*events.SnapshotPod)) {
	class := fmt.Sprint("cpu-", cpu)
	if !slices.ContainsFunc(s.objects.Classes, func(c events.PodClass) bool { return c.ID == class }) {
		s.objects.Classes = append(slices.Clone(s.objects.Classes), events.PodClass{ID: class, Namespace: "ns", Labels: map[string]string{"app": class},
			Requests: events.Resources{CPUMilli: cpu, MemoryBytes: gi / 4}})
	}
	p := events.SnapshotPod{Namespace: "ns", Name: name, UID: "uid-" + name, Class: class, Node: node, Phase: "Running", CreatedAt: s.now, Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: "rs"}}
	if node == "" {
		p.Phase, p.UnschedulableSince = "Pending", s.now
	}
	for _, e := range edit {
		e(&p)
	}
	s.objects.Pods = append(slices.Clone(s.objects.Pods), p)
}

func (s *story) move(name, node string) {
	s.objects.Pods = slices.Clone(s.objects.Pods)
	for i := range s.objects.Pods {
		if p := &s.objects.Pods[i]; p.Name == name {
			p.Node, p.Phase, p.UnschedulableSince = node, "Running", time.Time{}
		}
	}
}

func (s *story) end(name string) {
	s.objects.Pods = slices.DeleteFunc(slices.Clone(s.objects.Pods), func(p events.SnapshotPod) bool { return p.Name == name })
}

// node adds a Ready node of pool a.
func (s *story) node(name string, since time.Time) {
	size := policy().Pools[0].Size
	s.objects.Nodes = append(slices.Clone(s.objects.Nodes), events.SnapshotNode{Name: name, UID: "uid-" + name, CreatedAt: since, Ready: "True", ReadySince: since,
		Labels:   map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, events.LabelCluster: home, events.LabelPool: "a", events.LabelClaim: "claim-" + name},
		Capacity: size, Allocatable: size})
	s.objects.Records = append(slices.Clone(s.objects.Records), events.NodeRecord{Name: name, Pool: "a", ClaimID: "claim-" + name, Phase: "ready", Since: since, ClaimedAt: since, ReadyAt: since})
}

func (s *story) change(name string, f func(n *events.SnapshotNode, r *events.NodeRecord)) {
	s.objects.Nodes, s.objects.Records = slices.Clone(s.objects.Nodes), slices.Clone(s.objects.Records)
	n := slices.IndexFunc(s.objects.Nodes, func(n events.SnapshotNode) bool { return n.Name == name })
	r := slices.IndexFunc(s.objects.Records, func(n events.NodeRecord) bool { return n.Name == name })
	f(&s.objects.Nodes[n], &s.objects.Records[r])
}

var why = events.Reason{Code: "Test", Message: "as the story has it"}

// claimed, ready, draining, drained and removed are what the log says of a node.
func (s *story) claimed(name string) {
	p := policy().Pools[0]
	s.say("decision", name, events.NodeClaimed{ClaimID: "claim-" + name, Node: name, Pool: "a", Provider: "p", Reason: why, Size: p.Size, ClaimedAt: s.now,
		NotAfter: s.now.Add(2 * time.Minute), RegisterDeadline: p.RegisterDeadline})
}

func (s *story) ready(name string) {
	s.say("provisioning", name, events.NodeReady{Node: name, Pool: "a", ClaimID: "claim-" + name})
	s.node(name, s.now)
}

func (s *story) draining(name string) {
	s.say("decision", name, events.NodeDrainRequested{Node: name, Pool: "a", ClaimID: "claim-" + name, Goal: events.GoalRemove, Reason: why, DecidedAt: s.now,
		NotAfter: s.now.Add(2 * time.Minute), Deadline: events.Duration(2 * time.Minute)})
	s.change(name, func(n *events.SnapshotNode, r *events.NodeRecord) {
		n.Unschedulable = true
		r.Drain = &events.DrainRecord{Goal: events.GoalRemove, Phase: "draining", RequestID: "r", Since: s.now}
	})
}

func (s *story) drained(name string, evicted ...string) {
	ref := events.DrainRef{Node: name, Pool: "a", ClaimID: "claim-" + name, Goal: events.GoalRemove, RequestID: "r", At: s.now}
	if len(evicted) > 0 {
		s.say("draining", name, events.NodeDrainProgressed{DrainRef: ref, Evicted: evicted})
	}
	s.say("draining", name, events.NodeDrained{DrainRef: ref, Reason: why, Evicted: len(evicted)})
}

func (s *story) removed(name string) {
	s.say("provisioning", name, events.NodeRemoved{Node: name, Pool: "a", ClaimID: "claim-" + name, Reason: why, At: s.now})
	s.objects.Nodes = slices.DeleteFunc(slices.Clone(s.objects.Nodes), func(n events.SnapshotNode) bool { return n.Name == name })
	s.objects.Records = slices.DeleteFunc(slices.Clone(s.objects.Records), func(n events.NodeRecord) bool { return n.Name == name })
}

// try runs a backtest of the story.
func (s *story) try(p events.Policy, edit ...func(*Options)) Cluster {
	s.t.Helper()
	o := Options{Log: s.log, Policies: map[string]Policy{home: {Digest: "new-policy", Policy: p}}}
	for _, e := range edit {
		e(&o)
	}
	r, err := Run(s.t.Context(), o)
	require.NoError(s.t, err)
	require.Len(s.t, r.Clusters, 1)
	return r.Clusters[0]
}

// whole is a memory that says what it holds, as an export asks.
type whole struct{ memory }

func (w whole) LogState(context.Context) (bus.LogState, error) {
	first, last := w.memory[0], w.memory[len(w.memory)-1]
	return bus.LogState{Exists: true, Incarnation: "recorded", First: first.Sequence, FirstTime: first.StreamTime, Last: last.Sequence, LastTime: last.StreamTime}, nil
}
