package promql

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serve answers every query with a status and a body.
func serve(t *testing.T, status int, body string) *Client {
	t.Helper()
	return client(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}, Options{})
}

func client(t *testing.T, h http.HandlerFunc, o Options) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	o.URL = s.URL + o.URL
	c, err := New(o)
	require.NoError(t, err)
	return c
}

func success(kind, result string) string {
	return `{"status":"success","data":{"resultType":"` + kind + `","result":` + result + `}}`
}

func TestAScalarAndASingleSeriesAreNumbers(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]float64{
		success("scalar", `[1700000000.1,"42"]`):                                  42,
		success("vector", `[{"metric":{"job":"x"},"value":[1700000000,"0.25"]}]`): 0.25,
		success("vector", `[{"metric":{},"value":[1700000000,"-1e3"]}]`):          -1000,
	} {
		got, err := serve(t, 200, body).Query(context.Background(), "q")
		require.NoError(t, err)
		require.InDelta(t, want, got, 0)
	}
}

func TestWhatIsNoNumberIsAnErrorThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		is     error
		says   string
	}{
		"empty":          {200, success("vector", `[]`), ErrEmpty, "or vector(0)"},
		"NaN":            {200, success("vector", `[{"metric":{},"value":[1,"NaN"]}]`), ErrNumber, `"NaN"`},
		"infinite":       {200, success("scalar", `[1,"+Inf"]`), ErrNumber, `"+Inf"`},
		"several":        {200, success("vector", `[{"metric":{"__name__":"q","b":"2","a":"1"},"value":[1,"1"]},{"metric":{},"value":[1,"2"]}]`), ErrSeries, `2 series, such as q{a="1", b="2"} and {}; aggregate`},
		"a matrix":       {200, success("matrix", `[]`), ErrSeries, "it is a matrix"},
		"a text":         {200, success("string", `[1,"x"]`), nil, "unexpected value type"},
		"an odd sample":  {200, success("scalar", `[1]`), nil, "can't be used"},
		"another sample": {200, success("vector", `[{"metric":{},"value":"x"}]`), nil, "can't be used"},
		"a bad query":    {400, `{"status":"error","errorType":"bad_data","error":"1:5: parse error"}`, nil, "refuses the query: 1:5: parse error"},
		"no credential":  {401, `no`, nil, "is the credential right? client error: 401"},
		"no Prometheus":  {404, `<html>`, nil, "is it a Prometheus, and is the credential right? client error: 404"},
		"another JSON":   {200, `{}`, nil, "is it a Prometheus"},
		"everything":     {200, strings.Repeat(" ", maxAnswer+1), ErrSeries, "larger than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := serve(t, c.status, c.body).Query(context.Background(), "q")
			require.ErrorContains(t, err, c.says)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
		})
	}
}

func TestTheQueryIsPostedBelowThePathWithTheCredentialOfTheMoment(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	var got []*http.Request
	h := func(w http.ResponseWriter, r *http.Request) {
		require.NoError(t, r.ParseForm())
		got = append(got, r)
		fmt.Fprint(w, success("scalar", `[1,"1"]`))
	}
	c := client(t, h, Options{URL: "/prom/", TokenFile: file})
	_, err := c.Query(context.Background(), "up")
	require.ErrorContains(t, err, "unable to read authorization credentials")
	for _, token := range []string{"first", "second\n"} {
		require.NoError(t, os.WriteFile(file, []byte(token), 0o600))
		_, err = c.Query(context.Background(), `sum(rate(x[5m])) > 1`)
		require.NoError(t, err)
	}
	require.Len(t, got, 2)
	require.Equal(t, "/prom/api/v1/query", got[0].URL.Path)
	require.Equal(t, `sum(rate(x[5m])) > 1`, got[0].PostForm.Get("query"))
	require.Equal(t, "5s", got[0].PostForm.Get("timeout"))
	require.Equal(t, "Bearer first", got[0].Header.Get("Authorization"))
	require.Equal(t, "Bearer second", got[1].Header.Get("Authorization"))

	c = client(t, h, Options{Username: "me", PasswordFile: file})
	_, err = c.Query(context.Background(), "up")
	require.NoError(t, err)
	user, password, _ := got[2].BasicAuth()
	require.Equal(t, "me/second", user+"/"+password)
}

func TestACredentialIsNotCarriedElsewhere(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	t.Cleanup(other.Close)
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}, Options{})
	_, err := c.Query(context.Background(), "up")
	require.ErrorContains(t, err, "307")
}

func TestAnAnswerThatDoesNotComeIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := client(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}, Options{Timeout: 20 * time.Millisecond})
	defer close(release)
	_, err := c.Query(context.Background(), "up")
	require.ErrorContains(t, err, "no answer within 20ms")

	s := httptest.NewServer(nil)
	s.Close()
	gone, err := New(Options{URL: s.URL})
	require.NoError(t, err)
	_, err = gone.Query(context.Background(), "up")
	require.ErrorContains(t, err, "refused")
}

func TestWhatCannotBeUsedIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "prometheus:9090", "ftp://x", "http://"} {
		_, err := New(Options{URL: u})
		require.ErrorContains(t, err, fmt.Sprintf("URL is %q", u))
	}
	empty := filepath.Join(t.TempDir(), "ca")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	_, err := New(Options{URL: "https://x", CAFile: empty})
	require.ErrorContains(t, err, "unable to use specified CA cert")
	_, err = New(Options{URL: "https://x", CAFile: empty + "-not"})
	require.ErrorContains(t, err, "no such file")
}

func TestAnAuthorityOfItsOwnIsTrusted(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, success("scalar", `[1,"7"]`)) }))
	t.Cleanup(s.Close)
	stranger, err := New(Options{URL: s.URL})
	require.NoError(t, err)
	_, err = stranger.Query(context.Background(), "up")
	require.ErrorContains(t, err, "certificate")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pemOf(s.Certificate().Raw), 0o600))
	c, err := New(Options{URL: s.URL, CAFile: ca})
	require.NoError(t, err)
	v, err := c.Query(context.Background(), "up")
	require.NoError(t, err)
	require.InDelta(t, 7, v, 0)
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
