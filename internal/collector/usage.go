package collector

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// pollUsage reads the usage of all nodes from metrics.k8s.io, where that is
// served; without it usage is unknown, which is not zero.
func (c *Collector) pollUsage(ctx context.Context) {
	if c.o.Metrics == nil {
		return
	}
	tick := c.o.Clock.NewTicker(c.o.MetricsEvery)
	defer tick.Stop()
	said := ""
	say := func(what, msg string, args ...any) {
		if said != what {
			said = what
			c.log.InfoContext(ctx, msg, args...)
		}
	}
	for {
		asked := c.o.Clock.Now()
		list, err := c.readUsage(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case apierrors.IsNotFound(err):
			say("absent", "cluster serves no metrics.k8s.io: CPU and memory usage of nodes are unknown, thresholds on them do not act; "+
				"k3s brings a metrics-server unless started with --disable=metrics-server")
			c.forgetUsage()
		case err != nil:
			say("failing", "usage of nodes can't be read; it keeps its last value and says since when it is old", "err", err)
		default:
			say("served", "usage of nodes is read from metrics.k8s.io", "every", c.o.MetricsEvery)
			c.setUsage(list, asked)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

func (c *Collector) readUsage(ctx context.Context) (*metricsv1beta1.NodeMetricsList, error) {
	ctx, cancel := context.WithTimeout(ctx, kube.DefaultTimeout)
	defer cancel()
	list, err := c.o.Metrics.MetricsV1beta1().NodeMetricses().List(ctx, metav1.ListOptions{})
	c.errors.Count("list", "nodes.metrics.k8s.io", err)
	return list, err
}

func (c *Collector) setUsage(list *metricsv1beta1.NodeMetricsList, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh.usage = asked
	present := map[string]bool{}
	for i := range list.Items {
		m := &list.Items[i]
		if m.Timestamp.IsZero() {
			continue // never measured: unknown
		}
		present[m.Name] = true
		now := events.SnapshotUsage{Node: m.Name, CPUMilli: m.Usage.Cpu().MilliValue(), MemoryBytes: m.Usage.Memory().Value(), At: m.Timestamp.UTC()}
		if _, _, differs := put(c.model.usage, m.Name, now); differs {
			c.touch(events.KindUsage, m.Name, whenever)
		}
	}
	for node := range c.model.usage {
		if !present[node] {
			drop(c, c.model.usage, events.KindUsage, node, whenever)
		}
	}
}

func (c *Collector) forgetUsage() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh.usage = time.Time{}
	for node := range c.model.usage {
		drop(c, c.model.usage, events.KindUsage, node, whenever)
	}
}
