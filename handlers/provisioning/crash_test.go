package provisioning

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// looksOnly tells the steps that change nothing.
func looksOnly(step string) bool {
	return strings.Contains(step, "/inspect/") || strings.Contains(step, "/list/")
}

// TestProcessKilledAtEveryStepOfALife kills the process at each step that a
// life without a kill goes through, before and after each effect and each
// write, and requires that the next process finishes the work: one machine for
// the claim, nothing left behind, nothing said twice.
func TestProcessKilledAtEveryStepOfALife(t *testing.T) {
	t.Parallel()
	steps := lifeSteps(t, false)
	for _, must := range []string{
		"provisioning/create/before", "provisioning/create/after", "provisioning/start/before", "provisioning/start/after",
		"provisioning/stop/before", "provisioning/stop/after", "provisioning/delete-node/before", "provisioning/delete-node/after",
		"provisioning/delete-secret/before", "provisioning/delete-secret/after",
		"provisioning/delete-machine/before", "provisioning/delete-machine/after",
		"provisioning/starting/write/before", "provisioning/starting/write/after",
		"provisioning/created/write/before", "provisioning/created/write/after", "provisioning/created/publish/after",
		"provisioning/instance-deleted/write/before", "provisioning/instance-deleted/write/after", "provisioning/instance-deleted/publish/after",
		"provisioning/write/before", "provisioning/write/after", "provisioning/publish/after",
	} {
		require.Contains(t, steps, must)
	}
	for _, step := range steps {
		if strings.Contains(step, "/create-intent/") {
			continue // the claim came before the worker had begun; see below
		}
		times := 1
		if strings.Count(step, "/") == 2 && !strings.Contains(step, "-") && slices.Contains([]string{"write", "publish"}, strings.Split(step, "/")[1]) {
			times = 5 // messages: claimed, registered, ready, cordoned, drained
		}
		for nth := 1; nth <= times; nth++ {
			t.Run(fmt.Sprintf("%s#%d", strings.ReplaceAll(strings.TrimPrefix(step, "provisioning/"), "/", "-"), nth), func(t *testing.T) {
				t.Parallel()
				lifeWithAKill(t, step, nth, false)
			})
		}
	}
}

// Where another process works on the claims than reads them, the intent is a write of
// its own.
func TestProcessKilledAtTheIntentOfAClaimThatItDidNotTakeUpWithTheMessage(t *testing.T) {
	t.Parallel()
	steps := lifeSteps(t, true)
	for _, step := range []string{"provisioning/create-intent/write/before", "provisioning/create-intent/write/after",
		"provisioning/create/before", "provisioning/create/after"} {
		require.Contains(t, steps, step)
		t.Run(strings.ReplaceAll(strings.TrimPrefix(step, "provisioning/"), "/", "-"), func(t *testing.T) {
			t.Parallel()
			lifeWithAKill(t, step, 1, true)
		})
	}
}

// Taken up with the message, a claim costs one write before its machine is created.
func TestAClaimIsWrittenOnceBeforeItsMachineIsCreated(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	var mu sync.Mutex
	var steps []string
	b.start(func(step string, _ func()) {
		mu.Lock()
		defer mu.Unlock()
		steps = append(steps, step)
	})
	claim := func(node string) {
		b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.Node, p.ClaimID = node, "claim of "+node }),
			func(m *events.Meta) { m.Node = node })
	}
	claim("small-bbbbbbbbbb")
	require.Eventually(t, func() bool { // it is worked on: there is a worker
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(steps, "provisioning/created/publish/after")
	}, patience, time.Millisecond)
	mu.Lock()
	steps = nil
	mu.Unlock()
	claim("small-cccccccccc")
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(steps, "provisioning/create/before")
	}, patience, time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	require.NotContains(t, steps, "provisioning/create-intent/write/before")
}

// lifeSteps returns the steps of a life in which nothing goes wrong.
func lifeSteps(t *testing.T, apart bool) []string {
	t.Helper()
	var mu sync.Mutex
	var steps []string
	b := newBundle(t)
	b.apart = apart
	p := b.start(func(step string, _ func()) {
		mu.Lock()
		defer mu.Unlock()
		if !looksOnly(step) {
			steps = append(steps, step)
		}
	})
	b.agent()
	b.publish("decision", b.claim())
	await[events.NodeReady](b)
	b.drain()
	await[events.NodeRemoved](b)
	b.settled(p)
	p.stop()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(steps)
	return slices.Compact(steps)
}

func lifeWithAKill(t *testing.T, at string, nth int, apart bool) {
	b := newBundle(t)
	b.apart = apart
	var mu sync.Mutex
	var hit int
	killed := make(chan struct{})
	first := b.start(func(step string, kill func()) {
		mu.Lock()
		if step == at {
			hit++
		}
		now := step == at && hit == nth
		mu.Unlock()
		if now {
			close(killed)
			kill()
		}
	})
	b.agent()
	b.publish("decision", b.claim())
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		await[events.NodeReady](b)
		b.drain()
	}()
	select {
	case <-killed:
	case <-time.After(patience):
		require.Fail(t, "step is never reached", at)
	}
	first.stop()
	second := b.start(nil)
	n := b.settled(second)
	<-drained
	require.Equal(t, lifecycle.Removed, n.Phase)
	b.doneOnce()
}

// doneOnce requires that a whole life happened, once.
func (b *testBundle) doneOnce() {
	b.t.Helper()
	b.says(and([]string{"node.created", "node.registered", "node.ready"}, and(cleanUp, "node.removed")...)...)
	ids := map[string]bool{}
	for _, d := range b.events() {
		require.False(b.t, ids[d.Event.ID()], "event %s twice", d.Event.Type())
		ids[d.Event.ID()] = true
	}
	require.Equal(b.t, 1, b.world.runs[testClaim])
	b.nothingLeft()
}

func TestProcessKilledWhileAClaimFailsFinishesTheCleanUp(t *testing.T) {
	t.Parallel()
	for _, at := range []string{
		"provisioning/logs/before", "provisioning/logs/after",
		"provisioning/failed/write/before", "provisioning/failed/write/after", "provisioning/failed/publish/after",
		"provisioning/stop/after", "provisioning/delete-machine/after",
	} {
		t.Run(strings.ReplaceAll(strings.TrimPrefix(at, "provisioning/"), "/", "-"), func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.world.log = "no route to host"
			killed := make(chan struct{})
			var once sync.Once
			first := b.start(func(step string, kill func()) {
				if step == at {
					once.Do(func() { close(killed) })
					kill()
				}
			})
			b.publish("decision", b.claim(func(p *events.NodeClaimed) { p.RegisterDeadline = events.Duration(200 * time.Millisecond) }))
			<-killed
			first.stop()
			second := b.start(nil)
			require.Equal(t, lifecycle.Failed, b.settled(second).Phase)
			b.says(and([]string{"node.created", "node.failed"}, cleanUp...)...)
			failed, _ := await[events.NodeFailed](b)
			require.Equal(t, "no route to host", failed.Failure.Log)
			require.Equal(t, 1, b.world.runs[testClaim])
			b.nothingLeft()
		})
	}
}

func TestClaimHandledTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	claim := b.claim()
	e := b.publish("decision", claim)
	b.phase(p, lifecycle.Ready)
	var d bus.Delivery
	for _, d = range b.events() {
		if d.Event.ID() == e.ID() {
			break
		}
	}
	require.NoError(t, p.h.Handle(t.Context(), d), "redelivered")
	again := b.publish("decision", claim) // published once more, by a decision that did not know
	b.handled(p, again)
	b.says("node.created", "node.registered", "node.ready")
	require.Equal(t, 1, b.world.made("create"))
	require.Equal(t, 1, b.world.runs[testClaim])
}

func TestEveryMessageHandledTwiceHasOneEffect(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	p := b.start(nil)
	b.publish("decision", b.claim())
	await[events.NodeReady](b)
	b.drain()
	n := b.settled(p)
	said := and([]string{"node.created", "node.registered", "node.ready"}, and(cleanUp, "node.removed")...)
	b.says(said...)
	for _, d := range b.events() {
		if def, ok := events.Lookup(d.Event.Type()); ok && def.ReadBy(events.HandlerProvisioning) {
			require.NoError(t, p.h.Handle(t.Context(), d))
		}
	}
	b.says(said...)
	require.Equal(t, n, b.settled(p))
}

func TestWorkOfAnOwnerThatDiedIsTakenOverWhenItsLeaseEnds(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	dead := b.handler(nil)
	require.NoError(t, dead.h.Handle(t.Context(), b.delivery(b.publish("decision", b.claim()), 1)))
	l, err := dead.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, time.Second)
	require.NoError(t, err)
	r, _, err := dead.h.state.Get(t.Context(), bus.Key{Cluster: testCluster, Name: testNode})
	require.NoError(t, err)
	until := r.LeaseUntil
	b.start(nil)
	await[events.NodeReady](b)
	require.True(t, time.Now().After(until), "not before the lease ended")
	require.ErrorIs(t, l.Confirm(t.Context()), bus.ErrLeaseLost)
	require.Equal(t, 1, b.world.runs[testClaim])
}

// TestOwnerThatWakesUpLateDoesNothing freezes an owner between creating and
// starting; its lease ends, the next owner finishes, and the sleeper wakes.
func TestOwnerThatWakesUpLateDoesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	frozen, wake := make(chan struct{}), make(chan struct{})
	late := b.handler(func(step string) {
		if step == "provisioning/create/after" {
			close(frozen)
			<-wake
		}
	})
	require.NoError(t, late.h.Handle(t.Context(), b.delivery(b.publish("decision", b.claim()), 1)))
	l, err := late.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, time.Second)
	require.NoError(t, err)
	result := make(chan error)
	go func() { result <- late.h.work(l.Context(), l) }()
	<-frozen
	b.start(nil)
	created, _ := await[events.NodeCreated](b)
	require.True(t, created.Adopted)
	await[events.NodeReady](b)
	close(wake)
	err = <-result
	require.True(t, errors.Is(err, bus.ErrLeaseLost) || errors.Is(err, context.Canceled), "%v", err)
	require.Equal(t, 1, b.world.made("start"), "the sleeper started nothing")
	b.says("node.created", "node.registered", "node.ready")
	require.Equal(t, 1, b.world.runs[testClaim])
}

// resumed brings a claim to the state in which its owner died: the intent is
// written, and starting says whether the machine may have been started.
func resumed(b *testBundle, starting bool, mod ...func(n *lifecycle.Node)) *process {
	b.t.Helper()
	p := b.handler(nil)
	require.NoError(b.t, p.h.Handle(b.t.Context(), b.delivery(b.publish("decision", b.claim()), 1)))
	require.NoError(b.t, p.h.state.Amend(b.t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, "prepare", func(t *bus.Turn[lifecycle.Node]) error {
		t.State.Creation = &lifecycle.Creation{Operation: "create", Starting: starting}
		for _, m := range mod {
			m(t.State)
		}
		return nil
	}))
	return p
}

func (b *testBundle) machine(state MachineState) *Machine {
	return &Machine{Name: testNode, ID: "m-1", Cluster: testCluster, Pool: testPool, ClaimID: testClaim, Epoch: b.bus.Incarnation(), State: state}
}

func TestClaimWhoseOwnerDiedIsResumedByWhatIsThere(t *testing.T) {
	t.Parallel()
	expired := func(n *lifecycle.Node) { n.NotAfter = time.Now().Add(-time.Second) }
	for _, c := range []struct {
		name     string
		machine  func(b *testBundle) *Machine
		starting bool
		mod      []func(*lifecycle.Node)
		code     string // of the failure; empty: created
		runs     int
		said     []string
	}{
		{name: "nothing was created: it is created", runs: 1, said: []string{"node.created"}},
		{name: "a created machine is adopted and started", machine: func(b *testBundle) *Machine { return b.machine(MachineCreated) },
			runs: 1, said: []string{"node.created"}},
		{name: "a running machine is adopted", machine: func(b *testBundle) *Machine { return b.machine(MachineRunning) },
			starting: true, said: []string{"node.created"}},
		{name: "a running machine is adopted even after the claim's end", machine: func(b *testBundle) *Machine { return b.machine(MachineRunning) },
			starting: true, mod: []func(*lifecycle.Node){expired}, said: []string{"node.created"}},
		{name: "a machine that ended is not started again", machine: func(b *testBundle) *Machine { return b.machine(MachineExited) },
			starting: true, code: ReasonMachineExited, said: and([]string{"node.failed"}, cleanUp...)},
		{name: "a machine that vanished while starting is not made again", starting: true, code: ReasonMachineGone,
			said: and([]string{"node.failed"}, cleanUp...)},
		{name: "nothing was created and the claim ended", mod: []func(*lifecycle.Node){expired}, code: ReasonClaimExpired,
			said: and([]string{"node.failed"}, cleanUp...)},
		{name: "a machine that was never started is removed when the claim ended", machine: func(b *testBundle) *Machine { return b.machine(MachineCreated) },
			mod: []func(*lifecycle.Node){expired}, code: ReasonClaimExpired, said: and([]string{"node.failed"}, cleanUp...)},
		{name: "a machine of another log is left alone", machine: func(b *testBundle) *Machine {
			m := b.machine(MachineRunning)
			m.Epoch = "another"
			return m
		}, code: ReasonNameTaken, said: []string{"node.failed"}},
		{name: "the API server was faster than the record", machine: func(b *testBundle) *Machine { return b.machine(MachineRunning) }, starting: true,
			mod: []func(*lifecycle.Node){func(n *lifecycle.Node) {
				n.Early = &lifecycle.Early{UID: "uid-1", RegisteredAt: time.Now(), ReadyAt: time.Now()}
			}},
			said: []string{"node.created", "node.registered", "node.ready"}},
		{name: "the API server was faster, but the node is not Ready", machine: func(b *testBundle) *Machine { return b.machine(MachineRunning) }, starting: true,
			mod:  []func(*lifecycle.Node){func(n *lifecycle.Node) { n.Early = &lifecycle.Early{UID: "uid-1", RegisteredAt: time.Now()} }},
			said: []string{"node.created", "node.registered"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			if c.machine != nil {
				b.world.machines[testNode] = c.machine(b)
			}
			resumed(b, c.starting, c.mod...)
			p := b.start(nil)
			if c.code != "" {
				failed, _ := await[events.NodeFailed](b)
				require.Equal(t, c.code, failed.Failure.Reason.Code)
				b.settled(p)
			} else {
				created, _ := await[events.NodeCreated](b)
				require.Equal(t, c.machine != nil, created.Adopted)
			}
			b.says(c.said...)
			require.Equal(t, c.runs, b.world.runs[testClaim])
		})
	}
}

func TestMachineThatMayRunIsNotGivenUpUnseen(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world.machines[testNode] = b.machine(MachineRunning)
	b.world.failNext("get", errDaemon, errDaemon)
	resumed(b, true, func(n *lifecycle.Node) { n.NotAfter = time.Now().Add(-time.Second) })
	b.start(nil)
	created, _ := await[events.NodeCreated](b)
	require.True(t, created.Adopted)
}

func TestObservationsBeforeTheStartIsRecordedAreKept(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := resumed(b, true)
	key := bus.Key{Cluster: testCluster, Name: testNode}
	seq := uint64(100)
	see := func(what, uid string) *lifecycle.Early {
		seq++
		e := b.event("collector", events.NodeObserved{Node: testNode, What: what, UID: uid, At: time.Now(),
			Labels: map[string]string{events.LabelClaim: testClaim}})
		require.NoError(t, p.h.Handle(t.Context(), b.delivery(e, seq)))
		r, _, err := p.h.state.Get(t.Context(), key)
		require.NoError(t, err)
		return r.State.Early
	}
	require.Equal(t, "uid-1", see(events.ObservedRegistered, "uid-1").UID)
	at := see(events.ObservedRegistered, "uid-1").RegisteredAt
	require.False(t, see(events.ObservedReady, "uid-1").ReadyAt.IsZero())
	require.Equal(t, at, see(events.ObservedReady, "uid-1").RegisteredAt)
	require.True(t, see(events.ObservedUnready, "uid-1").ReadyAt.IsZero())
	require.Nil(t, see(events.ObservedDeleted, "uid-1"))
	require.False(t, see(events.ObservedReady, "uid-2").ReadyAt.IsZero(), "Ready says that it registered")
	require.NotNil(t, see(events.ObservedExited, "uid-2"))
}
