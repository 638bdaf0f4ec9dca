package auditing

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

type metrics struct {
	lost   prometheus.Counter
	errors *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		lost: bus.Register(reg, log, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_audit_events_lost_total",
			Help: "Events that the limits of the stream dropped before they were audited.",
		})),
		errors: bus.ErrorsTotal(reg, log),
	}
}
