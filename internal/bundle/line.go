package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/telemetry"
)

// head is how every line begins: a reader passes over a line without decoding it.
const head = `{"sequence":`

// encode is an event as a line, and whether something was taken out of it.
func encode(d bus.Delivery) (line []byte, redacted bool, err error) {
	e := d.Event
	if clean, found := redact(e); found {
		e, redacted = clean, true
	}
	raw, err := e.MarshalJSON()
	if err != nil || bytes.ContainsAny(raw, "\r\n") {
		e = e.Clone()
		e.DataBase64 = true // data that is not what its content type says, or takes several lines
		if raw, err = e.MarshalJSON(); err != nil {
			return nil, false, fmt.Errorf("encode event %d (%s): %w", d.Sequence, e.ID(), err)
		}
	}
	at, err := d.StreamTime.UTC().MarshalText()
	if err != nil {
		return nil, false, fmt.Errorf("encode event %d (%s): %w", d.Sequence, e.ID(), err)
	}
	line = strconv.AppendUint([]byte(head), d.Sequence, 10)
	line = append(line, `,"stream_time":"`...)
	line = append(line, at...)
	line = append(line, `","event":`...)
	line = append(line, raw...)
	return append(line, "}\n"...), redacted, nil
}

// sequence is that of a line.
func sequence(line []byte) (uint64, error) {
	rest, ok := bytes.CutPrefix(line, []byte(head))
	end := bytes.IndexByte(rest, ',')
	if !ok || end < 0 {
		return 0, changed("a line of %s begins with %.40q, expected %s", eventsName, line, head)
	}
	seq, err := strconv.ParseUint(string(rest[:end]), 10, 63)
	if err != nil || seq == 0 {
		return 0, changed("a line of %s has the sequence %.40q", eventsName, rest[:end])
	}
	return seq, nil
}

// decode is a line as it reached the handlers.
func decode(line []byte, incarnation string) (bus.Delivery, error) {
	var l struct {
		Sequence   uint64       `json:"sequence"`
		StreamTime time.Time    `json:"stream_time"`
		Event      events.Event `json:"event"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return bus.Delivery{}, changed("an event can't be read: %v", err)
	}
	d, err := bus.Delivered(l.Event, l.Sequence, incarnation, l.StreamTime)
	if err != nil {
		return d, changed("event %d: %v", l.Sequence, err)
	}
	return d, nil
}

// redact takes what looks like a secret out of the data of an event. None of our own
// events holds one; what others publish, or write as a reason, may. Snapshots and
// checkpoints hold no text that anybody writes freely, and are most of the log.
func redact(e events.Event) (events.Event, bool) {
	switch e.Type() {
	case events.TypeSnapshotCaptured, events.TypeSnapshotChanged, events.TypeDecisionCheckpointed:
		return e, false
	}
	if text := string(e.Data()); telemetry.Redact(text) == text {
		return e, false
	}
	clean := e.Clone()
	var v any
	dec := json.NewDecoder(bytes.NewReader(e.Data()))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		clean.DataEncoded = []byte(telemetry.Redact(string(e.Data())))
		return clean, true
	}
	// Text by text: a pattern that spans two of them has found nothing.
	v, found := redactValue(v)
	if !found {
		return e, false
	}
	raw, err := json.Marshal(v)
	if err != nil {
		raw = []byte("{}")
	}
	clean.DataEncoded = raw
	return clean, true
}

func redactValue(v any) (any, bool) {
	found := false
	switch v := v.(type) {
	case string:
		s := telemetry.Redact(v)
		return s, s != v
	case []any:
		for i := range v {
			x, f := redactValue(v[i])
			v[i], found = x, found || f
		}
	case map[string]any:
		for k := range v {
			x, f := redactValue(v[k])
			v[k], found = x, found || f
		}
	}
	return v, found
}
