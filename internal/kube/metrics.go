package kube

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrorCounter counts calls of the API server that failed, by verb and
// resource. Answers are no failures: not found, conflict, and an eviction that
// a budget forbids are not counted.
type ErrorCounter struct{ vec *prometheus.CounterVec }

// NewErrorCounter registers autoscaler_kubernetes_api_errors_total. Everything
// that talks to an API server in one process shares the one counter of its
// registry. A nil registerer counts for nobody.
func NewErrorCounter(reg prometheus.Registerer) (*ErrorCounter, error) {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_kubernetes_api_errors_total",
		Help: "Calls of the Kubernetes API server that failed, by verb and resource.",
	}, []string{"verb", "resource"})
	vec, err := registered(reg, vec)
	if err != nil {
		return nil, err
	}
	return &ErrorCounter{vec: vec}, nil
}

// newNotesWritten registers autoscaler_kubernetes_events_total.
func newNotesWritten(reg prometheus.Registerer) (*prometheus.CounterVec, error) {
	return registered(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_kubernetes_events_total",
		Help: "Calls that write Kubernetes Events on pods and nodes, by outcome: written or failed.",
	}, []string{"outcome"}))
}

// registered returns the counter of that name that the registry has already, or
// the one that is given. A nil registerer counts for nobody.
func registered(reg prometheus.Registerer, vec *prometheus.CounterVec) (*prometheus.CounterVec, error) {
	if reg == nil {
		return vec, nil
	}
	err := reg.Register(vec)
	if err == nil {
		return vec, nil
	}
	var already prometheus.AlreadyRegisteredError
	if !errors.As(err, &already) {
		return nil, err
	}
	existing, ok := already.ExistingCollector.(*prometheus.CounterVec)
	if !ok {
		return nil, err
	}
	return existing, nil
}

// Count counts err, unless it is an answer.
func (c *ErrorCounter) Count(verb, resource string, err error) {
	if !expected(err) {
		c.vec.WithLabelValues(verb, resource).Inc()
	}
}
