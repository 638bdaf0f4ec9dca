package api

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// differs is what a shadow says of a pool.
func (b *testBundle) differs(t *testing.T, shadow, difference, pool, effect string, nodes int) {
	t.Helper()
	p := events.ShadowDecided{Shadow: shadow, Difference: difference, Pool: pool, Effect: effect, Nodes: nodes, Since: t0, Input: uint64(len(b.log))}
	if effect != events.EffectNone {
		p.Candidate = &events.Decision{Pool: pool, Verdict: events.VerdictUp, Delta: nodes}
		p.Live = &events.Decision{Pool: pool, Verdict: events.VerdictHeld}
	}
	b.add(t, events.Meta{Publisher: "shadow", ID: events.ID(difference, effect, time.Duration(len(b.log)).String())}, p)
}

func TestTheDifferencesOfAShadowAreFoldedFromTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.differs(t, "older", "x", "burst", events.EffectAdd, 9)
	b.shadows = []Shadow{{ID: "s", Cluster: "home", Sequence: 1}}
	b.differs(t, "s", "d1", "burst", events.EffectAdd, 1)
	b.differs(t, "s", "d1", "burst", events.EffectAdd, 3) // it grows
	b.differs(t, "s", "d2", "ci", events.EffectHold, 2)
	b.differs(t, "s", "d1", "burst", events.EffectNone, 0)
	b.differs(t, "s", "d3", "burst", events.EffectRemove, 1)
	b.differs(t, "s", "d4", "burst", events.EffectOther, 0) // turns into another at once
	d := get[ShadowDiff](t, b, "/v1/shadows/diff")
	require.Equal(t, ShadowTotals{Added: 3, Removed: 1, Held: 2}, d.ShadowTotals)
	require.Equal(t, 1, d.Other)
	require.Len(t, d.Differences, 4)
	require.Equal(t, "d1", d.Differences[0].ID)
	require.Equal(t, 3, d.Differences[0].Nodes)
	require.Equal(t, 3, d.Differences[0].Candidate.Delta, "as it was at its most")
	require.False(t, d.Differences[0].Until.IsZero())
	require.True(t, d.Differences[1].Until.IsZero(), "it lasts")
	require.False(t, d.Differences[2].Until.IsZero())
	require.True(t, d.Differences[3].Until.IsZero())

	// What was over by then is left out.
	b.clock.SetTime(t0.Add(time.Hour))
	d = get[ShadowDiff](t, b, "/v1/shadows/diff?since=1m&cluster=home")
	require.Len(t, d.Differences, 2, "those that last")
	require.Equal(t, http.StatusUnprocessableEntity, b.call(http.MethodGet, "/v1/shadows/diff?since=soon", "").Code)
	b.shadows = nil
	a := b.call(http.MethodGet, "/v1/shadows/diff", "")
	require.Equal(t, http.StatusNotFound, a.Code)
	require.Contains(t, a.Body.String(), "shadow start FILE")
}

func TestAShadowIsShownWithItsCluster(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.clusters = []Cluster{{Name: "home"}, {Name: "lab"}}
	b.shadows = []Shadow{{ID: "s", Cluster: "lab", Differences: 2}}
	cs := get[Page[Cluster]](t, b, "/v1/clusters").Items
	require.Nil(t, cs[0].Shadow)
	require.Equal(t, 2, cs[1].Shadow.Differences)
	require.Len(t, get[Page[Shadow]](t, b, "/v1/shadows").Items, 1)
	require.Empty(t, get[Page[Shadow]](t, b, "/v1/shadows?cluster=home").Items)
}

func TestWhoAsksForAShadowIsWhoHoldsTheToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	post := func(path, body string) answer {
		return b.call(http.MethodPost, path, body, "Content-Type", "application/json")
	}
	require.Equal(t, http.StatusAccepted, post("/v1/shadows/start", `{"config":"{}","actor":"ada","reason":"r"}`).Code)
	require.Equal(t, http.StatusAccepted, post("/v1/shadows/stop", `{"shadow":"s","reason":"r"}`).Code)
	require.Equal(t, http.StatusAccepted, post("/v1/shadows/promote", `{"shadow":"s","reason":"r","cluster":"home"}`).Code)
	require.Equal(t, []string{"start home ada@" + b.key.ID + " r", "stop home " + b.key.ID + " s", "promote home " + b.key.ID + " s"}, b.ended)

	for body, want := range map[string]string{
		`{"shadow":"s","reason":"r","cluster":"lab"}`: "There is no cluster", `{"shadow":"s","reason":" "}`: "reason is empty",
		`{"shadow":"s","reason":"r","actor":"a@b"}`: "must not hold", `{"reason":"r"}`: "shadow",
	} {
		a := post("/v1/shadows/promote", body)
		require.Equal(t, http.StatusUnprocessableEntity, a.Code, body)
		require.Contains(t, a.Body.String(), want)
	}
	require.Len(t, b.ended, 3)
	b.targets = append(b.targets, Target{Cluster: "lab"})
	require.Contains(t, post("/v1/shadows/stop", `{"shadow":"s","reason":"r"}`).Body.String(), "There are several clusters (home, lab)")

	b.refused = &Refused{Status: http.StatusConflict, Message: "Another one.", Details: []string{"line 4"}}
	a := post("/v1/shadows/promote", `{"shadow":"s","reason":"r","cluster":"home"}`)
	require.Equal(t, http.StatusConflict, a.Code)
	require.Contains(t, a.Body.String(), "line 4")
	b.refused = bus.ErrUnavailable
	require.Equal(t, http.StatusServiceUnavailable, post("/v1/shadows/promote", `{"shadow":"s","reason":"r","cluster":"home"}`).Code)
	b.refused = errors.New("odd")
	require.Equal(t, http.StatusInternalServerError, post("/v1/shadows/promote", `{"shadow":"s","reason":"r","cluster":"home"}`).Code)
}
