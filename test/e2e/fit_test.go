//go:build e2e

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// What pods ask of each other decides how many nodes there are, and the real
// scheduler agrees: the pods of each case would all have room on the node that
// is there already, and the number of claims is exact.
func TestPodsThatSpreadOverHostsGetExactlyTheNodesTheyNeed(t *testing.T) {
	const nodes = 3
	web := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	three := int32(nodes)
	for _, c := range []struct {
		name, cluster string
		pods          []int // on each node
		edit          func(*corev1.PodSpec)
	}{
		{"anti-affinity by host", "e2e-fit-anti", []int{1, 1, 1}, func(s *corev1.PodSpec) {
			s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, LabelSelector: web}}}}
		}},
		// A fourth pod goes where one is: then no host has more than one over the others.
		{"topology spread by host", "e2e-fit-spread", []int{1, 1, 2}, func(s *corev1.PodSpec) {
			s.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{TopologyKey: corev1.LabelHostname, LabelSelector: web,
				MaxSkew: 1, MinDomains: &three, WhenUnsatisfiable: corev1.DoNotSchedule}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProduct(t, c.cluster, pool{Min: 1, Max: 6, Unneeded: "1h"})
			ns := namespace(t, c.cluster)
			p.start()
			eventually(t, 60*time.Second, "the pool has its minimum", readyNodes(t, p, 1))
			pods := 0
			for _, n := range c.pods {
				pods += n
			}
			deployment(t, ns, "web", p.cluster, int32(pods), "50m", c.edit)
			waitRunning(t, ns, "web", pods, 90*time.Second)
			var spread []int
			for _, n := range running(t, ns, "web") {
				spread = append(spread, n)
			}
			slices.Sort(spread)
			require.Equal(t, c.pods, spread, "pods on each node")
			never(t, 3*time.Second, "another claim", func() bool { return len(p.history(events.TypeNodeClaimed)) > nodes })
			require.NoError(t, readyNodes(t, p, nodes)())
			require.Len(t, containers(t, p.cluster), nodes)
			up := payloads[events.ScaleupDecided](t, p)
			require.Equal(t, "UnschedulablePods", up[len(up)-1].Reason.Code)
		})
	}
}
