package decision

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// last is the newest event of a type that decision published, as the log delivers it.
func (b *testBundle) last(typ string) bus.Delivery {
	b.t.Helper()
	var out bus.Delivery
	for d, err := range b.bus.Read(b.t.Context(), bus.ReadOptions{Cluster: testCluster, Types: []string{typ}}) {
		require.NoError(b.t, err)
		out = d
	}
	require.NotZero(b.t, out.Sequence)
	out.Incarnation = testIncarnation
	return out
}

func types(es []events.Event) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Type())
	}
	return out
}

func TestARerunUnderAnotherPolicyDecidesByItFromTheCheckpointOn(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure()
	b.publish(b.full())
	checkpoint := b.last(events.TypeDecisionCheckpointed)
	var given []string
	under := Under(func(recorded Config) Config {
		given = append(given, recorded.Digest)
		recorded.Digest = "candidate"
		recorded.Policy.Pools = slices.Clone(recorded.Policy.Pools)
		recorded.Policy.Pools[0].Max = 1
		return recorded
	})
	recorded, err := NewRerun(b.log, checkpoint)
	require.NoError(t, err)
	candidate, err := NewRerun(b.log, checkpoint, under)
	require.NoError(t, err)
	decide := func(p events.Payload) (as, other []events.Event) {
		d := b.deliver(p)
		as, err := recorded.Handle(t.Context(), d)
		require.NoError(t, err)
		other, err = candidate.Handle(t.Context(), d)
		require.NoError(t, err)
		return as, other
	}

	b.now = b.now.Add(time.Second)
	b.pods(3)
	as, other := decide(b.delta())
	require.Equal(t, []string{events.TypeScaleupDecided, events.TypeNodeClaimed, events.TypeNodeClaimed, events.TypeNodeClaimed}, types(as))
	require.Equal(t, []string{events.TypeScaleupDecided, events.TypeNodeClaimed}, types(other))
	p, err := events.Decode[events.ScaleupDecided](other[0])
	require.NoError(t, err)
	require.Equal(t, "candidate", p.Policy)
	require.Equal(t, 1, p.Max)

	// A config.applied behind it changes nothing but what the candidate makes of it.
	policy := testPolicy()
	policy.Pools[0].Max = 2
	b.now = b.now.Add(time.Second)
	_, other = decide(events.ConfigApplied{Digest: "policy-2", Version: "v-test", Start: b.now, Policy: policy})
	require.NotContains(t, types(other), events.TypeNodeClaimed)
	require.Equal(t, []string{"policy-1", "policy-2"}, given)

	require.False(t, candidate.WakeAt().IsZero(), "a claim ends by itself")
	b.now = candidate.WakeAt()
	_, other = decide(events.TimerFired{Handler: events.HandlerDecision, DueAt: candidate.WakeAt()})
	require.NotContains(t, types(other), events.TypeNodeClaimed)
	require.True(t, candidate.WakeAt().After(b.now) || candidate.WakeAt().IsZero())
}

// What a dry run had decided nobody has made: under a policy that acts it is void,
// as it is when a real run follows.
func TestARerunThatActsForgetsWhatADryRunDecided(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.DryRun = true })
	b.pods(2)
	b.publish(b.full())
	acting, err := NewRerun(b.log, b.last(events.TypeDecisionCheckpointed), Under(func(c Config) Config {
		c.DryRun = false
		return c
	}))
	require.NoError(t, err)
	b.now = b.now.Add(time.Second)
	out, err := acting.Handle(t.Context(), b.deliver(b.delta()))
	require.NoError(t, err)
	claims := 0
	for _, e := range out {
		require.False(t, events.IsDryRun(e))
		if e.Type() == events.TypeNodeClaimed {
			claims++
		}
	}
	require.Equal(t, 2, claims)
}
