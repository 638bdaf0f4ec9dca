package resilience

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

var (
	errDown    = errors.New("connection refused")
	errRefused = errors.New("409 conflict")
)

func newBreaker(t *testing.T, change func(*BreakerOptions)) *Breaker {
	t.Helper()
	o := BreakerOptions{Component: "docker", Host: "attic", Failures: 2, Rest: 10 * time.Second,
		IsFailure: func(err error) bool { return errors.Is(err, errDown) }}
	if change != nil {
		change(&o)
	}
	b, err := NewBreaker(o)
	require.NoError(t, err)
	return b
}

func fail() error { return errDown }

func TestBreakerOpensAfterFailuresInARowAndSaysWhyItDoesNotAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, nil)
		require.ErrorIs(t, b.Do(fail), errDown)
		require.NoError(t, b.Do(func() error { return nil }), "an answer in between begins the count anew")
		require.ErrorIs(t, b.Do(fail), errDown)
		require.Equal(t, Closed, b.State())
		require.ErrorIs(t, b.Do(fail), errDown)
		require.Equal(t, Open, b.State())

		err := b.Do(func() error { t.Error("called although open"); return nil })
		var open *OpenError
		require.ErrorAs(t, err, &open)
		require.EqualError(t, err, "docker at attic was not asked: it did not answer 2 times in a row, and is tried again within 10s; the last time: connection refused")
		require.NotErrorIs(t, err, errDown, "what was not asked has not failed again")
	})
}

func TestBreakerTriesOneCallAfterItsRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(t, nil)
		_, _ = b.Do(fail), b.Do(fail)
		time.Sleep(10*time.Second + time.Millisecond)
		require.Equal(t, HalfOpen, b.State())
		require.ErrorIs(t, b.Do(func() error {
			var open *OpenError
			require.ErrorAs(t, b.Do(func() error { t.Error("a second call beside the first"); return nil }), &open)
			return errDown
		}), errDown)
		require.Equal(t, Open, b.State(), "still down")

		time.Sleep(10*time.Second + time.Millisecond)
		require.NoError(t, b.Do(func() error { return nil }))
		require.Equal(t, Closed, b.State())
	})
}

func TestBreakerCountsNeitherRefusalsNorCallersThatGiveUp(t *testing.T) {
	t.Parallel()
	b := newBreaker(t, nil)
	for range 5 {
		require.ErrorIs(t, b.Do(func() error { return errRefused }), errRefused)
		require.ErrorIs(t, b.Do(func() error { return context.Canceled }), context.Canceled)
	}
	require.Equal(t, Closed, b.State())

	every := newBreaker(t, func(o *BreakerOptions) { o.IsFailure, o.Failures = nil, 0 })
	for range DefaultFailures {
		require.Equal(t, Closed, every.State())
		require.ErrorIs(t, every.Do(func() error { return errRefused }), errRefused)
	}
	require.Equal(t, Open, every.State())
}

func TestBreakersShowTheirStateAndTellOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		var told []string
		b := newBreaker(t, func(o *BreakerOptions) {
			o.Registerer = reg
			o.OnChange = func(from, to State, last error) {
				told = append(told, from.String()+" to "+to.String()+": "+last.Error())
			}
		})
		newBreaker(t, func(o *BreakerOptions) { o.Registerer, o.Host = reg, "cellar" })
		_, _ = b.Do(fail), b.Do(fail)
		const head = `# HELP autoscaler_circuit_breaker_state Whether calls to a part of the world are made: 0 yes (closed), 1 one, to see whether it answers again (half-open), 2 no, it did not answer (open).
# TYPE autoscaler_circuit_breaker_state gauge
`
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(head+
			`autoscaler_circuit_breaker_state{component="docker",host="attic"} 2
autoscaler_circuit_breaker_state{component="docker",host="cellar"} 0
`)))
		time.Sleep(11 * time.Second)
		require.NoError(t, b.Do(func() error { return nil }))
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(head+
			`autoscaler_circuit_breaker_state{component="docker",host="attic"} 0
autoscaler_circuit_breaker_state{component="docker",host="cellar"} 0
`)))
		require.Equal(t, []string{
			"closed to open: connection refused", "open to half-open: connection refused", "half-open to closed: connection refused",
		}, told)
	})
}

func TestBreakerNeedsNamesAndAMetricThatIsItsOwn(t *testing.T) {
	t.Parallel()
	_, err := NewBreaker(BreakerOptions{})
	require.ErrorContains(t, err, "component is required")
	require.ErrorContains(t, err, "host is required")

	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "autoscaler_circuit_breaker_state", Help: "other"}))
	_, err = NewBreaker(BreakerOptions{Component: "docker", Host: "attic", Registerer: reg})
	require.ErrorContains(t, err, "register metric")
}

func TestRetryGoesOnUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var waits []time.Duration
		err := Retry(t.Context(), Policy{Initial: time.Second, Max: 4 * time.Second, OnRetry: func(err error, wait time.Duration) {
			require.ErrorIs(t, err, errDown)
			waits = append(waits, wait)
		}}, func(context.Context) error {
			if calls++; calls < 30 {
				return errDown
			}
			return nil
		})
		require.NoError(t, err)
		require.Len(t, waits, 29)
		for _, w := range waits {
			require.Positive(t, w)
			require.LessOrEqual(t, w, 6*time.Second)
		}
	})
}

func TestRetryEndsWhereThePolicySays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		op := func(context.Context) error { calls++; return errDown }
		require.ErrorIs(t, Retry(t.Context(), Policy{Tries: 3}, op), errDown)
		require.Equal(t, 3, calls)

		began := time.Now()
		require.ErrorIs(t, Retry(t.Context(), Policy{Elapsed: time.Minute}, op), errDown)
		require.LessOrEqual(t, time.Since(began), time.Minute)

		calls = 0
		err := Retry(t.Context(), Policy{}, func(context.Context) error { calls++; return Permanent(errRefused) })
		require.Equal(t, errRefused, err)
		require.Equal(t, 1, calls)
	})
}

func TestRetryThatIsCalledOffNamesTheLastFailureToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := Retry(ctx, Policy{}, func(context.Context) error { return errDown })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errDown)
	})
}
