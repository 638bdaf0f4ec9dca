package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func TestActionsBecomeEvents(t *testing.T) {
	t.Parallel()
	two := t0.Add(2 * time.Hour)
	none := "asked for on the command line"
	for _, c := range []struct {
		args []string
		want events.Payload
	}{
		{[]string{"scale", "up", "--pool", "p", "--count", "2", "--reason", "load", "--for", "2h", "--override"}, events.ScaleRequested{Action: "up", Pool: "p", Count: 2, Actor: "ada", Reason: "load", HoldUntil: two, Override: true}},
		{[]string{"scale", "to", "--pool", "p", "--count", "1", "--reason", "load", "--for", "2h", "--within", "10m"}, events.ScaleRequested{Action: "to", Pool: "p", Count: 1, Actor: "ada", Reason: "load", HoldUntil: two, ExpiresAt: t0.Add(10 * time.Minute)}},
		{[]string{"scale", "down", "--pool", "p", "--count", "2", "--reason", "x", "--within", "2h"}, events.ScaleRequested{Action: "down", Pool: "p", Count: 2, Actor: "ada", Reason: "x", ExpiresAt: two}},
		{[]string{"scale", "down", "--pool", "p", "--count", "1", "--reason", "x"}, events.ScaleRequested{Action: "down", Pool: "p", Count: 1, Actor: "ada", Reason: "x"}},
		{[]string{"scale", "to", "--pool", "p", "--count", "0", "--reason", "x"}, events.ScaleRequested{Action: "to", Pool: "p", Actor: "ada", Reason: "x"}},
		{[]string{"drain", "pi4.lan"}, events.ScaleRequested{Action: "drain", Node: "pi4.lan", Actor: "ada", Reason: none}},
		{[]string{"remove", "n", "--reason", "old"}, events.ScaleRequested{Action: "remove", Node: "n", Actor: "ada", Reason: "old"}},
		{[]string{"cordon", "n"}, events.ScaleRequested{Action: "cordon", Node: "n", Actor: "ada", Reason: none}},
		{[]string{"uncordon", "n"}, events.ScaleRequested{Action: "uncordon", Node: "n", Actor: "ada", Reason: none}},
		{[]string{"pause", "p", "--for", "2h"}, events.PoolPaused{Pool: "p", Actor: "ada", Reason: none, Until: two}},
		{[]string{"resume", "p"}, events.PoolResumed{Pool: "p", Actor: "ada", Reason: none}},
		{[]string{"pool", "reset-backoff", "p"}, events.PoolBackoffReset{Pool: "p", Actor: "ada", Reason: none}},
	} {
		b := setup(t)
		out := b.ok(t, append(c.args, "--cluster", "home")...)
		require.Len(t, b.posted, 1)
		e := b.posted[0]
		require.NoError(t, events.Check(e), "%v", c.args)
		require.Equal(t, c.want.EventType(), e.Type())
		require.Equal(t, api.CLISource, e.Source())
		require.Equal(t, "home/_cluster", events.Extension(e, events.ExtPartitionKey))
		require.Equal(t, e.ID(), events.Extension(e, events.ExtCorrelationID))
		first, last, _ := strings.Cut(strings.TrimSuffix(out, "what comes of it: k3s-autoscaler explain "+e.ID()+"\n"), "\n")
		require.Equal(t, "accepted as "+e.ID(), first)
		require.Equal(t, map[time.Time]string{
			{}:                       "",
			two:                      map[string]string{"up": "pool p: 2 nodes more, kept until " + local(two) + " (2h left)\n", "down": "pool p: 2 nodes fewer, dropped if not met by " + local(two) + " (2h left)\n"}[c.args[1]],
			t0.Add(10 * time.Minute): "pool p: 1 node, kept until " + local(two) + " (2h left), dropped if not met by " + local(t0.Add(10*time.Minute)) + " (10m left)\n",
		}[saidUntil(c.want)], last)
		switch want := c.want.(type) {
		case events.ScaleRequested:
			got, err := events.Decode[events.ScaleRequested](e)
			require.NoError(t, err)
			require.Equal(t, want, got)
		case events.PoolPaused:
			got, err := events.Decode[events.PoolPaused](e)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
}

func local(at time.Time) string { return at.Local().Format("15:04:05") }

// saidUntil is the nearest time that the answer to a request names.
func saidUntil(p events.Payload) time.Time {
	r, ok := p.(events.ScaleRequested)
	switch {
	case !ok:
		return time.Time{}
	case !r.ExpiresAt.IsZero():
		return r.ExpiresAt
	}
	return r.HoldUntil
}

func TestDurationsOfARequestArePositive(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--for", "--within"} {
		for _, d := range []string{"0s", "-1h"} {
			b := setup(t)
			require.Equal(t, ExitUsage, b.run("scale", "up", "--pool", "p", "--count", "1", "--reason", "x", flag, d))
			require.Contains(t, b.stderr.String(), flag+": is ")
			require.Empty(t, b.posted)
		}
	}
	b := setup(t)
	require.Equal(t, ExitUsage, b.run("scale", "down", "--pool", "p", "--count", "1", "--reason", "x", "--for", "1h"), "nothing is kept of fewer nodes")
}

func TestARefusedActionSaysWhy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.refuse = 422
	require.Equal(t, ExitUsage, b.run("pause", "x"))
	require.Contains(t, b.stderr.String(), `body.data.pool: there is no pool "x"`)
	b.refuse = 503
	require.Equal(t, ExitFailure, b.run("drain", "n", "--wait"))
}

func TestWaitFollowsARequestToItsEnd(t *testing.T) {
	t.Parallel()
	decided := func(verdict string, change func(*events.Decision)) events.Decision {
		d := events.Decision{ID: "d", Pool: "p", Verdict: verdict, Reason: reason("Requested", "asked for by ada"), Requests: []string{"REQUEST"}, EvaluatedAt: t0}
		if change != nil {
			change(&d)
		}
		return d
	}
	node := func(n string, p events.Payload) api.Entry { return happened(t, events.Meta{Node: n}, p) }
	drain := func(n, goal, request string) api.Entry {
		return node(n, events.NodeDrainRequested{Node: n, ClaimID: "c", Goal: goal, RequestID: request, Reason: reason("Requested", "x"), NotAfter: t0, Deadline: 1})
	}
	ref := func(n, goal string) events.DrainRef {
		return events.DrainRef{Node: n, Goal: goal, RequestID: "r", At: t0}
	}
	up := []string{"scale", "up", "--pool", "p", "--count", "2", "--reason", "x", "--wait"}
	upDecided := happened(t, events.Meta{}, events.ScaleupDecided{Decision: decided("up", func(d *events.Decision) { d.Delta, d.Nodes = 2, []string{"n1", "n2"} })})
	other := happened(t, events.Meta{}, events.ScaleHeld{Decision: decided("held", func(d *events.Decision) { d.Requests = []string{"another"} })})
	for name, c := range map[string]struct {
		args   []string
		stream []api.Entry
		code   int
		says   string
	}{
		"both nodes are ready": {up, []api.Entry{other, node("nx", events.NodeReady{Node: "nx"}), upDecided, node("n1", events.NodeReady{Node: "n1"}),
			node("n1", events.NodeObserved{Node: "n1", What: "ready"}), node("n2", events.NodeCreated{Node: "n2"}), node("n2", events.NodeReady{Node: "n2"})}, 0, "done"},
		"one fails":              {up, []api.Entry{upDecided, node("n1", events.NodeFailed{Node: "n1", Failure: events.Failure{Reason: reason("Exited", "the agent exited")}})}, 1, "node n1 failed: the agent exited"},
		"one is lost":            {up, []api.Entry{upDecided, node("n1", events.NodeLost{Node: "n1", Reason: reason("Gone", "nobody knows")})}, 1, "node n1 is lost: nobody knows"},
		"it is refused":          {up, []api.Entry{happened(t, events.Meta{}, events.ScaleHeld{Decision: decided("held", func(d *events.Decision) { d.Overruled = []events.Reason{reason("AtMax", "the pool is at max")} })})}, 1, "held: the pool is at max"},
		"it is a dry run":        {up, []api.Entry{happened(t, events.Meta{DryRun: true}, events.ScaleupDecided{Decision: decided("up", func(d *events.Decision) { d.Nodes = []string{"n1"} })})}, 1, "this is a dry run"},
		"there is nothing to do": {[]string{"scale", "to", "--pool", "p", "--count", "1", "--reason", "x", "--wait"}, []api.Entry{happened(t, events.Meta{}, events.ScaleHeld{Decision: decided("held", nil)})}, 0, "done"},
		"a node is removed": {[]string{"remove", "n1", "--wait"}, []api.Entry{happened(t, events.Meta{}, events.ScaledownDecided{Decision: decided("down", func(d *events.Decision) { d.Delta, d.Nodes = -1, []string{"n1"} })}),
			drain("n1", "remove", "REQUEST"), node("n1", events.NodeDrained{DrainRef: ref("n1", "remove"), Reason: reason("x", "y")}), node("n1", events.NodeRemoved{Node: "n1", Reason: reason("x", "y")})}, 0, "done"},
		"a drain is undone": {[]string{"drain", "n1", "--wait"}, []api.Entry{happened(t, events.Meta{}, events.ScaleHeld{Decision: decided("held", nil)}), drain("n9", "drain", "another"), drain("n1", "drain", "REQUEST"),
			node("n1", events.NodeUncordoned{DrainRef: ref("n1", "drain"), Reason: reason("DrainDeadline", "pods would not go")})}, 1, "was uncordoned and stays: pods would not go"},
		"a node is drained":  {[]string{"drain", "n1", "--wait"}, []api.Entry{drain("n1", "drain", "REQUEST"), node("n1", events.NodeDrained{DrainRef: ref("n1", "drain"), Reason: reason("x", "y")})}, 0, "done"},
		"a node is cordoned": {[]string{"cordon", "n1", "--wait"}, []api.Entry{drain("n1", "cordon", "REQUEST"), node("n1", events.NodeCordoned{DrainRef: ref("n1", "cordon"), Reason: reason("x", "y")})}, 0, "done"},
		"it was cordoned already": {[]string{"cordon", "n1", "--wait"}, []api.Entry{happened(t, events.Meta{}, events.ScaleHeld{Decision: decided("held", func(d *events.Decision) {
			d.Rules = []events.RuleResult{{Rule: "request REQUEST", Message: "node n1 is cordoned already"}}
		})})}, 0, "done"},
		"a node is uncordoned": {[]string{"uncordon", "n1", "--wait"}, []api.Entry{node("n1", events.NodeDrainCancelled{Node: "n1", RequestID: "REQUEST", Reason: reason("x", "y")}),
			node("n1", events.NodeUncordoned{DrainRef: ref("n1", "cordon"), Reason: reason("Cancelled", "z")})}, 0, "done"},
		"nothing happens": {append(up, "--timeout", "3s"), nil, 1, "not done after 3s; the request stays: k3s-autoscaler explain "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.env["WAIT"], b.stream = "yes", c.stream
			require.Equal(t, c.code, b.run(c.args...), b.stdout.String()+b.stderr.String())
			require.Contains(t, b.stdout.String()+b.stderr.String(), c.says)
			require.Contains(t, b.stdout.String(), "accepted as ")
		})
	}
}

func TestTheConnectionSaysWhatToDo(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		change func(*testing.T, *testBundle)
		code   int
		says   []string
	}{
		"no token file":        {func(_ *testing.T, b *testBundle) { delete(b.env, "K3S_AUTOSCALER_TOKEN_FILE") }, 2, []string{"--token-file", "K3S_AUTOSCALER_TOKEN_FILE", "key new"}},
		"a missing token file": {func(_ *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_TOKEN_FILE"] = "/nowhere" }, 2, []string{"token file (from K3S_AUTOSCALER_TOKEN_FILE)", "no such file"}},
		"an empty token file": {func(t *testing.T, b *testBundle) {
			b.env["K3S_AUTOSCALER_TOKEN_FILE"] = write(t, "# nothing\n")
		}, 2, []string{"is empty"}},
		"another token": {func(t *testing.T, b *testBundle) {
			b.env["K3S_AUTOSCALER_TOKEN_FILE"] = write(t, "k3sas_aaaaaaaa_0123456789abcdef0123456789abcdef\n")
		}, 1, []string{"does not know the token of", "token.txt", "api.token_files"}},
		"no server":         {func(_ *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_SERVER"] = "127.0.0.1:1" }, 1, []string{"http://127.0.0.1:1 (from K3S_AUTOSCALER_SERVER) can't be reached", "connection refused", "api.listen"}},
		"no address":        {func(_ *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_SERVER"] = "ftp://x" }, 2, []string{"is no address"}},
		"a missing CA":      {func(_ *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_CA_FILE"] = "/nowhere" }, 2, []string{"certificate authority (from K3S_AUTOSCALER_CA_FILE)"}},
		"a CA that is none": {func(t *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_CA_FILE"] = write(t, "x") }, 2, []string{"holds no certificate"}},
		"a bad own configuration": {func(t *testing.T, b *testBundle) {
			require.NoError(t, os.WriteFile(filepath.Join(b.ConfigDir, "config.yaml"), []byte("sever: x\n"), 0o600))
		}, 2, []string{"config.yaml", "sever"}},
		"something else answers": {func(_ *testing.T, b *testBundle) { b.env["K3S_AUTOSCALER_SERVER"] += "/elsewhere" }, 1, []string{"Nothing of that name"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.answers["/v1/nodes"] = api.Page[api.Node]{}
			c.change(t, b)
			require.Equal(t, c.code, b.run("nodes"), b.stderr.String())
			for _, s := range c.says {
				require.Contains(t, b.stderr.String(), s)
			}
			require.NotContains(t, b.stderr.String(), "0123456789abcdef")
		})
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token.txt")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestTheServerIsFoundByFlagEnvironmentAndFile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/nodes"] = api.Page[api.Node]{}
	server, token := b.env["K3S_AUTOSCALER_SERVER"], b.env["K3S_AUTOSCALER_TOKEN_FILE"]
	b.env["K3S_AUTOSCALER_SERVER"], b.env["K3S_AUTOSCALER_TOKEN_FILE"] = "127.0.0.1:1", "/nowhere"
	b.ok(t, "nodes", "--server", server, "--token-file", token)
	delete(b.env, "K3S_AUTOSCALER_SERVER")
	delete(b.env, "K3S_AUTOSCALER_TOKEN_FILE")
	require.NoError(t, os.WriteFile(filepath.Join(b.ConfigDir, "config.yaml"), []byte("server: "+server+"\ntoken_file: token\n"), 0o600))
	b.ok(t, "nodes")
}

func TestAnotherServerIsRecognised(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/nodes"] = "no page"
	require.Equal(t, ExitFailure, b.run("nodes"))
	require.Contains(t, b.stderr.String(), "read the answer of")
}
