package replay

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// cluster tells of a cluster as its collector and its people do.
type cluster struct {
	*testBundle
	name    string
	objects events.SnapshotObjects
	fold    *events.Fold
	said    uint64 // sequence of the last event
}

func (c *cluster) say(p events.Payload) {
	c.t.Helper()
	c.n++
	e, err := events.New(events.Meta{Cluster: c.name, Publisher: "test", ID: fmt.Sprintf("%s-%d", c.name, c.n), Time: time.Now().UTC()}, p)
	require.NoError(c.t, err)
	require.NoError(c.t, c.bus.Publish(c.t.Context(), e))
	c.said, err = c.bus.LastSequence(c.t.Context())
	require.NoError(c.t, err)
}

func (c *cluster) freshness() map[string]time.Time {
	out := map[string]time.Time{}
	for _, k := range []string{events.KindNode, events.KindPod, events.KindPDB, events.KindDaemonSet, events.KindRecord} {
		out[k] = time.Now().UTC()
	}
	return out
}

func (c *cluster) full() {
	c.t.Helper()
	diff, _, err := events.NewFold().Diff(c.objects)
	require.NoError(c.t, err)
	s := events.SnapshotCaptured{Epoch: 1, Digest: diff.Digest, CapturedAt: time.Now().UTC(), Freshness: c.freshness(), Objects: c.objects}
	require.NoError(c.t, c.fold.Capture(s))
	c.say(s)
}

func (c *cluster) delta() {
	c.t.Helper()
	d, _, err := c.fold.Diff(c.objects)
	require.NoError(c.t, err)
	d.Epoch, d.CapturedAt, d.Freshness = 1, time.Now().UTC(), c.freshness()
	require.NoError(c.t, c.fold.Change(d))
	c.say(d)
}

func (c *cluster) pending(n int) {
	c.objects.Classes = []events.PodClass{{ID: "web", Namespace: "ns", Requests: events.Resources{CPUMilli: 600, MemoryBytes: 1 << 20}}}
	for range n {
		c.objects.Pods = append(c.objects.Pods, events.SnapshotPod{Namespace: "ns", Name: fmt.Sprint("web-", len(c.objects.Pods)), UID: "u",
			Class: "web", Phase: "Pending", CreatedAt: time.Now().UTC(), Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: "web"}, UnschedulableSince: time.Now().UTC()})
	}
}

// decided has a process of decision handle everything that was said.
func (b *testBundle) decided(version string, clusters ...*cluster) {
	b.t.Helper()
	other := bustest.Open(b.t, b.server)
	h, err := decision.New(b.t.Context(), decision.Options{Bus: other, Version: version, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(b.t, err)
	ctx, stop := context.WithCancel(b.t.Context())
	done := make(chan error, 2)
	go func() { done <- other.Run(ctx, h) }()
	go func() { done <- other.RunTimers(ctx) }()
	st, err := bus.ReadState[decision.Record](b.t.Context(), other, events.HandlerDecision)
	require.NoError(b.t, err)
	require.Eventually(b.t, func() bool {
		for _, c := range clusters {
			if r, _, err := st.Get(b.t.Context(), bus.Key{Cluster: c.name, Name: events.ClusterKey}); err != nil || r.Last < c.said {
				return false
			}
		}
		return true
	}, bustest.Patience, 10*time.Millisecond)
	stop()
	require.NoError(b.t, <-done)
	require.NoError(b.t, <-done)
}

// ends waits until something that ends by itself has woken decision.
func (b *testBundle) ends(c *cluster) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		b.decided("v1", c)
		for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: c.name, Types: []string{events.TypeTimerFired}, FromSequence: c.said}) {
			require.NoError(b.t, err)
			c.said = d.Sequence
			b.decided("v1", c)
			return true
		}
		return false
	}, bustest.Patience, 50*time.Millisecond)
}

// story is the log of two clusters, decided on by three processes one after the
// other, the last of another version.
func story(t *testing.T) *testBundle {
	t.Helper()
	b := setup(t)
	minute := events.Duration(time.Minute)
	policy := events.Policy{
		Pools: []events.PoolPolicy{{Name: "a", Provider: "p", Max: 9, Size: events.Resources{CPUMilli: 1000, MemoryBytes: 1 << 30, Pods: 110},
			ScaleUpCooldown: minute, ScaleDownAfterAdd: minute, ScaleDownAfterFail: minute, ScaleDownCooldown: minute, Stabilization: minute,
			UtilizationThreshold: 0.5, Unneeded: minute, MinLifetime: minute, MaxRemovals: 1, RegisterDeadline: minute, ClaimExpiry: minute,
			DrainDeadline: minute, BackoffInitial: minute, BackoffMax: minute, BackoffReset: minute}},
		AlertRules:   []events.AlertRule{{Name: "busy", Pool: "a", Direction: "up", Amount: 1, Matchers: []events.Matcher{{Label: "alertname", Op: "=", Value: "Busy"}}}},
		StartupGrace: minute, StaleAfter: minute, MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3,
	}
	home := &cluster{testBundle: b, name: "home", fold: events.NewFold()}
	edge := &cluster{testBundle: b, name: "edge", fold: events.NewFold()}
	for _, c := range []*cluster{home, edge} {
		c.say(events.ConfigApplied{Digest: "policy-1", Version: "v1", Start: time.Now().UTC().Add(-time.Hour), Policy: policy})
		c.full()
	}
	b.decided("v1", home, edge)
	home.say(events.ScaleRequested{Action: "up", Pool: "a", Count: 1, Actor: "alice", Reason: "Friday", ExpiresAt: time.Now().UTC().Add(time.Hour)})
	home.pending(3)
	home.delta()
	edge.say(events.AlertReceived{Status: events.AlertFiring, Fingerprint: "f", StartsAt: time.Now().UTC(), Labels: map[string]string{"alertname": "Busy"},
		ReceivedAt: time.Now().UTC(), ExpiresAt: time.Now().UTC().Add(time.Hour)})
	b.decided("v1", home, edge)
	home.say(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "a moment", Until: time.Now().UTC().Add(time.Second)})
	b.ends(home)
	home.full()
	home.say(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "maintenance"})
	home.pending(1)
	home.delta()
	b.publish(5) // what does not concern decision
	b.decided("v2", home, edge)
	home.say(events.PoolResumed{Pool: "a", Actor: "bob", Reason: "done"})
	home.full()
	b.decided("v2", home, edge)
	return b
}

func (b *testBundle) again(opts ...func(*DecisionOptions)) (DecisionReport, error) {
	b.t.Helper()
	r, err := bus.OpenReader(b.t.Context(), bus.Options{Server: b.server, Times: bustest.Times()})
	require.NoError(b.t, err)
	defer r.Close()
	o := DecisionOptions{Log: r}
	for _, f := range opts {
		f(&o)
	}
	return Decisions(b.t.Context(), o)
}

func TestDecisionsThatAreTakenAgainAreTheSame(t *testing.T) {
	t.Parallel()
	b := story(t)
	r, err := b.again()
	require.NoError(t, err)
	require.True(t, r.Equal(), "%+v", r)
	require.Len(t, r.Clusters, 2)
	edge, home := r.Clusters[0], r.Clusters[1]
	require.Equal(t, "edge", edge.Cluster)
	require.Equal(t, "home", home.Cluster)
	require.Equal(t, 1, edge.Inputs)
	require.Equal(t, []string{"v1"}, edge.Versions)
	require.Equal(t, 9, home.Inputs, "what was read behind the first snapshot, a timer among it")
	require.Equal(t, 2, home.Checkpoints, "those after the one that it began with")
	require.Equal(t, []string{"v1", "v2"}, home.Versions)
	require.GreaterOrEqual(t, home.Decisions, 3)
	require.Greater(t, home.Compared, home.Decisions+home.Checkpoints, "and claims")
	require.Zero(t, home.Open)

	// A range, and one cluster.
	part, err := b.again(func(o *DecisionOptions) { o.Cluster = "home"; o.From.Sequence = home.From + 1 })
	require.NoError(t, err)
	require.True(t, part.Equal(), "%+v", part)
	require.Len(t, part.Clusters, 1)
	require.Greater(t, part.Clusters[0].From, home.From, "from the next checkpoint")
	require.Equal(t, 1, part.Clusters[0].Checkpoints)
	_, err = b.again(func(o *DecisionOptions) { o.From.Sequence = r.StreamLast })
	require.ErrorIs(t, err, ErrNoCheckpoint)
	_, err = b.again(func(o *DecisionOptions) { o.Cluster = "nowhere" })
	require.ErrorIs(t, err, ErrNoCheckpoint)
}

// memory is a log that was tampered with.
type memory struct {
	state bus.LogState
	log   []bus.Delivery
}

func (m *memory) LogState(context.Context) (bus.LogState, error) { return m.state, nil }

func (m *memory) Read(_ context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		for _, d := range m.log {
			if d.Sequence >= o.FromSequence && (o.UntilSequence == 0 || d.Sequence <= o.UntilSequence) && !yield(d, nil) {
				return
			}
		}
	}
}

// find is the place of the nth event of a type on a cluster.
func (m *memory) find(t *testing.T, cluster, typ string, nth int) int {
	t.Helper()
	for i, d := range m.log {
		if d.Key.Cluster == cluster && d.Event.Type() == typ {
			if nth--; nth < 0 {
				return i
			}
		}
	}
	require.Fail(t, "no such event", "%s on %s", typ, cluster)
	return 0
}

// edit changes the data of an event.
func (m *memory) edit(i int, old, replacement string) {
	e := m.log[i].Event.Clone()
	e.DataEncoded = []byte(strings.ReplaceAll(string(e.Data()), old, replacement))
	m.log[i].Event = e
}

func TestADecisionThatIsNotTheSameIsShown(t *testing.T) {
	t.Parallel()
	b := story(t)
	state, err := b.bus.LogState(t.Context())
	require.NoError(t, err)
	var log []bus.Delivery
	for d, err := range b.bus.Read(t.Context(), bus.ReadOptions{}) {
		require.NoError(t, err)
		log = append(log, d)
	}
	run := func(edit func(m *memory)) ClusterDecisions {
		m := &memory{state: state, log: slices.Clone(log)}
		edit(m)
		r, err := Decisions(t.Context(), DecisionOptions{Log: m, Cluster: "home"})
		require.NoError(t, err)
		return r.Clusters[0]
	}
	whole := run(func(*memory) {})
	require.Zero(t, whole.Differences, "%+v", whole.First)

	t.Run("an event that says something else", func(t *testing.T) {
		var at int
		c := run(func(m *memory) {
			at = m.find(t, "home", events.TypeScaleupDecided, 0)
			m.edit(at, "alice", "mallory")
		})
		require.Equal(t, 1, c.Differences)
		require.Equal(t, log[at].Event.ID(), c.First.EventID)
		require.Equal(t, log[at].Sequence, c.First.Sequence)
		require.Positive(t, c.First.Input)
		require.Contains(t, c.First.Diff, "mallory")
		require.Contains(t, c.First.Diff, "--- recorded\n+++ decided again\n")
	})
	t.Run("an event that is missing", func(t *testing.T) {
		c := run(func(m *memory) {
			i := m.find(t, "home", events.TypeNodeClaimed, 0)
			m.log = slices.Delete(m.log, i, i+1)
		})
		require.Equal(t, 1, c.Differences)
		require.Equal(t, events.TypeNodeClaimed, c.First.Type)
		require.Contains(t, c.First.What, "the log does not hold it")
	})
	t.Run("an event that was not decided", func(t *testing.T) {
		c := run(func(m *memory) {
			i := m.find(t, "home", events.TypeNodeClaimed, 1)
			d := m.log[i]
			d.Event = d.Event.Clone()
			d.Event.SetID("forged")
			m.log = slices.Insert(m.log, i+1, d)
		})
		require.Equal(t, 1, c.Differences)
		require.Equal(t, "forged", c.First.EventID)
		require.Contains(t, c.First.What, "is not now")
	})
	t.Run("an input that is missing, until the next checkpoint", func(t *testing.T) {
		c := run(func(m *memory) {
			i := m.find(t, "home", events.TypeScaleRequested, 0)
			m.log = slices.Delete(m.log, i, i+1)
		})
		require.Positive(t, c.Differences)
		require.Equal(t, whole.Checkpoints-1, c.Checkpoints, "the last one is the same again")
	})
	t.Run("another version", func(t *testing.T) {
		c := run(func(m *memory) {
			m.edit(m.find(t, "home", events.TypeScaleupDecided, 0), `"version":"v1"`, `"version":"v3"`)
		})
		require.Zero(t, c.Differences)
		require.Contains(t, c.Versions, "v3")
	})
	t.Run("published twice", func(t *testing.T) {
		c := run(func(m *memory) {
			m.log = append(m.log, m.log[m.find(t, "home", events.TypeNodeClaimed, 0)])
			m.log[len(m.log)-1].Sequence = m.state.Last
		})
		require.Zero(t, c.Differences)
	})
	t.Run("what is not published yet", func(t *testing.T) {
		c := run(func(m *memory) {
			i := m.find(t, "home", events.TypePoolResumed, 0)
			m.log = m.log[:i+1]
		})
		require.Zero(t, c.Differences)
		require.Positive(t, c.Open)
	})
}
