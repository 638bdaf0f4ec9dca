package draining

import (
	"context"
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
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// story is what happens to a node, driven by one process after the other without a
// clock: at every turn of a process the message that is due is published, handled, and
// worked on.
type story struct {
	load func(w *world)
	// next is asked before every turn, with the record as it is, and may publish a
	// message or let time pass. It must not do so twice.
	next func(b *testBundle, p *process, d lifecycle.Drain)
	// over says that the story has come to its end.
	over func(b *testBundle, d lifecycle.Drain) bool
	// check is what must be so then, wherever a process was killed.
	check func(t *testing.T, b *testBundle)
}

// killed is how a process ends at a step.
type killed struct{}

// tell tells the story with one process until it is over, or the process is killed at
// the n-th passing of a step. It returns the steps passed.
func (s story) tell(b *testBundle, step string, n int) map[string]int {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	var mu sync.Mutex
	passed := map[string]int{}
	defer func() {
		if r := recover(); r != nil {
			if _, dead := r.(killed); !dead {
				panic(r)
			}
		}
	}()
	p := b.open(func(at string) {
		mu.Lock()
		passed[at]++
		now := at == step && passed[at] == n
		mu.Unlock()
		if !now {
			return
		}
		cancel()
		// Evictions run in goroutines of their own: the ended context stops them.
		if !strings.HasPrefix(at, "draining/evict/") {
			panic(killed{})
		}
	})
	for range 60 {
		d, _ := b.record()
		s.next(b, p, d)
		b.turn(ctx, p) // also when it is over: not all of it may have been said
		if d, _ = b.record(); s.over(b, d) || ctx.Err() != nil {
			break
		}
	}
	return passed
}

// turn hands every event to the process and has it work, without waiting for the time
// of the next attempt.
func (b *testBundle) turn(ctx context.Context, p *process) {
	b.t.Helper()
	for _, d := range b.log() {
		if def, _ := events.Lookup(d.Event.Type()); def.ReadBy(events.HandlerDraining) && ctx.Err() == nil {
			_ = p.h.Handle(ctx, d)
		}
	}
	key := bus.Key{Cluster: testCluster, Name: testNode}
	_ = p.h.state.Amend(ctx, key, "hurry", func(t *turn) error {
		if t.State.Active() {
			t.State.NextAt = time.Time{}
		} else {
			t.Unchanged()
		}
		return nil
	})
	l, err := p.h.state.Acquire(ctx, key, time.Minute)
	if err != nil {
		return
	}
	// A killed process leaves its lease; that it runs out is another test's.
	defer func() { _ = l.Release(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		if due, _ := p.h.due(l.Key(), l.Record(), p.h.opts.Clock.Now()); !due {
			return
		}
		if err := p.h.work(l.Context(), l); err != nil {
			return
		}
	}
}

// requireWhereverKilled tells the story undisturbed, then once for every step of a
// drain that it passes, with a process that is killed there and another that goes on.
func (s story) requireWhereverKilled(t *testing.T) {
	t.Helper()
	undisturbed := setup(t)
	s.load(undisturbed.world)
	steps := s.tell(undisturbed, "", 0)
	s.check(t, undisturbed)
	require.GreaterOrEqual(t, len(steps), 8, "%v", steps)
	for step, times := range steps {
		for n := 1; n <= min(times, 2); n++ {
			t.Run(fmt.Sprintf("%s, passing %d", step, n), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				s.load(b.world)
				s.tell(b, step, n)
				s.tell(b, "", 0)
				d, _ := b.record()
				require.True(t, s.over(b, d), "the story is over: %+v", d)
				s.check(t, b)
			})
		}
	}
}

// asked reports whether as many messages of a type were published.
func asked(b *testBundle, typ string, n int) bool {
	return len(slices.DeleteFunc(b.log(), func(d bus.Delivery) bool { return d.Event.Type() != typ })) >= n
}

func requireUndone(t *testing.T, b *testBundle) {
	t.Helper()
	n := b.world.node(testNode)
	require.False(t, n.unschedulable, "the node takes pods again")
	require.Empty(t, n.cordonedBy, "no mark is left")
	require.Equal(t, 1, count(b.published(), "node.uncordoned"))
	require.Zero(t, count(b.published(), "node.drained"))
	require.Contains(t, b.world.refs(), "default/web-2", "no pod left against its budget")
}

func budgetLoad(w *world) {
	w.add("default", "web-1")
	w.add("default", "web-2", func(p *worldPod) { p.budget = "default/web" })
}

func ended(_ *testBundle, d lifecycle.Drain) bool { return d.Phase == lifecycle.DrainDone }

func TestADrainThatIsCalledOffLeavesNoMarkWhereverItIsKilled(t *testing.T) {
	t.Parallel()
	story{load: budgetLoad, over: ended, check: requireUndone, next: func(b *testBundle, _ *process, d lifecycle.Drain) {
		switch {
		case !asked(b, events.TypeNodeDrainRequested, 1):
			b.request(events.GoalRemove)
		case len(d.Blockers) > 0 && !asked(b, events.TypeNodeDrainCancelled, 1):
			b.cancel("")
		}
	}}.requireWhereverKilled(t)
}

// A request that follows another may be called off before it has put its own mark.
func TestADrainThatIsAskedForAgainAndCalledOffLeavesNoMarkWhereverItIsKilled(t *testing.T) {
	t.Parallel()
	story{load: budgetLoad, over: ended, check: requireUndone, next: func(b *testBundle, _ *process, d lifecycle.Drain) {
		switch {
		case !asked(b, events.TypeNodeDrainRequested, 1):
			b.request(events.GoalRemove)
		case len(d.Blockers) > 0 && !asked(b, events.TypeNodeDrainRequested, 2):
			b.request(events.GoalDrain, by("anna"))
			b.request(events.GoalRemove, by("anna"))
			b.cancel("")
		}
	}}.requireWhereverKilled(t)
}

func TestADrainPastItsDeadlineLeavesNoMarkWhereverItIsKilled(t *testing.T) {
	t.Parallel()
	story{load: budgetLoad, over: ended, check: requireUndone, next: func(b *testBundle, p *process, d lifecycle.Drain) {
		if !asked(b, events.TypeNodeDrainRequested, 1) {
			b.request(events.GoalRemove, forced)
		} else if len(d.Blockers) > 0 && (d.Phase == lifecycle.DrainDraining || d.Phase == lifecycle.DrainForcing) {
			overdue(b.t, p)
		}
	}}.requireWhereverKilled(t)
}

func TestAForcedRemovalIsFinishedWhereverItIsKilled(t *testing.T) {
	t.Parallel()
	story{
		load: func(w *world) {
			w.add("default", "web-1", job, func(p *worldPod) {
				p.Annotations, p.lingers, p.DeletionDeadline = map[string]string{evictable.SafeToEvict: "false"}, true, time.Now().Add(-time.Hour)
			})
			w.add("kube-system", "coredns-1")
		},
		next: func(b *testBundle, p *process, d lifecycle.Drain) {
			switch {
			case !asked(b, events.TypeNodeDrainRequested, 1):
				b.request(events.GoalRemove, forced, jobsHave(time.Nanosecond))
			case len(d.Blockers) > 0 && d.Phase == lifecycle.DrainDraining:
				overdue(b.t, p)
			}
		},
		over: func(_ *testBundle, d lifecycle.Drain) bool { return d.Phase == lifecycle.DrainDrained },
		check: func(t *testing.T, b *testBundle) {
			drained := find[events.NodeDrained](b)
			require.Len(t, drained, 1)
			require.Equal(t, 2, drained[0].Evicted)
			require.Len(t, drained[0].Forced, 1)
			require.Equal(t, evictable.CodeNotSafeToEvict, drained[0].Forced[0].Reason.Code)
			require.Equal(t, []string{"default/web-1", "kube-system/coredns-1"}, b.world.evictions())
			require.Equal(t, []string{"default/web-1"}, b.world.refs(), "it outlived its grace, and ends with its machine")
			require.True(t, b.world.node(testNode).unschedulable)
			told := map[string]bool{}
			for _, e := range find[events.NodeDrainProgressed](b) {
				for _, f := range e.Forced {
					told[f.Pod+" "+f.Reason.Code] = true
				}
			}
			require.True(t, told["default/web-1 "+evictable.CodeNotSafeToEvict], "%v", told)
			requireOnce(t, b)
		},
	}.requireWhereverKilled(t)
}

// What people cordon or drain stays so until people undo it.
func TestACordonOrDrainByAPersonSurvivesWhereverItIsKilled(t *testing.T) {
	t.Parallel()
	for goal, phase := range map[string]lifecycle.DrainPhase{events.GoalCordon: lifecycle.DrainCordoned, events.GoalDrain: lifecycle.DrainDrained} {
		t.Run(goal, func(t *testing.T) {
			t.Parallel()
			story{
				load: func(w *world) { w.add("default", "web-1") },
				next: func(b *testBundle, _ *process, _ lifecycle.Drain) {
					if !asked(b, events.TypeNodeDrainRequested, 1) {
						b.request(goal, by("anna"))
					}
				},
				over: func(_ *testBundle, d lifecycle.Drain) bool { return d.Phase == phase && d.Goal == goal },
				check: func(t *testing.T, b *testBundle) {
					p := b.open(nil)
					overdue(t, p) // it has none, nor would it matter
					for range 3 {
						b.turn(t.Context(), p)
					}
					n := b.world.node(testNode)
					require.True(t, n.unschedulable)
					require.NotEmpty(t, n.cordonedBy)
					d, _ := b.record()
					require.Equal(t, phase, d.Phase)
					require.Zero(t, count(b.published(), "node.uncordoned"))
					require.Equal(t, 1, count(b.published(), "node.cordoned"))
				},
			}.requireWhereverKilled(t)
		})
	}
}
