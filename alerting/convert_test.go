package alerting_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/alerting"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

var received = time.Date(2026, 11, 24, 6, 30, 0, 0, time.UTC)

func options() alerting.ConvertOptions {
	return alerting.ConvertOptions{
		ReceivedAt: received,
		Cluster:    func(map[string]string) (string, error) { return "home", nil },
	}
}

func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return b
}

func payloads(t testing.TB, es []events.Event) []events.AlertReceived {
	t.Helper()
	out := make([]events.AlertReceived, len(es))
	for i, e := range es {
		require.NoError(t, events.Check(e))
		p, err := events.Decode[events.AlertReceived](e)
		require.NoError(t, err)
		out[i] = p
	}
	return out
}

func TestConvertEveryRecordedBody(t *testing.T) {
	t.Parallel()
	// Firing, resolved and left out, as recorded from Alertmanager 0.25.0 and 0.34.2.
	for name, want := range map[string][3]int{
		"am-0.25-firing-single.json":                   {1, 0, 0},
		"am-0.25-grouped-firing-with-resolved.json":    {2, 1, 0},
		"am-0.25-mixed-truncated-after-503-retry.json": {1, 2, 5},
		"am-0.25-resolved-single.json":                 {0, 1, 0},
		"am-0.25-resolved-truncated.json":              {0, 3, 5},
		"am-0.25-truncated-max_alerts.json":            {2, 1, 4},
		"am-0.34-001-firing.json":                      {1, 0, 0},
		"am-0.34-002-resolved.json":                    {0, 1, 0},
		"am-0.34-003-firing.json":                      {2, 1, 0},
		"am-0.34-004-firing-truncated.json":            {2, 1, 4},
		"am-0.34-005-firing-truncated.json":            {2, 1, 3},
		"am-0.34-006-firing-truncated.json":            {1, 2, 5},
		"am-0.34-007-resolved-truncated.json":          {0, 3, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := alerting.Convert(recorded(t, name), options())
			require.NoError(t, err)
			require.Equal(t, want, [3]int{b.Firing, len(b.Events) - b.Firing, b.Truncated})
			for _, p := range payloads(t, b.Events) {
				require.Equal(t, "hook", p.Receiver)
				require.Equal(t, "QueueBacklog", p.Labels["alertname"])
				require.Equal(t, b.Truncated, p.TruncatedAlerts, "every event says that its body was cut")
				require.Equal(t, received.Add(15*time.Minute), p.ExpiresAt)
				require.Equal(t, p.Status == events.AlertFiring, p.EndsAt.IsZero(), "year 1 is no end")
			}
		})
	}
}

func TestConvertKeepsWhatAlertmanagerSaid(t *testing.T) {
	t.Parallel()
	b, err := alerting.Convert(recorded(t, "am-0.34-002-resolved.json"), options())
	require.NoError(t, err)
	require.Equal(t, []events.AlertReceived{{
		Status:       "resolved",
		Fingerprint:  "88fcc8f7286d8db7",
		StartsAt:     time.Date(2026, 11, 24, 6, 29, 19, 873e6, time.UTC),
		EndsAt:       time.Date(2026, 11, 24, 6, 29, 21, 873e6, time.UTC),
		Labels:       map[string]string{"alertname": "QueueBacklog", "instance": "127.0.0.1:19300", "job": "app", "nodepool": "burst", "queue": "a", "severity": "critical"},
		Annotations:  map[string]string{"summary": "queue a has 50 jobs"},
		GeneratorURL: "http://vm:19090/graph?g0.expr=queue_depth+%3E+10&g0.tab=1",
		GroupKey:     `{}:{alertname="QueueBacklog", nodepool="burst"}`,
		Receiver:     "hook",
		ReceivedAt:   received,
		ExpiresAt:    received.Add(15 * time.Minute),
	}}, payloads(t, b.Events))
	e := b.Events[0]
	require.Equal(t, "/k3s-autoscaler/home/alerting", e.Source())
	require.Equal(t, "home/_cluster", events.Extension(e, events.ExtPartitionKey))
}

func TestIDsCollapseRetriesAndRefreshRepeats(t *testing.T) {
	t.Parallel()
	id := func(file, cluster string, at time.Time) string {
		b, err := alerting.Convert(recorded(t, file), alerting.ConvertOptions{
			ReceivedAt: at,
			Expiry:     16 * time.Minute,
			Cluster:    func(map[string]string) (string, error) { return cluster, nil },
		})
		require.NoError(t, err)
		require.Len(t, b.Events, 1)
		return b.Events[0].ID()
	}
	const firing, resolved = "am-0.25-firing-single.json", "am-0.25-resolved-single.json"
	base := time.Unix(0, 0).Add(100 * 4 * time.Minute) // the start of a quarter of the expiry

	require.Equal(t, id(firing, "home", base), id(firing, "home", base.Add(4*time.Minute-1)), "a retry within the quarter")
	require.NotEqual(t, id(firing, "home", base), id(firing, "home", base.Add(4*time.Minute)), "a repeat in the next quarter")
	require.NotEqual(t, id(firing, "home", base), id(resolved, "home", base), "firing and resolved")
	require.NotEqual(t, id(firing, "home", base), id(firing, "away", base), "two clusters")
}

func TestFiringAndResolvedOfOneEpisodeShareACorrelation(t *testing.T) {
	t.Parallel()
	correlation := func(file string) string {
		b, err := alerting.Convert(recorded(t, file), options())
		require.NoError(t, err)
		return events.Extension(b.Events[0], events.ExtCorrelationID)
	}
	require.NotEmpty(t, correlation("am-0.34-001-firing.json"))
	require.Equal(t, correlation("am-0.34-001-firing.json"), correlation("am-0.34-002-resolved.json"))
}

func TestConvertAcceptsABodyWithoutAlerts(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"version":"4","alerts":[]}`, `{"version":"4","alerts":null}`, `{"version":"4","status":"firing","alerts":[],"new_field":{"a":[1]}}`} {
		b, err := alerting.Convert([]byte(body), options())
		require.NoError(t, err, body)
		require.Empty(t, b.Events)
	}
}

func TestConvertNamesEveryFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	const good = `"status":"firing","labels":{"alertname":"A"},"startsAt":"2026-11-24T06:24:43Z","endsAt":"0001-01-01T00:00:00Z","fingerprint":"f1"`
	whole := string(recorded(t, "am-0.34-001-firing.json"))
	for name, c := range map[string]struct {
		body   string
		fields []string
		says   string
	}{
		"nothing":               {"", []string{""}, "body: is missing or empty"},
		"cut off":               {whole[:500], []string{""}, "after 500 of 500 bytes"},
		"no JSON":               {"alerts=1", []string{""}, "a complete JSON object"},
		"two bodies":            {whole + whole, []string{""}, "a complete JSON object"},
		"a list":                {"[]", []string{""}, `is "array"`},
		"null":                  {"null", []string{"version", "alerts"}, "version"},
		"old version":           {`{"version":"3","alerts":[]}`, []string{"version"}, `version: is "3", expected "4"`},
		"no version":            {`{"alerts":[]}`, []string{"version"}, "version: is missing or empty"},
		"version as a number":   {`{"version":4,"alerts":[]}`, []string{"version"}, `is "number"`},
		"no alerts":             {`{"version":"4","status":"firing"}`, []string{"alerts"}, "a list of alerts"},
		"nothing but a version": {`{"version":"4"}`, []string{"alerts"}, "a list of alerts"},
		"alerts as a map":       {`{"version":"4","alerts":{}}`, []string{"alerts"}, `is "object"`},
		"negative truncation":   {`{"version":"4","alerts":[],"truncatedAlerts":-1}`, []string{"truncatedAlerts"}, "-1"},
		"a label of a number":   {`{"version":"4","alerts":[{"labels":{"a":1}}]}`, []string{"alerts[0].labels"}, `is "number"`},
		"an alert that is text": {`{"version":"4","alerts":["A"]}`, []string{"alerts[0]"}, `is "string"`},
		"an empty alert": {`{"version":"4","alerts":[{` + good + `},{}]}`,
			[]string{"alerts[1].status", "alerts[1].fingerprint", "alerts[1].labels", "alerts[1].startsAt"}, "alerts[1].fingerprint: is missing or empty"},
		"a status of its own":     {`{"version":"4","alerts":[{` + strings.Replace(good, "firing", "pending", 1) + `}]}`, []string{"alerts[0].status"}, `is "pending"`},
		"a start that is no time": {`{"version":"4","alerts":[{` + strings.Replace(good, "2026-11-24T06:24:43Z", "yesterday", 1) + `}]}`, []string{"alerts[0].startsAt"}, "yesterday"},
		"an end that is no time":  {`{"version":"4","alerts":[{` + strings.Replace(good, "0001-01-01T00:00:00Z", "never", 1) + `}]}`, []string{"alerts[0].endsAt"}, "never"},
		"the second of two":       {`{"version":"4","alerts":[{` + good + `},{` + strings.Replace(good, "f1", "", 1) + `}]}`, []string{"alerts[1].fingerprint"}, "fingerprint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := alerting.Convert([]byte(c.body), options())
			var invalid *alerting.InvalidError
			require.ErrorAs(t, err, &invalid)
			require.Empty(t, b.Events, "all or nothing")
			fields := []string{}
			for _, f := range invalid.Fields {
				fields = append(fields, f.Field)
				require.NotEmpty(t, f.Expected)
				require.LessOrEqual(t, len(f.Value), 130)
			}
			require.Equal(t, c.fields, fields)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestConvertRefusesAnAlertOfNoCluster(t *testing.T) {
	t.Parallel()
	o := options()
	o.Cluster = func(map[string]string) (string, error) { return "", errors.New("a or b") }
	_, err := alerting.Convert(recorded(t, "am-0.34-001-firing.json"), o)
	require.ErrorContains(t, err, "alerts[0].labels")
	require.ErrorContains(t, err, "expected a or b")

	o.Cluster = func(map[string]string) (string, error) { return "Not A Cluster", nil }
	_, err = alerting.Convert(recorded(t, "am-0.34-001-firing.json"), o)
	require.ErrorContains(t, err, "expected a DNS label")
}

func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(f, err)
	for _, file := range files {
		f.Add(recorded(f, filepath.Base(file)))
	}
	f.Add([]byte(`{"version":"4","alerts":[{"startsAt":"x","labels":{"a":"\ud800"}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := alerting.Convert(body, options())
		if err != nil {
			var invalid *alerting.InvalidError
			require.ErrorAs(t, err, &invalid)
			require.NotEmpty(t, invalid.Fields)
			require.Empty(t, b.Events)
			return
		}
		again, err := alerting.Convert(body, options())
		require.NoError(t, err)
		require.Equal(t, b, again, "the same body at the same time gives the same events")
		for _, e := range b.Events {
			require.NoError(t, events.Check(e))
		}
	})
}
