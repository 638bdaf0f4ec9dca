package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/matcher/parse"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// CPU is an amount of CPU in thousandths of a core, written as Kubernetes does.
type CPU int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *CPU) UnmarshalText(b []byte) error {
	q, err := resource.ParseQuantity(string(b))
	if err != nil || q.MilliValue() <= 0 {
		return errors.New(`a positive amount of CPU, e.g. 2 or 500m`)
	}
	*c = CPU(q.MilliValue())
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (c CPU) MarshalText() ([]byte, error) {
	return []byte(resource.NewMilliQuantity(int64(c), resource.DecimalSI).String()), nil
}

// Bytes is a size in bytes, written as Kubernetes does.
type Bytes int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Bytes) UnmarshalText(b []byte) error {
	q, err := resource.ParseQuantity(string(b))
	if err != nil || q.Value() <= 0 {
		return errors.New(`a positive size, e.g. 512Mi or 4Gi`)
	}
	*s = Bytes(q.Value())
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s Bytes) MarshalText() ([]byte, error) {
	return []byte(resource.NewQuantity(int64(s), resource.BinarySI).String()), nil
}

// SyncAlways writes every event to the disk before it is acknowledged.
const SyncAlways Sync = "always"

// Sync is "always" or an interval.
type Sync string

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sync) UnmarshalText(b []byte) error {
	if d, err := time.ParseDuration(string(b)); string(b) != string(SyncAlways) && (err != nil || d <= 0) {
		return errors.New(`"always" or a positive duration, e.g. 2m`)
	}
	*s = Sync(b)
	return nil
}

// Interval is the time between two writes to the disk; 0 means always.
func (s Sync) Interval() time.Duration {
	d, err := time.ParseDuration(string(s))
	if err != nil {
		return 0
	}
	return d
}

// Taint is a taint in kubectl's form: key=value:Effect or key:Effect.
type Taint events.Taint

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Taint) UnmarshalText(b []byte) error {
	expected := errors.New(`a taint, e.g. dedicated=ci:NoSchedule (effects: NoSchedule, PreferNoSchedule, NoExecute)`)
	kv, effect, ok := strings.Cut(string(b), ":")
	if !ok || (effect != "NoSchedule" && effect != "PreferNoSchedule" && effect != "NoExecute") {
		return expected
	}
	key, value, _ := strings.Cut(kv, "=")
	if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
		return expected
	}
	*t = Taint{Key: key, Value: value, Effect: effect}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (t Taint) MarshalText() ([]byte, error) {
	if t.Value == "" {
		return []byte(t.Key + ":" + t.Effect), nil
	}
	return []byte(t.Key + "=" + t.Value + ":" + t.Effect), nil
}

// Matcher is one label matcher in the syntax of Alertmanager.
type Matcher events.Matcher

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Matcher) UnmarshalText(b []byte) error {
	p, err := parse.Matcher(string(b))
	if err != nil {
		return fmt.Errorf(`one matcher of Alertmanager, e.g. alertname="QueueBacklog" (%w)`, err)
	}
	*m = Matcher{Label: p.Name, Op: p.Type.String(), Value: p.Value}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (m Matcher) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s%s%q", m.Label, m.Op, m.Value), nil
}
