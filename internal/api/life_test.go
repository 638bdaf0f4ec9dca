package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestALifeIsItsPointsWithHowLongEachTook(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var timeline []AuditRecord
	happens := func(after time.Duration, reason, actor string, p events.Payload) {
		at = at.Add(after)
		e, err := events.New(events.Meta{Cluster: "home", Node: "n", Publisher: "test", ID: events.ID(p.EventType(), at.String()), Time: at}, p)
		require.NoError(t, err)
		raw, err := e.MarshalJSON()
		require.NoError(t, err)
		timeline = append(timeline, AuditRecord{Type: p.EventType(), StreamTime: at, Reason: reason, Message: reason, Actor: actor, Event: raw})
	}
	ref := events.DrainRef{Node: "n", Goal: "remove", RequestID: "r", At: at}
	why := events.Reason{Code: "x", Message: "x"}
	happens(0, "2 pods pend", "", events.NodeClaimed{Node: "n", Pool: "p", ClaimID: "c", Provider: "docker", Reason: why, NotAfter: at, RegisterDeadline: 1,
		Size: events.Resources{CPUMilli: 1, MemoryBytes: 1}})
	happens(2*time.Second, "", "", events.NodeCreated{Node: "n", Host: "pi", Image: "rancher/k3s:v1.34.4-k3s1"})
	happens(time.Second, "", "", events.NodeObserved{Node: "n", What: events.ObservedRegistered})
	happens(time.Second, "", "", events.NodeRegistered{Node: "n"})
	happens(3*time.Second, "", "", events.NodeReady{Node: "n", First: true})
	happens(time.Hour, "the kubelet stopped", "", events.NodeUnready{Node: "n", Reason: why})
	happens(time.Minute, "", "", events.NodeReady{Node: "n"})
	happens(time.Minute, "no longer needed", "ada", events.NodeDrainRequested{Node: "n", ClaimID: "c", Goal: "remove", Reason: why, NotAfter: at, Deadline: 1})
	happens(time.Second, "no longer needed", "", events.NodeCordoned{DrainRef: ref, Reason: why})
	happens(time.Second, "", "", events.NodeDrainProgressed{DrainRef: ref, Evicted: []string{}, Remaining: 3, WaitingFor: []string{"ci/a"}})
	happens(time.Second, "", "", events.NodeDrainProgressed{DrainRef: ref, Evicted: []string{"a/b"}, Remaining: 2})
	happens(time.Second, "", "", events.NodeDrainBlocked{DrainRef: ref, Blockers: []events.Blocker{{Kind: "PodDisruptionBudget", Name: "web/web", Message: "allows none"}}})
	happens(time.Second, "no longer needed", "", events.NodeDrained{DrainRef: ref, Reason: why})
	happens(time.Second, "", "", events.NodeRemovalProgressed{Node: "n", Step: events.StepInstanceStopped, Detail: "was already gone"})
	happens(time.Second, "no longer needed", "", events.NodeRemoved{Node: "n", Reason: why})

	type row struct {
		name string
		took float64
		why  string
	}
	var got []row
	for _, s := range lifeOf(timeline) {
		got = append(got, row{s.Name, s.Seconds, s.Why})
	}
	require.Equal(t, []row{
		{"claimed", 0, "2 pods pend"}, {"created", 2, "rancher/k3s:v1.34.4-k3s1 on pi"}, {"registered", 2, ""}, {"ready", 3, ""},
		{"unready", 3600, "the kubelet stopped"}, {"ready", 60, "again"}, {"drain requested", 60, "remove: ada: no longer needed"}, {"cordoned", 1, "no longer needed"},
		{"evicting", 1, "2 left"}, {"drain blocked", 2, "PodDisruptionBudget web/web: allows none"}, {"drained", 1, "no longer needed"},
		{"instance stopped", 1, "was already gone"}, {"removed", 1, "no longer needed"},
	}, got)
}

func TestEveryEventOfALifeIsOneOfTheCatalogue(t *testing.T) {
	t.Parallel()
	for typ := range lifePoints {
		d, ok := events.Lookup(typ)
		require.True(t, ok, typ)
		require.Equal(t, events.KeyNode, d.Key, typ)
	}
}
