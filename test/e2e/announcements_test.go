//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// announced waits for a Kubernetes Event of ours that holds all of the texts: what
// 'kubectl get events --for <kind>/<name>' shows.
func announced(t *testing.T, ns, kind, name, typ, reason string, texts ...string) corev1.Event {
	t.Helper()
	var found corev1.Event
	eventually(t, 60*time.Second, fmt.Sprintf("%s of %s %s is announced", reason, kind, name), func() error {
		list, err := admin.CoreV1().Events(ns).List(context.Background(), metav1.ListOptions{FieldSelector: fields.Set{
			"involvedObject.kind": kind, "involvedObject.name": name, "source": kube.UserAgent}.AsSelector().String()})
		if err != nil {
			return err
		}
		var others []string
	events:
		for _, e := range list.Items {
			others = append(others, e.Type+" "+e.Reason+": "+e.Message)
			if e.Type != typ || e.Reason != reason {
				continue
			}
			for _, text := range texts {
				if !strings.Contains(e.Message, text) {
					continue events
				}
			}
			found = e
			return nil
		}
		return fmt.Errorf("there are %d others: %s", len(others), strings.Join(others, " | "))
	})
	return found
}

// pending returns the pods of a deployment that have no node.
func pending(t *testing.T, ns, app string) []corev1.Pod {
	t.Helper()
	list, err := admin.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=" + app, FieldSelector: "spec.nodeName="})
	require.NoError(t, err)
	return list.Items
}

func TestPodsAndNodesAreToldWhatBecomesOfThem(t *testing.T) {
	p := newProduct(t, "e2e-events", pool{Max: 2, DrainLimit: "8s"})
	ns := namespace(t, "e2e-events")
	p.start()

	// A pod that nothing fits, however many nodes there were.
	deployment(t, ns, "huge", p.cluster, 1, "4")
	eventually(t, 30*time.Second, "the pod is there", func() error {
		if n := len(pending(t, ns, "huge")); n != 1 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	huge := pending(t, ns, "huge")[0]
	e := announced(t, ns, "Pod", huge.Name, corev1.EventTypeWarning, "NotTriggerScaleUp", "pool burst", "InsufficientCPU", "to change that: ")
	t.Logf("%s: %s", e.Reason, e.Message)
	require.Equal(t, huge.UID, e.InvolvedObject.UID, "kubectl describe looks by the uid")

	// One that triggers.
	deployment(t, ns, "web", p.cluster, 1, "150m")
	waitRunning(t, ns, "web", 1, 90*time.Second)
	list, err := admin.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
	require.NoError(t, err)
	web := list.Items[0]
	node := web.Spec.NodeName
	e = announced(t, ns, "Pod", web.Name, corev1.EventTypeNormal, "TriggeredScaleUp", "pool burst 0->1 (max 2)", "node "+node)
	t.Logf("%s: %s", e.Reason, e.Message)
	p.mustCLI("explain", e.Annotations[kube.AnnotationEvent])
	announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeNormal, "ScaleUp", "asked for", "UnschedulablePods")
	announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeNormal, "ScaleUp", "is Ready")

	// A drain that a budget blocks.
	spare(t, ns, "web")
	budget(t, ns, "web", 1)
	p.mustCLI("remove", node, "--reason", "an old disk")
	announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeNormal, "ScaleDown", "to be drained and removed", "an old disk")
	e = announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeWarning, "DrainBlocked", "PodDisruptionBudget "+ns+"/web", "pod "+ns+"/"+web.Name, "to change that: ")
	t.Logf("%s: %s", e.Reason, e.Message)
	e = announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeWarning, "ScaleDownFailed", "DrainDeadline")
	t.Logf("%s: %s", e.Reason, e.Message)

	// A node that leaves.
	require.NoError(t, admin.PolicyV1().PodDisruptionBudgets(ns).Delete(context.Background(), "web", metav1.DeleteOptions{}))
	scaleDeployment(t, ns, "web", 0)
	e = announced(t, metav1.NamespaceDefault, "Node", node, corev1.EventTypeNormal, "ScaleDown", "node of pool burst removed")
	t.Logf("%s: %s", e.Reason, e.Message)
	require.NotEmpty(t, p.history(events.TypeNodeRemoved))

	b, err := admin.CoreV1().Events("").List(context.Background(), metav1.ListOptions{FieldSelector: "source=" + kube.UserAgent})
	require.NoError(t, err)
	mine := 0
	for _, e := range b.Items {
		if e.Namespace == ns || e.InvolvedObject.Name == node {
			mine++
		}
	}
	require.Less(t, mine, 30, "each thing is said once, or counted")
}
