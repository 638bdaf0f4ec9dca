package middleware_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
)

var (
	errPermanent = errors.New("permanent")
	errPassing   = errors.New("passing")
)

type testBundle struct {
	observed []error
	poisoned []string
	refuse   error
}

func (b *testBundle) Publish(_ string, msgs ...*message.Message) error {
	for _, m := range msgs {
		b.poisoned = append(b.poisoned, m.UUID)
	}
	return b.refuse
}

func (b *testBundle) Close() error { return nil }

func (b *testBundle) options() middleware.Options {
	return middleware.Options{
		Observe:     func(_ *message.Message, _ time.Duration, err error) { b.observed = append(b.observed, err) },
		Now:         time.Now,
		Poison:      b,
		IsPermanent: func(err error) bool { return errors.Is(err, errPermanent) },
		ShouldRetry: func(err error) bool { return errors.Is(err, errPassing) },
		Retry:       time.Second,
		Timeout:     50 * time.Millisecond,
	}
}

func (b *testBundle) handle(t *testing.T, fn message.NoPublishHandlerFunc) error {
	t.Helper()
	chain, err := middleware.Chain(b.options())
	require.NoError(t, err)
	h := func(m *message.Message) ([]*message.Message, error) { return nil, fn(m) }
	for i := len(chain) - 1; i >= 0; i-- {
		h = chain[i](h)
	}
	m := message.NewMessage("m1", nil)
	m.Metadata["ce-correlationid"], m.Metadata["ce-traceparent"] = "life", "00-1-2-01"
	_, err = h(m)
	return err
}

func TestAPermanentErrorIsNotRepeatedAndGoesToThePoisonQueue(t *testing.T) {
	t.Parallel()
	b := &testBundle{}
	calls := 0
	require.NoError(t, b.handle(t, func(*message.Message) error { calls++; return errPermanent }))
	require.Equal(t, 1, calls)
	require.Equal(t, []string{"m1"}, b.poisoned)
	require.Equal(t, []error{nil}, b.observed)
}

func TestAPoisonQueueThatRefusesLeavesTheError(t *testing.T) {
	t.Parallel()
	b := &testBundle{refuse: errors.New("no room")}
	require.ErrorContains(t, b.handle(t, func(*message.Message) error { return errPermanent }), "no room")
}

func TestAPassingErrorIsTriedAgainWithAFreshTimeout(t *testing.T) {
	t.Parallel()
	b := &testBundle{}
	calls := 0
	require.NoError(t, b.handle(t, func(m *message.Message) error {
		require.NoError(t, m.Context().Err(), "each try has its own time")
		if calls++; calls < 3 {
			return errPassing
		}
		return nil
	}))
	require.Equal(t, 3, calls)
	require.Empty(t, b.poisoned)
}

func TestAnyOtherErrorAndAPanicComeOut(t *testing.T) {
	t.Parallel()
	b := &testBundle{}
	other := errors.New("other")
	require.ErrorIs(t, b.handle(t, func(*message.Message) error { return other }), other)
	err := b.handle(t, func(*message.Message) error { panic("oops") })
	var p *middleware.PanicError
	require.ErrorAs(t, err, &p)
	require.Equal(t, "oops", p.Value)
	require.Contains(t, p.Stack, "middleware_test.go")
	require.NotContains(t, p.Error(), "middleware_test.go")
	require.Len(t, b.observed, 2)
}

func TestAHandlerHasALimitedTimeAndKnowsItsTrace(t *testing.T) {
	t.Parallel()
	b := &testBundle{}
	err := b.handle(t, func(m *message.Message) error {
		require.Equal(t, middleware.Trace{CorrelationID: "life", TraceParent: "00-1-2-01", EventID: "m1"}, middleware.TraceFrom(m.Context()))
		<-m.Context().Done()
		return m.Context().Err()
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, middleware.TraceFrom(t.Context()))
}

func TestOptionsAreCheckedTogether(t *testing.T) {
	t.Parallel()
	_, err := middleware.Chain(middleware.Options{Retry: time.Minute})
	for _, want := range []string{"observe", "now", "poison", "is_permanent", "should_retry", "retry: is 1m0s", "timeout"} {
		require.ErrorContains(t, err, want)
	}
}
