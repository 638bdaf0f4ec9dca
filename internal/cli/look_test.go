package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func reason(code, message string) events.Reason { return events.Reason{Code: code, Message: message} }

func TestStatus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/clusters"] = api.Page[api.Cluster]{Items: []api.Cluster{
		{Name: "home", ServerVersion: "v1.34.4+k3s1", Nodes: 3, ReadyNodes: 3, Pods: 12, PendingPods: 2, SnapshotAt: t0.Add(-2 * time.Second), StaleAfter: "1m", GraceUntil: t0.Add(7 * time.Minute), Removals: &api.Removals{Count: 1, Limit: 2, Until: t0.Add(20 * time.Minute)}},
		{Name: "lab", Removals: &api.Removals{Limit: 1}, Nodes: 1, Pods: 1, SnapshotAt: t0.Add(-3 * time.Hour), Stale: true, StaleAfter: "1m", DryRun: true},
		{Name: "new", Stale: true, Problem: "no snapshot yet: does the collector reach the cluster?"},
	}}
	b.answers["/v1/pools"] = api.Page[api.Pool]{Items: []api.Pool{
		{Cluster: "home", Name: "burst", Min: 2, Max: 5, Schedules: []string{"min is 2 until 18:00 Europe/Berlin (schedule office-hours)"}, Holds: []api.Hold{{RequestID: "r", Nodes: 2, Until: t0.Add(2 * time.Hour), Actor: "ada@k", Reason: "load test"}, {RequestID: "q", Nodes: 1, Whole: true, Until: t0.Add(time.Hour), Actor: "bob@k", Reason: "demo"}}, Size: 2, Ready: 1, Claims: 1, Last: &api.DecisionLine{Verdict: "up", Delta: 1, Reason: reason("UnschedulablePods", "2 pods find no node and fit 1 new node"), At: t0.Add(-12 * time.Second)}},
		{Cluster: "home", Name: "ci", Min: 1, Max: 3, Size: 0, Leaving: 1, Backoff: &api.Backoff{Until: t0.Add(90 * time.Second), Failures: 2},
			Flaps: &api.Flaps{Count: 3, Limit: 3, Within: "10m", Freeze: "1h", FrozenUntil: t0.Add(50 * time.Minute)}, Guards: []events.GuardResult{
				{Guard: "backoff", Value: "1m", Message: "pool ci backs off for 1m after 2 failed attempts in a row: no image", Until: t0.Add(90 * time.Second), Lifts: "by itself, or when the backoff of the pool is reset"},
				{Guard: "min", Value: "0 of 1", Message: "pool ci keeps 0 nodes Ready, its minimum is 1", Lifts: "when min is lowered or the pool grows"}}, Last: &api.DecisionLine{Verdict: "held", Reason: reason("Backoff", "the last 2 nodes failed"), At: t0.Add(-5 * time.Hour)}},
		{Cluster: "home", Name: "old", Unknown: true, Size: 2, Ready: 2},
		{Cluster: "lab", Name: "gpu", Max: 1, Size: 1, Ready: 1, Metrics: []api.Metric{
			{Rule: "frames", Source: "query sum(frames)", Value: new(48.25), MeasuredAt: t0.Add(-12 * time.Second), Nodes: new(2), Verdict: "up"},
			{Rule: "jobs", Source: "signal jobs", Unknown: "nobody has pushed signal jobs yet", Verdict: "unknown"},
			{Rule: "load", Source: "cpu-usage", Value: new(0.5), MeasuredAt: t0.Add(-time.Hour), Unknown: "its last value is older than 1m", Verdict: "unknown"},
		}, Pause: &api.Pause{Actor: "ada@k", Reason: "maintenance", Until: t0.Add(2 * time.Hour)}},
	}}
	golden(t, "status", b.ok(t, "status"))
	require.Contains(t, b.ok(t, "status", "-o", "yaml"), "server_version: v1.34.4+k3s1")
	var v overview
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "status", "-o", "json", "--cluster", "home")), &v))
	require.Len(t, v.Pools, 4)
	require.Contains(t, b.asked, "/v1/pools?cluster=home")
	b.answers["/v1/clusters"] = api.Page[api.Cluster]{}
	require.Equal(t, ExitFailure, b.run("status", "--cluster", "nope"))
}

func TestNodes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/nodes"] = api.Page[api.Node]{Items: []api.Node{
		{Name: "burst-0a1b2c3d4e", Pool: "burst", Phase: "ready", Ready: "True", Pods: 4, CPURequested: .62, MemRequested: .3, CreatedAt: t0.Add(-40 * time.Minute),
			Position: &api.Position{Phase: "draining", Since: t0.Add(-40 * time.Second), Until: t0.Add(80 * time.Second), Next: "3 pods leave, then it is removed",
				Retry: &api.Retry{Of: "evict", Attempt: 2, NextAt: t0.Add(2 * time.Second)}},
			Drain: &events.DrainRecord{Goal: "remove", Phase: "draining", Deadline: t0.Add(80 * time.Second), Blockers: []events.Blocker{{Kind: "PodDisruptionBudget", Name: "web/web"}}}},
		{Name: "burst-5f6g7h8i9j", Pool: "burst", Phase: "created", CreatedAt: t0.Add(-20 * time.Second), Deadline: t0.Add(100 * time.Second),
			Position: &api.Position{Phase: "created", Since: t0.Add(-18 * time.Second), Until: t0.Add(100 * time.Second), Next: "it registers with the API server"}},
		{Name: "burst-5z6g7h8i9j", Pool: "burst", Phase: "claimed", Since: t0.Add(-30 * time.Second), CreatedAt: t0.Add(-30 * time.Second), Deadline: t0.Add(90 * time.Second),
			Position: &api.Position{Phase: "claimed", Since: t0.Add(-30 * time.Second), Until: t0.Add(90 * time.Second), Next: "its machine is created and started",
				Retry: &api.Retry{Of: "create the machine", Attempt: 3, Error: "no space left on device", NextAt: t0.Add(4 * time.Second)}}},
		{Name: "burst-without-records", Pool: "burst", Phase: "registered", CreatedAt: t0.Add(-20 * time.Second), Deadline: t0.Add(100 * time.Second)},
		{Name: "burst-6g7h8i9j0k", Pool: "burst", Phase: "ready", Ready: "True", Pods: 2, CreatedAt: t0.Add(-3 * time.Hour), Unschedulable: true,
			Drain: &events.DrainRecord{Goal: "remove", Phase: "finishing", Deadline: t0.Add(50 * time.Minute), WaitingFor: []string{"ci/build-1", "ci/build-2"}}},
		{Name: "burst-old", Pool: "burst", Phase: "failed", CreatedAt: t0.Add(-time.Hour), Failure: &events.Failure{Reason: reason("Exited", "the agent exited with code 1")}},
		{Name: "server-0", Ready: "True", Pods: 9, CPURequested: 1.02, CreatedAt: t0.Add(-90 * 24 * time.Hour), Unschedulable: true},
	}}
	golden(t, "nodes", b.ok(t, "nodes"))
	golden(t, "nodes-all", b.ok(t, "nodes", "--all", "--pool", "burst"))
	require.Contains(t, b.ok(t, "nodes", "-o", "json"), `"phase": "created"`)
	b.answers["/v1/nodes"] = api.Page[api.Node]{}
	require.Equal(t, "no nodes\n", b.ok(t, "nodes"))
	require.Equal(t, "[]\n", b.ok(t, "nodes", "-o", "json"))
}

func decision() api.DecisionRecord {
	return api.DecisionRecord{EventID: "ev-2", Cluster: "home", StreamTime: t0.Add(-3 * time.Minute), Decision: events.Decision{
		ID: "7s1qk2", Pool: "burst", Verdict: "held", Reason: reason("Cooldown", "a node was added 4 minutes ago, and removals wait 10 minutes after that"), Size: 2, Max: 5,
		Rules: []events.RuleResult{
			{Rule: "utilization of burst-0a1b2c3d4e", Kind: "utilization", Value: "12%", Threshold: "50%", Verdict: "down", Delta: -1, Message: "unneeded for 6m"},
			{Rule: "queue-backlog", Kind: "alert", Value: "resolved", Threshold: "firing", Verdict: "none"},
		},
		Guards:      []events.GuardResult{{Guard: "after add", Value: "10m", Message: "a node was added at 11:53", Until: t0.Add(6 * time.Minute)}, {Guard: "pause", Message: "ada paused the pool", Lifts: "when it is resumed"}},
		Overruled:   []events.Reason{reason("Unneeded", "burst-0a1b2c3d4e is not needed")},
		Rejected:    []events.Alternative{{Subject: "burst-5f6g7h8i9j", Reason: reason("Unmanaged", "pod default/lonely has no controller and would be lost for good if its node went away"), Fix: "delete the pod, or let a Deployment run it"}},
		WouldChange: []string{"after 12:06:00 the node would be removed"},
		Pods:        []string{"default/a", "default/b", "default/c", "default/d", "default/e", "default/f"}, PodCount: 60,
	}}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := api.Explanation{Subject: "burst", Kind: "pool", Cluster: "home", Summary: "Pool burst has 2 of 0 to 5 nodes, 2 ready. Decision: leave pool burst as it is, because a node was added 4 minutes ago.",
		Pool: &api.Pool{Name: "burst", Max: 5, Size: 2, Flaps: &api.Flaps{Count: 1, Limit: 3, Within: "10m", Freeze: "1h"}, Guards: []events.GuardResult{{Guard: "pause", Value: "paused by ada@k", Message: "pool burst is paused by ada@k: maintenance", Lifts: "when the pool is resumed"}}, Pause: &api.Pause{Actor: "ada@k", Reason: "maintenance"}}, Decisions: []api.DecisionRecord{decision()}}
	up := decision()
	up.ID, up.Verdict, up.Delta, up.Nodes, up.Actor, up.DryRun, up.StreamTime, up.Reason = "older", "up", 2, []string{"n1", "n2"}, "ada@k", true, t0.Add(-time.Hour), reason("Requested", "ada asked")
	x.Decisions = append(x.Decisions, up)
	b.answers["/v1/explain"] = x
	golden(t, "explain-pool", b.ok(t, "explain", "burst"))
	require.Contains(t, b.asked, "/v1/explain?subject=burst")

	b.answers["/v1/explain"] = api.Explanation{Subject: "node/burst-0a1b2c3d4e", Kind: "node", Cluster: "home", Summary: "Node burst-0a1b2c3d4e of pool burst is ready since 11:20:00.",
		Node: &api.Node{Unschedulable: true, Position: &api.Position{Phase: "cordoned", Since: t0.Add(-time.Minute), Next: "it stays cordoned until somebody uncordons it or asks for more"}},
		Life: []api.LifeStage{{Name: "claimed", At: t0.Add(-40 * time.Minute), Why: "ada@k: load test"}, {Name: "created", At: t0.Add(-40*time.Minute + 250*time.Millisecond), Seconds: .25},
			{Name: "ready", At: t0.Add(-39 * time.Minute), Seconds: 59.75}},
		Timeline: []api.AuditRecord{
			{StreamTime: t0.Add(-40 * time.Minute), Type: events.TypeNodeClaimed, Key: "burst-0a1b2c3d4e", Actor: "ada@k", Reason: "Requested", Message: "scale up, asked for by ada: load test"},
			{StreamTime: t0.Add(-39 * time.Minute), Type: events.TypeNodeReady, Key: "burst-0a1b2c3d4e"},
			{StreamTime: t0.Add(-39 * time.Minute), Type: events.TypeScaleRequested, Key: "_cluster", Actor: "ada@k", Reason: "load test"},
		}}
	golden(t, "explain-node", b.ok(t, "explain", "node/burst-0a1b2c3d4e"))

	alert := entries(t)[0]
	b.answers["/v1/explain"] = api.Explanation{Subject: "alert/QueueBacklog", Kind: "alert", Summary: "It fires.", Timeline: []api.AuditRecord{{Type: events.TypeAlertReceived, Key: "_cluster", StreamTime: t0, Event: alert.Event}}}
	require.Contains(t, b.ok(t, "explain", "alert/QueueBacklog"), "firing QueueBacklog")
	b.answers["/v1/explain"] = api.Explanation{Subject: "older", Kind: "decision", Cluster: "home", Summary: "Decision: add 2 nodes.", Decisions: []api.DecisionRecord{up}}
	golden(t, "explain-decision", b.ok(t, "explain", "older"))
	b.answers["/v1/explain"] = api.Explanation{Subject: "pod/default/web", Kind: "pod", Summary: "Pod default/web finds no node.", Pod: &api.Pod{Requests: events.Resources{CPUMilli: 1500, MemoryBytes: 1 << 30}}}
	require.Contains(t, b.ok(t, "explain", "pod/default/web"), "It asks for 1.5 CPU and 1024 MiB of memory.")
	require.Contains(t, b.ok(t, "explain", "pod/default/web", "-o", "json"), `"cpu_milli": 1500`)
}

// happened is an event of the log.
func happened(t *testing.T, m events.Meta, p events.Payload) api.Entry {
	t.Helper()
	m.Cluster, m.Publisher, m.ID, m.Time = "home", "test", events.ID(p.EventType(), m.Node), t0
	e, err := events.New(m, p)
	require.NoError(t, err)
	raw, err := e.MarshalJSON()
	require.NoError(t, err)
	return api.Entry{Sequence: 7, StreamTime: t0.Add(7 * time.Second), Event: raw}
}

func entries(t *testing.T) []api.Entry {
	t.Helper()
	remaining := events.DrainRef{Node: "n1", Goal: "remove", RequestID: "r", At: t0}
	return []api.Entry{
		happened(t, events.Meta{}, events.AlertReceived{Status: "firing", Fingerprint: "f", StartsAt: t0, ReceivedAt: t0, ExpiresAt: t0, Labels: map[string]string{"alertname": "QueueBacklog"}}),
		happened(t, events.Meta{}, events.ScaleRequested{Action: "up", Pool: "burst", Count: 2, Actor: "ada@k", Reason: "load test"}),
		happened(t, events.Meta{DryRun: true}, events.ScaleupDecided{Decision: events.Decision{ID: "d", Pool: "burst", Verdict: "up", Delta: 2, Reason: reason("Requested", "ada asked"), EvaluatedAt: t0}}),
		happened(t, events.Meta{Node: "n1"}, events.NodeReady{Node: "n1", Pool: "burst", At: t0}),
		happened(t, events.Meta{Node: "n1"}, events.NodeFailed{Node: "n1", Pool: "burst", Failure: events.Failure{Reason: reason("Exited", "the agent exited")}}),
		happened(t, events.Meta{Node: "n1"}, events.NodeDrainProgressed{DrainRef: remaining, Evicted: []string{"a/b"}, Remaining: 3}),
		happened(t, events.Meta{Node: "n1"}, events.NodeDrainBlocked{DrainRef: remaining, Blockers: []events.Blocker{{Kind: "PodDisruptionBudget", Name: "web/web", Message: "allows no disruption"}}}),
		happened(t, events.Meta{Node: "n2"}, events.NodeCordoned{DrainRef: remaining, Reason: reason("Unneeded", "nobody needs it"), Foreseen: []events.Blocker{{Kind: "PodDisruptionBudget", Name: "web/web", Pod: "web/web-0"}}}),
		happened(t, events.Meta{Node: "n3"}, events.NodeDrainProgressed{DrainRef: remaining, Evicted: []string{}, Remaining: 1, ForcingUntil: t0}),
		happened(t, events.Meta{Node: "n4"}, events.NodeDrained{DrainRef: remaining, Reason: reason("Unneeded", "nobody needs it"), Forced: []events.ForcedPod{{Pod: "a/b", Reason: reason("UnmanagedPod", "it has no controller")}}}),
		happened(t, events.Meta{}, events.SnapshotCaptured{Epoch: 1, Digest: "d", CapturedAt: t0}),
		{Sequence: 8, StreamTime: t0, Event: json.RawMessage(`{"specversion":"9"}`)},
	}
}

func TestEventsListAndTail(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/events"] = api.Page[api.Entry]{Items: entries(t)}
	golden(t, "events", b.ok(t, "events", "list", "--type", "node.*", "--type", "alert.received", "--node", "n1", "--since", "1h", "--full"))
	require.Contains(t, b.asked[0], "type=node.%2A&type=alert.received")
	require.NotContains(t, b.asked[0], "exclude", "what is named is shown")
	b.answers["/v1/events"] = api.Page[api.Entry]{}
	b.ok(t, "events", "list", "--all")
	require.NotContains(t, b.asked[1], "exclude")
	b.ok(t, "events", "list")
	require.Contains(t, b.asked[2], "exclude=snapshot.%2A&exclude=decision.checkpointed", "without end, and of little interest")
	require.Equal(t, "no events\n", b.ok(t, "events", "list"))

	for format, want := range map[string]string{"table": "12:00:07  node.ready", "json": `{"sequence":7,`, "yaml": "---\n"} {
		b.stream = entries(t)
		ctx, cancel := context.WithCancel(context.Background())
		b.stdout.Reset()
		b.Stdout = &cancelAfter{b: b, n: len(b.stream), cancel: cancel}
		require.Equal(t, ExitOK, Execute(ctx, b.Options, []string{"events", "tail", "--since", "1h", "-o", format}), b.stderr.String())
		require.Contains(t, b.stdout.String(), want)
		b.Stdout = &b.stdout
		cancel()
	}
}

// cancelAfter ends the command once so many events were printed.
type cancelAfter struct {
	b      *testBundle
	n      int
	cancel func()
}

func (c *cancelAfter) Write(p []byte) (int, error) {
	if c.n--; c.n == 0 {
		c.cancel()
	}
	return c.b.stdout.Write(p)
}

func TestAuditAndPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	record := api.AuditRecord{ID: "id1", Type: events.TypeScaleRequested, Cluster: "home", Key: "_cluster", Pool: "burst", Actor: "ada@k", Reason: "load test", StreamTime: t0, Sequence: 3, Incarnation: "inc", Source: "/k3s-autoscaler/cli",
		CorrelationID: "c", Event: json.RawMessage(`{"data":{"pool":"burst","count":2}}`)}
	node := api.AuditRecord{ID: "id2", Type: events.TypeNodeFailed, Cluster: "home", Key: "n1", Pool: "burst", Reason: "Exited", Message: "the agent exited", StreamTime: t0}
	b.answers["/v1/audit"] = func(r *http.Request) any {
		if r.URL.Query().Get("cursor") == "more" {
			return api.Page[api.AuditRecord]{Items: []api.AuditRecord{node}}
		}
		return api.Page[api.AuditRecord]{Items: []api.AuditRecord{record}, Next: "more"}
	}
	b.answers["/v1/audit/id1"] = record
	golden(t, "audit", b.ok(t, "audit", "list", "--actor", "ada", "--type", "node.failed", "--oldest-first"))
	require.Contains(t, b.asked[0], "order=oldest")
	require.Contains(t, b.ok(t, "audit", "list", "--limit", "1", "-o", "json"), `"id1"`)
	golden(t, "audit-show", b.ok(t, "audit", "show", "id1"))
	require.Equal(t, ExitFailure, b.run("audit", "show", "none"))
	b.answers["/v1/audit"] = api.Page[api.AuditRecord]{}
	require.Equal(t, "nothing recorded that matches\n", b.ok(t, "audit", "list"))
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/deadletters"] = api.Page[api.DeadLetter]{Items: []api.DeadLetter{
		{ID: "dl1", Handler: "draining", Reason: "cordon node n1: forbidden\nstack", Attempts: 5, At: t0.Add(-time.Minute), Sequence: 9, Parked: true, Type: events.TypeNodeDrainRequested, Cluster: "home", Key: "n1",
			Stack: "a.go:1\nb.go:2", Event: json.RawMessage(`{"data":{"node":"n1"}}`)},
		{ID: "dl2", Handler: "decision", Reason: "x", Attempts: 1, At: t0, Type: events.TypeAlertReceived, Cluster: "home", Key: "_cluster"},
	}}
	golden(t, "dlq", b.ok(t, "dlq", "list", "--handler", "draining", "--type", "node.*", "--older-than", "1h"))
	require.Equal(t, "/v1/deadletters?handler=draining&older_than=1h&type=node.%2A", b.asked[0])
	items := b.answers["/v1/deadletters"].(api.Page[api.DeadLetter]).Items
	b.answers["/v1/deadletters/dl1"], b.answers["/v1/deadletters/dl2"] = items[0], items[1]
	golden(t, "dlq-show", b.ok(t, "dlq", "show", "dl1"))
	require.Contains(t, b.ok(t, "dlq", "show", "dl2", "-o", "yaml"), "handler: decision")
	b.answers["/v1/deadletters/dl3"] = api.DeadLetter{ID: "dl3", Handler: "draining", Reason: "message 7 is no event", At: t0, Sequence: 9, Origin: 7, Cluster: "home", Key: "n1",
		DropOnly: "it is no event: header ce-specversion: is missing", Raw: "garbage"}
	golden(t, "dlq-show-garbage", b.ok(t, "dlq", "show", "dl3"))
	require.Equal(t, ExitFailure, b.run("dlq", "show", "none"))
	b.answers["/v1/deadletters"] = api.Page[api.DeadLetter]{}
	require.Equal(t, "no dead letters\n", b.ok(t, "dlq", "list"))
}

func TestDeadLettersAreRedrivenAndDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/deadletters/redrive"] = api.LetterPlan{Action: "redrive", Steps: []api.LetterStep{
		{Handler: "draining", Cluster: "home", Key: "n1", DeadLetters: []string{"a", "b"}, RequestID: "r1",
			Effect: "draining handles 2 events of node n1 again, in order (1 more than were named: the events of a node keep their order); then it acts on the node again"},
		{Handler: "decision", Cluster: "home", Key: "_cluster", DeadLetters: []string{"c"}, Problem: "dead letter c can only be dropped: it is no event"}}}
	golden(t, "dlq-redrive", b.ok(t, "dlq", "redrive", "a", "c", "--reason", "token renewed"))
	require.Equal(t, []string{"a", "c"}, b.letters[0].IDs)
	require.Equal(t, "token renewed", b.letters[0].Reason)
	require.Equal(t, "ada", b.letters[0].Actor)
	require.NotEmpty(t, b.letters[0].Key)
	b.answers["/v1/deadletters/drop"] = api.LetterPlan{Action: "drop", DryRun: true, Steps: []api.LetterStep{
		{Handler: "draining", Cluster: "home", Key: "n1", DeadLetters: []string{"a"}, Effect: "draining never handles 1 event of node n1; then it acts on the node again"}}}
	golden(t, "dlq-drop", b.ok(t, "dlq", "drop", "--node", "n1", "--dry-run"))
	require.True(t, b.letters[1].DryRun)
	require.Equal(t, "n1", b.letters[1].Node)
	require.Contains(t, b.ok(t, "dlq", "drop", "--all", "--yes", "-o", "json"), `"dead_letters"`)
	require.True(t, b.letters[2].All)
	for want, args := range map[string][]string{
		"nothing is selected":          {"dlq", "redrive"},
		"repeat it with --yes":         {"dlq", "drop", "--node", "n1"},
		"leave out ids and filters":    {"dlq", "redrive", "a", "--all"},
		"expected table, json or yaml": {"dlq", "drop", "a", "-o", "xml"},
		"unknown flag: --yes":          {"dlq", "redrive", "a", "--yes"},
	} {
		require.Equal(t, ExitUsage, b.run(args...), want)
		require.Contains(t, b.stderr.String(), want)
	}
	require.Len(t, b.letters, 3, "what is wrong is not sent")
}

func TestSpansAreShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 90 * time.Second: "1m30s", 20 * time.Minute: "20m", time.Hour: "1h", 90 * time.Minute: "1h30m",
		20 * time.Hour: "20h", 72 * time.Hour: "3d", -time.Second: "1s",
	} {
		require.Equal(t, want, span(d))
	}
	b := setup(t)
	a := &app{Options: &b.Options}
	require.Equal(t, "until 11:59:00", a.until(t0.Add(-time.Minute)))
	require.Equal(t, "until Mar 2 12:00 (24h left)", a.until(t0.Add(24*time.Hour)))
	require.Equal(t, "-", a.age(time.Time{}))
}

func TestDeadLettersThatAreLeftAreNotCalledPods(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answers["/v1/events"] = api.Page[api.Entry]{Items: []api.Entry{happened(t, events.Meta{Node: "n1"},
		events.DeadletterDropped{Handler: "draining", RequestID: "r", Actor: "ada@k", Reason: "no use", Letters: []events.LetterNote{{DeadLetter: "dl1"}}, Remaining: 2})}}
	require.Contains(t, b.ok(t, "events", "list"), "2 dead letters left · ada@k: no use")
}
