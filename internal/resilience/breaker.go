// Package resilience keeps a part of the world that is down from holding up the
// rest: a circuit breaker that stops asking what does not answer, and a policy
// for trying again.
//
// A breaker only ever spares calls. What a call that was not made would have
// said is unknown, and callers treat it so.
package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// State of a breaker; its number is the value of the metric.
type State int

// States of a breaker.
const (
	Closed   State = 0 // calls are made
	HalfOpen State = 1 // one call is made, to see whether there is an answer again
	Open     State = 2 // no call is made
)

// String is the state's name.
func (s State) String() string {
	switch s {
	case HalfOpen:
		return "half-open"
	case Open:
		return "open"
	case Closed:
	}
	return "closed"
}

const (
	// DefaultFailures is how many failures in a row open a breaker: one may be a
	// restart of the other side, two a coincidence.
	DefaultFailures = 3
	// DefaultRest is how long a breaker stays open before one call is made again.
	DefaultRest = 10 * time.Second
)

// BreakerOptions configure a Breaker. Component and Host are required.
type BreakerOptions struct {
	Component string // what is called, e.g. "docker"
	Host      string // which of them, as an operator knows it
	// Failures in a row that open it. Default DefaultFailures.
	Failures int
	// Rest is how long it stays open. Default DefaultRest.
	Rest time.Duration
	// IsFailure says whether an error means that the other side is down; an answer
	// that refuses is none. A call that its caller gave up counts neither way.
	// Default: every error is a failure.
	IsFailure func(error) bool
	// OnChange is told of each change; last is the failure that caused it, if one
	// did. It must not call the breaker.
	OnChange func(from, to State, last error)
	// Registerer gets autoscaler_circuit_breaker_state{component,host}. Breakers
	// of one process share it. Default: no metric.
	Registerer prometheus.Registerer
}

// Breaker is a circuit breaker. It is safe for concurrent use.
type Breaker struct {
	o  BreakerOptions
	cb *gobreaker.CircuitBreaker[struct{}]

	mu   sync.Mutex
	last error // the last failure
}

// OpenError says that a call was not made.
type OpenError struct {
	Component, Host string
	Failures        int   // in a row, which opened the breaker
	Last            error // of them, as text for people: it is not in the chain
	Rest            time.Duration
}

// Error implements error.
func (e *OpenError) Error() string {
	return fmt.Sprintf("%s at %s was not asked: it did not answer %d times in a row, and is tried again within %s; the last time: %v",
		e.Component, e.Host, e.Failures, e.Rest, e.Last)
}

// NewBreaker makes a closed breaker.
func NewBreaker(o BreakerOptions) (*Breaker, error) {
	var errs []error
	if o.Component == "" {
		errs = append(errs, errors.New("component is required"))
	}
	if o.Host == "" {
		errs = append(errs, errors.New("host is required"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("circuit breaker: %w", err)
	}
	if o.Failures <= 0 {
		o.Failures = DefaultFailures
	}
	if o.Rest <= 0 {
		o.Rest = DefaultRest
	}
	if o.IsFailure == nil {
		o.IsFailure = func(error) bool { return true }
	}
	gauge, err := stateGauge(o.Registerer, o.Component, o.Host)
	if err != nil {
		return nil, fmt.Errorf("circuit breaker: register metric: %w", err)
	}
	gauge.Set(float64(Closed))
	b := &Breaker{o: o}
	b.cb = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      o.Rest,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return int64(c.ConsecutiveFailures) >= int64(o.Failures) },
		IsSuccessful: func(err error) bool { return err == nil || !o.IsFailure(err) },
		IsExcluded:   func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			gauge.Set(float64(stateOf(to)))
			if o.OnChange != nil {
				o.OnChange(stateOf(from), stateOf(to), b.lastFailure())
			}
		},
	})
	return b, nil
}

// Do makes the call, unless the breaker is open: then it returns an *OpenError
// at once.
func (b *Breaker) Do(call func() error) error {
	_, err := b.cb.Execute(func() (struct{}, error) {
		err := call()
		if err != nil && !errors.Is(err, context.Canceled) && b.o.IsFailure(err) {
			b.mu.Lock()
			b.last = err
			b.mu.Unlock()
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return &OpenError{Component: b.o.Component, Host: b.o.Host, Failures: b.o.Failures, Rest: b.o.Rest, Last: b.lastFailure()}
	}
	return err
}

// State is the present state.
func (b *Breaker) State() State { return stateOf(b.cb.State()) }

func (b *Breaker) lastFailure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

func stateOf(s gobreaker.State) State {
	switch s {
	case gobreaker.StateOpen:
		return Open
	case gobreaker.StateHalfOpen:
		return HalfOpen
	case gobreaker.StateClosed:
	}
	return Closed
}
