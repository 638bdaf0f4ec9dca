package sqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

type metrics struct {
	clock    clock.PassiveClock
	latency  *prometheus.HistogramVec
	errors   prometheus.Counter
	records  prometheus.Counter
	copies   prometheus.Counter
	sequence prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, clk clock.PassiveClock) (*metrics, error) {
	m := &metrics{
		clock: clk,
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_db_latency_seconds",
			Help:    "Duration of an operation on the audit store.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14), // 0.5 ms to 4 s
		}, []string{"operation"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_database_connection_errors_total",
			Help: "Operations on the audit store that the database refused or did not finish.",
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_audit_records_total",
			Help: "Events written to the audit store.",
		}),
		copies: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_audit_copies_total",
			Help: "Later copies of an event that were left out of the audit store.",
		}),
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "autoscaler_audit_sequence",
			Help: "Highest sequence of the stream of record that is in the audit store.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.latency, m.errors, m.records, m.copies, m.sequence} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register the audit store's metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) observe(operation string, fn func() error) error {
	start := m.clock.Now()
	err := fn()
	m.latency.WithLabelValues(operation).Observe(m.clock.Since(start).Seconds())
	// A refused batch is an answer, and a caller that hung up no failure.
	for _, answer := range []error{audit.ErrGap, audit.ErrOldIncarnation, audit.ErrDiffers, context.Canceled} {
		if errors.Is(err, answer) {
			return err
		}
	}
	if err != nil {
		m.errors.Inc()
	}
	return err
}

func (m *metrics) appended(stored, copies int, sequence uint64) {
	m.records.Add(float64(stored))
	m.copies.Add(float64(copies))
	m.sequence.Set(float64(sequence))
}
