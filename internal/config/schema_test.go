package config

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/goccy/go-yaml"
	jsonschema "github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource(SchemaID, doc))
	s, err := c.Compile(SchemaID)
	require.NoError(t, err)
	return s
}

func instance(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	require.NoError(t, yaml.Unmarshal(text, &v))
	b, err := json.Marshal(v)
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	require.NoError(t, err)
	return doc
}

func TestSchemaAcceptsWhatTheLoaderAccepts(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	full, err := os.ReadFile("testdata/full.yaml")
	require.NoError(t, err)
	for name, text := range map[string]string{"full": string(full), "minimal": minimal, "no batch window": minimal + "collector: {batch_window: 0}"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, s.Validate(instance(t, []byte(text))))
		})
	}
}

func TestSchemaRefusesWhatTheLoaderRefuses(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	for name, text := range map[string]string{
		"nothing":             "{}",
		"an unknown key":      minimal + "bsu: {}",
		"an unknown provider": "clusters: [{name: a, pools: [{name: a, provider: x, max: 1, cpu: 1, memory: 1Gi}]}]",
		"a negative max":      "clusters: [{name: a, pools: [{name: a, provider: docker, max: -1, cpu: 1, memory: 1Gi}]}]",
		"a bad duration":      minimal + "collector: {full_every: soon}",
		"a high threshold":    minimal + "policy: {max_unready_fraction: 2}",
		"a bad taint":         "clusters: [{name: a, pools: [{name: a, provider: docker, max: 1, cpu: 1, memory: 1Gi, taints: [x]}]}]",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Error(t, s.Validate(instance(t, []byte(text))))
		})
	}
}

func TestSchemaDescribesEveryKeyAndItsDefault(t *testing.T) {
	t.Parallel()
	text, err := Schema()
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(text, &doc))
	var walk func(path string, s map[string]any)
	walk = func(path string, s map[string]any) {
		props, _ := s["properties"].(map[string]any)
		for k, v := range props {
			p := v.(map[string]any)
			require.NotEmpty(t, p["description"], "%s.%s has no description", path, k)
			walk(path+"."+k, p)
			if items, ok := p["items"].(map[string]any); ok {
				walk(path+"."+k+"[]", items)
			}
		}
	}
	walk("", doc)
	require.Contains(t, string(text), `"default": "2m"`)
	require.Contains(t, string(text), `"default": 110`)
}

func TestReferenceHasARowForEveryKey(t *testing.T) {
	t.Parallel()
	text := Reference()
	for _, row := range []string{
		"| `clusters[].pools[].max` | number, at least 0 | required | Nodes at most. |",
		"| `clusters[].pools[].provider` | `docker`, `simulated`, `externalgrpc` | required |",
		"| `clusters[].pools[].docker.tls.ca_file` | file |",
		"| `policy.alert_rules[].match` | list of matcher | required |",
		"| `policy.max_unready_fraction` | number, 0 to 1 | `0.45` |",
		"| `bus.embedded.sync` | `always` or duration | `always` |",
		"| `api.limits.body_bytes` | size, at least 1024 | `4Mi` |",
		"| `clusters[].pools[].labels` | map of texts |",
	} {
		require.Contains(t, text, row)
	}
}
