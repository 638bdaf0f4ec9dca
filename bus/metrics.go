package bus

import (
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Bus. Several Buses of one process share the collectors.
type metrics struct {
	depth       *prometheus.GaugeVec
	errs        *prometheus.CounterVec
	deliveries  *prometheus.CounterVec
	durations   *prometheus.HistogramVec
	deadLetters *prometheus.CounterVec
	waiting     *prometheus.GaugeVec
	parked      *prometheus.GaugeVec
	published   *prometheus.CounterVec
	retention   *prometheus.GaugeVec
	payloads    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	return &metrics{
		depth: Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_scaling_queue_depth",
			Help: "Events that wait for a handler or are being handled.",
		}, []string{"handler"})),
		errs: ErrorsTotal(reg, log),
		deliveries: Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_bus_deliveries_total",
			Help: "Deliveries of events to a handler, by how they ended.",
		}, []string{"handler", "outcome"})),
		durations: Register(reg, log, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_bus_handle_duration_seconds",
			Help:    "How long a handler takes for one delivery.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"handler"})),
		deadLetters: Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_bus_dead_letters_total",
			Help: "Events that a handler set aside.",
		}, []string{"handler"})),
		waiting: Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_bus_dead_letters_waiting",
			Help: "Dead letters of a handler that wait to be redriven or dropped.",
		}, []string{"handler"})),
		parked: Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_bus_parked_keys",
			Help: "Nodes on which a handler does not act until their dead letters are redriven or dropped.",
		}, []string{"handler"})),
		retention: Register(reg, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "autoscaler_bus_retention_used_ratio",
			Help: "Share of the stream's retention, by age or space, that the oldest event which a handler has not read has used; at 1 it is discarded unread.",
		}, []string{"handler"})),
		payloads: Register(reg, log, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "autoscaler_bus_payload_used_ratio",
			Help: "Share of its space (bus.max_bytes) that the payload bucket uses; at 1 the oldest data of events goes, though events may still refer to it.",
		})),
		published: Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_bus_published_total",
			Help: "Events that were published, by whether JetStream acknowledged them.",
		}, []string{"outcome"})),
	}
}

func (m *metrics) failed(component string) { m.errs.WithLabelValues(component).Inc() }

// ErrorsTotal returns autoscaler_errors_total, which every component counts in:
// the one that is registered already, or a new one.
func ErrorsTotal(reg prometheus.Registerer, log *slog.Logger) *prometheus.CounterVec {
	return Register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autoscaler_errors_total",
		Help: "Errors, by the component that met them.",
	}, []string{"component"}))
}

// Register registers c, or returns the collector that already has its name, so
// that several parts of one process can share it. A nil reg registers nothing. A
// collector that contradicts a registered one is logged and counts unseen: a
// name clash must not keep the process from starting.
func Register[C prometheus.Collector](reg prometheus.Registerer, log *slog.Logger, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if err == nil {
		return c
	}
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if have, ok := already.ExistingCollector.(C); ok {
			return have
		}
	}
	if log != nil {
		log.Error("metric not registered, its values are not exported", "error", err)
	}
	return c
}
