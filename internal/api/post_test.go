package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const up = `{"action":"up","pool":"burst","count":2,"reason":"a demo"`

func structured(id, data string, attrs string) string {
	return `{"specversion":"1.0","id":"` + id + `","source":"/tools/ci","type":"` + events.TypeScaleRequested + `"` + attrs + `,"datacontenttype":"application/json","data":` + data + `}`
}

func TestEventsAreTakenInEveryModeOfTheBinding(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.call("POST", "/v1/events", structured("s-1", up+"}", ""), "Content-Type", "application/cloudevents+json; charset=utf-8")
	require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
	require.JSONEq(t, `{"ids":["s-1"]}`, a.Body.String())
	a = b.call("POST", "/v1/events", up+`,"actor":"ada"}`, "Content-Type", "application/json", "ce-specversion", "1.0", "ce-id", "b-1", "ce-source", "/tools/ci", "ce-type", events.TypeScaleRequested, "ce-partitionkey", "home/_cluster")
	require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
	a = b.call("POST", "/v1/events", "["+structured("l-1", up+"}", `,"correlationid":"c"`)+","+structured("l-2", up+"}", "")+"]", "Content-Type", "application/cloudevents-batch+json")
	require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
	require.JSONEq(t, `{"ids":["l-1","l-2"]}`, a.Body.String())

	require.Len(t, b.log, 4)
	for i, want := range []string{b.key.ID, "ada@" + b.key.ID, b.key.ID, b.key.ID} {
		e := b.log[i].Event
		require.NoError(t, events.Check(e))
		p, err := events.Decode[events.ScaleRequested](e)
		require.NoError(t, err)
		require.Equal(t, want, p.Actor, "the token says who it was")
		require.Equal(t, 2, p.Count)
		require.Equal(t, "home/_cluster", events.Extension(e, events.ExtPartitionKey))
		require.Equal(t, b.clock.Now(), e.Time())
		require.Contains(t, e.DataSchema(), "scale.requested.v1")
	}
	require.Equal(t, "s-1", events.Extension(b.log[0].Event, events.ExtCorrelationID))
	require.Equal(t, "c", events.Extension(b.log[2].Event, events.ExtCorrelationID))
}

func TestASignalIsTaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := signalBody(`"name":"queue","value":3`)
	require.Equal(t, http.StatusAccepted, b.call("POST", "/v1/events", body, "Content-Type", "application/cloudevents+json").Code)
	p, err := events.Decode[events.SignalReceived](b.log[0].Event)
	require.NoError(t, err)
	require.InEpsilon(t, 3.0, *p.Value, 0.01)
	require.Equal(t, b.key.ID, p.Actor, "the token says who it was")
}

// signalBody is a structured signal.received.
func signalBody(data string) string {
	return `{"specversion":"1.0","id":"1","source":"/x","type":"` + events.TypeSignalReceived + `","data":{` + data + `,"observed_at":"2025-03-01T12:00:00Z","expires_at":"2025-03-01T13:00:00Z"}}`
}

func TestEventsThatCannotBeAreRefusedFieldByField(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		body     string
		status   int
		location string
		message  string
	}{
		"no JSON":                   {`{"specversion"`, 400, "body", ""},
		"nothing":                   {``, 400, "body", ""},
		"another specversion":       {`{"specversion":"9","id":"1"}`, 400, "body", ""},
		"no id":                     {strings.Replace(structured("1", up+"}", ""), `"id":"1",`, "", 1), 422, "body", "id"},
		"a type of our own roles":   {strings.Replace(structured("1", up+"}", ""), events.TypeScaleRequested, events.TypeNodeClaimed, 1), 422, "body.type", "type must be one of"},
		"an unknown type":           {strings.Replace(structured("1", up+"}", ""), events.TypeScaleRequested, "x", 1), 422, "body.type", "type must be one of"},
		"a source of our own":       {strings.Replace(structured("1", up+"}", ""), "/tools/ci", "/k3s-autoscaler/home/decision", 1), 422, "body.source", "kept for our own roles"},
		"dryrun":                    {structured("1", up+"}", `,"dryrun":"true"`), 422, "body.dryrun", "set by decision alone"},
		"no data":                   {`{"specversion":"1.0","id":"1","source":"/x","type":"` + events.TypeScaleRequested + `"}`, 422, "body.data", "JSON object"},
		"data that is a list":       {structured("1", "[]", ""), 422, "body.data", "JSON object"},
		"no reason":                 {structured("1", `{"action":"up","pool":"burst","count":2}`, ""), 422, "body.data.reason", "is empty"},
		"no count":                  {structured("1", `{"action":"up","pool":"burst","reason":"x"}`, ""), 422, "body.data.count", "expected at least 1"},
		"an unknown action":         {structured("1", `{"action":"jump","reason":"x"}`, ""), 422, "body.data.action", "expected one of up, down"},
		"a count that is a text":    {structured("1", `{"action":"up","pool":"burst","count":"2","reason":"x"}`, ""), 422, "body.data", ""},
		"an unknown pool":           {structured("1", strings.Replace(up, "burst", "brst", 1)+"}", ""), 422, "body.data.pool", "there are burst, ci"},
		"an unknown cluster":        {structured("1", up+"}", `,"partitionkey":"work/_cluster"`), 422, "body.partitionkey", `no cluster "work"; there are home`},
		"a key that is a node":      {structured("1", up+"}", `,"partitionkey":"home/n1"`), 422, "body.partitionkey", "needs a cluster key"},
		"a key that is nothing":     {structured("1", up+"}", `,"partitionkey":"home"`), 422, "body.partitionkey", ""},
		"an actor of another key":   {structured("1", up+`,"actor":"me@other"}`, ""), 422, "body.data.actor", "must not hold '@'"},
		"an expiry that is over":    {structured("1", up+`,"expires_at":"2020-01-01T00:00:00Z"}`, ""), 422, "body.data.expires_at", "is in the past"},
		"a hold that is over":       {structured("1", up+`,"hold_until":"2020-01-01T00:00:00Z"}`, ""), 422, "body.data.hold_until", "is in the past"},
		"a hold of fewer nodes":     {structured("1", strings.Replace(up, `"up"`, `"down"`, 1)+`,"hold_until":"2099-01-01T00:00:00Z"}`, ""), 422, "body.data.hold_until", "is for the actions up and to"},
		"a signal of the collector": {signalBody(`"name":"queue","value":3,"source":"query"`), 422, "body.data.source", "expected push or nothing"},
		"a query of a signal":       {signalBody(`"name":"queue","value":3,"query":"x"`), 422, "body.data.query", "set by the collector alone"},
		"a signal nobody looks at":  {signalBody(`"name":"que","value":3`), 422, "body.data.name", "no metric rule of cluster \"home\" looks at a signal \"que\"; there are queue"},
		"a signal of tomorrow":      {strings.Replace(signalBody(`"name":"queue","value":3`), "2025-03-01T12:00", "2025-03-01T12:10", 1), 422, "body.data.observed_at", "is in the future"},
		"a signal of yesterday":     {strings.Replace(signalBody(`"name":"queue","value":3`), "2025-03-01T13", "2025-03-01T11", 1), 422, "body.data.expires_at", "is in the past"},
		"a node name that is none":  {structured("1", `{"action":"drain","node":"A B","reason":"x"}`, ""), 422, "body.data.node", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			a := b.call("POST", "/v1/events", c.body, "Content-Type", "application/cloudevents+json")
			require.Equal(t, c.status, a.Code, a.Body.String())
			p := a.problem(t)
			require.NotEmpty(t, p["detail"])
			first := p["errors"].([]any)[0].(map[string]any)
			require.Equal(t, c.location, first["location"], a.Body.String())
			require.Contains(t, first["message"], c.message)
			require.Empty(t, b.log)
		})
	}
}

func TestABatchIsPublishedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.call("POST", "/v1/events", "["+structured("1", up+"}", "")+","+structured("2", `{"action":"up"}`, "")+"]", "Content-Type", "application/cloudevents-batch+json")
	require.Equal(t, 422, a.Code)
	require.Equal(t, "body[1].data.pool", locations(t, a)[0])
	require.Empty(t, b.log)
	require.Equal(t, 400, b.call("POST", "/v1/events", "[]", "Content-Type", "application/cloudevents-batch+json").Code)
	require.Equal(t, 400, b.call("POST", "/v1/events", "{", "Content-Type", "application/cloudevents-batch+json").Code)
	many := strings.TrimSuffix(strings.Repeat(structured("1", up+"}", "")+",", maxBatch+1), ",")
	require.Equal(t, 413, b.call("POST", "/v1/events", "["+many+"]", "Content-Type", "application/cloudevents-batch+json").Code)
}

func locations(t *testing.T, a answer) []string {
	t.Helper()
	var out []string
	for _, e := range a.problem(t)["errors"].([]any) {
		out = append(out, fmt.Sprint(e.(map[string]any)["location"]))
	}
	return out
}

func TestABodyThatIsNoCloudEventAtAllSaysWhatWouldBe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.call("POST", "/v1/events", "{}", "Content-Type", "application/json")
	require.Equal(t, http.StatusUnsupportedMediaType, a.Code)
	require.Contains(t, a.problem(t)["detail"], "application/cloudevents+json")
}

func TestSeveralClustersNeedAPartitionKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.targets = append(b.targets, Target{Cluster: "work"})
	a := b.call("POST", "/v1/events", structured("1", up+"}", ""), "Content-Type", "application/cloudevents+json")
	require.Equal(t, 422, a.Code)
	require.Equal(t, []string{"body.partitionkey"}, locations(t, a))
	a = b.call("POST", "/v1/events", structured("1", up+"}", `,"partitionkey":"work/_cluster"`), "Content-Type", "application/cloudevents+json")
	require.Contains(t, a.Body.String(), `there are none`)
}

func TestTheBusDecidesAboutTheAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		status int
	}{
		"does not acknowledge": {fmt.Errorf("publish: %w", bus.ErrUnavailable), 503},
		"is too small":         {fmt.Errorf("publish: %w", bus.ErrTooLarge), 413},
		"fails":                {errors.New("disk on fire"), 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.fail = c.err
			a := b.call("POST", "/v1/events", structured("1", up+"}", ""), "Content-Type", "application/cloudevents+json")
			require.Equal(t, c.status, a.Code)
			require.NotContains(t, a.problem(t)["detail"], "disk on fire")
			if c.status == 503 {
				require.NotEmpty(t, a.Header().Get("Retry-After"))
			}
		})
	}
}

// FuzzPostEvents: whatever is posted is answered with 202 and events that pass
// events.Check and come from an allowed type, or with a problem and no event.
func FuzzPostEvents(f *testing.F) {
	for _, ct := range []string{"application/cloudevents+json", "application/cloudevents-batch+json", "application/json", "x"} {
		for _, body := range []string{structured("1", up+"}", ""), "[" + structured("1", up+"}", "") + "]", up + "}", "{", "[{}]", `{"specversion":"1.0","id":"1","source":"/x","type":"` + events.TypePoolPaused + `","data":{"pool":"burst","reason":"x"}}`} {
			f.Add(ct, body)
		}
	}
	var b *testBundle
	f.Fuzz(func(t *testing.T, ct, body string) {
		if b == nil { // one server for all calls of a worker
			b = setup(t)
		}
		b.log = nil
		a := b.call("POST", "/v1/events", body, "Content-Type", ct)
		if a.Code == http.StatusAccepted {
			var got Accepted
			require.NoError(t, json.Unmarshal(a.Body.Bytes(), &got))
			require.Len(t, b.log, len(got.IDs))
			for _, d := range b.log {
				require.NoError(t, events.Check(d.Event))
				require.Contains(t, accepted, d.Event.Type())
			}
			return
		}
		require.GreaterOrEqual(t, a.Code, 400)
		require.Less(t, a.Code, 500, a.Body.String())
		a.problem(t)
		require.Empty(t, b.log)
	})
}
