//go:build e2e

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

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

// A node that waits for something to take its startup taint away is capacity:
// nothing is bought twice, and the pod goes there.
func TestANodeWithAStartupTaintIsWaitedFor(t *testing.T) {
	p := newProduct(t, "e2e-fit-startup", pool{Max: 3, Extra: "        startup_taints: [\"example.com/cni=starting:NoSchedule\"]\n", Unneeded: "1h"})
	ns := namespace(t, "e2e-fit-startup")
	p.start()
	deployment(t, ns, "web", p.cluster, 1, "50m")
	eventually(t, 60*time.Second, "one node is Ready", readyNodes(t, p, 1))
	never(t, 5*time.Second, "a second claim", func() bool { return len(p.history(events.TypeNodeClaimed)) > 1 })
	require.Empty(t, running(t, ns, "web"), "the taint keeps the pod off")
	names, _ := ourNodes(t, p.cluster)
	require.NoError(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n, err := admin.CoreV1().Nodes().Get(context.Background(), names[0], metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "example.com/cni" && t.Value == "starting" })
		_, err = admin.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{})
		return err
	}))
	waitRunning(t, ns, "web", 1, 60*time.Second)
	require.Equal(t, map[string]int{names[0]: 1}, running(t, ns, "web"))
	require.Len(t, p.history(events.TypeNodeClaimed), 1)
}
