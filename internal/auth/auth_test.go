package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func tokenFileWith(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.token")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

func TestANewKeyIsAccepted(t *testing.T) {
	t.Parallel()
	k := NewKey()
	require.Regexp(t, `^k3sas_[a-z2-7]{8}_[0-9a-f]{64}$`, k.Token)
	require.NotEqual(t, k.Token, NewKey().Token)
	path := filepath.Join(t.TempDir(), "token")
	require.NoError(t, k.WriteFile(path))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	require.ErrorContains(t, NewKey().WriteFile(path), "exists already")
	require.Error(t, NewKey().WriteFile(filepath.Join(path, "below")))

	tokens, err := Open([]string{path}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	c, err := tokens.Authenticate("Bearer " + k.Token)
	require.NoError(t, err)
	require.Equal(t, k.ID, c.Name)
}

func TestAuthenticateRefusesEverythingElse(t *testing.T) {
	t.Parallel()
	k := NewKey()
	tokens, err := Open([]string{tokenFileWith(t, "# of the operators", "", k.Token)}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	cases := map[string]struct {
		header string
		want   error
	}{
		"nothing":             {"", ErrNoToken},
		"no scheme":           {k.Token, ErrNoToken},
		"another scheme":      {"Basic " + k.Token, ErrNoToken},
		"an empty token":      {"Bearer ", ErrNoToken},
		"another token":       {"Bearer " + NewKey().Token, ErrUnknownToken},
		"the id alone":        {"Bearer k3sas_" + k.ID, ErrUnknownToken},
		"a comment":           {"Bearer # of the operators", ErrUnknownToken},
		"the token with more": {"Bearer " + k.Token + "0", ErrUnknownToken},
		"lower-case scheme":   {"bearer " + k.Token, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tokens.Authenticate(c.header)
			require.ErrorIs(t, err, c.want)
		})
	}
}

func TestTokensFollowTheirFile(t *testing.T) {
	t.Parallel()
	first, second := NewKey(), NewKey()
	path := tokenFileWith(t, first.Token)
	tokens, err := Open([]string{path}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(path, []byte(second.Token), 0o600))
	require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	_, err = tokens.Authenticate("Bearer " + first.Token)
	require.ErrorIs(t, err, ErrUnknownToken, "a token that was taken out is refused at once")
	_, err = tokens.Authenticate("Bearer " + second.Token)
	require.NoError(t, err)

	require.NoError(t, os.Remove(path))
	_, err = tokens.Authenticate("Bearer " + second.Token)
	require.ErrorIs(t, err, ErrUnknownToken, "what can't be read grants nothing")

	tokens.SetFiles([]string{tokenFileWith(t, first.Token)})
	_, err = tokens.Authenticate("Bearer " + first.Token)
	require.NoError(t, err)
}

func TestOpenNamesEveryFileThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	short, empty := tokenFileWith(t, "short"), tokenFileWith(t, "# nothing")
	large := tokenFileWith(t, strings.Repeat("x", maxTokenFile+1))
	_, err := Open([]string{short, empty, large, "missing"}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, short+", line 1: expected a token of at least 32 characters")
	require.ErrorContains(t, err, empty+" holds no token")
	require.ErrorContains(t, err, "larger than 64 KiB")
	require.ErrorContains(t, err, "missing")
	require.NotContains(t, err.Error(), "xxxx")
}

func TestATokenOfAnotherMakeIsNamedAfterItsFile(t *testing.T) {
	t.Parallel()
	tokens, err := Open([]string{tokenFileWith(t, strings.Repeat("a", 40))}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	c, err := tokens.Authenticate("Bearer " + strings.Repeat("a", 40))
	require.NoError(t, err)
	require.Equal(t, "api", c.Name)
}

func TestMiddlewareClosesEverythingThatIsNotOpen(t *testing.T) {
	t.Parallel()
	k := NewKey()
	tokens, err := Open([]string{tokenFileWith(t, k.Token)}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	h := Middleware(tokens, func(p string) bool { return p == "/livez" },
		func(w http.ResponseWriter, _ *http.Request, reason error) {
			http.Error(w, reason.Error(), http.StatusUnauthorized)
		},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _ := CallerFrom(r.Context())
			fmt.Fprintf(w, "caller %s", c.Name)
		}))
	call := func(path, header string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		h.ServeHTTP(w, r)
		return w
	}
	require.Equal(t, 200, call("/livez", "").Code)
	require.Equal(t, 401, call("/anything", "").Code)
	require.Equal(t, 401, call("/livez/..", "Bearer x").Code)
	require.Equal(t, "caller "+k.ID, call("/anything", "Bearer "+k.Token).Body.String())
}

func TestRefusedCallsAreReportedTogether(t *testing.T) {
	t.Parallel()
	clk := testingclock.NewFakeClock(time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC))
	got := make(chan events.AccessRefused, 300)
	fail := errors.New("no bus")
	f := NewRefusals(clk, func(_ context.Context, e events.AccessRefused) error { got <- e; return fail }, slog.New(slog.DiscardHandler))
	add := func(path, remote string) {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.RemoteAddr = remote
		f.Add(r, ErrUnknownToken)
	}
	for i := range 20 {
		add("/v1/alerts", fmt.Sprintf("10.0.0.%d:99", i))
	}
	add("/v1/alerts", "no port")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	require.Eventually(t, clk.HasWaiters, time.Minute, time.Millisecond)
	clk.Step(DefaultRefusalInterval)
	e := <-got
	require.NoError(t, e.Validate())
	require.Equal(t, 21, e.Count)
	require.Len(t, e.Remotes, 10)
	require.Equal(t, "unknown token", e.Reason)
	require.Empty(t, got, "one event for all of them")

	for i := range 250 {
		add(fmt.Sprintf("/%d%s", i, strings.Repeat("x", 200)), "10.0.0.1:1")
	}
	cancel()
	require.NoError(t, <-done)
	require.Len(t, got, maxKinds+1, "made-up paths do not become events without end")
	for range maxKinds + 1 {
		require.LessOrEqual(t, len((<-got).Path), maxPath+len("…"))
	}
}
