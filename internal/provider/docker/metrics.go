package docker

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	errors *prometheus.CounterVec
	pulls  *prometheus.HistogramVec
}

// newMetrics registers with reg, unless another provider of this process has
// done so: they count together. A nil reg registers nowhere.
func newMetrics(reg prometheus.Registerer) (metrics, error) {
	var m metrics
	var err, pullsErr error
	m.errors, err = register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_docker_api_errors_total",
		Help: "Calls to a Docker engine that failed, by operation and kind of failure.",
	}, []string{"operation", "kind"}))
	m.pulls, pullsErr = register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "autoscaler_docker_image_pull_seconds",
		Help:    "How long pulls of images took, by host and result (pulled, failed).",
		Buckets: []float64{1, 2.5, 5, 10, 20, 40, 80, 160, 320},
	}, []string{"host", "result"}))
	return m, errors.Join(err, pullsErr)
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	return c, err
}
