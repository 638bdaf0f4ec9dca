package view

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// Clusters implements api.World.
func (v *View) Clusters(ctx context.Context) ([]api.Cluster, error) {
	now := v.o.Clock.Now()
	var out []api.Cluster
	for _, name := range v.o.Clusters {
		m, _, err := v.o.Memories.Memory(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("read decision's record of %s: %w", name, err)
		}
		c := api.Cluster{Name: name, DryRun: m.DryRun, Policy: m.Digest, PolicyAt: m.Core.StartedAt}
		if p := m.Promotion; p != nil {
			c.Promoted = &api.Promoted{Actor: p.Actor, Reason: p.Reason, File: p.Source}
		}
		if grace := m.Core.StartedAt.Add(m.Policy.StartupGrace.Std()); !m.Core.StartedAt.IsZero() && grace.After(now) {
			c.GraceUntil = grace
		}
		v.mu.RLock()
		cv := v.clusters[name]
		c.ServerVersion, c.SnapshotAt, c.Problem = cv.fold.ServerVersion, cv.fold.CapturedAt, cmp.Or(cv.problem, m.Stale)
		for _, n := range cv.fold.Nodes() {
			c.Nodes++
			if n.Ready == "True" {
				c.ReadyNodes++
			}
		}
		for _, p := range cv.fold.Pods() {
			if p.Phase == "Succeeded" || p.Phase == "Failed" {
				continue
			}
			c.Pods++
			if p.Node == "" && !p.UnschedulableSince.IsZero() {
				c.PendingPods++
			}
		}
		v.mu.RUnlock()
		c.Stale = c.Problem != "" || c.SnapshotAt.IsZero()
		if after := m.Policy.StaleAfter.Std(); after > 0 {
			c.StaleAfter = m.Policy.StaleAfter.String()
			c.Stale = c.Stale || now.Sub(c.SnapshotAt) > after
		}
		c.Removals = removals(m, now)
		out = append(out, c)
	}
	return out, nil
}

// Pools implements api.World.
func (v *View) Pools(ctx context.Context) ([]api.Pool, error) {
	now := v.o.Clock.Now()
	var out []api.Pool
	for _, cluster := range v.o.Clusters {
		m, ok, err := v.o.Memories.Memory(ctx, cluster)
		if err != nil {
			return nil, fmt.Errorf("read decision's record of %s: %w", cluster, err)
		}
		if !ok {
			continue
		}
		guards := v.guards(now, cluster, m)
		for _, pool := range m.Policy.Pools {
			p := api.Pool{Cluster: cluster, Name: pool.Name, Provider: pool.Provider, Min: pool.Min, Max: pool.Max}
			if i := slices.IndexFunc(m.Rules.Pools, func(r scaling.Pool) bool { return r.Name == pool.Name }); i >= 0 {
				limits := m.Rules.Pools[i].LimitsAt(now)
				p.Min, p.Max, p.Schedules = limits.Min, limits.Max, limits.Open
				p.Flaps = flaps(m.Rules.Pools[i], m.Core.Pools[pool.Name], now)
			}
			p.Guards = guards[pool.Name]
			holds := m.Core.HoldsOf(pool.Name, now)
			p.Min = max(p.Min, min(scaling.Floor(holds), p.Max))
			for _, h := range holds {
				p.Holds = append(p.Holds, api.Hold{RequestID: h.ID, Nodes: h.Nodes, Whole: h.Whole, Until: h.Until, Actor: h.Actor, Reason: h.Reason})
			}
			p.Metrics = metrics(m, pool.Name, now)
			v.count(&p, m)
			if x, ok := m.Core.Pauses[pool.Name]; ok && (x.Until.IsZero() || x.Until.After(now)) {
				p.Pause = &api.Pause{Actor: x.Actor, Reason: x.Reason, Since: x.Since, Until: x.Until}
			}
			if b := m.Core.Pools[pool.Name].Backoff; b.Until.After(now) {
				p.Backoff = &api.Backoff{Until: b.Until, Failures: b.Failures, Message: b.Message}
			}
			if p.Last, err = v.last(ctx, cluster, pool.Name); err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		out = append(out, v.unknown(cluster, m)...)
	}
	return out, nil
}

// count fills in how many nodes a pool has, by their records and by decision's
// claims and drains that have no record yet.
func (v *View) count(p *api.Pool, m Memory) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	ready, coming, leaving := map[string]bool{}, map[string]bool{}, map[string]bool{}
	records := v.clusters[p.Cluster].fold.Records()
	for name, r := range records {
		switch phase := lifecycle.Phase(r.Phase); {
		case m.Rules.PoolOf(r.Pool) != p.Name:
		case phase == lifecycle.Removing || (phase.Live() && removing(r.Drain)):
			leaving[name] = true
		case phase == lifecycle.Ready:
			ready[name] = true
		case phase.Live():
			coming[name] = true
		}
	}
	for name, c := range m.Core.Claims {
		if _, known := records[name]; m.Rules.PoolOf(c.Pool) == p.Name && !known {
			coming[name] = true
		}
	}
	for name, d := range m.Core.Drains {
		if m.Rules.PoolOf(d.Pool) == p.Name && ready[name] && d.CancelledAt.IsZero() {
			delete(ready, name)
			leaving[name] = true
		}
	}
	p.Ready, p.Claims, p.Leaving = len(ready), len(coming), len(leaving)
	p.Size = p.Ready + p.Claims
}

// unknown are the pools that have nodes and that the policy does not have.
func (v *View) unknown(cluster string, m Memory) []api.Pool {
	names := map[string]bool{}
	v.mu.RLock()
	for _, r := range v.clusters[cluster].fold.Records() {
		pool := m.Rules.PoolOf(r.Pool)
		known := slices.ContainsFunc(m.Policy.Pools, func(p events.PoolPolicy) bool { return p.Name == pool })
		if pool != "" && !known && lifecycle.Phase(r.Phase).Live() {
			names[pool] = true
		}
	}
	v.mu.RUnlock()
	var out []api.Pool
	for _, name := range slices.Sorted(maps.Keys(names)) {
		p := api.Pool{Cluster: cluster, Name: name, Unknown: true}
		v.count(&p, m)
		out = append(out, p)
	}
	return out
}

func removing(d *events.DrainRecord) bool {
	return d != nil && d.Goal == events.GoalRemove && d.Phase != string(lifecycle.DrainUncordoning) && d.Phase != string(lifecycle.DrainDone)
}

func (v *View) last(ctx context.Context, cluster, pool string) (*api.DecisionLine, error) {
	rs, err := v.o.Audit.List(ctx, audit.Query{Cluster: cluster, Pool: pool, Order: audit.NewestFirst, Limit: 1,
		Types: []string{events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld}})
	if err != nil {
		return nil, fmt.Errorf("read the last decision about %s: %w", pool, err)
	}
	if len(rs) == 0 {
		return nil, nil
	}
	var e struct {
		Data events.Decision `json:"data"`
	}
	if err := json.Unmarshal(rs[0].Event, &e); err != nil {
		return nil, fmt.Errorf("decode decision %s: %w", rs[0].ID, err)
	}
	return &api.DecisionLine{ID: e.Data.ID, EventID: rs[0].ID, Verdict: e.Data.Verdict, Delta: e.Data.Delta, Reason: e.Data.Reason, At: rs[0].StreamTime}, nil
}

// Nodes implements api.World: ours first, then the others, by name.
func (v *View) Nodes(ctx context.Context) ([]api.Node, error) {
	memories := map[string]Memory{}
	for _, cluster := range v.o.Clusters {
		m, _, err := v.o.Memories.Memory(ctx, cluster)
		if err != nil {
			return nil, fmt.Errorf("read decision's record of %s: %w", cluster, err)
		}
		memories[cluster] = m
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []api.Node
	for _, cluster := range v.o.Clusters {
		f := v.clusters[cluster].fold
		nodes := map[string]*api.Node{}
		for name, n := range f.Nodes() {
			nodes[name] = &api.Node{Cluster: cluster, Name: name, Pool: n.Labels[events.LabelPool], Ready: n.Ready, Unschedulable: n.Unschedulable,
				Version: n.KubeletVersion, CreatedAt: n.CreatedAt, ClaimID: n.Labels[events.LabelClaim]}
		}
		for name, r := range f.Records() {
			n := nodes[name]
			if n == nil {
				n = &api.Node{Cluster: cluster, Name: name}
				nodes[name] = n
			}
			n.Pool, n.Phase, n.Since, n.Deadline = cmp.Or(r.Pool, n.Pool), r.Phase, r.Since, r.Deadline
			n.ClaimID, n.CorrelationID, n.Failure, n.Drain = cmp.Or(r.ClaimID, n.ClaimID), r.CorrelationID, r.Failure, r.Drain
			if n.CreatedAt.IsZero() {
				n.CreatedAt = r.ClaimedAt
			}
		}
		load(f, nodes)
		for _, n := range nodes {
			n.Pool = memories[cluster].Rules.PoolOf(n.Pool)
			n.Position = v.position(n, memories[cluster])
			out = append(out, *n)
		}
	}
	slices.SortFunc(out, func(a, b api.Node) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), compareBool(a.Pool == "", b.Pool == ""), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// load adds up the requests of the pods on each node.
func load(f *events.Fold, nodes map[string]*api.Node) {
	sum := map[string]events.Resources{}
	for _, p := range f.Pods() {
		n := nodes[p.Node]
		if n == nil || p.Phase == "Succeeded" || p.Phase == "Failed" {
			continue
		}
		n.Pods++
		r, s := f.Classes()[p.Class].Requests, sum[p.Node]
		s.CPUMilli, s.MemoryBytes = s.CPUMilli+r.CPUMilli, s.MemoryBytes+r.MemoryBytes
		sum[p.Node] = s
	}
	for name, s := range sum {
		a := f.Nodes()[name].Allocatable
		if a.CPUMilli > 0 && a.MemoryBytes > 0 {
			nodes[name].CPURequested = float64(s.CPUMilli) / float64(a.CPUMilli)
			nodes[name].MemRequested = float64(s.MemoryBytes) / float64(a.MemoryBytes)
		}
	}
}

// Pod implements api.World.
func (v *View) Pod(_ context.Context, cluster, namespace, name string) (api.Pod, bool, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c, ok := v.clusters[cluster]
	if !ok {
		return api.Pod{}, false, nil
	}
	p, ok := c.fold.Pods()[namespace+"/"+name]
	if !ok {
		return api.Pod{}, false, nil
	}
	return api.Pod{Cluster: cluster, Namespace: namespace, Name: name, Phase: p.Phase, Node: p.Node, CreatedAt: p.CreatedAt,
		UnschedulableSince: p.UnschedulableSince, Message: p.UnschedulableMessage, Requests: c.fold.Classes()[p.Class].Requests}, true, nil
}
