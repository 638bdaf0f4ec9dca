package draining

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

type metrics struct {
	evictions *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		evictions: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_evictions_total",
			Help: "Evictions asked for, by what the API server answered: accepted, gone, blocked, failed.",
		}, []string{"result"})),
	}
}
