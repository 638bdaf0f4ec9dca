package api

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// letter is a dead letter of draining about a node that is parked.
func letter(t *testing.T, id string, age time.Duration, p events.Payload, mod ...func(*bus.DeadLetter)) bus.DeadLetter {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "decision", ID: "event-" + id, Time: t0}, p)
	require.NoError(t, err)
	dl := bus.DeadLetter{ID: id, Handler: events.HandlerDraining, Reason: "no", Attempts: 1, At: t0.Add(-age), Key: bus.Key{Cluster: "home", Name: "n1"}, Parked: true, Event: e}
	for _, f := range mod {
		f(&dl)
	}
	return dl
}

func ofCluster(t *testing.T, id string, p events.Payload) bus.DeadLetter {
	t.Helper()
	e, err := events.New(events.Meta{Cluster: "home", Publisher: "api", ID: "event-" + id, Time: t0}, p)
	require.NoError(t, err)
	return bus.DeadLetter{ID: id, Handler: events.HandlerDecision, Reason: "no", At: t0, Key: bus.Key{Cluster: "home", Name: events.ClusterKey}, Event: e}
}

func withLetters(t *testing.T) *testBundle {
	b := setup(t)
	cancel := events.NodeDrainCancelled{Node: "n1", RequestID: "r", Reason: events.Reason{Code: "Asked", Message: "m"}}
	b.dead = []bus.DeadLetter{
		letter(t, "aaaa1", 3*time.Hour, events.NodeObserved{Node: "n1", What: events.ObservedReady, At: t0}),
		letter(t, "aaaa2", 2*time.Hour, cancel),
		letter(t, "bbbb1", time.Minute, cancel, func(dl *bus.DeadLetter) {
			dl.Parked, dl.Event, dl.Undecodable, dl.Data = false, events.Event{}, "header ce-specversion: is missing", []byte("garb\xffage")
		}),
		ofCluster(t, "cccc1", events.PoolPaused{Pool: "burst", Actor: "ann", Reason: "r"}),
		ofCluster(t, "cccc2", events.PoolPaused{Pool: "burst", Actor: "ann", Reason: "r"}),
		ofCluster(t, "dddd1", events.SnapshotCaptured{Epoch: 1, Digest: "d", CapturedAt: t0}),
	}
	return b
}

func (b *testBundle) settle(t *testing.T, action, body string) answer {
	t.Helper()
	return b.call("POST", "/v1/deadletters/"+action, body, "Content-Type", "application/json")
}

func TestDeadLettersAreSelected(t *testing.T) {
	t.Parallel()
	b := withLetters(t)
	for path, want := range map[string]int{
		"": 6, "?node=n1": 3, "?node=_cluster": 3, "?handler=draining": 3, "?type=pool.paused": 2, "?older_than=1h": 2, "?newer_than=1h": 4,
		"?older_than=1h&type=node.observed": 1, "?cluster=away": 0,
	} {
		require.Len(t, get[Page[DeadLetter]](t, b, "/v1/deadletters"+path).Items, want, path)
	}
	require.Equal(t, http.StatusUnprocessableEntity, b.call("GET", "/v1/deadletters?older_than=x", "").Code)
	one := get[DeadLetter](t, b, "/v1/deadletters/bbbb")
	require.Equal(t, "bbbb1", one.ID)
	require.Equal(t, "it is no event: header ce-specversion: is missing", one.DropOnly)
	require.Equal(t, "garb\uFFFDage", one.Raw)
	require.Equal(t, "n1", one.Key)
	require.Contains(t, get[DeadLetter](t, b, "/v1/deadletters/dddd1").DropOnly, "later snapshots")
	require.Equal(t, http.StatusNotFound, b.call("GET", "/v1/deadletters/zzzz", "").Code)
	require.Equal(t, http.StatusUnprocessableEntity, b.call("GET", "/v1/deadletters/aaaa", "").Code, "two begin so")
}

func TestARedriveOfANodeAsksForAllOfItAndSaysSo(t *testing.T) {
	t.Parallel()
	b := withLetters(t)
	a := b.settle(t, "redrive", `{"ids":["aaaa2"],"reason":"fixed","actor":"ann","dry_run":true}`)
	require.Equal(t, http.StatusAccepted, a.Code, a.Body.String())
	require.Contains(t, a.Body.String(), "1 more than were named")
	require.Empty(t, b.log, "a dry run asks for nothing")
	b.settle(t, "redrive", `{"ids":["aaaa2"],"reason":"fixed","actor":"ann","key":"k1"}`)
	require.Len(t, b.log, 1)
	e := b.log[0].Event
	p, err := events.Decode[events.DeadletterRedriveRequested](e)
	require.NoError(t, err)
	require.Equal(t, bus.Key{Cluster: "home", Name: "n1"}, b.log[0].Key)
	require.Equal(t, "/k3s-autoscaler/home/api", e.Source())
	require.Equal(t, events.HandlerDraining, p.Handler)
	require.Equal(t, []string{"aaaa1", "aaaa2"}, p.DeadLetters)
	require.Regexp(t, "^ann@.", p.Actor, "the token's name is added")
	b.settle(t, "redrive", `{"ids":["aaaa2"],"reason":"fixed","actor":"ann","key":"k1"}`)
	require.Equal(t, e.ID(), b.log[1].Event.ID(), "the same key is the same request: the bus keeps one")
	b.settle(t, "redrive", `{"ids":["aaaa2"],"reason":"fixed"}`)
	require.NotEqual(t, e.ID(), b.log[2].Event.ID())
}

func TestARedriveOfAClusterAsksForWhatIsNamed(t *testing.T) {
	t.Parallel()
	b := withLetters(t)
	a := b.settle(t, "redrive", `{"handler":"decision","reason":"fixed"}`)
	require.Contains(t, a.Body.String(), "decision handles 2 events of cluster home again; dead letter dddd1 can only be dropped: later snapshots")
	p, err := events.Decode[events.DeadletterRedriveRequested](b.log[0].Event)
	require.NoError(t, err)
	require.Equal(t, []string{"cccc1", "cccc2"}, p.DeadLetters)
	for id, why := range map[string]string{"bbbb1": "it is no event", "dddd1": "later snapshots"} {
		a := b.settle(t, "redrive", `{"ids":["`+id+`"],"reason":"fixed"}`)
		if id == "bbbb1" {
			// The node has others that can be redriven, so that it is parked; this one alone can't.
			b.dead = b.dead[2:]
			a = b.settle(t, "redrive", `{"ids":["`+id+`"],"reason":"fixed"}`)
		}
		require.Equal(t, http.StatusUnprocessableEntity, a.Code, a.Body.String())
		require.Contains(t, a.problem(t)["detail"], why)
		require.Contains(t, a.problem(t)["detail"], "can only be dropped")
	}
}

func TestADropAsksForExactlyWhatIsNamed(t *testing.T) {
	t.Parallel()
	b := withLetters(t)
	a := b.settle(t, "drop", `{"ids":["aaaa1"],"reason":"no use"}`)
	require.Contains(t, a.Body.String(), "1 dead letter of the node left, and it does not act on the node until nothing is")
	require.Contains(t, a.Body.String(), "dlq redrive --handler draining --node n1")
	p, err := events.Decode[events.DeadletterDropRequested](b.log[0].Event)
	require.NoError(t, err)
	require.Equal(t, []string{"aaaa1"}, p.DeadLetters)
	a = b.settle(t, "drop", `{"node":"n1","reason":"no use","dry_run":true}`)
	require.Contains(t, a.Body.String(), "draining never handles 3 events of node n1; then it acts on the node again")
	a = b.settle(t, "drop", `{"all":true,"reason":"no use"}`)
	require.Equal(t, http.StatusAccepted, a.Code)
	require.Len(t, b.log, 3, "one request for each handler and key")
}

func TestWhatIsWrongWithARequestAboutDeadLettersIsSaid(t *testing.T) {
	t.Parallel()
	b := withLetters(t)
	for body, want := range map[string]string{
		`{"reason":"r"}`:                                      "Nothing is selected",
		`{"ids":["aaaa1"],"reason":" "}`:                      "reason is empty",
		`{"ids":["aaaa1"]}`:                                   "reason",
		`{"ids":["aaaa1"],"reason":"r","actor":"a@b"}`:        "must not hold '@'",
		`{"ids":["zzzz"],"reason":"r"}`:                       "no dead letter zzzz",
		`{"ids":["aaaa1"],"handler":"decision","reason":"r"}`: "not among those",
		`{"types":["nothing"],"reason":"r"}`:                  "no event type",
		`{"node":"n9","reason":"r"}`:                          "No dead letter matches",
		`{"node":"n1","older_than":"soon","reason":"r"}`:      "body.older_than",
		`{"nodes":"n1","reason":"r"}`:                         "nodes",
	} {
		for _, action := range []string{"redrive", "drop"} {
			a := b.settle(t, action, body)
			require.Contains(t, []int{http.StatusUnprocessableEntity, http.StatusNotFound}, a.Code, body)
			require.Contains(t, a.Body.String(), want, body)
		}
	}
	require.Empty(t, b.log)
	b.fail = bus.ErrUnavailable
	require.Equal(t, http.StatusServiceUnavailable, b.settle(t, "drop", `{"all":true,"reason":"r"}`).Code)
}

func TestAnEventFromOutsideCannotPoseAsACopy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.call("POST", "/v1/events", `{"specversion":"1.0","id":"1","source":"/x","type":"`+events.TypePoolPaused+`","redrive":"decision/1/1/1","data":{"pool":"burst","reason":"r"}}`, "Content-Type", "application/cloudevents+json")
	require.Equal(t, http.StatusUnprocessableEntity, a.Code)
	require.Contains(t, a.Body.String(), "redrive is set by the bus alone")
	for _, typ := range []string{events.TypeDeadletterDropRequested, events.TypeDeadletterRedriveRequested, events.TypeDeadletterRedriven} {
		a := b.call("POST", "/v1/events", `{"specversion":"1.0","id":"1","source":"/x","type":"`+typ+`","data":{}}`, "Content-Type", "application/cloudevents+json")
		require.Equal(t, http.StatusUnprocessableEntity, a.Code, typ)
	}
}

func TestAParkedNodeIsShown(t *testing.T) {
	t.Parallel()
	b := story(t)
	require.NotEmpty(t, b.nodes)
	n := b.nodes[0]
	b.parked = map[string][]bus.ParkedKey{events.HandlerDraining: {{Handler: events.HandlerDraining, Key: bus.Key{Cluster: n.Cluster, Name: n.Name}, DeadLetter: "aaaa1", Reason: "no such node", Since: t0}}}
	want := []Parked{{Handler: "draining", Node: n.Name, DeadLetter: "aaaa1", Reason: "no such node", Since: t0}}
	require.Equal(t, want, get[Page[Node]](t, b, "/v1/nodes").Items[0].Parked)
	require.Equal(t, want, get[Page[Cluster]](t, b, "/v1/clusters").Items[0].Parked)
	x := get[Explanation](t, b, "/v1/explain?subject=node/"+n.Name)
	require.Contains(t, x.Summary, "Draining does not act on it since 12:00:00, because it could not handle an event of it (no such node): redrive or drop dead letter aaaa1.")
	b.fail = errors.New("no bus")
	require.Equal(t, http.StatusInternalServerError, b.call("GET", "/v1/nodes", "").Code)
}

func TestAnExplanationOfANodeWithoutARecordSaysWhoDoesNotActOnIt(t *testing.T) {
	t.Parallel()
	b := story(t)
	dl := letter(t, "aaaa1", time.Hour, events.NodeObserved{Node: "n1", What: events.ObservedReady, At: t0})
	b.log = append(b.log, bus.Delivery{Event: dl.Event, Key: dl.Key, Sequence: 99, Incarnation: b.log[0].Incarnation, StreamTime: t0})
	b.parked = map[string][]bus.ParkedKey{events.HandlerDraining: {
		{Handler: events.HandlerDraining, Key: dl.Key, DeadLetter: "aaaa1", Reason: "no such goal", Since: t0},
		{Handler: events.HandlerDraining, Key: bus.Key{Cluster: "home", Name: "burst-b"}, DeadLetter: "bbbb1", Reason: "no such goal", Since: t0},
	}}
	for node, want := range map[string]string{
		"n1":      "Node n1 has no record; the last that happened to it was node.observed. Draining does not act on it since 12:00:00, because it could not handle an event of it (no such goal): redrive or drop dead letter aaaa1.",
		"burst-b": "Node burst-b is gone; the last that happened to it was node.removed, because x. Draining does not act on it since 12:00:00, because it could not handle an event of it (no such goal): redrive or drop dead letter bbbb1.",
	} {
		require.Equal(t, want, get[Explanation](t, b, "/v1/explain?subject="+node).Summary)
	}
}
