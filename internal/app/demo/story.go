package demo

import (
	"context"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// chapterPause is between what is awaited and what happens next.
const chapterPause = 3 * time.Second

const (
	webPods   = 3
	buildPods = 6
	apiPods   = 2
)

// story is what happens in the simulated world, and what must follow from it.
func (d *demo) story(ctx context.Context) error {
	fmt.Fprintf(d.o.Out, "k3s-autoscaler %s: the main job on a simulated cluster (one server with 2 cores; pool %q of 0 to 5 nodes with 2 cores).\n\n", d.o.Version, poolName)
	if err := d.await(ctx, "the autoscaler is ready", d.ready); err != nil {
		return err
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watched := make(chan error, 1)
	go func() { watched <- d.timeline(watching) }()

	if err := d.chapter(ctx, "a web service with %d pods of 500m starts; it fits on the server", webPods); err != nil {
		return err
	}
	if err := d.world.Deploy(ctx, simulation.Workload{Name: "web", Replicas: webPods, CPUMilli: 500, MemoryBytes: 128 << 20}); err != nil {
		return err
	}
	if err := d.await(ctx, "the web pods run", d.podsRun(webPods)); err != nil {
		return err
	}

	fired := time.Now()
	if err := d.chapter(ctx, "a Prometheus rule fires: QueueBacklog, Alertmanager posts to the webhook"); err != nil {
		return err
	}
	if err := d.alert(ctx, "firing", fired); err != nil {
		return err
	}
	if err := d.await(ctx, "the alert's node is Ready", d.nodesReady(1)); err != nil {
		return err
	}

	if err := d.chapter(ctx, "a build of %d pods of 800m starts: two fit on the new node, four don't fit anywhere", buildPods); err != nil {
		return err
	}
	if err := d.world.Deploy(ctx, simulation.Workload{Name: "build", Replicas: buildPods, CPUMilli: 800, MemoryBytes: 256 << 20}); err != nil {
		return err
	}
	if err := d.await(ctx, "all pods run", d.podsRun(webPods+buildPods)); err != nil {
		return err
	}
	if err := d.chapter(ctx, "an API with %d pods of 400m starts; it fits into the gaps that are left", apiPods); err != nil {
		return err
	}
	if err := d.world.Deploy(ctx, simulation.Workload{Name: "api", Replicas: apiPods, CPUMilli: 400, MemoryBytes: 128 << 20}); err != nil {
		return err
	}
	if err := d.await(ctx, "all pods run", d.podsRun(webPods+buildPods+apiPods)); err != nil {
		return err
	}

	if err := d.chapter(ctx, "the load falls: the build is done, the web service shrinks by one pod, the alert is resolved"); err != nil {
		return err
	}
	for name, n := range map[string]int32{"build": 0, "web": webPods - 1} {
		if err := d.world.Scale(ctx, metav1.NamespaceDefault, name, n); err != nil {
			return err
		}
	}
	if err := d.alert(ctx, "resolved", fired); err != nil {
		return err
	}
	if err := d.await(ctx, "every node of the pool has left", d.nodesReady(0)); err != nil {
		return err
	}
	if err := d.await(ctx, "every pod runs on the server", d.podsRun(webPods-1+apiPods)); err != nil {
		return err
	}
	// A node's object goes before its machine, and its removal is recorded last.
	var sum *summary
	err := d.await(ctx, "every removal is recorded", func(ctx context.Context) (err error) {
		if sum, err = d.summarize(ctx); err != nil {
			return err
		}
		return sum.open()
	})
	stopWatching()
	if werr := <-watched; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	sum.print(d.o.Out)
	return sum.check()
}

// chapter pauses a little, so that a reader can follow, and says what happens next.
func (d *demo) chapter(ctx context.Context, format string, args ...any) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d.paced(chapterPause)):
	}
	fmt.Fprintf(d.o.Out, "\n%s  ── %s\n", d.at(time.Now()), fmt.Sprintf(format, args...))
	return nil
}

func (d *demo) at(t time.Time) string { return fmt.Sprintf("%6.1fs", t.Sub(d.start).Seconds()) }

// await asks until the answer is nil.
func (d *demo) await(ctx context.Context, what string, ask func(context.Context) error) error {
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for: %s: %w", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *demo) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.app.Address()+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz says %s", resp.Status)
	}
	return nil
}

// nodesReady asks whether the pool has exactly n nodes, all Ready and schedulable.
func (d *demo) nodesReady(n int) func(context.Context) error {
	return func(ctx context.Context) error {
		list, err := d.world.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: events.LabelPool + "=" + poolName})
		if err != nil {
			return err
		}
		ready := 0
		for _, node := range list.Items {
			for _, c := range node.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" && !node.Spec.Unschedulable {
					ready++
				}
			}
		}
		if ready != n || len(list.Items) != n {
			return fmt.Errorf("%d nodes, %d of them Ready, expected %d", len(list.Items), ready, n)
		}
		return nil
	}
}

// podsRun asks whether exactly n pods exist and all of them run.
func (d *demo) podsRun(n int) func(context.Context) error {
	return func(ctx context.Context) error {
		list, err := d.world.Client().CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		running := 0
		for _, p := range list.Items {
			if p.Status.Phase == "Running" && p.DeletionTimestamp == nil {
				running++
			}
		}
		if running != n || len(list.Items) != n {
			return fmt.Errorf("%d pods, %d of them run, expected %d", len(list.Items), running, n)
		}
		return nil
	}
}
