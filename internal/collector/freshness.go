package collector

import (
	"context"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// freshness is what is known of how current the kinds are that no informer
// watches. Collector.mu guards it.
type freshness struct {
	version string
	usage   time.Time // zero: unknown
	records recordsState
}

type recordsState struct {
	open bool // all present ones have been sent, and the watch delivers
	at   time.Time
}

// probe asks the API server for its version, time after time: that it answers
// proves that an open watch is one that would deliver. The first answer closes
// answered.
func (c *Collector) probe(ctx context.Context, answered chan struct{}) {
	tick := c.o.Clock.NewTicker(c.o.ProbeEvery)
	defer tick.Stop()
	down := false
	for {
		asked := c.o.Clock.Now()
		v, err := c.reader.ServerVersion(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !down:
			down = true
			c.log.WarnContext(ctx, "API server does not answer; snapshots keep the last known state and say since when it is old", "err", err)
		case err == nil:
			if down {
				down = false
				c.log.InfoContext(ctx, "API server answers again")
			}
			for _, s := range c.sources {
				s.current(asked)
			}
			c.mu.Lock()
			c.fresh.version = v
			c.mu.Unlock()
			if answered != nil {
				close(answered)
				answered = nil
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

// freshnessNow returns, by kind, when its objects were last known to be
// current. A kind that is made of several resources is as old as the oldest.
// c.mu is held.
func (c *Collector) freshnessNow() map[string]time.Time {
	at := map[string]time.Time{}
	for _, s := range c.sources {
		at[s.resource], _ = s.state()
	}
	oldest := func(resources ...string) time.Time {
		t := at[resources[0]]
		for _, r := range resources[1:] {
			if at[r].Before(t) {
				t = at[r]
			}
		}
		return t
	}
	pods := oldest("pods", "persistentvolumeclaims", "persistentvolumes", "storageclasses")
	out := map[string]time.Time{}
	for kind, t := range map[string]time.Time{
		events.KindNode: at["nodes"], events.KindPod: pods, events.KindPodClass: pods,
		events.KindPDB: at["poddisruptionbudgets"], events.KindDaemonSet: at["daemonsets"],
		events.KindUsage: c.fresh.usage, events.KindRecord: c.fresh.records.at, events.KindNamespace: at["namespaces"],
	} {
		if !t.IsZero() {
			out[kind] = t.UTC()
		}
	}
	return out
}
