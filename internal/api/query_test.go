package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

func decided(id, pool string, change func(*events.Decision)) events.Decision {
	d := events.Decision{ID: id, Pool: pool, Verdict: events.VerdictHeld, Reason: events.Reason{Code: "NothingToDo", Message: "nothing proposes a change"},
		Size: 1, Max: 5, EvaluatedAt: t0, Policy: "p", StateBefore: "a", StateAfter: "b"}
	if change != nil {
		change(&d)
	}
	return d
}

// story fills the log with one alert, a scale-up for it and for a pod, and what
// happened to the node.
func story(t *testing.T) *testBundle {
	t.Helper()
	b := setup(t)
	b.clusters = []Cluster{{Name: "home", SnapshotAt: t0}, {Name: "work"}}
	b.pools = []Pool{{Cluster: "home", Name: "burst", Min: 0, Max: 5, Size: 2, Ready: 1}, {Cluster: "home", Name: "ci", Max: 1}}
	b.nodes = []Node{{Cluster: "home", Name: "burst-a", Pool: "burst", Phase: "failed", Since: t0, Failure: &events.Failure{Stage: "created", Reason: events.Reason{Code: "Exited", Message: "the agent exited"}}},
		{Cluster: "home", Name: "server", Ready: "True"}}
	b.pods["home/default/web"] = Pod{Cluster: "home", Namespace: "default", Name: "web", Phase: "Pending", UnschedulableSince: t0, Message: "0/1 nodes are available."}
	b.pods["home/default/runs"] = Pod{Cluster: "home", Namespace: "default", Name: "runs", Phase: "Running", Node: "server"}
	b.pods["home/default/held"] = Pod{Cluster: "home", Namespace: "default", Name: "held", Phase: "Pending", UnschedulableSince: t0}
	b.pods["home/default/new"] = Pod{Cluster: "home", Namespace: "default", Name: "new", Phase: "Pending"}
	alert := b.add(t, events.Meta{Publisher: "alerting"}, events.AlertReceived{Status: "firing", Fingerprint: "f00", StartsAt: t0, Labels: map[string]string{"alertname": "QueueBacklog"}, ReceivedAt: t0, ExpiresAt: t0.Add(time.Hour)})
	b.add(t, events.Meta{Publisher: "alerting"}, events.AlertReceived{Status: "firing", Fingerprint: "f01", StartsAt: t0, Labels: map[string]string{"alertname": "Lonely"}, ReceivedAt: t0, ExpiresAt: t0.Add(time.Hour)})
	b.add(t, events.Meta{}, events.ScaleHeld{Decision: decided("d-0", "burst", func(d *events.Decision) {
		d.Rejected = []events.Alternative{{Subject: "node burst-a", Reason: events.Reason{Code: "Unmanaged", Message: "pod x has no controller"}, Fix: "delete it"}, {Subject: "pod default/big", Reason: events.Reason{Code: "NoFit", Message: "needs 64 cores"}}}
	})})
	b.add(t, events.Meta{ID: "ev-1"}, events.ScaleupDecided{Decision: decided("d-1", "burst", func(d *events.Decision) {
		d.Verdict, d.Delta, d.Nodes, d.Inputs, d.Pods = events.VerdictUp, 1, []string{"burst-a"}, []string{alert.ID()}, []string{"default/web"}
		d.Reason = events.Reason{Code: "Alert", Message: "alert QueueBacklog fires."}
	})})
	b.add(t, events.Meta{Node: "burst-a", CorrelationID: "life", CausationID: "ev-1"}, events.NodeClaimed{ClaimID: "c", Node: "burst-a", Pool: "burst", Provider: "docker", DecisionID: "d-1",
		Reason: events.Reason{Code: "Alert", Message: "x"}, Size: events.Resources{CPUMilli: 1, MemoryBytes: 1}, NotAfter: t0, RegisterDeadline: events.Duration(time.Second)})
	b.add(t, events.Meta{Node: "burst-a", Publisher: "provisioning", CorrelationID: "life"}, events.NodeCreated{Node: "burst-a", Pool: "burst", ClaimID: "c", At: t0})
	b.add(t, events.Meta{Node: "burst-b", Publisher: "provisioning", CorrelationID: "other"}, events.NodeRemoved{Node: "burst-b", Pool: "burst", ClaimID: "c2", Reason: events.Reason{Code: "Unneeded", Message: "x"}, At: t0})
	b.add(t, events.Meta{Publisher: "api", ID: "req-1", CorrelationID: "req-1"}, events.ScaleRequested{Action: "down", Pool: "burst", Count: 1, Actor: "ada@k", Reason: "too many"})
	b.add(t, events.Meta{ID: "ev-2"}, events.ScaledownDecided{Decision: decided("d-2", "burst", func(d *events.Decision) {
		d.Verdict, d.Delta, d.Requests, d.Reason = events.VerdictDown, -2, []string{"req-1"}, events.Reason{Code: "Request", Message: "ada asked for it"}
	})})
	b.add(t, events.Meta{Publisher: "api", ID: "req-2", CorrelationID: "req-2"}, events.PoolPaused{Pool: "ci", Actor: "ada@k", Reason: "window"})
	b.add(t, events.Meta{Publisher: "collector"}, events.SnapshotCaptured{Epoch: 1, Digest: strings.Repeat("d", 2000), CapturedAt: t0})
	return b
}

func names[T any](p Page[T], name func(T) string) []string {
	out := []string{}
	for _, x := range p.Items {
		out = append(out, name(x))
	}
	return out
}

func TestListingsAreFiltered(t *testing.T) {
	t.Parallel()
	b := story(t)
	clusters := func(q string) []string {
		return names(get[Page[Cluster]](t, b, "/v1/clusters"+q), func(c Cluster) string { return c.Name })
	}
	require.Equal(t, []string{"home", "work"}, clusters(""))
	require.Equal(t, []string{"work"}, clusters("?cluster=work"))
	require.Empty(t, clusters("?cluster=none"))
	pools := func(q string) []string {
		return names(get[Page[Pool]](t, b, "/v1/pools"+q), func(p Pool) string { return p.Name })
	}
	require.Equal(t, []string{"burst", "ci"}, pools("?cluster=home"))
	require.Equal(t, []string{"ci"}, pools("?pool=ci"))
	nodes := func(q string) []string {
		return names(get[Page[Node]](t, b, "/v1/nodes"+q), func(n Node) string { return n.Name })
	}
	require.Equal(t, []string{"burst-a", "server"}, nodes(""))
	require.Equal(t, []string{"burst-a"}, nodes("?ours=true"))
	require.Equal(t, []string{"burst-a"}, nodes("?pool=burst"))
	decisions := func(q string) []string {
		return names(get[Page[DecisionRecord]](t, b, "/v1/decisions"+q), func(d DecisionRecord) string { return d.ID })
	}
	require.Equal(t, []string{"d-2", "d-1", "d-0"}, decisions(""))
	require.Equal(t, []string{"d-0", "d-1", "d-2"}, decisions("?order=oldest"))
	require.Equal(t, []string{"d-1"}, decisions("?verdict=up"))
	require.Equal(t, []string{"d-2"}, decisions("?verdict=down"))
	require.Equal(t, []string{"d-0"}, decisions("?verdict=held&pool=burst"))
	require.Empty(t, decisions("?pool=ci"))
	audits := func(q string) []string {
		return names(get[Page[AuditRecord]](t, b, "/v1/audit"+q), func(r AuditRecord) string { return short(r.Type) })
	}
	require.Equal(t, []string{"node.created", "node.claimed"}, audits("?node=burst-a"))
	require.Equal(t, []string{"node.removed", "node.created", "node.claimed"}, audits("?type=node.*"))
	require.Equal(t, []string{"node.claimed"}, audits("?type=node.claimed&type=scale.requested&correlation=life"))
	require.Equal(t, []string{"node.claimed"}, audits("?causation=ev-1"))
	require.Equal(t, []string{"node.created", "node.claimed"}, audits("?type=node.*&exclude=node.removed"))
	require.Len(t, audits("?exclude=snapshot.*&exclude=of-a-newer-client"), 10)
	require.Equal(t, []string{"pool.paused", "scale.requested"}, audits("?actor=ada@k"))
	require.Empty(t, audits("?until=2025-03-01T11:00:00Z"))
	require.Len(t, audits("?since=1h"), 11)
}

func TestPagesFollowEachOther(t *testing.T) {
	t.Parallel()
	b := story(t)
	var got []uint64
	next, pages := "", 0
	for {
		p := get[Page[AuditRecord]](t, b, "/v1/audit?limit=4&full=true&cursor="+url.QueryEscape(next))
		for _, r := range p.Items {
			got = append(got, r.Sequence)
			require.NotEmpty(t, r.Event)
		}
		pages++
		if next = p.Next; next == "" {
			break
		}
	}
	require.Equal(t, []uint64{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, got)
	require.Equal(t, 3, pages)

	got, next = nil, ""
	for {
		p := get[Page[Entry]](t, b, "/v1/events?since=1h&limit=4&cursor="+next)
		for _, x := range p.Items {
			got = append(got, x.Sequence)
		}
		if next = p.Next; next == "" {
			break
		}
	}
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, got)
}

func TestEventsWithoutABeginningAreTheNewest(t *testing.T) {
	t.Parallel()
	b := story(t)
	p := get[Page[Entry]](t, b, "/v1/events?limit=2")
	require.Equal(t, uint64(10), p.Items[0].Sequence)
	require.Empty(t, p.Next)
	require.True(t, p.Items[1].Truncated, "a snapshot's data is left out")
	require.Less(t, len(p.Items[1].Event), 1500)
	p = get[Page[Entry]](t, b, "/v1/events?limit=1&full=true&type=snapshot.captured")
	require.False(t, p.Items[0].Truncated)
	p = get[Page[Entry]](t, b, "/v1/events?limit=1&exclude=snapshot.*")
	require.Equal(t, uint64(10), p.Items[0].Sequence)
	p = get[Page[Entry]](t, b, "/v1/events?node=burst-a&cluster=home")
	require.Len(t, p.Items, 2)
	require.Empty(t, get[Page[Entry]](t, setup(t), "/v1/events").Items)
}

func TestTheLogIsReadFromAndUpToAPlace(t *testing.T) {
	t.Parallel()
	b := story(t)
	sequences := func(query string) (out []uint64) {
		for _, e := range get[Page[Entry]](t, b, "/v1/events?"+query).Items {
			require.Equal(t, "i", e.Incarnation)
			out = append(out, e.Sequence)
		}
		return out
	}
	require.Equal(t, []uint64{9, 10, 11}, sequences("since=9"))
	require.Equal(t, []uint64{3, 4}, sequences("since=3&until=4"))
	require.Equal(t, []uint64{2, 3}, sequences("since=2025-03-01T12:00:02Z&until=2025-03-01T12:00:04Z"))
	a := b.call("GET", "/v1/stream?follow=false&since=10&full=true", "")
	require.Equal(t, 200, a.Code)
	require.Regexp(t, `(?s)^: following\n\nid: 10\nevent: .*\n\nid: 11\nevent: .*\n\nevent: end\ndata: \{\}\n\n$`, a.Body.String())
	a = b.call("GET", "/v1/stream?follow=false&until=1", "")
	require.Equal(t, 1, strings.Count(a.Body.String(), "id: "))
}

func TestTheLogSaysHowFarItIsAudited(t *testing.T) {
	t.Parallel()
	b := story(t)
	info := get[LogInfo](t, b, "/v1/log")
	require.Equal(t, "i", info.Incarnation)
	require.Equal(t, uint64(11), info.Last)
	require.Equal(t, uint64(11), info.Audited.Sequence)
	require.Empty(t, get[Page[Gap]](t, b, "/v1/audit/gaps").Items)
	b.gaps = []audit.Gap{{Incarnation: "i", From: 3, To: 5, At: t0}}
	require.Equal(t, []Gap{{Incarnation: "i", From: 3, To: 5, At: t0}}, get[Page[Gap]](t, b, "/v1/audit/gaps").Items)
}

func TestAMessageThatIsNoEventIsToldAsTheAuditHasIt(t *testing.T) {
	t.Parallel()
	b := story(t)
	b.log[4].Event = events.Event{}
	b.bad = map[uint64]error{5: &bus.UndecodableError{Sequence: 5, Err: errors.New("no JSON")}}
	got := get[Page[Entry]](t, b, "/v1/events?since=5&until=5").Items
	require.Len(t, got, 1)
	require.Contains(t, string(got[0].Event), "no JSON")
	require.Contains(t, string(got[0].Event), events.TypeDeadletterRecorded)
}

func TestQueriesThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	b := story(t)
	for path, status := range map[string]int{
		"/v1/events?type=nope": 422, "/v1/events?type=node.ready&exclude=node.*": 422, "/v1/events?since=soon": 422, "/v1/events?cursor=x": 400, "/v1/events?node=A": 422, "/v1/events?cluster=A": 422,
		"/v1/events?limit=0": 422, "/v1/audit?type=nope": 422, "/v1/audit?since=x&until=y": 422, "/v1/audit?cursor=x": 400, "/v1/audit/none": 404,
		"/v1/decisions?verdict=maybe": 422, "/v1/decisions?since=x": 422, "/v1/audit?limit=5000": 422, "/v1/deadletters?handler=x": 422,
		"/v1/stream?type=nope": 422, "/v1/stream?since=x": 422, "/v1/stream?until=x": 422, "/v1/stream?follow=maybe": 422, "/v1/events?until=x": 422, "/v1/stream?colour=red": 422,
		"/v1/explain": 422, "/v1/explain?subject=nothing-1": 404, "/v1/explain?subject=planet/x": 422, "/v1/explain?subject=pod/x": 422,
		"/v1/explain?subject=pod/a/b": 404, "/v1/explain?subject=alert/None": 404, "/v1/explain?subject=node/nope": 404, "/v1/explain?subject=pool/nope": 404, "/v1/explain?subject=event/nope": 404,
	} {
		a := b.call("GET", path, "")
		require.Equal(t, status, a.Code, "%s: %s", path, a.Body.String())
		a.problem(t)
	}
	a := b.call("GET", "/v1/stream", "", "Last-Event-ID", "x")
	require.Equal(t, 400, a.Code)
}

func TestPortsThatFailAreProblems(t *testing.T) {
	t.Parallel()
	for err, status := range map[error]int{bus.ErrUnavailable: 503, errors.New("disk on fire"): 500} {
		b := story(t)
		b.fail = err
		for _, path := range []string{"/v1/clusters", "/v1/pools", "/v1/nodes", "/v1/decisions", "/v1/events", "/v1/audit", "/v1/audit/x", "/v1/deadletters", "/v1/stream", "/v1/log", "/v1/audit/gaps",
			"/v1/explain?subject=x", "/v1/explain?subject=pod/a/b", "/v1/explain?subject=alert/a", "/v1/explain?subject=node/a", "/v1/explain?subject=event/a"} {
			a := b.call("GET", path, "")
			require.Equal(t, status, a.Code, path)
			require.NotContains(t, a.problem(t)["detail"], "fire")
		}
	}
}

func TestOneAuditRecordAndDeadLettersAreShownWhole(t *testing.T) {
	t.Parallel()
	b := story(t)
	r := get[AuditRecord](t, b, "/v1/audit/req-1")
	require.Equal(t, "ada@k", r.Actor)
	require.Contains(t, string(r.Event), `"too many"`)
	b.dead = []bus.DeadLetter{{ID: "old", Handler: "decision", Reason: "x", At: t0, Key: b.log[0].Key, Event: b.log[0].Event}, {ID: "new", Handler: "draining", Reason: "y", At: t0.Add(1)}}
	p := get[Page[DeadLetter]](t, b, "/v1/deadletters")
	require.Equal(t, "new", p.Items[0].ID)
	require.Equal(t, "_cluster", p.Items[1].Key)
	require.Len(t, get[Page[DeadLetter]](t, b, "/v1/deadletters?handler=decision&cluster=home").Items, 1)
}

func TestExplanations(t *testing.T) {
	t.Parallel()
	b := story(t)
	cases := map[string]struct {
		kind, summary string
		decisions     []string
		timeline      int
	}{
		"burst":                        {KindPool, "Pool burst has 2 of 0 to 5 nodes, 1 ready. Decision: remove 2 nodes from pool burst, because ada asked for it.", []string{"d-2", "d-1", "d-0"}, 0},
		"pool/ci":                      {KindPool, "Pool ci has 0 of 0 to 1 nodes, 0 ready. Nothing has been decided about it yet.", nil, 0},
		"burst-a":                      {KindNode, "Node burst-a of pool burst is failed since 12:00:00. It failed: the agent exited.", []string{"d-1", "d-0"}, 2},
		"node/burst-b":                 {KindNode, "Node burst-b is gone; the last that happened to it was node.removed, because x.", nil, 1},
		"server":                       {KindNode, "Node server is not ours: it is capacity, and never cordoned, drained or removed by a decision.", nil, 0},
		"d-1":                          {KindDecision, "Decision: add 1 node to pool burst, because alert QueueBacklog fires.", []string{"d-1"}, 2},
		"ev-1":                         {KindDecision, "Decision: add 1 node to pool burst, because alert QueueBacklog fires.", []string{"d-1"}, 2},
		"decision/d-0":                 {KindDecision, "Decision: leave pool burst as it is, because nothing proposes a change.", []string{"d-0"}, 0},
		"req-1":                        {KindRequest, "scale.requested at 2025-03-01 12:00:08 by ada@k: too many. Decision: remove 2 nodes from pool burst, because ada asked for it.", []string{"d-2"}, 1},
		"req-2":                        {KindRequest, "pool.paused at 2025-03-01 12:00:10 by ada@k: window. No decision names it yet.", nil, 1},
		"pod/default/web":              {KindPod, "Pod default/web finds no node since 12:00:00. The scheduler says: 0/1 nodes are available. Decision: remove 2 nodes from pool burst, because ada asked for it.", []string{"d-2", "d-1"}, 0},
		"pod/default/held":             {KindPod, "Pod default/held finds no node since 12:00:00. Decision: remove 2 nodes from pool burst, because ada asked for it.", []string{"d-2"}, 0},
		"pod/default/runs":             {KindPod, "Pod default/runs runs on node server.", nil, 0},
		"pod/default/new":              {KindPod, "Pod default/new is pending; the scheduler has not said that it finds no node for it.", nil, 0},
		"pod/default/big":              {KindPod, "Pod default/big is gone. Decision: leave pool burst as it is, because nothing proposes a change.", []string{"d-0"}, 0},
		"alert/QueueBacklog":           {KindAlert, "Alert QueueBacklog is firing since 12:00:00; last received at 12:00:00. Decision: add 1 node to pool burst, because alert QueueBacklog fires.", []string{"d-1"}, 1},
		"alert/f01":                    {KindAlert, "Alert Lonely is firing since 12:00:00; last received at 12:00:00. No recent decision rests on it: does a rule of policy.alert_rules match its labels?", nil, 1},
		"event/" + b.log[5].Event.ID(): {KindEvent, "node.created at 2025-03-01 12:00:06.", nil, 2},
	}
	for subject, c := range cases {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()
			x := get[Explanation](t, b, "/v1/explain?subject="+url.QueryEscape(subject))
			require.Equal(t, c.kind, x.Kind)
			require.Equal(t, c.summary, x.Summary)
			require.Equal(t, "home", x.Cluster)
			var ids []string
			for _, d := range x.Decisions {
				ids = append(ids, d.ID)
			}
			require.Equal(t, c.decisions, ids)
			require.Len(t, x.Timeline, c.timeline)
		})
	}
}

func TestTheStreamFollowsAndContinues(t *testing.T) {
	t.Parallel()
	b := story(t)
	srv := httptest.NewServer(b.server.Handler())
	defer srv.Close()
	open := func(query, last string) (*bufio.Reader, func()) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/v1/stream"+query, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+b.key.Token)
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
		require.Equal(t, "text/event-stream", res.Header.Get("Content-Type"))
		return bufio.NewReader(res.Body), func() { cancel(); res.Body.Close() }
	}
	line := func(r *bufio.Reader) string {
		for {
			s, err := r.ReadString('\n')
			require.NoError(t, err)
			if s = strings.TrimSpace(s); s != "" && !strings.HasPrefix(s, ": following") {
				return s
			}
		}
	}
	now, stop := open("?type=pool.*", "")
	b.add(t, events.Meta{Publisher: "api"}, events.PoolResumed{Pool: "ci", Actor: "a", Reason: "r"})
	require.Equal(t, "id: 12", line(now))
	require.Equal(t, "event: pool.resumed", line(now))
	require.Contains(t, line(now), `data: {"sequence":12,"incarnation":"i","stream_time":"2025-03-01T12:00:12Z","event":{`)
	require.Eventually(t, b.clock.HasWaiters, time.Minute, time.Millisecond)
	b.clock.Step(15 * time.Second)
	require.Equal(t, ": alive", line(now))

	again, stopAgain := open("", "10")
	require.Equal(t, "id: 11", line(again))

	r, err := http.NewRequest(http.MethodGet, srv.URL+"/v1/stream", nil) //nolint:noctx // a test
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+b.key.Token)
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	text, _ := io.ReadAll(res.Body)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 503, res.StatusCode, "only so many at a time")
	require.Contains(t, string(text), "2 event streams")
	stopAgain()
	stop()

	require.Eventually(t, func() bool { return len(b.server.streams) == 0 }, time.Minute, time.Millisecond)
	since, stopSince := open("?since=2025-03-01T12:00:11Z&full=true", "")
	require.Equal(t, "id: 11", line(since))
	b.mu.Lock()
	b.fail = fmt.Errorf("no\nleader")
	b.mu.Unlock()
	for s := line(since); s != "event: error"; s = line(since) {
		b.mu.Lock()
		select {
		case <-b.changed:
		default:
			close(b.changed)
		}
		b.mu.Unlock()
	}
	require.Equal(t, "data: no leader", line(since))
	stopSince()
}

func TestADecisionThatCannotBeReadIsLeftOut(t *testing.T) {
	t.Parallel()
	_, ok := decisionRecord(audit.Record{Event: []byte("{")})
	require.False(t, ok)
}
