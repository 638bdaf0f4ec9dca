package provisioning

import (
	"cmp"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

type metrics struct {
	registration prometheus.Histogram
	duration     *prometheus.HistogramVec
	errors       *prometheus.CounterVec
	failures     *prometheus.CounterVec
	differences  *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		registration: bus.Register(reg, log, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "autoscaler_node_registration_time_seconds",
			Help:    "Time from the start of a node's machine until the node is Ready.",
			Buckets: prometheus.ExponentialBuckets(0.5, 2, 11), // 0.5 s to 8.5 min
		})),
		duration: bus.Register(reg, log, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_scaling_duration_seconds",
			Help:    "Duration of scaling by direction (up, down) and stage; total is the whole, from need to Ready or from decision to removal.",
			Buckets: prometheus.ExponentialBuckets(0.1, 2, 14), // 0.1 s to 14 min
		}, []string{"direction", "stage"})),
		errors: bus.ErrorsTotal(reg, log),
		failures: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_node_failures_total",
			Help: "Nodes that failed to come up or were lost, by the code of the reason.",
		}, []string{"reason"})),
		differences: bus.Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_reconcile_differences",
			Help: "Differences between provider, API server and records that the last sweep found, by kind; left-alone are those that nobody acts on.",
		}, []string{"kind"})),
	}
}

// failed counts what the bus does not see: a failed delivery or step of work is
// counted there.
func (m *metrics) failed() { m.errors.WithLabelValues(events.HandlerProvisioning).Inc() }

// ended counts a node that failed or was lost.
func (m *metrics) ended(reason string) { m.failures.WithLabelValues(reason).Inc() }

// leftAlone is the kind of differences that nobody acts on.
const leftAlone = "left-alone"

// differ shows what the last sweep found.
func (m *metrics) differ(ds []difference) {
	count := map[string]int{leftAlone: 0}
	for kind := range actions {
		count[kind] = 0
	}
	for _, d := range ds {
		count[cmp.Or(d.Kind, leftAlone)]++
	}
	for kind, n := range count {
		m.differences.WithLabelValues(kind).Set(float64(n))
	}
}

func (m *metrics) stages(direction string, stages []events.Stage) {
	total := 0.0
	for _, s := range stages {
		m.duration.WithLabelValues(direction, s.Name).Observe(s.Seconds)
		total += s.Seconds
	}
	m.duration.WithLabelValues(direction, "total").Observe(total)
}
