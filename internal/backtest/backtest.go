package backtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// Log is a stored stream of record. It is read several times at once, and must hold
// the same each time: a bundle does.
type Log interface {
	LogState(ctx context.Context) (bus.LogState, error)
	// Read gives events in stream order; it may give more than the options select.
	Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error]
}

// Policy is one to try.
type Policy struct {
	Digest string
	Policy events.Policy
}

// Options of a backtest. Log and Policies are required.
type Options struct {
	Log Log
	// Policies are the ones to try, by cluster; clusters of the log without one are left
	// out.
	Policies map[string]Policy
	// From is where to begin, at the last checkpoint before it, or else the first one.
	// Until is where to end. Zero: the beginning and the end of the log.
	From, Until time.Time
	// Differences is how many decisions that differ are reported. Default 10.
	Differences int
	// Otherwise are the delays of pools of which the log shows none. Default
	// DefaultDelays; each one that is zero is the default.
	Otherwise Delays
}

// ErrNoCheckpoint means that there is nothing where decisions can be taken from.
var ErrNoCheckpoint = errors.New("no checkpoint of decision, with the full snapshot that it follows, is in this range of the log for a cluster of the policy")

// Run tries the policies.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Log == nil || len(o.Policies) == 0 {
		return Report{}, errors.New("backtest: log and policies are required")
	}
	if o.Differences == 0 {
		o.Differences = 10
	}
	o.Otherwise.Ready = cmp.Or(o.Otherwise.Ready, DefaultDelays.Ready)
	o.Otherwise.Drained = cmp.Or(o.Otherwise.Drained, DefaultDelays.Drained)
	o.Otherwise.Removed = cmp.Or(o.Otherwise.Removed, DefaultDelays.Removed)
	r, err := o.run(ctx)
	if err != nil {
		return r, fmt.Errorf("backtest: %w", err)
	}
	return r, nil
}

func (o *Options) run(ctx context.Context) (Report, error) {
	state, err := o.Log.LogState(ctx)
	if err != nil {
		return Report{}, err
	}
	if !state.Exists {
		return Report{}, bus.ErrAbsent
	}
	r := Report{Incarnation: state.Incarnation}
	found, err := o.scan(ctx)
	if err != nil {
		return r, err
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		c, err := o.cluster(ctx, name, found[name])
		if err != nil {
			return r, fmt.Errorf("cluster %s: %w", name, err)
		}
		r.Clusters = append(r.Clusters, c)
	}
	if len(r.Clusters) == 0 {
		return r, fmt.Errorf("%w: %s", ErrNoCheckpoint, strings.Join(slices.Sorted(maps.Keys(o.Policies)), ", "))
	}
	return r, nil
}

// beginning is the checkpoint that a cluster begins with, and what the whole log says
// of the lives of its nodes.
type beginning struct {
	checkpoint events.DecisionCheckpointed
	state      decision.Record
	lives      *lives
}

// each gives the events of a range that are of the clusters and types that are asked for.
func (o *Options) each(ctx context.Context, ro bus.ReadOptions, take func(bus.Delivery) error) error {
	ro.Until = o.Until
	for d, err := range o.Log.Read(ctx, ro) {
		var undecodable *bus.UndecodableError
		if errors.As(err, &undecodable) {
			continue
		}
		if err != nil {
			return err
		}
		if !o.Until.IsZero() && !d.StreamTime.Before(o.Until) {
			break
		}
		if d.Sequence < ro.FromSequence || ro.Cluster != "" && d.Key.Cluster != ro.Cluster || len(ro.Types) > 0 && !slices.Contains(ro.Types, d.Event.Type()) {
			continue
		}
		if err := take(d); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// scan finds where each cluster begins, and how long the steps of its nodes take.
func (o *Options) scan(ctx context.Context) (map[string]beginning, error) {
	found, all := map[string]beginning{}, map[string]*lives{}
	snapshots := map[uint64]bool{}
	types := append([]string{events.TypeDecisionCheckpointed, events.TypeSnapshotCaptured}, lifeTypes...)
	err := o.each(ctx, bus.ReadOptions{Types: types}, func(d bus.Delivery) error {
		name := d.Key.Cluster
		if _, ok := o.Policies[name]; !ok {
			return nil
		}
		if all[name] == nil {
			all[name] = newLives()
		}
		switch d.Event.Type() {
		case events.TypeSnapshotCaptured:
			snapshots[d.Sequence] = true
		case events.TypeDecisionCheckpointed:
			_, has := found[name]
			if has && (o.From.IsZero() || d.StreamTime.After(o.From)) {
				return nil
			}
			p, err := events.Decode[events.DecisionCheckpointed](d.Event)
			if err != nil || !snapshots[p.Snapshot] {
				return nil // nothing can begin with it
			}
			b := beginning{checkpoint: p}
			if err := json.Unmarshal(p.State, &b.state); err != nil {
				return fmt.Errorf("read the state of the checkpoint at sequence %d: %w", d.Sequence, err)
			}
			found[name] = b
		default:
			all[name].take(d)
		}
		return nil
	})
	for name, b := range found {
		b.lives = all[name]
		found[name] = b
	}
	return found, err
}

// cluster tries the policy of one cluster.
func (o *Options) cluster(ctx context.Context, name string, b beginning) (Cluster, error) {
	policy := o.Policies[name]
	pools := map[string]bool{}
	for _, p := range policy.Policy.Pools {
		pools[p.Name] = true
	}
	if b.state.Config != nil {
		for _, p := range b.state.Config.Policy.Pools {
			pools[p.Name] = true
		}
	}
	delays, said := b.lives.delayed(pools, o.Otherwise)
	c := Cluster{Cluster: name, From: b.checkpoint.Snapshot, Policy: policy.Digest, Delays: said}
	group, ctx := errgroup.WithContext(ctx)
	var then, now *simulation
	group.Go(func() (err error) {
		then, err = o.pass(ctx, &c, b, delays, nil, true)
		return err
	})
	group.Go(func() (err error) {
		now, err = o.pass(ctx, &c, b, delays, func(recorded decision.Config) decision.Config {
			recorded.Policy, recorded.Digest = policy.Policy, policy.Digest
			return recorded
		}, false)
		return err
	})
	if err := group.Wait(); err != nil {
		return c, err
	}
	c.compare(then.moments, now.moments, o.Differences)
	return c, nil
}

// pass goes through the log once, with one policy; the first one also keeps the books
// of what happened.
func (o *Options) pass(ctx context.Context, c *Cluster, b beginning, delays map[string]Delays, under func(decision.Config) decision.Config, first bool) (*simulation, error) {
	s := &simulation{ctx: ctx, key: bus.Key{Cluster: c.Cluster, Name: events.ClusterKey}, rec: newRecorded(c.Cluster), under: under}
	var happened *watcher
	policies := []string{}
	if b.state.Config != nil {
		policies = append(policies, b.state.Config.Digest)
	}
	prices := map[string]float64{}
	price := func(p events.Policy) {
		for _, pool := range p.Pools {
			prices[pool.Name] = pool.Price
		}
	}
	if b.state.Config != nil {
		price(b.state.Config.Policy)
	}
	since, until, to := time.Time{}, time.Time{}, uint64(0)
	err := o.each(ctx, bus.ReadOptions{Cluster: c.Cluster, FromSequence: b.checkpoint.Snapshot}, func(d bus.Delivery) error {
		until, to = later(d.StreamTime, until), d.Sequence
		if s.run == nil {
			since = d.StreamTime
			if err := s.begin(b, d, delays, o.Otherwise); err != nil {
				return err
			}
			if first {
				happened = &watcher{rec: newRecorded(c.Cluster), l: newLedger(since)}
				happened.rec.apply(d)
				happened.begin(b.state)
			}
			return nil
		}
		if happened != nil {
			happened.take(d)
			if p, err := events.Decode[events.ConfigApplied](d.Event); err == nil && d.Event.Type() == events.TypeConfigApplied {
				policies = append(policies, p.Digest)
				price(p.Policy)
			}
			if t := d.Event.Type(); t == events.TypeSnapshotCaptured || t == events.TypeSnapshotChanged {
				if delta, ok := happened.rec.apply(d); ok {
					happened.snapshot(d, delta)
				}
			}
		}
		if !decision.Reads(d) {
			return nil
		}
		return s.take(d)
	})
	if err != nil {
		return s, err
	}
	figures, err := s.end(until)
	if err != nil {
		return s, err
	}
	if !first {
		c.Candidate = figures
		return s, nil
	}
	c.Since, c.Until, c.To = since, until, to
	c.Recorded, c.Simulated, c.RecordedPolicies = happened.l.figures(until, prices), figures, slices.Compact(policies)
	return s, nil
}
