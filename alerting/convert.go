// Package alerting turns Alertmanager's webhook into events.
//
// Every alert of a body (webhook version 4) becomes one alert.received. A body
// is never the full state of Alertmanager: resolved alerts reappear in bodies
// of a firing group, max_alerts leaves alerts out, and a last "resolved" body
// can itself be cut. So each alert stands alone, is level state from then on,
// and expires unless Alertmanager repeats it.
//
// An event's id is a hash of cluster, fingerprint, startsAt, status and
// ⌊received / (expiry / 4)⌋: a webhook that Alertmanager sends again because it
// saw no answer gives the same ids and collapses on the bus, while a repeat
// some minutes later gives new ones and renews the expiry.
//
// Unknown fields are accepted (Alertmanager 0.34 added notification_reason and
// routeLabels), everything else that is wrong is refused with the name of the
// field, its value and what was expected.
package alerting

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/alertmanager/notify/webhook"
	"github.com/prometheus/alertmanager/template"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Publisher is the role that alert.received carries in its source.
const Publisher = "alerting"

// DefaultExpiry is how long an alert counts without being repeated. It must
// exceed Alertmanager's repeat_interval, which the route in this package's
// rules folder sets to 5 minutes.
const DefaultExpiry = 15 * time.Minute

// webhookVersion is the only version of the webhook body that Alertmanager
// has sent since 0.6.
const webhookVersion = "4"

// ConvertOptions are what a body alone does not say.
type ConvertOptions struct {
	// ReceivedAt is when the body arrived. Required.
	ReceivedAt time.Time
	// Expiry is how long each alert counts from ReceivedAt. Default DefaultExpiry.
	Expiry time.Duration
	// Cluster names the cluster that an alert with these labels concerns. Its
	// error says what was expected of the labels and refuses the body. Required.
	Cluster func(labels map[string]string) (string, error)
}

// Batch is a converted body.
type Batch struct {
	Events   []events.Event // one alert.received for each alert, in the order of the body
	Firing   int            // how many of them fire
	GroupKey string         // of Alertmanager's group
	Receiver string         // of Alertmanager's configuration
	// Truncated is how many alerts Alertmanager left out of the body
	// (max_alerts). They come with a later one, or not at all.
	Truncated int
}

// Convert parses a webhook body and returns its events. It has no side
// effect. The error is an *InvalidError that lists every field that is wrong.
func Convert(body []byte, o ConvertOptions) (Batch, error) {
	if o.Expiry <= 0 {
		o.Expiry = DefaultExpiry
	}
	m, err := parse(body)
	if err != nil {
		return Batch{}, err
	}
	b := Batch{GroupKey: m.GroupKey, Receiver: m.Receiver, Truncated: int(min(m.TruncatedAlerts, maxTruncated))}
	var invalid InvalidError
	for i, a := range m.Alerts {
		field := "alerts[" + strconv.Itoa(i) + "]"
		bad := checkAlert(field, a)
		if len(bad) == 0 {
			e, err := b.event(a, o)
			if err == nil {
				b.Events = append(b.Events, e)
				continue
			}
			bad = []FieldError{*err}
			bad[0].Field = field + "." + bad[0].Field
		}
		invalid.Fields = append(invalid.Fields, bad...)
	}
	if len(invalid.Fields) > 0 {
		return Batch{}, &invalid
	}
	return b, nil
}

// maxTruncated keeps a nonsensical count within what the event's field holds.
const maxTruncated = 1 << 31

func (b *Batch) event(a template.Alert, o ConvertOptions) (events.Event, *FieldError) {
	cluster, err := o.Cluster(a.Labels)
	if err != nil {
		return events.Event{}, &FieldError{Field: "labels", Value: shorten(fmt.Sprint(a.Labels)), Expected: err.Error()}
	}
	received := o.ReceivedAt.UTC()
	p := events.AlertReceived{
		Status:       a.Status,
		Fingerprint:  a.Fingerprint,
		StartsAt:     a.StartsAt.UTC(),
		Labels:       a.Labels,
		Annotations:  a.Annotations,
		GeneratorURL: a.GeneratorURL,
		GroupKey:     b.GroupKey,
		Receiver:     b.Receiver,
		ReceivedAt:   received,
		ExpiresAt:    received.Add(o.Expiry),

		TruncatedAlerts: b.Truncated,
	}
	// Alertmanager writes year 1 for an alert that has not ended; anything
	// else on a firing alert is an estimate, not a fact.
	if a.Status == events.AlertResolved && !a.EndsAt.IsZero() {
		p.EndsAt = a.EndsAt.UTC()
	}
	e, err := events.New(events.Meta{
		Cluster:   cluster,
		Publisher: Publisher,
		ID:        eventID(cluster, a, received, o.Expiry),
		Time:      received,
		// Firing and resolved of one episode belong together.
		CorrelationID: events.ID("alert", cluster, a.Fingerprint, timestamp(a.StartsAt)),
	}, p)
	if err != nil {
		return events.Event{}, &FieldError{Field: "labels", Value: shorten(fmt.Sprint(a.Labels)), Expected: err.Error()}
	}
	if a.Status == events.AlertFiring {
		b.Firing++
	}
	return e, nil
}

// eventID gives a retry of the same body the same id, and a repeat in another
// quarter of the expiry a new one.
func eventID(cluster string, a template.Alert, received time.Time, expiry time.Duration) string {
	quarter := max(int64(expiry/4), 1)
	return events.ID("alert.received", cluster, a.Fingerprint, timestamp(a.StartsAt), a.Status,
		strconv.FormatInt(received.UnixNano()/quarter, 10))
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func parse(body []byte) (webhook.Message, error) {
	var m webhook.Message
	if err := json.Unmarshal(body, &m); err != nil {
		return m, &InvalidError{Fields: []FieldError{explain(body, err)}}
	}
	var invalid InvalidError
	if m.Version != webhookVersion {
		invalid.add("version", m.Version, `"4", the webhook version of Alertmanager 0.6 and newer`)
	}
	if m.Data == nil || m.Alerts == nil {
		// null is how Go writes an empty list; no such field is another format.
		var top map[string]json.RawMessage
		_ = json.Unmarshal(body, &top) // it was an object a few lines above
		if _, ok := top["alerts"]; !ok {
			invalid.add("alerts", "", "a list of alerts, as Alertmanager sends it")
		}
		if m.Data == nil {
			m.Data = &template.Data{}
		}
	}
	if len(invalid.Fields) > 0 {
		return m, &invalid
	}
	return m, nil
}

func checkAlert(field string, a template.Alert) []FieldError {
	var invalid InvalidError
	if a.Status != events.AlertFiring && a.Status != events.AlertResolved {
		invalid.add(field+".status", a.Status, `"firing" or "resolved"`)
	}
	if a.Fingerprint == "" {
		invalid.add(field+".fingerprint", "", "the fingerprint of the alert's labels")
	}
	if len(a.Labels) == 0 {
		invalid.add(field+".labels", "", "at least one label, e.g. alertname")
	}
	if a.StartsAt.IsZero() {
		invalid.add(field+".startsAt", "", "the RFC 3339 time at which the alert began to fire")
	}
	return invalid.Fields
}
