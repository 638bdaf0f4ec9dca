package collector_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

// bus records what is published, in the order in which it was stored. It can
// refuse, and it can store without saying so.
type bus struct {
	mu      sync.Mutex
	stored  []stored
	ids     map[string]bool
	outcome func() (store bool, err error) // nil: stored and acknowledged
}

type stored struct {
	event events.Event
	at    time.Time
}

func (b *bus) Publish(_ context.Context, es ...events.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	store, err := true, error(nil)
	if b.outcome != nil {
		store, err = b.outcome()
	}
	for _, e := range es {
		if store && !b.ids[e.ID()] {
			b.ids[e.ID()] = true
			b.stored = append(b.stored, stored{e, time.Now()})
		}
	}
	return err
}

func (b *bus) set(outcome func() (bool, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outcome = outcome
}

func (b *bus) all() []stored {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]stored(nil), b.stored...)
}

// records is a Records that a test writes to.
type records struct {
	mu      sync.Mutex
	present []events.NodeRecord
	ch      chan collector.RecordChange
}

func (r *records) Watch(context.Context) (<-chan collector.RecordChange, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ch = make(chan collector.RecordChange, 100)
	for _, rec := range r.present {
		r.ch <- collector.RecordChange{Record: rec}
	}
	r.ch <- collector.RecordChange{Synced: true}
	return r.ch, nil
}

func (r *records) send(c collector.RecordChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ch <- c
}

func (r *records) cut(present ...events.NodeRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.present = present
	close(r.ch)
}

// testBundle is a collector on a fake API server and bus, in a bubble where
// time passes only when nothing else can happen.
type testBundle struct {
	t         *testing.T
	client    *fake.Clientset
	bus       *bus
	collector *collector.Collector
	reg       *prometheus.Registry
	stop      func()
	read      int // events of the bus that were looked at
}

func setup(t *testing.T, edit func(*collector.Options), objects ...runtime.Object) *testBundle {
	t.Helper()
	// The tracker of NewClientset builds a REST mapper at every write, for managed
	// fields, which are trimmed anyway.
	client := fake.NewSimpleClientset(objects...)
	b := &testBundle{t: t, client: client, bus: &bus{ids: map[string]bool{}}, reg: prometheus.NewRegistry()}
	b.start(edit)
	return b
}

func (b *testBundle) start(edit func(*collector.Options)) {
	b.t.Helper()
	o := collector.Options{Cluster: "lab", Client: b.client, Publisher: b.bus, Epoch: 1, Registerer: b.reg,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if edit != nil {
		edit(&o)
	}
	c, err := collector.New(o)
	require.NoError(b.t, err)
	b.collector = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	b.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(b.t, <-done)
		}
	}
	synctest.Wait()
}

// fresh returns the events that were stored since the last call.
func (b *testBundle) fresh() []stored {
	synctest.Wait()
	all := b.bus.all()
	out := all[b.read:]
	b.read = len(all)
	return out
}

// after lets d pass and returns what was stored meanwhile.
func (b *testBundle) after(d time.Duration) []stored {
	time.Sleep(d)
	return b.fresh()
}

// one returns the only event of type T among es.
func one[T events.Payload](t *testing.T, es []stored) T {
	t.Helper()
	found := every[T](t, es)
	require.Len(t, found, 1)
	return found[0]
}

func every[T events.Payload](t *testing.T, es []stored) []T {
	t.Helper()
	var zero T
	var out []T
	for _, e := range es {
		if e.event.Type() == zero.EventType() {
			p, err := events.Decode[T](e.event)
			require.NoError(t, err)
			out = append(out, p)
		}
	}
	return out
}

// foldOf adds up the snapshots among es, as decision does: what it must not
// apply, it leaves.
func foldOf(t *testing.T, es []stored) *events.Fold {
	t.Helper()
	f := events.NewFold()
	for _, e := range es {
		var err error
		switch e.event.Type() {
		case events.TypeSnapshotCaptured:
			p, derr := events.Decode[events.SnapshotCaptured](e.event)
			require.NoError(t, derr)
			err = f.Capture(p)
		case events.TypeSnapshotChanged:
			p, derr := events.Decode[events.SnapshotChanged](e.event)
			require.NoError(t, derr)
			err = f.Change(p)
		}
		if err != nil {
			require.ErrorIs(t, err, events.ErrStaleSnapshot)
		}
	}
	return f
}

var errDown = errors.New("no answer")

func node(name string, edit ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Capacity:    corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110")},
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110")},
			NodeInfo:    corev1.NodeSystemInfo{KubeletVersion: "v1.34.4+k3s1"},
		},
	}
	for _, e := range edit {
		e(n)
	}
	return n
}

func claimed(n *corev1.Node) { n.Labels[events.LabelClaim] = "claim-" + n.Name }

func ready(at time.Time, status corev1.ConditionStatus) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: "Kubelet" + string(status),
			LastTransitionTime: metav1.NewTime(at), LastHeartbeatTime: metav1.NewTime(time.Now())}}
	}
}

func pod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	yes := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "web"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", Controller: &yes}}},
		Spec: corev1.PodSpec{SchedulerName: corev1.DefaultSchedulerName, Containers: []corev1.Container{{Name: "main",
			Env: []corev1.EnvVar{{Name: "PASSWORD", Value: "hush"}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("256Mi")}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

func on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName, p.Status.Phase, p.Status.Conditions = node, corev1.PodRunning, nil
	}
}

func unschedulable(message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
			Reason: corev1.PodReasonUnschedulable, Message: message, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second))}}
	}
}

func (b *testBundle) create(o any) { b.write(o, false) }
func (b *testBundle) update(o any) { b.write(o, true) }

func (b *testBundle) write(o any, update bool) {
	b.t.Helper()
	ctx := context.Background()
	var err error
	switch o := o.(type) {
	case *corev1.Node:
		if update {
			_, err = b.client.CoreV1().Nodes().Update(ctx, o, metav1.UpdateOptions{})
		} else {
			_, err = b.client.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
		}
	case *corev1.Pod:
		if update {
			_, err = b.client.CoreV1().Pods(o.Namespace).Update(ctx, o, metav1.UpdateOptions{})
		} else {
			_, err = b.client.CoreV1().Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		}
	default:
		b.t.Fatalf("can't write a %T", o)
	}
	require.NoError(b.t, err)
}

func (b *testBundle) deletePod(name string) {
	b.t.Helper()
	require.NoError(b.t, b.client.CoreV1().Pods("shop").Delete(context.Background(), name, metav1.DeleteOptions{}))
}

func (b *testBundle) deleteNode(name string) {
	b.t.Helper()
	require.NoError(b.t, b.client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}))
}
