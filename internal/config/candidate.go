package config

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Candidate reads and checks the file at path as LoadPolicy does, and returns what
// decisions follow of it (clusters, pools, policy), every reference resolved, as a
// configuration of its own that ParseCandidate reads. What the file leaves out is
// left out: whoever reads it fills in the defaults, as of the file itself. Settings
// of providers, credentials, addresses and everything else stay behind.
func Candidate(path string) ([]byte, error) {
	c, err := LoadPolicy(path)
	if err != nil {
		return nil, err
	}
	p := plainer{c.src}
	var clusters []any
	for i, cl := range c.Clusters {
		at := fmt.Sprintf("clusters[%d]", i)
		var pools []any
		for j, pool := range cl.Pools {
			x := p.structure(reflect.ValueOf(pool), fmt.Sprintf("%s.pools[%d]", at, j))
			delete(x, "docker")
			pools = append(pools, x)
		}
		x := map[string]any{"name": cl.Name, "kubeconfig": InCluster, "pools": pools} // a configuration has a kubeconfig
		if cl.Prometheus != nil {
			// That there is one, and how long it may take, is what rules with a query
			// are checked against.
			x["prometheus"] = map[string]any{"url": "http://prometheus", "timeout": cl.Prometheus.Timeout.String()}
		}
		clusters = append(clusters, x)
	}
	// The keys are those of Config.
	out, err := json.Marshal(map[string]any{"clusters": clusters, "policy": p.structure(reflect.ValueOf(c.Decision), "policy")})
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

// plainer turns values back into what the decoder reads.
type plainer struct{ src *source }

// structure returns the keys of a struct that the file has.
func (p plainer) structure(v reflect.Value, path string) map[string]any {
	out := map[string]any{}
	for i := range v.NumField() {
		name, ok := v.Type().Field(i).Tag.Lookup("yaml")
		if at := join(path, name); ok && p.src.has(at) {
			if x := p.value(v.Field(i), at); x != nil {
				out[name] = x
			}
		}
	}
	return out
}

// value returns nil for a key without a value.
func (p plainer) value(v reflect.Value, path string) any {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		return p.value(v.Elem(), path)
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if v.IsZero() && v.CanInt() { // a duration or an amount is positive
			return nil
		}
		text, err := m.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("config: %v", err)) // our own types never fail
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Struct:
		return p.structure(v, path)
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = p.value(v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		return out
	case reflect.String:
		return strings.ReplaceAll(v.String(), "${", "$${") // it is no reference any more
	default:
		return v.Interface()
	}
}
