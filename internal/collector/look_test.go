package collector

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLookConvertsObjectsInWhateverOrderTheyCome(t *testing.T) {
	t.Parallel()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data",
		VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}}}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}

	seen, err := Look(pod, claim, volume, node)
	require.NoError(t, err)
	again, err := Look(node, volume, claim, pod)
	require.NoError(t, err)
	require.Equal(t, seen, again)
	require.Len(t, seen.Nodes, 1)
	require.Len(t, seen.Pods, 1)
	require.Len(t, seen.Classes, 1)
	require.Len(t, seen.Classes[0].Volumes, 1)

	_, err = Look(&corev1.Secret{})
	require.ErrorContains(t, err, "Secret")
}
