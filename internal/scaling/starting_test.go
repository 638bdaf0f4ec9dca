package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestANodeWithAStartupTaintTakesPodsSoonButNotForever(t *testing.T) {
	t.Parallel()
	taint := corev1.Taint{Key: "startup-taint.cluster-autoscaler.kubernetes.io/cni", Effect: corev1.TaintEffectNoSchedule}
	s := newSetup(t)
	s.pool("a").Taints = []corev1.Taint{taint}
	s.class("web", 900)
	s.pods("web", "", 1)
	res := s.evaluate()
	require.Len(t, res.Claims, 1, "the taint will be gone: it is no reason against the pool")
	s.ready(res.Claims[0])

	s.now = s.now.Add(time.Minute)
	res = s.evaluate()
	require.Empty(t, res.Claims, "the node is Ready and about to take the pod")
	require.Zero(t, res.Pools[0].Ready)
	require.Contains(t, fmt.Sprint(only(t, res).Rules), "1 pod waits for nodes that are on their way")
	require.Equal(t, s.now.Add(14*time.Minute), res.NextAt, "by then it should have started")

	s.now = s.now.Add(14 * time.Minute)
	require.Len(t, s.evaluate().Claims, 1, "what keeps it from starting does not go by itself")
}

func TestNothingMovesToANodeThatIsStillStarting(t *testing.T) {
	t.Parallel()
	for _, starting := range []bool{false, true} {
		s := newSetup(t)
		s.pool("a").Unneeded, s.pool("a").Stabilization, s.pool("a").ScaleDownAfterAdd, s.policy.StartupGrace = 0, 0, 0, 0
		s.node("a", "a-1")
		f := s.foreign("server", 1000)
		f.ReadySince = s.now
		if starting {
			f.Taints = []corev1.Taint{{Key: "ignore-taint.cluster-autoscaler.kubernetes.io/gpu", Effect: corev1.TaintEffectNoSchedule}}
		}
		s.class("web", 100)
		s.pods("web", "a-1", 1)
		s.evaluate()
		s.now = s.now.Add(10 * time.Second)
		if starting {
			require.Empty(t, drained(s.evaluate()))
		} else {
			require.Equal(t, []string{"a-1"}, drained(s.evaluate()))
		}
	}
}
