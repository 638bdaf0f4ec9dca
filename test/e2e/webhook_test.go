//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func alertBody(fingerprint, startsAt string, truncated int) []byte {
	return fmt.Appendf(nil, `{"version":"4","groupKey":"{}:{alertname=\"QueueBacklog\"}","truncatedAlerts":%d,"status":"firing","receiver":"hook",
"groupLabels":{"alertname":"QueueBacklog"},"commonLabels":{"alertname":"QueueBacklog"},"commonAnnotations":{},"externalURL":"http://localhost:9093",
"alerts":[{"status":"firing","labels":{"alertname":"QueueBacklog","queue":"mail"},"annotations":{},"startsAt":%q,"endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":%q}]}`,
		truncated, startsAt, fingerprint)
}

// g. What Alertmanager may do to a webhook.
func TestTheWebhookTakesWhatAlertmanagerSends(t *testing.T) {
	// An alert that goes on firing asks again after the cooldown; here it must
	// be the second and the late post that could have asked twice.
	p := newProduct(t, "e2e-g", pool{Max: 3, Policy: alertPolicy, UpCooldown: "10m"})
	p.start()
	starts := time.Now().UTC().Format(time.RFC3339)

	// Twice, and late: accepted each time, one action.
	body := alertBody("00000000000000a1", starts, 0)
	for range 2 {
		require.Equal(t, 2, p.post(body).StatusCode/100)
	}
	eventually(t, 90*time.Second, "one node", readyNodes(t, p, 1))
	require.Equal(t, 2, p.post(body).StatusCode/100)
	require.Len(t, payloads[events.AlertReceived](t, p), 1, "retries collapse into one event")
	never(t, 3*time.Second, "a second action", func() bool { return len(p.history(events.TypeNodeClaimed)) > 1 })
	require.Len(t, p.history(events.TypeScaleupDecided), 1)

	// Truncated: accepted and recorded.
	require.Equal(t, 2, p.post(alertBody("00000000000000a2", starts, 7)).StatusCode/100)
	eventually(t, 10*time.Second, "the truncation is recorded", func() error {
		for _, a := range payloads[events.AlertReceived](t, p) {
			if a.TruncatedAlerts == 7 {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})

	// Cut off, or not JSON: problem details that say what is wrong.
	for name, bad := range map[string][]byte{"cut off": body[:len(body)/2], "no JSON": []byte("hello"), "no version": []byte(`{"alerts":[]}`)} {
		resp := p.post(bad)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, name)
		require.Contains(t, resp.Header.Get("Content-Type"), "application/problem+json", name)
		var problem struct{ Title, Detail string }
		b, _ := io.ReadAll(resp.Body)
		require.NoError(t, json.Unmarshal(b, &problem), name)
		require.NotEmpty(t, problem.Detail, name)
		t.Logf("%s: %s", name, strings.TrimSpace(string(b)))
	}

	// Without the token: refused.
	resp, err := patient.Post(p.url+"/v1/alerts", "application/json", strings.NewReader(string(body)))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
}

// g. A bus that does not acknowledge is told to Alertmanager, which tries again.
func TestAWebhookIsNotAcknowledgedBeforeTheBusDid(t *testing.T) {
	nats := startNATS(t) // it is there until the product's log has been read
	p := newProduct(t, "e2e-g2", pool{Max: 1, Policy: alertPolicy})
	text, err := os.ReadFile(p.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p.config, []byte(strings.Replace(string(text), "  embedded: {dir: data/bus}", "  url: "+nats.url, 1)), 0o600))
	p.start()
	nats.stop()
	body := alertBody("00000000000000b1", time.Now().UTC().Format(time.RFC3339), 0)
	resp := p.post(body)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Contains(t, resp.Header.Get("Content-Type"), "application/problem+json")
	nats.start()
	eventually(t, 60*time.Second, "the retry is accepted", func() error {
		if r := p.post(body); r.StatusCode/100 != 2 {
			return fmt.Errorf("%s", r.Status)
		}
		return nil
	})
	eventually(t, 90*time.Second, "its node is Ready", readyNodes(t, p, 1))
	require.Len(t, payloads[events.AlertReceived](t, p), 1)
}
