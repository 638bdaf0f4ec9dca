// Package collector watches a cluster and publishes what decisions need to
// know: snapshot.captured (everything, at the start and every FullEvery),
// snapshot.changed (what differs from the snapshot before) and node.observed
// (what became of a node of ours).
//
// # When a change is published
//
// Every snapshot carries everything that has changed until then, so it is
// always one consistent view; how soon it is sent depends on what changed:
//
//   - within BatchWindow of the first such change, which later ones do not
//     extend: a pod becomes unschedulable or no longer is (bound, deleted), a
//     node changes in any way that a snapshot shows, a node record changes. A pod
//     that became unschedulable does not wait for others when none are on their way;
//     see wave;
//   - within SoonWindow: a pod comes, goes, is bound or changes otherwise, a
//     disruption budget, DaemonSet or namespace changes. None of these asks for a node:
//     the scheduler's verdict does, and that is of the first kind;
//   - with the next snapshot, whatever causes it: usage, and the scheduler's
//     wording of why a pod does not fit, which changes with every node;
//   - never: what a snapshot does not show, such as a kubelet's heartbeats.
//
// An unchanged cluster gives an empty delta every ChangedEvery, which renews
// the freshness.
//
// # What is known
//
// Freshness says, by kind, when the objects were last known to be current: the
// watch of the kind is open, and the API server answered. It stands still while
// either fails; the objects stay as they were last seen. A kind that was never
// known is missing.
//
// # When the bus does not answer
//
// It can't be known whether a snapshot that was not acknowledged was stored, so
// the next one is a full one. Changes are kept in memory meanwhile; a process
// that dies starts with a full one anyway.
package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// Role is the name that the collector publishes under.
const Role = "collector"

// Publisher sends events to the bus. It returns nil only when all are stored.
type Publisher interface {
	Publish(ctx context.Context, es ...events.Event) error
}

// Records is where the node records of provisioning and draining come from.
type Records interface {
	// Watch sends the records that there are, then one change with Synced, then
	// every change, until ctx ends or the watch breaks: then it closes the
	// channel and is asked again.
	Watch(ctx context.Context) (<-chan RecordChange, error)
}

// RecordChange is a node record that is new or differs, or that is gone (then
// only its name counts), or the mark that all present ones have been sent.
type RecordChange struct {
	Record  events.NodeRecord
	Deleted bool
	Synced  bool
}

// Options of a Collector. Cluster, Client, Publisher and Epoch are required.
type Options struct {
	Cluster string
	Client  kubernetes.Interface
	// Metrics is the client of metrics.k8s.io; nil: usage is unknown.
	Metrics metrics.Interface
	// Records is where node records come from; nil: they are unknown.
	Records   Records
	Publisher Publisher
	// Epoch is higher than that of every collector of this cluster before.
	Epoch int64

	FullEvery      time.Duration // between full snapshots. Default 15m
	ChangedEvery   time.Duration // at most between two snapshots. Default 10s
	BatchWindow    time.Duration // from the first pressing change. Default 50ms; negative: it is published at once
	SoonWindow     time.Duration // from the first other change. Default 1s
	MetricsEvery   time.Duration // between readings of usage. Default 15s
	ProbeEvery     time.Duration // between proofs that the API server answers. Default 5s
	StaleAfter     time.Duration // without a proof, Ready fails. Default 30s
	PublishTimeout time.Duration // of one publication. Default 10s
	// Lag returns how many events of this cluster decision has yet to handle;
	// beyond a few, BatchWindow is widened so that each snapshot says more. Nil:
	// never. It is called often and must not block.
	Lag func() int

	Clock      clock.WithTicker      // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // nil: no metrics
}

func (o *Options) complete() error {
	var errs []error
	if err := events.ValidateCluster(o.Cluster); err != nil {
		errs = append(errs, err)
	}
	if o.Client == nil {
		errs = append(errs, errors.New("client is nil"))
	}
	if o.Publisher == nil {
		errs = append(errs, errors.New("publisher is nil"))
	}
	if o.Epoch < 1 {
		errs = append(errs, fmt.Errorf("epoch is %d, expected at least 1", o.Epoch))
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"full every", &o.FullEvery, 15 * time.Minute}, {"changed every", &o.ChangedEvery, 10 * time.Second},
		{"batch window", &o.BatchWindow, defaultWindow}, {"soon window", &o.SoonWindow, time.Second},
		{"metrics every", &o.MetricsEvery, 15 * time.Second}, {"probe every", &o.ProbeEvery, 5 * time.Second},
		{"stale after", &o.StaleAfter, 30 * time.Second}, {"publish timeout", &o.PublishTimeout, 10 * time.Second},
	} {
		if *d.value < 0 && d.value != &o.BatchWindow {
			errs = append(errs, fmt.Errorf("%s is %s, expected a positive duration", d.name, *d.value))
		}
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return errors.Join(errs...)
}

// Collector publishes the state of one cluster. Of several processes only the
// one that leads may run it; a new leader has a new Collector with a higher
// epoch.
type Collector struct {
	o       Options
	log     *slog.Logger
	reader  *kube.Reader
	errors  *kube.ErrorCounter
	metrics *instruments
	sources []*source
	wake    chan struct{} // holds one token: look what is due
	out     outbox        // of the loop alone

	mu       sync.Mutex // guards what follows
	model    *model
	pending  pending
	wave     wave
	watcher  nodeWatcher
	fresh    freshness
	observed []events.Event // node.observed that wait for the loop
	reported status
}

// New returns a Collector. It makes no call.
func New(o Options) (*Collector, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	reader, err := kube.NewReader(o.Client, kube.Options{Registerer: o.Registerer})
	if err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	counter, err := kube.NewErrorCounter(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("collector: register metrics: %w", err)
	}
	c := &Collector{
		o: o, log: o.Logger.With("cluster", o.Cluster), reader: reader, errors: counter,
		wake: make(chan struct{}, 1), out: outbox{fold: events.NewFold()},
		model: newModel(), pending: newPending(), wave: newWave(o.SoonWindow), watcher: nodeWatcher{cluster: o.Cluster, seen: map[string]seenNode{}},
		reported: status{waitingFor: []string{"start"}},
	}
	c.metrics = newInstruments(c)
	if c.sources, err = c.newSources(); err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	return c, nil
}

// Run watches and publishes until ctx ends. The first snapshot is a full one,
// sent when everything has been seen once; a cache that is only half filled is
// never published. Run it once.
func (c *Collector) Run(ctx context.Context) error {
	if err := c.metrics.register(c.o.Registerer, c.o.Cluster); err != nil {
		return fmt.Errorf("collector: register metrics: %w", err)
	}
	defer c.metrics.unregister()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	for _, s := range c.sources {
		wg.Go(func() { s.informer.RunWithContext(ctx) })
	}
	probed, recorded := make(chan struct{}), make(chan struct{})
	wg.Go(func() { c.probe(ctx, probed) })
	wg.Go(func() { c.followRecords(ctx, recorded) })
	wg.Go(func() { c.pollUsage(ctx) })
	if !c.waitForSync(ctx, probed, recorded) {
		return nil
	}
	c.loop(ctx)
	return nil
}

// waitForSync blocks until every kind has been seen once, and says from time to
// time what it waits for.
func (c *Collector) waitForSync(ctx context.Context, probed, recorded <-chan struct{}) bool {
	type condition struct {
		name string
		done <-chan struct{}
	}
	conditions := []condition{{"an answer of the API server", probed}, {"node records", recorded}}
	for _, s := range c.sources {
		conditions = append(conditions, condition{s.resource, s.handled.Done()}, condition{s.resource, s.watched})
	}
	remind := c.o.Clock.NewTicker(30 * time.Second)
	defer remind.Stop()
	for {
		var missing []string
		var next <-chan struct{}
		for _, w := range conditions {
			select {
			case <-w.done:
			default:
				if !slices.Contains(missing, w.name) {
					missing = append(missing, w.name)
				}
				next = w.done
			}
		}
		c.mu.Lock()
		c.reported.waitingFor = missing
		c.mu.Unlock()
		if len(missing) == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-next:
		case <-remind.C():
			attrs := []any{"waiting_for", missing}
			if err := c.refused(missing); err != nil {
				attrs = append(attrs, "err", err)
			}
			c.log.WarnContext(ctx, "no snapshot yet: not everything has been seen once", attrs...)
		}
	}
}

// refused says why those of the resources are not seen that the API server
// refuses, or nil.
func (c *Collector) refused(resources []string) error {
	var errs []error
	for _, s := range c.sources {
		if _, err := s.state(); err != nil && slices.Contains(resources, s.resource) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// status is what Ready judges by.
type status struct {
	waitingFor   []string
	failingSince time.Time // of publications; zero: the last one succeeded
	failure      error
	publishedAt  time.Time // of the last snapshot
}

// Ready returns nil while snapshots are published and current, else why not.
func (c *Collector) Ready() error {
	now := c.o.Clock.Now()
	c.mu.Lock()
	r := c.reported
	c.mu.Unlock()
	if len(r.waitingFor) > 0 {
		err := fmt.Errorf("collector of %s: waiting for %v", c.o.Cluster, r.waitingFor)
		if cause := c.refused(r.waitingFor); cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return err
	}
	if !r.failingSince.IsZero() {
		return fmt.Errorf("collector of %s: nothing could be published since %s: %w", c.o.Cluster, r.failingSince.UTC().Format(time.RFC3339), r.failure)
	}
	for _, s := range c.sources {
		at, err := s.state()
		if age := now.Sub(at); age > c.o.StaleAfter {
			if err == nil {
				err = errors.New("the API server does not answer")
			}
			return fmt.Errorf("collector of %s: %s are not known to be current since %s: %w", c.o.Cluster, s.resource, at.UTC().Format(time.RFC3339), err)
		}
	}
	return nil
}

func (c *Collector) snapshotAge() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reported.publishedAt.IsZero() {
		return math.NaN()
	}
	return c.o.Clock.Since(c.reported.publishedAt).Seconds()
}
