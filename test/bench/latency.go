package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/floor"
)

const (
	onReal = "on a real API server and scheduler; the product in one process with every role, each hop on disk (sync always), the provider an HTTP server on loopback; the floor is test/floor: watch, first fit, the same call, nothing stored"
	// trials are the pods of which the median counts.
	trials = 21
	burst  = 100
	// The size of a node, of which a pod asks for more than half.
	nodeMilli, podMilli = 1000, 600
)

// latencies are the figures from a pod to the provider. They need the environment of
// test/env, which they start, or attach to.
func (w *world) latencies() []figure {
	var c *control
	prepare := func(ctx context.Context) (err error) {
		if c == nil {
			c, err = w.control(ctx)
		}
		return err
	}
	ratio := func(window string) func(ctx context.Context, odd bool) (sample, error) {
		return func(ctx context.Context, odd bool) (sample, error) {
			return both(odd, "ms", func() (float64, error) { return c.product(ctx, window, c.oneByOne) }, func() (float64, error) { return c.floor(ctx, c.oneByOne) })
		}
	}
	return []figure{
		{
			name: "end to end: pod created to provider called, p50 / floor", unit: "×", target: 6, atMost: true, prepare: prepare, measure: ratio("50ms"),
			how: fmt.Sprintf("%d pods, one after the other, batch window 50 ms, which a pod that comes alone does not wait for (Karpenter 89, with a window of 10 ms 3; Cluster Autoscaler 870); %s", trials, onReal),
		},
		{
			name: "end to end: pod created to provider called without a batch window, p50 / floor", unit: "×", target: 2, atMost: true, prepare: prepare, measure: ratio("0"),
			how: "as before, with a batch window of 0",
		},
		{
			name: "end to end: first provider call of 100 pods / floor", unit: "×", target: 10, atMost: true, prepare: prepare,
			how: "100 pods at once that need a node each, batch window 50 ms; exactly 100 claims, or the run fails; the other side is the floor's median for one pod",
			measure: func(ctx context.Context, odd bool) (sample, error) {
				return both(odd, "ms", func() (float64, error) { return c.product(ctx, "50ms", c.atOnce) }, func() (float64, error) { return c.floor(ctx, c.oneByOne) })
			},
		},
	}
}

// control is a control plane and the provider's server.
type control struct {
	w     *world
	env   *env.Env
	admin kubernetes.Interface
	runs  int
}

func (w *world) control(ctx context.Context) (*control, error) {
	e, err := env.Start(ctx, env.Options{Log: io.Discard})
	if err != nil {
		return nil, fmt.Errorf("start the test environment: %w", err)
	}
	w.ends = append(w.ends, func() { _ = e.Release(context.Background()) })
	rc, err := kube.Load(e.AdminKubeconfig)
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = 1000, 1000
	admin, err := kube.NewClient(rc)
	return &control{w: w, env: e, admin: admin}, err
}

// oneByOne creates pods one after the other, each when the provider was called for
// the one before, and returns the median of the times in ms.
func (c *control) oneByOne(ctx context.Context, namespace string, p *calls) (float64, error) {
	var all []float64
	for i := range trials {
		begin := time.Now()
		if err := c.create(ctx, namespace, i); err != nil {
			return 0, err
		}
		select {
		case name := <-p.came:
			all = append(all, ms(p.when(name).Sub(begin)))
		case <-time.After(time.Minute):
			return 0, fmt.Errorf("pod %d: the provider was not called within a minute", i)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		time.Sleep(50 * time.Millisecond) // nothing of this one is under way any more
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// atOnce creates pods that need a node each, and returns when the provider was called
// first, in ms.
func (c *control) atOnce(ctx context.Context, namespace string, p *calls) (float64, error) {
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, burst)
	for i := range burst {
		wg.Go(func() { errs <- c.create(ctx, namespace, i) })
	}
	wg.Wait()
	for range burst {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	first := time.Time{}
	quiet := 2 * time.Minute
	for n := 0; ; n++ {
		select {
		case name := <-p.came:
			if at := p.when(name); first.IsZero() || at.Before(first) {
				first = at
			}
			if n+1 == burst {
				quiet = 5 * time.Second // in which a superfluous one would come
			}
		case <-time.After(quiet):
			if n != burst {
				return 0, fmt.Errorf("%d nodes were asked for, expected %d", n, burst)
			}
			return ms(first.Sub(begin)), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (c *control) create(ctx context.Context, namespace string, i int) error {
	amounts := corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(podMilli, resource.DecimalSI)}
	_, err := c.admin.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod-" + strconv.Itoa(i), Namespace: namespace},
		Spec: corev1.PodSpec{AutomountServiceAccountToken: new(bool), NodeSelector: map[string]string{"latency": namespace},
			Containers: []corev1.Container{{Name: "main", Image: "none", Resources: corev1.ResourceRequirements{Requests: amounts}}}},
	}, metav1.CreateOptions{})
	return err
}

// namespace makes one that pods can be created in.
func (c *control) namespace(ctx context.Context) (string, func(), error) {
	c.runs++
	name := fmt.Sprintf("latency-%d-%d", os.Getpid(), c.runs)
	if _, err := c.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return "", nil, err
	}
	remove := func() {
		now := int64(0)
		_ = c.admin.CoreV1().Pods(name).DeleteCollection(context.Background(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		_ = c.admin.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{})
	}
	for {
		_, err := c.admin.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		if err == nil || !apierrors.IsNotFound(err) {
			return name, remove, err
		}
		select {
		case <-ctx.Done():
			return name, remove, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// side is one side of a ratio: its process, and what is done to it.
func (c *control) side(ctx context.Context, r role, do func(ctx context.Context, namespace string, p *calls) (float64, error)) (v float64, err error) {
	p, err := listen()
	if err != nil {
		return 0, err
	}
	defer p.close()
	namespace, remove, err := c.namespace(ctx)
	if err != nil {
		return 0, err
	}
	defer remove()
	r.Namespace, r.Provider, r.Kubeconfig, r.Actor = namespace, p.url, c.env.ReaderKubeconfig, c.env.ActorKubeconfig
	child, _, err := start(r)
	if err != nil {
		return 0, err
	}
	defer child.end()
	return do(ctx, namespace, p)
}

func (c *control) product(ctx context.Context, window string, do func(ctx context.Context, namespace string, p *calls) (float64, error)) (float64, error) {
	dir, err := os.MkdirTemp(c.w.dir, "product-")
	if err != nil {
		return 0, err
	}
	return c.side(ctx, role{Name: "product", Product: dir, Window: window}, do)
}

func (c *control) floor(ctx context.Context, do func(ctx context.Context, namespace string, p *calls) (float64, error)) (float64, error) {
	return c.side(ctx, role{Name: "floor", Floor: true}, do)
}

// runFloor is the child that is the floor.
func runFloor(r role) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := client(r.Kubeconfig)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- floor.Run(ctx, floor.Options{Client: client, Namespace: r.Namespace, Provider: r.Provider, CPUMilli: nodeMilli}, func() { fmt.Println("ready") })
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	if end := <-done; !errors.Is(end, context.Canceled) {
		err = errors.Join(err, end)
	}
	return err
}

func client(kubeconfig string) (kubernetes.Interface, error) {
	rc, err := kube.Load(kubeconfig)
	if err != nil {
		return nil, err
	}
	return kube.NewClient(rc)
}

const latencyConfiguration = `clusters:
  - name: latency
    pools: [{name: burst, provider: simulated, min: 0, max: 500, cpu: 1000m, memory: 4Gi, labels: {latency: %s}, register_deadline: 30m}]
collector: {batch_window: %s}
api: {listen: "127.0.0.1:0", token_files: [api.token]}
bus: {embedded: {dir: bus}}
audit: {sqlite: {path: audit.db}}
`

// realCluster is a world of which only the machines are made up.
type realCluster struct{ r role }

func (w realCluster) Reader(config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	c, err := client(w.r.Kubeconfig)
	return c, nil, err
}

func (w realCluster) Actor(config.Cluster) (kubernetes.Interface, error) { return client(w.r.Actor) }

func (w realCluster) Provider(config.Cluster, config.Pool, *bus.Notes) (provider.NodeProvider, error) {
	return &remote{url: w.r.Provider, all: map[string]provider.Machine{}}, nil
}

// runProduct is the child that is the product.
func runProduct(r role) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := auth.NewKey().WriteFile(filepath.Join(r.Product, "api.token")); err != nil {
		return err
	}
	cfg, err := config.Parse("latency.yaml", fmt.Appendf(nil, latencyConfiguration, r.Namespace, r.Window), r.Product)
	if err != nil {
		return err
	}
	a, err := app.New(ctx, app.Options{Config: cfg, Version: "bench", World: realCluster{r}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	time.Sleep(10 * time.Second) // started; the first snapshots are decided upon
	select {
	case err := <-done:
		return fmt.Errorf("the product ended: %w", err)
	default:
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-done, a.Close())
}
