package resilience

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Policy says how often and how long something is tried. Waiting times grow by
// half each time and are spread by ±50 %, the defaults of exponential backoff in
// github.com/cenkalti/backoff.
type Policy struct {
	// Initial is the first waiting time. Default 500 ms.
	Initial time.Duration
	// Max bounds the waiting times. Default 1 min.
	Max time.Duration
	// Tries is how often it is tried at most. Default: any number.
	Tries int
	// Elapsed is how long it is tried at most. Default: as long as the context
	// lives.
	Elapsed time.Duration
	// OnRetry is told of each failure that is followed by another try, and the
	// waiting time before it.
	OnRetry func(err error, wait time.Duration)
}

// Permanent marks an error that another try would not cure. Retry returns what
// it wraps.
func Permanent(err error) error { return backoff.Permanent(err) }

// Retry calls op until it succeeds, fails for good, or the policy or ctx ends
// it. The last failure is in the error that it returns, and so is the end of
// ctx if that ended it.
func Retry(ctx context.Context, p Policy, op func(ctx context.Context) error) error {
	b := backoff.NewExponentialBackOff()
	if p.Initial > 0 {
		b.InitialInterval = p.Initial
	}
	b.MaxInterval = time.Minute
	if p.Max > 0 {
		b.MaxInterval = p.Max
	}
	opts := []backoff.RetryOption{
		backoff.WithBackOff(b), backoff.WithMaxElapsedTime(p.Elapsed), backoff.WithMaxTries(uint(max(p.Tries, 0))),
	}
	if p.OnRetry != nil {
		opts = append(opts, backoff.WithNotify(p.OnRetry))
	}
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = op(ctx)
		return struct{}{}, last
	}, opts...)
	if err != nil && ctx.Err() != nil && !errors.Is(err, last) {
		return errors.Join(err, last)
	}
	return err
}
