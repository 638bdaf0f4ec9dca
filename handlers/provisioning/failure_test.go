package provisioning

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

var errDaemon = errors.New("cannot connect to the Docker daemon")

func TestTransientErrorsBeforeTheStartAreRetriedInsideTheClaim(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	b.world.failNext("create", errDaemon, errDaemon)
	b.world.failNext("start", errDaemon)
	b.world.failNext("get", errDaemon)
	p := b.start(nil)
	b.publish("decision", b.claim())
	created, _ := await[events.NodeCreated](b)
	require.True(t, created.Adopted, "the machine of the attempt whose start failed")
	await[events.NodeReady](b)
	b.says("node.created", "node.registered", "node.ready")
	require.Equal(t, 4, b.phase(p, lifecycle.Ready).Creation.Attempt)
	require.Equal(t, 1, b.world.runs[testClaim])
}

func TestPermanentErrorsFailTheClaimAndCleanUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, method string
		err          error
		code         string
	}{
		{"a missing image", "create", ErrImage, ReasonImage},
		{"a refused specification", "create", ErrRefused, ReasonRefused},
		{"a refused start", "start", ErrRefused, ReasonRefused},
		{"a full disk", "create", ErrNoSpace, ReasonNoSpace},
		{"a disk that is full when it starts", "start", ErrNoSpace, ReasonNoSpace},
		{"a machine that vanished before its start", "start", ErrNotFound, ReasonMachineGone},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.world.failNext(c.method, c.err)
			p := b.start(nil)
			claim := b.publish("decision", b.claim())
			failed, e := await[events.NodeFailed](b)
			require.Equal(t, c.code, failed.Failure.Reason.Code)
			require.Equal(t, "claimed", failed.Failure.Stage)
			require.Equal(t, "life-1", events.Extension(e, events.ExtCorrelationID))
			require.Equal(t, claim.ID(), events.Extension(e, events.ExtCausationID))
			n := b.settled(p)
			require.Equal(t, lifecycle.Failed, n.Phase)
			b.says(and([]string{"node.failed"}, cleanUp...)...)
			require.Zero(t, b.world.runs[testClaim])
			b.nothingLeft()
		})
	}
}

func TestForeignMachineOfTheSameNameFailsTheClaimAndIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.machines[testNode] = &Machine{Name: testNode, ID: "foreign", State: MachineRunning}
	p := b.start(nil)
	b.publish("decision", b.claim())
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNameTaken, failed.Failure.Reason.Code)
	b.settled(p)
	b.says("node.failed")
	require.Equal(t, MachineRunning, b.world.machines[testNode].State)
}

func TestClaimOfAnUnknownPoolFails(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.Pool = "gone" }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonUnknownPool, failed.Failure.Reason.Code)
	require.Contains(t, failed.Failure.Reason.Message, `pool "gone"`)
	require.Equal(t, lifecycle.Failed, b.settled(p).Phase)
}

func TestLateClaimFailsAndCreatesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.NotAfter = time.Now().Add(-time.Second) }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonClaimExpired, failed.Failure.Reason.Code)
	require.Equal(t, "claimed", failed.Failure.Stage)
	b.settled(p)
	b.says("node.failed")
	require.Zero(t, b.world.made("create"))
}

func TestClaimThatWaitedTooLongForAWorkerFailsAndCreatesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	idle := b.handler(nil) // handles, does not work
	claim := b.claim(func(p *events.NodeClaimed) { p.NotAfter = time.Now().Add(300 * time.Millisecond) })
	require.NoError(t, idle.h.Handle(t.Context(), b.delivery(b.publish("decision", claim), 1)))
	require.Eventually(t, func() bool { return time.Now().After(claim.NotAfter) }, time.Minute, 10*time.Millisecond)
	b.start(nil)
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonClaimExpired, failed.Failure.Reason.Code)
	require.Zero(t, b.world.made("create"))
}

func TestClaimEndsWithItsLastErrorWhenTheProviderStaysAway(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"create", "start"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			for range 1000 {
				b.world.errs[method] = append(b.world.errs[method], errDaemon)
			}
			p := b.start(nil)
			b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.NotAfter = time.Now().Add(5 * time.Second) }))
			failed, _ := await[events.NodeFailed](b)
			require.Equal(t, ReasonClaimExpired, failed.Failure.Reason.Code)
			require.Contains(t, failed.Failure.Reason.Message, errDaemon.Error())
			b.settled(p)
			b.says(and([]string{"node.failed"}, cleanUp...)...)
			b.nothingLeft()
		})
	}
}

func TestNodeThatNeverRegistersFailsAtItsDeadlineWithTheLog(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.log = strings.Repeat("x", MaxLog) + "the token is not valid"
	p := b.start(nil)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.RegisterDeadline = events.Duration(200 * time.Millisecond) }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNotRegistered, failed.Failure.Reason.Code)
	require.Equal(t, "created", failed.Failure.Stage)
	require.Len(t, failed.Failure.Log, MaxLog)
	require.True(t, strings.HasSuffix(failed.Failure.Log, "the token is not valid"), "the end of the log")
	n := b.settled(p)
	require.Equal(t, ReasonNotRegistered, n.Failure.Reason.Code)
	b.says(and([]string{"node.created", "node.failed"}, cleanUp...)...)
	b.nothingLeft()
}

func TestTheLogOfANodeThatNeverRegistersNamesTheCause(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.log = `level=error msg="Failed to validate connection to cluster at https://k3s:6443: https://k3s:6443/v1-k3s/config: 401 Unauthorized"`
	p := b.start(nil)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.RegisterDeadline = events.Duration(200 * time.Millisecond) }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonTokenRejected, failed.Failure.Reason.Code)
	require.Contains(t, failed.Failure.Reason.Message, "no node of this claim registered within 200ms")
	require.Contains(t, failed.Failure.Reason.Message, "copy the server's /var/lib/rancher/k3s/server/node-token to token_file")
	require.Equal(t, b.world.log, failed.Failure.Log)
	b.settled(p)
	require.InDelta(t, 1, testutil.ToFloat64(p.h.metrics.failures.WithLabelValues(ReasonTokenRejected)), 0)
	b.nothingLeft()
}

func TestNodeThatRegistersButIsNeverReadyFailsAtItsDeadline(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.onStart = func(name string) { b.observe(events.ObservedRegistered, b.world.register(name, false)) }
	b.world.failNext("logs", errDaemon)
	p := b.start(nil)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.RegisterDeadline = events.Duration(5 * time.Second) }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNotReady, failed.Failure.Reason.Code)
	require.Equal(t, "registered", failed.Failure.Stage)
	require.Contains(t, failed.Failure.Log, errDaemon.Error(), "says why there is no log")
	b.settled(p)
	b.says(and([]string{"node.created", "node.registered", "node.failed"}, cleanUp...)...)
	b.nothingLeft()
}

func TestAgentThatExitsFailsTheClaimBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.log = "flag provided but not defined"
	b.world.onStart = func(name string) {
		b.world.do(func(w *fakeWorld) { w.machines[name].State, w.machines[name].ExitCode = MachineExited, 2 })
	}
	p := b.start(nil)
	b.publish("decision", b.claim())
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonMachineExited, failed.Failure.Reason.Code)
	require.Contains(t, failed.Failure.Reason.Message, "exit code 2")
	require.Equal(t, "flag provided but not defined", failed.Failure.Log)
	b.settled(p)
	b.says(and([]string{"node.created", "node.failed"}, cleanUp...)...)
	require.Equal(t, 1, b.world.runs[testClaim])
	b.nothingLeft()
}

func TestMachineThatVanishesBeforeReadyFailsTheClaim(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.onStart = func(name string) { b.world.do(func(w *fakeWorld) { delete(w.machines, name) }) }
	b.start(nil)
	b.publish("decision", b.claim())
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonMachineGone, failed.Failure.Reason.Code)
	require.Empty(t, failed.Failure.Log)
}

func TestNodeObjectDeletedBeforeReadyFailsTheClaim(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	var object NodeObject
	b.world.onStart = func(name string) {
		object = b.world.register(name, false)
		b.observe(events.ObservedRegistered, object)
	}
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Registered)
	b.world.do(func(w *fakeWorld) { delete(w.objects, testNode) })
	b.observe(events.ObservedDeleted, object)
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNodeDeleted, failed.Failure.Reason.Code)
	b.settled(p)
	b.nothingLeft()
}

func TestCleanUpIsRetriedUntilItIsDone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	await[events.NodeReady](b)
	for _, method := range []string{"stop", "deletenode", "deletesecret", "delete"} {
		b.world.failNext(method, errDaemon)
	}
	b.drain()
	await[events.NodeRemoved](b)
	b.says(and([]string{"node.created", "node.registered", "node.ready"}, and(cleanUp, "node.removed")...)...)
	for _, method := range []string{"stop", "deletenode", "deletesecret", "delete"} {
		require.Equal(t, 2, b.world.made(method), method)
	}
	require.Empty(t, b.settled(p).Removal.LastError)
	b.nothingLeft()
}

func TestRemovalOfWhatIsGoneAlreadySaysSo(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.start(nil)
	b.drain()
	await[events.NodeRemoved](b)
	b.says(and(cleanUp, "node.removed")...)
	for _, d := range b.events() {
		if d.Event.Type() == events.TypeNodeRemovalProgressed {
			p, err := events.Decode[events.NodeRemovalProgressed](d.Event)
			require.NoError(t, err)
			require.Equal(t, alreadyGone, p.Detail, p.Step)
		}
	}
}

func TestRemovalLeavesAloneWhatBelongsToAnotherClaim(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.machines[testNode] = &Machine{Name: testNode, Cluster: testCluster, Pool: testPool, ClaimID: "claim-of-another", State: MachineRunning}
	b.world.register(testNode, true)
	b.start(nil)
	b.drain()
	await[events.NodeRemoved](b)
	for _, d := range b.events() {
		if d.Event.Type() == events.TypeNodeRemovalProgressed {
			p, err := events.Decode[events.NodeRemovalProgressed](d.Event)
			require.NoError(t, err)
			require.Equal(t, notOurs, p.Detail, p.Step)
		}
	}
	require.Equal(t, MachineRunning, b.world.machines[testNode].State)
	require.Zero(t, b.world.made("stop")+b.world.made("delete")+b.world.made("deletenode")+b.world.made("deletesecret"))
}

func TestRemovalBeginsAnewWhenTheNodeIsThereAgain(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	again := false
	p := b.start(func(step string, _ func()) {
		if step == "provisioning/delete-node/after" && !again {
			again = true
			b.world.register(testNode, true) // started by hand
		}
	})
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Ready)
	b.drain()
	await[events.NodeRemoved](b)
	b.says(and([]string{"node.created", "node.registered", "node.ready", events.StepInstanceStopped, events.StepNodeDeleted},
		and(cleanUp, "node.removed")...)...)
	b.nothingLeft()
}

func TestRemovalWaitsForAPoolThatIsNotConfigured(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.pools = map[string]Machines{}
	p := b.handler(nil)
	require.NoError(t, p.h.Handle(t.Context(), b.delivery(b.event("draining", events.NodeDrained{Reason: events.Reason{Code: "Unneeded"},
		DrainRef: events.DrainRef{Node: testNode, Pool: testPool, ClaimID: testClaim, Goal: events.GoalRemove, RequestID: "r"}}), 1)))
	l, err := p.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, 10*time.Second)
	require.NoError(t, err)
	err = p.h.work(t.Context(), l)
	require.ErrorIs(t, err, errUnknownPool)
	require.Equal(t, 1, l.Record().Removal.Attempt)
	require.Contains(t, l.Record().Removal.LastError, "configure it again")
}

func TestDryRunClaimsAreIgnored(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.handler(nil)
	e := b.event("decision", b.claim(), func(m *events.Meta) { m.DryRun = true })
	require.NoError(t, p.h.Handle(t.Context(), b.delivery(e, 1)))
	_, exists, err := p.h.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
	require.NoError(t, err)
	require.False(t, exists)
}

func TestSecondClaimOnANameIsRefusedWhileTheFirstLives(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.phase(p, lifecycle.Ready)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.ClaimID = "claim-2" }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, "claim-2", failed.ClaimID)
	require.Equal(t, ReasonNameTaken, failed.Failure.Reason.Code)
	n := b.phase(p, lifecycle.Ready)
	require.Equal(t, testClaim, n.ClaimID)

	b.drain()
	b.settled(p)
	b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.ClaimID = "claim-3" }))
	n = b.record(p, "the third claim's", func(n lifecycle.Node, _ bool) bool { return n.ClaimID == "claim-3" && n.Phase == lifecycle.Ready })
	require.Nil(t, n.Removal)
}

func TestBackoffDoublesUpToItsLimitAndIsSpread(t *testing.T) {
	t.Parallel()
	h := &Handler{times: Times{}.withDefaults()}
	last := time.Duration(0)
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		d := h.backoff(testNode, i+1)
		require.InDelta(t, float64(want), float64(d), 0.2*float64(want))
		require.Equal(t, d, h.backoff(testNode, i+1), "the same for every process")
		last = d
	}
	require.NotEqual(t, last, h.backoff("another", 7))
	require.LessOrEqual(t, h.backoff(testNode, 1000), 36*time.Second)
}
