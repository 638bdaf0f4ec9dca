package cli

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func TestASignalIsPushed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Equal(t, "accepted as s1\n", b.ok(t, "signal", "push", "queue", "12.5", "--cluster", "home", "--id", "k", "--valid-for", "10m", "--label", "host=ci"))
	b.ok(t, "signal", "push", "queue", "unknown", "--reason", "redis is gone")
	b.ok(t, "signal", "push", "queue", "--", "-3\n")
	v, minus := 12.5, -3.0
	require.Equal(t, []api.Signal{
		{ID: "k", Cluster: "home", Name: "queue", Value: &v, Labels: map[string]string{"host": "ci"}, ObservedAt: t0, ExpiresAt: t0.Add(10 * time.Minute)},
		{Name: "queue", Reason: "redis is gone", ObservedAt: t0},
		{Name: "queue", Value: &minus, ObservedAt: t0},
	}, b.signals)
}

func TestASignalThatCannotBeIsAUsageError(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`VALUE: is "many", expected a number or 'unknown'`: {"queue", "many"},
		`VALUE: is "NaN"`:      {"queue", "NaN"},
		`VALUE: is ""`:         {"queue", ""},
		`NAME: name: is "a b"`: {"a b", "1"},
		`--cluster: is "Home"`: {"queue", "1", "--cluster", "Home"},
		`--valid-for: is 0s`:   {"queue", "1", "--valid-for", "0s"},
	} {
		b := setup(t)
		require.Equal(t, ExitUsage, b.run(append([]string{"signal", "push"}, args...)...), args)
		require.Contains(t, b.stderr.String(), want)
		require.Empty(t, b.signals)
	}
}

func TestSignalsAreShownInOneLine(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]events.SignalReceived{
		"queue is 12.5 · ci":                   {Name: "queue", Value: new(12.5), Actor: "ci"},
		"queue is unknown: connection refused": {Name: "queue", Reason: "connection refused"},
		"queue is unknown":                     {Name: "queue"},
		"queue is 1.235e+09":                   {Name: "queue", Value: new(1234567890.0)},
	} {
		p.ObservedAt, p.ExpiresAt = t0, t0.Add(time.Hour)
		e, err := events.New(events.Meta{Cluster: "home", Publisher: "api", ID: "1", Time: t0}, p)
		require.NoError(t, err)
		raw, err := json.Marshal(e)
		require.NoError(t, err)
		require.Equal(t, want, parse(api.Entry{Event: raw}).what)
	}
}
