package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// system puts the pods of a class into kube-system.
func (s *setup) system(c *PodClass, p *Pod, labels map[string]string) {
	c.Namespace, c.Labels, p.Namespace = evictable.SystemNamespace, labels, evictable.SystemNamespace
}

// k3s runs its own add-ons in kube-system, on whatever node has room.
func TestWhatComesWithK3sKeepsNoNode(t *testing.T) {
	t.Parallel()
	for name, labels := range map[string]map[string]string{
		"coredns":                {"k8s-app": "kube-dns"},
		"metrics-server":         {"k8s-app": "metrics-server"},
		"local-path-provisioner": {"app": "local-path-provisioner"},
		"traefik":                {"app.kubernetes.io/name": "traefik", "app.kubernetes.io/instance": "traefik-kube-system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			c, p := s.class("addon", 100), s.pods("addon", "a-2", 1)
			s.system(c, p, labels)
			p.LocalStorage = []LocalVolume{{Name: "tmp", Kind: "emptyDir"}}
			require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
		})
		t.Run(name+" that must stay", func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Min = 0
			c, p := s.class("addon", 100), s.pods("addon", "a-2", 1)
			s.system(c, p, labels)
			p.Annotations = map[string]string{evictable.SafeToEvict: "false"}
			s.class("keep", 600)
			s.pods("keep", "a-1", 1)
			require.Empty(t, s.pass(30*time.Minute))
			require.NotNil(t, rejects(only(t, s.evaluate()), "node a-2", "NotSafeToEvict"))
		})
	}
	t.Run("with data that lasts", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.pool("a").Min = 0
		c, p := s.class("addon", 100), s.pods("addon", "a-2", 1)
		s.system(c, p, map[string]string{"app.kubernetes.io/name": "traefik"})
		p.LocalStorage = []LocalVolume{{Name: "tmp", Kind: "emptyDir"}, {Name: "acme", Kind: "persistentVolumeClaim"}}
		s.class("keep", 600)
		s.pods("keep", "a-1", 1)
		require.Empty(t, s.pass(30*time.Minute))
		a := rejects(only(t, s.evaluate()), "node a-2", "LocalStorage")
		require.NotNil(t, a)
		require.Contains(t, a.Reason.Message, "volume acme")
	})
	t.Run("a namesake elsewhere", func(t *testing.T) {
		t.Parallel()
		s := idle(t, "a-1", "a-2")
		s.pool("a").Min = 0
		s.class("mine", 100).Labels = map[string]string{"app": "local-path-provisioner"}
		s.pods("mine", "a-2", 1).LocalStorage = []LocalVolume{{Name: "tmp", Kind: "emptyDir"}}
		s.class("keep", 600)
		s.pods("keep", "a-1", 1)
		require.Empty(t, s.pass(30*time.Minute))
		require.NotNil(t, rejects(only(t, s.evaluate()), "node a-2", "LocalStorage"))
	})
}

// As the cluster autoscaler has it: who gives a system pod a budget has said how
// it may be disrupted.
func TestASystemPodWithABudgetKeepsNoNodeWhileTheBudgetAllows(t *testing.T) {
	t.Parallel()
	for name, allowed := range map[string]int32{"allowed": 1, "not allowed": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Min = 0
			c, p := s.class("dashboard", 100), s.pods("dashboard", "a-2", 1)
			s.system(c, p, map[string]string{"app": "dashboard"})
			s.class("keep", 600)
			s.pods("keep", "a-1", 1)
			s.obs.Budgets = []Budget{{Namespace: evictable.SystemNamespace, Name: "dashboard", DisruptionsAllowed: allowed,
				Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "dashboard"}}}}
			if allowed > 0 {
				require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
				return
			}
			require.Empty(t, s.pass(30*time.Minute))
			d := only(t, s.evaluate())
			require.NotNil(t, rejects(d, "node a-2", "PodDisruptionBudget"))
			require.Nil(t, rejects(d, "node a-2", "KubeSystemPod"))
		})
	}
}

func TestTheAutoscalerDoesNotRemoveTheNodeThatItRunsOn(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.pool("a").Min = 0
	s.class("self", 100).Labels = map[string]string{"app.kubernetes.io/name": "k3s-autoscaler"}
	s.pods("self", "a-2", 1)
	s.class("keep", 600)
	s.pods("keep", "a-1", 1)
	require.Empty(t, s.pass(30*time.Minute))
	a := rejects(only(t, s.evaluate()), "node a-2", "OwnPod")
	require.NotNil(t, a)
	require.Contains(t, a.Fix, "keep it off this pool")
	s.obs.Pods[0].Annotations = map[string]string{evictable.SafeToEvict: "true"}
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
}

func TestAPoolSaysWhichOfItsNodesGoesFirst(t *testing.T) {
	t.Parallel()
	for order, want := range map[string]string{
		"": "a-3", RemoveNewest: "a-3", RemoveLeastUtilized: "a-2", RemoveCheapest: "a-1",
	} {
		t.Run("order "+order, func(t *testing.T) {
			t.Parallel()
			for _, how := range []string{"unneeded", "request"} {
				s := idle(t, "a-1", "a-2", "a-3")
				s.pool("a").RemovalOrder = order
				s.class("large", 300)
				s.class("small", 50)
				s.pods("large", "a-1", 1) // one pod, 300m
				s.pods("small", "a-2", 2) // two pods, 100m
				s.pods("small", "a-3", 4) // four pods, 200m
				s.foreign("server", 4000) // has room for all
				if how == "request" {
					s.request(Request{Action: ActionDown, Pool: "a", Count: 1})
				}
				require.Equal(t, []string{want}, drained(s.until(10*time.Minute)), how)
			}
		})
	}
}

// The nodes of one pool do not lose their places to another pool's order.
func TestTheOrderOfOnePoolIsItsOwn(t *testing.T) {
	t.Parallel()
	s := idle(t, "a-1", "a-2")
	s.policy.Pools = append(s.policy.Pools, *s.pool("a"))
	s.policy.Pools[len(s.policy.Pools)-1].Name = "b"
	s.node("b", "b-1")
	s.node("b", "b-2")
	s.pool("b").RemovalOrder = RemoveLeastUtilized
	s.class("web", 100)
	s.pods("web", "b-2", 1)
	s.foreign("server", 4000)
	require.ElementsMatch(t, []string{"a-2", "b-1"}, drained(s.until(10*time.Minute)))
	s.drop("a-2")
	s.drop("b-1")
	for _, r := range s.pass(time.Hour) {
		t.Errorf("%v: %+v", drained(r), r.Decisions)
	}
}
