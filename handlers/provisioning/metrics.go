package provisioning

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

type metrics struct {
	registration prometheus.Histogram
	duration     *prometheus.HistogramVec
	errors       *prometheus.CounterVec
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
	}
}

// failed counts what the bus does not see: a failed delivery or step of work is
// counted there.
func (m *metrics) failed() { m.errors.WithLabelValues(events.HandlerProvisioning).Inc() }

func (m *metrics) stages(direction string, stages []events.Stage) {
	total := 0.0
	for _, s := range stages {
		m.duration.WithLabelValues(direction, s.Name).Observe(s.Seconds)
		total += s.Seconds
	}
	m.duration.WithLabelValues(direction, "total").Observe(total)
}
