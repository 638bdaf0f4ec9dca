package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestPodsGetExactlyAsManyNodesAsTheyNeed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		cpu         int64
		pods, nodes int
	}{
		{"one pod, one node", 800, 1, 1},
		{"two to a node", 400, 6, 3},
		{"two to a node, the last half empty", 400, 5, 3},
		{"a burst, one to a node", 900, 30, 30},
		{"nothing pending, nothing added", 900, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := testPool("a")
			p.Max = 100
			s := newSetup(t, p)
			s.class("web", c.cpu)
			s.pods("web", "", c.pods)
			res := s.evaluate()
			require.Len(t, res.Claims, c.nodes)
			require.Equal(t, c.pods, res.PendingPods)
			d := only(t, res)
			if c.nodes == 0 {
				require.Equal(t, Held, d.Verdict)
				require.Equal(t, CodeSteady, d.Reason.Code)
				return
			}
			require.Equal(t, Up, d.Verdict)
			require.Equal(t, c.nodes, d.Delta)
			require.Equal(t, CodeUnschedulablePods, d.Reason.Code)
			require.Equal(t, c.pods, d.PodCount)
			require.Equal(t, t0, d.TriggerSince)

			// The same need again, with the claims in flight: nothing.
			s.now = s.now.Add(time.Second)
			res = s.evaluate()
			require.Empty(t, res.Claims)
			require.Equal(t, CodeClaimsInFlight, only(t, res).Reason.Code)
			// Nor when provisioning has taken them up, one registers, one is Ready.
			for _, claim := range sortedClaims(s.state) {
				s.take(claim, PhaseCreated)
			}
			require.Empty(t, s.evaluate().Claims)
			for i, claim := range sortedClaims(s.state) {
				switch i % 2 {
				case 0:
					s.record(claim.Node).Phase = PhaseRegistered
					s.register("a", claim.Node, claim.ID, s.now, false)
					n := s.nodeOf(claim.Node)
					n.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
					n.Allocatable = Resources{}
				default:
					s.ready(claim)
				}
			}
			require.Empty(t, s.evaluate().Claims)
		})
	}
}

func sortedClaims(s State) []Claim {
	var out []Claim
	for _, k := range sortedKeys(s.Claims) {
		out = append(out, s.Claims[k])
	}
	return out
}

func TestPodsUseRoomThatIsThereBeforeANewNode(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.foreign("server", 1000)
	s.node("a", "a-1")
	s.class("web", 600)
	s.pods("web", "", 3)
	res := s.evaluate()
	require.Len(t, res.Claims, 1, "the server and a-1 take one each")
	require.Equal(t, 1, only(t, res).PodCount)
}

func TestPodsThatTheSchedulerHasNotRefusedTakeRoomButAskForNoNode(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.node("a", "a-1")
	s.class("web", 900)
	s.pods("web", "", 1).UnschedulableSince = time.Time{}
	res := s.evaluate()
	require.Empty(t, res.Claims)

	s.pods("web", "", 1)
	res = s.evaluate()
	require.Len(t, res.Claims, 1, "the other pod is going to take a-1")

	s.pods("web", "", 2)
	s.obs.Pods[2].UnschedulableSince = time.Time{}
	s.obs.Pods[3].UnschedulableSince = time.Time{}
	res = s.evaluate()
	require.Len(t, res.Claims, 1, "only the refused one asks")
	require.Contains(t, fmt.Sprint(only(t, res).Rules), "the scheduler has not refused them yet")
}

func TestPodsThatNoNodeWouldHelpAreRejectedWithWhatWouldHaveToChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		code string
		fix  string
		edit func(s *setup, c *PodClass, p *Pod)
	}{
		{"too much cpu", "InsufficientCPU", "lower the pod's request", func(_ *setup, c *PodClass, _ *Pod) { c.Requests.CPUMilli = 2000 }},
		{"too much memory", "InsufficientMemory", "raise the pool's memory", func(_ *setup, c *PodClass, _ *Pod) { c.Requests.MemoryBytes = 4 * gi }},
		{"a device the pool lacks", "InsufficientResource", "nvidia.com/gpu", func(_ *setup, c *PodClass, _ *Pod) {
			c.Requests.Extended = map[string]int64{"nvidia.com/gpu": 1}
		}},
		{"a node selector", "NodeSelector", "give the pool the label disk=ssd", func(_ *setup, c *PodClass, _ *Pod) {
			c.NodeSelector = map[string]string{"disk": "ssd"}
		}},
		{"another node's name", "NodeSelector", "kubernetes.io/hostname", func(_ *setup, c *PodClass, _ *Pod) {
			c.NodeSelector = map[string]string{corev1.LabelHostname: "elsewhere"}
		}},
		{"node affinity", "NodeAffinity", "relax it", func(_ *setup, c *PodClass, _ *Pod) {
			c.NodeAffinity = []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"x"}}}}}
		}},
		{"malformed node affinity", "NodeAffinity", "correct", func(_ *setup, c *PodClass, _ *Pod) {
			c.NodeAffinity = []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: "Like"}}}}
		}},
		{"a taint", "Taint", "toleration of team", func(s *setup, _ *PodClass, _ *Pod) {
			s.pool("a").Taints = []corev1.Taint{{Key: "team", Value: "x", Effect: corev1.TaintEffectNoSchedule}}
		}},
		{"anti-affinity", "ConstraintNotSimulated", "podAntiAffinity", func(_ *setup, c *PodClass, _ *Pod) {
			c.Unsimulated = []string{"podAntiAffinity", "hostPorts"}
		}},
		{"another scheduler", "ForeignScheduler", "default scheduler", func(_ *setup, c *PodClass, _ *Pod) { c.SchedulerName = "volcano" }},
		{"scheduling gates", "SchedulingGated", "remove", func(_ *setup, _ *PodClass, p *Pod) { p.Gated = true }},
		{"a negative priority", "Expendable", "priority", func(_ *setup, c *PodClass, _ *Pod) { c.Priority = -100 }},
		{"an unknown class", "UnknownClass", "snapshot", func(_ *setup, _ *PodClass, p *Pod) { p.Class = "other" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			class := s.class("web", 500)
			pod := s.pods("web", "", 2)
			c.edit(s, class, pod)
			s.obs.Pods = s.obs.Pods[1:]
			res := s.evaluate()
			require.Empty(t, res.Claims)
			require.Equal(t, 1, res.PendingPods)
			a := rejects(only(t, res), "pod ns/web-001", c.code)
			require.NotNil(t, a, "%+v", only(t, res).Rejected)
			require.Contains(t, a.Fix, c.fix)
		})
	}
}

func TestPodsThatAreNoNeedAskForNothing(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(s *setup, p *Pod){
		"of a DaemonSet":                  func(_ *setup, p *Pod) { p.OwnerKind = "DaemonSet" },
		"being deleted":                   func(_ *setup, p *Pod) { p.Deleting = true },
		"completed":                       func(_ *setup, p *Pod) { p.Phase = "Succeeded" },
		"nominated, with room being made": func(s *setup, p *Pod) { s.node("a", "a-1"); p.NominatedNode = "a-1" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.class("web", 900)
			edit(s, s.pods("web", "", 1))
			res := s.evaluate()
			require.Empty(t, res.Claims)
		})
	}
}

func TestTheTemplateKnowsLabelsTaintsDaemonSetsAndPodLimits(t *testing.T) {
	t.Parallel()
	t.Run("node selector, affinity and toleration that the pool meets", func(t *testing.T) {
		t.Parallel()
		p := testPool("a")
		p.Labels = map[string]string{"disk": "ssd"}
		p.Taints = []corev1.Taint{{Key: "team", Value: "x", Effect: corev1.TaintEffectNoSchedule}, {Key: "soft", Effect: corev1.TaintEffectPreferNoSchedule}}
		s := newSetup(t, p)
		s.foreign("server", 0)
		c := s.class("web", 500)
		c.NodeSelector = map[string]string{"disk": "ssd", LabelPool: "a", corev1.LabelArchStable: "amd64", corev1.LabelOSStable: "linux"}
		c.NodeAffinity = []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpExists}}}}
		c.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOpEqual, Value: "x", Effect: corev1.TaintEffectNoSchedule}}
		s.pods("web", "", 1)
		require.Len(t, s.evaluate().Claims, 1)
	})
	t.Run("DaemonSet overhead counts where the DaemonSet goes", func(t *testing.T) {
		t.Parallel()
		s := newSetup(t)
		s.obs.DaemonSets = []DaemonSet{
			{Namespace: "kube-system", Name: "agent", Class: PodClass{ID: "ds", Namespace: "kube-system", Requests: Resources{CPUMilli: 200}}},
			{Namespace: "kube-system", Name: "gpu", Class: PodClass{ID: "gpu", Namespace: "kube-system", Requests: Resources{CPUMilli: 500},
				NodeSelector: map[string]string{"gpu": "yes"}}},
		}
		s.class("web", 400)
		s.pods("web", "", 4)
		require.Len(t, s.evaluate().Claims, 2, "800m beside 200m of the DaemonSet")
		big := s.class("big", 900)
		s.pods(big.ID, "", 1)
		d := only(t, s.evaluate())
		require.NotNil(t, rejects(d, "pod ns/big-004", "InsufficientCPU"))
	})
	t.Run("how many pods a node takes", func(t *testing.T) {
		t.Parallel()
		p := testPool("a")
		p.Size.Pods = 3
		s := newSetup(t, p)
		s.class("tiny", 1)
		s.pods("tiny", "", 7)
		require.Len(t, s.evaluate().Claims, 3)
	})
	t.Run("a pool that says nothing takes as many as the kubelet", func(t *testing.T) {
		t.Parallel()
		p := testPool("a")
		p.Size.Pods = 0
		s := newSetup(t, p)
		s.class("tiny", 1)
		s.obs.Classes[0].Requests.MemoryBytes = 1
		s.pods("tiny", "", 111)
		require.Len(t, s.evaluate().Claims, 2)
	})
	t.Run("a real node that is smaller than the policy says", func(t *testing.T) {
		t.Parallel()
		s := newSetup(t)
		s.node("a", "a-1")
		s.nodeOf("a-1").Allocatable.CPUMilli = 500
		s.class("web", 800)
		s.pods("web", "", 1)
		res := s.evaluate()
		require.Empty(t, res.Claims, "it would fit on paper only, node after node")
		require.NotNil(t, rejects(only(t, res), "pod ns/web-000", "InsufficientCPU"))
	})
	t.Run("disk space is learned from the nodes there are", func(t *testing.T) {
		t.Parallel()
		s := newSetup(t)
		s.foreign("server", 0).Allocatable.Extended = map[string]int64{ephemeralStorage: 10 * gi}
		s.foreign("server-2", 0).Allocatable.Extended = map[string]int64{ephemeralStorage: 5 * gi}
		s.class("web", 100)
		s.obs.Classes[0].Requests.Extended = map[string]int64{ephemeralStorage: 4 * gi}
		s.pods("web", "", 1).Node = ""
		s.obs.Nodes[0].Unschedulable, s.obs.Nodes[1].Unschedulable = true, true
		require.Len(t, s.evaluate().Claims, 1)
	})
}

func TestWhatOnePoolCantHoldSpillsOverToTheNext(t *testing.T) {
	t.Parallel()
	a, b := testPool("a"), testPool("b")
	a.Max, b.Max = 1, 1
	s := newSetup(t, a, b)
	s.class("web", 900)
	s.pods("web", "", 3)
	res := s.evaluate()
	require.Equal(t, 1, of(t, res, "a").Delta)
	require.Equal(t, 1, of(t, res, "b").Delta)
	for _, pool := range []string{"a", "b"} {
		d := of(t, res, pool)
		require.NotNil(t, guardOf(d, "max"), "the third pod is a capped need of both")
		require.Equal(t, CodeAtMax, d.Overruled[0].Code)
	}
}

func TestAtMaxIsAVerdictThatSaysSo(t *testing.T) {
	t.Parallel()
	p := testPool("a")
	p.Max = 1
	s := newSetup(t, p)
	s.node("a", "a-1")
	s.class("web", 900)
	s.pods("web", "a-1", 1)
	s.pods("web", "", 1)
	d := only(t, s.evaluate())
	require.Equal(t, Held, d.Verdict)
	require.Equal(t, CodeAtMax, d.Reason.Code)
	require.True(t, d.Changed)
	require.Contains(t, d.WouldChange[0], "raise max of pool a")
	require.False(t, only(t, s.evaluate()).Changed, "once is enough")
}

func TestAPoolBelowItsMinimumGrowsWithoutLoad(t *testing.T) {
	t.Parallel()
	p := testPool("a")
	p.Min = 2
	s := newSetup(t, p)
	res := s.evaluate()
	require.Len(t, res.Claims, 2)
	require.Equal(t, CodeBelowMin, only(t, res).Reason.Code)
	require.Empty(t, s.evaluate().Claims)

	p.Max = 1 // the configuration refuses it; even so max holds
	s = newSetup(t, p)
	res = s.evaluate()
	require.Len(t, res.Claims, 1)
	require.NotNil(t, guardOf(only(t, res), "max"))

	s = newSetup(t, p)
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work", Until: t0.Add(time.Hour)})
	res = s.evaluate()
	require.Empty(t, res.Claims)
	require.Equal(t, CodePaused, only(t, res).Reason.Code)
	require.Equal(t, t0.Add(time.Hour), guardOf(only(t, res), "pause").Until)
}

func TestOneNodeServesAnAlertAndAPodAlike(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.rule("Busy", "a", Up, 1)
	s.fire("Busy")
	s.class("web", 900)
	s.pods("web", "", 2)
	res := s.evaluate()
	require.Len(t, res.Claims, 2, "the alert's node takes one of the pods")
	require.Contains(t, only(t, res).Inputs, "alert-Busy")
}

// The controller that takes a new node's taints away lags behind the kubelet
// that says Ready: seen on a real API server, where it cost a node too many.
func TestANodeThatIsReadyCountsBeforeItsNotReadyTaintIsGone(t *testing.T) {
	t.Parallel()
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, taintUninitialized} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, testPool("p"))
			s.class("big", 900)
			s.pods("big", "", 1)
			res := s.evaluate()
			require.Len(t, res.Claims, 1)
			s.ready(res.Claims[0])
			n := s.nodeOf(res.Claims[0].Node)
			n.Taints = append(n.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
			require.Empty(t, s.evaluate().Claims)
		})
	}
}

func TestARuleStillSaysWhatItWantsWhenAGuardHoldsIt(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(s *setup){
		"a pause": func(s *setup) { s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"}) },
		"max":     func(s *setup) { s.policy.Pools[0].Max = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, testPool("a"))
			edit(s)
			s.class("web", 400)
			s.pods("web", "", 1)
			d := only(t, s.evaluate())
			require.Equal(t, Held, d.Verdict)
			require.Len(t, d.Guards, 1)
			for _, r := range d.Rules {
				if r.Kind == RuleUnschedulable {
					require.Equal(t, Up, r.Verdict)
					require.Equal(t, "1 pod would fit on more nodes of this pool", r.Message)
				}
			}
		})
	}
}

// Two autoscalers may share an API server: the other's nodes are capacity, but
// they neither count for a pool of ours nor can they be removed.
func TestNodesOfAnotherAutoscalerAreNotOurs(t *testing.T) {
	t.Parallel()
	p := testPool("p")
	p.Max = 1
	s := newSetup(t, p)
	s.node("p", "theirs")
	s.nodeOf("theirs").Labels[LabelCluster] = "another"
	s.obs.Records = nil
	s.class("big", 900)
	s.pods("big", "theirs", 1)
	s.pods("big", "", 1)
	require.Len(t, s.evaluate().Claims, 1, "their node takes no place of ours")
}
