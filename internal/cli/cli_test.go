package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

var (
	update = flag.Bool("update", false, "rewrite the golden files")
	t0     = time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // what is printed is local time
	os.Exit(m.Run())
}

// testBundle is a command line with a server that answers from a table.
type testBundle struct {
	Options
	stdout, stderr bytes.Buffer
	env            map[string]string
	server         *httptest.Server
	key            auth.Key

	mu      sync.Mutex
	answers map[string]any // path → answer to GET
	asked   []string       // paths with their queries
	posted  []events.Event
	letters []api.LetterRequest
	signals []api.Signal
	shadows []map[string]string // requests about candidate policies
	stream  []api.Entry         // sent after the first post
	refuse  int                 // status of the next post
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{key: auth.NewKey(), answers: map[string]any{}, env: map[string]string{"USER": "ada"}}
	b.server = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.server.Close)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	require.NoError(t, b.key.WriteFile(token))
	b.env["K3S_AUTOSCALER_SERVER"], b.env["K3S_AUTOSCALER_TOKEN_FILE"] = b.server.URL, token
	b.Options = Options{Version: "v1.2.3", Stdin: strings.NewReader(""), Stdout: &b.stdout, Stderr: &b.stderr,
		Getenv: func(k string) string { return b.env[k] }, ConfigDir: dir, Clock: testingclock.NewFakeClock(t0),
		Run: func(context.Context, RunOptions) error { return nil }, Demo: func(context.Context, DemoOptions) error { return nil }}
	return b
}

func (b *testBundle) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	problem := func(status int, body string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
	if r.Header.Get("Authorization") != "Bearer "+b.key.Token {
		problem(401, `{"status":401,"title":"Unauthorized","detail":"Unknown token."}`)
		return
	}
	if r.Method == http.MethodPost {
		if b.refuse != 0 {
			problem(b.refuse, `{"status":422,"title":"Unprocessable Entity","detail":"The event was understood and is refused.","errors":[{"location":"body.data.pool","message":"there is no pool \"x\""}]}`)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v1/deadletters/") {
			var in api.LetterRequest
			json.NewDecoder(r.Body).Decode(&in)
			b.letters = append(b.letters, in)
			json.NewEncoder(w).Encode(b.answers[r.URL.Path])
			return
		}
		if r.URL.Path == "/v1/signals" {
			var in api.SignalRequest
			json.NewDecoder(r.Body).Decode(&in)
			b.signals = append(b.signals, in.Signals...)
			w.WriteHeader(http.StatusAccepted)
			json.NewEncoder(w).Encode(api.Accepted{IDs: []string{"s1"}})
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v1/shadows/") {
			var in map[string]string
			json.NewDecoder(r.Body).Decode(&in)
			in["path"] = r.URL.Path
			b.shadows = append(b.shadows, in)
			json.NewEncoder(w).Encode(b.answers[r.URL.Path])
			return
		}
		var e events.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			problem(400, `{"status":400,"title":"Bad Request","detail":"`+err.Error()+`"}`)
			return
		}
		b.posted = append(b.posted, e)
		w.WriteHeader(http.StatusAccepted)
		json.NewEncoder(w).Encode(api.Accepted{IDs: []string{e.ID()}})
		return
	}
	b.asked = append(b.asked, strings.TrimSuffix(r.URL.Path+"?"+r.URL.RawQuery, "?"))
	if r.URL.Path == "/v1/stream" {
		b.serveStream(w, r)
		return
	}
	answer, ok := b.answers[r.URL.Path]
	if !ok {
		problem(404, `{"status":404,"title":"Not Found","detail":"Nothing of that name."}`)
		return
	}
	if next, ok := answer.(func(*http.Request) any); ok {
		answer = next(r)
	}
	json.NewEncoder(w).Encode(answer)
}

// serveStream sends what is to be seen once something was posted; events that
// name the request have "REQUEST" in place of its id. Without -wait commands it
// sends all at once and ends.
func (b *testBundle) serveStream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, ": following\n\n")
	http.NewResponseController(w).Flush()
	for b.env["WAIT"] != "" && len(b.posted) == 0 { // the post comes on another connection
		b.mu.Unlock()
		select {
		case <-r.Context().Done():
			b.mu.Lock()
			return
		case <-time.After(time.Millisecond):
		}
		b.mu.Lock()
	}
	id := ""
	if len(b.posted) > 0 {
		id = b.posted[0].ID()
	}
	for _, e := range b.stream {
		data, _ := json.Marshal(e)
		io.WriteString(w, "id: 1\nevent: x\ndata: "+strings.ReplaceAll(string(data), "REQUEST", id)+"\n\n")
	}
	http.NewResponseController(w).Flush()
	if b.env["WAIT"] != "" {
		b.mu.Unlock()
		<-r.Context().Done()
		b.mu.Lock()
	}
}

func (b *testBundle) run(args ...string) int {
	b.stdout.Reset()
	b.stderr.Reset()
	return Execute(context.Background(), b.Options, args)
}

// ok runs a command that succeeds and returns what it printed.
func (b *testBundle) ok(t *testing.T, args ...string) string {
	t.Helper()
	require.Equal(t, ExitOK, b.run(args...), "%v: %s", args, b.stderr.String())
	return b.stdout.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644)) //nolint:gosec // a test file
	}
	want, err := os.ReadFile(path) //nolint:gosec // a test file
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func TestUsageErrorsExitWithTwo(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"nope"}, {"--nope"}, {"status", "extra"}, {"status", "--nope"}, {"status", "-o", "xml"}, {"scale"}, {"scale", "sideways"},
		{"scale", "up"}, {"scale", "up", "--pool", "p", "--count", "0", "--reason", "x"}, {"scale", "up", "--pool", "p", "--count", "1"},
		{"scale", "up", "--pool", "p", "--count", "1", "--reason", " "}, {"scale", "up", "--pool", "p", "--count", "1", "--reason", "x", "--for", "-1h"},
		{"scale", "up", "--pool", "p", "--count", "x", "--reason", "x"}, {"scale", "up", "--pool", "p", "--count", "1", "--reason", "x", "--cluster", "A B"},
		{"drain"}, {"drain", "A B"}, {"drain", "_cluster"}, {"pause"}, {"pause", "p", "--for", "-1s"}, {"pool"}, {"pool", "x"}, {"config"}, {"config", "check"}, {"config", "check", "nope.yaml"},
		{"run"}, {"run", "--config", "nope.yaml"}, {"run", "--config", "x", "--roles", "boss"}, {"demo", "--speed", "0"}, {"key", "new"}, {"explain"}, {"events", "list", "--limit", "0"}, {"audit", "show"},
	} {
		b := setup(t)
		require.Equal(t, ExitUsage, b.run(args...), "%v: %s", args, b.stderr.String())
		require.NotEmpty(t, b.stderr.String())
		require.Empty(t, b.posted)
	}
}

func TestHelpVersionAndCompletion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	golden(t, "help", b.ok(t))
	require.Contains(t, b.ok(t, "version"), "k3s-autoscaler v1.2.3 (go")
	require.Contains(t, b.ok(t, "completion", "bash"), "k3s-autoscaler")
	require.Contains(t, b.ok(t, "scale", "up", "--help"), "--override")
}

func TestRunAndDemoGetWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(path, []byte("clusters: [{name: home, kubeconfig: in-cluster, pools: [{name: w, provider: docker, max: 1, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	var got RunOptions
	b.Run = func(_ context.Context, o RunOptions) error { got = o; return nil }
	b.ok(t, "run", "--config", path, "--dry-run")
	require.True(t, got.DryRun)
	require.Equal(t, Roles, got.Roles)
	require.Equal(t, "home", got.Config.Clusters[0].Name)
	require.Contains(t, b.stderr.String(), "warning: ", "what deserves a second look is said")

	require.Equal(t, ExitUsage, b.run("run", "--config", path), "acting needs credentials")
	require.Contains(t, b.stderr.String(), "actor_kubeconfig: is missing")
	b.ok(t, "run", "--config", path, "--roles", "decision,auditing")
	require.Equal(t, []string{"decision", "auditing"}, got.Roles)
	b.Run = func(context.Context, RunOptions) error { return errors.New("no bus") }
	require.Equal(t, ExitFailure, b.run("run", "--config", path, "--dry-run"))
	require.Contains(t, b.stderr.String(), "Error: no bus")
	require.NotContains(t, b.stderr.String(), "--help")

	var demo DemoOptions
	b.Demo = func(_ context.Context, o DemoOptions) error { demo = o; return nil }
	b.ok(t, "demo", "--serve", "--speed", "4", "--listen", "127.0.0.1:1")
	require.True(t, demo.Serve)
	require.InEpsilon(t, 4.0, demo.Speed, 0.01)
	require.Equal(t, "127.0.0.1:1", demo.Listen)
}

func TestConfigCommands(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir := t.TempDir()
	bad, good := filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "good.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("clusters:\n  - name: home\n    pools:\n      - {name: w, provider: dokcer, min: 5, max: 1, cpu: 1, memory: 1Gi}\napi:\n  token_files: [missing]\nbsu: {}\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "join"), []byte("secret"), 0o600))
	require.NoError(t, os.WriteFile(good, []byte("clusters: [{name: home, kubeconfig: in-cluster, actor_kubeconfig: in-cluster, server_url: 'https://k3s:6443', token_file: join,\n  pools: [{name: w, provider: docker, max: 1, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	for _, args := range [][]string{{"config", "check", bad}, {"run", "--config", bad}, {"config", "show", bad}} {
		require.Equal(t, ExitUsage, b.run(args...))
		golden(t, "bad-config", strings.ReplaceAll(b.stderr.String(), dir+"/", ""))
	}
	require.Equal(t, "good.yaml is valid: 1 cluster, 1 pool, 0 alert rules\n", strings.ReplaceAll(b.ok(t, "config", "check", good), dir+"/", ""))
	require.Contains(t, b.ok(t, "config", "show", good), "register_deadline: 2m0s")
	require.Contains(t, b.ok(t, "config", "schema"), "2020-12")

	b.answers["/v1/nodes"] = api.Page[api.Node]{Items: []api.Node{
		{Cluster: "home", Name: "w-1", Pool: "w", Phase: "ready", Ready: "True"}, {Cluster: "home", Name: "old-2", Pool: "old", Phase: "ready", Ready: "True"},
		{Cluster: "home", Name: "old-1", Pool: "old", Phase: "claimed"}, {Cluster: "home", Name: "older-1", Pool: "older", Phase: "removed"},
		{Cluster: "lab", Name: "w-1", Pool: "w", Phase: "ready", Ready: "True"}, {Cluster: "home", Name: "server", Ready: "True"}}}
	b.ok(t, "config", "check", good, "--running")
	require.Contains(t, b.asked, "/v1/nodes?ours=true")
	golden(t, "left-pools", strings.ReplaceAll(b.stderr.String(), dir+"/", ""))
	renamed := filepath.Join(dir, "renamed.yaml")
	raw, err := os.ReadFile(good)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(renamed, []byte(strings.Replace(string(raw), "name: w,", "name: w, renamed_from: [old],", 1)), 0o600))
	b.ok(t, "config", "check", renamed, "--running")
	require.NotContains(t, b.stderr.String(), "pool old")
}

func TestASimulatedPoolIsRefusedByTheCheckAsByRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Run = func(context.Context, RunOptions) error { t.Error("it runs"); return nil }
	file := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(file, []byte("clusters: [{name: home, pools: [{name: w, provider: simulated, max: 1, cpu: 1, memory: 1Gi}]}]\n"), 0o600))
	const want = `clusters[0].pools[0].provider: is "simulated", which exists in the demo only, expected docker; or run with --dry-run`
	var said []string
	for _, args := range [][]string{{"config", "check", file}, {"run", "--config", file}} {
		require.Equal(t, ExitUsage, b.run(args...))
		require.Contains(t, b.stderr.String(), want)
		said = append(said, b.stderr.String())
	}
	require.Equal(t, said[0], said[1])
	require.Contains(t, b.ok(t, "config", "check", "--dry-run", file), "is valid")
}

func TestKeyNewWritesAFileAndPrintsNoSecret(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := filepath.Join(t.TempDir(), "api.token")
	out := b.ok(t, "key", "new", "--file", path)
	data, err := os.ReadFile(path) //nolint:gosec // a test file
	require.NoError(t, err)
	require.NotContains(t, out, strings.TrimSpace(string(data)))
	require.Equal(t, ExitFailure, b.run("key", "new", "--file", path))
	require.Contains(t, b.stderr.String(), "exists already")
}

func TestReferenceHasEveryCommand(t *testing.T) {
	t.Parallel()
	text := Reference()
	for _, c := range []string{"demo", "run", "scale up", "scale to", "cordon", "pool reset-backoff", "status", "explain", "events tail", "audit show", "dlq list", "shadow diff", "shadow promote", "config check", "key new", "completion", "version"} {
		require.Contains(t, text, "\n## k3s-autoscaler "+c+"\n")
	}
	require.Contains(t, text, "- `-o, --output`: table, json or yaml (default `table`)")
	require.Contains(t, text, "\n## k3s-autoscaler scale down\n")
}
