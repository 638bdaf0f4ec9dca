package draining

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

type metrics struct {
	evictions *prometheus.CounterVec
	drains    *prometheus.CounterVec
}

// How a drain ended, as a label.
const (
	outcomeDrained   = "drained"
	outcomeForced    = "forced" // drained, but not by what the pods allowed
	outcomeDeadline  = "deadline"
	outcomeCancelled = "cancelled" // by decision or a person
	outcomeRefused   = "refused"   // before anything was changed
	outcomeGone      = "gone"
	outcomeUnready   = "unready" // left with its pods on it, which nobody could evict
)

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		evictions: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_evictions_total",
			Help: "Evictions asked for, by what the API server answered: accepted, gone, blocked, failed.",
		}, []string{"result"})),
		drains: bus.Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_drains_total",
			Help: "Drains and cordons that ended, by goal and outcome: drained, forced, deadline, cancelled, refused, gone, unready.",
		}, []string{"goal", "outcome"})),
	}
}
