package lifecycle

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAPositionSaysWhereALifeIsUntilWhenAndWhatComesNext(t *testing.T) {
	t.Parallel()
	later := t0.Add(time.Minute)
	ready := &Node{Phase: Ready, Since: t0}
	for name, c := range map[string]struct {
		node  *Node
		drain *Drain
		want  Position
	}{
		"nothing": {nil, nil, Position{}},
		"claimed": {&Node{Phase: Claimed, Since: t0, Deadline: later}, nil,
			Position{Phase: "claimed", Since: t0, Until: later, Next: "its machine is created and started"}},
		"creation fails": {&Node{Phase: Claimed, Since: t0, Deadline: later, Creation: &Creation{Attempt: 2, LastError: "no space", NextAt: later}}, nil,
			Position{Phase: "claimed", Since: t0, Until: later, Next: "its machine is created and started",
				Retry: &Retry{Of: "create the machine", Attempt: 2, Error: "no space", NextAt: later}}},
		"starting":   {&Node{Phase: Claimed, Creation: &Creation{Starting: true}}, nil, Position{Phase: "claimed", Next: "its machine is started"}},
		"created":    {&Node{Phase: Created, Deadline: later}, nil, Position{Phase: "created", Until: later, Next: "it registers with the API server"}},
		"registered": {&Node{Phase: Registered}, nil, Position{Phase: "registered", Next: "it becomes Ready"}},
		"ready":      {ready, nil, Position{Phase: "ready", Since: t0}},
		"suspected": {&Node{Phase: Ready, Suspicion: &Suspicion{Kind: "node-lost", Detail: "its machine is gone", Attempt: 1, NextAt: later}}, nil,
			Position{Phase: "ready", Next: "a report about it is checked (node-lost: its machine is gone)", Retry: &Retry{Of: "check the report", Attempt: 1, NextAt: later}}},
		"removing": {&Node{Phase: Removing, Removal: &Removal{Done: []Stage{{Name: Steps[0]}}, Attempt: 1, LastError: "timeout", NextAt: later}}, &Drain{Phase: DrainDrained, Goal: GoalRemove},
			Position{Phase: "removing", Next: "its Node object is deleted", Retry: &Retry{Of: "node-deleted", Attempt: 1, Error: "timeout", NextAt: later}}},
		"failed":   {&Node{Phase: Failed}, nil, Position{Phase: "failed", Next: "its record is forgotten"}},
		"undone":   {ready, &Drain{Phase: DrainDone}, Position{Phase: "ready", Since: t0}},
		"asked":    {ready, &Drain{Phase: DrainRequested, Goal: GoalRemove, Deadline: later}, Position{Phase: "drain requested", Until: later, Next: "it is cordoned, then it is removed"}},
		"cordoned": {ready, &Drain{Phase: DrainCordoned, Goal: GoalCordon}, Position{Phase: "cordoned", Next: "it stays cordoned until somebody uncordons it or asks for more"}},
		"finishing": {ready, &Drain{Phase: DrainFinishing, Goal: GoalDrain, JobsUntil: later},
			Position{Phase: "finishing", Until: later, Next: "pods of Jobs end, then the rest is evicted"}},
		"draining": {ready, &Drain{Phase: DrainDraining, Goal: GoalRemove, Deadline: later, Remaining: 3, Attempt: 2, NextAt: later},
			Position{Phase: "draining", Until: later, Next: "3 pods leave, then it is removed", Retry: &Retry{Of: "evict", Attempt: 2, NextAt: later}}},
		"the last pod": {ready, &Drain{Phase: DrainDraining, Goal: GoalDrain, Remaining: 1}, Position{Phase: "draining", Next: "1 pod leaves"}},
		"drained":      {nil, &Drain{Phase: DrainDrained, Goal: GoalRemove}, Position{Phase: "drained", Next: "its machine and Node object are removed"}},
		"uncordoning":  {ready, &Drain{Phase: DrainUncordoning, Goal: GoalRemove}, Position{Phase: "uncordoning", Next: "it is uncordoned"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, Where(c.node, c.drain))
		})
	}
}

func TestEveryStepOfARemovalIsSaidInWords(t *testing.T) {
	t.Parallel()
	for _, s := range Steps {
		require.NotEmpty(t, steps[s], s)
	}
}
