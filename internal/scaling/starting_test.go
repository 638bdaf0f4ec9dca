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
	prefixed := corev1.Taint{Key: "startup-taint.cluster-autoscaler.kubernetes.io/cni", Effect: corev1.TaintEffectNoSchedule}
	t.Run("known by its prefix", func(t *testing.T) {
		t.Parallel()
		startsSoon(t, func(p *Pool) { p.Taints = []corev1.Taint{prefixed} }, prefixed)
	})
	t.Run("named by the pool", func(t *testing.T) {
		t.Parallel()
		startsSoon(t, func(p *Pool) {
			p.StartupTaints = []corev1.Taint{{Key: "example.com/cni", Value: "starting", Effect: corev1.TaintEffectNoExecute}}
		}, corev1.Taint{Key: "example.com/cni", Value: "almost", Effect: corev1.TaintEffectNoExecute})
	})
}

// startsSoon follows a new node of a pool that registers with a startup taint.
func startsSoon(t *testing.T, edit func(*Pool), taint corev1.Taint) {
	t.Helper()
	s := newSetup(t)
	edit(s.pool("a"))
	s.class("web", 900)
	s.pods("web", "", 1)
	res := s.evaluate()
	require.Len(t, res.Claims, 1, "the taint will be gone: it is no reason against the pool")
	s.ready(res.Claims[0])
	s.obs.Nodes[len(s.obs.Nodes)-1].Taints = []corev1.Taint{taint}

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

func TestAStartupTaintOfOnePoolIsAReasonInAnother(t *testing.T) {
	t.Parallel()
	taint := corev1.Taint{Key: "example.com/cni", Effect: corev1.TaintEffectNoSchedule}
	for _, c := range []struct {
		name  string
		named corev1.Taint
		want  int
	}{
		{"the same key and effect", taint, 0},
		{"another effect", corev1.Taint{Key: taint.Key, Effect: corev1.TaintEffectNoExecute}, 1},
		{"another key", corev1.Taint{Key: "example.com/gpu", Effect: taint.Effect}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.pool("a").StartupTaints = []corev1.Taint{c.named}
			s.class("web", 900)
			s.pods("web", "", 1)
			s.node("a", "a-1")
			s.node("a", "a-2") // full, and shows that not every node of the pool has the taint
			s.pods("web", "a-2", 1)
			n := s.nodeOf("a-1")
			n.Taints, n.ReadySince = []corev1.Taint{taint}, s.now
			require.Len(t, s.evaluate().Claims, c.want)
		})
	}
	s := newSetup(t)
	s.pool("a").StartupTaints = []corev1.Taint{taint}
	s.class("web", 900)
	s.pods("web", "", 1)
	f := s.foreign("server", 1000)
	f.Taints, f.ReadySince = []corev1.Taint{taint}, s.now
	require.Len(t, s.evaluate().Claims, 1, "a node of no pool")
}
