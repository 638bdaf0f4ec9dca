package collector

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func amounts(cpu, memory string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}}
}

func TestRequestsCountInitContainersSidecarsAndOverheadAsTheSchedulerDoes(t *testing.T) {
	t.Parallel()
	always := corev1.ContainerRestartPolicyAlways
	for name, tt := range map[string]struct {
		spec corev1.PodSpec
		want events.Resources
	}{
		"containers add up": {corev1.PodSpec{Containers: []corev1.Container{{Resources: amounts("100m", "1Mi")}, {Resources: amounts("200m", "2Mi")}}},
			events.Resources{CPUMilli: 300, MemoryBytes: 3 << 20}},
		"the largest init container counts": {corev1.PodSpec{Containers: []corev1.Container{{Resources: amounts("100m", "8Mi")}},
			InitContainers: []corev1.Container{{Resources: amounts("1", "1Mi")}, {Resources: amounts("500m", "1Mi")}}},
			events.Resources{CPUMilli: 1000, MemoryBytes: 8 << 20}},
		"a sidecar runs beside both": {corev1.PodSpec{Containers: []corev1.Container{{Resources: amounts("100m", "1Mi")}},
			InitContainers: []corev1.Container{{RestartPolicy: &always, Resources: amounts("50m", "1Mi")}, {Resources: amounts("300m", "1Mi")}}},
			events.Resources{CPUMilli: 350, MemoryBytes: 2 << 20}},
		"overhead is added": {corev1.PodSpec{Containers: []corev1.Container{{Resources: amounts("100m", "1Mi")}},
			Overhead: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}},
			events.Resources{CPUMilli: 350, MemoryBytes: 1 << 20}},
		"extended resources": {corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			"nvidia.com/gpu": resource.MustParse("2"), corev1.ResourceEphemeralStorage: resource.MustParse("1Gi")}}}}},
			events.Resources{Extended: map[string]int64{"nvidia.com/gpu": 2, "ephemeral-storage": 1 << 30}}},
		"nothing asked for": {corev1.PodSpec{Containers: []corev1.Container{{}}}, events.Resources{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := classOf(trimPod(&corev1.Pod{Spec: tt.spec}), podVolumes{})
			require.NoError(t, err)
			require.Equal(t, tt.want, c.Requests)
		})
	}
}

func TestPodsOfOneControllerAreOfOneClass(t *testing.T) {
	t.Parallel()
	yes := true
	id := func(edit func(*corev1.Pod)) string {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{"app": "web"}}}
		edit(p)
		c, err := classOf(trimPod(p), podVolumes{})
		require.NoError(t, err)
		require.Len(t, c.ID, 16)
		return c.ID
	}
	plain := id(func(*corev1.Pod) {})
	require.Equal(t, plain, id(func(p *corev1.Pod) {
		p.Labels[appsv1.PodIndexLabel], p.Labels[appsv1.StatefulSetPodNameLabel] = "3", "web-3"
	}))
	require.NotEqual(t, plain, id(func(p *corev1.Pod) { p.Labels["app"] = "db" }))
	require.NotEqual(t, plain, id(func(p *corev1.Pod) { p.Namespace = "other" }))
	require.NotEqual(t, plain, id(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }))

	daemon := func(node, bound string) string {
		return id(func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Name: "agent", Controller: &yes}}
			p.Spec.NodeName = bound
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}}
		})
	}
	require.Equal(t, daemon("w1", "w1"), daemon("w2", "w2"), "bound pods of a DaemonSet differ in nothing that counts")
	require.NotEqual(t, daemon("w1", ""), daemon("w2", ""), "one that waits is for its node alone")
}

func TestADaemonSetHasTheClassOfThePodThatANewNodeGets(t *testing.T) {
	t.Parallel()
	d, err := convertDaemonSet(trimDaemonSet(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "agent"},
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "agent"}},
			Spec: corev1.PodSpec{PriorityClassName: "system-node-critical", HostNetwork: true, Containers: []corev1.Container{{Resources: amounts("100m", "50Mi")}},
				Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}}}}}))
	require.NoError(t, err)
	require.Equal(t, "kube-system/agent", d.Key())
	require.EqualValues(t, 100, d.Class.Requests.CPUMilli)
	require.EqualValues(t, 2000001000, d.Class.Priority)
	require.Len(t, d.Class.Tolerations, 8)
	require.Contains(t, d.Class.Tolerations, events.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: "Exists", Effect: "NoSchedule"})
}

func TestABudgetAllowsNothingUntilItsStatusIsOfItsSpec(t *testing.T) {
	t.Parallel()
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Generation: 2},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"},
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}},
		Status: policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, DisruptionsAllowed: 1, CurrentHealthy: 3, DesiredHealthy: 2}}
	got, covers := convertPDB(b)
	require.True(t, covers)
	require.Equal(t, events.SnapshotPDB{Namespace: "shop", Name: "web", DisruptionsAllowed: 1, CurrentHealthy: 3, DesiredHealthy: 2,
		Selector: events.Selector{MatchLabels: map[string]string{"app": "web"}, MatchExpressions: []events.Requirement{{Key: "tier", Operator: "Exists"}}}}, got)
	b.Generation = 3
	got, _ = convertPDB(b)
	require.Zero(t, got.DisruptionsAllowed)
	b.Spec.Selector = nil
	_, covers = convertPDB(b)
	require.False(t, covers)
}

func TestWhatASnapshotHoldsReadsBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	at := metav1.NewTime(time.Date(2026, 5, 1, 12, 0, 0, 0, time.FixedZone("x", 7200)))
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u", CreationTimestamp: at, Labels: map[string]string{},
		OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", Controller: &yes}},
		Annotations: map[string]string{"karpenter.sh/do-not-disrupt": "true", "k3s-autoscaler.dev/x": "y", "secret": "hush",
			corev1.MirrorPodAnnotationKey: "m"}},
		Spec: corev1.PodSpec{NodeSelector: map[string]string{}, SchedulingGates: []corev1.PodSchedulingGate{{Name: "g"}}},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
			LastTransitionTime: at, Message: strings.Repeat("é", 400)}}}}
	pod := convertPod(trimPod(p), "c", func(string) bool { return false })
	require.Equal(t, map[string]string{"karpenter.sh/do-not-disrupt": "true", "k3s-autoscaler.dev/x": "y"}, pod.Annotations)
	require.True(t, pod.Mirror)
	require.True(t, pod.Gated)
	require.Equal(t, "Pending", pod.Phase)
	require.Equal(t, &events.OwnerRef{Kind: "ReplicaSet", Name: "web"}, pod.Owner)
	require.LessOrEqual(t, len(pod.UnschedulableMessage), maxMessage)
	roundtrip(t, pod)

	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w1", UID: "u", CreationTimestamp: at, Labels: map[string]string{"a": "b"},
		Annotations: map[string]string{"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true", "volumes.kubernetes.io/x": "y"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("110"), "hugepages-2Mi": resource.MustParse("0")},
			Images:     []corev1.ContainerImage{{Names: []string{"x"}}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure}, {Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: at}}}}
	node := convertNode(trimNode(n))
	require.Equal(t, events.Resources{Pods: 110}, node.Allocatable)
	require.Equal(t, map[string]string{"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}, node.Annotations)
	require.Equal(t, "True", node.Ready)
	require.True(t, node.ReadySince.Equal(at.Time))
	roundtrip(t, node)
	require.Equal(t, "Unknown", convertNode(&corev1.Node{}).Ready, "a node without the condition is unknown")
	class, err := classOf(trimPod(p), podVolumes{})
	require.NoError(t, err)
	roundtrip(t, class)
}

func TestTrimmingATrimmedObjectChangesNothing(t *testing.T) {
	t.Parallel()
	p := trimPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{HostPort: 1}}}},
		Volumes:    []corev1.Volume{{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}}, {Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Resources: &corev1.ResourceRequirements{}}, {Name: "d"}}}})
	require.Equal(t, p, trimPod(p))
	require.Len(t, p.Spec.Volumes, 1)
	require.Empty(t, p.Spec.Containers[0].Image)
}

func roundtrip[T any](t *testing.T, v T) {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	var back T
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, v, back)
}
