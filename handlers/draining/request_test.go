package draining

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// delivery is an event as it stands in the log.
func delivery(t *testing.T, b *testBundle, e events.Event) bus.Delivery {
	t.Helper()
	for _, d := range b.log() {
		if d.Event.ID() == e.ID() {
			d.Attempt = 1
			return d
		}
	}
	t.Fatalf("event %s is not in the log", e.ID())
	return bus.Delivery{}
}

// workOnce hands every event to a handler that does not run, and works on the
// record until there is nothing left to do at once, or a step fails.
func workOnce(t *testing.T, b *testBundle, p *process) error {
	t.Helper()
	for _, d := range b.log() {
		if def, _ := events.Lookup(d.Event.Type()); def.ReadBy(events.HandlerDraining) {
			require.NoError(t, p.h.Handle(t.Context(), d))
		}
	}
	l, err := p.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, time.Minute)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Release(context.Background())) }()
	for {
		if due, _ := p.h.due(l.Key(), l.Record(), p.h.opts.Clock.Now()); !due {
			return nil
		}
		if err := p.h.work(l.Context(), l); err != nil {
			return err
		}
	}
}

func TestEveryMessageMayComeTwice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	p := b.open(nil)
	work := func() {
		for range 5 { // rounds have a pause in between
			require.NoError(t, workAgain(t, b, p))
		}
	}
	request := delivery(t, b, b.request(events.GoalDrain, by("anna")))
	for range 2 {
		require.NoError(t, p.h.Handle(t.Context(), request))
	}
	work()
	require.NoError(t, p.h.Handle(t.Context(), request), "late")
	work()
	cancel := delivery(t, b, b.cancel("anna"))
	for range 2 {
		require.NoError(t, p.h.Handle(t.Context(), cancel))
	}
	work()
	require.NoError(t, p.h.Handle(t.Context(), cancel), "late")
	work()

	require.Equal(t, []string{"node.cordoned", "node.drained", "node.uncordoned"}, b.published())
	cordons, uncordons, evictions := b.world.acts()
	require.Equal(t, [3]int{1, 1, 3}, [3]int{cordons, uncordons, evictions})
}

func TestACopyOfARequestIsNoNewRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.open(nil)
	d := delivery(t, b, b.request(events.GoalCordon))
	require.NoError(t, p.h.Handle(t.Context(), d))
	require.NoError(t, workOnce(t, b, p))
	d.Sequence++ // the window of deduplication has passed
	require.NoError(t, p.h.Handle(t.Context(), d))
	require.NoError(t, workOnce(t, b, p))
	require.Equal(t, []string{"node.cordoned"}, b.published())
}

func TestADryRunTouchesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	p := b.open(nil)
	dry := func(m *events.Meta) { m.DryRun = true }
	now := time.Now()
	b.publish(events.NodeDrainRequested{Node: testNode, ClaimID: testClaim, Goal: events.GoalRemove, Reason: events.Reason{Code: "Unneeded"},
		NotAfter: now.Add(time.Minute), Deadline: events.Duration(time.Minute)}, dry)
	b.publish(events.NodeDrainCancelled{Node: testNode, Actor: "anna", Reason: events.Reason{Code: "Asked"}}, dry)
	require.NoError(t, workOnce(t, b, p))
	_, ok := b.record()
	require.False(t, ok)
	cordons, uncordons, evictions := b.world.acts()
	require.Zero(t, cordons+uncordons+evictions)
}

func TestWhatCanNotBeUnderstoodIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.open(nil)
	d := delivery(t, b, b.request(events.GoalDrain))
	foreign := d
	foreign.Event = d.Event.Clone()
	foreign.Event.SetType(events.TypeNodeReady)
	require.True(t, bus.IsTerminal(p.h.Handle(t.Context(), foreign)))
	broken := d
	broken.Event = d.Event.Clone()
	require.NoError(t, broken.Event.SetData("application/json", map[string]string{"goal": "fly"}))
	require.True(t, bus.IsTerminal(p.h.Handle(t.Context(), broken)))
}

func TestARequestForADrainUnderWayKeepsTheEarlierDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.start(nil)
	b.request(events.GoalDrain, within(40*time.Second))
	await[events.NodeDrainBlocked](b, 1)
	first, _ := b.record()
	second := b.request(events.GoalRemove, within(time.Hour))
	require.Eventually(t, func() bool { d, _ := b.record(); return d.RequestID == second.ID() }, patience, 10*time.Millisecond)
	d, _ := b.record()
	require.Equal(t, first.Deadline, d.Deadline)
	b.world.change(func(w *world) { w.pod("default/web-1").budget = "" })
	drained := await[events.NodeDrained](b, 1)
	require.Equal(t, second.ID(), drained.RequestID)
	require.Equal(t, events.GoalRemove, drained.Goal)
	require.Equal(t, second.ID(), b.world.node(testNode).cordonedBy)
}

func TestARemovalOutranksWhatComesLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.start(nil)
	b.request(events.GoalRemove)
	await[events.NodeDrained](b, 1)

	late := b.request(events.GoalCordon, by("anna"))
	refused := await[events.NodeUncordoned](b, 1)
	require.Equal(t, ReasonNoReturn, refused.Reason.Code)
	require.Equal(t, late.ID(), refused.RequestID)

	cancel := b.cancel("anna")
	answer := await[events.NodeCancelRefused](b, 1)
	require.Equal(t, cancel.ID(), answer.CancelID)
	require.Equal(t, ReasonNoReturn, answer.Reason.Code)
	b.settled(p)
	require.True(t, b.world.node(testNode).unschedulable)
	_, uncordons, _ := b.world.acts()
	require.Zero(t, uncordons)
}

func TestARequestWhileADrainIsBeingUndoneIsRefusedForItsOwnReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.fail = func(call string) error {
		if call == "uncordon" {
			return errAPI
		}
		return nil
	}
	b.start(nil)
	b.request(events.GoalCordon)
	await[events.NodeCordoned](b, 1)
	b.cancel("")
	b.awaitPhase(lifecycle.DrainUncordoning)
	late := b.request(events.GoalRemove)
	refused := await[events.NodeUncordoned](b, 1)
	require.Equal(t, late.ID(), refused.RequestID)
	require.Equal(t, ReasonUndoing, refused.Reason.Code)
}

func TestACancelEndsADrainAtAnyPointBeforeNoReturn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		goal  string
		until lifecycle.DrainPhase
	}{
		"a cordon":                  {events.GoalCordon, lifecycle.DrainCordoned},
		"while pods are evicted":    {events.GoalRemove, lifecycle.DrainDraining},
		"a drain that left it here": {events.GoalDrain, lifecycle.DrainDraining},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
			p := b.start(nil)
			request := b.request(c.goal)
			b.awaitPhase(c.until)
			b.cancel("")
			undone := await[events.NodeUncordoned](b, 1)
			require.Equal(t, "NewDemand", undone.Reason.Code)
			require.Equal(t, request.ID(), undone.RequestID)
			require.False(t, b.world.node(testNode).unschedulable)
			b.settled(p)
			require.Empty(t, find[events.NodeDrained](b))

			again := b.request(events.GoalCordon)
			await[events.NodeCordoned](b, 2)
			require.Equal(t, again.ID(), b.world.node(testNode).cordonedBy)
		})
	}
}

func TestACancelWithoutADrainUncordonsForAPersonOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.nodes[testNode].unschedulable = true // by kubectl
	p := b.open(nil)
	b.cancel("")
	require.NoError(t, workOnce(t, b, p))
	require.True(t, b.world.node(testNode).unschedulable)
	require.Empty(t, b.published())

	b.cancel("anna")
	require.NoError(t, workOnce(t, b, p))
	require.False(t, b.world.node(testNode).unschedulable)
	require.Equal(t, []string{"node.uncordoned"}, b.published())
	require.Equal(t, "NewDemand", find[events.NodeUncordoned](b)[0].Reason.Code)
}

func TestATimerOnlyWakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	b.start(nil)
	b.request(events.GoalDrain)
	await[events.NodeDrainBlocked](b, 1)
	b.publish(events.TimerFired{Handler: events.HandlerDraining, DueAt: time.Now().Add(time.Hour)}, func(m *events.Meta) { m.Publisher = "bus" })
	before, _ := b.record()
	require.Eventually(t, func() bool { d, _ := b.record(); return d.Round > before.Round+2 }, patience, 10*time.Millisecond)
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainDraining, d.Phase, "the deadline of the record has not come")
	require.Equal(t, before.Deadline, d.Deadline)
}

func TestTheRecordOfADrainThatEndedIsForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.times.Keep = 50 * time.Millisecond
	b.start(nil)
	b.request(events.GoalCordon)
	await[events.NodeCordoned](b, 1)
	b.cancel("")
	await[events.NodeUncordoned](b, 1)
	require.Eventually(t, func() bool { _, ok := b.record(); return !ok }, patience, 10*time.Millisecond)
}

func TestACordonedNodeThatVanishesIsNoLongerRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failed := false
	b.start(nil)
	b.request(events.GoalCordon)
	await[events.NodeCordoned](b, 1)
	b.world.change(func(w *world) {
		delete(w.nodes, testNode)
		w.fail = func(string) error {
			if !failed {
				failed = true
				return errAPI
			}
			return nil
		}
	})
	b.awaitPhase(lifecycle.DrainDone)
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Options{})
	require.ErrorContains(t, err, "bus is required")
	require.ErrorContains(t, err, "clusters is required")

	b := bustest.New(t)
	h, err := New(t.Context(), Options{Bus: b, Clusters: func() map[string]Cluster { return nil }})
	require.NoError(t, err)
	require.Equal(t, events.HandlerDraining, h.Name())
	require.Equal(t, 10, h.opts.Evictions)
	require.Equal(t, 5*time.Second, h.opts.Times.RetryMax)
	require.Equal(t, 5*time.Second, h.backoff(30))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = New(ctx, Options{Bus: b, Clusters: func() map[string]Cluster { return nil }})
	require.ErrorContains(t, err, "open state")
}
