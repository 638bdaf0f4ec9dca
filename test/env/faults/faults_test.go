package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// engine counts the calls that reach it.
func engine(t *testing.T) (p *Docker, acted *atomic.Int64, client *http.Client) {
	t.Helper()
	acted = &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		acted.Add(1)
		_, _ = io.Copy(w, r.Body)
	}))
	t.Cleanup(s.Close)
	p, err := NewDocker("tcp://" + strings.TrimPrefix(s.URL, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", strings.TrimPrefix(p.Host(), "unix://"))
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return p, acted, &http.Client{Transport: tr, Timeout: time.Minute}
}

func call(t *testing.T, c *http.Client, method, path, body string) (int, string, error) {
	t.Helper()
	r, err := http.NewRequest(method, "http://docker"+path, strings.NewReader(body))
	require.NoError(t, err)
	res, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b), nil
}

func TestWithoutAFaultEveryCallPasses(t *testing.T) {
	t.Parallel()
	_, acted, c := engine(t)
	status, body, err := call(t, c, http.MethodPost, "/v1.41/containers/create?name=a", "hello")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "hello", body)
	require.EqualValues(t, 1, acted.Load())
}

func TestAFaultHappensToTheCallsThatItSelectsSoManyTimes(t *testing.T) {
	t.Parallel()
	p, acted, c := engine(t)
	f := p.Inject(Fault{Method: http.MethodPost, Path: "^/containers/create$", Times: 2, Status: 500, Message: "no space left on device"})
	for range 2 {
		status, body, err := call(t, c, http.MethodPost, "/v1.41/containers/create", "")
		require.NoError(t, err)
		require.Equal(t, 500, status)
		require.JSONEq(t, `{"message":"no space left on device"}`, body)
	}
	require.Zero(t, acted.Load())
	for _, other := range []struct{ method, path string }{
		{http.MethodPost, "/v1.41/containers/create"}, {http.MethodGet, "/containers/create"}, {http.MethodPost, "/containers/x/start"},
	} {
		status, _, err := call(t, c, other.method, other.path, "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
	}
	require.Equal(t, 2, f.Hits())
	require.EqualValues(t, 3, acted.Load())
}

func TestAFaultWithoutANumberLastsUntilItIsLifted(t *testing.T) {
	t.Parallel()
	p, acted, c := engine(t)
	f := p.Inject(Fault{Status: http.StatusServiceUnavailable})
	for range 3 {
		status, _, err := call(t, c, http.MethodGet, "/_ping", "")
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, status)
	}
	f.Lift()
	f.Lift()
	status, _, err := call(t, c, http.MethodGet, "/_ping", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.EqualValues(t, 1, acted.Load())
}

func TestACutBeforeTheEngineActedAndOneAfterLookAlikeToTheCaller(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cut   Cut
		acted int64
	}{"before": {CutBefore, 0}, "after": {CutAfter, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, acted, client := engine(t)
			p.Inject(Fault{Method: http.MethodPost, Cut: c.cut, Times: 1})
			_, _, err := call(t, client, http.MethodPost, "/containers/create", "x")
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, c.acted, acted.Load())
		})
	}
}

func TestWhatTheTestDoesBeforeACallHasHappenedWhenTheEngineSeesIt(t *testing.T) {
	t.Parallel()
	p, acted, c := engine(t)
	var path string
	p.Inject(Fault{Path: "/start$", Delay: time.Millisecond, Before: func(r *http.Request) { path = r.URL.Path; require.Zero(t, acted.Load()) }})
	_, _, err := call(t, c, http.MethodPost, "/v1.41/containers/a/start", "")
	require.NoError(t, err)
	require.Equal(t, "/v1.41/containers/a/start", path)
	require.EqualValues(t, 1, acted.Load())
}

func TestAnEngineThatIsDownRefusesConnectionsUntilItIsUp(t *testing.T) {
	t.Parallel()
	p, _, c := engine(t)
	require.NoError(t, p.Down())
	require.NoError(t, p.Down())
	_, _, err := call(t, c, http.MethodGet, "/_ping", "")
	require.True(t, errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT), "%v", err)
	require.NoError(t, p.Up())
	require.NoError(t, p.Up())
	status, _, err := call(t, c, http.MethodGet, "/_ping", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
}
