package config

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Candidate reads and checks the file at path as LoadPolicy does, and returns what
// decisions follow of it (clusters, pools, policy), every reference resolved and
// every default filled in, as a configuration of its own that ParseCandidate reads.
// Settings of providers, credentials and everything else stay behind.
func Candidate(path string) ([]byte, error) {
	c, err := LoadPolicy(path)
	if err != nil {
		return nil, err
	}
	var clusters []Cluster
	for _, cl := range c.Clusters {
		x := Cluster{Name: cl.Name, Kubeconfig: InCluster} // a configuration has one
		for _, p := range cl.Pools {
			p.Docker = nil
			x.Pools = append(x.Pools, p)
		}
		clusters = append(clusters, x)
	}
	// The keys are those of Config.
	out, err := json.Marshal(map[string]any{"clusters": plainValue(reflect.ValueOf(clusters)), "policy": plainValue(reflect.ValueOf(c.Decision))})
	if err != nil {
		return nil, fmt.Errorf("encode the policy of %s: %w", path, err)
	}
	return out, nil
}

// ParseCandidate reads what Candidate made, checked as strictly as any
// configuration; name is what problems call it. The text may come from anybody: it
// can't refer to the environment or to files.
func ParseCandidate(name string, data []byte) (*Config, error) {
	return load(name, data, lookup{env: func(string) (string, bool) { return "", false }, apart: true, plain: true}, false)
}

// errReference is why a candidate holds no references.
var errReference = errors.New("refers to the environment or to a file, which a candidate policy can't: write the value itself")

// plainValue is a value as the decoder reads it: what would be absent in a file is.
func plainValue(v reflect.Value) any {
	if v.Kind() == reflect.Pointer {
		return plainValue(v.Elem())
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("config: %v", err)) // our own types never fail
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			name, ok := v.Type().Field(i).Tag.Lookup("yaml")
			if !ok || absentValue(v.Field(i)) {
				continue
			}
			out[name] = plainValue(v.Field(i))
		}
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = plainValue(v.Index(i))
		}
		return out
	case reflect.String:
		return strings.ReplaceAll(v.String(), "${", "$${") // it is no reference any more
	default:
		return v.Interface()
	}
}

// absentValue reports whether a value can only be that of a key that is absent: a
// duration is positive, a text that is empty has no default.
func absentValue(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return v.IsNil()
	case reflect.String:
		return v.Len() == 0
	}
	d, ok := v.Interface().(events.Duration)
	return ok && d == 0
}
