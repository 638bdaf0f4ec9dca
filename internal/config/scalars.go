package config

import (
	"encoding"
	"errors"
	"io/fs"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// errScalar says that the expectation follows from the type alone.
var errScalar = errors.New("not a value of the type")

// scalarText is what stands in the file for a scalar.
func scalarText(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// setText parses text into v, which is a scalar.
func setText(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(text, 0, v.Type().Bits())
		if err != nil {
			return errScalar
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return errScalar
		}
		v.SetFloat(f)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errScalar
		}
		v.SetBool(b)
	default:
		return errScalar
	}
	return nil
}

// expectedOr is what the type's own error says, or what its kind does.
func expectedOr(err error, v reflect.Value, field reflect.StructTag) string {
	if _, ok := v.Interface().(events.Duration); ok || errors.Is(err, errScalar) {
		return expectedOf(v, field)
	}
	return err.Error()
}

func expectedOf(v reflect.Value, field reflect.StructTag) string {
	if _, ok := v.Interface().(events.Duration); ok {
		return "a duration, e.g. 90s or 10m"
	}
	low, high := field.Get("min"), field.Get("max")
	kind := "a text"
	switch {
	case field.Get("enum") != "":
		kind = "one of " + strings.ReplaceAll(field.Get("enum"), ",", ", ")
	case v.Addr().Type().Implements(textType):
		kind = "a single value"
	case v.CanInt():
		kind = "a whole number"
	case v.CanFloat():
		kind = "a number"
	case v.Kind() == reflect.Bool:
		kind = "true or false"
	}
	switch {
	case low != "" && high != "":
		kind += " from " + low + " to " + high
	case low != "":
		kind += ", at least " + low
	case high != "":
		kind += ", at most " + high
	}
	return kind
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case nil:
		return "empty"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	if text, ok := scalarText(n); ok {
		return strconv.Quote(text)
	}
	return "something else"
}

// keysOf lists the keys of a struct with their tags.
func keysOf(t reflect.Type) map[string]reflect.StructTag {
	out := map[string]reflect.StructTag{}
	for i := range t.NumField() {
		if name, ok := t.Field(i).Tag.Lookup("yaml"); ok {
			out[name] = t.Field(i).Tag
		}
	}
	return out
}

// didYouMean names the known key that is nearest to an unknown one.
func didYouMean(key string, known map[string]reflect.StructTag) string {
	best, distance := "", 1+len(key)/3
	for k := range known {
		if n := editDistance(normal(key), normal(k)); n < distance || (n == distance && (best == "" || k < best)) {
			best, distance = k, n
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + strconv.Quote(best) + "?)"
}

func normal(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "_")) }

// editDistance is Levenshtein's, with the two-row dynamic programme.
func editDistance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(prev[j+1]+1, next[j]+1, prev[j]+cost)
		}
		prev = next
	}
	return prev[len(b)]
}

// cause is the error without the name of the file, which the message has.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
