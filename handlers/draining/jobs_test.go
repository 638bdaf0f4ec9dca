package draining

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// jobsHave asks for pods of Jobs to be left alone for so long.
func jobsHave(d time.Duration) func(*events.NodeDrainRequested) {
	return func(p *events.NodeDrainRequested) { p.JobsDeadline = events.Duration(d) }
}

// job makes a pod one of a Job.
func job(p *worldPod) { p.OwnerKind = kindJob }

func TestPodsOfJobsEndBeforeAnythingIsEvicted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	b.world.add("ci", "build-1", job, func(p *worldPod) {
		p.Annotations, p.Local = map[string]string{evictable.DoNotDisrupt: "true"}, []evictable.Volume{{Name: "workspace", Kind: evictable.EmptyDir}}
	})
	b.world.add("ci", "build-2", job)
	b.world.add("ci", "over", job, func(p *worldPod) { p.Finished = true })
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	p := await[events.NodeDrainProgressed](b, 1)
	require.Equal(t, []string{"ci/build-1", "ci/build-2"}, p.WaitingFor)
	require.Equal(t, 3, p.Remaining)
	require.Empty(t, p.Evicted)
	d := b.awaitPhase(lifecycle.DrainFinishing)
	require.Equal(t, d.JobsUntil, p.WaitUntil.UTC())
	require.Equal(t, time.Hour, d.JobsUntil.Sub(d.Since))
	require.Zero(t, d.Deadline, "the drain's own time begins when they are done")
	require.True(t, b.world.node(testNode).unschedulable)

	b.world.change(func(w *world) { w.pod("ci/build-2").Finished = true })
	require.Equal(t, []string{"ci/build-1"}, await[events.NodeDrainProgressed](b, 2).WaitingFor)
	require.Empty(t, b.world.evictions())
	b.world.change(func(w *world) { w.remove("ci/build-1") })
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
	require.Equal(t, []string{"default/web-1"}, b.world.evictions())
	require.Equal(t, []string{"node.cordoned", "node.drained"}, b.published())
	d, _ = b.record()
	require.Empty(t, d.WaitingFor)
}

func TestPodsOfJobsThatDoNotEndInTimeAreEvictedUnlessTheyNeverAre(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("ci", "build-1", job)
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(200*time.Millisecond))
	require.Equal(t, []string{"ci/build-1"}, await[events.NodeDrainProgressed](b, 1).WaitingFor)
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)

	b = setup(t)
	b.world.add("ci", "build-1", job, func(p *worldPod) { p.Annotations = map[string]string{evictable.SafeToEvict: "false"} })
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(200*time.Millisecond), within(4*time.Second)) // time for a look at the pods, on a busy machine too
	undone := await[events.NodeUncordoned](b, 1)
	require.Equal(t, ReasonDeadline, undone.Reason.Code)
	require.NotEmpty(t, undone.Blockers)
	require.Equal(t, evictable.CodeNotSafeToEvict, undone.Blockers[0].Kind)
	require.Empty(t, b.world.evictions())
	require.False(t, b.world.node(testNode).unschedulable)
}

func TestANodeThatWaitsForJobsIsGivenBackWhenItIsNeeded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("ci", "build-1", job)
	b.world.add("default", "web-1")
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	b.awaitPhase(lifecycle.DrainFinishing)
	b.cancel("")
	require.Equal(t, "NewDemand", await[events.NodeUncordoned](b, 1).Reason.Code)
	require.False(t, b.world.node(testNode).unschedulable)
	require.Empty(t, b.world.evictions(), "nothing has to come back")
	d := b.awaitPhase(lifecycle.DrainDone)
	require.Empty(t, d.WaitingFor)
}

func TestAnotherProcessGoesOnWaitingForJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("ci", "build-1", job)
	first := b.start(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	until := b.awaitPhase(lifecycle.DrainFinishing).JobsUntil
	first.stop()
	second := b.start(nil)

	// Asked for again, the Jobs get no more time.
	b.request(events.GoalRemove, jobsHave(2*time.Hour), by("anna"))
	require.Eventually(t, func() bool { d, _ := b.record(); return d.Actor == "anna" && d.Phase == lifecycle.DrainFinishing }, patience, 10*time.Millisecond)
	d, _ := b.record()
	require.Equal(t, until, d.JobsUntil)

	b.world.change(func(w *world) { w.remove("ci/build-1") })
	await[events.NodeDrained](b, 1)
	b.counted(second, outcomeDrained)
	require.Empty(t, b.world.evictions())
}

func TestAPersonWhoDoesNotWaitForJobsEvictsThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("ci", "build-1", job)
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	b.awaitPhase(lifecycle.DrainFinishing)
	b.request(events.GoalRemove, by("anna"))
	require.Equal(t, 1, await[events.NodeDrained](b, 1).Evicted)
}

func TestWithoutPodsOfJobsNothingIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.world.add("default", "web-1")
	b.start(nil)
	b.request(events.GoalRemove, jobsHave(time.Hour))
	await[events.NodeDrained](b, 1)
	for _, p := range find[events.NodeDrainProgressed](b) {
		require.Empty(t, p.WaitingFor)
	}
}
