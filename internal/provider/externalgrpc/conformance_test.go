package externalgrpc

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/groupserver"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/providertest"
)

// TestConformance runs the suite against a real server of the protocol. What
// the protocol can't carry is named.
func TestConformance(t *testing.T) {
	t.Parallel()
	template := &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}}}
	providertest.Exercise(t, func(t *testing.T) providertest.Subject {
		good := &groupserver.Server{Group: "workers", Template: template}
		bad := &groupserver.Server{Group: "workers", Fails: "this instance fails on purpose"}
		store, address, failing := newMemory(), good.Serve(t), bad.Serve(t)
		open := func(t *testing.T, cluster, address string) provider.NodeProvider {
			p, err := New(Options{Cluster: cluster, Pool: "pt", Address: address, NodeGroup: "workers", Store: store})
			require.NoError(t, err)
			t.Cleanup(func() { _ = p.Close() })
			return p
		}
		// The failing provider has its own instances: the sweep of the suite must
		// reach them, too.
		where := address
		return providertest.Subject{
			Provider: func(t *testing.T, cluster string) provider.NodeProvider { return open(t, cluster, where) },
			Clusters: [2]string{"home", "office"},
			CPUMilli: 500, MemoryBytes: 256 << 20,
			Lacks: map[providertest.Capability]string{
				providertest.SizesMachines: "the size of a node is that of its node group",
				providertest.KeepsLogs:     "the protocol has no logs, only what went wrong with an instance",
				providertest.SharesNames:   "the provider never hears our names",
			},
			Allocatable: func(ctx context.Context, t *testing.T, node string) (int64, int64, int64) {
				p := open(t, "home", where).(*Provider)
				require.Eventually(t, func() bool {
					m, err := p.Get(ctx, node)
					return err == nil && m.State == provider.Running && m.ProviderID != ""
				}, time.Minute, 10*time.Millisecond)
				a := template.Status.Allocatable
				return a.Cpu().MilliValue(), a.Memory().Value(), a.Pods().Value()
			},
			Exits: func(t *testing.T, cluster string) provider.NodeProvider {
				where = failing
				return open(t, cluster, failing)
			},
			Complaint: "fails on purpose",
		}
	})
}
