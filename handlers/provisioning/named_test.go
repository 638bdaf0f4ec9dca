package provisioning

import (
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

// ownName is what the provider of these tests calls the node.
const ownName = "ip-10-0-0-7.lan"

// naming makes machines register under a name of the provider's. ready says
// whether the node is so when the claim finds it.
func (b *testBundle) naming(ready bool) {
	b.world.onStart = func(name string) {
		b.world.do(func(w *fakeWorld) {
			w.machines[name].ProviderID = "fake://7"
			w.objects[ownName] = NodeObject{Name: ownName, UID: "uid-7", Ready: ready, ProviderID: "fake://7"}
			w.secrets[ownName] = true
		})
	}
	// The collector speaks of a node as soon as it is ours, once.
	b.world.onClaim = func(o NodeObject) { b.observeOwn(o, "registered", ready) }
}

func (b *testBundle) observeOwn(o NodeObject, id string, ready bool) {
	labels := map[string]string{events.LabelClaim: o.ClaimID}
	say := func(what string) {
		b.publish("collector", events.NodeObserved{Node: ownName, What: what, UID: o.UID, Labels: labels, At: time.Now()},
			func(m *events.Meta) { m.Node, m.ID = ownName, events.ID(b.t.Name(), id, what) })
	}
	say(events.ObservedRegistered)
	if ready {
		say(events.ObservedReady)
	}
}

func (b *testBundle) drainOwn() {
	ref := events.DrainRef{Node: ownName, Pool: testPool, ClaimID: testClaim, Goal: events.GoalRemove, RequestID: "request-1", At: time.Now()}
	b.publish("draining", events.NodeDrained{DrainRef: ref, DecisionID: "decision-2", DecidedAt: time.Now(), Reason: events.Reason{Code: "Unneeded"}},
		func(m *events.Meta) { m.Node = ownName })
}

// own waits until the record of the node is as wanted.
func (b *testBundle) own(p *process, what string, ok func(n lifecycle.Node) bool) lifecycle.Node {
	b.t.Helper()
	var n lifecycle.Node
	require.Eventually(b.t, func() bool {
		r, _, err := p.h.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: ownName})
		require.NoError(b.t, err)
		n = r.State
		return ok(n)
	}, patience, 10*time.Millisecond, "record of the node is never %s", what)
	return n
}

func isIn(phase lifecycle.Phase) func(lifecycle.Node) bool {
	return func(n lifecycle.Node) bool { return n.Phase == phase }
}

// ownSays waits until as much was said of the node, and returns what it was.
func (b *testBundle) ownSays(want int) []string {
	b.t.Helper()
	var said []string
	require.Eventually(b.t, func() bool { said = b.ownSaid(); return len(said) >= want }, patience, 5*time.Millisecond, "said so far: %v", said)
	return said
}

func (b *testBundle) ownSaid() []string {
	b.t.Helper()
	var ds []bus.Delivery
	for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: testCluster, Node: ownName}) {
		require.NoError(b.t, err)
		ds = append(ds, d)
	}
	return saidIn(ds)
}

func TestClaimGoesOnUnderTheNameThatTheProviderGaveItsNode(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.naming(true)
	p := b.start(nil)
	b.publish("decision", b.claim())
	n := b.own(p, "ready", isIn(lifecycle.Ready))
	require.Equal(t, testNode, n.ClaimedAs)
	require.Equal(t, testClaim, n.ClaimID)
	require.Equal(t, "uid-7", n.UID)
	require.Equal(t, "life-1", n.CorrelationID)
	require.Zero(t, n.Deadline)
	old := b.phase(p, lifecycle.Renamed)
	require.True(t, old.Settled())
	require.Equal(t, ownName, old.Naming.Node)
	b.world.do(func(w *fakeWorld) {
		require.Equal(t, testClaim, w.objects[ownName].ClaimID)
		require.Equal(t, testPool, w.objects[ownName].Pool)
	})
	b.drainOwn()
	b.own(p, "removed", isIn(lifecycle.Removed))
	require.Equal(t, []string{"node.created"}, b.said())
	require.Equal(t, and([]string{"node.registered", "node.ready"}, and(cleanUp, "node.removed")...), b.ownSays(7))
	require.Equal(t, 1, b.world.runs[testClaim])
	b.nothingLeft()
}

func TestNodeThatIsNotReadyWhenItIsNamedBecomesSo(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.naming(false)
	p := b.start(nil)
	b.publish("decision", b.claim())
	b.own(p, "registered", isIn(lifecycle.Registered))
	b.observeOwn(NodeObject{UID: "uid-7", ClaimID: testClaim}, "later", true)
	b.own(p, "ready", isIn(lifecycle.Ready))
}

// A process dies before and after each step of the hand-over; the next one goes on.
func TestProcessKilledWhileAClaimIsHandedOverFinishesIt(t *testing.T) {
	t.Parallel()
	for _, at := range []string{
		"provisioning/name/before", "provisioning/name/after", "provisioning/claim-node/before", "provisioning/claim-node/after",
		"provisioning/named/write/before", "provisioning/named/write/after", "provisioning/named/publish/after",
		"provisioning/renamed/write/before", "provisioning/renamed/write/after",
		"provisioning/caught-up/write/before", "provisioning/caught-up/write/after", "provisioning/caught-up/publish/after",
	} {
		t.Run(strings.ReplaceAll(strings.TrimPrefix(at, "provisioning/"), "/", "-"), func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.naming(true)
			killed := make(chan struct{})
			var once sync.Once
			first := b.start(func(step string, kill func()) {
				now := false
				if step == at {
					once.Do(func() { now = true })
				}
				if now {
					close(killed)
					kill()
				}
			})
			b.publish("decision", b.claim())
			select {
			case <-killed:
			case <-time.After(patience):
				require.Fail(t, "step is never reached", at)
			}
			first.stop()
			p := b.start(nil)
			b.own(p, "ready", isIn(lifecycle.Ready))
			b.phase(p, lifecycle.Renamed)
			b.drainOwn()
			b.own(p, "removed", isIn(lifecycle.Removed))
			require.Equal(t, and([]string{"node.registered", "node.ready"}, and(cleanUp, "node.removed")...), b.ownSays(7))
			require.Equal(t, 1, b.world.runs[testClaim])
			b.nothingLeft()
		})
	}
}

func TestNodeThatAnotherClaimHasFailsTheClaimAndIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, mod := range map[string]func(b *testBundle, w *fakeWorld){
		"by its label": func(_ *testBundle, w *fakeWorld) {
			w.objects[ownName] = NodeObject{Name: ownName, UID: "uid-7", ProviderID: "fake://7", ClaimID: "claim-other"}
		},
		"by the provider": func(_ *testBundle, w *fakeWorld) { w.errs["named"] = []error{fmt.Errorf("no: %w", ErrNameTaken)} },
		"by its own record": func(b *testBundle, _ *fakeWorld) {
			key := bus.Key{Cluster: testCluster, Name: ownName}
			require.NoError(b.t, b.handler(nil).h.state.Amend(b.t.Context(), key, "other", func(t *bus.Turn[lifecycle.Node]) error {
				*t.State = lifecycle.Node{Name: ownName, Pool: testPool, ClaimID: "claim-other", Phase: lifecycle.Ready,
					Since: time.Now().Add(time.Hour)} // younger than any sweep
				return nil
			}))
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.naming(true)
			start := b.world.onStart
			b.world.onStart = func(n string) {
				start(n)
				b.world.do(func(w *fakeWorld) {
					if name != "by its own record" {
						mod(b, w)
					}
				})
			}
			if name == "by its own record" {
				mod(b, nil)
			}
			p := b.start(nil)
			b.publish("decision", b.claim())
			failed, _ := await[events.NodeFailed](b)
			require.Equal(t, ReasonNameTaken, failed.Failure.Reason.Code)
			b.settled(p)
			machines, _, _ := b.world.left(t)
			require.Empty(t, machines)
		})
	}
}

func TestHandOverThatNeverEndsFailsAtTheDeadlineAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.naming(true)
	var never []error
	for range 1000 {
		never = append(never, fmt.Errorf("the API server is away"))
	}
	b.world.failNext("claimnode", never...)
	p := b.start(nil)
	b.publish("decision", b.claim(func(c *events.NodeClaimed) { c.RegisterDeadline = events.Duration(500 * time.Millisecond) }))
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNotRegistered, failed.Failure.Reason.Code)
	b.settled(p)
	machines, _, _ := b.world.left(t)
	require.Empty(t, machines)
}

func TestNodeOfAClaimThatHasEndedIsNotTakenOver(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	p := b.start(nil)
	e := b.publish("provisioning", events.NodeObserved{Node: ownName, What: events.ObservedNamed, ClaimedAs: testNode, UID: "uid-7",
		Labels: map[string]string{events.LabelClaim: testClaim}, At: time.Now()}, func(m *events.Meta) { m.Node = ownName })
	// What comes after it on the same key has been handled, so that it was.
	b.publish("decision", b.claim(func(c *events.NodeClaimed) {
		c.Node, c.ClaimID, c.NotAfter = ownName, "claim-2", time.Now().Add(-time.Hour)
	}),
		func(m *events.Meta) { m.Node = ownName })
	n := b.own(p, "failed", isIn(lifecycle.Failed))
	require.Equal(t, "claim-2", n.ClaimID)
	require.NotEmpty(t, e.ID())
	require.False(t, slices.Contains(b.ownSaid(), "node.registered"))
}
