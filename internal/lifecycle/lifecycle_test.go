package lifecycle

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestNodeReachesReadyAndIsRemovedWithEveryPointTimed(t *testing.T) {
	t.Parallel()
	n := Node{NotAfter: t0.Add(time.Minute), RegisterWithin: 2 * time.Minute}
	steps := []struct {
		on       NodeEvent
		phase    Phase
		deadline time.Time
	}{
		{OnClaimed, Claimed, t0.Add(time.Minute)},
		{OnStarted, Created, t0.Add(time.Second + 2*time.Minute)},
		{OnRegistered, Registered, t0.Add(time.Second + 2*time.Minute)},
		{OnReady, Ready, time.Time{}},
		{OnUnready, Unready, time.Time{}},
		{OnReady, Ready, time.Time{}},
		{OnDrained, Removing, time.Time{}},
		{OnRemoved, Removed, time.Time{}},
	}
	for i, s := range steps {
		at := t0.Add(time.Duration(i) * time.Second)
		require.True(t, n.Phase.Can(s.on))
		require.NoError(t, n.On(s.on, at))
		require.Equal(t, s.phase, n.Phase)
		require.Equal(t, at, n.Since)
		require.Equal(t, s.deadline, n.Deadline, "deadline of %s", s.phase)
	}
	require.Equal(t, t0, n.ClaimedAt)
	require.Equal(t, t0.Add(1*time.Second), n.CreatedAt)
	require.Equal(t, t0.Add(2*time.Second), n.RegisteredAt)
	require.Equal(t, t0.Add(3*time.Second), n.ReadyAt, "only the first time Ready counts")
	require.Equal(t, t0.Add(7*time.Second), n.RemovedAt)
}

func TestImpossibleNodeEventsAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		phase Phase
		on    NodeEvent
	}{
		{"", OnReady},
		{Claimed, OnClaimed},
		{Claimed, OnReady},
		{Ready, OnFailed},
		{Ready, OnStarted},
		{Registered, OnLost},
		{Removing, OnReady},
		{Removing, OnFailed},
		{Removed, OnStarted},
		{Failed, OnStarted},
		{Lost, OnReady},
	} {
		n := Node{Phase: c.phase, Since: t0}
		before := n
		err := n.On(c.on, t0.Add(time.Hour))
		var te *TransitionError
		require.ErrorAs(t, err, &te)
		require.Equal(t, &TransitionError{Of: "node", State: string(c.phase), Event: string(c.on)}, te)
		require.Contains(t, err.Error(), string(c.on))
		require.Equal(t, before, n)
	}
}

func TestNoMachineIsStartedTwiceForOneClaim(t *testing.T) {
	t.Parallel()
	for _, r := range nodes {
		if r.on == OnStarted {
			require.Equal(t, Claimed, r.from, "only a claim that never started may start")
		}
		require.NotEqual(t, Claimed, map[bool]Phase{true: r.to}[r.from != ""], "no way leads back to claimed")
	}
}

func TestPhasesSayWhatTheyAre(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		phase                Phase
		waiting, live, ended bool
		undo                 Undo
	}{
		{"", false, false, false, UndoNothing},
		{Claimed, false, true, false, UndoNothing},
		{Created, true, true, false, UndoCleanUp},
		{Registered, true, true, false, UndoCleanUp},
		{Ready, false, true, false, UndoNothing},
		{Unready, false, true, false, UndoNothing},
		{Failed, false, false, true, UndoNothing},
		{Lost, false, false, true, UndoNothing},
		{Removing, false, false, false, UndoNothing},
		{Removed, false, false, true, UndoNothing},
	} {
		require.Equal(t, c.waiting, c.phase.Waiting(), c.phase)
		require.Equal(t, c.live, c.phase.Live(), c.phase)
		require.Equal(t, c.ended, c.phase.Ended(), c.phase)
		require.Equal(t, c.undo, c.phase.Undo(), c.phase)
	}
}

func TestNodeIsSettledWhenItsCleanUpIsDone(t *testing.T) {
	t.Parallel()
	n := Node{Phase: Failed, Since: t0}
	require.True(t, n.Settled(), "nothing was created, nothing is left")
	require.Equal(t, t0, n.SettledAt())

	n.Removal = &Removal{}
	for _, step := range Steps {
		require.False(t, n.Settled())
		require.Equal(t, step, n.Removal.Next())
		n.Removal.Done = append(n.Removal.Done, Stage{Name: step, At: t0})
	}
	n.Removal.DoneAt = t0.Add(time.Minute)
	require.True(t, n.Settled())
	require.Equal(t, t0.Add(time.Minute), n.SettledAt())

	n.Suspicion = &Suspicion{Kind: "orphan-instance"}
	require.False(t, n.Settled())
	require.False(t, (&Node{Phase: Ready}).Settled())
}

func TestRecordsSurviveJSON(t *testing.T) {
	t.Parallel()
	n := Node{Name: "a-1", Phase: Created, RegisterWithin: time.Minute, Deadline: t0,
		Creation: &Creation{Operation: "x", Attempt: 2}, Removal: &Removal{Done: []Stage{{Name: "instance-stopped", At: t0}}}}
	b, err := json.Marshal(n)
	require.NoError(t, err)
	var back Node
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, n, back)
	require.NotContains(t, string(b), "0001-01-01", "unset times are left out")
}

func TestDrainForRemovalHasAPointOfNoReturn(t *testing.T) {
	t.Parallel()
	d := Drain{}
	require.NoError(t, d.Request(GoalRemove, 10*time.Minute, t0))
	require.Equal(t, t0.Add(10*time.Minute), d.Deadline)
	require.Equal(t, UndoUncordon, d.Undo())
	for _, e := range []DrainEvent{OnCordoned, OnEvicting} {
		require.NoError(t, d.On(e, t0.Add(time.Second)))
		require.Equal(t, t0.Add(10*time.Minute), d.Deadline, "the deadline runs from the request")
		require.True(t, d.Active())
		require.Equal(t, UndoUncordon, d.Undo())
	}
	require.NoError(t, d.On(OnEmptied, t0.Add(2*time.Second)))
	require.Equal(t, DrainDrained, d.Phase)
	require.Zero(t, d.Deadline)
	require.False(t, d.Active())
	require.Equal(t, UndoNothing, d.Undo())

	before := d
	for _, e := range []DrainEvent{OnCancelled, OnExpired, OnUncordoned, OnCordoned, OnDrainRequested} {
		var te *TransitionError
		require.ErrorAs(t, d.On(e, t0.Add(time.Hour)), &te)
		require.Equal(t, before, d)
	}
	require.Error(t, d.Request(GoalCordon, time.Minute, t0.Add(time.Hour)))
	require.Equal(t, before, d)
	require.NoError(t, d.On(OnGone, t0.Add(time.Hour)))
	require.Equal(t, DrainDone, d.Phase)
}

func TestDrainIsUndoneByCancelAndDeadlineAlike(t *testing.T) {
	t.Parallel()
	for _, e := range []DrainEvent{OnCancelled, OnExpired} {
		for _, reached := range [][]DrainEvent{{}, {OnCordoned}, {OnCordoned, OnEvicting}} {
			d := Drain{}
			require.NoError(t, d.Request(GoalDrain, time.Minute, t0))
			for _, r := range reached {
				require.NoError(t, d.On(r, t0))
			}
			require.NoError(t, d.On(e, t0.Add(time.Minute)))
			require.Equal(t, DrainUncordoning, d.Phase)
			require.Zero(t, d.Deadline)
			require.True(t, d.Active())
			require.NoError(t, d.On(OnUncordoned, t0.Add(time.Minute)))
			require.Equal(t, DrainDone, d.Phase)
			require.False(t, d.Active())
		}
	}
}

func TestADrainThatWaitsForJobsHasAllOfItsTimeAfterThem(t *testing.T) {
	t.Parallel()
	d := Drain{JobsWithin: time.Hour}
	require.NoError(t, d.Request(GoalRemove, time.Minute, t0))
	require.NoError(t, d.On(OnCordoned, t0.Add(time.Second)))
	require.NoError(t, d.On(OnWaiting, t0.Add(2*time.Second)))
	require.Equal(t, DrainFinishing, d.Phase)
	require.Equal(t, t0.Add(time.Hour+2*time.Second), d.JobsUntil)
	require.Zero(t, d.Deadline)
	require.True(t, d.Active())
	require.Equal(t, UndoUncordon, d.Undo())
	require.True(t, d.Can(OnCancelled))
	require.False(t, d.Can(OnExpired))
	require.False(t, d.Can(OnEmptied), "the node is looked at again before it is drained")

	again := d
	require.NoError(t, again.Request(GoalRemove, time.Minute, t0.Add(time.Minute)))
	require.Equal(t, t0.Add(2*time.Minute), again.Deadline)
	require.NoError(t, again.On(OnCordoned, t0.Add(time.Minute)))
	require.NoError(t, again.On(OnWaiting, t0.Add(time.Minute)))
	require.Equal(t, d.JobsUntil, again.JobsUntil, "asked for again, they get no more time")

	require.NoError(t, d.On(OnEvicting, t0.Add(30*time.Minute)))
	require.Equal(t, DrainDraining, d.Phase)
	require.Equal(t, t0.Add(31*time.Minute), d.Deadline)
}

func TestAForcedRemovalHasAsLongAgain(t *testing.T) {
	t.Parallel()
	begun := func(goal string) Drain {
		d := Drain{}
		require.NoError(t, d.Request(goal, time.Minute, t0))
		require.NoError(t, d.On(OnCordoned, t0))
		require.NoError(t, d.On(OnEvicting, t0))
		return d
	}
	d := begun(GoalDrain)
	require.False(t, d.Can(OnForced), "the node stays, and so do its pods")

	d = begun(GoalRemove)
	late := t0.Add(time.Minute)
	require.NoError(t, d.On(OnForced, late))
	require.Equal(t, DrainForcing, d.Phase)
	require.Equal(t, late.Add(time.Minute), d.Deadline)
	require.True(t, d.Active())
	require.Equal(t, UndoUncordon, d.Undo())
	require.False(t, d.Can(OnForced), "once")
	for _, e := range []DrainEvent{OnCancelled, OnExpired, OnGone, OnEmptied, OnDrainRequested} {
		require.True(t, d.Can(e), e)
	}
	again := d
	require.NoError(t, again.Request(GoalRemove, time.Hour, late))
	require.Equal(t, d.Deadline, again.Deadline, "asked for again, it has no more time")
	require.NoError(t, d.On(OnEmptied, late))
	require.Equal(t, DrainDrained, d.Phase)
	require.False(t, d.Can(OnCancelled))
}

func TestCordonStaysWithoutDeadlineUntilMoreIsAskedFor(t *testing.T) {
	t.Parallel()
	d := Drain{}
	require.NoError(t, d.Request(GoalCordon, time.Minute, t0))
	require.NoError(t, d.On(OnCordoned, t0.Add(time.Second)))
	require.Zero(t, d.Deadline)
	require.False(t, d.Active())
	require.Equal(t, UndoNothing, d.Undo())
	require.False(t, d.Can(OnEvicting), "a cordon evicts nothing")
	require.False(t, d.Can(OnExpired))
	require.True(t, d.Can(OnCancelled))

	require.NoError(t, d.Request(GoalRemove, time.Minute, t0.Add(time.Hour)))
	require.Equal(t, t0.Add(time.Hour+time.Minute), d.Deadline)
	require.Equal(t, GoalRemove, d.Goal)
	require.NoError(t, d.On(OnCordoned, t0.Add(time.Hour)))
	require.True(t, d.Can(OnEvicting))
}

func TestRequestForADrainUnderWayKeepsTheEarlierDeadline(t *testing.T) {
	t.Parallel()
	d := Drain{}
	require.NoError(t, d.Request(GoalDrain, 10*time.Minute, t0))
	require.NoError(t, d.On(OnCordoned, t0))
	require.NoError(t, d.Request(GoalRemove, 10*time.Minute, t0.Add(5*time.Minute)))
	require.Equal(t, t0.Add(10*time.Minute), d.Deadline)
	require.NoError(t, d.Request(GoalRemove, time.Minute, t0.Add(6*time.Minute)))
	require.Equal(t, t0.Add(7*time.Minute), d.Deadline)
	require.NoError(t, d.On(OnDrainRequested, t0.Add(6*time.Minute)))
	require.Equal(t, t0.Add(7*time.Minute), d.Deadline)
}

func TestEmptiedNodeThatStaysMayBeRemovedOrUncordonedLater(t *testing.T) {
	t.Parallel()
	d := Drain{}
	require.NoError(t, d.Request(GoalDrain, time.Minute, t0))
	require.NoError(t, d.On(OnCordoned, t0))
	require.NoError(t, d.On(OnEmptied, t0), "nothing had to be evicted")
	require.True(t, d.Can(OnCancelled))
	require.NoError(t, d.Request(GoalRemove, time.Minute, t0.Add(time.Hour)))
	require.Equal(t, DrainRequested, d.Phase)
	require.Equal(t, t0.Add(time.Hour+time.Minute), d.Deadline)
}

func TestGoneEndsADrainFromEverywhere(t *testing.T) {
	t.Parallel()
	for _, p := range []DrainPhase{DrainRequested, DrainCordoned, DrainFinishing, DrainDraining, DrainForcing, DrainDrained, DrainUncordoning} {
		d := Drain{Phase: p, Goal: GoalRemove, Deadline: t0}
		require.NoError(t, d.On(OnGone, t0), p)
		require.Equal(t, DrainDone, d.Phase)
		require.Zero(t, d.Deadline)
	}
	require.Equal(t, UndoNothing, (&Drain{}).Undo())
}
