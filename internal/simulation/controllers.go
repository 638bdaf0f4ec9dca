package simulation

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// owners are the uids of those whose pods live as long as they.
func (w *World) owners() map[string]bool {
	found := map[string]bool{}
	deployments := map[string]bool{}
	for _, d := range w.store.deployments() {
		deployments[string(d.UID)] = true
	}
	for _, rs := range w.store.replicaSets() {
		if owner := metav1.GetControllerOf(rs); owner != nil && !deployments[string(owner.UID)] {
			_ = w.store.delete(replicaSetsResource, keyOf(rs), metav1.DeleteOptions{}) // gone is fine
			continue
		}
		found[string(rs.UID)] = true
	}
	for _, ds := range w.store.daemonSets() {
		found[string(ds.UID)] = true
	}
	// Owners of other kinds are kept by whoever made them.
	for _, p := range w.store.pods() {
		if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind != "ReplicaSet" && owner.Kind != "DaemonSet" {
			found[string(owner.UID)] = true
		}
	}
	return found
}

// runDeployments keeps one ReplicaSet for each Deployment. A changed template
// is for new pods only: rollouts are not simulated.
func (w *World) runDeployments() {
	for _, d := range w.store.deployments() {
		h := fnv.New32a()
		_, _ = h.Write([]byte(d.UID))
		name := d.Name + "-" + strconv.FormatUint(uint64(h.Sum32()), 36)
		rs := &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: d.Namespace, Name: name, Labels: d.Spec.Template.Labels,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))},
			},
			Spec: appsv1.ReplicaSetSpec{Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template},
		}
		found, err := w.store.get(replicaSetsResource, keyOf(rs))
		if apierrors.IsNotFound(err) {
			if _, err := w.store.create(replicaSetsResource, rs, false); err != nil {
				w.o.Logger.Error("simulated replica set could not be made", "namespace", d.Namespace, "deployment", d.Name, "error", err)
			}
			continue
		}
		_ = w.store.modify(replicaSetsResource, keyOf(rs), func(o object) { // gone is fine
			if current, ok := o.(*appsv1.ReplicaSet); ok {
				current.Spec.Replicas, current.Spec.Template = d.Spec.Replicas, d.Spec.Template
			}
		})
		if current, ok := found.(*appsv1.ReplicaSet); ok {
			_ = w.store.modify(deploymentsResource, keyOf(d), func(o object) { // gone is fine
				if d, ok := o.(*appsv1.Deployment); ok {
					d.Status.ObservedGeneration = d.Generation
					d.Status.Replicas, d.Status.ReadyReplicas = current.Status.Replicas, current.Status.ReadyReplicas
					d.Status.AvailableReplicas, d.Status.UpdatedReplicas = current.Status.AvailableReplicas, current.Status.Replicas
				}
			})
		}
	}
}

// runReplicaSets keeps as many pods as replicas say.
func (w *World) runReplicaSets() {
	for _, rs := range w.store.replicaSets() {
		if rs.DeletionTimestamp != nil {
			continue
		}
		var mine []*corev1.Pod
		var readyPods int32
		for _, p := range w.store.pods() {
			if metav1.IsControlledBy(p, rs) && p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				mine = append(mine, p)
				if ready(p) {
					readyPods++
				}
			}
		}
		want := int(replicas(rs.Spec.Replicas))
		for range want - len(mine) {
			w.createPod(&rs.Spec.Template, rs.Namespace, rs.Name+"-", metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet")), nil)
		}
		if surplus := len(mine) - want; surplus > 0 {
			slices.SortStableFunc(mine, lessWanted)
			for _, p := range mine[:surplus] {
				w.deletePod(p, metav1.DeleteOptions{})
			}
		}
		have := int32(len(mine))                                            //nolint:gosec // pods of one set
		_ = w.store.modify(replicaSetsResource, keyOf(rs), func(o object) { // gone is fine
			if rs, ok := o.(*appsv1.ReplicaSet); ok {
				rs.Status.ObservedGeneration = rs.Generation
				rs.Status.Replicas, rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = have, readyPods, readyPods
			}
		})
	}
}

// lessWanted orders pods by who goes first when a set shrinks: without a node,
// not running, not ready, ready for a shorter time, younger.
func lessWanted(a, b *corev1.Pod) int {
	rank := func(ok bool) int {
		if ok {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(rank(a.Spec.NodeName != ""), rank(b.Spec.NodeName != "")),
		cmp.Compare(rank(a.Status.Phase == corev1.PodRunning), rank(b.Status.Phase == corev1.PodRunning)),
		cmp.Compare(rank(ready(a)), rank(ready(b))),
		readySince(b).Compare(readySince(a)),
		b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
	)
}

func readySince(p *corev1.Pod) time.Time {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

func (w *World) createPod(t *corev1.PodTemplateSpec, namespace, prefix string, owner *metav1.OwnerReference, edit func(*corev1.Pod)) {
	p := &corev1.Pod{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: *t.Spec.DeepCopy()}
	p.Namespace, p.GenerateName = namespace, prefix
	p.OwnerReferences = []metav1.OwnerReference{*owner}
	if edit != nil {
		edit(p)
	}
	if _, err := w.store.create(podsResource, p, false); err != nil {
		w.o.Logger.Error("simulated pod could not be made", "namespace", namespace, "owner", owner.Name, "error", err)
	}
}

// daemonTolerations are added to every pod of a DaemonSet by its controller.
var daemonTolerations = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
}

// runDaemonSets keeps one pod on each node that a DaemonSet is for. Nodes that
// are not Ready wait for theirs.
func (w *World) runDaemonSets() {
	for _, ds := range w.store.daemonSets() {
		on := map[string]*corev1.Pod{}
		for _, p := range w.store.pods() {
			if metav1.IsControlledBy(p, ds) && p.DeletionTimestamp == nil {
				on[daemonNode(p)] = p
			}
		}
		var want, running int32
		for _, n := range w.store.nodes() {
			if !daemonRunsOn(ds, n) {
				if p := on[n.Name]; p != nil && nodeReady(n) {
					w.deletePod(p, metav1.DeleteOptions{})
				}
				continue
			}
			want++
			switch p := on[n.Name]; {
			case p == nil:
				w.createPod(&ds.Spec.Template, ds.Namespace, ds.Name+"-", metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet")), func(p *corev1.Pod) {
					p.Spec.Tolerations = append(p.Spec.Tolerations, daemonTolerations...)
					pinTo(p, n.Name)
				})
			case ready(p):
				running++
			}
		}
		_ = w.store.modify(daemonSetsResource, keyOf(ds), func(o object) { // gone is fine
			if ds, ok := o.(*appsv1.DaemonSet); ok {
				ds.Status.ObservedGeneration = ds.Generation
				ds.Status.DesiredNumberScheduled, ds.Status.CurrentNumberScheduled, ds.Status.NumberReady = want, want, running
			}
		})
	}
}

func daemonRunsOn(ds *appsv1.DaemonSet, n *corev1.Node) bool {
	p := &corev1.Pod{Spec: ds.Spec.Template.Spec}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !ok {
		return false
	}
	tolerations := append(slices.Clone(p.Spec.Tolerations), daemonTolerations...)
	_, untolerated := schedulinghelper.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, tolerations, func(t *corev1.Taint) bool {
		return t.Effect != corev1.TaintEffectPreferNoSchedule
	}, false)
	return !untolerated
}

// pinTo gives a pod the node affinity by which the DaemonSet controller names
// its node to the scheduler.
func pinTo(p *corev1.Pod, node string) {
	p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}},
		}}},
	}}}
}

func daemonNode(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range t.MatchFields {
				if f.Key == metav1.ObjectNameField && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return ""
}
