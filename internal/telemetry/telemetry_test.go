package telemetry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
)

func TestLogsCarryTheCorrelationID(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	log, err := NewLogger(&buf, LogOptions{})
	require.NoError(t, err)
	ctx := WithCorrelation(context.Background(), "life-1")
	log.With("node", "a").WithGroup("g").InfoContext(ctx, "node drained", "x", 1)
	require.Contains(t, buf.String(), `"correlation_id":"life-1"`)
	buf.Reset()
	log.InfoContext(ctx, "node drained", "correlation_id", "life-2")
	require.Equal(t, 1, strings.Count(buf.String(), "correlation_id"))
	require.Empty(t, Correlation(context.Background()))
}

func TestLogsHoldNoSecret(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	u := &url.URL{Scheme: "nats", User: url.UserPassword("me", secret), Host: "x"}
	for _, format := range []string{"json", "text"} {
		var buf bytes.Buffer
		log, err := NewLogger(&buf, LogOptions{Level: "debug", Format: format})
		require.NoError(t, err)
		log.Debug("join with K3S_TOKEN="+secret,
			"token", secret, "agent_token", []byte(secret), "Authorization", "x "+secret,
			"error", errors.New("call with Bearer "+secret),
			"url", u, "dsn", "nats://me:"+secret+"@x:4222",
			"line", "k3sas_abcdefgh_"+secret+" K10"+secret+"::server:"+secret,
			"list", []string{"Bearer " + secret},
			"jwt", "eyJhbGciOiJSUzI1NiJ9."+secret+"."+secret,
			"key", "-----BEGIN EC PRIVATE KEY-----\n"+secret+"\n-----END EC PRIVATE KEY-----",
			"bootstrap", "abcdef."+secret[:16],
			"token_file", "/run/token", "count", 3)
		require.NotContains(t, buf.String(), secret[:16])
		require.Contains(t, buf.String(), "/run/token", "a file name is no secret")
		require.Contains(t, buf.String(), "k3sas_abcdefgh_", "the public part says which token it was")
	}
}

func TestLogOptionsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := NewLogger(&bytes.Buffer{}, LogOptions{Level: "loud"})
	require.ErrorContains(t, err, "expected debug, info, warn or error")
	_, err = NewLogger(&bytes.Buffer{}, LogOptions{Format: "xml"})
	require.ErrorContains(t, err, "expected json or text")
	var buf bytes.Buffer
	log, err := NewLogger(&buf, LogOptions{Level: "warn"})
	require.NoError(t, err)
	log.Info("unseen")
	require.Empty(t, buf.String())
	require.False(t, log.Enabled(context.Background(), slog.LevelInfo))
}

func TestRegistryKnowsWhatIsRunning(t *testing.T) {
	t.Parallel()
	r, err := NewRegistry("v1.2.3")
	require.NoError(t, err)
	fs, err := r.Gather()
	require.NoError(t, err)
	names := map[string]bool{}
	for _, f := range fs {
		names[f.GetName()] = true
	}
	require.True(t, names["autoscaler_build_info"] && names["go_goroutines"])
}

func TestCallsAreCountedByRouteAndCode(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m, err := NewHTTPMetrics(reg, clock.RealClock{})
	require.NoError(t, err)
	_, err = NewHTTPMetrics(reg, clock.RealClock{})
	require.Error(t, err)
	h := m.Wrap(func(*http.Request) string { return "/r" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusTeapot)
			w.WriteHeader(http.StatusOK)
		}
		_, err := w.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, http.NewResponseController(w).Flush(), "the connection can be reached")
	}))
	for _, c := range []struct{ method, path string }{{"GET", "/"}, {"BREW", "/bad"}, {"GET", "/"}} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(c.method, c.path, nil))
	}
	require.Equal(t, 2, testutil.CollectAndCount(m.duration))
	out, err := testutil.CollectAndFormat(m.duration, expfmt.TypeTextPlain, "autoscaler_http_request_duration_seconds")
	require.NoError(t, err)
	require.Contains(t, string(out), `code="418",method="other",route="/r"`)
	require.Contains(t, string(out), `autoscaler_http_request_duration_seconds_count{code="200",method="GET",route="/r"} 2`)
}
