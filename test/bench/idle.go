package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clienttesting "k8s.io/client-go/testing"

	corev1 "k8s.io/api/core/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"
	metricsfake "k8s.io/metrics/pkg/client/clientset/versioned/fake"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/simulated"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// idleNodes is the size of the cluster in which nothing happens.
const idleNodes = 10

const idleConfiguration = `clusters:
  - name: home
    pools: [{name: burst, provider: simulated, min: 0, max: 5, cpu: "2", memory: 4Gi}]
api: {listen: "127.0.0.1:0", token_files: [api.token]}
bus: {embedded: {dir: bus}}
audit: {sqlite: {path: audit.db}}
`

// still is a cluster whose nodes are used, and nothing else changes.
type still struct{ world *simulation.World }

func (s still) Reader(config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	m := metricsfake.NewSimpleClientset()
	n := int64(0)
	m.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		n++
		list := &metricsv1beta1.NodeMetricsList{}
		for i := range idleNodes {
			list.Items = append(list.Items, metricsv1beta1.NodeMetrics{ObjectMeta: metav1.ObjectMeta{Name: "worker-" + strconv.Itoa(i)}, Timestamp: metav1.Now(),
				Usage: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(100+(n*7919+int64(i)*104729)%900, resource.DecimalSI),
					corev1.ResourceMemory: *resource.NewQuantity(1<<30+4096*((n*7919+int64(i)*104729)%100_000), resource.BinarySI)}})
		}
		return true, list, nil
	})
	return s.world.Client(), m, nil
}

func (s still) Actor(config.Cluster) (kubernetes.Interface, error) { return s.world.Client(), nil }

func (s still) Provider(c config.Cluster, _ config.Pool, _ *bus.Notes) (provider.NodeProvider, error) {
	return simulated.New(simulated.Options{World: s.world, Cluster: c.Name})
}

// idle runs the product until standard input ends, and says when it has come to
// rest.
func idle(dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := auth.NewKey().WriteFile(filepath.Join(dir, "api.token")); err != nil {
		return err
	}
	cfg, err := config.Parse("idle.yaml", []byte(idleConfiguration), dir)
	if err != nil {
		return err
	}
	o := simulation.Options{Seed: 1}
	for i := range idleNodes {
		o.Servers = append(o.Servers, simulation.Agent{Name: "worker-" + strconv.Itoa(i), CPUMilli: 4000, MemoryBytes: 8 << 30})
	}
	w, err := simulation.New(o)
	if err != nil {
		return err
	}
	if err := w.Deploy(ctx, simulation.Workload{Name: "service", Replicas: 10 * idleNodes, CPUMilli: 200, MemoryBytes: 256 << 20}); err != nil {
		return err
	}
	a, err := app.New(ctx, app.Options{Config: cfg, Version: "bench", World: still{w}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	done := make(chan error, 2)
	go func() { done <- a.Run(ctx) }()
	go func() { done <- w.Run(ctx) }()
	time.Sleep(15 * time.Second) // started, every pod runs, the first snapshots are decided upon
	select {
	case err := <-done:
		return fmt.Errorf("the product ended: %w", err)
	default:
	}
	fmt.Println("idle")
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-done, <-done, a.Close())
}
