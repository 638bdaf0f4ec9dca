package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func (b *testBundle) signal(body string) answer {
	return b.call("POST", "/v1/signals", `{"signals":[`+body+`]}`, "Content-Type", "application/json")
}

func TestSignalsBecomeEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.signal(`{"name":"queue","value":12.5,"labels":{"host":"ci-1"}},{"id":"k","cluster":"home","name":"queue","value":null,"reason":"redis is gone","observed_at":"2025-03-01T12:00:30Z","expires_at":"2025-03-01T13:00:00Z"}`)
	require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
	require.Len(t, b.log, 2)
	now := b.clock.Now()
	v := 12.5
	for i, want := range []events.SignalReceived{
		{Name: "queue", Value: &v, Source: events.SignalPushed, Labels: map[string]string{"host": "ci-1"}, Actor: b.key.ID, ObservedAt: now, ExpiresAt: now.Add(24 * time.Hour)},
		{Name: "queue", Reason: "redis is gone", Source: events.SignalPushed, Actor: b.key.ID, ObservedAt: t0.Add(30 * time.Second), ExpiresAt: t0.Add(time.Hour)},
	} {
		e := b.log[i].Event
		require.NoError(t, events.Check(e))
		require.Contains(t, a.Body.String(), e.ID())
		got, err := events.Decode[events.SignalReceived](e)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, "home/_cluster", events.Extension(e, events.ExtPartitionKey))
	}
}

func TestTheSameSignalTwiceHasOneID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := func(body string) string {
		a := b.signal(body)
		require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
		return b.log[len(b.log)-1].Event.ID()
	}
	at := `"observed_at":"2025-03-01T12:00:00Z"`
	require.Equal(t, id(`{"name":"queue","value":1,"id":"a"}`), id(`{"name":"queue","value":1,"id":"a"}`))
	require.Equal(t, id(`{"name":"queue","value":1,`+at+`}`), id(`{"name":"queue","value":1,`+at+`}`))
	require.NotEqual(t, id(`{"name":"queue","value":1,"id":"a"}`), id(`{"name":"queue","value":1,"id":"b"}`))
	require.NotEqual(t, id(`{"name":"queue","value":1}`), id(`{"name":"queue","value":1}`), "each is a new one")
}

func TestSignalsThatCannotBeAreRefusedFieldByField(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body, location, message string
	}{
		"no name":              {`{"value":1}`, "body.signals[0]", "name"},
		"no value":             {`{"name":"queue"}`, "body.signals[0]", "value"},
		"a value that is none": {`{"name":"queue","value":"12"}`, "body.signals[0].value", "number"},
		"an unknown field":     {`{"name":"queue","value":1,"val":2}`, "body.signals[0].val", "unexpected"},
		"an unknown signal":    {`{"name":"queue","value":1},{"name":"que","value":1}`, "body.signals[1].name", `no metric rule of cluster "home" looks at a signal "que"; there are queue`},
		"an unknown cluster":   {`{"name":"queue","value":1,"cluster":"work"}`, "body.signals[0].cluster", `there is no cluster "work"; there are home`},
		"a value with a why":   {`{"name":"queue","value":1,"reason":"x"}`, "body.signals[0].reason", "this one is known"},
		"of the future":        {`{"name":"queue","value":1,"observed_at":"2025-03-01T13:00:00Z"}`, "body.signals[0].observed_at", "is in the future"},
		"of the past":          {`{"name":"queue","value":1,"expires_at":"2025-03-01T12:00:00Z"}`, "body.signals[0].expires_at", "is in the past"},
		"of long ago":          {`{"name":"queue","value":1,"observed_at":"2025-02-01T12:00:00Z"}`, "body.signals[0].expires_at", "is in the past"},
		"nothing":              {``, "body.signals", "length"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			a := b.signal(c.body)
			require.Equal(t, http.StatusUnprocessableEntity, a.Code, a.Body.String())
			first := a.problem(t)["errors"].([]any)[0].(map[string]any)
			require.Equal(t, c.location, first["location"], a.Body.String())
			require.Contains(t, first["message"], c.message)
			require.Empty(t, b.log, "all are stored or none is")
		})
	}
}

func TestSignalsNeedATokenALimitAndABusThatAcknowledges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := `{"name":"queue","value":1}`
	a := b.call("POST", "/v1/signals", `{"signals":[`+body+`]}`, "Content-Type", "application/json", "Authorization", "Bearer no")
	require.Equal(t, http.StatusUnauthorized, a.Code)
	a = b.signal(strings.TrimSuffix(strings.Repeat(body+",", 101), ","))
	require.Equal(t, http.StatusUnprocessableEntity, a.Code)
	a = b.signal(`{"name":"queue","value":1,"labels":{"x":"` + strings.Repeat("x", 65<<10) + `"}}`)
	require.Equal(t, http.StatusRequestEntityTooLarge, a.Code, a.Body.String())
	require.Empty(t, b.log)
	for err, code := range map[error]int{bus.ErrUnavailable: http.StatusServiceUnavailable, bus.ErrTooLarge: http.StatusRequestEntityTooLarge} {
		b.fail = err
		require.Equal(t, code, b.signal(body).Code)
	}
	b.fail = nil
	b.targets = append(b.targets, Target{Cluster: "work", Signals: []string{"queue"}})
	a = b.signal(body)
	require.Equal(t, http.StatusUnprocessableEntity, a.Code)
	require.Contains(t, a.Body.String(), "cluster is missing and there are several: home, work")
	require.Equal(t, http.StatusAccepted, b.signal(`{"name":"queue","value":1,"cluster":"work"}`).Code)
}
