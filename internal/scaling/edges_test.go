package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNoPathAroundTheLastChecksOfARemovalExists(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(e *evaluation, n *simNode){
		"not ours":        func(_ *evaluation, n *simNode) { n.owned = false },
		"leaving already": func(_ *evaluation, n *simNode) { n.leaves = true },
		"protected":       func(e *evaluation, n *simNode) { e.policy.ProtectedNodes = []string{n.name} },
		"at min":          func(e *evaluation, n *simNode) { e.pool("a").Min = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.evaluate()
			p := &poolRun{Pool: s.policy.Pools[0], known: true}
			e := &evaluation{now: s.now, policy: s.policy, obs: s.obs, seed: testSeed("x"), s: State{}.clone(), pools: []*poolRun{p}}
			e.world = newWorld(e.obs, e.s, e.policy)
			e.reconcile()
			e.measure()
			n := e.world.nodes["a-2"]
			edit(e, n)
			require.False(t, e.remove(n, p, Reason{"X", "x"}, Request{}))
			require.Empty(t, e.drains)
			require.Empty(t, e.s.Drains)
		})
	}
}

func TestAnOpenRequestForMoreNodesKeepsTheIdleOnes(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.state.Pools = map[string]PoolState{"a": {Backoff: Backoff{Since: t0, Until: t0.Add(24 * time.Hour), Duration: 24 * time.Hour}}}
	s.request(Request{Action: ActionTo, Pool: "a", Count: 4, ExpiresAt: t0.Add(20 * time.Hour)})
	require.Empty(t, s.pass(20*time.Minute))
	d := only(t, s.evaluate())
	require.Equal(t, CodeRequestDeferred, d.Reason.Code)
	require.NotNil(t, guardOf(d, "request"))
}

func TestPoolsAreJudgedApart(t *testing.T) {
	t.Parallel()
	s := newSetup(t, testPool("a"), testPool("b"))
	for _, n := range []string{"a-1", "a-2"} {
		s.node("a", n)
	}
	s.node("b", "b-1")
	s.rule("Quiet", "a", Down, 1)
	s.rule("Silent", "a", Down, 3)
	s.rule("QuietB", "b", Down, 1)
	s.fire("Quiet")
	res := s.evaluate()
	require.Equal(t, []string{"a-2"}, drained(res))
	require.Equal(t, Held, of(t, res, "b").Verdict)
}

func TestTheAgeOfANodeIsTakenFromWhatIsKnown(t *testing.T) {
	t.Parallel()
	at := t0.Add(-time.Hour)
	require.Equal(t, at, (&simNode{record: &Record{}, node: &Node{ReadySince: at, CreatedAt: t0}}).readyAt())
	require.Equal(t, at, (&simNode{node: &Node{CreatedAt: at}}).readyAt())
	require.True(t, (&simNode{}).readyAt().IsZero())
}

func TestTheLargestPodsFindTheirPlaceFirst(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").UtilizationThreshold = 1
	s.class("small", 200)
	s.class("large", 500)
	s.pods("small", "a-2", 2)
	s.pods("large", "a-2", 1)
	s.obs.Budgets = []Budget{{Namespace: "elsewhere", Name: "x"},
		{Namespace: "ns", Name: "y", Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "none"}}}}
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
}

func TestAPodOfUnknownSizeOnALeavingNodeCallsItOff(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	require.Equal(t, []string{"a-3"}, drained(s.until(10*time.Minute)))
	s.pods("unheard-of", "a-3", 2)
	require.Equal(t, []string{"a-3"}, cancelled(s.evaluate()))

	// And a node that is being uncordoned is a place for the pods of another.
	s = idle(t, "a-1", "a-2", "a-3")
	s.pool("a").MaxRemovals, s.pool("a").ScaleDownCooldown = 2, 0
	s.class("web", 400)
	for _, n := range []string{"a-2", "a-3"} {
		s.pods("web", n, 1)
	}
	require.Equal(t, []string{"a-3", "a-2"}, drained(s.until(10*time.Minute)))
	s.class("big", 900)
	s.pods("big", "a-1", 1)
	res := s.evaluate()
	require.Len(t, res.Cancels, 1, "the node that comes back takes the pod of the one that goes")
}

func TestANodeThatIsNotThereAnyMoreCantBeUncordoned(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.until(10 * time.Minute)
	d := s.state.Drains["a-2"]
	d.CancelledAt = s.now
	s.state.Drains["a-2"] = d
	s.nodeOf("a-2").Ready = false
	s.class("web", 900)
	s.pods("web", "", 2)
	require.Len(t, s.evaluate().Claims, 1, "it is no capacity")
}

func TestTaintsOnARestoredNodeOtherThanOursStay(t *testing.T) {
	t.Parallel()
	e := &evaluation{world: newWorld(Observation{}, State{}, Policy{})}
	n := &simNode{node: &Node{Ready: true}, taints: []corev1.Taint{{Key: "team", Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}}
	e.restore(n)
	require.Equal(t, kindRestoring, n.kind)
	require.Len(t, n.taints, 1)
}

func TestPodsOnANodeInBirthTakeItsRoom(t *testing.T) {
	t.Parallel()
	s := need(t, 1)
	c := s.evaluate().Claims[0]
	s.take(c, PhaseRegistered)
	s.register("a", c.Node, c.ID, s.now, false)
	s.class("ds", 50)
	s.pods("ds", c.Node, 1).OwnerKind = "DaemonSet"
	s.obs.Pods[len(s.obs.Pods)-1].OwnerName = "agent"
	s.obs.DaemonSets = []DaemonSet{{Namespace: "ns", Name: "agent", Class: PodClass{ID: "ds", Namespace: "ns", Requests: Resources{CPUMilli: 50}}}}
	s.bind("web", c.Node, 1)
	s.pods("web", "", 1)
	require.Len(t, s.evaluate().Claims, 1)
}

func TestAmountsAreWrittenForPeople(t *testing.T) {
	t.Parallel()
	require.Equal(t, "250m", format("cpu", 250))
	require.Equal(t, "64Mi", format("memory", 64<<20))
	require.Equal(t, "1000 bytes", format(ephemeralStorage, 1000))
	require.Equal(t, "3", format("pods", 3))
	require.Equal(t, "InsufficientPods", shortage(&PodClass{Requests: Resources{Pods: 1}}, "a", Resources{}).code)
	require.Equal(t, int64(500), permille(1<<60, 1<<61))
	require.Equal(t, "45.0%", percent(450))
	require.Equal(t, len(weight), rank("Unheard"))
}

func TestAHoldWithoutASnapshotCountsTheClaims(t *testing.T) {
	t.Parallel()
	s := need(t, 2)
	s.evaluate()
	s.obs.Known = false
	d := only(t, s.evaluate())
	require.Equal(t, 2, d.Size)
	require.Equal(t, CodeStaleSnapshot, d.Reason.Code)
}

func TestATolerationMustMatchKeyValueAndEffect(t *testing.T) {
	t.Parallel()
	taint := corev1.Taint{Key: "k", Value: "v", Effect: corev1.TaintEffectNoExecute}
	for _, c := range []struct {
		o    corev1.Toleration
		want bool
	}{
		{corev1.Toleration{Operator: corev1.TolerationOpExists}, true},
		{corev1.Toleration{Key: "k", Value: "v"}, true},
		{corev1.Toleration{Key: "k", Value: "w"}, false},
		{corev1.Toleration{Key: "other", Operator: corev1.TolerationOpExists}, false},
		{corev1.Toleration{Key: "k", Value: "v", Effect: corev1.TaintEffectNoSchedule}, false},
		{corev1.Toleration{Key: "k", Operator: "Gt", Value: "1"}, false},
	} {
		require.Equal(t, c.want, tolerated(taint, []corev1.Toleration{c.o}), "%+v", c.o)
	}
}

func TestADecisionNamesFiftyOfAKindAndNoMore(t *testing.T) {
	t.Parallel()
	p := testPool("a")
	p.Max = 200
	s := newSetup(t, p)
	for i := range 120 {
		s.node("a", fmt.Sprintf("a-%03d", i))
		s.class(fmt.Sprint("big-", i), 2000)
		s.pods(fmt.Sprint("big-", i), "", 1)
	}
	d := only(t, s.evaluate())
	for _, n := range []int{len(d.Rules), len(d.Guards), len(d.Rejected), len(d.WouldChange)} {
		require.LessOrEqual(t, n, maxNamed)
	}
	require.Len(t, d.Rejected, maxNamed)
}
