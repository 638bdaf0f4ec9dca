package resilience

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// stateGauge is the gauge of one breaker in the vector that all of them share.
// A nil reg registers nowhere.
func stateGauge(reg prometheus.Registerer, component, host string) (prometheus.Gauge, error) {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "autoscaler_circuit_breaker_state",
		Help: "Whether calls to a part of the world are made: 0 yes (closed), 1 one, to see whether it answers again (half-open), 2 no, it did not answer (open).",
	}, []string{"component", "host"})
	if reg != nil {
		err := reg.Register(vec)
		var already prometheus.AlreadyRegisteredError
		if errors.As(err, &already) {
			if existing, ok := already.ExistingCollector.(*prometheus.GaugeVec); ok {
				vec, err = existing, nil
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return vec.WithLabelValues(component, host), nil
}
