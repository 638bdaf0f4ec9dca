package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/draining"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// What a drain judges by must not get lost on the way: a pod would be evicted that the
// decision to remove its node took for safe.
func TestADrainSeesOfAPodWhatItJudgesBy(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	require.Equal(t, draining.Pod{Namespace: "shop", Name: "web", UID: "u", OwnerKind: "ReplicaSet", DaemonSet: true, Mirror: true, Finished: true, Ready: true,
		Critical: true, Deleting: true, DeletionDeadline: at, Grace: time.Minute, Local: []evictable.Volume{{Name: "tmp", Kind: evictable.EmptyDir}},
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{evictable.SafeToEvict: "false"}},
		drainPod(kube.Pod{Namespace: "shop", Name: "web", UID: "u", OwnerKind: "ReplicaSet", OwnerName: "web", DaemonSet: true, Mirror: true, Phase: "Running",
			Finished: true, Ready: true, Critical: true, Deleting: true, DeletionDeadline: at, Grace: time.Minute,
			LocalStorage: []events.LocalVolume{{Name: "tmp", Kind: events.LocalEmptyDir}},
			Labels:       map[string]string{"app": "web"}, Annotations: map[string]string{evictable.SafeToEvict: "false"}}))
}
