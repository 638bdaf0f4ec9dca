package decision

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestPendingPodsBecomeClaims(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	b.now = b.now.Add(time.Second)
	b.pods(2)
	d := b.publish(b.delta())

	up := payloads[events.ScaleupDecided](b)
	require.Len(t, up, 1)
	require.Equal(t, 2, up[0].Delta)
	require.Equal(t, "UnschedulablePods", up[0].Reason.Code)
	require.Equal(t, []string{d.Event.ID()}, up[0].Inputs)
	require.Equal(t, "policy-1", up[0].Policy)
	require.Equal(t, "v-test", up[0].Version)
	require.Equal(t, b.now, up[0].EvaluatedAt)
	require.Len(t, up[0].StateBefore, 64)
	require.Len(t, up[0].StateAfter, 64)
	require.NotEqual(t, up[0].StateBefore, up[0].StateAfter)

	claims := payloads[events.NodeClaimed](b)
	require.Len(t, claims, 2)
	for _, c := range claims {
		require.Contains(t, up[0].Nodes, c.Node)
		require.Equal(t, events.NodeName("a", c.ClaimID), c.Node)
		require.Equal(t, up[0].ID, c.DecisionID)
		require.Equal(t, "p", c.Provider)
		require.Equal(t, map[string]string{"tier": "batch"}, c.Labels)
		require.Equal(t, []events.Taint{{Key: "soft", Effect: "PreferNoSchedule"}, {Key: "cni", Effect: "NoSchedule"}}, c.Taints, "startup taints, too")
		require.Equal(t, b.now.Add(time.Minute), c.NotAfter)
		require.Equal(t, 2*time.Minute, c.RegisterDeadline.Std())
		require.Equal(t, b.now, c.TriggerSince)
	}
	lives := map[string]bool{}
	for _, e := range b.emitted() {
		require.False(t, events.IsDryRun(e))
		if e.Type() == events.TypeNodeClaimed {
			require.Equal(t, d.Event.ID(), events.Extension(e, events.ExtCausationID))
			lives[events.Extension(e, events.ExtCorrelationID)] = true
		}
	}
	require.Len(t, lives, 2, "each node's life has its own correlation id")

	// The same need once more: the claims are capacity.
	b.now = b.now.Add(time.Second)
	b.publish(b.delta())
	require.Len(t, payloads[events.NodeClaimed](b), 2)
}

func TestTheCutoffOfThePolicyDecidesWhoIsExpendable(t *testing.T) {
	t.Parallel()
	for below, want := range map[int32]int{-10: 1, 0: 0} {
		b := newBundle(t)
		b.configure(func(c *events.ConfigApplied) { c.Policy.ExpendableBelow = &below })
		b.pods(1)
		b.objects.Classes[0].Priority = -5
		b.publish(b.full())
		require.Len(t, payloads[events.NodeClaimed](b), want, "below %d", below)
	}
}

func TestANodeWithAStartupTaintOfItsPoolIsCapacity(t *testing.T) {
	t.Parallel()
	for _, named := range []bool{true, false} {
		b := newBundle(t)
		b.configure(func(c *events.ConfigApplied) {
			if !named {
				c.Policy.Pools[0].StartupTaints = nil
			}
		})
		b.node("a-1")
		b.node("a-2")
		starting, full := &b.objects.Nodes[0], &b.objects.Nodes[1]
		starting.Taints, starting.ReadySince, starting.Labels["tier"] = []events.Taint{{Key: "cni", Effect: "NoSchedule"}}, b.now, "batch"
		full.Unschedulable = true
		b.pods(1)
		b.publish(b.full())
		if named {
			require.Empty(t, payloads[events.NodeClaimed](b))
		} else {
			require.Len(t, payloads[events.NodeClaimed](b), 1, "nobody says that the taint goes away")
		}
	}
}

func TestAnAlertARequestAndAPauseAreFoldedAndJudgedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	b.publish(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "work"})
	alert := b.publish(b.alert(events.AlertFiring))
	held := payloads[events.ScaleHeld](b)
	require.Equal(t, "Paused", held[len(held)-1].Reason.Code)
	b.publish(events.PoolResumed{Pool: "a", Actor: "bob", Reason: "done"})
	claims := payloads[events.NodeClaimed](b)
	require.Len(t, claims, 1)
	require.Contains(t, payloads[events.ScaleupDecided](b)[0].Inputs, alert.Event.ID())
	b.publish(b.alert(events.AlertResolved))

	r := b.publish(events.ScaleRequested{Action: events.ActionUp, Pool: "a", Count: 2, Actor: "alice", Reason: "a demo"})
	claims = payloads[events.NodeClaimed](b)
	require.Len(t, claims, 3)
	require.Equal(t, "alice", claims[2].Actor)
	require.Contains(t, claims[2].Reason.Message, "a demo")
	require.Contains(t, payloads[events.ScaleupDecided](b)[1].Requests, r.Event.ID())

	b.publish(events.PoolBackoffReset{Pool: "a", Actor: "alice", Reason: "fixed"})
	v := 1.0
	b.publish(events.SignalReceived{Name: "queue", Value: &v, ObservedAt: b.now, ExpiresAt: b.now.Add(time.Hour)})
	require.Len(t, payloads[events.NodeClaimed](b), 3)
}

func TestAQuietNodeIsDrainedUnderTheCorrelationOfItsLife(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.node("a-1")
	b.node("a-2")
	b.publish(b.full())
	b.pass(10*time.Minute + 10*time.Second) // the startup grace
	down := payloads[events.ScaledownDecided](b)
	require.NotEmpty(t, down)
	require.Equal(t, []string{"a-2"}, down[0].Nodes)
	drains := payloads[events.NodeDrainRequested](b)
	require.Equal(t, events.GoalRemove, drains[0].Goal)
	require.Equal(t, "claim-a-2", drains[0].ClaimID)
	require.Equal(t, 2*time.Minute, drains[0].Deadline.Std())
	for _, e := range b.emitted() {
		if e.Type() == events.TypeNodeDrainRequested {
			require.Equal(t, "life-of-"+e.Subject(), events.Extension(e, events.ExtCorrelationID))
		}
	}

	// Demand that needs the node calls it off.
	for i := range b.objects.Nodes {
		b.objects.Nodes[i].Labels["tier"] = "batch"
	}
	b.pods(2)
	b.publish(b.delta())
	require.Empty(t, payloads[events.NodeClaimed](b))
	require.Equal(t, "a-2", payloads[events.NodeDrainCancelled](b)[0].Node)
}

func TestAPoolThatIsRenamedTakesItsNodesAlong(t *testing.T) {
	t.Parallel()
	for renamed, want := range map[bool][]string{true: {"a-2"}, false: nil} {
		b := newBundle(t)
		b.configure()
		b.node("a-1")
		b.node("a-2")
		b.publish(b.full())
		b.configure(func(c *events.ConfigApplied) {
			p := &c.Policy.Pools[0]
			p.Name, c.Policy.AlertRules, c.Digest = "b", nil, "policy-2"
			p.JobsDeadline = events.Duration(time.Hour)
			p.DrainOnDeadline, p.DrainLocalStorage, p.DrainUnmanaged = events.DeadlineForce, events.PodsDelete, events.PodsDelete
			if renamed {
				p.RenamedFrom = []string{"a"}
			}
		})
		b.pass(10*time.Minute + 10*time.Second)
		var gone []string
		for _, d := range payloads[events.NodeDrainRequested](b) {
			gone = append(gone, d.Node)
			require.Equal(t, "b", d.Pool)
			require.Equal(t, "claim-"+d.Node, d.ClaimID)
			require.Equal(t, time.Hour, d.JobsDeadline.Std())
			require.Equal(t, []string{events.DeadlineForce, events.PodsDelete, events.PodsDelete}, []string{d.OnDeadline, d.LocalStorage, d.Unmanaged})
		}
		require.Subset(t, want, gone)
		require.Equal(t, len(want) > 0, len(gone) > 0)
	}
}

func TestARequestForANodeOfNoPoolIsRefusedWhereOneCanSeeIt(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	b.publish(events.ScaleRequested{Action: events.ActionRemove, Node: "server", Actor: "alice", Reason: "tidy up"})
	held := payloads[events.ScaleHeld](b)
	last := held[0]
	for _, h := range held {
		if h.Reason.Code == "RequestRefused" {
			last = h
		}
	}
	require.Equal(t, "RequestRefused", last.Reason.Code)
	require.Contains(t, last.Reason.Message, "alice")
	require.Empty(t, payloads[events.NodeDrainRequested](b))
}

func TestHandledTwiceItHappensOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	b.pods(3)
	d := b.publish(b.delta())
	before := encoded(t, b.emitted())
	require.NoError(t, b.handler.Handle(t.Context(), d))
	require.NoError(t, b.open().Handle(t.Context(), d), "nor by another process")
	require.Equal(t, before, encoded(t, b.emitted()))
	require.NoError(t, b.handler.Handle(t.Context(), b.log.deliveries[0]), "an older one does nothing")
	require.Equal(t, before, encoded(t, b.emitted()))
}

// story is a log with a bit of everything.
func story(b *testBundle, next func()) {
	b.configure()
	next()
	b.node("a-1")
	b.node("a-2")
	b.publish(b.full())
	next()
	b.pass(16 * time.Minute)
	next()
	b.pods(4)
	b.publish(b.delta())
	next()
	b.publish(b.alert(events.AlertFiring))
	b.publish(events.ScaleRequested{Action: events.ActionTo, Pool: "a", Count: 4, Actor: "alice", Reason: "a demo"})
	next()
	b.now = b.now.Add(time.Minute)
	b.epoch++
	b.publish(b.full())
	b.publish(b.delta())
	next()
}

func TestTheSameLogGivesTheSameEventsByteForByteInAnyProcess(t *testing.T) {
	t.Parallel()
	one := newBundle(t)
	story(one, func() {})
	want := encoded(t, one.emitted())
	require.Greater(t, len(want), 10)

	t.Run("replayed by another handler", func(t *testing.T) {
		t.Parallel()
		b := newBundle(t)
		story(b, func() {})
		require.Equal(t, want, encoded(t, b.emitted()))
	})
	t.Run("taken over by another process again and again", func(t *testing.T) {
		t.Parallel()
		b := newBundle(t)
		story(b, func() { b.handler = b.open() })
		require.Positive(t, b.log.reads, "it folded again from the last full snapshot")
		require.Equal(t, want, encoded(t, b.emitted()))
	})
	t.Run("interrupted before every write", func(t *testing.T) {
		t.Parallel()
		b := newBundle(t)
		story(b, func() {})
		again := newBundle(t)
		for _, d := range b.log.deliveries {
			ctx, cancel := context.WithCancel(t.Context())
			again.log.deliveries = append(again.log.deliveries, d)
			again.onStep = func(s string) {
				if s == "decision/write/before" {
					cancel()
				}
			}
			require.Error(t, again.handler.Handle(ctx, d))
			again.onStep = nil
			require.NoError(t, again.handler.Handle(t.Context(), d))
		}
		require.Zero(t, again.log.reads, "it recognises its own half-done work")
		require.Equal(t, want, encoded(t, again.emitted()))
	})
}

func TestASnapshotThatDoesNotFollowHoldsUntilTheNextFullOne(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	b.pods(1)
	b.delta() // lost on its way
	b.now = b.now.Add(time.Second)
	b.pods(1)
	b.publish(b.delta())
	held := payloads[events.ScaleHeld](b)
	require.Equal(t, "StaleSnapshot", held[len(held)-1].Reason.Code)
	b.publish(b.alert(events.AlertFiring))
	require.Empty(t, payloads[events.NodeClaimed](b), "not even for an alert: what is there is unknown")

	b.now = b.now.Add(time.Second)
	b.epoch++
	b.publish(b.full())
	require.NotEmpty(t, payloads[events.NodeClaimed](b))

	// What the former leader still sends changes nothing.
	claims := len(payloads[events.NodeClaimed](b))
	old := b.delta()
	old.Epoch = 1
	b.publish(old)
	full := b.full()
	full.Epoch = 1
	b.publish(full)
	b.publish(b.delta())
	require.Len(t, payloads[events.NodeClaimed](b), claims)
	held = payloads[events.ScaleHeld](b)
	require.NotEqual(t, "StaleSnapshot", held[len(held)-1].Reason.Code)

	// Objects that don't add up to their digest are no snapshot.
	broken := b.full()
	broken.Digest = "other"
	b.publish(broken)
	held = payloads[events.ScaleHeld](b)
	require.Equal(t, "StaleSnapshot", held[len(held)-1].Reason.Code)
}

func TestANewOwnerWithoutTheSnapshotsHoldsAndOneThatCantReadWaits(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.node("a-1")
	b.publish(b.full())
	b.pods(1)
	b.publish(b.delta())
	require.Len(t, payloads[events.NodeClaimed](b), 1)

	b.handler = b.open()
	b.log.err = errBroken
	d := b.deliver(b.alert(events.AlertFiring))
	err := b.handler.Handle(t.Context(), d)
	require.ErrorIs(t, err, errBroken)
	require.False(t, bus.IsTerminal(err), "it is tried again")

	b.log.err = nil
	b.log.lost = b.log.deliveries[2].Sequence // the retention took the full snapshot
	require.NoError(t, b.handler.Handle(t.Context(), d))
	held := payloads[events.ScaleHeld](b)
	require.Equal(t, "StaleSnapshot", held[len(held)-1].Reason.Code)
	require.Contains(t, held[len(held)-1].Reason.Message, "can't be folded again")
}

func TestWithoutAPolicyNothingIsDecidedButEverythingIsKept(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.publish(b.full())
	b.publish(b.alert(events.AlertFiring))
	require.Empty(t, payloads[events.ScaleHeld](b))
	b.configure()
	require.Len(t, payloads[events.NodeClaimed](b), 1, "the alert was not forgotten")
}

func TestADryRunMarksEverythingItDecides(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.DryRun = true })
	b.publish(b.full())
	b.pods(1)
	b.publish(b.delta())
	require.Len(t, payloads[events.NodeClaimed](b), 1)
	for _, e := range b.emitted() {
		require.True(t, events.IsDryRun(e), e.Type())
	}
	b.pass(50 * time.Second)
	require.Len(t, payloads[events.NodeClaimed](b), 1, "the claim counts until it expires")
	b.pass(30 * time.Second)
	require.Len(t, payloads[events.NodeClaimed](b), 2, "then the need is there again, without a backoff")
}

func TestACheckpointFollowsEveryFullSnapshot(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	full := b.publish(b.full())
	b.publish(b.delta())
	cs := payloads[events.DecisionCheckpointed](b)
	require.Len(t, cs, 1)
	require.Equal(t, full.Sequence, cs[0].Snapshot)
	require.Equal(t, b.log.deliveries[0].Sequence, cs[0].Config)
	require.Equal(t, "policy-1", cs[0].Policy)
	rec, ok, err := b.handler.state.Get(t.Context(), full.Key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, full.Sequence, rec.State.Full)
	require.Contains(t, string(cs[0].State), `"full":`)

	// A state that fills most of its record by itself has its checkpoint, too.
	for i, size := range []int{500_000, 400_000} {
		alert := b.alert(events.AlertFiring)
		alert.Fingerprint = "large-" + strconv.Itoa(i)
		alert.Labels["noise"] = noise(uint32(i), size)
		b.publish(alert)
		full = b.publish(b.full())
		cs = payloads[events.DecisionCheckpointed](b)
		require.Len(t, cs, 2+i)
		rec, _, err = b.handler.state.Get(t.Context(), full.Key)
		require.NoError(t, err)
		want, err := json.Marshal(rec.State)
		require.NoError(t, err)
		require.Greater(t, len(want), (i+1)*400_000)
		require.Equal(t, string(want), string(cs[1+i].State))
	}
}

// noise is text that does not compress to less than half.
func noise(x uint32, n int) string {
	var s strings.Builder
	for s.Len() < n {
		x = x*1664525 + 1013904223
		s.WriteByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"[x>>26])
	}
	return s.String()
}

func TestWhatItCantUnderstandIsSetAside(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for name, edit := range map[string]func(*events.Event){
		"another type": func(e *events.Event) { e.SetType(events.TypeNodeReady) },
		"broken data": func(e *events.Event) {
			require.NoError(t, e.SetData(cloudevents.ApplicationJSON, []byte(`{"pool":1}`)))
		},
	} {
		d := b.deliver(events.PoolResumed{Pool: "a", Actor: "bob", Reason: "x"})
		edit(&d.Event)
		require.True(t, bus.IsTerminal(b.handler.Handle(t.Context(), d)), name)
	}
	_, err := New(t.Context(), Options{})
	require.ErrorContains(t, err, "Bus is required")
}

func TestMetricsCountVerdictsAndWhatIsThere(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.node("a-1")
	b.publish(b.full())
	b.pods(1)
	b.publish(b.delta())
	m := b.handler.metrics
	require.Equal(t, 1.0, testutil.ToFloat64(m.decisions.WithLabelValues("up", testCluster, "a")))
	require.Equal(t, 2.0, testutil.ToFloat64(m.nodes.WithLabelValues(testCluster, "a")))
	require.Equal(t, 1.0, testutil.ToFloat64(m.pending.WithLabelValues(testCluster)))
	require.Equal(t, 1, testutil.CollectAndCount(m.latency))
}

func TestItReadsFromTheBusAndDecides(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	own := bustest.Open(t, b.server)
	h, err := New(t.Context(), Options{Bus: own, Version: "v"})
	require.NoError(t, err)
	require.Equal(t, events.HandlerDecision, h.Name())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- own.Run(ctx, h) }()
	t.Cleanup(func() { cancel(); <-done })

	b.now = time.Now().UTC()
	b.pods(2)
	publish := func(p events.Payload) {
		e, err := events.New(events.Meta{Cluster: testCluster, Publisher: "test", ID: p.EventType(), Time: b.now}, p)
		require.NoError(t, err)
		require.NoError(t, b.bus.Publish(t.Context(), e))
	}
	publish(events.ConfigApplied{Digest: "d", Start: b.now, Policy: testPolicy()})
	publish(b.full())
	require.Eventually(t, func() bool { return len(payloads[events.NodeClaimed](b)) == 2 }, time.Minute, 20*time.Millisecond)
}

// A pause ends at an instant, and no snapshot need arrive for it to be noticed.
func TestAPauseThatEndsIsNoticedWithoutASnapshot(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	own := bustest.Open(t, b.server)
	h, err := New(t.Context(), Options{Bus: own, Version: "v"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- own.Run(ctx, h) }()
	go func() { done <- own.RunTimers(ctx) }()
	t.Cleanup(func() { cancel(); <-done; <-done })

	b.now = time.Now().UTC()
	publish := func(p events.Payload) {
		e, err := events.New(events.Meta{Cluster: testCluster, Publisher: "test", ID: p.EventType(), Time: b.now}, p)
		require.NoError(t, err)
		require.NoError(t, b.bus.Publish(t.Context(), e))
	}
	publish(events.ConfigApplied{Digest: "d", Start: b.now, Policy: testPolicy()})
	publish(b.full())
	until := time.Now().UTC().Add(5 * time.Second)
	publish(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "work", Until: until})
	publish(b.alert(events.AlertFiring))
	require.Eventually(t, func() bool { return len(payloads[events.NodeClaimed](b)) == 1 }, time.Minute, 20*time.Millisecond)
	require.False(t, payloads[events.NodeClaimed](b)[0].ClaimedAt.Before(until))
	require.Equal(t, until, payloads[events.TimerFired](b)[0].DueAt)
}

// A window begins at an instant, too: the record says when to be woken, and the
// timer alone brings the nodes.
func TestAScheduleThatBeginsIsNoticedWithoutASnapshot(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	begins := b.now.Add(10 * time.Minute)
	b.configure(func(c *events.ConfigApplied) {
		c.Policy.Pools[0].Schedules = []events.PoolSchedule{{Name: "office-hours", Schedule: begins.Format("4 15 * * *"),
			Duration: events.Duration(8 * time.Hour), Min: new(2)}}
	})
	b.publish(b.full())
	require.Empty(t, payloads[events.NodeClaimed](b))
	rec, _, err := b.handler.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: events.ClusterKey})
	require.NoError(t, err)
	require.Equal(t, begins, rec.State.WakeAt)

	b.now = begins
	b.publish(events.TimerFired{Handler: events.HandlerDecision, DueAt: begins})
	require.Len(t, payloads[events.NodeClaimed](b), 2)
	up := payloads[events.ScaleupDecided](b)[0]
	require.Equal(t, 2, up.Min)
	require.Contains(t, up.Reason.Message, "its minimum is 2 until 20:10 UTC (schedule office-hours)")
	require.Contains(t, up.Rules, events.RuleResult{Rule: "schedule office-hours", Kind: "schedule", Value: "open", Verdict: "none",
		Message: "min is 2 until 20:10 UTC (schedule office-hours)"})
}

func TestANodeThatIsNotReadyForTooLongIsReplaced(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, 5 * time.Minute} {
		b := newBundle(t)
		b.configure(func(c *events.ConfigApplied) {
			c.Policy.Pools[0].Min, c.Policy.Pools[0].ReplaceUnreadyAfter = 1, events.Duration(after)
		})
		b.node("a-1")
		b.objects.Nodes[0].Ready = "Unknown"
		b.objects.Records[0].Phase, b.objects.Records[0].Since = "unready", b.now.Add(-6*time.Minute)
		b.publish(b.full())
		require.Len(t, payloads[events.NodeClaimed](b), map[time.Duration]int{0: 0, 5 * time.Minute: 1}[after])
	}
}

func TestARequestThatSaysForHowLongIsHeld(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	until := b.now.Add(2 * time.Hour)
	d := b.publish(events.ScaleRequested{Action: events.ActionUp, Pool: "a", Count: 1, Actor: "ada", Reason: "load test", HoldUntil: until})
	require.Len(t, payloads[events.NodeClaimed](b), 1)
	rec, _, err := b.handler.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: events.ClusterKey})
	require.NoError(t, err)
	holds := rec.State.Core.HoldsOf("a", b.now)
	require.Len(t, holds, 1)
	require.Equal(t, d.Event.ID(), holds[0].ID)
	require.Equal(t, until, holds[0].Until)
}

func TestTheHeadroomOfThePolicyIsKept(t *testing.T) {
	t.Parallel()
	size := events.Resources{CPUMilli: 600, MemoryBytes: 1 << 20}
	for begins, want := range map[time.Time]int{t0: 3, t0.Add(time.Hour): 1} {
		b := newBundle(t)
		b.configure(func(c *events.ConfigApplied) {
			c.Policy.Pools[0].Headroom = &events.Headroom{Pods: 1, Pod: size}
			c.Policy.Pools[0].Schedules = []events.PoolSchedule{{Name: "lunch", Schedule: begins.Format("4 15 * * *"),
				Duration: events.Duration(time.Hour), Headroom: &events.Headroom{Pods: 3, Pod: size}}}
		})
		b.publish(b.full())
		require.Len(t, payloads[events.NodeClaimed](b), want)
	}
}

// What a dry run decided nobody made: a real run must not wait for it.
func TestARealRunAfterADryRunDecidesAnew(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.DryRun = true })
	b.pods(2)
	b.publish(b.full())
	require.Len(t, payloads[events.NodeClaimed](b), 2)
	b.configure(func(c *events.ConfigApplied) { c.Digest = "policy-2" })
	b.publish(b.full())
	real := 0
	for _, e := range b.emitted() {
		if e.Type() == events.TypeNodeClaimed && !events.IsDryRun(e) {
			real++
		}
	}
	require.Equal(t, 2, real)
}
