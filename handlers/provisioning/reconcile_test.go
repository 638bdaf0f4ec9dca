package provisioning

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// sweeps is a process that only sweeps, on a clock of its own.
type sweeps struct {
	*sweeper
	b     *testBundle
	clock *clocktesting.FakeClock
}

func (b *testBundle) sweeps() *sweeps {
	b.t.Helper()
	fake := clocktesting.NewFakeClock(time.Now())
	b.clock = fake
	p := b.handler(nil)
	return &sweeps{sweeper: newSweeper(p.h), b: b, clock: fake}
}

func (s *sweeps) run() {
	s.b.t.Helper()
	require.NoError(s.b.t, s.sweep(s.b.t.Context()))
}

// diverged returns the kinds that were published.
func (b *testBundle) diverged() []string {
	b.t.Helper()
	out := []string{}
	for _, d := range b.events() {
		if d.Event.Type() == events.TypeNodeDiverged {
			p, err := events.Decode[events.NodeDiverged](d.Event)
			require.NoError(b.t, err)
			out = append(out, p.Kind)
		}
	}
	return out
}

// ready brings the test's node to Ready.
func (b *testBundle) ready(p *process) lifecycle.Node {
	b.t.Helper()
	b.agent()
	b.publish("decision", b.claim())
	return b.phase(p, lifecycle.Ready)
}

func TestSweepChangesNothingWhereAllAgree(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	s.clock.Step(time.Minute)
	for range 5 {
		s.run()
		s.clock.Step(time.Minute)
	}
	require.Empty(t, b.diverged())
}

// The records are read after the lists.
func TestANodeThatBecomesReadyDuringASweepIsNotLost(t *testing.T) {
	t.Parallel()
	began := time.Now()
	v := &view{began: began, listed: map[string]bool{"small": true}, nodes: map[string]NodeObject{}}
	n := lifecycle.Node{Pool: "small", Phase: lifecycle.Ready, Since: began.Add(time.Millisecond)}
	_, differs := (&Handler{}).compareRecord(v, testNode, n, began.Add(time.Second))
	require.False(t, differs)
	n.Since = began.Add(-time.Millisecond)
	p, differs := (&Handler{}).compareRecord(v, testNode, n, began.Add(time.Second))
	require.True(t, differs)
	require.Equal(t, "its machine is gone", p.Detail)
}

func TestOrphanMachineIsRemovedAfterItsGrace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		make func(b *testBundle)
	}{
		{"never started", func(b *testBundle) { b.world.machines[testNode] = b.machine(MachineCreated) }},
		{"ended", func(b *testBundle) { b.world.machines[testNode] = b.machine(MachineExited) }},
		{"running without a node", func(b *testBundle) { b.world.machines[testNode] = b.machine(MachineRunning) }},
		{"running with a node that is not Ready", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineRunning)
			b.world.register(testNode, false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			c.make(b)
			s := b.sweeps()
			b.clock = clock.RealClock{}
			p := b.start(nil)
			s.run()
			s.clock.Step(time.Minute)
			s.run()
			require.Empty(t, b.diverged(), "it may be between two steps")
			s.clock.Step(time.Minute)
			s.run()
			require.Equal(t, []string{events.DivergedOrphanInstance}, b.diverged())
			removed, _ := await[events.NodeRemoved](b)
			require.Equal(t, ReasonOrphanInstance, removed.Reason.Code)
			require.Equal(t, testClaim, removed.ClaimID)
			b.says(and(cleanUp, "node.removed")...)
			b.settled(p)
			b.nothingLeft()
		})
	}
}

func TestWhatIsNotForTheSweepToRemoveIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		make func(b *testBundle)
	}{
		{"a machine without a claim", func(b *testBundle) { b.world.machines[testNode] = &Machine{Name: testNode, State: MachineRunning} }},
		{"a machine of another cluster", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineExited)
			b.world.machines[testNode].Cluster = "office"
		}},
		{"a machine of another log", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineExited)
			b.world.machines[testNode].Epoch = "another"
		}},
		{"a machine of a pool that is not configured", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineExited)
			b.world.machines[testNode].Pool = "gone"
		}},
		{"a Ready node whose machine another log made", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineRunning)
			b.world.machines[testNode].Epoch = "another"
			b.world.register(testNode, true)
		}},
		{"a Ready node whose object carries another claim", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineRunning)
			b.world.objects[testNode] = NodeObject{Name: testNode, UID: "u", Pool: testPool, ClaimID: "claim-2", Ready: true}
		}},
		{"a Ready node whose machine does not run", func(b *testBundle) {
			b.world.machines[testNode] = b.machine(MachineExited)
			b.world.register(testNode, true)
		}},
		{"a node without a claim", func(b *testBundle) { b.world.register(testNode, false) }},
		{"a Ready node without a machine", func(b *testBundle) {
			b.world.objects[testNode] = NodeObject{Name: testNode, UID: "u", Pool: testPool, ClaimID: testClaim, Ready: true}
		}},
		{"a node of a pool that is not configured", func(b *testBundle) {
			b.world.objects[testNode] = NodeObject{Name: testNode, UID: "u", Pool: "gone", ClaimID: testClaim}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			c.make(b)
			s := b.sweeps()
			for range 4 {
				s.run()
				s.clock.Step(time.Minute)
			}
			require.Empty(t, b.diverged())
			require.Zero(t, b.world.made("stop")+b.world.made("delete")+b.world.made("deletenode"))
		})
	}
}

func TestOrphanThatTurnsOutReadyIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.machines[testNode] = b.machine(MachineRunning)
	b.world.register(testNode, true)
	p := b.start(nil)
	e := b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedOrphanInstance, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	b.handled(p, e)
	b.record(p, "forgotten", func(_ lifecycle.Node, exists bool) bool { return !exists })
	require.Zero(t, b.world.made("stop"))
	require.Equal(t, MachineRunning, b.world.machines[testNode].State)
}

func TestOrphanNodeIsDeleted(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.objects[testNode] = NodeObject{Name: testNode, UID: "u", Pool: testPool, ClaimID: testClaim}
	b.world.secrets[testNode] = true
	s := b.sweeps()
	b.clock = clock.RealClock{}
	b.start(nil)
	for range 3 {
		s.run()
		s.clock.Step(time.Minute)
	}
	require.Equal(t, []string{events.DivergedOrphanNode}, b.diverged())
	removed, _ := await[events.NodeRemoved](b)
	require.Equal(t, ReasonOrphanNode, removed.Reason.Code)
	b.nothingLeft()
}

func TestMachineOfAnEndedClaimIsRemovedAgain(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	s.clock.Step(time.Minute)
	b.drain()
	b.settled(p)
	// An owner that was frozen in Create woke up after all.
	b.world.do(func(w *fakeWorld) { w.machines[testNode] = b.machine(MachineCreated) })
	for range 3 {
		s.run()
		s.clock.Step(time.Minute)
	}
	b.record(p, "removed again", func(n lifecycle.Node, _ bool) bool { return n.Settled() && n.Removal.Round == 2 })
	b.nothingLeft()
	b.says(and([]string{"node.created", "node.registered", "node.ready"}, and(and(cleanUp, "node.removed"), cleanUp...)...)...)
}

func TestReadyNodeThatVanishedIsLostAndCleanedUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		vanish func(w *fakeWorld)
		sweeps int
		code   string
	}{
		{"its machine", func(w *fakeWorld) { delete(w.machines, testNode) }, 1, ReasonMachineGone},
		{"its Node object", func(w *fakeWorld) { delete(w.objects, testNode) }, 1, ReasonNodeDeleted},
		{"its machine ended", func(w *fakeWorld) {
			w.machines[testNode].State = MachineExited
			o := w.objects[testNode]
			o.Ready = false
			w.objects[testNode] = o
		}, 3, ReasonMachineExited},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			s := b.sweeps()
			b.clock = clock.RealClock{}
			p := b.start(nil)
			b.ready(p)
			s.clock.Step(time.Minute)
			b.world.do(c.vanish)
			for i := range c.sweeps {
				require.Empty(t, b.diverged(), "after %d sweeps", i)
				s.run()
				s.clock.Step(time.Minute)
			}
			require.Equal(t, []string{events.DivergedNodeLost}, b.diverged())
			lost, e := await[events.NodeLost](b)
			require.Equal(t, c.code, lost.Reason.Code)
			require.Equal(t, "life-1", events.Extension(e, events.ExtCorrelationID))
			n := b.settled(p)
			require.Equal(t, lifecycle.Lost, n.Phase)
			b.says(and([]string{"node.created", "node.registered", "node.ready", "node.lost"}, cleanUp...)...)
			b.nothingLeft()
		})
	}
}

func TestNodeObjectDeletedByHandIsLost(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	n := b.ready(p)
	b.world.do(func(w *fakeWorld) { delete(w.objects, testNode) })
	b.observe(events.ObservedDeleted, NodeObject{UID: n.UID})
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonNodeDeleted, lost.Reason.Code)
	b.settled(p)
	b.nothingLeft()
}

func TestReportThatTurnsOutWrongIsDismissed(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	n := b.ready(p)
	b.world.failNext("getnode", errDaemon, errDaemon)
	e := b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	b.handled(p, e)
	b.observe(events.ObservedDeleted, NodeObject{UID: n.UID})
	b.record(p, "cleared", func(n lifecycle.Node, _ bool) bool { return n.Suspicion == nil && n.Phase == lifecycle.Ready })
	e = b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedOrphanInstance, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	b.handled(p, e)
	require.Equal(t, lifecycle.Ready, b.phase(p, lifecycle.Ready).Phase)
	require.Zero(t, b.world.made("stop"))
	require.NotContains(t, b.said(), "node.lost")
}

func TestReportAboutAWaitingMachineIsDismissedWhenItRuns(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Created)
	e := b.publish("provisioning", events.NodeObserved{Node: testNode, What: events.ObservedExited, At: time.Now()})
	b.handled(p, e)
	b.record(p, "cleared", func(n lifecycle.Node, _ bool) bool { return n.Suspicion == nil && n.Phase == lifecycle.Created })
	b.says("node.created")
}

func TestRecordPastItsDeadlineIsReportedAndWoken(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	idle := b.handler(nil)
	require.NoError(t, idle.h.Handle(t.Context(), b.delivery(b.publish("decision", b.claim()), 1)))
	s.clock.Step(4 * time.Minute) // nobody works
	s.run()
	s.clock.Step(2 * time.Minute)
	s.run()
	s.run()
	require.Equal(t, []string{events.DivergedStuck}, b.diverged(), "once, however often it is seen")
	var last bus.Delivery
	for _, last = range b.events() {
	}
	require.NoError(t, idle.h.Handle(t.Context(), last))
	r, _, err := idle.h.state.Get(t.Context(), last.Key)
	require.NoError(t, err)
	require.Equal(t, last.Sequence, r.Last)
	require.Equal(t, lifecycle.Claimed, r.State.Phase)
}

func TestUnknownIsNotGone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	s.clock.Step(time.Minute)
	b.world.do(func(w *fakeWorld) {
		w.machines[testNode+"-orphan"] = &Machine{Name: testNode + "-orphan", Cluster: testCluster, Pool: testPool, ClaimID: "c", State: MachineRunning}
	})
	for range 4 {
		b.world.failNext("list", errDaemon)
		b.world.failNext("listnodes", errDaemon)
		err := s.sweep(t.Context())
		require.ErrorContains(t, err, "list machines of pool small")
		require.ErrorContains(t, err, "list nodes of cluster home")
		s.clock.Step(time.Minute)
	}
	for range 4 { // the nodes alone can't be had: whether the orphan's is Ready is unknown
		b.world.failNext("listnodes", errDaemon)
		require.Error(t, s.sweep(t.Context()))
		s.clock.Step(time.Minute)
	}
	require.Empty(t, b.diverged())
	require.Empty(t, b.orphans(testNode+"-orphan"))
}

// orphans returns the divergences of another node.
func (b *testBundle) orphans(node string) []string {
	var out []string
	for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: testCluster, Node: node}) {
		require.NoError(b.t, err)
		out = append(out, d.Event.Type())
	}
	return out
}

func TestRecordOfANodeThatIsGoneIsForgottenAfterADay(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	s.clock.Step(time.Minute)
	b.drain()
	b.settled(p)
	s.clock.SetTime(time.Now().Add(23 * time.Hour))
	s.run()
	require.Equal(t, lifecycle.Removed, b.settled(p).Phase)
	s.clock.SetTime(time.Now().Add(25 * time.Hour))
	s.run()
	b.record(p, "forgotten", func(_ lifecycle.Node, exists bool) bool { return !exists })
	s.run()
}

func TestRunSweepsAtOnceAndWatches(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.times.Sweep, b.times.Grace = 20*time.Millisecond, 50*time.Millisecond
	b.world.machines[testNode] = b.machine(MachineExited)
	b.world.failNext("list", errDaemon)
	b.start(nil)
	await[events.NodeRemoved](b)
	b.nothingLeft()
}

func TestWatchGoesOnAfterErrors(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Created)
	b.world.failNext("get", errDaemon)
	require.Eventually(t, func() bool { return b.world.made("get") > 3 }, time.Minute, 10*time.Millisecond)
	b.world.do(func(w *fakeWorld) { w.machines[testNode].State = MachineExited })
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonMachineExited, failed.Failure.Reason.Code)
}

func TestReasonsAreSentences(t *testing.T) {
	t.Parallel()
	require.Equal(t, "there is no record of it", recordState(lifecycle.Node{}, false))
	require.True(t, strings.HasSuffix(recordState(lifecycle.Node{Phase: lifecycle.Failed}, true), "failed"))
}

// A node stays Ready for a while after its machine ended, so that the first report
// turns out wrong.
func TestAMachineThatEndedIsReportedAgainWhenItsNodeIsNoLongerReady(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	s := b.sweeps()
	// The reports lie within one span of five minutes.
	s.clock.SetTime(time.Now().Truncate(5 * time.Minute).Add(5 * time.Minute))
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	b.world.do(func(w *fakeWorld) { w.machines[testNode].State = MachineExited })
	for range 3 {
		s.clock.Step(time.Minute)
		s.run()
	}
	require.Equal(t, []string{events.DivergedNodeLost}, b.diverged())
	for _, d := range b.events() {
		if d.Event.Type() == events.TypeNodeDiverged {
			b.handled(p, d.Event)
		}
	}
	b.record(p, "checked", func(n lifecycle.Node, _ bool) bool { return n.Phase == lifecycle.Ready && n.Suspicion == nil })
	b.world.do(func(w *fakeWorld) {
		o := w.objects[testNode]
		o.Ready = false
		w.objects[testNode] = o
	})
	s.clock.Step(time.Minute)
	s.run()
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonMachineExited, lost.Reason.Code)
	b.settled(p)
	b.nothingLeft()
}
