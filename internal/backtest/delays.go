package backtest

import (
	"maps"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Delays are how long the steps of a node's life take.
type Delays struct {
	Ready   time.Duration // from the claim to Ready
	Drained time.Duration // from the decision to drain it to the last eviction
	Removed time.Duration // from there until nothing is left
}

// DefaultDelays are those of a pool of which the log shows none: what a k3s agent in
// a container takes, with its image at hand.
var DefaultDelays = Delays{Ready: 30 * time.Second, Drained: 5 * time.Second, Removed: 5 * time.Second}

// PoolDelays are the delays of one pool, and how many nodes of the log they are the
// median of; 0: they are the default.
type PoolDelays struct {
	Pool         string  `json:"pool"`
	Ready        float64 `json:"ready_seconds"`
	ReadyCount   int     `json:"ready_from_nodes"`
	Drained      float64 `json:"drained_seconds"`
	DrainedCount int     `json:"drained_from_nodes"`
	Removed      float64 `json:"removed_seconds"`
	RemovedCount int     `json:"removed_from_nodes"`
}

// lives measures the lives of the nodes of a log.
type lives struct {
	claimed, drained map[string]time.Time // by node
	requested        map[string]time.Time
	pools            map[string]*samples
}

type samples struct{ ready, drained, removed []time.Duration }

func newLives() *lives {
	return &lives{claimed: map[string]time.Time{}, drained: map[string]time.Time{}, requested: map[string]time.Time{}, pools: map[string]*samples{}}
}

// lifeTypes are the types that lives reads.
var lifeTypes = []string{events.TypeNodeClaimed, events.TypeNodeReady, events.TypeNodeDrainRequested, events.TypeNodeDrainCancelled,
	events.TypeNodeDrainProgressed, events.TypeNodeDrained, events.TypeNodeRemoved}

func (l *lives) take(d bus.Delivery) {
	if events.IsDryRun(d.Event) {
		return
	}
	node, at := d.Key.Name, d.StreamTime
	switch d.Event.Type() {
	case events.TypeNodeClaimed:
		l.claimed[node] = at
	case events.TypeNodeReady:
		if p, err := events.Decode[events.NodeReady](d.Event); err == nil {
			if since, ok := l.claimed[node]; ok {
				s := l.pool(p.Pool)
				s.ready = append(s.ready, at.Sub(since))
				delete(l.claimed, node) // it may be Ready again later
			}
		}
	case events.TypeNodeDrainRequested:
		if p, err := events.Decode[events.NodeDrainRequested](d.Event); err == nil && p.Goal == events.GoalRemove {
			l.requested[node] = at
		}
	case events.TypeNodeDrainCancelled:
		delete(l.requested, node)
	case events.TypeNodeDrainProgressed:
		if p, err := events.Decode[events.NodeDrainProgressed](d.Event); err == nil && len(p.WaitingFor) > 0 {
			delete(l.requested, node) // its time is that of the Jobs
		}
	case events.TypeNodeDrained:
		if p, err := events.Decode[events.NodeDrained](d.Event); err == nil && p.Goal == events.GoalRemove {
			if since, ok := l.requested[node]; ok {
				s := l.pool(p.Pool)
				s.drained = append(s.drained, at.Sub(since))
			}
			l.drained[node] = at
		}
	case events.TypeNodeRemoved:
		if p, err := events.Decode[events.NodeRemoved](d.Event); err == nil {
			if since, ok := l.drained[node]; ok {
				s := l.pool(p.Pool)
				s.removed = append(s.removed, at.Sub(since))
			}
		}
	}
}

func (l *lives) pool(name string) *samples {
	if l.pools[name] == nil {
		l.pools[name] = &samples{}
	}
	return l.pools[name]
}

// of are the delays of a pool, and where they come from.
func (l *lives) of(pool string, otherwise Delays) (Delays, PoolDelays) {
	s := l.pools[pool]
	if s == nil {
		s = &samples{}
	}
	d := Delays{Ready: median(s.ready, otherwise.Ready), Drained: median(s.drained, otherwise.Drained), Removed: median(s.removed, otherwise.Removed)}
	return d, PoolDelays{Pool: pool, Ready: d.Ready.Seconds(), ReadyCount: len(s.ready), Drained: d.Drained.Seconds(), DrainedCount: len(s.drained),
		Removed: d.Removed.Seconds(), RemovedCount: len(s.removed)}
}

// median is the lower one of an even number of samples, and otherwise what there is
// without any.
func median(ds []time.Duration, otherwise time.Duration) time.Duration {
	if len(ds) == 0 {
		return otherwise
	}
	ds = slices.Sorted(slices.Values(ds))
	return max(ds[(len(ds)-1)/2], 0)
}

// delayed are the delays of the given pools, by pool.
func (l *lives) delayed(pools map[string]bool, otherwise Delays) (map[string]Delays, []PoolDelays) {
	out := map[string]Delays{}
	var said []PoolDelays
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		d, p := l.of(name, otherwise)
		out[name] = d
		said = append(said, p)
	}
	return out, said
}
