//go:build e2e

package live

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

const (
	image = "example.com/none:1" // which nobody pulls
	// grace is how long a pod would take to end, if it were up to it alone.
	grace = 3600
)

// create puts the case into the cluster, as far as it has come when the
// autoscaler meets it: in the order in which the objects depend on each other.
func (k *cluster) create(ctx context.Context, c *fit.Case) error {
	if err := k.createVolumes(ctx, c); err != nil {
		return err
	}
	if err := all(c.Nodes, func(n *corev1.Node) error { return k.createNode(ctx, n, false) }); err != nil {
		return err
	}
	var bound, waiting []*corev1.Pod
	for _, p := range c.Pods {
		switch n := node(c, p.Spec.NodeName); {
		case ofDaemonSet(p): // the controller makes them
		case n != nil && !staysOn(p, n): // it would be evicted at once
		case n != nil:
			bound = append(bound, p)
		default:
			waiting = append(waiting, p)
		}
	}
	bound = append(bound, k.nominate(c, waiting, bound)...)
	k.leaving = map[string]bool{}
	for _, p := range bound {
		if p.DeletionTimestamp != nil {
			k.leaving[fit.Ref(p)] = true
		}
	}
	k.held = c.Has["nominated nodes"]
	for _, p := range slices.Concat(bound, waiting) {
		if err := k.admit(ctx, &p.Spec); err != nil {
			return err
		}
	}
	if err := all(bound, func(p *corev1.Pod) error { return k.createPod(ctx, p) }); err != nil {
		return err
	}
	for _, d := range c.DaemonSets {
		if err := k.createDaemonSet(ctx, d); err != nil {
			return err
		}
	}
	if len(c.DaemonSets) > 0 { // their pods come first
		if err := k.settle(ctx); err != nil {
			return err
		}
	}
	if err := all(waiting, func(p *corev1.Pod) error { return k.createPod(ctx, p) }); err != nil {
		return err
	}
	return k.settle(ctx)
}

func node(c *fit.Case, name string) *corev1.Node {
	i := slices.IndexFunc(c.Nodes, func(n *corev1.Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return c.Nodes[i]
}

// staysOn reports whether the node's taints let the pod run on.
func staysOn(p *corev1.Pod, n *corev1.Node) bool {
	hard := &corev1.Node{}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			hard.Spec.Taints = append(hard.Spec.Taints, t)
		}
	}
	return fit.Tolerates(p, hard)
}

// nominate has the scheduler nominate nodes by itself: the pods for which others
// make room can go nowhere else, and what is still free there is taken by a pod
// that gives way. Those are returned.
func (k *cluster) nominate(c *fit.Case, waiting, bound []*corev1.Pod) []*corev1.Pod {
	var fillers []*corev1.Pod
	for _, p := range waiting {
		n := node(c, p.Status.NominatedNodeName)
		if n == nil {
			continue
		}
		p.Status.NominatedNodeName = ""
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: n.Name}
		p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		free, slots := n.Status.Allocatable.Cpu().MilliValue(), n.Status.Allocatable.Pods().Value()
		for _, b := range bound {
			if b.Spec.NodeName == n.Name {
				free, slots = free-b.Spec.Containers[0].Resources.Requests.Cpu().MilliValue(), slots-1
			}
		}
		if free <= 0 || slots <= 0 {
			continue
		}
		f := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + "-makes-room"},
			Spec: corev1.PodSpec{NodeName: n.Name, Tolerations: p.Spec.Tolerations, Priority: new(int32(fit.Expendable)), Containers: []corev1.Container{{Name: "main",
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(free, resource.DecimalSI)}}}}}}
		fillers = append(fillers, f)
	}
	return fillers
}

// admit makes of a pod's specification one that the API server takes and reads as
// it was meant: it wants priorities and overheads by the names of classes.
func (k *cluster) admit(ctx context.Context, s *corev1.PodSpec) error {
	s.AutomountServiceAccountToken, s.EnableServiceLinks = new(false), new(false)
	s.TerminationGracePeriodSeconds = new(int64(grace))
	for _, cs := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range cs {
			cs[i].Image = image
			for name, v := range cs[i].Resources.Requests {
				switch name {
				case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
					continue
				}
				cs[i].Resources.Limits = corev1.ResourceList{name: v} // extended resources can't be overcommitted
			}
		}
	}
	switch never := s.PreemptionPolicy != nil && *s.PreemptionPolicy == corev1.PreemptNever; {
	case s.Priority != nil && *s.Priority == fit.NominatedFirst:
		s.PriorityClassName = classFirst
	case s.Priority != nil && *s.Priority == fit.Expendable:
		s.PriorityClassName = classExpendable
	case never:
		s.PriorityClassName = classNever
	}
	s.Priority, s.PreemptionPolicy = nil, nil
	if len(s.Overhead) > 0 {
		name, err := k.runtime(ctx, s.Overhead)
		if err != nil {
			return err
		}
		s.RuntimeClassName, s.Overhead = &name, nil
	}
	for i := range s.TopologySpreadConstraints {
		unmerge(&s.TopologySpreadConstraints[i])
	}
	return nil
}

// unmerge takes out of the selector what the API server merges into it. Labels
// may not be in both, so that a selector that names one otherwise keeps it.
func unmerge(t *corev1.TopologySpreadConstraint) {
	if len(t.MatchLabelKeys) == 0 {
		return
	}
	last := len(t.LabelSelector.MatchExpressions) - 1
	others := slices.Clone(t.LabelSelector.MatchExpressions[:last])
	if slices.ContainsFunc(others, func(r metav1.LabelSelectorRequirement) bool { return slices.Contains(t.MatchLabelKeys, r.Key) }) {
		t.MatchLabelKeys = nil
		return
	}
	t.LabelSelector = &metav1.LabelSelector{MatchLabels: t.LabelSelector.MatchLabels, MatchExpressions: others}
}

// createPod creates the pod, and gives it the state that its scheduler or its end
// would. It has no controller: what the scheduler pushes off does not come back.
func (k *cluster) createPod(ctx context.Context, p *corev1.Pod) error {
	ends, foreign := p.DeletionTimestamp != nil, p.Spec.SchedulerName != "" && p.Spec.SchedulerName != corev1.DefaultSchedulerName
	in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}, Spec: p.Spec}
	out, err := k.CoreV1().Pods(p.Namespace).Create(ctx, in, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create pod %s: %w", fit.Ref(p), err)
	}
	k.view.wrote(k.view.pods, out)
	switch {
	case ends:
		return k.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
	case foreign:
		out.Status.Conditions = append(out.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
			Reason: corev1.PodReasonUnschedulable, LastTransitionTime: metav1.Now()})
		out, err = k.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, out, metav1.UpdateOptions{})
		if err == nil {
			k.view.wrote(k.view.pods, out)
		}
	}
	return err
}

func (k *cluster) createDaemonSet(ctx context.Context, d *appsv1.DaemonSet) error {
	in := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name}, Spec: *d.Spec.DeepCopy()}
	in.Spec.Selector = &metav1.LabelSelector{MatchLabels: d.Spec.Template.Labels}
	if err := k.admit(ctx, &in.Spec.Template.Spec); err != nil {
		return err
	}
	out, err := k.AppsV1().DaemonSets(d.Namespace).Create(ctx, in, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create DaemonSet %s: %w", keyOf(d), err)
	}
	k.view.wrote(k.view.daemonSets, out)
	return nil
}

// createNode creates a node that is Ready. Behind a cordon only the pods of
// DaemonSets go there.
func (k *cluster) createNode(ctx context.Context, n *corev1.Node, cordoned bool) error {
	n = n.DeepCopy()
	n.UID, n.ResourceVersion, n.Spec.Unschedulable = "", "", cordoned
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		since := time.Duration(0)
		if !c.LastTransitionTime.IsZero() {
			since = fit.Now.Sub(c.LastTransitionTime.Time)
		}
		c.LastHeartbeatTime, c.LastTransitionTime, c.Reason = metav1.Now(), metav1.NewTime(time.Now().Add(-since)), "KubeletReady"
	}
	out, err := k.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create node %s: %w", n.Name, err)
	}
	k.view.wrote(k.view.nodes, out)
	return nil
}

// createVolumes creates the claims, and waits until those that have a volume are
// bound to it.
func (k *cluster) createVolumes(ctx context.Context, c *fit.Case) error {
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	for _, s := range c.StorageClasses {
		s = s.DeepCopy()
		s.UID, s.ResourceVersion = "", ""
		if _, err := k.StorageV1().StorageClasses().Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create storage class %s: %w", s.Name, err)
		}
	}
	if err := all(c.Volumes, func(v *corev1.PersistentVolume) error {
		v = v.DeepCopy()
		v.UID, v.ResourceVersion, v.Status = "", "", corev1.PersistentVolumeStatus{}
		v.Spec.Capacity, v.Spec.ClaimRef.UID, v.Spec.PersistentVolumeReclaimPolicy = size, "", corev1.PersistentVolumeReclaimRetain
		out, err := k.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create volume %s: %w", v.Name, err)
		}
		k.view.wrote(k.view.volumes, out)
		return nil
	}); err != nil {
		return err
	}
	// A claim that comes before the controller knows its volume would wait for the
	// controller's next round.
	if err := k.eventually(ctx, "the volumes are available", func() (bool, error) {
		for _, v := range c.Volumes {
			o, there, err := k.view.volumes.GetByKey(v.Name)
			if err != nil || !there || o.(*corev1.PersistentVolume).Status.Phase != corev1.VolumeAvailable {
				return false, err
			}
		}
		return true, nil
	}); err != nil {
		return err
	}
	if err := all(c.Claims, func(p *corev1.PersistentVolumeClaim) error {
		p = p.DeepCopy()
		p.UID, p.ResourceVersion, p.Annotations, p.Status = "", "", nil, corev1.PersistentVolumeClaimStatus{}
		p.Spec.Resources.Requests = size
		out, err := k.CoreV1().PersistentVolumeClaims(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create claim %s: %w", keyOf(p), err)
		}
		k.view.wrote(k.view.claims, out)
		return nil
	}); err != nil {
		return err
	}
	return k.eventually(ctx, "the claims are bound", func() (bool, error) {
		now, err := k.see(ctx)
		if err != nil {
			return false, err
		}
		for _, p := range now.Claims {
			if p.Spec.VolumeName != "" && p.Status.Phase != corev1.ClaimBound {
				return false, fmt.Errorf("claim %s is %s", keyOf(p), p.Status.Phase)
			}
		}
		return true, nil
	})
}
