// Package middleware holds what surrounds every handler of the bus, as Watermill
// middleware, and the order of it.
//
// Outer to inner: metrics, recoverer, correlation, poison queue, retry, timeout.
// The order matters: a panic must reach the recoverer as a panic of the last
// retry; a permanent error must pass the retry (which does not repeat it) before
// the poison queue sees it; and each try has a time of its own. There is no
// circuit breaker here: one with a delivery limit sets healthy messages aside.
// It belongs into the client of the service that fails.
package middleware

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// MaxRetry is the longest that Retry may hold a message.
const MaxRetry = 2 * time.Second

// Options of the chain.
type Options struct {
	// Observe is called after every message with the handler's final error. Required.
	Observe func(msg *message.Message, d time.Duration, err error)
	// Now is the clock of Observe. Required.
	Now func() time.Time
	// Poison publishes permanent errors; IsPermanent tells which they are. Required.
	Poison      message.Publisher
	IsPermanent func(error) bool
	// ShouldRetry tells which errors are tried again within the delivery. Required.
	ShouldRetry func(error) bool
	// Retry is how long they are; at most MaxRetry; 0 or less: not at all.
	Retry time.Duration
	// Timeout of one try. Required.
	Timeout time.Duration
}

// Validate reports every option that is missing or out of range.
func (o Options) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(o.Observe != nil, "observe: is required")
	need(o.Now != nil, "now: is required")
	need(o.Poison != nil, "poison: is required")
	need(o.IsPermanent != nil, "is_permanent: is required")
	need(o.ShouldRetry != nil, "should_retry: is required")
	need(o.Retry <= MaxRetry, fmt.Sprintf("retry: is %s, expected at most %s", o.Retry, MaxRetry))
	need(o.Timeout > 0, "timeout: must be positive")
	return errors.Join(errs...)
}

// Chain returns the middleware in its order.
func Chain(o Options) ([]message.HandlerMiddleware, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("middleware: %w", err)
	}
	poison, err := wm.PoisonQueueWithFilter(o.Poison, "dead-letters", o.IsPermanent)
	if err != nil {
		return nil, fmt.Errorf("middleware: %w", err)
	}
	chain := []message.HandlerMiddleware{Metrics(o.Now, o.Observe), Recoverer, Correlation, poison}
	if o.Retry > 0 {
		chain = append(chain, Retry(o.Retry, o.ShouldRetry))
	}
	return append(chain, wm.Timeout(o.Timeout)), nil
}

// Metrics calls observe after each message.
func Metrics(now func() time.Time, observe func(*message.Message, time.Duration, error)) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			start := now()
			out, err := h(msg)
			observe(msg, now().Sub(start), err)
			return out, err
		}
	}
}

// PanicError is a panic of a handler.
type PanicError struct {
	Value any
	Stack string
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Panicked returns the error for a recovered value; call it in the deferred
// function that recovered.
func Panicked(v any) error { return &PanicError{Value: v, Stack: string(debug.Stack())} }

// Recoverer turns a panic into a *PanicError, which is tried again like any other
// error, and keeps its stack out of the message of the error.
func Recoverer(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (out []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				out, err = nil, Panicked(v)
			}
		}()
		return h(msg)
	}
}

type correlationKey struct{}

// Correlation puts the event's correlation id and trace context into the
// message's context.
func Correlation(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		c := Trace{CorrelationID: msg.Metadata.Get("ce-correlationid"), TraceParent: msg.Metadata.Get("ce-traceparent"), EventID: msg.UUID}
		msg.SetContext(context.WithValue(msg.Context(), correlationKey{}, c))
		return h(msg)
	}
}

// Trace ties what a handler does to the event it handles.
type Trace struct {
	CorrelationID string // one value for one node's life
	TraceParent   string // W3C trace context of the publisher
	EventID       string
}

// TraceFrom returns the trace of the event that is being handled.
func TraceFrom(ctx context.Context) Trace {
	t, _ := ctx.Value(correlationKey{}).(Trace)
	return t
}

// Retry tries again, from 50ms on with doubling delays, for at most the given
// time, as long as should says so.
func Retry(limit time.Duration, should func(error) bool) message.HandlerMiddleware {
	return wm.Retry{
		MaxRetries:          10,
		InitialInterval:     50 * time.Millisecond,
		MaxInterval:         limit,
		Multiplier:          2,
		MaxElapsedTime:      limit,
		RandomizationFactor: 0.25,
		ShouldRetry:         func(p wm.RetryParams) bool { return should(p.Err) },
		ResetContextOnRetry: true,
	}.Middleware
}
