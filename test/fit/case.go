package fit

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// ClusterName is the name of every cluster here.
const ClusterName = "fit"

const (
	gpu  = "example.com/gpu"
	disk = corev1.ResourceEphemeralStorage
	gi   = 1 << 30
	mi   = 1 << 20

	// diskSize is the ephemeral storage of every node, in bytes.
	diskSize = 40 * gi

	// Expendable is a priority at which pods give way, and NominatedFirst one for
	// which others do.
	Expendable     = -20
	NominatedFirst = 1000
)

// Case is a cluster with pods that wait, and the pools that may grow.
type Case struct {
	Seed           uint64
	Has            map[string]bool // by name, the constraints that it may have
	Nodes          []*corev1.Node
	Pods           []*corev1.Pod
	DaemonSets     []*appsv1.DaemonSet
	Namespaces     []*corev1.Namespace
	Claims         []*corev1.PersistentVolumeClaim
	Volumes        []*corev1.PersistentVolume
	StorageClasses []*storagev1.StorageClass
	Budgets        []*policyv1.PodDisruptionBudget
	Pools          []scaling.Pool
	Records        []events.NodeRecord
	At             time.Time // of the decision; zero: Now
}

// Clone returns a deep copy.
func (c *Case) Clone() *Case {
	out := *c
	out.Nodes, out.Pods, out.DaemonSets = copies(c.Nodes), copies(c.Pods), copies(c.DaemonSets)
	out.Namespaces, out.Claims, out.Volumes = copies(c.Namespaces), copies(c.Claims), copies(c.Volumes)
	out.Budgets = copies(c.Budgets)
	out.StorageClasses, out.Pools, out.Records = copies(c.StorageClasses), slices.Clone(c.Pools), slices.Clone(c.Records)
	return &out
}

func copies[T interface{ DeepCopy() T }](in []T) []T {
	var out []T
	for _, o := range in {
		out = append(out, o.DeepCopy())
	}
	return out
}

// Ref is "namespace/name".
func Ref(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

func (c *Case) pod(ref string) *corev1.Pod {
	i := slices.IndexFunc(c.Pods, func(p *corev1.Pod) bool { return Ref(p) == ref })
	if i < 0 {
		return nil
	}
	return c.Pods[i]
}

// Waiting are the pods that are not bound and of which the simulation has to
// say where they go: those that nothing but a node is missing for.
func (c *Case) Waiting() []string {
	var out []string
	for _, p := range c.Pods {
		if p.Spec.NodeName == "" && len(p.Spec.SchedulingGates) == 0 && p.Spec.SchedulerName == corev1.DefaultSchedulerName &&
			p.Status.NominatedNodeName == "" && *p.Spec.Priority > Expendable && !ofDaemonSet(p) {
			out = append(out, Ref(p))
		}
	}
	return out
}

// Queue are the pods that the scheduler tries, in its order: pods of DaemonSets
// come first, as their priority has it, expendable ones last.
func (c *Case) Queue() []string {
	var daemons, last []string
	for _, p := range c.Pods {
		switch {
		case p.Spec.NodeName != "":
		case ofDaemonSet(p):
			daemons = append(daemons, Ref(p))
		case *p.Spec.Priority <= Expendable:
			last = append(last, Ref(p))
		}
	}
	return slices.Concat(daemons, c.Waiting(), last)
}

func ofDaemonSet(p *corev1.Pod) bool {
	o := metav1.GetControllerOf(p)
	return o != nil && o.Kind == "DaemonSet"
}

// NewNode is a node of the pool as it comes into the world.
func NewNode(p scaling.Pool, name, claim string) *corev1.Node {
	pods := p.Size.Pods
	if pods == 0 {
		pods = 110
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
			scaling.LabelCluster: ClusterName, scaling.LabelPool: p.Name, scaling.LabelClaim: claim}},
		Spec: corev1.NodeSpec{Taints: slices.Clone(p.Taints)},
		Status: corev1.NodeStatus{
			Allocatable: amounts(p.Size.CPUMilli, p.Size.MemoryBytes),
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for k, v := range p.Labels {
		n.Labels[k] = v
	}
	n.Status.Allocatable[corev1.ResourcePods] = *resource.NewQuantity(pods, resource.DecimalSI)
	n.Status.Allocatable[disk] = *resource.NewQuantity(diskSize, resource.BinarySI)
	for k, v := range p.Size.Extended {
		n.Status.Allocatable[corev1.ResourceName(k)] = *resource.NewQuantity(v, resource.DecimalSI)
	}
	n.Status.Capacity = n.Status.Allocatable
	return n
}

func amounts(cpu, memory int64) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(cpu, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI)}
}

// DaemonPods are the pods that the DaemonSet controller makes for the node,
// pinned to it by name, with the tolerations that it adds.
func (c *Case) DaemonPods(n *corev1.Node) []*corev1.Pod {
	var out []*corev1.Pod
	for _, d := range c.DaemonSets {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name + "-" + n.Name, UID: types.UID(d.Name + "-" + n.Name),
			Labels: d.Spec.Template.Labels, OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))}},
			Spec: *d.Spec.Template.Spec.DeepCopy()}
		p.Spec.Tolerations = append(p.Spec.Tolerations, daemonTolerations...)
		if fits, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !fits || !Tolerates(p, n) {
			continue
		}
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
				{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{n.Name}}}}}}}}
		out = append(out, p)
	}
	return out
}

var daemonTolerations = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
}

// Tolerates reports whether the pod tolerates all taints of the node.
func Tolerates(p *corev1.Pod, n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		ok := t.Effect == corev1.TaintEffectPreferNoSchedule
		for _, o := range p.Spec.Tolerations {
			ok = ok || (o.Effect == "" || o.Effect == t.Effect) && (o.Key == "" || o.Key == t.Key) &&
				(o.Operator == corev1.TolerationOpExists || o.Value == t.Value)
		}
		if !ok {
			return false
		}
	}
	return true
}
