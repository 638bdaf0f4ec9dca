package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Duration is a time.Duration that is written as text, e.g. "10m0s"; people read "10m".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration: is %q, expected e.g. \"90s\" or \"10m\"", b)
	}
	*d = Duration(v)
	return nil
}

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String leaves out what is zero at the end: 10m, not 10m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Resources are amounts as the scheduler counts them.
type Resources struct {
	CPUMilli    int64            `json:"cpu_milli"`          // thousandths of a core
	MemoryBytes int64            `json:"memory_bytes"`       // bytes
	Pods        int64            `json:"pods,omitempty"`     // how many pods
	Extended    map[string]int64 `json:"extended,omitempty"` // e.g. "nvidia.com/gpu", "ephemeral-storage" in bytes
}

// Taint is a taint of a node.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"` // NoSchedule, PreferNoSchedule or NoExecute
}

// Toleration is a toleration of a pod.
type Toleration struct {
	Key      string `json:"key,omitempty"`
	Operator string `json:"operator,omitempty"` // Equal (default) or Exists
	Value    string `json:"value,omitempty"`
	Effect   string `json:"effect,omitempty"` // empty matches every effect
}

// Requirement is one expression of a label or field selector.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // In, NotIn, Exists, DoesNotExist, Gt, Lt
	Values   []string `json:"values,omitempty"`
}

// Selector is a label selector: all of it must match.
type Selector struct {
	MatchLabels      map[string]string `json:"match_labels,omitempty"`
	MatchExpressions []Requirement     `json:"match_expressions,omitempty"`
}

// NodeSelectorTerm is one alternative of a required node affinity.
type NodeSelectorTerm struct {
	MatchExpressions []Requirement `json:"match_expressions,omitempty"`
	MatchFields      []Requirement `json:"match_fields,omitempty"`
}

// required collects the names of fields that are empty.
type required []string

func (r *required) text(name, v string) {
	if v == "" {
		*r = append(*r, name+": is empty")
	}
}

func (r *required) instant(name string, v time.Time) {
	if v.IsZero() {
		*r = append(*r, name+": is missing")
	}
}

func (r *required) oneOf(name, v string, allowed ...string) {
	for _, a := range allowed {
		if v == a {
			return
		}
	}
	*r = append(*r, fmt.Sprintf("%s: is %q, expected one of %s", name, v, strings.Join(allowed, ", ")))
}

func (r *required) atLeast(name string, v, low int64) {
	if v < low {
		*r = append(*r, fmt.Sprintf("%s: is %d, expected at least %d", name, v, low))
	}
}

func (r *required) check(err error) {
	if err != nil {
		*r = append(*r, err.Error())
	}
}

func (r required) err() error {
	if len(r) == 0 {
		return nil
	}
	errs := make([]error, len(r))
	for i, m := range r {
		errs[i] = errors.New(m)
	}
	return errors.Join(errs...)
}

// Raw is JSON kept as it is.
type Raw = json.RawMessage
