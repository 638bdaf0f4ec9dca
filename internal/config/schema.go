package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// SchemaID identifies the JSON Schema of the configuration.
const SchemaID = "https://k3s-autoscaler.dev/schemas/config.json"

// Any scalar can be a reference instead.
const reference = `\$\{(env|file):[^}]+\}`

// Schema is the JSON Schema (2020-12) of the configuration file, made from the
// same tags that the loader reads.
func Schema() ([]byte, error) {
	r := jsonschema.Reflector{
		FieldNameTag:   "yaml",
		DoNotReference: true,
		Anonymous:      true,
		Mapper:         mapType,
	}
	s := r.Reflect(&Config{})
	s.ID = SchemaID
	s.Title = "Configuration of k3s-autoscaler"
	if err := refine(reflect.TypeFor[Config](), s); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(out, '\n'), nil
}

// mapType describes the types that are written as text.
func mapType(t reflect.Type) *jsonschema.Schema {
	text := func(pattern string) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "string", Pattern: "^(" + pattern + "|.*" + reference + ".*)$"}
	}
	amount := `[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?`
	switch t {
	case reflect.TypeFor[events.Duration]():
		return text(`([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+`)
	case reflect.TypeFor[CPU](), reflect.TypeFor[Bytes]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{text(amount), {Type: "number", ExclusiveMinimum: "0"}}}
	case reflect.TypeFor[Sync]():
		return text(`always|([0-9]+(\.[0-9]+)?(ms|s|m|h))+`)
	case reflect.TypeFor[Taint]():
		return text(`[^=:]+(=[^:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)`)
	case reflect.TypeFor[Matcher]():
		return text(`.+(=~|!~|!=|=).*`)
	}
	return nil
}

// refine adds what our tags say: required keys, defaults, limits.
func refine(t reflect.Type, s *jsonschema.Schema) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	s.Required = nil
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		p, ok := s.Properties.Get(name)
		if !ok {
			return fmt.Errorf("schema: %s.%s has no property", t.Name(), f.Name)
		}
		p.Description = f.Tag.Get("doc")
		if f.Tag.Get("required") == "true" {
			s.Required = append(s.Required, name)
		}
		if err := refineField(f, p); err != nil {
			return err
		}
	}
	return nil
}

func refineField(f reflect.StructField, p *jsonschema.Schema) error {
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textType):
		return refine(t, p)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && !reflect.PointerTo(t.Elem()).Implements(textType):
		if f.Tag.Get("required") == "true" {
			one := uint64(1)
			p.MinItems = &one
		}
		return refine(t.Elem(), p.Items)
	}
	if enum := f.Tag.Get("enum"); enum != "" {
		one := p
		if t.Kind() == reflect.Slice {
			one = p.Items
		}
		for e := range strings.SplitSeq(enum, ",") {
			one.Enum = append(one.Enum, e)
		}
	}
	if p.Type == "integer" || p.Type == "number" {
		p.Minimum, p.Maximum = json.Number(f.Tag.Get("min")), json.Number(f.Tag.Get("max"))
	}
	if t == reflect.TypeFor[events.Duration]() && f.Tag.Get("min") == "0" {
		// A zero needs no unit.
		p.OneOf = []*jsonschema.Schema{{Type: p.Type, Pattern: p.Pattern}, {Type: "integer", Const: 0}}
		p.Type, p.Pattern = "", ""
	}
	def, ok := f.Tag.Lookup("default")
	if !ok {
		return nil
	}
	p.Default = def
	if p.Type == "integer" || p.Type == "number" {
		if _, err := strconv.ParseFloat(def, 64); err != nil {
			return fmt.Errorf("schema: default of %s: %w", f.Name, err)
		}
		p.Default = json.Number(def)
	}
	return nil
}
