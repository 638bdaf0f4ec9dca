package alerting

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

type metrics struct {
	alerts    *prometheus.CounterVec
	truncated prometheus.Counter
	requests  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_alerts_received_total",
			Help: "Alerts that Alertmanager posted and the bus acknowledged, by status (firing, resolved).",
		}, []string{"status"}),
		truncated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_alerts_truncated_total",
			Help: "Alerts that Alertmanager left out of its webhook bodies because of max_alerts.",
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "autoscaler_alert_webhook_seconds",
			Help:    "Time to answer Alertmanager's webhook, by HTTP status; includes the bus's acknowledgement.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"code"}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.alerts, m.truncated, m.requests} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register alerting's metrics: %w", err)
	}
	// The series exist before the first alert, so that rate() sees it.
	m.alerts.WithLabelValues(events.AlertFiring)
	m.alerts.WithLabelValues(events.AlertResolved)
	return m, nil
}

func (m *metrics) received(b Batch) {
	m.alerts.WithLabelValues(events.AlertFiring).Add(float64(b.Firing))
	m.alerts.WithLabelValues(events.AlertResolved).Add(float64(len(b.Events) - b.Firing))
	m.truncated.Add(float64(b.Truncated))
}

func (m *metrics) answered(status int, took time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(status)).Observe(took.Seconds())
}
