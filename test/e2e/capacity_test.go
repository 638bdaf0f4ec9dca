//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// drainsOf are the removals that were asked for.
func drainsOf(t *testing.T, p *product) []events.NodeDrainRequested {
	t.Helper()
	return slices.DeleteFunc(payloads[events.NodeDrainRequested](t, p), func(d events.NodeDrainRequested) bool { return d.Goal != events.GoalRemove })
}

// noNodes checks that the cluster has none of our nodes left.
func noNodes(t *testing.T, p *product) func() error {
	return func() error {
		if names, _ := ourNodes(t, p.cluster); len(names) > 0 {
			return fmt.Errorf("%v are there", names)
		}
		return nil
	}
}

func TestTheWindowOfAScheduleKeepsANodeUntilItCloses(t *testing.T) {
	// It began with this minute, and ends 90 seconds from now.
	now := time.Now().UTC()
	begins := now.Truncate(time.Minute)
	ends := now.Add(90 * time.Second).Truncate(time.Second)
	p := newProduct(t, "e2e-window", pool{Max: 1, Extra: fmt.Sprintf(
		"        schedules: [{name: office-hours, schedule: '%d %d * * *', duration: %s, min: 1}]\n", begins.Minute(), begins.Hour(), ends.Sub(begins))})
	p.start()
	eventually(t, 80*time.Second, "the window's node is Ready", readyNodes(t, p, 1))
	require.Contains(t, p.mustCLI("status"), "(schedule office-hours)")
	eventually(t, 90*time.Second+time.Until(ends), "the node goes when the window has closed", noNodes(t, p))
	drains := drainsOf(t, p)
	require.Len(t, drains, 1)
	require.False(t, drains[0].DecidedAt.Before(ends), "removed at %s, the window ends at %s", drains[0].DecidedAt, ends)
}

func TestHeadroomIsThereBeforePodsComeAndStays(t *testing.T) {
	p := newProduct(t, "e2e-headroom", pool{Max: 3, Extra: "        headroom: {pods: 1, pod: {cpu: 400m, memory: 64Mi}}\n"})
	ns := namespace(t, "e2e-headroom")
	p.start()
	eventually(t, 90*time.Second, "there is room before anybody asks", readyNodes(t, p, 1))
	first, _ := ourNodes(t, p.cluster)

	deployment(t, ns, "web", p.cluster, 1, "400m")
	waitRunning(t, ns, "web", 1, 30*time.Second)
	require.Equal(t, map[string]int{first[0]: 1}, running(t, ns, "web"), "it starts where the room was kept")
	eventually(t, 90*time.Second, "a node makes up for what it took", readyNodes(t, p, 2))

	scaleDeployment(t, ns, "web", 0)
	eventually(t, 90*time.Second, "what is more than the headroom goes", readyNodes(t, p, 1))
	never(t, 10*time.Second, "the headroom goes", func() bool { _, ready := ourNodes(t, p.cluster); return ready == 0 })
	require.Len(t, drainsOf(t, p), 1)
}

func TestNodesThatAPersonAsksForAreKeptForSoLongAndNoLonger(t *testing.T) {
	p := newProduct(t, "e2e-for", pool{Max: 2})
	p.start()
	asked := time.Now()
	p.mustCLI("scale", "up", "--pool", "burst", "--count", "1", "--for", "45s", "--reason", "load test")
	eventually(t, 40*time.Second, "the node is Ready", readyNodes(t, p, 1))
	require.Contains(t, p.mustCLI("explain", "burst"), "load test")
	eventually(t, 120*time.Second, "it goes when the time is over", noNodes(t, p))
	drains := drainsOf(t, p)
	require.Len(t, drains, 1)
	require.Empty(t, drains[0].Actor, "nobody had to ask")
	require.GreaterOrEqual(t, drains[0].DecidedAt.Sub(asked), 44*time.Second)
}

// job makes a Job of one pod on the node, which the kubelet ends after a time, and
// which may not be evicted.
func job(t *testing.T, ns, name, cluster, node string, lasts time.Duration) {
	t.Helper()
	seconds, none := int64(lasts.Seconds()), int32(0)
	grace := int64(1)
	_, err := admin.BatchV1().Jobs(ns).Create(context.Background(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: batchv1.JobSpec{BackoffLimit: &none, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}, Annotations: map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
			Spec: corev1.PodSpec{
				NodeName: node, RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &seconds, TerminationGracePeriodSeconds: &grace,
				NodeSelector: map[string]string{"pool": cluster}, Tolerations: []corev1.Toleration{{Key: "pool", Operator: corev1.TolerationOpExists}},
				Volumes: []corev1.Volume{{Name: "workspace", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
				Containers: []corev1.Container{{Name: "c", Image: "registry.invalid/c:1", Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
				}}},
			},
		}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func TestAJobEndsBeforeItsNodeGoes(t *testing.T) {
	p := newProduct(t, "e2e-jobs", pool{Max: 1, Down: ", jobs: finish, jobs_deadline: 10m"})
	ns := namespace(t, "e2e-jobs")
	foreignNode(t, "e2e-jobs-foreign", p.cluster) // where the pod would fit as well
	p.start()
	p.mustCLI("scale", "up", "--pool", "burst", "--count", "1", "--for", "40s", "--reason", "a build")
	eventually(t, 35*time.Second, "the node is Ready", readyNodes(t, p, 1))
	names, _ := ourNodes(t, p.cluster)
	job(t, ns, "build", p.cluster, names[0], 90*time.Second)
	waitRunning(t, ns, "build", 1, 30*time.Second)

	eventually(t, 80*time.Second, "the node takes no new pods and waits", func() error {
		for _, d := range payloads[events.NodeDrainProgressed](t, p) {
			if len(d.WaitingFor) == 1 && !d.WaitUntil.IsZero() {
				return nil
			}
		}
		return fmt.Errorf("it does not say so")
	})
	n, err := admin.CoreV1().Nodes().Get(context.Background(), names[0], metav1.GetOptions{})
	require.NoError(t, err)
	require.True(t, n.Spec.Unschedulable)
	eventually(t, 30*time.Second, "it says what it waits for", func() error {
		if out := p.mustCLI("nodes"); !strings.Contains(out, "waits for pods of Jobs ("+ns+"/build-") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	require.Equal(t, map[string]int{names[0]: 1}, running(t, ns, "build"), "it goes on")

	eventually(t, 150*time.Second, "the node goes when the Job has ended", noNodes(t, p))
	require.Empty(t, evicted(t, p), "nothing was evicted")
	drained := payloads[events.NodeDrained](t, p)
	require.Len(t, drained, 1)
	require.Equal(t, events.GoalRemove, drained[0].Goal)
}
