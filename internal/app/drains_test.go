package app

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// A removal that was decided must not be refused by the drain for what the decision
// knows to be no loss.
func TestADrainJudgesLocalDataAsTheDecisionDid(t *testing.T) {
	t.Parallel()
	tmp, data := events.LocalVolume{Name: "tmp", Kind: events.LocalEmptyDir}, events.LocalVolume{Name: "data", Kind: events.LocalPersisted}
	traefik := map[string]string{"app.kubernetes.io/name": "traefik"}
	for name, c := range map[string]struct {
		pod  kube.Pod
		want []string
	}{
		"an add-on's scratch":   {kube.Pod{Namespace: "kube-system", Labels: traefik, LocalStorage: []events.LocalVolume{tmp}}, nil},
		"an add-on's data":      {kube.Pod{Namespace: "kube-system", Labels: traefik, LocalStorage: []events.LocalVolume{tmp, data}}, []string{"data (" + events.LocalPersisted + ")"}},
		"a namesake elsewhere":  {kube.Pod{Namespace: "web", Labels: traefik, LocalStorage: []events.LocalVolume{tmp}}, []string{"tmp (emptyDir)"}},
		"what is safe to lose":  {kube.Pod{Namespace: "web", Annotations: map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "tmp"}, LocalStorage: []events.LocalVolume{tmp}}, nil},
		"what is not said safe": {kube.Pod{Namespace: "web", LocalStorage: []events.LocalVolume{tmp}}, []string{"tmp (emptyDir)"}},
	} {
		require.Equal(t, c.want, drainPod(c.pod).LocalStorage, name)
	}
}
