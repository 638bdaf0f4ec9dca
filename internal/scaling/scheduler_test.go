package scaling

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestASchedulerTakesTheNodeWithMostLeftAndKeepsToTheFit(t *testing.T) {
	t.Parallel()
	node := func(name string, cpu int64) Node {
		return Node{Name: name, Ready: true, Labels: map[string]string{"name": name}, Allocatable: Resources{CPUMilli: cpu, MemoryBytes: 4 << 30, Pods: 10}}
	}
	pending := func(name, class string) Pod {
		return Pod{Namespace: "ns", Name: name, Class: class, Phase: "Pending"}
	}
	cordoned, tainted := node("cordoned", 8000), node("tainted", 8000)
	cordoned.Unschedulable = true
	tainted.Taints = []corev1.Taint{{Key: "own", Effect: corev1.TaintEffectNoSchedule}}
	o := Observation{Known: true, Freshness: nil,
		Nodes: []Node{node("b", 2000), node("a", 2000), node("c", 4000), cordoned, tainted},
		Classes: []PodClass{
			{ID: "web", Namespace: "ns", Requests: Resources{CPUMilli: 500, MemoryBytes: 1 << 30}},
			{ID: "big", Namespace: "ns", Requests: Resources{CPUMilli: 3000, MemoryBytes: 1 << 30}},
		},
		Pods: []Pod{{Namespace: "ns", Name: "there", Class: "web", Node: "c", Phase: "Running"},
			pending("big", "big"), pending("big-2", "big"), pending("w1", "web"), pending("w2", "web"), pending("w3", "web"), pending("w4", "web"), pending("none", "?")},
	}
	s := NewScheduler(o)
	place := func(name, preferred string) string {
		n, _ := s.Place("ns/"+name, preferred)
		return n
	}
	// Left with the pod on it, CPU and memory: c has 500/4000 and 2/4 GiB.
	require.Equal(t, "c", place("big", ""), "it fits nowhere else")
	require.Empty(t, place("big-2", ""), "c has 500m left")
	require.Equal(t, "a", place("w1", ""), "a and b are alike: by name")
	require.Equal(t, "b", place("w2", ""), "now b is emptier")
	require.Equal(t, "b", place("w3", "b"), "it is preferred and fits")
	require.Equal(t, "a", place("w4", "tainted"), "the preferred one does not take it")
	require.Empty(t, place("none", ""), "of an unknown class")
	require.Empty(t, place("w1", ""), "it is placed already")
	require.Empty(t, o.Pods[1].Node, "the observation is as it was")
}
