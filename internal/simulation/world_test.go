package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	clocktesting "k8s.io/utils/clock/testing"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// testBundle is a world on a clock that only the test moves.
type testBundle struct {
	*World
	t     *testing.T
	clock *clocktesting.FakeClock
}

func setup(t *testing.T, o Options) *testBundle {
	t.Helper()
	c := clocktesting.NewFakeClock(epoch)
	o.Clock = c
	w, err := New(o)
	require.NoError(t, err)
	return &testBundle{World: w, t: t, clock: c}
}

// advance lets d pass, stopping wherever something is due.
func (b *testBundle) advance(d time.Duration) {
	end := b.clock.Now().Add(d)
	for {
		next := b.Settle()
		if next.IsZero() || next.After(end) {
			break
		}
		b.clock.SetTime(next)
	}
	b.clock.SetTime(end)
	b.Settle()
}

func (b *testBundle) pods(app string) []*corev1.Pod {
	var found []*corev1.Pod
	for _, p := range b.View().Pods {
		if p.Labels["app"] == app {
			found = append(found, p)
		}
	}
	return found
}

func (b *testBundle) running(app string) int {
	n := 0
	for _, p := range b.pods(app) {
		if ready(p) && p.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}

func (b *testBundle) node(name string) *corev1.Node {
	for _, n := range b.View().Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func worker(name string) Agent {
	return Agent{Name: name, Password: "of " + name, CPUMilli: 1000, MemoryBytes: 1 << 30, Labels: map[string]string{"pool": "small"}}
}

func TestPodsThatDoNotFitPendUntilANodeJoins(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 3, CPUMilli: 800, MemoryBytes: 64 << 20}))
	b.advance(time.Second)
	require.Equal(t, 2, b.running("web"))
	pending := b.pods("web")
	pending = slices.DeleteFunc(pending, func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })
	require.Len(t, pending, 1)
	require.Equal(t, corev1.PodPending, pending[0].Status.Phase)
	require.Equal(t, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable",
		Message: "0/1 nodes are available: 1 Insufficient cpu.", LastTransitionTime: pending[0].Status.Conditions[0].LastTransitionTime,
	}, pending[0].Status.Conditions[0])
	unchanged := pending[0].ResourceVersion
	b.advance(time.Minute)
	require.Equal(t, unchanged, mustGet(t, b, pending[0].Name).ResourceVersion, "a pod that stays unschedulable is not written again")

	require.NoError(t, b.StartAgent("m1", worker("small-a")))
	b.advance(2 * time.Second)
	n := b.node("small-a")
	require.NotNil(t, n, "registered after its join delay")
	require.False(t, nodeReady(n))
	require.True(t, slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady }))
	require.Equal(t, 2, b.running("web"), "no pod on a node that is not Ready")
	b.advance(2 * time.Second)
	require.True(t, nodeReady(b.node("small-a")))
	require.Empty(t, b.node("small-a").Spec.Taints)
	require.Equal(t, 3, b.running("web"))

	rs, err := b.Client().AppsV1().ReplicaSets("default").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, rs.Items, 1)
	require.EqualValues(t, 3, rs.Items[0].Status.ReadyReplicas)

	require.NoError(t, b.Scale(t.Context(), "default", "web", 1))
	b.advance(time.Second)
	require.Len(t, b.pods("web"), 1)
	require.Equal(t, "server-0", b.pods("web")[0].Spec.NodeName, "the youngest go first")
}

func mustGet(t *testing.T, b *testBundle, pod string) *corev1.Pod {
	t.Helper()
	p, err := b.Client().CoreV1().Pods("default").Get(t.Context(), pod, metav1.GetOptions{})
	require.NoError(t, err)
	return p
}

func TestSchedulerKeepsToSelectorsTaintsAndCordons(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	tainted := worker("small-t")
	tainted.Taints = []corev1.Taint{{Key: "ci", Value: "yes", Effect: corev1.TaintEffectNoSchedule}}
	require.NoError(t, b.StartAgent("m1", tainted))
	b.advance(5 * time.Second)
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "pinned", Replicas: 1, CPUMilli: 10, NodeSelector: map[string]string{"pool": "small"}}))
	b.advance(time.Second)
	require.Zero(t, b.running("pinned"))
	require.Equal(t, "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {ci: yes}.", b.pods("pinned")[0].Status.Conditions[0].Message)

	require.NoError(t, b.Deploy(t.Context(), Workload{
		Name: "ci", Replicas: 1, CPUMilli: 10, NodeSelector: map[string]string{"pool": "small"},
		Tolerations: []corev1.Toleration{{Key: "ci", Operator: corev1.TolerationOpExists}},
	}))
	b.advance(time.Second)
	require.Equal(t, 1, b.running("ci"))

	_, err := b.Client().CoreV1().Nodes().Patch(t.Context(), "server-0", "application/strategic-merge-patch+json", []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "any", Replicas: 1, CPUMilli: 10}))
	b.advance(time.Second)
	require.Zero(t, b.running("any"))
	require.Contains(t, b.pods("any")[0].Status.Conditions[0].Message, "1 node(s) were unschedulable")
	require.Equal(t, corev1.TaintNodeUnschedulable, b.node("server-0").Spec.Taints[0].Key)
	_, err = b.Client().CoreV1().Nodes().Patch(t.Context(), "server-0", "application/strategic-merge-patch+json", []byte(`{"spec":{"unschedulable":null}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	b.advance(time.Second)
	require.Equal(t, 1, b.running("any"))
	require.Empty(t, b.node("server-0").Spec.Taints)
}

func TestDaemonSetRunsOnEveryNodeThatJoinsAndStaysOnCordonedOnes(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.RunOnEveryNode(t.Context(), Workload{Namespace: "kube-system", Name: "svclb", CPUMilli: 50}))
	require.NoError(t, b.StartAgent("m1", worker("small-a")))
	b.advance(5 * time.Second)
	require.Equal(t, 2, b.running("svclb"))
	on := []string{b.pods("svclb")[0].Spec.NodeName, b.pods("svclb")[1].Spec.NodeName}
	require.ElementsMatch(t, []string{"server-0", "small-a"}, on)

	_, err := b.Client().CoreV1().Nodes().Patch(t.Context(), "small-a", "application/merge-patch+json", []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	b.advance(time.Second)
	require.Equal(t, 2, b.running("svclb"))
}

func evict(b *testBundle, p *corev1.Pod) error {
	return b.Client().CoreV1().Pods(p.Namespace).EvictV1(b.t.Context(), &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}},
	})
}

func TestEvictionIsRefusedAsTheAPIServerRefusesIt(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 6, CPUMilli: 10}))
	require.NoError(t, b.Protect(t.Context(), "default", "web", intstr.FromInt32(6)))
	b.advance(time.Second)
	pod := b.pods("web")[0]
	err := evict(b, pod)
	require.True(t, apierrors.IsTooManyRequests(err))
	var status *apierrors.StatusError
	require.ErrorAs(t, err, &status)
	got, err := json.MarshalIndent(status.Status(), "", "  ")
	require.NoError(t, err)
	want, err := os.ReadFile(filepath.Join("testdata", "eviction-429.json"))
	require.NoError(t, err)
	require.JSONEq(t, string(want), withTypeMeta(t, got))

	// With one to spare, one is let go; the next only when its replacement runs.
	require.NoError(t, b.Unprotect(t.Context(), "default", "web"))
	require.NoError(t, b.Protect(t.Context(), "default", "web", intstr.FromInt32(5)))
	b.advance(time.Second)
	require.NoError(t, evict(b, pod))
	require.NotNil(t, mustGet(t, b, pod.Name).DeletionTimestamp, "it has its grace period")
	other := b.pods("web")[1]
	if other.Name == pod.Name {
		other = b.pods("web")[0]
	}
	require.True(t, apierrors.IsTooManyRequests(evict(b, other)))
	b.Settle()
	require.True(t, apierrors.IsTooManyRequests(evict(b, other)), "the replacement is pending")
	b.advance(2 * time.Second)
	require.Equal(t, 6, b.running("web"))
	require.NoError(t, evict(b, other))
	require.NoError(t, evict(b, other), "a pod that is going may be evicted again")
}

func withTypeMeta(t *testing.T, status []byte) string {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(status, &m))
	m["kind"], m["apiVersion"], m["metadata"] = "Status", "v1", map[string]any{}
	out, err := json.Marshal(m)
	require.NoError(t, err)
	return string(out)
}

func TestEvictionChecksTheUidAndBudgetsOfPercent(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 4, CPUMilli: 10}))
	b.advance(time.Second)
	pod := b.pods("web")[0].DeepCopy()
	pod.UID = "another"
	require.True(t, apierrors.IsConflict(evict(b, pod)))
	pod.Name = "absent"
	require.True(t, apierrors.IsNotFound(evict(b, pod)))

	half := intstr.FromString("50%")
	_, err := b.Client().PolicyV1().PodDisruptionBudgets("default").Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "half"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &half, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	b.Settle()
	budget, err := b.Client().PolicyV1().PodDisruptionBudgets("default").Get(t.Context(), "half", metav1.GetOptions{})
	require.NoError(t, err)
	require.EqualValues(t, 2, budget.Status.DisruptionsAllowed)
	require.EqualValues(t, 4, budget.Status.ExpectedPods)
	for i, p := range b.pods("web") {
		err := evict(b, p)
		require.Equal(t, i < 2, err == nil, "pod %d: %v", i, err)
	}

	require.NoError(t, b.Protect(t.Context(), "default", "web", intstr.FromInt32(1)))
	b.advance(3 * time.Second)
	require.True(t, apierrors.IsInternalError(evict(b, b.pods("web")[0])), "two budgets are not served")
}

func TestNodeThatLosesItsAgentGoesUnreadyAndItsPodsStay(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.StartAgent("m1", worker("small-a")))
	b.advance(5 * time.Second)
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 1, CPUMilli: 10, NodeSelector: map[string]string{"pool": "small"}}))
	b.advance(time.Second)
	require.Equal(t, 1, b.running("web"))

	b.StopAgent("m1")
	b.advance(4 * time.Second)
	require.True(t, nodeReady(b.node("small-a")))
	b.advance(2 * time.Second)
	n := b.node("small-a")
	require.Equal(t, corev1.ConditionUnknown, n.Status.Conditions[0].Status)
	require.Equal(t, corev1.TaintNodeUnreachable, n.Spec.Taints[0].Key)
	require.Zero(t, b.running("web"))
	require.Len(t, b.pods("web"), 1)

	b.advance(5 * time.Minute)
	require.Len(t, b.pods("web"), 2, "evicted after its toleration, and replaced")

	require.NoError(t, b.Client().CoreV1().Nodes().Delete(t.Context(), "small-a", metav1.DeleteOptions{}))
	b.advance(3 * time.Second)
	require.Len(t, b.pods("web"), 1, "pods of a deleted node are collected")
	require.Nil(t, b.node("small-a"))
}

func TestNodeNameHasAPassword(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	var mu sync.Mutex
	var log []string
	require.NoError(t, b.StartAgent("m1", worker("small-a")))
	b.advance(5 * time.Second)
	_, err := b.Client().CoreV1().Secrets("kube-system").Get(t.Context(), "small-a.node-password.k3s", metav1.GetOptions{})
	require.NoError(t, err)
	b.StopAgent("m1")
	require.NoError(t, b.Client().CoreV1().Nodes().Delete(t.Context(), "small-a", metav1.DeleteOptions{}))

	second := worker("small-a")
	second.Password = "another"
	second.Log = func(line string) { mu.Lock(); defer mu.Unlock(); log = append(log, line) }
	require.NoError(t, b.StartAgent("m2", second))
	b.advance(20 * time.Second)
	require.Nil(t, b.node("small-a"))
	require.Contains(t, strings.Join(log, "\n"), "Node password rejected")

	require.NoError(t, b.Client().CoreV1().Secrets("kube-system").Delete(t.Context(), "small-a.node-password.k3s", metav1.DeleteOptions{}))
	b.advance(10 * time.Second)
	require.True(t, nodeReady(b.node("small-a")), "it keeps trying")

	require.NoError(t, b.Client().CoreV1().Nodes().Delete(t.Context(), "small-a", metav1.DeleteOptions{}))
	b.advance(time.Minute)
	require.Nil(t, b.node("small-a"), "a running agent does not make its node again")

	require.ErrorIs(t, b.StartAgent("m2", second), errAgentRuns)
	require.Error(t, b.StartAgent("m3", Agent{Name: "x"}))
}

func TestAgentsThatNeverRegister(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	stuck := worker("stuck")
	stuck.NeverRegisters = true
	refused := worker("refused")
	refused.Labels = map[string]string{"node-role.kubernetes.io/worker": "true"}
	slow := worker("slow")
	slow.Slower = 10
	for i, a := range []Agent{stuck, refused, slow} {
		require.NoError(t, b.StartAgent(fmt.Sprint(i), a))
	}
	b.advance(15 * time.Second)
	require.Len(t, b.View().Nodes, 1)
	b.advance(time.Minute)
	require.Len(t, b.View().Nodes, 2)
	require.True(t, nodeReady(b.node("slow")))
}

func TestSameSeedSameWorld(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) string {
		b := setup(t, Options{Seed: seed, Jitter: 0.5})
		require.NoError(t, b.StartAgent("m1", worker("small-a")))
		require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 5, CPUMilli: 300}))
		b.advance(10 * time.Second)
		out, err := json.Marshal(b.View())
		require.NoError(t, err)
		return string(out)
	}
	require.Equal(t, run(7), run(7))
	require.NotEqual(t, run(7), run(8))
}

func TestRunMovesByItselfAndUntilWaits(t *testing.T) {
	t.Parallel()
	quick := Delays{Join: time.Millisecond, Ready: time.Millisecond, Schedule: -1, PodStart: -1, PodStop: -1}
	w, err := New(Options{Delays: quick})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	require.NoError(t, w.StartAgent("m1", worker("small-a")))
	require.NoError(t, w.Deploy(ctx, Workload{Name: "web", Replicas: 2, CPUMilli: 10}))
	within, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	require.NoError(t, w.Until(within, func(v View) bool {
		return len(v.Nodes) == 2 && len(v.Pods) == 2 && ready(v.Pods[0]) && ready(v.Pods[1])
	}))
	cancel()
	require.NoError(t, <-done)
	err = w.Until(ctx, func(View) bool { return false })
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, errors.Is(err, errStopped))
}

func TestOwnersTakeTheirPodsAlong(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	require.NoError(t, b.Deploy(t.Context(), Workload{Name: "web", Replicas: 2, CPUMilli: 10}))
	require.NoError(t, b.RunOnEveryNode(t.Context(), Workload{Name: "agent", CPUMilli: 10}))
	b.advance(time.Second)
	require.Len(t, b.View().Pods, 3)
	require.NoError(t, b.Client().AppsV1().Deployments("default").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	require.NoError(t, b.Client().AppsV1().DaemonSets("default").Delete(t.Context(), "agent", metav1.DeleteOptions{}))
	b.advance(2 * time.Second)
	require.Empty(t, b.View().Pods)
	require.Error(t, b.Scale(t.Context(), "default", "web", 1))
	require.Error(t, b.Unprotect(t.Context(), "default", "web"))
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := New(Options{Jitter: 2})
	require.ErrorContains(t, err, "jitter")
	twice := Agent{Name: "s", CPUMilli: 1, MemoryBytes: 1}
	_, err = New(Options{Servers: []Agent{twice, twice}})
	require.ErrorContains(t, err, "server s")
	w, err := New(Options{})
	require.NoError(t, err)
	v, err := w.Client().Discovery().ServerVersion()
	require.NoError(t, err)
	require.Equal(t, w.ServerVersion(), v.GitVersion)
}
