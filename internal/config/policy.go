package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Cluster returns the named cluster.
func (c *Config) Cluster(name string) (Cluster, bool) {
	i := slices.IndexFunc(c.Clusters, func(x Cluster) bool { return x.Name == name })
	if i < 0 {
		return Cluster{}, false
	}
	return c.Clusters[i], true
}

// Pool returns the named pool.
func (c Cluster) Pool(name string) (Pool, bool) {
	i := slices.IndexFunc(c.Pools, func(p Pool) bool { return p.Name == name })
	if i < 0 {
		return Pool{}, false
	}
	return c.Pools[i], true
}

// Policy is everything that decision reads for one cluster: what a
// config.applied carries. A cluster that is not configured has an empty one.
func (c *Config) Policy(cluster string) events.Policy {
	cl, ok := c.Cluster(cluster)
	if !ok {
		return events.Policy{}
	}
	p := events.Policy{
		Pools:              make([]events.PoolPolicy, len(cl.Pools)),
		ProtectedNodes:     slices.Clone(c.Decision.ProtectedNodes),
		StartupGrace:       c.Decision.StartupGrace,
		StaleAfter:         c.Decision.StaleAfter,
		MaxUnreadyFraction: c.Decision.MaxUnreadyFraction,
		MaxUnreadyCount:    c.Decision.MaxUnreadyCount,
		MaxRemovalsPerHour: c.Decision.MaxRemovalsPerHour,
		PoolChoice:         slices.Clone(c.Decision.PoolChoice),
	}
	below := int32(c.Decision.ExpendableBelow) //nolint:gosec // its limits are an int32's
	p.ExpendableBelow = &below
	for i, pool := range cl.Pools {
		p.Pools[i] = pool.policy()
	}
	for _, r := range c.Decision.AlertRules {
		if _, has := cl.Pool(r.Pool); !has || (r.Cluster != "" && r.Cluster != cluster) {
			continue
		}
		rule := events.AlertRule{Name: r.Name, Pool: r.Pool, Direction: r.Direction, Amount: r.Amount}
		for _, m := range r.Match {
			rule.Matchers = append(rule.Matchers, events.Matcher(m))
		}
		p.AlertRules = append(p.AlertRules, rule)
	}
	for _, r := range c.Decision.MetricRules {
		if _, has := cl.Pool(r.Pool); has && (r.Cluster == "" || r.Cluster == cluster) {
			p.MetricRules = append(p.MetricRules, r.policy())
		}
	}
	return p
}

func (p Pool) policy() events.PoolPolicy {
	out := events.PoolPolicy{
		Name: p.Name, Provider: p.Provider, Min: p.Min, Max: p.Max,
		Size:                 events.Resources{CPUMilli: int64(p.CPU), MemoryBytes: int64(p.Memory), Pods: int64(p.MaxPods)},
		RenamedFrom:          p.RenamedFrom,
		Priority:             p.Priority,
		Price:                p.Price,
		Headroom:             p.Headroom.policy(),
		Labels:               p.Labels,
		ScaleUpCooldown:      p.ScaleUp.Cooldown,
		ReplaceUnreadyAfter:  p.ScaleUp.ReplaceUnreadyAfter,
		ScaleDownAfterAdd:    p.ScaleDown.DelayAfterAdd,
		ScaleDownAfterFail:   p.ScaleDown.DelayAfterFailure,
		ScaleDownCooldown:    p.ScaleDown.Cooldown,
		Stabilization:        p.ScaleDown.Stabilization,
		UtilizationThreshold: p.ScaleDown.UtilizationThreshold,
		Unneeded:             p.ScaleDown.Unneeded,
		MinLifetime:          p.ScaleDown.MinLifetime,
		MaxRemovals:          p.maxRemovals(),
		RemovalOrder:         p.ScaleDown.Order,
		FlapCount:            p.ScaleDown.Flap.Count,
		FlapWithin:           p.ScaleDown.Flap.Within,
		FlapFreeze:           p.ScaleDown.Flap.Freeze,
		RegisterDeadline:     p.RegisterDeadline,
		ClaimExpiry:          p.ClaimExpiry,
		DrainDeadline:        p.Drain.Deadline,
		BackoffInitial:       p.Backoff.Initial,
		BackoffMax:           p.Backoff.Max,
		BackoffReset:         p.Backoff.Reset,
	}
	if p.Drain.OnDeadline == events.DeadlineForce {
		out.DrainOnDeadline = events.DeadlineForce
	}
	if p.Drain.LocalStorage == events.PodsDelete {
		out.DrainLocalStorage = events.PodsDelete
	}
	if p.Drain.Unmanaged == events.PodsDelete {
		out.DrainUnmanaged = events.PodsDelete
	}
	if p.Repair.Enabled {
		out.RepairAfter = p.Repair.After
	}
	if p.ScaleDown.Jobs == JobsFinish {
		out.JobsDeadline = p.ScaleDown.JobsDeadline
	}
	for _, s := range p.Schedules {
		out.Schedules = append(out.Schedules, events.PoolSchedule{Name: s.Name, Schedule: s.Schedule, Duration: s.Duration, Timezone: s.Timezone,
			Min: s.Min, Max: s.Max, Headroom: s.Headroom.policy()})
	}
	for _, b := range p.ScaleDown.Budgets {
		out.RemovalBudgets = append(out.RemovalBudgets, events.RemovalBudget(b))
	}
	for _, t := range p.Taints {
		out.Taints = append(out.Taints, events.Taint(t))
	}
	for _, t := range p.StartupTaints {
		out.StartupTaints = append(out.StartupTaints, events.Taint(t))
	}
	return out
}

func (h *Headroom) policy() *events.Headroom {
	if h == nil {
		return nil
	}
	return &events.Headroom{Pods: h.Pods, Percent: h.Percent, Pod: events.Resources{CPUMilli: int64(h.Pod.CPU), MemoryBytes: int64(h.Pod.Memory)}}
}

// maxRemovals is 10 % of the pool's max, at least one, unless the file says
// otherwise.
func (p Pool) maxRemovals() int {
	if p.ScaleDown.MaxRemovals > 0 {
		return p.ScaleDown.MaxRemovals
	}
	return max(1, p.Max/10)
}

// Digest identifies a policy together with whether it may act: the digest of a
// config.applied. Equal policies have equal digests, in any process.
func Digest(p events.Policy, dryRun bool) (string, error) {
	b, err := json.Marshal(struct {
		Policy events.Policy `json:"policy"`
		DryRun bool          `json:"dry_run"`
	}{p, dryRun})
	if err != nil {
		return "", fmt.Errorf("encode policy: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}
