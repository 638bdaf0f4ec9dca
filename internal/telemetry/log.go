// Package telemetry sets up what an operator sees of the process: structured
// logs without secrets, and metrics.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LogOptions configure a logger.
type LogOptions struct {
	// Level is debug, info, warn or error. Default info.
	Level string
	// Format is json or text. Default json.
	Format string
}

// NewLogger writes to w. It adds the correlation id of the context to every
// record and takes secrets out of every value.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, error) {
	var level slog.Level
	if o.Level != "" {
		if err := level.UnmarshalText([]byte(o.Level)); err != nil {
			return nil, fmt.Errorf("log level: is %q, expected debug, info, warn or error", o.Level)
		}
	}
	ho := &slog.HandlerOptions{Level: level, ReplaceAttr: redactAttr}
	switch o.Format {
	case "", "json":
		return slog.New(handler{slog.NewJSONHandler(w, ho)}), nil
	case "text":
		return slog.New(handler{slog.NewTextHandler(w, ho)}), nil
	}
	return nil, fmt.Errorf("log format: is %q, expected json or text", o.Format)
}

type correlationKey struct{}

// WithCorrelation puts the correlation id of a node's life, or of a request,
// into the context; every record logged with it carries the id.
func WithCorrelation(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, correlationKey{}, id)
}

// Correlation returns the correlation id of the context, or "".
func Correlation(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// handler adds the correlation id.
type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	r.Message = Redact(r.Message)
	if id := Correlation(ctx); id != "" && !has(r, "correlation_id") {
		r = r.Clone()
		r.AddAttrs(slog.String("correlation_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(as []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(as)} }
func (h handler) WithGroup(name string) slog.Handler    { return handler{h.Handler.WithGroup(name)} }

func has(r slog.Record, key string) bool {
	found := false
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

// secretKeys are attributes whose value is never written, whatever it is.
var secretKeys = []string{"token", "password", "passwd", "secret", "authorization", "credentials", "private_key"}

func redactAttr(_ []string, a slog.Attr) slog.Attr {
	key := strings.ToLower(a.Key)
	for _, s := range secretKeys {
		// "token_file" and "tokens" (a count) are no secrets.
		if key == s || strings.HasSuffix(key, "_"+s) || strings.HasSuffix(key, "-"+s) {
			return slog.String(a.Key, redacted)
		}
	}
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, Redact(v.String()))
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			return slog.String(a.Key, Redact(x.Error()))
		case fmt.Stringer:
			return slog.String(a.Key, Redact(x.String()))
		case []string:
			out := make([]string, len(x))
			for i, s := range x {
				out[i] = Redact(s)
			}
			return slog.Any(a.Key, out)
		}
	}
	return a
}
