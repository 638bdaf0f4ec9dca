package draining

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// The record alone says what is done next: every state of the table has its work.
func TestEveryStateOfTheTableIsWorkedOn(t *testing.T) {
	t.Parallel()
	h := &Handler{opts: Options{Times: Times{}.withDefaults()}}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, s := range lifecycle.DrainTable().States {
		goals := s.Goals
		if goals == nil {
			goals = []string{lifecycle.GoalRemove}
		}
		for _, goal := range goals {
			d := lifecycle.Drain{Phase: lifecycle.DrainPhase(s.Name), Goal: goal, Since: at}
			require.Equal(t, s.Effect, d.Effect())
			next, open := h.nextWork(d)
			require.True(t, open, "%s with goal %s", s.Name, goal)
			switch s.Effect {
			case lifecycle.EffectCordon, lifecycle.EffectEmpty, lifecycle.EffectEvict, lifecycle.EffectUncordon:
				require.Zero(t, next, "%s with goal %s is worked on at once", s.Name, goal)
			case lifecycle.EffectLook, lifecycle.EffectForget:
				require.True(t, next.After(at), "%s with goal %s is looked at from time to time", s.Name, goal)
			case lifecycle.EffectNone, lifecycle.EffectCreate, lifecycle.EffectWatch, lifecycle.EffectRemove:
				require.Fail(t, "draining does not do this", "%s: %s", s.Name, s.Effect)
			}
		}
	}
}
