package scaling

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestATemplateLearnsFromTheLivingNodesWhatThePolicyDoesNotSay(t *testing.T) {
	t.Parallel()
	dedicated := corev1.Taint{Key: "dedicated", Value: "x", Effect: corev1.TaintEffectNoSchedule}
	for _, c := range []struct {
		name string
		edit func(s *setup, class *PodClass)
		want int
	}{
		{"a label that all have", func(s *setup, c *PodClass) {
			s.nodeOf("a-1").Labels["gpu"], s.nodeOf("a-2").Labels["gpu"] = "yes", "yes"
			c.NodeSelector = map[string]string{"gpu": "yes"}
		}, 1},
		{"a label that one has", func(s *setup, c *PodClass) {
			s.nodeOf("a-2").Labels["gpu"] = "yes"
			c.NodeSelector = map[string]string{"gpu": "yes"}
		}, 0},
		{"a label that names the node", func(s *setup, c *PodClass) {
			s.drop("a-1")
			s.nodeOf("a-2").Labels["k3s.io/hostname"] = "a-2"
			c.NodeSelector = map[string]string{"k3s.io/hostname": "a-2"}
		}, 0},
		{"the policy's label counts, whatever the nodes have", func(s *setup, c *PodClass) {
			s.pool("a").Labels = map[string]string{"disk": "new"}
			s.nodeOf("a-1").Labels["disk"], s.nodeOf("a-2").Labels["disk"] = "old", "old"
			c.NodeSelector = map[string]string{"disk": "new"}
		}, 1},
		{"a taint that all have", func(s *setup, _ *PodClass) {
			s.nodeOf("a-1").Taints, s.nodeOf("a-2").Taints = []corev1.Taint{dedicated}, []corev1.Taint{dedicated}
		}, 0},
		{"a taint that one has", func(s *setup, _ *PodClass) { s.nodeOf("a-2").Taints = []corev1.Taint{dedicated} }, 1},
		{"a taint of Kubernetes", func(s *setup, _ *PodClass) {
			for _, n := range []string{"a-1", "a-2"} {
				s.nodeOf(n).Taints = []corev1.Taint{{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}}
			}
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.node("a", "a-1")
			s.node("a", "a-2")
			s.class("full", 1000)
			s.pods("full", "a-1", 1)
			s.pods("full", "a-2", 1)
			c.edit(s, s.class("web", 500))
			s.pods("web", "", 1)
			require.Len(t, s.evaluate().Claims, c.want)
		})
	}
}

// The kubelet says what system a node runs; in which zone it is only whoever
// makes the nodes knows.
func TestATemplateDoesNotGuessItsZone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		edit func(s *setup)
	}{
		{"from nodes of others", func(s *setup) { s.foreign("srv", 0).Labels[zone] = "z1" }},
		{"from the newest of its nodes", func(s *setup) {
			s.node("a", "a-1")
			s.node("a", "a-2")
			s.nodeOf("a-1").Labels[zone], s.nodeOf("a-2").Labels[zone] = "z2", "z1"
			s.nodeOf("a-1").Allocatable.CPUMilli, s.nodeOf("a-2").Allocatable.CPUMilli = 1000, 1000
			s.class("full", 1000)
			s.pods("full", "a-1", 1)
			s.pods("full", "a-2", 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			c.edit(s)
			s.class("web", 500).NodeSelector = map[string]string{zone: "z1"}
			s.pods("web", "", 1)
			r := s.evaluate()
			require.Empty(t, r.Claims)
			require.NotNil(t, rejects(only(t, r), "pod ns/web-"+map[string]string{"from nodes of others": "000", "from the newest of its nodes": "002"}[c.name], "NodeSelector"))
		})
	}
}
