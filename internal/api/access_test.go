package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

func TestEveryRouteButHealthNeedsAToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	routes := append(b.server.Routes(), Route{"GET", "/nowhere"}, Route{"GET", "/v1/events/../../livezz"}, Route{"DELETE", "/v1/pools"})
	require.GreaterOrEqual(t, len(routes), 18)
	for _, route := range routes {
		path := strings.Replace(route.Path, "{id}", "x", 1)
		t.Run(route.Method+" "+route.Path, func(t *testing.T) {
			open := route.Path == "/livez" || route.Path == "/readyz" || route.Path == "/health"
			for _, header := range []string{"", "Bearer " + auth.NewKey().Token, "Basic eDp5", "Bearer"} {
				a := b.call(route.Method, path, "", "Authorization", header)
				if open {
					require.Equal(t, http.StatusOK, a.Code)
					continue
				}
				require.Equal(t, http.StatusUnauthorized, a.Code, "header %q", header)
				require.Contains(t, a.Header().Get("WWW-Authenticate"), "Bearer")
				require.Contains(t, a.problem(t)["detail"], "api.token_files")
			}
			if route.Path == "/v1/stream" {
				return // follows without end; see the stream's own tests
			}
			a := b.call(route.Method, path, "")
			require.NotEqual(t, http.StatusUnauthorized, a.Code, "the right token passes")
			require.Less(t, a.Code, 500, a.Body.String())
		})
	}
}

func TestUnknownPathsAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Contains(t, b.call("GET", "/v2/x", "").problem(t)["detail"], "/v1/openapi.json")
	a := b.call("GET", "/v1/alerts", "")
	require.Equal(t, http.StatusMethodNotAllowed, a.Code)
	require.Equal(t, "POST", a.Header().Get("Allow"))
	a = b.call("GET", "/v1/pools?colour=red", "")
	require.Equal(t, http.StatusUnprocessableEntity, a.Code)
	require.Contains(t, a.Body.String(), "colour")
}

func TestReadinessNamesWhatFailsAndTellsWhyToCallersWithAToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Equal(t, "ok\n", b.call("GET", "/livez", "").Body.String())
	require.Equal(t, http.StatusOK, b.call("GET", "/readyz", "").Code)
	b.failing = errors.New("no leader at nats://me:hidden@10.0.0.1:4222")
	a := b.call("GET", "/readyz", "", "Authorization", "")
	require.Equal(t, http.StatusServiceUnavailable, a.Code)
	require.JSONEq(t, `{"status":"failing","version":"v0.0.0-test","checks":{"bus":"failing"}}`, a.Body.String())
	a = b.call("GET", "/health", "")
	require.Contains(t, a.Body.String(), "no leader at")
	require.NotContains(t, a.Body.String(), "hidden")
	require.Equal(t, http.StatusOK, b.call("GET", "/livez", "").Code, "a bus that is away is no reason to be restarted")
}

func TestMetricsAndDescriptionAreServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.call("GET", "/v1/pools", "")
	require.Contains(t, b.call("GET", "/metrics", "").Body.String(), `autoscaler_http_request_duration_seconds_count{code="200",method="GET",route="GET /v1/pools"} 1`)
	doc := get[map[string]any](t, b, "/v1/openapi.json")
	require.Equal(t, "3.1.0", doc["openapi"])
	paths := doc["paths"].(map[string]any)
	for _, p := range []string{"/v1/alerts", "/v1/events", "/v1/stream", "/v1/explain", "/v1/audit/{id}", "/livez", "/metrics"} {
		require.Contains(t, paths, p)
	}
	own, err := b.server.OpenAPI()
	require.NoError(t, err)
	require.Contains(t, string(own), "bearer")
}

func TestOptionsAreCheckedTogether(t *testing.T) {
	t.Parallel()
	_, err := New(Options{})
	for _, name := range []string{"Publisher", "Log", "DeadLetters", "Audit", "World", "Targets", "Alerts", "Tokens", "Gatherer", "Registerer", "Logger", "Clock"} {
		require.ErrorContains(t, err, "Options."+name+" is required")
	}
}

func TestAPanicIsAProblemAndNotTheEnd(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) {
		o.Alerts = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("bug") })
	})
	a := b.call("POST", "/v1/alerts", "{}")
	require.Equal(t, http.StatusInternalServerError, a.Code)
	require.NotContains(t, a.Body.String(), "bug")
}

func TestABodyThatIsTooLargeIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	big := strings.Repeat("x", 65<<10)
	require.Equal(t, http.StatusRequestEntityTooLarge, b.call("POST", "/v1/alerts", big).Code)
	a := b.call("POST", "/v1/events", `{"specversion":"1.0","id":"1","source":"/x","type":"t","data":"`+big+`"}`, "Content-Type", "application/cloudevents+json")
	require.Equal(t, http.StatusRequestEntityTooLarge, a.Code, a.Body.String())
}

func TestServeAnswersUntilItsContextEndsAndReportsRefusals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, l) }()
	for range 3 {
		res, err := http.Get("http://" + l.Addr().String() + "/v1/pools") //nolint:noctx // a test
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, http.StatusUnauthorized, res.StatusCode)
	}
	cancel()
	require.NoError(t, <-done)
	require.Len(t, b.log, 1)
	p, err := events.Decode[events.AccessRefused](b.log[0].Event)
	require.NoError(t, err)
	require.Equal(t, 3, p.Count)
	require.Equal(t, "/v1/pools", p.Path)
	require.Equal(t, "home", b.log[0].Key.Cluster)

	_, err = net.DialTimeout("tcp", l.Addr().String(), time.Second)
	require.Error(t, err, "the port is closed")
}

func TestServeSaysWhyItCannot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.ErrorContains(t, b.server.Serve(context.Background(), l), "serve http on 127.0.0.1")
}
