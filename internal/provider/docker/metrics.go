package docker

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct{ errors *prometheus.CounterVec }

// newMetrics registers with reg, unless another provider of this process has
// done so: they count together. A nil reg registers nowhere.
func newMetrics(reg prometheus.Registerer) (metrics, error) {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_docker_api_errors_total",
		Help: "Calls to a Docker engine that failed, by operation and kind of failure.",
	}, []string{"operation", "kind"})
	if reg == nil {
		return metrics{vec}, nil
	}
	err := reg.Register(vec)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(*prometheus.CounterVec); ok {
			return metrics{existing}, nil
		}
	}
	return metrics{vec}, err
}
