package decision

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

type metrics struct {
	latency   *prometheus.HistogramVec
	decisions *prometheus.CounterVec
	nodes     *prometheus.GaugeVec
	limits    *prometheus.GaugeVec
	pending   *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		latency: bus.Register(reg, log, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_decision_latency_seconds",
			Help:    "Time from the storing of an event until what follows from it is published.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), // 1 ms to 16 s
		}, []string{"cluster"})),
		decisions: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_scaling_decisions_total",
			Help: "Evaluations of a pool by their verdict, holds included.",
		}, []string{"verdict", "cluster", "pool"})),
		nodes: bus.Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_current_nodes",
			Help: "Nodes of a pool: existing ones, leaving ones and claims in flight.",
		}, []string{"cluster", "pool"})),
		limits: bus.Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_pool_max_nodes",
			Help: "How many nodes a pool may have.",
		}, []string{"cluster", "pool"})),
		pending: bus.Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_pending_pods",
			Help: "Pods of a cluster that wait for a node.",
		}, []string{"cluster"})),
	}
}

func (m *metrics) observe(cluster string, out *outcome, latency time.Duration) {
	m.latency.WithLabelValues(cluster).Observe(max(latency, 0).Seconds())
	for _, d := range out.result.Decisions {
		m.decisions.WithLabelValues(d.Verdict, cluster, d.Pool).Inc()
		m.limits.WithLabelValues(cluster, d.Pool).Set(float64(d.Max))
	}
	if !out.known {
		return
	}
	for _, p := range out.result.Pools {
		m.nodes.WithLabelValues(cluster, p.Pool).Set(float64(p.Nodes))
	}
	m.pending.WithLabelValues(cluster).Set(float64(out.result.PendingPods))
}

type shadowMetrics struct{ differences *prometheus.CounterVec }

func newShadowMetrics(reg prometheus.Registerer, log *slog.Logger) *shadowMetrics {
	return &shadowMetrics{differences: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_shadow_differences_total",
		Help: "Times that a candidate policy would add or remove more nodes, hold them, or remove other ones, and the policy in force does not.",
	}, []string{"effect", "cluster", "pool"}))}
}
