package scaling

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// idle is a pool of nodes that nobody needs, seen for long enough that only
// the guards under test are left.
func idle(t testing.TB, nodes ...string) *setup {
	t.Helper()
	s := newSetup(t)
	for _, n := range nodes {
		s.node("a", n)
	}
	s.pool("a").Min = 1
	return s
}

func TestTheNewestUnneededNodeGoesFirstAndThePoolStopsAtMin(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	s.foreign("server", 4000)
	s.foreign("idle-foreign-node", 1000)
	s.class("web", 100)
	s.pods("web", "a-3", 1)
	var order []string
	for range 6 {
		for _, r := range s.pass(10 * time.Minute) {
			require.Empty(t, r.Claims)
			for _, n := range drained(r) {
				order = append(order, n)
				d := only(t, r)
				require.Equal(t, Down, d.Verdict)
				require.Equal(t, -1, d.Delta)
				require.Equal(t, CodeUnneeded, d.Reason.Code)
				require.False(t, d.TriggerSince.IsZero())
				s.drop(n)
			}
		}
	}
	require.Equal(t, []string{"a-3", "a-2"}, order, "newest first, min 1 stays, foreign nodes stay")
	d := only(t, s.evaluate())
	require.Equal(t, CodeAtMin, d.Reason.Code)
}

func TestANodeHasToBeUnneededForLongEnoughWithoutAGap(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	require.Empty(t, s.pass(4*time.Minute+50*time.Second))
	require.Equal(t, CodeUnneededTime, only(t, s.evaluate()).Reason.Code)
	require.NotEmpty(t, s.pass(30*time.Second))

	t.Run("needed again in between", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.pass(4 * time.Minute)
		s.class("web", 600)
		s.pods("web", "a-2", 1)
		s.pods("web", "a-1", 1)
		s.evaluate()
		s.obs.Pods = nil
		require.Empty(t, s.pass(4*time.Minute+50*time.Second))
	})
	t.Run("nobody knows after a gap", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.pass(4 * time.Minute)
		s.now = s.now.Add(10 * time.Minute)
		require.Empty(t, s.evaluate().Drains)
		require.Empty(t, s.pass(4*time.Minute+50*time.Second))
		require.NotEmpty(t, s.pass(time.Minute))
	})
}

func TestTheHighestNeedOfTheStabilizationWindowCounts(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").Unneeded = 10 * time.Second
	s.pool("a").Stabilization = 5 * time.Minute
	require.Empty(t, s.pass(4*time.Minute))
	d := only(t, s.evaluate())
	require.Equal(t, CodeStabilizing, d.Reason.Code)
	require.Equal(t, t0.Add(5*time.Minute+10*time.Second), guardOf(d, "stabilization").Until)
	require.NotEmpty(t, s.pass(2*time.Minute))
}

func TestPodsOfAllNodesThatLeaveMustFitElsewhereTogether(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2", "a-3")
	s.pool("a").MaxRemovals = 5
	s.class("web", 400)
	for _, n := range []string{"a-1", "a-2", "a-3"} {
		s.pods("web", n, 1)
	}
	res := s.pass(20 * time.Minute)
	require.NotEmpty(t, res)
	require.Equal(t, []string{"a-3"}, drained(res[0]), "a-1 takes the pod of a-3; then that of a-2 has no place")

	t.Run("also with those of a removal that is under way", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2", "a-3")
		s.pool("a").MaxRemovals = 5
		s.class("web", 400)
		for _, n := range []string{"a-1", "a-2", "a-3"} {
			s.pods("web", n, 1)
		}
		require.Equal(t, []string{"a-3"}, drained(s.until(10*time.Minute)))
		s.record("a-3").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
		require.Empty(t, s.pass(30*time.Minute))
		require.NotNil(t, rejects(only(t, s.evaluate()), "node a-2", "NoOtherNodeFits"))
	})
	t.Run("pending pods have their room first", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.class("web", 400)
		s.pods("web", "a-2", 1)
		s.pods("web", "", 2)
		require.Empty(t, s.pass(30*time.Minute))
	})
}

func TestANodeThatMustNotGoSaysWhy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, code, fix string
		edit            func(s *setup, p *Pod)
	}{
		{"a pod without a controller", "UnmanagedPod", "delete the pod", func(_ *setup, p *Pod) { p.OwnerKind = "" }},
		{"local storage", "LocalStorage", "move the data", func(_ *setup, p *Pod) { p.LocalStorage = []LocalVolume{{Name: "cache", Kind: "emptyDir"}} }},
		{"a local-path volume", "LocalStorage", "move the data", func(_ *setup, p *Pod) {
			p.LocalStorage = []LocalVolume{{Name: "data", Kind: "persistentVolumeClaim"}}
		}},
		{"a kube-system pod", "KubeSystemPod", "annotate", func(_ *setup, p *Pod) { p.Namespace = "kube-system" }},
		{"safe-to-evict false", "NotSafeToEvict", "remove the annotation", func(_ *setup, p *Pod) {
			p.Annotations = map[string]string{evictable.SafeToEvict: "false"}
		}},
		{"do-not-disrupt on the pod", "DoNotDisrupt", "remove the annotation", func(_ *setup, p *Pod) {
			p.Annotations = map[string]string{evictable.DoNotDisrupt: "true"}
		}},
		{"do-not-disrupt on the node", "DoNotDisrupt", "remove the annotation", func(s *setup, _ *Pod) {
			s.nodeOf("a-2").Annotations = map[string]string{evictable.DoNotDisrupt: "true"}
		}},
		{"scale-down-disabled", "ScaleDownDisabled", "remove the annotation", func(s *setup, _ *Pod) {
			s.nodeOf("a-2").Annotations = map[string]string{AnnotationScaleDownDisabled: "true"}
		}},
		{"a protected node", "Protected", "protected_nodes", func(s *setup, _ *Pod) { s.policy.ProtectedNodes = []string{"a-2"} }},
		{"a budget without disruptions", "PodDisruptionBudget", "add a replica", func(s *setup, _ *Pod) {
			s.obs.Budgets = []Budget{{Namespace: "ns", Name: "web", Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
		}},
		{"two budgets", "SeveralBudgets", "one budget", func(s *setup, _ *Pod) {
			for _, n := range []string{"x", "y"} {
				s.obs.Budgets = append(s.obs.Budgets, Budget{Namespace: "ns", Name: n, DisruptionsAllowed: 1})
			}
		}},
		{"a budget whose selector is not understood", "PodDisruptionBudget", "relax", func(s *setup, _ *Pod) {
			s.obs.Budgets = []Budget{{Namespace: "ns", Name: "odd", Selector: metav1.LabelSelector{
				MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}}}
		}},
		{"a constraint that is not simulated", "ConstraintNotSimulated", "take topologySpreadConstraints off", func(s *setup, _ *Pod) {
			s.obs.Classes[0].Unsimulated = []string{"topologySpreadConstraints"}
		}},
		{"requests that are unknown", "UnknownClass", "snapshot", func(_ *setup, p *Pod) { p.Class = "other" }},
		{"no other node that fits", "NoOtherNodeFits", "free room", func(s *setup, _ *Pod) { s.nodeOf("a-1").Unschedulable = true }},
		{"no other node that is tolerated", "NoOtherNodeFits", "free room", func(s *setup, _ *Pod) {
			s.nodeOf("a-1").Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Min = 0
			s.class("web", 100)
			s.class("keep", 600)
			s.pods("keep", "a-1", 1) // a-1 is needed
			c.edit(s, s.pods("web", "a-2", 1))
			require.Empty(t, s.pass(30*time.Minute))
			a := rejects(only(t, s.evaluate()), "node a-2", c.code)
			require.NotNil(t, a, "%+v", only(t, s.evaluate()).Rejected)
			require.Contains(t, a.Fix, c.fix)
		})
	}
}

func TestPodsThatDoNotHaveToMoveKeepNoNode(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(p *Pod){
		"of a DaemonSet": func(p *Pod) { p.OwnerKind, p.Namespace = "DaemonSet", "kube-system" },
		"a mirror pod":   func(p *Pod) { p.Mirror, p.OwnerKind = true, "" },
		"completed":      func(p *Pod) { p.Phase, p.OwnerKind = "Succeeded", "" },
		"being deleted":  func(p *Pod) { p.Deleting, p.OwnerKind = true, "" },
		"safe to evict, whatever it is": func(p *Pod) {
			p.OwnerKind, p.Namespace, p.LocalStorage = "", "kube-system", []LocalVolume{{Name: "cache", Kind: "emptyDir"}}
			p.Annotations = map[string]string{evictable.SafeToEvict: "true"}
		},
		"with local volumes that are safe to lose": func(p *Pod) {
			p.LocalStorage = []LocalVolume{{Name: "cache", Kind: "emptyDir"}, {Name: "tmp", Kind: "hostPath"}}
			p.Annotations = map[string]string{evictable.SafeLocalVolumes: "cache,tmp"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.class("web", 100)
			edit(s.pods("web", "a-2", 1))
			require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
		})
	}
	t.Run("expendable", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.class("web", 100).Priority = -20
		s.pods("web", "a-2", 1)
		s.pods("web", "a-1", 1)
		s.nodeOf("a-1").Unschedulable = true
		require.Equal(t, []string{"a-2"}, drained(s.pass(10 * time.Minute)[0]))
	})
}

func TestOnlyNodesWithOurClaimLabelAndARecordAreRemoved(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(s *setup){
		"no claim label":          func(s *setup) { delete(s.nodeOf("a-2").Labels, LabelClaim) },
		"another claim's label":   func(s *setup) { s.nodeOf("a-2").Labels[LabelClaim] = "other" },
		"no record":               func(s *setup) { s.obs.Records = s.obs.Records[:1] },
		"a record that failed":    func(s *setup) { s.record("a-2").Phase = PhaseFailed },
		"a record still in birth": func(s *setup) { s.record("a-2").Phase = PhaseRegistered },
		"cordoned by somebody":    func(s *setup) { s.nodeOf("a-2").Unschedulable = true },
		"not Ready":               func(s *setup) { s.nodeOf("a-2").Ready = false },
		"drained on request": func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalDrain, Phase: DrainDrained, RequestID: "r"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Min = 0
			s.policy.ProtectedNodes = []string{"a-1"}
			edit(s)
			require.Empty(t, s.pass(30*time.Minute))
		})
	}
}

func TestGuardsHoldARemovalAndSayWhenTheyLift(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, code, guard string
		edit              func(s *setup)
	}{
		{"pause", CodePaused, "pause", func(s *setup) { s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"}) }},
		{"startup grace", CodeStartupGrace, "startup_grace", func(s *setup) {
			s.policy.StartupGrace = 24 * time.Hour
			s.apply(Started{At: t0})
		}},
		{"minimum lifetime", CodeMinLifetime, "min_lifetime", func(s *setup) { s.pool("a").MinLifetime = 72 * time.Hour }},
		{"an addition", CodeCooldown, "scale_down_after_add", func(s *setup) {
			s.pool("a").ScaleDownAfterAdd = 24 * time.Hour
			s.state.Pools = map[string]PoolState{"a": {AddedAt: t0}}
		}},
		{"a failed removal", CodeCooldown, "scale_down_after_fail", func(s *setup) {
			s.pool("a").ScaleDownAfterFail = 24 * time.Hour
			s.state.Pools = map[string]PoolState{"a": {RemovalFailedAt: t0}}
		}},
		{"another removal", CodeCooldown, "scale_down_cooldown", func(s *setup) {
			s.pool("a").ScaleDownCooldown = 24 * time.Hour
			s.state.Pools = map[string]PoolState{"a": {RemovedAt: t0}}
		}},
		{"an alert for more nodes", CodeCooldown, "scale_up_cooldown", func(s *setup) {
			s.rule("Busy", "a", Up, 1)
			s.apply(AlertFired{Fingerprint: "f", Labels: map[string]string{"alertname": "Busy"}, StartsAt: t0, ExpiresAt: t0.Add(72 * time.Hour)})
			s.pool("a").ScaleUpCooldown = 24 * time.Hour
			s.state.Pools = map[string]PoolState{"a": {AlertUpAt: t0}}
		}},
		{"too many unready nodes", CodeTooManyUnready, "too_many_unready", func(s *setup) {
			s.policy.MaxUnreadyCount = 1
			for _, n := range []string{"x", "y", "z"} {
				s.foreign(n, 1000).Ready = false
			}
		}},
		{"a claim in flight", CodeClaimsInFlight, "claims_in_flight", func(s *setup) {
			s.take(Claim{ID: "claim-a-9", Node: "a-9", Pool: "a"}, PhaseCreated)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			c.edit(s)
			require.Empty(t, s.pass(30*time.Minute))
			d := only(t, s.evaluate())
			require.Equal(t, Held, d.Verdict)
			require.Equal(t, c.code, d.Reason.Code, "%+v", d)
			g := guardOf(d, c.guard)
			require.NotNil(t, g, "%+v", d.Guards)
			require.NotEmpty(t, g.Lifts)
			require.NotEmpty(t, d.Overruled, "what it would have done is kept")
		})
	}
}

func TestMissingOrStaleDataNeverRemovesANode(t *testing.T) {
	t.Parallel()
	base := func(t *testing.T) *setup {
		s := idle(t, "a-1", "a-2")
		s.pass(4 * time.Minute)
		return s
	}
	for name, spoil := range map[string]func(s *setup){
		"no snapshot":         func(s *setup) { s.obs.Known = false },
		"a delta is missing":  func(s *setup) { s.obs.Known, s.obs.Problem = false, "builds on another snapshot" },
		"records are unknown": func(s *setup) { delete(s.obs.Freshness, KindRecord) },
		"nodes are unknown":   func(s *setup) { delete(s.obs.Freshness, KindNode) },
		"pods are unknown":    func(s *setup) { delete(s.obs.Freshness, KindPod) },
		"budgets are unknown": func(s *setup) { delete(s.obs.Freshness, KindBudget) },
		"daemonsets are old":  func(s *setup) { s.obs.Freshness[KindDaemonSet] = s.now.Add(-time.Minute) },
		"it is old":           func(s *setup) { s.obs.CapturedAt = s.now.Add(-time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := base(t)
			s.request(Request{Action: ActionDown, Pool: "a", Count: 1, Override: true})
			s.request(Request{Action: ActionRemove, Node: "a-2", Override: true})
			s.now = s.now.Add(20 * time.Minute)
			s.obs.CapturedAt, s.obs.Freshness = s.now, map[string]time.Time{}
			for _, k := range removalKinds {
				s.obs.Freshness[k] = s.now
			}
			spoil(s)
			s.frozen = true
			res := s.evaluate()
			require.Empty(t, res.Drains)
			d := of(t, res, "a")
			require.Equal(t, CodeStaleSnapshot, d.Reason.Code)
			require.Len(t, res.State.Requests, 2, "they wait")
			require.NotEmpty(t, d.Requests)
		})
	}
}

func TestADrainIsCalledOffWhenNewDemandNeedsTheNode(t *testing.T) {
	t.Parallel()
	draining := func(t *testing.T) *setup {
		s := idle(t, "a-1", "a-2")
		s.class("web", 900)
		s.pods("web", "a-1", 1)
		require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
		s.nodeOf("a-2").Unschedulable = true
		s.nodeOf("a-2").Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}
		s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainCordoned, RequestID: "r"}
		s.evaluate()
		return s
	}
	t.Run("for a pending pod", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.pods("web", "", 1)
		res := s.evaluate()
		require.Empty(t, res.Claims)
		require.Equal(t, []string{"a-2"}, cancelled(res))
		require.Equal(t, CodeNewDemand, res.Cancels[0].Reason.Code)
		d := only(t, res)
		require.Equal(t, Up, d.Verdict)
		require.Equal(t, []string{"a-2"}, d.Nodes)
		require.Empty(t, s.evaluate().Cancels, "once")
		require.Empty(t, s.evaluate().Claims, "it is capacity again")
		s.record("a-2").Drain.Phase = DrainUncordoning
		require.Empty(t, s.evaluate().Claims)
		s.record("a-2").Drain.Phase = DrainDone
		s.nodeOf("a-2").Unschedulable, s.nodeOf("a-2").Taints = false, nil
		s.bind("web", "a-2", 1)
		require.Empty(t, s.evaluate().Claims)
		require.Empty(t, s.state.Drains)
		require.True(t, s.state.Pools["a"].RemovalFailedAt.IsZero(), "it did not fail")
	})
	t.Run("for an alert", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.rule("Busy", "a", Up, 2)
		s.fire("Busy")
		res := s.evaluate()
		require.Equal(t, []string{"a-2"}, cancelled(res))
		require.Len(t, res.Claims, 1, "and one more")
	})
	t.Run("because its own pods no longer fit elsewhere", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.class("small", 100)
		s.pods("small", "a-2", 1)
		s.evaluate()
		s.pods("small", "", 1)
		s.pods("small", "a-1", 1)
		res := s.evaluate()
		require.Equal(t, []string{"a-2"}, cancelled(res))
	})
	t.Run("because not all of its own pods fit elsewhere", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.class("small", 60)
		s.pods("small", "a-2", 2)
		require.Equal(t, []string{"a-2"}, cancelled(s.evaluate()))
	})
	t.Run("because a pod of its own would be alone elsewhere", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.class("leader", 10)
		s.class("follower", 20).PodAffinity = by(corev1.LabelHostname, "leader")
		s.pods("follower", "a-2", 1)
		s.pods("leader", "a-2", 1)
		require.Empty(t, s.evaluate().Cancels, "they go together")
		s.obs.Pods = slices.DeleteFunc(s.obs.Pods, func(p Pod) bool { return p.Class == "leader" })
		require.Equal(t, []string{"a-2"}, cancelled(s.evaluate()))
	})
	t.Run("not after the point of no return", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.record("a-2").Drain.Phase = DrainDrained
		s.pods("web", "", 1)
		res := s.evaluate()
		require.Empty(t, res.Cancels)
		require.Len(t, res.Claims, 1)
	})
	t.Run("not one that a person asked for", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.request(Request{Action: ActionRemove, Node: "a-2"})
		s.evaluate()
		s.class("web", 900)
		s.pods("web", "", 2)
		res := s.evaluate()
		require.Empty(t, res.Cancels)
		require.Len(t, res.Claims, 1)
	})
	t.Run("too late: drained before the cancel arrived", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.pods("web", "", 1)
		require.NotEmpty(t, s.evaluate().Cancels)
		s.record("a-2").Drain.Phase = DrainDrained
		res := s.evaluate()
		require.Empty(t, res.Cancels)
		require.Len(t, res.Claims, 1, "it is not capacity after all")
	})
	t.Run("it does not fit there either", func(t *testing.T) {
		t.Parallel()
		s := draining(t)
		s.class("picky", 900).NodeSelector = map[string]string{"disk": "ssd"}
		s.pods("picky", "", 1)
		res := s.evaluate()
		require.Empty(t, res.Cancels)
		require.True(t, s.evaluate().State.Drains["a-2"].CancelledAt.IsZero())
	})
}

func TestHowARemovalEnds(t *testing.T) {
	t.Parallel()
	decided := func(t *testing.T) *setup {
		s := idle(t, "a-1", "a-2")
		s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDone, RequestID: "an earlier one"}
		s.until(6 * time.Minute)
		require.Contains(t, s.state.Drains, "a-2")
		return s
	}
	for _, c := range []struct {
		name   string
		edit   func(s *setup)
		over   bool
		failed bool
	}{
		{"not taken up yet", func(*setup) {}, false, false},
		{"under way", func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
		}, false, false},
		{"undone at its deadline", func(s *setup) {
			s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDone, RequestID: "r"}
		}, true, true},
		{"being removed", func(s *setup) { s.record("a-2").Phase = PhaseRemoving }, false, false},
		{"removed", func(s *setup) { s.record("a-2").Phase = PhaseRemoved; s.obs.Nodes = s.obs.Nodes[:1] }, true, false},
		{"forgotten", func(s *setup) { s.drop("a-2") }, true, false},
		{"nobody took it up in time", func(s *setup) { s.now = s.now.Add(2 * time.Minute) }, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := decided(t)
			c.edit(s)
			s.evaluate()
			require.Equal(t, c.over, len(s.state.Drains) == 0)
			require.Equal(t, c.failed, !s.state.Pools["a"].RemovalFailedAt.IsZero())
		})
	}
	t.Run("its record is gone after it was seen", func(t *testing.T) {
		t.Parallel()
		s := decided(t)
		s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: "r"}
		s.evaluate()
		s.record("a-2").Drain = nil
		s.evaluate()
		require.Empty(t, s.state.Drains)
	})
	t.Run("nobody acts in a dry run", func(t *testing.T) {
		t.Parallel()
		s := decided(t)
		s.policy.DryRun = true
		s.now = s.now.Add(2 * time.Minute)
		s.evaluate()
		require.Empty(t, s.state.Drains)
		require.True(t, s.state.Pools["a"].RemovalFailedAt.IsZero())
	})
}

func TestALeavingNodeCountsForMaxAndNotForMin(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").Max = 2
	s.record("a-2").Phase = PhaseRemoving
	s.class("web", 900)
	s.pods("web", "", 2)
	res := s.evaluate()
	require.Empty(t, res.Claims, "two machines exist and max is two")
	require.Equal(t, CodeAtMax, only(t, res).Reason.Code)
	require.Equal(t, 1, only(t, res).Size)
	s.obs.Nodes = s.obs.Nodes[:1] // the Node object is gone, the machine not yet
	require.Empty(t, s.evaluate().Claims)
	s.record("a-2").Phase = PhaseRemoved
	require.Len(t, s.evaluate().Claims, 1)
}
