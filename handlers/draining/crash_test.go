package draining

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// killAt returns a hook that kills its process at the n-th passing of a step,
// and whether it did.
func killAt(step string, n int) (hook func(string, func()), hit func() bool) {
	var (
		mu     sync.Mutex
		passed int
	)
	return func(s string, kill func()) {
			mu.Lock()
			if s == step {
				passed++
			}
			now := s == step && passed == n
			mu.Unlock()
			if now {
				kill()
			}
		}, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return passed >= n
		}
}

// passings runs a scenario undisturbed and counts the steps that it passes.
func passings(t *testing.T, world func(*world), scenario func(*testBundle)) map[string]int {
	t.Helper()
	b := setup(t)
	world(b.world)
	var mu sync.Mutex
	steps := map[string]int{}
	p := b.start(func(step string, _ func()) {
		mu.Lock()
		defer mu.Unlock()
		steps[step]++
	})
	scenario(b)
	b.settled(p)
	p.stop()
	mu.Lock()
	defer mu.Unlock()
	return steps
}

// requireOnce makes sure that the log tells everything once.
func requireOnce(t *testing.T, b *testBundle) {
	t.Helper()
	seen := map[string]bool{}
	var told []string
	for _, d := range b.log() {
		require.False(t, seen[d.Event.ID()], "event %s (%s) is there twice", d.Event.ID(), d.Event.Type())
		seen[d.Event.ID()] = true
		if d.Event.Type() == events.TypeNodeDrainProgressed {
			p, err := events.Decode[events.NodeDrainProgressed](d.Event)
			require.NoError(t, err)
			told = append(told, p.Evicted...)
		}
	}
	require.ElementsMatch(t, b.world.evictions(), told, "each eviction is told once, whoever asked for it")
}

func TestARemovalKilledAtAnyStepIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	load := func(w *world) {
		w.add("default", "web-1")
		w.add("kube-system", "coredns-1")
	}
	scenario := func(b *testBundle) {
		b.request(events.GoalRemove)
		await[events.NodeDrained](b, 1)
	}
	steps := passings(t, load, scenario)
	for _, step := range []string{
		"draining/cordon/before", "draining/cordon/after", "draining/evict/before", "draining/evict/after",
		"draining/recordon/before", "draining/recordon/after", "draining/write/before", "draining/write/after",
		"draining/cordoned/write/before", "draining/cordoned/write/after", "draining/cordoned/publish/after",
		"draining/intent/write/before", "draining/round/write/after", "draining/emptied/write/before", "draining/emptied/write/after",
	} {
		require.NotZero(t, steps[step], "the scenario passes %s: %v", step, steps)
	}
	for step, times := range steps {
		for n := 1; n <= min(times, 2); n++ {
			t.Run(fmt.Sprintf("%s, passing %d", step, n), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				load(b.world)
				hook, hit := killAt(step, n)
				victim := b.start(hook)
				b.request(events.GoalRemove)
				require.Eventually(t, hit, patience, 5*time.Millisecond, "the step was passed")
				victim.stop()

				b.settled(b.start(nil))
				drained := await[events.NodeDrained](b, 1)
				require.Equal(t, 2, drained.Evicted)
				require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
				require.Equal(t, []string{"default/web-1", "kube-system/coredns-1"}, b.world.evictions())
				requireOnce(t, b)
			})
		}
	}
}

func TestAnUndoKilledAtAnyStepIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	load := func(w *world) {
		w.add("default", "web-1")
		w.add("default", "web-2", func(p *worldPod) { p.budget = "default/web" })
	}
	begin := func(b *testBundle) {
		b.request(events.GoalRemove, within(2*time.Second))
	}
	steps := passings(t, load, func(b *testBundle) {
		begin(b)
		await[events.NodeUncordoned](b, 1)
	})
	for _, step := range []string{
		"draining/uncordon/before", "draining/uncordon/after", "draining/expired/write/before", "draining/expired/write/after",
		"draining/uncordoned/write/before", "draining/uncordoned/write/after", "draining/uncordoned/publish/after",
	} {
		require.NotZero(t, steps[step], "the scenario passes %s: %v", step, steps)
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			load(b.world)
			hook, hit := killAt(step, 1)
			victim := b.start(hook)
			begin(b)
			require.Eventually(t, hit, patience, 5*time.Millisecond, "the step was passed")
			victim.stop()

			b.settled(b.start(nil))
			undone := await[events.NodeUncordoned](b, 1)
			require.Equal(t, ReasonDeadline, undone.Reason.Code)
			published := b.published()
			require.Equal(t, 1, count(published, "node.uncordoned"))
			require.Zero(t, count(published, "node.drained"))
			require.False(t, b.world.node(testNode).unschedulable)
			require.Contains(t, b.world.refs(), "default/web-2", "no pod left against its budget")
			requireOnce(t, b)
		})
	}
}

func count(all []string, one string) int {
	n := 0
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

func TestADrainOfAWorkerThatIsFrozenIsTakenOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy(b.world)
	// Somebody takes the request up and the lease, and is never heard of again.
	frozen := b.open(nil)
	require.NoError(t, frozen.h.Handle(t.Context(), delivery(t, b, b.request(events.GoalRemove))))
	lease, err := frozen.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, 700*time.Millisecond)
	require.NoError(t, err)

	b.settled(b.start(nil))
	await[events.NodeDrained](b, 1)
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())

	// It wakes up, late: neither its effects nor its writes count.
	require.Eventually(t, func() bool { return lease.Context().Err() != nil }, patience, time.Millisecond)
	require.ErrorIs(t, frozen.h.work(lease.Context(), lease), context.Canceled)
	require.ErrorIs(t, lease.Commit(t.Context(), "late", func(*turn) error { return nil }), bus.ErrLeaseLost)
	cordons, _, evictions := b.world.acts()
	require.Equal(t, 1, cordons)
	require.Equal(t, 3, evictions)
}

func TestTwoProcessesDrainManyNodesOnceEach(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const nodes = 12
	name := func(i int) string { return fmt.Sprintf("burst-%010d", i) }
	for i := range nodes {
		b.world.nodes[name(i)] = &worldNode{claim: testClaim}
		for _, ns := range []string{"a", "b"} {
			b.world.add(ns, name(i), func(p *worldPod) { p.node = name(i) })
		}
	}
	b.start(nil)
	b.start(nil)
	now := time.Now()
	for i := range nodes {
		b.publish(events.NodeDrainRequested{Node: name(i), ClaimID: testClaim, Goal: events.GoalRemove, Reason: events.Reason{Code: "Unneeded"},
			NotAfter: now.Add(time.Minute), Deadline: events.Duration(time.Minute)}, func(m *events.Meta) { m.Node = name(i) })
	}
	var drained []string
	require.Eventually(t, func() bool {
		drained = nil
		for d, err := range b.bus.Read(t.Context(), bus.ReadOptions{Types: []string{events.TypeNodeDrained}}) {
			require.NoError(t, err)
			drained = append(drained, d.Key.Name)
		}
		return len(drained) >= nodes
	}, patience, 20*time.Millisecond)
	slices.Sort(drained)
	require.Len(t, slices.Compact(drained), nodes)
	cordons, _, evictions := b.world.acts()
	require.Equal(t, nodes, cordons)
	require.Equal(t, 2*nodes, evictions)
}

func TestACancelThatCrossesAStepWins(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"cordon", "evict default/web-1"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1")
			p := b.open(nil)
			request := delivery(t, b, b.request(events.GoalRemove))
			require.NoError(t, p.h.Handle(t.Context(), request))
			once := sync.OnceFunc(func() {
				cancel := delivery(t, b, b.cancel(""))
				require.NoError(t, p.h.Handle(t.Context(), cancel))
			})
			b.world.fail = func(c string) error {
				if c == call {
					once()
				}
				return nil
			}
			require.NoError(t, workOnce(t, b, p))
			require.Empty(t, find[events.NodeDrained](b))
			require.Len(t, find[events.NodeUncordoned](b), 1)
			require.False(t, b.world.node(testNode).unschedulable)
			d, _ := b.record()
			require.Equal(t, lifecycle.DrainDone, d.Phase)
		})
	}
}

func TestAHandlerOfAClosedBusSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.open(nil)
	d := delivery(t, b, b.request(events.GoalRemove))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, p.h.Handle(ctx, d), testNode)
	_, ok := b.record()
	require.False(t, ok)
}
