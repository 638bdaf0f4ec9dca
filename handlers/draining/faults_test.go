package draining

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// atCall runs f at the n-th call of that name, before it is answered.
func (w *world) atCall(name string, n int, f func() error) {
	seen := 0
	w.fail = func(call string) error {
		if call == name {
			if seen++; seen == n {
				return f()
			}
		}
		return nil
	}
}

// theCalls of a removal of a node with one pod, in order, by name and number.
var theCalls = []struct {
	name string
	n    int
}{
	{"node", 1}, {"pods", 1}, {"budgets", 1}, {"cordon", 1}, // before the first side effect, and it
	{"node", 2}, {"pods", 2}, {"evict default/web-1", 1}, // the round that evicts
	{"node", 3}, {"pods", 3}, {"cordon", 2}, {"pods", 4}, // the round that finds it empty
}

func TestARemovalSurvivesTheFailureOfAnyCall(t *testing.T) {
	t.Parallel()
	for _, c := range theCalls {
		t.Run(fmt.Sprintf("%s, call %d", c.name, c.n), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1")
			hit := false
			b.world.atCall(c.name, c.n, func() error { hit = true; return errAPI })
			b.start(nil)
			b.request(events.GoalRemove)
			require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
			require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
			require.True(t, hit)
		})
	}
}

func TestACancelThatCrossesAnyCallWins(t *testing.T) {
	t.Parallel()
	for _, c := range theCalls {
		for _, failing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, call %d, failing %t", c.name, c.n, failing), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				b.world.add("default", "web-1")
				p := b.open(nil)
				b.request(events.GoalRemove)
				hit := false
				b.world.atCall(c.name, c.n, func() error {
					hit = true
					require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.cancel(""))))
					if failing {
						return errAPI
					}
					return nil
				})
				// A step that failed is tried again; the worker does that by itself.
				for range 5 {
					if err := workAgain(t, b, p); err != nil {
						require.ErrorIs(t, err, errAPI)
					}
				}
				require.True(t, hit)
				require.Empty(t, find[events.NodeDrained](b), "no point of no return after a cancel")
				require.Equal(t, "NewDemand", find[events.NodeUncordoned](b)[0].Reason.Code)
				require.Len(t, find[events.NodeUncordoned](b), 1)
				require.False(t, b.world.node(testNode).unschedulable)
			})
		}
	}
}

// workAgain is workOnce that does not wait for the time of the next attempt.
func workAgain(t *testing.T, b *testBundle, p *process) error {
	t.Helper()
	err := workOnce(t, b, p)
	require.NoError(t, p.h.state.Amend(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, "hurry", func(t *turn) error {
		if t.State.Active() {
			t.State.NextAt = time.Time{}
		} else {
			t.Unchanged()
		}
		return nil
	}))
	return err
}

func TestAWorkerThatIsStoppedInACallRecordsNothing(t *testing.T) {
	t.Parallel()
	for _, c := range theCalls {
		t.Run(fmt.Sprintf("%s, call %d", c.name, c.n), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1")
			p := b.open(nil)
			require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.request(events.GoalRemove))))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b.world.atCall(c.name, c.n, func() error { cancel(); return nil })
			l, err := p.h.state.Acquire(ctx, bus.Key{Cluster: testCluster, Name: testNode}, time.Minute)
			require.NoError(t, err)
			for err = nil; err == nil; {
				p.h.opts.Clock.Sleep(p.h.opts.Times.Poll)
				err = p.h.work(l.Context(), l)
			}
			require.ErrorIs(t, err, context.Canceled)
			require.Empty(t, find[events.NodeDrained](b))
			require.NoError(t, l.Release(t.Context()))

			b.world.change(func(w *world) { w.fail = nil })
			b.start(nil)
			require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
			require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
		})
	}
}

func TestANodeThatIsGoneWhenItsWorkerIsStoppedIsFoundGoneByTheNext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.open(nil)
	require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.request(events.GoalRemove))))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.world.atCall("cordon", 1, func() error { delete(b.world.nodes, testNode); cancel(); return nil })
	l, err := p.h.state.Acquire(ctx, bus.Key{Cluster: testCluster, Name: testNode}, time.Minute)
	require.NoError(t, err)
	require.ErrorIs(t, p.h.work(l.Context(), l), context.Canceled)
	require.NoError(t, l.Release(t.Context()))
	require.Empty(t, b.published())
	b.start(nil)
	require.Equal(t, ReasonNodeGone, await[events.NodeUncordoned](b, 1).Reason.Code)
}

func TestAClusterThatLeftTheConfigurationEndsInTheUndoOfItsDrains(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1", func(p *worldPod) { p.budget = "default/web" })
	p := b.open(nil)
	b.request(events.GoalRemove)
	require.NoError(t, workAgain(t, b, p))
	configured := p.h.opts.Clusters
	p.h.opts.Clusters = func() map[string]Cluster { return nil }
	require.ErrorContains(t, workAgain(t, b, p), "not configured here")
	d, _ := b.record()
	require.Contains(t, d.LastError, "not configured here")
	p.h.opts.Clusters = configured
	require.NoError(t, workAgain(t, b, p), "a reload brings it back")

	b.request(events.GoalCordon)
	require.NoError(t, workAgain(t, b, p))
	require.Len(t, find[events.NodeCordoned](b), 2)
	p.h.opts.Clusters = func() map[string]Cluster { return nil }
	p.h.opts.Times.Look = time.Nanosecond
	require.ErrorContains(t, workAgain(t, b, p), "not configured here", "a node that stays cordoned is looked for")
}

func TestAPodThatLeftByItselfCountsAsLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	b.world.atCall("evict default/web-1", 1, func() error { b.world.remove("default/web-1"); return nil })
	b.start(nil)
	b.request(events.GoalRemove)
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
}

func TestABusThatGoesAwayLeavesTheStepToTheNext(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"evict default/web-1", "uncordon"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.world.add("default", "web-1", func(p *worldPod) { p.lingers = true })
			p := b.open(nil)
			require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.request(events.GoalRemove))))
			b.world.atCall(call, 1, func() error { return p.bus.Close() })
			l, err := p.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, 5*time.Second)
			require.NoError(t, err)
			work := func() error {
				for range 3 {
					if err := p.h.work(t.Context(), l); err != nil {
						return err
					}
				}
				return nil
			}
			err = work()
			if call == "uncordon" {
				require.NoError(t, err)
				require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.cancel(""))))
				require.NoError(t, l.Confirm(t.Context()))
				err = work()
			}
			require.Error(t, err)
			b.world.change(func(w *world) { w.fail = nil; w.remove("default/web-1") })
			b.start(nil)
			if call == "uncordon" {
				await[events.NodeUncordoned](b, 1)
			} else {
				require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
			}
			requireOnce(t, b)
		})
	}
}

func TestAnImpossibleTransitionChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.open(nil)
	require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, b.request(events.GoalRemove))))
	l, err := p.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, time.Minute)
	require.NoError(t, err)
	err = p.h.drained(l.Context(), l, nil)
	var impossible *lifecycle.TransitionError
	require.ErrorAs(t, err, &impossible, "a node that was never cordoned is never drained")
	require.ErrorAs(t, p.h.force(l.Context(), l), &impossible, "nor is its drain forced")
	require.Empty(t, b.published())
	d, _ := b.record()
	require.Equal(t, lifecycle.DrainRequested, d.Phase)
}

func TestARecordThatMovesOnWhileItIsLookedAtIsDecidedAnew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(b *testBundle, p *process)
		step    func(p *process, l *lease) error
	}{
		"looked for": {
			prepare: func(b *testBundle, p *process) {
				b.request(events.GoalCordon)
				require.NoError(b.t, workAgain(b.t, b, p))
			},
			step: func(p *process, l *lease) error { return p.h.lookFor(l.Context(), l) },
		},
		"forgotten": {
			prepare: func(b *testBundle, p *process) {
				b.request(events.GoalCordon)
				b.cancel("")
				require.NoError(b.t, workAgain(b.t, b, p))
			},
			step: func(p *process, l *lease) error { return p.h.forget(l.Context(), l) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			p := b.open(nil)
			c.prepare(b, p)
			l, err := p.h.state.Acquire(t.Context(), bus.Key{Cluster: testCluster, Name: testNode}, time.Minute)
			require.NoError(t, err)
			late := b.request(events.GoalDrain)
			require.NoError(t, p.h.Handle(t.Context(), delivery(t, b, late)))
			require.NoError(t, c.step(p, l))
			d, ok := b.record()
			require.True(t, ok)
			require.Equal(t, late.ID(), d.RequestID)
			require.Equal(t, lifecycle.DrainRequested, d.Phase)
		})
	}
}

func TestBlockersAreListedInAFixedOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"web-3", "web-1", "web-2"} {
		b.world.add("default", name, func(p *worldPod) { p.budget = "default/" + name })
	}
	b.start(nil)
	b.request(events.GoalRemove)
	var pods []string
	for _, bl := range await[events.NodeDrainBlocked](b, 1).Blockers {
		pods = append(pods, bl.Pod)
	}
	require.Equal(t, []string{"default/web-1", "default/web-2", "default/web-3"}, pods)
}

func TestARefusalSaysWhichBudgetRefuses(t *testing.T) {
	t.Parallel()
	err := error(&Blocked{Budget: "default/web", Message: "needs 6 healthy pods"})
	require.EqualError(t, err, "eviction refused by disruption budget default/web: needs 6 healthy pods")
}
