package view

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

var t0 = time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)

type fakeAudit struct {
	api.Audit
	records []audit.Record
	err     error
}

func (f *fakeAudit) List(context.Context, audit.Query) ([]audit.Record, error) {
	return f.records, f.err
}
func (f *fakeAudit) Get(context.Context, string) (audit.Record, error) {
	return audit.Record{}, audit.ErrNotFound
}

func objects() events.SnapshotObjects {
	node := func(name, pool string) events.SnapshotNode {
		n := events.SnapshotNode{Name: name, UID: name, CreatedAt: t0, Ready: "True", Allocatable: events.Resources{CPUMilli: 1000, MemoryBytes: 1000}}
		if pool != "" {
			n.Labels = map[string]string{events.LabelPool: pool, events.LabelClaim: "c-" + name}
		}
		return n
	}
	rec := func(name, phase string, drain *events.DrainRecord) events.NodeRecord {
		return events.NodeRecord{Name: name, Pool: "burst", ClaimID: "c-" + name, Phase: phase, Since: t0, ClaimedAt: t0, Drain: drain}
	}
	return events.SnapshotObjects{
		Nodes:   []events.SnapshotNode{node("server", ""), node("burst-a", "burst"), node("burst-b", "burst"), {Name: "sick", UID: "s", Ready: "Unknown"}},
		Classes: []events.PodClass{{ID: "k", Namespace: "default", Requests: events.Resources{CPUMilli: 250, MemoryBytes: 100}}},
		Pods: []events.SnapshotPod{
			{Namespace: "default", Name: "p1", UID: "1", Class: "k", Node: "burst-a", Phase: "Running"},
			{Namespace: "default", Name: "p2", UID: "2", Class: "k", Node: "burst-a", Phase: "Running"},
			{Namespace: "default", Name: "p3", UID: "3", Class: "k", Phase: "Pending", UnschedulableSince: t0, UnschedulableMessage: "no"},
			{Namespace: "default", Name: "p4", UID: "4", Class: "k", Node: "burst-a", Phase: "Succeeded"},
		},
		Records: []events.NodeRecord{
			rec("burst-a", "ready", nil), rec("burst-b", "ready", &events.DrainRecord{Goal: "remove", Phase: "draining", Since: t0, RequestID: "r"}),
			rec("burst-c", "created", nil), rec("burst-d", "removing", nil), rec("burst-e", "failed", nil),
			rec("burst-h", "ready", nil),
		},
	}
}

func memory() Memory {
	m := Memory{
		Digest: "digest", DryRun: true,
		Policy: events.Policy{StartupGrace: events.Duration(10 * time.Minute), StaleAfter: events.Duration(time.Minute),
			Pools: []events.PoolPolicy{{Name: "burst", Provider: "docker", Min: 1, Max: 9}, {Name: "ci", Max: 2}}},
		Rules: scaling.Policy{Pools: []scaling.Pool{{Name: "burst", Min: 1, Max: 9, Schedules: []scaling.Schedule{
			{Name: "noon", Min: new(2), Window: scaling.Window{Schedule: "0 12 * * *", Duration: time.Hour}},
			{Name: "night", Max: new(3), Window: scaling.Window{Schedule: "0 20 * * *", Duration: time.Hour}}}}},
			MetricRules: []scaling.MetricRule{
				{Name: "queue", Pool: "burst", Signal: "queue", StaleAfter: time.Minute}, {Name: "cpu", Pool: "burst", Metric: scaling.MetricCPUUsage, StaleAfter: time.Second},
				{Name: "new", Pool: "burst", Query: "up", StaleAfter: time.Minute}, {Name: "other", Pool: "ci", Fixed: new(1)}}},
		Core: scaling.State{StartedAt: t0,
			Metrics: map[string]scaling.MetricState{
				"queue": {Source: "burst: signal queue", Value: new(7.0), At: t0, Nodes: new(4), Verdict: scaling.Up, Since: t0},
				"cpu":   {Source: "burst: cpu-usage", Value: new(0.5), At: t0, Verdict: scaling.None, Since: t0},
				"new":   {Source: "burst: query down", Value: new(1.0), At: t0, Verdict: scaling.None},
				"other": {Source: "ci: ", Unknown: "no answer", Verdict: scaling.Unknown, Since: t0}},
			Holds:  []scaling.Hold{{ID: "r", Pool: "ci", Nodes: 1, Until: t0.Add(time.Hour), Actor: "ada", Reason: "demo"}, {ID: "q", Pool: "ci", Nodes: 5, Until: t0}},
			Claims: map[string]scaling.Claim{"burst-c": {Pool: "burst"}, "burst-f": {Pool: "burst"}, "ci-a": {Pool: "ci"}},
			Drains: map[string]scaling.Drain{"burst-h": {Pool: "burst"}},
			Pauses: map[string]scaling.Pause{"burst": {Actor: "ada", Reason: "window", Since: t0}, "ci": {Until: t0}},
			Pools:  map[string]scaling.PoolState{"ci": {Backoff: scaling.Backoff{Until: t0.Add(time.Hour), Failures: 2, Message: "no image"}}},
		},
	}
	for i := range m.Policy.Pools[1:] {
		m.Rules.Pools = append(m.Rules.Pools, scaling.Pool{Name: m.Policy.Pools[i+1].Name, Max: m.Policy.Pools[i+1].Max})
	}
	return m
}

type testBundle struct {
	view    *View
	audit   *fakeAudit
	clock   *testingclock.FakeClock
	failing error
	edit    func(*Memory)
	publish func(events.Payload)
	lives   fakeLives
}

type fakeLives map[string]lifecycle.Position

func (f fakeLives) Position(_, node string) (lifecycle.Position, bool) {
	p, ok := f[node]
	return p, ok
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := bustest.New(t)
	x := &testBundle{lives: fakeLives{}, audit: &fakeAudit{}, clock: testingclock.NewFakeClock(t0.Add(30 * time.Second))}
	n := 0
	x.publish = func(p events.Payload) {
		n++
		e, err := events.New(events.Meta{Cluster: "home", Publisher: "collector", ID: events.ID(t.Name(), time.Duration(n).String()), Time: t0}, p)
		require.NoError(t, err)
		require.NoError(t, b.Publish(t.Context(), e))
	}
	var err error
	x.view, err = New(Options{Observe: decision.Observe, Lives: x.lives, Log: b, Audit: x.audit, Clusters: []string{"home"}, Clock: x.clock, Logger: slog.New(slog.DiscardHandler),
		Memories: MemoriesFunc(func(context.Context, string) (Memory, bool, error) {
			m := memory()
			if x.edit != nil {
				x.edit(&m)
			}
			return m, true, x.failing
		})})
	require.NoError(t, err)
	return x
}

func (x *testBundle) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.view.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
}

func (x *testBundle) cluster(t *testing.T) api.Cluster {
	t.Helper()
	cs, err := x.view.Clusters(context.Background())
	require.NoError(t, err)
	return cs[0]
}

func capture(t *testing.T, f *events.Fold, o events.SnapshotObjects) events.SnapshotCaptured {
	t.Helper()
	d, _, err := f.Diff(o)
	require.NoError(t, err)
	return events.SnapshotCaptured{Epoch: 1, Digest: d.Digest, CapturedAt: t0, Objects: o, ServerVersion: "v1.34.4+k3s1"}
}

func TestTheViewFollowsTheSnapshots(t *testing.T) {
	t.Parallel()
	x := setup(t)
	require.True(t, x.cluster(t).Stale, "nothing is known yet")
	require.Contains(t, x.cluster(t).Problem, "no snapshot yet")
	first := capture(t, events.NewFold(), objects())
	x.publish(first)
	x.run(t)
	require.Eventually(t, func() bool { return x.cluster(t).Problem == "" }, time.Minute, 5*time.Millisecond)
	require.Equal(t, api.Cluster{Name: "home", DryRun: true, ServerVersion: "v1.34.4+k3s1", Nodes: 4, ReadyNodes: 3, Pods: 3, PendingPods: 1, SnapshotAt: t0,
		StaleAfter: "1m", GraceUntil: t0.Add(10 * time.Minute), Policy: "digest", PolicyAt: t0}, x.cluster(t))

	// A delta follows; one that builds on something else is a problem.
	f := events.NewFold()
	require.NoError(t, f.Capture(first))
	o := objects()
	o.Pods = o.Pods[:2]
	d, changed, err := f.Diff(o)
	require.NoError(t, err)
	require.True(t, changed)
	d.Epoch, d.CapturedAt = 1, t0.Add(20*time.Second)
	x.publish(d)
	require.Eventually(t, func() bool { return x.cluster(t).PendingPods == 0 }, time.Minute, 5*time.Millisecond)
	x.publish(d)
	require.Eventually(t, func() bool { return x.cluster(t).Problem != "" }, time.Minute, 5*time.Millisecond)
	require.True(t, x.cluster(t).Stale)
	x.clock.Step(20 * time.Minute)
	require.Zero(t, x.cluster(t).GraceUntil)
}

func TestPoolsAndNodesAreCounted(t *testing.T) {
	t.Parallel()
	x := setup(t)
	x.publish(capture(t, events.NewFold(), objects()))
	x.run(t)
	require.Eventually(t, func() bool { return x.cluster(t).Problem == "" }, time.Minute, 5*time.Millisecond)
	x.audit.records = []audit.Record{{ID: "ev", StreamTime: t0, Event: []byte(`{"data":{"id":"d","verdict":"up","delta":2,"reason":{"code":"C","message":"m"}}}`)}}
	pools, err := x.view.Pools(context.Background())
	require.NoError(t, err)
	for i := range pools {
		require.NotEmpty(t, pools[i].Guards, "its snapshot lacks most of what a removal needs")
		pools[i].Guards = nil
	}
	line := &api.DecisionLine{ID: "d", EventID: "ev", Verdict: "up", Delta: 2, Reason: events.Reason{Code: "C", Message: "m"}, At: t0}
	require.Equal(t, []api.Pool{
		{Cluster: "home", Name: "burst", Provider: "docker", Min: 2, Max: 9, Size: 3, Ready: 1, Claims: 2, Leaving: 3, Last: line,
			Schedules: []string{"min is 2 until 13:00 UTC (schedule noon)"},
			Metrics: []api.Metric{
				{Rule: "cpu", Source: "cpu-usage", Value: new(0.5), MeasuredAt: t0, Unknown: "its last value is older than 1s", Verdict: "unknown", Since: t0},
				{Rule: "new", Source: "query up", Unknown: "it has not been read yet", Verdict: "unknown"},
				{Rule: "queue", Source: "signal queue", Value: new(7.0), MeasuredAt: t0, Nodes: new(4), Verdict: "up", Since: t0}},
			Pause: &api.Pause{Actor: "ada", Reason: "window", Since: t0}},
		{Cluster: "home", Name: "ci", Min: 1, Max: 2, Holds: []api.Hold{{RequestID: "r", Nodes: 1, Until: t0.Add(time.Hour), Actor: "ada", Reason: "demo"}}, Metrics: []api.Metric{{Rule: "other", Unknown: "no answer", Verdict: "unknown", Since: t0}}, Size: 1, Claims: 1, Last: line, Backoff: &api.Backoff{Until: t0.Add(time.Hour), Failures: 2, Message: "no image"}},
	}, pools)

	nodes, err := x.view.Nodes(context.Background())
	require.NoError(t, err)
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	require.Equal(t, []string{"burst-a", "burst-b", "burst-c", "burst-d", "burst-e", "burst-h", "server", "sick"}, names, "ours first")
	require.Equal(t, 2, nodes[0].Pods)
	require.InDelta(t, 0.5, nodes[0].CPURequested, 0.001)
	require.InDelta(t, 0.2, nodes[0].MemRequested, 0.001)
	require.Equal(t, "draining", nodes[1].Drain.Phase)
	require.Equal(t, t0, nodes[2].CreatedAt)

	p, ok, err := x.view.Pod(context.Background(), "home", "default", "p3")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "no", p.Message)
	require.Equal(t, int64(250), p.Requests.CPUMilli)
	_, ok, _ = x.view.Pod(context.Background(), "home", "default", "none")
	require.False(t, ok)
	_, ok, _ = x.view.Pod(context.Background(), "elsewhere", "default", "p3")
	require.False(t, ok)
}

func TestNodesOfAPoolThatTheConfigurationLeftAreShown(t *testing.T) {
	t.Parallel()
	x := setup(t)
	x.publish(capture(t, events.NewFold(), objects()))
	x.edit = func(m *Memory) {
		m.Policy.Pools, m.Rules.Pools = m.Policy.Pools[1:], m.Rules.Pools[1:]
	}
	x.run(t)
	require.Eventually(t, func() bool { return x.cluster(t).Problem == "" }, time.Minute, 5*time.Millisecond)
	pools, err := x.view.Pools(context.Background())
	require.NoError(t, err)
	require.Len(t, pools, 2)
	require.Equal(t, api.Pool{Cluster: "home", Name: "burst", Unknown: true, Size: 3, Ready: 1, Claims: 2, Leaving: 3}, pools[1])

	// A pool that bore the name takes them over.
	x.edit = func(m *Memory) {
		m.Policy.Pools, m.Rules.Pools = m.Policy.Pools[1:], []scaling.Pool{{Name: "ci", Max: 9, RenamedFrom: []string{"burst"}}}
	}
	pools, err = x.view.Pools(context.Background())
	require.NoError(t, err)
	require.Len(t, pools, 1)
	require.Equal(t, []int{4, 1, 3, 3}, []int{pools[0].Size, pools[0].Ready, pools[0].Claims, pools[0].Leaving})
	nodes, err := x.view.Nodes(context.Background())
	require.NoError(t, err)
	require.Equal(t, "ci", nodes[0].Pool)
}

func TestErrorsOfThePortsAreHandedOn(t *testing.T) {
	t.Parallel()
	x := setup(t)
	x.audit.err = errors.New("no disk")
	_, err := x.view.Pools(context.Background())
	require.ErrorContains(t, err, "no disk")
	x.audit.err, x.audit.records = nil, []audit.Record{{Event: []byte("{")}}
	_, err = x.view.Pools(context.Background())
	require.ErrorContains(t, err, "decode decision")
	x.failing = errors.New("no bus")
	_, err = x.view.Pools(context.Background())
	require.ErrorContains(t, err, "no bus")
	_, err = x.view.Clusters(context.Background())
	require.ErrorContains(t, err, "no bus")
	_, err = x.view.Nodes(context.Background())
	require.ErrorContains(t, err, "no bus")
	_, err = New(Options{})
	for _, name := range []string{"Log", "Audit", "Memories", "Clock", "Logger", "Observe"} {
		require.ErrorContains(t, err, "Options."+name+" is required")
	}
}
