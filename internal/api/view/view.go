// Package view is the present state of everything, as the gateway shows it: it
// follows the snapshots in the log, and asks decision's record for what decision
// remembers. It changes nothing and nothing decides by it.
package view

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// retryDelay is how long a follower that lost the log waits.
const retryDelay = time.Second

// Log is the stream of record.
type Log interface {
	api.Log
	// Last returns the last event of a type on a key; false when there is none.
	Last(ctx context.Context, key bus.Key, eventType string) (bus.Delivery, bool, error)
}

// Memory is what decision remembers of one cluster.
type Memory struct {
	Policy events.Policy
	Rules  scaling.Policy // the same in the core's words
	Digest string         // of the policy
	// Promotion is why the policy is another than the configuration file's, nil: it
	// is the file's.
	Promotion *events.Promotion
	DryRun    bool
	Stale     string // why its snapshots can't be folded; "" when they can
	Core      scaling.State
}

// Lives are the records of provisioning and draining as they are now.
type Lives interface {
	// Position is where the life of a node is; false: there is no record of it, or
	// the records can't be read.
	Position(cluster, node string) (lifecycle.Position, bool)
}

// Memories reads decision's record of a cluster; false before the first event.
type Memories interface {
	Memory(ctx context.Context, cluster string) (Memory, bool, error)
}

// MemoriesFunc is a function as Memories.
type MemoriesFunc func(ctx context.Context, cluster string) (Memory, bool, error)

// Memory implements Memories.
func (f MemoriesFunc) Memory(ctx context.Context, cluster string) (Memory, bool, error) {
	return f(ctx, cluster)
}

// Options configure a View. All are required.
type Options struct {
	// Observe puts the fold of a cluster into the words of the core.
	Observe  func(cluster string, f *events.Fold) scaling.Observation
	Log      Log
	Audit    api.Audit
	Memories Memories
	Lives    Lives
	Clusters []string
	Clock    clock.WithTicker
	Logger   *slog.Logger
}

func (o Options) validate() error {
	var errs []error
	for name, missing := range map[string]bool{
		"Log": o.Log == nil, "Audit": o.Audit == nil, "Memories": o.Memories == nil, "Clock": o.Clock == nil, "Logger": o.Logger == nil,
		"Observe": o.Observe == nil, "Lives": o.Lives == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("view: Options.%s is required", name))
		}
	}
	return errors.Join(errs...)
}

// View implements api.World.
type View struct {
	o Options

	mu       sync.RWMutex
	clusters map[string]*clusterView
}

// clusterView is guarded by View.mu.
type clusterView struct {
	fold    *events.Fold
	problem string
	// index is the fold in the form in which it is evaluated, until the next snapshot;
	// nil: nobody has asked. One evaluation at a time works in it, under evaluating.
	index *scaling.Index

	evaluating sync.Mutex // taken without View.mu
}

var _ api.World = (*View)(nil)

// New makes a View that knows nothing until Run follows the log.
func New(o Options) (*View, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	v := &View{o: o, clusters: map[string]*clusterView{}}
	for _, name := range o.Clusters {
		v.clusters[name] = &clusterView{fold: events.NewFold(), problem: "no snapshot yet: does the collector reach the cluster?"}
	}
	return v, nil
}

// Run follows the log of every cluster until ctx ends.
func (v *View) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, name := range v.o.Clusters {
		wg.Go(func() { v.follow(ctx, name) })
	}
	wg.Wait()
	return nil
}

func (v *View) follow(ctx context.Context, cluster string) {
	for ctx.Err() == nil {
		err := v.read(ctx, cluster)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			v.o.Logger.WarnContext(ctx, "state shown for a cluster is not updated, trying again", "cluster", cluster, "error", err)
			v.set(cluster, nil, fmt.Sprintf("the event log can't be read: %v", err))
		}
		t := v.o.Clock.NewTimer(retryDelay)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C():
		}
	}
}

// read folds from the last full snapshot on.
func (v *View) read(ctx context.Context, cluster string) error {
	o := bus.ReadOptions{Cluster: cluster, Node: events.ClusterKey, Types: []string{events.TypeSnapshotCaptured, events.TypeSnapshotChanged}, Follow: true}
	full, ok, err := v.o.Log.Last(ctx, bus.Key{Cluster: cluster, Name: events.ClusterKey}, events.TypeSnapshotCaptured)
	if err != nil {
		return err
	}
	if ok {
		o.FromSequence = full.Sequence
	}
	v.mu.Lock()
	v.clusters[cluster].fold, v.clusters[cluster].index = events.NewFold(), nil
	v.mu.Unlock()
	for d, err := range v.o.Log.Read(ctx, o) {
		var bad *bus.UndecodableError
		if errors.As(err, &bad) {
			v.set(cluster, nil, fmt.Sprintf("a snapshot can't be read: %v", err))
			continue
		}
		if err != nil {
			return err
		}
		v.take(cluster, d)
	}
	return nil
}

// take folds one snapshot. What does not fit is shown as a problem until the
// next full one.
func (v *View) take(cluster string, d bus.Delivery) {
	v.set(cluster, func(f *events.Fold) error {
		if d.Event.Type() == events.TypeSnapshotCaptured {
			p, err := events.Decode[events.SnapshotCaptured](d.Event)
			if err != nil {
				return err
			}
			return f.Capture(p)
		}
		p, err := events.Decode[events.SnapshotChanged](d.Event)
		if err != nil {
			return err
		}
		return f.Change(p)
	}, "")
}

func (v *View) set(cluster string, fold func(*events.Fold) error, problem string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.clusters[cluster]
	if fold != nil {
		c.index = nil
		if err := fold(c.fold); err != nil {
			problem = err.Error()
		}
	}
	c.problem = problem
}
