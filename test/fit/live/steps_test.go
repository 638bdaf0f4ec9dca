//go:build e2e

package live

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// unfinished says what a controller still has to do.
func unfinished(c *fit.Case) string {
	for _, n := range c.Nodes {
		for _, t := range n.Spec.Taints {
			switch {
			case t.Key == corev1.TaintNodeNotReady, t.Key == corev1.TaintNodeUnreachable:
				return fmt.Sprintf("node %s has the taint %s", n.Name, t.Key)
			case t.Key == corev1.TaintNodeUnschedulable && !n.Spec.Unschedulable:
				return fmt.Sprintf("node %s is no longer cordoned", n.Name)
			}
		}
		for _, want := range c.DaemonPods(n) {
			owner := metav1.GetControllerOf(want)
			found := false
			for _, p := range c.Pods {
				o := metav1.GetControllerOf(p)
				found = found || o != nil && o.UID == owner.UID && p.DeletionTimestamp == nil && pinnedTo(p, n.Name)
			}
			if !found {
				return fmt.Sprintf("DaemonSet %s has no pod for node %s", owner.Name, n.Name)
			}
		}
	}
	return ""
}

// pinnedTo reports whether the DaemonSet controller made the pod for the node.
func pinnedTo(p *corev1.Pod, node string) bool {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return false
	}
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range t.MatchFields {
			if f.Key == metav1.ObjectNameField && len(f.Values) == 1 && f.Values[0] == node {
				return true
			}
		}
	}
	return false
}

// steps does what a kubelet and a provisioner of volumes would do next, and says
// what that was.
func (k *cluster) steps(ctx context.Context, c *fit.Case) (string, error) {
	done := ""
	for _, p := range c.Pods {
		switch {
		case p.Spec.NodeName == "":
		case p.DeletionTimestamp != nil && !k.held && (!k.leaving[fit.Ref(p)] || isPushedOff(p)):
			done = "pod " + fit.Ref(p) + " ends"
			if err := k.end(ctx, p); err != nil {
				return "", err
			}
		case p.DeletionTimestamp == nil && k.ready && !isUp(p) && metav1.GetControllerOf(p) == nil:
			done = "pod " + fit.Ref(p) + " becomes Ready"
			p = p.DeepCopy()
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
			now, err := k.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{})
			switch {
			case err == nil:
				k.view.wrote(k.view.pods, now)
			case gone(err) != nil && !apierrors.IsConflict(err):
				return "", err
			}
		}
	}
	for _, claim := range c.Claims {
		n := node(c, claim.Annotations["volume.kubernetes.io/selected-node"])
		if n == nil || claim.Status.Phase == corev1.ClaimBound {
			continue
		}
		done = "claim " + keyOf(claim) + " gets a volume"
		if err := k.provision(ctx, claim, n); err != nil {
			return "", err
		}
	}
	return done, nil
}

// isPushedOff reports whether the scheduler has told the pod to go for another one,
// which waits for it.
func isPushedOff(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
	})
}

func (k *cluster) end(ctx context.Context, p *corev1.Pod) error {
	now := int64(0)
	err := k.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.UID}})
	if gone(err) != nil {
		return err
	}
	k.view.ended(k.view.pods, p)
	return nil
}

// provision makes a volume where the scheduler has put the pod: in the zone of
// the node, or on the node if it has none.
func (k *cluster) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, n *corev1.Node) error {
	key := corev1.LabelTopologyZone
	if n.Labels[key] == "" {
		key = corev1.LabelHostname
	}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + claim.Name, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "csi.example.com"}},
		Spec: corev1.PersistentVolumeSpec{AccessModes: claim.Spec.AccessModes, Capacity: claim.Spec.Resources.Requests, StorageClassName: *claim.Spec.StorageClassName,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nas", Path: "/"}},
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{n.Labels[key]}}}}}}}}}
	made, err := k.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	if err == nil {
		k.view.wrote(k.view.volumes, made)
	}
	return there(err)
}
