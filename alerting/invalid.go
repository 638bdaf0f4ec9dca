package alerting

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/alertmanager/template"
)

// maxValue is how many bytes of a wrong value an error repeats.
const maxValue = 120

// FieldError is one thing that is wrong with a webhook body.
type FieldError struct {
	Field    string // e.g. "alerts[0].fingerprint"; empty: the body itself
	Value    string // what it holds, shortened; empty: it is missing or empty
	Expected string // what it should hold
}

func (e FieldError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s: is missing or empty, expected %s", e.location(), e.Expected)
	}
	return fmt.Sprintf("%s: is %q, expected %s", e.location(), e.Value, e.Expected)
}

func (e FieldError) location() string {
	if e.Field == "" {
		return "body"
	}
	return e.Field
}

// InvalidError lists everything that is wrong with a webhook body. Sending the
// same body again can't succeed.
type InvalidError struct{ Fields []FieldError }

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Error()
	}
	return strings.Join(parts, "; ")
}

func (e *InvalidError) add(field, value, expected string) {
	e.Fields = append(e.Fields, FieldError{Field: field, Value: shorten(value), Expected: expected})
}

// explain says where in the body err of encoding/json arose.
func explain(body []byte, err error) FieldError {
	if len(body) == 0 {
		return FieldError{Expected: "the JSON object that Alertmanager's webhook sends"}
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := min(max(int(syntax.Offset), 0), len(body))
		near := body[max(0, at-40):at]
		return FieldError{Value: shorten(string(near)),
			Expected: fmt.Sprintf("a complete JSON object; after %d of %d bytes: %v", at, len(body), err)}
	}
	if f, ok := explainAlert(body); ok {
		return f
	}
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		// Data is embedded in the message, it is no field of the body.
		return wrongKind(strings.TrimPrefix(kind.Field, "Data."), kind)
	}
	return FieldError{Value: shorten(string(body)), Expected: "the JSON object that Alertmanager's webhook sends: " + err.Error()}
}

func wrongKind(field string, err *json.UnmarshalTypeError) FieldError {
	return FieldError{Field: field, Value: shorten(err.Value), Expected: "a JSON value for " + err.Type.String()}
}

// explainAlert finds the alert that does not decode: encoding/json counts no
// list items, and passes the error of time.Time on without the field's name.
func explainAlert(body []byte) (FieldError, bool) {
	var m struct {
		Alerts []json.RawMessage `json:"alerts"`
	}
	// The rest of the body may be wrong as well: what was decoded counts.
	_ = json.Unmarshal(body, &m)
	for i, raw := range m.Alerts {
		field := "alerts[" + strconv.Itoa(i) + "]."
		var kind *json.UnmarshalTypeError
		switch err := json.Unmarshal(raw, &template.Alert{}); {
		case err == nil:
		case errors.As(err, &kind):
			return wrongKind(strings.TrimSuffix(field+kind.Field, "."), kind), true
		default:
			var times struct{ StartsAt, EndsAt json.RawMessage }
			_ = json.Unmarshal(raw, &times) // it decoded but for a time
			name, value := "startsAt", times.StartsAt
			if json.Unmarshal(value, &time.Time{}) == nil {
				name, value = "endsAt", times.EndsAt
			}
			return FieldError{Field: field + name, Value: shorten(string(value)), Expected: "an RFC 3339 time"}, true
		}
	}
	return FieldError{}, false
}

func shorten(s string) string {
	if len(s) <= maxValue {
		return s
	}
	cut := maxValue
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
