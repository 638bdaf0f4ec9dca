//go:build e2e

package live

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// list has calls made at once that each list one kind of object.
func list(of ...func() error) error { return all(of, func(one func() error) error { return one() }) }

// into keeps what a call lists.
func into[L any, T any](ctx context.Context, to *[]*T, call func(context.Context, metav1.ListOptions) (*L, error), items func(*L) []T) func() error {
	return func() error {
		l, err := call(ctx, metav1.ListOptions{})
		if err == nil {
			*to = pointers(items(l))
		}
		return err
	}
}

// see lists what changes while the cluster comes to rest. What a case does not
// have stays empty.
func (k *cluster) see(ctx context.Context) (*fit.Case, error) {
	c := &fit.Case{At: time.Now().UTC()}
	all := metav1.NamespaceAll
	err := list(
		into(ctx, &c.Nodes, k.CoreV1().Nodes().List, func(l *corev1.NodeList) []corev1.Node { return l.Items }),
		into(ctx, &c.Pods, k.CoreV1().Pods(all).List, func(l *corev1.PodList) []corev1.Pod { return l.Items }),
		into(ctx, &c.DaemonSets, k.AppsV1().DaemonSets(all).List, func(l *appsv1.DaemonSetList) []appsv1.DaemonSet { return l.Items }),
		into(ctx, &c.Claims, k.CoreV1().PersistentVolumeClaims(all).List, func(l *corev1.PersistentVolumeClaimList) []corev1.PersistentVolumeClaim { return l.Items }),
	)
	c.Pods = slices.DeleteFunc(c.Pods, func(p *corev1.Pod) bool { return p.Namespace == barrierNamespace })
	// Those that are being deleted are of a case before.
	c.Claims = slices.DeleteFunc(c.Claims, func(p *corev1.PersistentVolumeClaim) bool { return p.DeletionTimestamp != nil })
	return c, err
}

// look lists everything that a decision looks at.
func (k *cluster) look(ctx context.Context) (*fit.Case, error) {
	c, err := k.see(ctx)
	if err != nil {
		return nil, err
	}
	return c, list(
		into(ctx, &c.Namespaces, k.CoreV1().Namespaces().List, func(l *corev1.NamespaceList) []corev1.Namespace { return l.Items }),
		into(ctx, &c.Volumes, k.CoreV1().PersistentVolumes().List, func(l *corev1.PersistentVolumeList) []corev1.PersistentVolume { return l.Items }),
		into(ctx, &c.StorageClasses, k.StorageV1().StorageClasses().List, func(l *storagev1.StorageClassList) []storagev1.StorageClass { return l.Items }),
		into(ctx, &c.Budgets, k.PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List, func(l *policyv1.PodDisruptionBudgetList) []policyv1.PodDisruptionBudget { return l.Items }),
	)
}

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
		case p.DeletionTimestamp != nil && !k.held && !k.leaving[fit.Ref(p)]:
			done = "pod " + fit.Ref(p) + " ends"
			if err := k.end(ctx, p); err != nil {
				return "", err
			}
		case p.DeletionTimestamp == nil && k.ready && !isUp(p) && metav1.GetControllerOf(p) == nil:
			done = "pod " + fit.Ref(p) + " becomes Ready"
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
			_, err := k.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{})
			if gone(err) != nil && !apierrors.IsConflict(err) {
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

func (k *cluster) end(ctx context.Context, p *corev1.Pod) error {
	now := int64(0)
	err := k.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.UID}})
	return gone(err)
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
	_, err := k.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	return there(err)
}
