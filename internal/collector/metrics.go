package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// instruments are the collector's metrics. Each carries the cluster's name.
type instruments struct {
	published *prometheus.CounterVec
	failures  prometheus.Counter
	observed  prometheus.Counter
	publish   prometheus.Histogram
	latency   prometheus.Histogram
	all       []prometheus.Collector
	reg       prometheus.Registerer
}

func newInstruments(c *Collector) *instruments {
	m := &instruments{
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_collector_snapshots_published_total",
			Help: "Snapshots that the bus has stored, by type (captured: full, changed: delta).",
		}, []string{"type"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_collector_publish_failures_total",
			Help: "Publications that the bus did not acknowledge.",
		}),
		observed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_collector_nodes_observed_total",
			Help: "Facts about nodes of ours that were published.",
		}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "autoscaler_collector_publish_seconds",
			Help:    "How long the bus takes to store a publication.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "autoscaler_collector_change_latency_seconds",
			Help:    "From the first pressing change, such as a pod that becomes unschedulable, until its snapshot is stored.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14),
		}),
	}
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "autoscaler_collector_snapshot_age_seconds",
		Help: "Time since the last snapshot that was stored; NaN before the first.",
	}, c.snapshotAge)
	m.all = []prometheus.Collector{m.published, m.failures, m.observed, m.publish, m.latency, age, stateOf{c}}
	return m
}

func (m *instruments) register(reg prometheus.Registerer, cluster string) error {
	if reg == nil {
		return nil
	}
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"cluster": cluster}, reg)
	for _, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			m.unregister()
			return err
		}
	}
	return nil
}

// unregister makes room for the collector of a later leadership.
func (m *instruments) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

var (
	objectsDesc = prometheus.NewDesc("autoscaler_collector_objects",
		"Objects that the snapshot holds, by kind.", []string{"kind"}, nil)
	dataAgeDesc = prometheus.NewDesc("autoscaler_collector_data_age_seconds",
		"Time since the objects of a kind were last known to be current, by kind; absent while they are unknown.", []string{"kind"}, nil)
)

// stateOf reports the size and the age of the collector's model.
type stateOf struct{ c *Collector }

func (s stateOf) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc; ch <- dataAgeDesc }

func (s stateOf) Collect(ch chan<- prometheus.Metric) {
	c := s.c
	now := c.o.Clock.Now()
	c.mu.Lock()
	fresh := c.freshnessNow()
	sizes := map[string]int{
		events.KindNode: len(c.model.nodes), events.KindPod: len(c.model.pods), events.KindPodClass: len(c.model.classes),
		events.KindPDB: len(c.model.pdbs), events.KindDaemonSet: len(c.model.daemonsets),
		events.KindUsage: len(c.model.usage), events.KindRecord: len(c.model.records), events.KindNamespace: len(c.model.namespaces),
	}
	c.mu.Unlock()
	for kind, n := range sizes {
		ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(n), kind)
	}
	for kind, at := range fresh {
		ch <- prometheus.MustNewConstMetric(dataAgeDesc, prometheus.GaugeValue, now.Sub(at).Seconds(), kind)
	}
}
