//go:build e2e

package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

// arrivals hands on every event with the time at which it was published.
type arrivals struct {
	mu sync.Mutex
	ch chan stored
}

func (a *arrivals) Publish(_ context.Context, es ...events.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range es {
		a.ch <- stored{e, time.Now()}
	}
	return nil
}

// The right to read that deploy/ gives is all that the collector needs, and a
// real scheduler's verdict is published within the batch window.
func TestAPendingPodOfARealClusterIsPublished(t *testing.T) {
	ctx := t.Context()
	world, err := env.Start(ctx, env.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, world.Release(context.Background())) })
	admin, reader := client(t, world.AdminKubeconfig), client(t, world.ReaderKubeconfig)
	namespace, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "collector-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, admin.CoreV1().Namespaces().Delete(context.Background(), namespace.Name, metav1.DeleteOptions{}))
	})

	out := &arrivals{ch: make(chan stored, 1000)}
	c, err := collector.New(collector.Options{Cluster: "lab", Client: reader, Publisher: out, Epoch: 1})
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	started := time.Now()
	go func() { done <- c.Run(running) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-done) })

	fold := events.NewFold()
	next := func() stored {
		for {
			select {
			case s := <-out.ch:
				switch s.event.Type() {
				case events.TypeSnapshotCaptured:
					p, err := events.Decode[events.SnapshotCaptured](s.event)
					require.NoError(t, err)
					require.NoError(t, fold.Capture(p))
					return s
				case events.TypeSnapshotChanged:
					p, err := events.Decode[events.SnapshotChanged](s.event)
					require.NoError(t, err)
					require.NoError(t, fold.Change(p))
					return s
				}
			case <-time.After(30 * time.Second):
				require.Fail(t, "no snapshot within 30 s", "ready: %v", c.Ready())
			}
		}
	}
	first := next()
	require.Equal(t, events.TypeSnapshotCaptured, first.event.Type())
	require.Equal(t, world.ServerVersion, fold.ServerVersion)
	require.NoError(t, c.Ready())
	t.Logf("start to full snapshot: %s", first.at.Sub(started).Round(time.Millisecond))

	for i := range 3 {
		name := fmt.Sprint("pending-", i)
		created := time.Now()
		_, err = admin.CoreV1().Pods(namespace.Name).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"k3s-autoscaler.dev/none": "such"}, Containers: []corev1.Container{{Name: "main", Image: "pause"}},
		}}, metav1.CreateOptions{})
		require.NoError(t, err)
		key := namespace.Name + "/" + name
		var s stored
		for fold.Pods()[key].UnschedulableSince.IsZero() {
			s = next()
		}
		p, err := events.Decode[events.SnapshotChanged](s.event)
		require.NoError(t, err)
		require.NotEmpty(t, fold.Pods()[key].UnschedulableMessage)
		// How long is judged by the unit tests, whose clock no load disturbs.
		t.Logf("pod created to snapshot.changed: %s, first change to snapshot.changed: %s",
			s.at.Sub(created).Round(time.Millisecond), s.at.Sub(p.FirstChangeAt).Round(time.Millisecond))
	}
}

func client(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	rc, err := kube.Load(kubeconfig)
	require.NoError(t, err)
	c, err := kube.NewClient(rc)
	require.NoError(t, err)
	return c
}

// The account that acts may not read everything: as a credential for reading,
// each right that it lacks is named.
func TestARealServersRefusalNamesTheMissingRight(t *testing.T) {
	ctx := t.Context()
	world, err := env.Start(ctx, env.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, world.Release(context.Background())) })
	var out lines
	published := &arrivals{ch: make(chan stored, 100)}
	c, err := collector.New(collector.Options{Cluster: "lab", Client: client(t, world.ActorKubeconfig), Publisher: published, Epoch: 1,
		Logger: slog.New(slog.NewTextHandler(&out, nil))})
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(running) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-done) })
	for _, resource := range []string{"namespaces", "storageclasses", "daemonsets", "poddisruptionbudgets"} {
		require.Eventually(t, func() bool { return len(out.with("lacks the right to list and watch "+resource)) == 1 }, 30*time.Second, 50*time.Millisecond, resource)
	}
	require.ErrorContains(t, c.Ready(), `resource "storageclasses" in API group "storage.k8s.io" at the cluster scope`)
	require.Empty(t, published.ch, "nothing is published from a part of the cluster")
}
