package provisioning

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

var testKey = bus.Key{Cluster: testCluster, Name: testNode}

// stepCase is a record, a world, and the step of work that follows.
type stepCase struct {
	name    string
	node    func(n *lifecycle.Node)
	machine MachineState // none when empty
	object  bool
	fail    string // the method that fails once
	at      string // the hook at which the record moves on, or the process ends; empty: at once
	started bool   // the machine runs afterwards
}

func (c stepCase) prepare(t *testing.T, onStep func(string)) (*testBundle, *process) {
	t.Helper()
	b := newBundle(t)
	if c.machine != "" {
		b.world.machines[testNode] = b.machine(c.machine)
	}
	if c.object {
		b.world.objects[testNode] = NodeObject{Name: testNode, UID: "u", Pool: testPool, ClaimID: testClaim, Ready: true}
	}
	if c.fail != "" {
		b.world.failNext(c.fail, errDaemon)
	}
	p := b.handler(onStep)
	require.NoError(t, p.h.state.Amend(t.Context(), testKey, "prepare", func(t *bus.Turn[lifecycle.Node]) error {
		*t.State = lifecycle.Node{Name: testNode, Pool: testPool, ClaimID: testClaim, Epoch: b.bus.Incarnation(), CorrelationID: "life-1",
			NotAfter: time.Now().Add(time.Minute), RegisterWithin: time.Minute}
		c.node(t.State)
		return nil
	}))
	return b, p
}

func stepCases() []stepCase {
	phase := func(p lifecycle.Phase) func(*lifecycle.Node) { return func(n *lifecycle.Node) { n.Phase = p } }
	intent := func(n *lifecycle.Node) {
		n.Phase, n.Creation = lifecycle.Claimed, &lifecycle.Creation{Operation: "create/" + testClaim}
	}
	overdue := func(n *lifecycle.Node) { n.Phase, n.Deadline = lifecycle.Created, time.Now().Add(-time.Second) }
	suspect := func(p lifecycle.Phase) func(*lifecycle.Node) {
		return func(n *lifecycle.Node) {
			n.Phase, n.Suspicion = p, &lifecycle.Suspicion{Kind: events.DivergedNodeLost, At: time.Now()}
		}
	}
	removing := func(done int) func(n *lifecycle.Node) {
		return func(n *lifecycle.Node) {
			n.Phase = lifecycle.Removing
			beginRemoval(n, lifecycle.Reason{Code: "Unneeded"}, time.Now())
			for _, s := range lifecycle.Steps[:done] {
				n.Removal.Done = append(n.Removal.Done, lifecycle.Stage{Name: s, At: time.Now()})
			}
		}
	}
	return []stepCase{
		{name: "before the intent", node: phase(lifecycle.Claimed)},
		{name: "while creating", node: intent, at: "create/after"},
		{name: "while creating fails", node: intent, at: "create/after", fail: "create"},
		{name: "while starting", node: intent, at: "start/after", started: true},
		{name: "while starting fails", node: intent, at: "start/after", fail: "start"},
		{name: "while inspecting", node: intent, at: "inspect/after", machine: MachineCreated},
		{name: "while inspecting fails", node: intent, at: "inspect/after", machine: MachineCreated, fail: "get"},
		{name: "while the end of the machine is read", node: intent, at: "logs/after", machine: MachineExited},
		{name: "while the log is read at the deadline", node: overdue, at: "logs/after", machine: MachineRunning, started: true},
		{name: "while a loss is checked", node: suspect(lifecycle.Ready), at: "inspect/after", object: true},
		{name: "while a check fails", node: suspect(lifecycle.Ready), at: "inspect/after", fail: "get"},
		{name: "while a report about a claim turns out wrong", node: suspect(lifecycle.Claimed), at: "inspect/after"},
		{name: "while a report turns out wrong", node: suspect(lifecycle.Ready), at: "inspect/after", machine: MachineRunning, object: true, started: true},
		{name: "while an orphan is checked", node: suspect(lifecycle.Removed), at: "inspect/after", machine: MachineCreated},
		{name: "while stopping", node: removing(0), at: "stop/after", machine: MachineRunning},
		{name: "while stopping fails", node: removing(0), at: "stop/after", machine: MachineRunning, fail: "stop", started: true},
		{name: "while the Node object is deleted", node: removing(1), at: "delete-node/after", object: true},
		{name: "while the secret is deleted", node: removing(2), at: "delete-secret/after"},
		{name: "while the machine is deleted", node: removing(3), at: "delete-machine/after"},
	}
}

// TestStepYieldsToARecordThatMovedOn changes the record while a step runs, as a
// message does.
func TestStepYieldsToARecordThatMovedOn(t *testing.T) {
	t.Parallel()
	for _, c := range stepCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var p *process
			moved := false
			move := func() {
				if moved {
					return
				}
				moved = true
				err := p.h.state.Amend(context.Background(), testKey, "moved", func(t *bus.Turn[lifecycle.Node]) error {
					*t.State = lifecycle.Node{Name: testNode, Pool: testPool, ClaimID: testClaim, Phase: lifecycle.Lost, Actor: "moved"}
					return nil
				})
				if err != nil {
					panic(err)
				}
			}
			b, p1 := c.prepare(t, func(step string) {
				if c.at != "" && step == "provisioning/"+c.at {
					move()
				}
			})
			p = p1
			l, err := p.h.state.Acquire(t.Context(), testKey, 30*time.Second)
			require.NoError(t, err)
			if c.at == "" {
				move()
			}
			err = p.h.work(l.Context(), l)
			require.True(t, moved)
			if c.fail == "" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, errDaemon)
			}
			n := l.Record()
			require.Equal(t, "moved", n.Actor)
			require.Equal(t, lifecycle.Lost, n.Phase)
			require.Nil(t, n.Removal)
			require.Empty(t, b.said())
			require.Equal(t, c.started, b.world.machines[testNode] != nil && b.world.machines[testNode].State == MachineRunning)
		})
	}
}

// TestStepOfAnEndingProcessRecordsNothing ends the process's context while a
// step runs: neither a result nor a failed attempt is recorded.
func TestStepOfAnEndingProcessRecordsNothing(t *testing.T) {
	t.Parallel()
	for _, c := range stepCases() {
		for _, edge := range []string{"before", "after"} {
			t.Run(c.name+" "+edge, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithCancel(t.Context())
				at := ""
				if c.at != "" {
					at = "provisioning/" + c.at[:len(c.at)-len("after")] + edge
				}
				b, p := c.prepare(t, func(step string) {
					if step == at {
						cancel()
					}
				})
				l, err := p.h.state.Acquire(ctx, testKey, 30*time.Second)
				require.NoError(t, err)
				if at == "" {
					cancel()
				}
				require.Error(t, p.h.work(l.Context(), l))
				require.Error(t, ctx.Err(), "the step was reached")
				r, _, err := p.h.state.Get(t.Context(), testKey)
				require.NoError(t, err)
				var before lifecycle.Node
				c.node(&before)
				require.Equal(t, before.Phase, r.State.Phase)
				require.Nil(t, r.State.Failure)
				if before.Removal != nil {
					require.Len(t, r.State.Removal.Done, len(before.Removal.Done))
					require.Zero(t, r.State.Removal.Attempt)
				}
				if before.Suspicion != nil {
					require.Zero(t, r.State.Suspicion.Attempt)
				}
				require.Zero(t, attempt(r.State))
				require.Empty(t, b.said())
			})
		}
	}
}

// TestFailedAttemptThatCanNotBeRecordedIsRepeated ends the process while it
// records when to try again.
func TestFailedAttemptThatCanNotBeRecordedIsRepeated(t *testing.T) {
	t.Parallel()
	for _, c := range stepCases() {
		op := map[string]string{"create": "create-retry", "start": "create-retry", "get": "check-retry", "stop": "instance-stopped-retry"}[c.fail]
		if op == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			_, p := c.prepare(t, func(step string) {
				if step == "provisioning/"+op+"/write/before" || step == "provisioning/create-retry/write/before" {
					cancel()
				}
			})
			l, err := p.h.state.Acquire(ctx, testKey, 30*time.Second)
			require.NoError(t, err)
			err = p.h.work(l.Context(), l)
			require.ErrorIs(t, err, errDaemon)
			require.ErrorContains(t, err, "record next")
			r, _, err := p.h.state.Get(t.Context(), testKey)
			require.NoError(t, err)
			require.Zero(t, attempt(r.State))
			if r.State.Removal != nil {
				require.Zero(t, r.State.Removal.Attempt)
			}
		})
	}
}

func TestStepsThatCanNotBeTakenAreTriedAgainLater(t *testing.T) {
	t.Parallel()
	removing := func(done int) func(*lifecycle.Node) {
		return func(n *lifecycle.Node) {
			n.Phase = lifecycle.Removing
			beginRemoval(n, lifecycle.Reason{Code: "Unneeded"}, time.Now())
			for _, s := range lifecycle.Steps[:done] {
				n.Removal.Done = append(n.Removal.Done, lifecycle.Stage{Name: s})
			}
		}
	}
	for _, c := range []struct {
		stepCase
		nodes bool
		err   string
	}{
		{stepCase{name: "the API server can't be asked", node: removing(1), fail: "getnode"}, true, "read Node object"},
		{stepCase{name: "the cluster is not configured", node: removing(1)}, false, "is not configured here"},
		{stepCase{name: "a record that can't be published", node: func(n *lifecycle.Node) { removing(0)(n); n.Name = "" }}, true, "node.removal.progressed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, p := c.prepare(t, nil)
			if !c.nodes {
				clusters := p.h.clusters()
				p.h.clusters = func() map[string]Cluster {
					return map[string]Cluster{testCluster: {Pools: clusters[testCluster].Pools}}
				}
			}
			l, err := p.h.state.Acquire(t.Context(), testKey, 30*time.Second)
			require.NoError(t, err)
			done := len(l.Record().Removal.Done)
			require.ErrorContains(t, p.h.work(l.Context(), l), c.err)
			require.Len(t, l.Record().Removal.Done, done)
			require.Equal(t, lifecycle.Removing, l.Record().Phase)
		})
	}
}

func TestWorkOfAnUnknownClusterWaits(t *testing.T) {
	t.Parallel()
	suspicious := func(n *lifecycle.Node) {
		n.Phase, n.Suspicion = lifecycle.Ready, &lifecycle.Suspicion{Kind: events.DivergedNodeLost}
	}
	for _, c := range []struct {
		name     string
		clusters map[string]Cluster
	}{
		{"no cluster", nil},
		{"no pool", map[string]Cluster{testCluster: {Nodes: fakeNodes{newWorld()}}}},
		{"no API server", map[string]Cluster{testCluster: {Pools: map[string]Machines{testPool: fakeMachines{newWorld()}}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, p := stepCase{node: suspicious}.prepare(t, nil)
			p.h.clusters = func() map[string]Cluster { return c.clusters }
			l, err := p.h.state.Acquire(t.Context(), testKey, 30*time.Second)
			require.NoError(t, err)
			require.ErrorContains(t, p.h.work(l.Context(), l), "is not configured here")
			require.Equal(t, 1, l.Record().Suspicion.Attempt)
			require.True(t, l.Record().Suspicion.NextAt.After(time.Now().Add(-time.Second)))
			require.Equal(t, lifecycle.Ready, l.Record().Phase, "unknown is not lost")
		})
	}
}

func TestFailedClaimOfAPoolThatIsGoneSaysThatThereIsNoLog(t *testing.T) {
	t.Parallel()
	b, p := stepCase{node: func(n *lifecycle.Node) { n.Phase, n.Deadline = lifecycle.Created, time.Now().Add(-time.Second) }}.prepare(t, nil)
	p.h.clusters = func() map[string]Cluster { return nil }
	l, err := p.h.state.Acquire(t.Context(), testKey, 30*time.Second)
	require.NoError(t, err)
	require.NoError(t, p.h.work(l.Context(), l))
	failed, _ := await[events.NodeFailed](b)
	require.Contains(t, failed.Failure.Log, "could not be read")
	require.Equal(t, events.StepInstanceStopped, l.Record().Removal.Next(), "the clean-up waits for the pool")
}

func TestNothingIsDueWhereNothingIsOpen(t *testing.T) {
	t.Parallel()
	h := &Handler{}
	now := time.Now()
	for _, c := range []struct {
		name string
		n    lifecycle.Node
		due  bool
		at   time.Time
	}{
		{"no record", lifecycle.Node{}, false, time.Time{}},
		{"a new claim", lifecycle.Node{Phase: lifecycle.Claimed}, true, time.Time{}},
		{"a claim that waits", lifecycle.Node{Phase: lifecycle.Claimed, Creation: &lifecycle.Creation{NextAt: now.Add(time.Second)}}, false, now.Add(time.Second)},
		{"a machine before its deadline", lifecycle.Node{Phase: lifecycle.Created, Deadline: now.Add(time.Minute)}, false, now.Add(time.Minute)},
		{"a machine at its deadline", lifecycle.Node{Phase: lifecycle.Registered, Deadline: now}, true, time.Time{}},
		{"a Ready node", lifecycle.Node{Phase: lifecycle.Ready}, false, time.Time{}},
		{"a report", lifecycle.Node{Phase: lifecycle.Ready, Suspicion: &lifecycle.Suspicion{}}, true, time.Time{}},
		{"a failed claim to clean up", lifecycle.Node{Phase: lifecycle.Failed, Removal: &lifecycle.Removal{}}, true, time.Time{}},
		{"a failed claim that created nothing", lifecycle.Node{Phase: lifecycle.Failed}, false, time.Time{}},
		{"a clean-up that waits", lifecycle.Node{Phase: lifecycle.Lost, Removal: &lifecycle.Removal{NextAt: now.Add(time.Second)}}, false, now.Add(time.Second)},
	} {
		due, at := h.due(testKey, c.n, now)
		require.Equal(t, c.due, due, c.name)
		require.Equal(t, c.at, at, c.name)
	}
}
