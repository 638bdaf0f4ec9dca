package view

import (
	"cmp"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// guards are what holds each pool at this instant, by the same function that
// decides. What it would decide is left alone: decision does that, on the log.
func (v *View) guards(now time.Time, cluster string, m Memory) map[string][]events.GuardResult {
	seed := scaling.Seed{Event: "view", ID: events.ID, NodeName: events.NodeName}
	out := map[string][]events.GuardResult{}
	c := v.clusters[cluster]
	c.evaluating.Lock()
	defer c.evaluating.Unlock()
	for _, d := range scaling.Evaluate(now, m.Rules, m.Core, v.observation(cluster, m), seed).Decisions {
		for _, g := range d.Guards {
			out[d.Pool] = append(out[d.Pool], events.GuardResult{Guard: g.Guard, Value: g.Value, Message: g.Message, Until: g.Until, Lifts: g.Lifts})
		}
	}
	return out
}

// observation is the cluster as it was last seen. The core changes none of it.
func (v *View) observation(cluster string, m Memory) scaling.Observation {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.clusters[cluster]
	if problem := cmp.Or(c.problem, m.Stale); problem != "" || !c.fold.Known() {
		return scaling.Observation{Cluster: cluster, Problem: problem}
	}
	if c.index == nil {
		c.index = scaling.NewIndex(v.o.Observe(cluster, c.fold))
	}
	return c.index.Observation()
}

func removals(m Memory, now time.Time) *api.Removals {
	if m.Rules.MaxRemovalsPerHour < 1 {
		return nil
	}
	recent := m.Core.RemovalsWithin(now)
	out := &api.Removals{Count: len(recent), Limit: m.Rules.MaxRemovalsPerHour}
	if len(recent) > 0 {
		out.Until = recent[0].Add(time.Hour)
	}
	return out
}

func flaps(p scaling.Pool, s scaling.PoolState, now time.Time) *api.Flaps {
	recent := p.FlapsAt(s, now)
	frozen := p.FlapCount > 0 && s.FrozenUntil.After(now)
	if p.FlapCount < 1 || len(recent) == 0 && !frozen {
		return nil
	}
	out := &api.Flaps{Count: len(recent), Limit: p.FlapCount, Within: events.Duration(p.FlapWithin).String(), Freeze: events.Duration(p.FlapFreeze).String()}
	if len(recent) > 0 {
		out.LastAt = recent[len(recent)-1].At
	}
	if frozen {
		out.FrozenUntil = s.FrozenUntil
	}
	return out
}
