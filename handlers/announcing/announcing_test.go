package announcing

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

var now = time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)

// board keeps what it is given, but for what it is told to refuse.
type board struct {
	posted []Note
	err    map[string]error // by name
	calls  int
}

func (b *board) Post(_ context.Context, n Note) error {
	b.calls++
	if err := b.err[n.Name]; err != nil {
		return err
	}
	b.posted = append(b.posted, n)
	return nil
}

type testBundle struct {
	board *board
	h     *Handler
	reg   *prometheus.Registry
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{board: &board{err: map[string]error{}}, reg: prometheus.NewRegistry()}
	var err error
	b.h, err = New(Options{Boards: map[string]Board{"home": b.board},
		Clock: clocktesting.NewFakePassiveClock(now), Registerer: b.reg})
	require.NoError(t, err)
	return b
}

// delivery is an event of cluster home, stored at an instant.
func delivery(t *testing.T, node string, p events.Payload, at time.Time, with ...func(*events.Meta)) bus.Delivery {
	t.Helper()
	m := events.Meta{Cluster: "home", Node: node, Publisher: "test", ID: "e1", Time: at}
	for _, w := range with {
		w(&m)
	}
	e, err := events.New(m, p)
	require.NoError(t, err)
	key := bus.Key{Cluster: m.Cluster, Name: events.ClusterKey}
	if node != "" {
		key.Name = node
	}
	return bus.Delivery{Event: e, Key: key, StreamTime: at}
}

func held(pods ...string) events.ScaleHeld {
	return events.ScaleHeld{Decision: events.Decision{ID: "d1", Pool: "burst", Verdict: events.VerdictHeld, Max: 3, EvaluatedAt: now,
		Reason: events.Reason{Code: "AtMax", Message: "pool burst is full"},
		Rejected: []events.Alternative{{Subject: "pod " + pods[0], Pods: pods, Fix: "raise max of pool burst above 3",
			Reason: events.Reason{Code: "AtMax", Message: "would fit on a new node, but pool burst has 3 nodes of at most 3"}}}}}
}

func TestEachEventIsToldOnTheObjectsThatItConcerns(t *testing.T) {
	t.Parallel()
	low := events.Reason{Code: "NodeUnneeded", Message: "utilisation 10% < 50%"}
	ref := events.DrainRef{Node: "n1", Pool: "burst", Goal: events.GoalRemove, RequestID: "r"}
	drain := func(goal string) events.NodeDrainRequested {
		return events.NodeDrainRequested{Node: "n1", ClaimID: "c", Goal: goal, Reason: low, NotAfter: now, Deadline: events.Duration(time.Minute)}
	}
	up := events.ScaleupDecided{Decision: events.Decision{ID: "d1", Pool: "burst", Verdict: events.VerdictUp, Delta: 4, Size: 1, Max: 9, EvaluatedAt: now,
		Nodes: []string{"n1", "n2", "n3", "n4"}, Pods: []string{"default/web-0"}, Reason: events.Reason{Code: "UnschedulablePods", Message: "m"}}}
	for _, c := range []struct {
		name string
		p    events.Payload
		want []Note
	}{
		{"a pod that gets nodes", up, []Note{{Namespace: "default", Name: "web-0", Reason: "TriggeredScaleUp",
			Message: "pod triggered scale-up: pool burst 1->5 (max 9), nodes n1, n2, n3 and 1 more; why: k3s-autoscaler explain d1"}}},
		{"pods that get none", held("default/a", "default/b"), []Note{
			{Namespace: "default", Name: "a", Warning: true, Reason: "NotTriggerScaleUp", Message: "pod didn't trigger scale-up of pool burst: would fit on a new node, but pool burst has 3 nodes of at most 3 (AtMax); to change that: raise max of pool burst above 3"},
			{Namespace: "default", Name: "b", Warning: true, Reason: "NotTriggerScaleUp", Message: "pod didn't trigger scale-up of pool burst: would fit on a new node, but pool burst has 3 nodes of at most 3 (AtMax); to change that: raise max of pool burst above 3"}}},
		{"a removal", drain(events.GoalRemove), []Note{{Name: "n1", Reason: "ScaleDown", Message: "node is to be drained and removed: utilisation 10% < 50% (NodeUnneeded)"}}},
		{"a person's drain", drain(events.GoalDrain), []Note{{Name: "n1", Reason: "Drain", Message: "node is to be drained; it stays: utilisation 10% < 50% (NodeUnneeded)"}}},
		{"what blocks it", events.NodeDrainBlocked{DrainRef: ref, Deadline: now, Blockers: []events.Blocker{{Kind: "PodDisruptionBudget", Name: "default/web", Pod: "default/web-0", Message: "0 disruptions allowed", Fix: "run more replicas"}}},
			[]Note{{Name: "n1", Warning: true, Reason: "DrainBlocked", Message: "drain is blocked: PodDisruptionBudget default/web keeps pod default/web-0: 0 disruptions allowed; to change that: run more replicas; it is undone at 06:00:00 UTC"}}},
		{"its end at the deadline", events.NodeUncordoned{DrainRef: ref, Reason: events.Reason{Code: "DrainDeadline", Message: "not empty in 2m"}},
			[]Note{{Name: "n1", Warning: true, Reason: "ScaleDownFailed", Message: "given up: not empty in 2m (DrainDeadline)"}}},
		{"its end on demand", events.NodeUncordoned{DrainRef: ref, Reason: events.Reason{Code: "NewDemand", Message: "pod default/web-1 needs it"}},
			[]Note{{Name: "n1", Reason: "Uncordoned", Message: "node takes pods again: pod default/web-1 needs it (NewDemand)"}}},
		{"a node that left", events.NodeRemoved{Node: "n1", Pool: "burst", Reason: low}, []Note{{Name: "n1", Reason: "ScaleDown", Message: "node of pool burst removed: utilisation 10% < 50% (NodeUnneeded)"}}},
		{"a node that failed", events.NodeFailed{Node: "n1", Pool: "burst", Failure: events.Failure{Stage: "created", Reason: events.Reason{Code: "NotRegistered", Message: "no Node object within 2m"}}},
			[]Note{{Name: "n1", Warning: true, Reason: "ScaleUpFailed", Message: "node of pool burst did not come, it failed after created: no Node object within 2m (NotRegistered)"}}},
		{"a node that vanished", events.NodeLost{Node: "n1", Pool: "burst", Reason: events.Reason{Code: "NodeDeleted", Message: "someone deleted the Node object"}},
			[]Note{{Name: "n1", Warning: true, Reason: "NodeLost", Message: "node of pool burst vanished, and k3s-autoscaler did not remove it: someone deleted the Node object (NodeDeleted)"}}},
		{"a node that is adopted", events.NodeAdopted{Node: "n1", Pool: "burst", ClaimID: "c"},
			[]Note{{Name: "n1", Warning: true, Reason: "NodeAdopted", Message: "node of pool burst had no record and has one now: it counts, is drained and removed like any other"}}},
		{"a node that is Ready", events.NodeReady{Node: "n1", Pool: "burst", First: true}, []Note{{Name: "n1", Reason: "ScaleUp", Message: "node of pool burst is Ready"}}},
		{"a node that is Ready again", events.NodeReady{Node: "n1", Pool: "burst"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			node := "n1"
			if def, _ := events.Lookup(c.p.EventType()); def.Key == events.KeyCluster {
				node = ""
			}
			require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{delivery(t, node, c.p, now)}))
			for i := range c.want {
				c.want[i].ID = "e1"
			}
			require.Equal(t, c.want, b.board.posted)
		})
	}
}

func TestARedeliveredEventGivesTheSameNotes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := delivery(t, "", held("default/a"), now)
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{d}))
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{d}))
	require.Len(t, b.board.posted, 2)
	require.Equal(t, b.board.posted[0], b.board.posted[1], "the board counts it instead of writing it again")
}

func TestWhatIsNoNewsIsNotTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	redriven := delivery(t, "", held("default/a"), now)
	redriven.Redrive.Handler = events.HandlerDecision
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{
		delivery(t, "", held("default/a"), now.Add(-MaxAge-time.Second)),
		delivery(t, "", held("default/a"), now, func(m *events.Meta) { m.DryRun = true }),
		delivery(t, "", held("default/a"), now, func(m *events.Meta) { m.Cluster = "elsewhere" }),
		redriven,
	}))
	require.Zero(t, b.board.calls)
}

func TestAServerThatDoesNotAnswerHoldsNothingUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.board.err["b"] = errors.New("connection refused")
	b.board.err["gone"] = ErrNotFound
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{
		delivery(t, "", held("default/gone", "default/a", "default/b", "default/c"), now),
		delivery(t, "", held("default/d"), now),
	}), "it is never given again, and nobody waits for it")
	require.Equal(t, 3, b.board.calls, "who does not answer is not asked again in the batch")
	require.Len(t, b.board.posted, 1)
	require.InDelta(t, 3, testutil.ToFloat64(bus.ErrorsTotal(b.reg, nil).WithLabelValues(events.HandlerAnnouncing)), 0)

	delete(b.board.err, "b")
	require.NoError(t, b.h.HandleBatch(t.Context(), []bus.Delivery{delivery(t, "", held("default/b"), now)}))
	require.Len(t, b.board.posted, 2, "the next batch asks again")
}

func TestBoardsAreRequired(t *testing.T) {
	t.Parallel()
	_, err := New(Options{})
	require.ErrorContains(t, err, "boards are required")
}
