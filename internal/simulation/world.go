// Package simulation is a small Kubernetes cluster in memory: an API that the
// real client code talks to, a scheduler, controllers, kubelets, and k3s agents
// that join it. It serves the demonstration and tests in place of a world that
// takes minutes and containers; the collector, provisioning and draining run
// their own code against it.
//
// What it keeps to, because the product depends on it: resource versions and
// preconditions, patches, watches that resume, field selectors, graceful
// deletion, evictions under disruption budgets, taints of new and of lost nodes,
// node-password secrets. What it has not: networking, volumes, pod affinity,
// topology spread, preemption, images, server-side apply, admission.
//
// Everything that happens by itself follows the injected clock and the seed.
package simulation

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"
)

// DefaultServerVersion is what the world's API server says of itself.
const DefaultServerVersion = "v1.34.4+k3s1"

// Delays are how long things take. A zero is the default, a negative one is no
// time at all.
type Delays struct {
	Join        time.Duration // from an agent's start to its Node object; default 2s
	Ready       time.Duration // from there to Ready; default 1s
	Schedule    time.Duration // from a pod's creation to its binding; default 50ms
	PodStart    time.Duration // from binding to Running; default 500ms
	PodStop     time.Duration // from SIGTERM to the end, within the pod's grace period; default 500ms
	NodeGrace   time.Duration // from an agent's end to NotReady; default 5s (Kubernetes: 50s)
	PodGC       time.Duration // from a Node object's end to that of its pods; default 2s (Kubernetes: 40s)
	RetryJoin   time.Duration // between a rejected agent's attempts; default 5s
	Unreachable time.Duration // from NotReady to the eviction of pods; default 300s, as in Kubernetes
}

func (d Delays) withDefaults() Delays {
	for _, v := range []struct {
		delay *time.Duration
		value time.Duration
	}{
		{&d.Join, 2 * time.Second},
		{&d.Ready, time.Second},
		{&d.Schedule, 50 * time.Millisecond},
		{&d.PodStart, 500 * time.Millisecond},
		{&d.PodStop, 500 * time.Millisecond},
		{&d.NodeGrace, 5 * time.Second},
		{&d.PodGC, 2 * time.Second},
		{&d.RetryJoin, 5 * time.Second},
		{&d.Unreachable, 300 * time.Second},
	} {
		if *v.delay == 0 {
			*v.delay = v.value
		}
		*v.delay = max(*v.delay, 0)
	}
	return d
}

// Options of a World. The zero value is usable: one server, real time.
type Options struct {
	// Servers are the nodes that are there from the start and are not ours.
	// Default: one k3s server "server-0" with 2 cores, 4 GiB and no taint.
	Servers []Agent
	// ServerVersion default DefaultServerVersion.
	ServerVersion string
	Delays        Delays
	// Jitter spreads every delay by up to this share of it, by Seed. Default 0.
	Jitter float64
	// Seed makes names, uids and jitter.
	Seed   uint64
	Clock  clock.Clock  // default: the real one
	Logger *slog.Logger // default: discarded
}

// World is a simulated cluster. Its methods are safe for concurrent use.
type World struct {
	o      Options
	store  *store
	client *fake.Clientset

	// pass is held by the goroutine that runs the controllers.
	pass  sync.Mutex
	since map[string]time.Time // when a condition was first seen, by a key
	seen  map[string]bool      // keys asked for in this pass
	next  time.Time            // when a delay ends next; zero: none

	// mu guards agents.
	mu     sync.Mutex
	agents map[string]*agent // by id
}

// New makes a world with its servers Ready. Nothing moves until Run or Settle.
func New(o Options) (*World, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ServerVersion == "" {
		o.ServerVersion = DefaultServerVersion
	}
	if o.Jitter < 0 || o.Jitter > 1 {
		return nil, fmt.Errorf("simulation: jitter is %v, expected 0 to 1", o.Jitter)
	}
	o.Delays = o.Delays.withDefaults()
	if o.Servers == nil {
		o.Servers = []Agent{{Name: "server-0", CPUMilli: 2000, MemoryBytes: 4 << 30}}
	}
	w := &World{o: o, store: newStore(o.Clock, o.Seed), agents: map[string]*agent{}, since: map[string]time.Time{}}
	w.client = newClient(w.store, o.ServerVersion)
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, corev1.NamespaceNodeLease} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}}}
		ns.Status.Phase = corev1.NamespaceActive
		if _, err := w.store.create(namespacesResource, ns, false); err != nil {
			return nil, fmt.Errorf("simulation: %w", err)
		}
	}
	for _, s := range o.Servers {
		if err := w.addServer(s); err != nil {
			return nil, fmt.Errorf("simulation: server %s: %w", s.Name, err)
		}
	}
	return w, nil
}

// Client is the cluster's API. It is one client, as privileged as can be.
func (w *World) Client() kubernetes.Interface { return w.client }

// ServerVersion is what the API server says, e.g. "v1.34.4+k3s1".
func (w *World) ServerVersion() string { return w.o.ServerVersion }

// Run lets the world move until ctx ends.
func (w *World) Run(ctx context.Context) error {
	for {
		next := w.Settle()
		var timer <-chan time.Time
		stop := func() bool { return false }
		if !next.IsZero() {
			t := w.o.Clock.NewTimer(next.Sub(w.o.Clock.Now()))
			timer, stop = t.C(), t.Stop
		}
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-w.store.changed:
			stop()
		case <-timer:
		}
	}
}

// maxPasses bounds Settle: each pass of the controllers does what the one before
// made possible, and there are fewer than this between a scaled workload and its
// running pods.
const maxPasses = 100

// Settle lets everything happen that needs no time to pass, and returns when
// more will happen by itself; zero: never. Tests call it after they have moved
// the clock; Run calls it.
func (w *World) Settle() time.Time {
	w.pass.Lock()
	defer w.pass.Unlock()
	for range maxPasses {
		select {
		case <-w.store.changed:
		default:
		}
		before := w.store.currentVersion()
		w.seen, w.next = map[string]bool{}, time.Time{}
		w.runAgents()
		w.superviseNodes()
		w.runDeployments()
		w.runReplicaSets()
		w.runDaemonSets()
		w.collectGarbage()
		w.schedule()
		w.runPods()
		w.updateBudgets()
		for k := range w.since {
			if !w.seen[k] {
				delete(w.since, k)
			}
		}
		if w.store.currentVersion() == before {
			break
		}
	}
	w.client.ClearActions() // the fake records every call for ever
	return w.next
}

// elapsed says whether a delay is over since the condition k was first seen; k
// is forgotten when a pass does not ask for it.
func (w *World) elapsed(k string, delay time.Duration) bool {
	now := w.o.Clock.Now()
	first, ok := w.since[k]
	if !ok {
		first = now
		w.since[k] = first
	}
	w.seen[k] = true
	due := first.Add(w.jittered(k, delay))
	if !due.After(now) {
		return true
	}
	if w.next.IsZero() || due.Before(w.next) {
		w.next = due
	}
	return false
}

func (w *World) jittered(k string, delay time.Duration) time.Duration {
	if w.o.Jitter == 0 {
		return delay
	}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s", w.o.Seed, k)
	share := float64(h.Sum64()%2001)/1000 - 1 // -1 … 1
	return delay + time.Duration(share*w.o.Jitter*float64(delay))
}

// now is the time as the API writes it.
func (w *World) now() metav1.Time { return metav1.NewTime(w.o.Clock.Now().Truncate(time.Second)) }

// errStopped is for callers that wait on a world whose context ends.
var errStopped = errors.New("stopped waiting for the simulated cluster")

// View is the cluster at one moment, for predicates; it must not be changed.
type View struct {
	Nodes []*corev1.Node
	Pods  []*corev1.Pod
}

// View returns the present state.
func (w *World) View() View { return View{Nodes: w.store.nodes(), Pods: w.store.pods()} }

// Until waits until the cluster is as ok says, looking again at each change.
func (w *World) Until(ctx context.Context, ok func(View) bool) error {
	changes := make(chan struct{}, 1)
	defer w.store.subscribe(changes)()
	for {
		if ok(w.View()) {
			return nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errStopped, context.Cause(ctx))
		}
	}
}
