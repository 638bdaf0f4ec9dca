package fit

import (
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// Now is the instant of every decision here.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Decide is the evaluation of the case, by the same way as in production: the
// collector's conversion, a snapshot that is captured and folded, decision's
// translation. Nothing is removed: the program has just started.
func Decide(c *Case, round int) (scaling.Result, error) {
	o, err := c.Observe()
	if err != nil {
		return scaling.Result{}, err
	}
	now := c.now()
	policy := scaling.Policy{Pools: c.Pools, StartupGrace: time.Hour, StaleAfter: time.Minute, MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}
	return scaling.Evaluate(now, policy, scaling.State{StartedAt: now}, o, seedOf(c, round)), nil
}

func seedOf(c *Case, round int) scaling.Seed {
	return scaling.Seed{Event: fmt.Sprintf("event-%d-%d", c.Seed, round), ID: events.ID, NodeName: events.NodeName}
}

func (c *Case) now() time.Time {
	if c.At.IsZero() {
		return Now
	}
	return c.At
}

// Observe is the case as decision sees it, everything as fresh as can be.
func (c *Case) Observe() (scaling.Observation, error) {
	var objects []runtime.Object
	for _, o := range c.StorageClasses {
		objects = append(objects, o)
	}
	for _, o := range c.Volumes {
		objects = append(objects, o)
	}
	for _, o := range c.Claims {
		objects = append(objects, o)
	}
	for _, o := range c.Namespaces {
		objects = append(objects, o)
	}
	for _, o := range c.Nodes {
		objects = append(objects, o)
	}
	for _, o := range c.DaemonSets {
		objects = append(objects, o)
	}
	for _, o := range c.Budgets {
		objects = append(objects, o)
	}
	for _, o := range c.Pods {
		objects = append(objects, o)
	}
	snapshot, err := collector.Look(objects...)
	if err != nil {
		return scaling.Observation{}, err
	}
	snapshot.Records = c.Records
	delta, _, err := events.NewFold().Diff(snapshot)
	if err != nil {
		return scaling.Observation{}, err
	}
	captured := events.SnapshotCaptured{Epoch: 1, Digest: delta.Digest, CapturedAt: c.now(), Freshness: map[string]time.Time{}, Objects: snapshot}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindRecord, events.KindNamespace} {
		captured.Freshness[k] = c.now()
	}
	sent, err := json.Marshal(captured)
	if err != nil {
		return scaling.Observation{}, err
	}
	var read events.SnapshotCaptured
	if err := json.Unmarshal(sent, &read); err != nil {
		return scaling.Observation{}, err
	}
	fold := events.NewFold()
	if err := fold.Capture(read); err != nil {
		return scaling.Observation{}, err
	}
	return decision.Observe(ClusterName, fold), nil
}

// Record is the record of a node of ours that is Ready.
func Record(pool, node, claim string) events.NodeRecord {
	at := Now.Add(-time.Minute)
	return events.NodeRecord{Name: node, Pool: pool, ClaimID: claim, Phase: string(lifecycle.Ready), Since: at, ClaimedAt: at, ReadyAt: at}
}
