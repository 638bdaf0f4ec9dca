package provisioning

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

type metrics struct {
	registration prometheus.Histogram
	duration     *prometheus.HistogramVec
	errors       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		registration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "autoscaler_node_registration_time_seconds",
			Help:    "Time from the start of a node's machine until the node is Ready.",
			Buckets: prometheus.ExponentialBuckets(0.5, 2, 11), // 0.5 s to 8.5 min
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_scaling_duration_seconds",
			Help:    "Duration of scaling by direction (up, down) and stage; total is the whole, from need to Ready or from decision to removal.",
			Buckets: prometheus.ExponentialBuckets(0.1, 2, 14), // 0.1 s to 14 min
		}, []string{"direction", "stage"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_errors_total",
			Help: "Errors by component.",
		}, []string{"component"}),
	}
	if reg == nil {
		return m, nil
	}
	// Several parts of the process share a metric: the first one registers it.
	return m, errors.Join(register(reg, &m.registration), register(reg, &m.duration), register(reg, &m.errors))
}

func register[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var are prometheus.AlreadyRegisteredError
	if errors.As(err, &are) {
		if existing, ok := are.ExistingCollector.(C); ok {
			*c = existing
			return nil
		}
	}
	return err
}

func (m *metrics) failed() { m.errors.WithLabelValues(events.HandlerProvisioning).Inc() }

func (m *metrics) stages(direction string, stages []events.Stage) {
	total := 0.0
	for _, s := range stages {
		m.duration.WithLabelValues(direction, s.Name).Observe(s.Seconds)
		total += s.Seconds
	}
	m.duration.WithLabelValues(direction, "total").Observe(total)
}
