package decision

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// shadowBundle is a cluster whose events go to decision, and whatever the log
// holds of it to the shadow, as on the bus.
type shadowBundle struct {
	*testBundle
	shadow *Shadow
	given  map[string]bool // events of decision that the shadow has
}

func newShadowBundle(t *testing.T) *shadowBundle {
	t.Helper()
	b := &shadowBundle{testBundle: newBundle(t), given: map[string]bool{}}
	b.shadow = b.openShadow()
	return b
}

// openShadow starts another process of the shadow: it has nothing in memory.
func (b *shadowBundle) openShadow() *Shadow {
	b.t.Helper()
	h, err := NewShadow(b.t.Context(), ShadowOptions{Bus: b.bus, Version: "v-test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	require.NoError(b.t, err)
	h.history = b.log
	return h
}

// happens has decision handle an event, puts what it says into the log, and has the
// shadow handle all of that.
func (b *shadowBundle) happens(p events.Payload) bus.Delivery {
	b.t.Helper()
	d := b.publish(p)
	b.judges(d)
	b.checkpoints()
	return d
}

func (b *shadowBundle) judges(d bus.Delivery) {
	b.t.Helper()
	require.NoError(b.t, b.shadow.Handle(b.t.Context(), d))
}

// checkpoints gives the shadow what decision has published of them.
func (b *shadowBundle) checkpoints() {
	b.t.Helper()
	for _, e := range b.emitted() {
		if e.Type() != events.TypeDecisionCheckpointed || b.given[e.ID()] {
			continue
		}
		b.given[e.ID()] = true
		p, err := events.Decode[events.DecisionCheckpointed](e)
		require.NoError(b.t, err)
		d := b.deliver(p)
		d.Event = e
		b.log.deliveries[len(b.log.deliveries)-1] = d
		b.judges(d)
	}
}

// ask is an event that the shadow alone reads.
func (b *shadowBundle) ask(p events.Payload) bus.Delivery {
	b.t.Helper()
	d := b.deliver(p)
	b.judges(d)
	return d
}

// candidate is the policy in force with a change.
func candidateOf(edit func(*events.Policy)) events.ShadowStarted {
	p := events.ShadowStarted{Digest: "candidate-1", Policy: testPolicy(), File: "candidate.yaml", Actor: "ada", Reason: "to see"}
	edit(&p.Policy)
	return p
}

func (b *shadowBundle) start(edit func(*events.Policy)) bus.Delivery {
	b.t.Helper()
	p := candidateOf(edit)
	for _, d := range b.log.deliveries {
		if d.Event.Type() == events.TypeDecisionCheckpointed {
			p.Checkpoint = d.Sequence
		}
	}
	return b.ask(p)
}

func (b *shadowBundle) step(change func()) bus.Delivery {
	b.t.Helper()
	b.now = b.now.Add(time.Second)
	change()
	return b.happens(b.delta())
}

func (b *shadowBundle) record() (ShadowRecord, bool) {
	b.t.Helper()
	r, ok, err := b.shadow.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: events.ClusterKey})
	require.NoError(b.t, err)
	return r.State, ok
}

// live is decision's own record.
func (b *shadowBundle) live() Record {
	b.t.Helper()
	r, ok, err := b.handler.state.Get(b.t.Context(), bus.Key{Cluster: testCluster, Name: events.ClusterKey})
	require.NoError(b.t, err)
	require.True(b.t, ok)
	return r.State
}

func (b *shadowBundle) inStep() {
	b.t.Helper()
	r, ok := b.record()
	require.True(b.t, ok)
	require.NotNil(b.t, r.Live)
	require.Equal(b.t, b.live(), r.Live.Record, "the copy is decision's record")
	require.Zero(b.t, r.Corrected)
}

func maxOf(n int) func(*events.Policy) { return func(p *events.Policy) { p.Pools[0].Max = n } }

func TestACandidateWithAHigherMaxWouldAddWhereTheOneInForceHolds(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	b.happens(b.full())
	started := b.start(maxOf(3))
	b.inStep()
	in := b.step(func() { b.pods(2) })

	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 1)
	d := said[0]
	require.Equal(t, events.EffectAdd, d.Effect)
	require.Equal(t, 1, d.Nodes, "one node is added anyway")
	require.Equal(t, "a", d.Pool)
	require.Equal(t, started.Event.ID(), d.Shadow)
	require.Equal(t, in.Sequence, d.Input)
	require.Equal(t, b.now, d.Since)
	require.Equal(t, "up", d.Candidate.Verdict)
	require.Equal(t, 2, d.Candidate.Delta)
	require.Equal(t, "candidate-1", d.Candidate.Policy)
	require.Equal(t, "UnschedulablePods", d.Candidate.Reason.Code)
	require.Empty(t, d.Candidate.Nodes, "they will never be")
	require.Equal(t, 1, d.Live.Delta)
	require.Equal(t, "policy-1", d.Live.Policy)
	require.Contains(t, d.Candidate.Inputs, in.Event.ID())
	up := payloads[events.ScaleupDecided](b.testBundle)
	require.Equal(t, up[0].ID, d.Live.ID, "what explain finds")
	b.inStep()

	// The same need, seen again: the node that is added is there for both, and one
	// more would come.
	for range 3 {
		b.step(func() {})
	}
	require.Len(t, payloads[events.ShadowDecided](b.testBundle), 1, "it is said once")
	r, _ := b.record()
	require.Equal(t, 1, r.Tally.Added)
	require.Equal(t, 4, r.Tally.Differing)
	require.Equal(t, 1, r.Tally.Differences)

	// More of the same need is the same difference, which has grown.
	b.step(func() { b.pods(1) })
	said = payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 2)
	require.Equal(t, d.Difference, said[1].Difference)
	require.Equal(t, 2, said[1].Nodes)
	require.Equal(t, d.Since, said[1].Since)

	// The need is gone: they agree.
	b.step(func() { b.objects.Pods = nil })
	said = payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 3)
	require.Equal(t, events.EffectNone, said[2].Effect)
	require.Equal(t, d.Difference, said[2].Difference)
	require.Nil(t, said[2].Candidate)
	r, _ = b.record()
	require.Equal(t, Tally{Evaluations: r.Tally.Evaluations, Differing: 5, Differences: 1, Added: 2}, r.Tally)
	require.Empty(t, r.Open)
	b.inStep()
	require.Len(t, payloads[events.NodeClaimed](b.testBundle), 1, "nobody acts on it")
}

func TestTheShadowPublishesNothingThatAnybodyActsOn(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure()
	b.happens(b.full())
	b.start(maxOf(9))
	b.step(func() { b.pods(8) })
	said := 0
	for _, e := range b.emitted() {
		if e.Source() != "/k3s-autoscaler/"+testCluster+"/"+events.HandlerShadow {
			continue
		}
		said++
		require.Equal(t, events.TypeShadowDecided, e.Type())
		require.True(t, events.IsDryRun(e))
		def, ok := events.Lookup(e.Type())
		require.True(t, ok)
		require.Empty(t, def.Readers)
	}
	require.Equal(t, 1, said)
}

func TestACandidateThatRemovesEarlierIsSaidToAndTheNodeStays(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Start = b.now.Add(-time.Hour) })
	b.node("a-1")
	b.node("a-2")
	b.happens(b.full())
	b.start(func(p *events.Policy) {
		p.Pools[0].Unneeded, p.Pools[0].Stabilization = events.Duration(time.Minute), events.Duration(30*time.Second)
	})
	began := b.now
	for range 9 { // a minute and a half
		b.now = b.now.Add(10 * time.Second)
		b.happens(b.delta())
	}
	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 1)
	require.Equal(t, events.EffectRemove, said[0].Effect)
	require.Equal(t, 1, said[0].Nodes)
	require.Equal(t, []string{"a-2"}, said[0].Candidate.Nodes)
	require.Equal(t, "held", said[0].Live.Verdict)
	require.Less(t, said[0].Since.Sub(began), 90*time.Second)
	require.Empty(t, payloads[events.NodeDrainRequested](b.testBundle))
	r, _ := b.record()
	require.Equal(t, 1, r.Tally.Removed, "the one that it would remove stays, and is not counted with each snapshot")
	require.Contains(t, r.Own.Unneeded, "a-2", "it is as unneeded as before")

	// Five minutes later the policy in force removes it, too.
	for len(payloads[events.NodeDrainRequested](b.testBundle)) == 0 {
		require.Less(t, b.now.Sub(began), 10*time.Minute)
		b.now = b.now.Add(10 * time.Second)
		b.happens(b.delta())
	}
	said = payloads[events.ShadowDecided](b.testBundle)
	require.Equal(t, events.EffectNone, said[len(said)-1].Effect)
	require.Len(t, said, 2)
	b.inStep()
}

func TestAStricterCandidateHoldsWhatIsAdded(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure()
	b.happens(b.full())
	b.start(maxOf(1))
	b.step(func() { b.pods(3) })
	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 1)
	require.Equal(t, events.EffectHold, said[0].Effect)
	require.Equal(t, 2, said[0].Nodes)
	require.Equal(t, 1, said[0].Candidate.Delta)
	require.Equal(t, 3, said[0].Live.Delta)
	b.step(func() {})
	said = payloads[events.ShadowDecided](b.testBundle)
	require.Equal(t, events.EffectNone, said[1].Effect, "in the situation that there is now, both hold")
}

func TestAnAlertThatOnlyTheCandidateKnowsIsItsOwn(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.AlertRules = nil })
	b.happens(b.full())
	b.start(func(*events.Policy) {})
	b.now = b.now.Add(time.Second)
	b.happens(b.alert(events.AlertFiring))
	b.step(func() {})
	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 1)
	require.Equal(t, events.EffectAdd, said[0].Effect)
	require.Equal(t, "AlertFiring", said[0].Candidate.Reason.Code)
	b.happens(b.alert(events.AlertResolved))
	b.inStep()
}

func TestAQueryOfTheSameRuleIsAnsweredForEachPolicyByItself(t *testing.T) {
	t.Parallel()
	minute := events.Duration(time.Minute)
	queue := func(query string) []events.MetricRule {
		return []events.MetricRule{{Name: "queue", Pool: "a", Query: query, Interval: minute, StaleAfter: 5 * minute, MayAdd: true, PassThrough: true}}
	}
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.MetricRules = queue("live()") })
	b.happens(b.full())
	b.start(func(p *events.Policy) { p.MetricRules = queue("candidate()") })
	answers := func(query string, v float64) {
		b.now = b.now.Add(time.Second)
		b.happens(events.SignalReceived{Name: "queue", Value: &v, Source: events.SignalQueried, Query: events.QueryDigest(query, minute), Epoch: 1,
			ObservedAt: b.now, ExpiresAt: b.now.Add(time.Hour)})
	}
	answers("live()", 0)
	answers("candidate()", 3)
	require.Empty(t, payloads[events.NodeClaimed](b.testBundle), "the answer to the candidate's query is none to the policy in force")
	said := payloads[events.ShadowDecided](b.testBundle)
	last := said[len(said)-1]
	require.Equal(t, events.EffectAdd, last.Effect)
	require.Equal(t, "Metric", last.Candidate.Reason.Code)
	require.Equal(t, 3, last.Candidate.Delta)
	answers("live()", 1)
	require.Len(t, payloads[events.NodeClaimed](b.testBundle), 1)
	require.Equal(t, 1.0, *b.live().Core.Metrics["queue"].Value)
	b.inStep()
}

func TestPoolsThatOnlyOneOfThemHasAreSaidToBe(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 0 })
	b.happens(b.full())
	b.start(func(p *events.Policy) { p.Pools[0].Name = "b"; p.AlertRules = nil })
	b.step(func() { b.pods(1) })
	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 1)
	require.Equal(t, "b", said[0].Pool)
	require.Equal(t, events.EffectAdd, said[0].Effect)
	require.Equal(t, "UnknownPool", said[0].Live.Reason.Code)
	require.Contains(t, said[0].Live.Reason.Message, "the policy in force has no pool of this name")
}

func TestTheSameInputGivesTheSameBytesAndTwiceIsOnce(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	b.happens(b.full())
	b.start(maxOf(3))
	d := b.step(func() { b.pods(2) })
	before := encoded(t, b.emitted())
	record, _ := b.record()
	b.judges(d) // delivered again
	require.Equal(t, before, encoded(t, b.emitted()))
	again, _ := b.record()
	require.Equal(t, record, again)

	// Another process takes over: it folds the snapshots again.
	b.shadow = b.openShadow()
	reads := b.log.reads
	b.step(func() { b.pods(1) })
	require.Greater(t, b.log.reads, reads)
	said := payloads[events.ShadowDecided](b.testBundle)
	require.Len(t, said, 2)
	require.Equal(t, said[0].Difference, said[1].Difference)
	b.inStep()
}

func TestAShadowThatIsKilledBetweenItsWritesGoesOn(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"shadow/write/before", "shadow/write/after", "shadow/publish/after"} {
		b := newShadowBundle(t)
		b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
		b.happens(b.full())
		b.start(maxOf(3))
		b.now = b.now.Add(time.Second)
		b.pods(2)
		d := b.publish(b.delta())
		ctx, cancel := context.WithCancel(t.Context())
		b.onStep = func(s string) {
			if s == step {
				cancel()
			}
		}
		_ = b.shadow.Handle(ctx, d) // ends like a process would, there or later
		b.onStep = nil
		cancel()
		b.shadow = b.openShadow()
		b.judges(d)
		require.Len(t, payloads[events.ShadowDecided](b.testBundle), 1, step)
		b.inStep()
	}
}

func TestWithoutACheckpointItWaitsForTheNext(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	p := candidateOf(maxOf(3))
	p.Checkpoint = 77 // the log no longer holds it
	b.ask(p)
	r, ok := b.record()
	require.True(t, ok)
	require.Nil(t, r.Live)
	b.pods(2)
	b.happens(b.full())
	require.Empty(t, payloads[events.ShadowDecided](b.testBundle), "decision decided on that before its checkpoint")
	b.inStep()
	b.step(func() {})
	require.Len(t, payloads[events.ShadowDecided](b.testBundle), 1)
	r, _ = b.record()
	require.False(t, r.ComparedSince.IsZero())
}

func TestEventsBetweenTheCheckpointAndTheStartAreCaughtUpWith(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	b.happens(b.full())
	b.step(func() { b.pods(1) })
	b.happens(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "work"})
	b.start(maxOf(3))
	b.inStep()
	r, _ := b.record()
	require.Contains(t, r.Own.Pauses, "a", "its own state begins as a copy")
}

func TestACopyThatIsNotWhatDecisionHasIsTakenFromItsCheckpoint(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure()
	b.happens(b.full())
	b.start(maxOf(9))
	// Decision handles an event that the shadow never sees: a redriven one.
	b.now = b.now.Add(time.Second)
	d := b.deliver(events.PoolPaused{Pool: "a", Actor: "bob", Reason: "work"})
	d.Redrive = events.Redrive{Handler: events.HandlerDecision, Round: 1, Number: 1}
	b.log.deliveries[len(b.log.deliveries)-1] = d
	require.NoError(t, b.handler.Handle(t.Context(), d))
	b.step(func() {})
	r, _ := b.record()
	require.NotEqual(t, b.live(), r.Live.Record)
	b.now = b.now.Add(time.Second)
	b.happens(b.full())
	r, _ = b.record()
	require.Equal(t, 1, r.Corrected)
	require.Equal(t, b.live(), r.Live.Record)
	b.now = b.now.Add(time.Second)
	b.happens(b.full())
	r, _ = b.record()
	require.Equal(t, 1, r.Corrected, "once is enough")
}

func TestAStopEndsTheShadowAndAnotherBeginsAnew(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	b.happens(b.full())
	first := b.start(maxOf(3))
	b.step(func() { b.pods(2) })
	b.ask(events.ShadowStopped{Shadow: "another", Actor: "ada", Reason: "slip"})
	_, ok := b.record()
	require.True(t, ok, "only the one that is named")
	b.ask(events.ShadowStopped{Shadow: first.Event.ID(), Actor: "ada", Reason: "seen enough"})
	_, ok = b.record()
	require.False(t, ok)
	b.step(func() { b.pods(1) })
	require.Len(t, payloads[events.ShadowDecided](b.testBundle), 1)

	second := b.start(maxOf(2))
	r, _ := b.record()
	require.Equal(t, second.Event.ID(), r.ID)
	require.Zero(t, r.Tally)
	b.step(func() {})
	require.Len(t, payloads[events.ShadowDecided](b.testBundle), 2)
	third := b.start(maxOf(1)) // takes its place
	r, _ = b.record()
	require.Equal(t, third.Event.ID(), r.ID)
	require.Empty(t, r.Open)
}

func TestAPromotionEndsTheShadowAndDecisionSaysWho(t *testing.T) {
	t.Parallel()
	b := newShadowBundle(t)
	b.configure(func(c *events.ConfigApplied) { c.Policy.Pools[0].Max = 1 })
	b.happens(b.full())
	started := b.start(maxOf(3))
	b.step(func() { b.pods(2) })
	promoted := events.ConfigApplied{Digest: "candidate-1", Version: "v-test", Start: b.now, Policy: candidateOf(maxOf(3)).Policy,
		Promotion: &events.Promotion{Shadow: started.Event.ID(), Actor: "ada", Reason: "good", Replaced: "policy-1", File: "policy-1"}}
	b.now = b.now.Add(time.Second)
	b.happens(promoted)
	_, ok := b.record()
	require.False(t, ok)
	require.Equal(t, []events.PolicyPromoted{{Digest: "candidate-1", Actor: "ada", Reason: "good", Shadow: started.Event.ID(), Replaced: "policy-1"}},
		payloads[events.PolicyPromoted](b.testBundle))
	up := payloads[events.ScaleupDecided](b.testBundle)
	require.Equal(t, "candidate-1", up[len(up)-1].Policy, "it is the policy in force now")
	require.Equal(t, promoted.Promotion, b.live().Config.Promotion)

	// A start that keeps it promotes nothing.
	b.now = b.now.Add(time.Second)
	b.happens(promoted)
	require.Len(t, payloads[events.PolicyPromoted](b.testBundle), 1)
}

func TestEffectsOfADifference(t *testing.T) {
	t.Parallel()
	dec := func(delta int, nodes ...string) scaling.Decision { return scaling.Decision{Delta: delta, Nodes: nodes} }
	for _, c := range []struct {
		live, candidate scaling.Decision
		effect          string
		nodes           int
	}{
		{dec(0), dec(0), events.EffectNone, 0}, {dec(2), dec(2), events.EffectNone, 0}, {dec(0), dec(2), events.EffectAdd, 2}, {dec(1), dec(3), events.EffectAdd, 2},
		{dec(-1, "a"), dec(2), events.EffectAdd, 2}, {dec(0), dec(-1, "a"), events.EffectRemove, 1}, {dec(-1, "a"), dec(-3, "a", "b", "c"), events.EffectRemove, 2},
		{dec(2), dec(-1, "a"), events.EffectRemove, 1}, {dec(2), dec(0), events.EffectHold, 2}, {dec(3), dec(1), events.EffectHold, 2}, {dec(-2, "a", "b"), dec(0), events.EffectHold, 2},
		{dec(-2, "a", "b"), dec(-1, "a"), events.EffectHold, 1}, {dec(-1, "a"), dec(-1, "b"), events.EffectOther, 0}, {dec(-2, "a", "b"), dec(-2, "b", "a"), events.EffectNone, 0},
	} {
		effect, nodes := effectOf(c.live, c.candidate)
		require.Equal(t, c.effect, effect, "%+v", c)
		require.Equal(t, c.nodes, nodes, "%+v", c)
	}
}
