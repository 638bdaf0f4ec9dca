package doctor

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestAllChecksRunAndTheirResultsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	say := func(rs ...Result) func(context.Context) []Result { return func(context.Context) []Result { return rs } }
	r := Run(t.Context(), []Check{
		{Name: "bus", Target: "here", Run: say(Result{Status: OK, Detail: "a"})},
		{Name: "hangs", Limit: 20 * time.Millisecond, Run: func(ctx context.Context) []Result { <-ctx.Done(); <-t.Context().Done(); return nil }},
		{Name: "mute", Run: say()},
		{Name: "pool", Run: say(Result{Status: Warning, Detail: "b", Target: "own"}, Result{Status: Skipped, Detail: "c"})},
		{Name: "fails", Run: func(context.Context) []Result { return Failed(errors.New("d"), "e") }},
	})
	require.Equal(t, 3, r.Problems)
	require.Equal(t, 1, r.Warnings)
	require.Len(t, r.Results, 6)
	require.Equal(t, Result{Check: "bus", Target: "here", Status: OK, Detail: "a"}, r.Results[0])
	require.Equal(t, "no answer within 20ms", r.Results[1].Detail)
	require.Equal(t, "the check said nothing", r.Results[2].Detail)
	require.Equal(t, "own", r.Results[3].Target)
	require.Equal(t, "e", r.Results[5].Fix)
}

func TestTheRightsAreThoseThatTheManifestsGrant(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../../deploy/kubernetes/rbac.yaml")
	require.NoError(t, err)
	defer f.Close()
	granted := map[string][]Right{}
	for d := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		var role rbacv1.ClusterRole
		if err := d.Decode(&role); err != nil {
			break
		}
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted[role.Name] = append(granted[role.Name], rights(verb, rule.APIGroups[0], role.Namespace, resource)...)
				}
			}
		}
	}
	require.ElementsMatch(t, granted["k3s-autoscaler-reader"], ReaderRights())
	require.ElementsMatch(t, slices.Concat(granted["k3s-autoscaler-actor"], granted["k3s-autoscaler-node-passwords"]), ActorRights())
}

func TestAnIdentityThatLacksARightIsToldWhich(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset()
	client.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		r.Status.Allowed = r.Spec.ResourceAttributes.Subresource == "" && r.Spec.ResourceAttributes.Namespace == ""
		return true, r, nil
	})
	require.Equal(t, OK, APIServer(t.Context(), client, "kubeconfig", ReaderRights())[0].Status)
	r := APIServer(t.Context(), client, "actor_kubeconfig", ActorRights())[0]
	require.Equal(t, Problem, r.Status)
	require.Equal(t, "actor_kubeconfig may not: create pods/eviction, delete secrets in kube-system", r.Detail)
	require.Contains(t, r.Fix, "rbac.yaml")
}

func TestTheServersClockIsComparedWithinTheSecondThatItTells(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		server time.Duration
		want   Status
		says   string
	}{
		{"it agrees", 0, OK, "agrees"},
		{"a little ahead", 4 * time.Second, OK, "agrees"},
		{"ahead", time.Minute, Problem, "1m0s ahead of"},
		{"behind", -time.Minute, Problem, "behind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", t0.Add(c.server).Format(http.TimeFormat))
			}))
			t.Cleanup(s.Close)
			r := ServerClock(t.Context(), s.Client(), s.URL, clocktesting.NewFakePassiveClock(t0))
			require.Equal(t, c.want, r[0].Status)
			require.Contains(t, r[0].Detail, c.says)
		})
	}
}

func node(name string, claim string, created, beat time.Time, status corev1.ConditionStatus) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(created)}}
	if claim != "" {
		n.Labels = map[string]string{events.LabelClaim: claim}
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(beat)}}
	return n
}

func TestTheClocksOfNodesAreComparedByTheirHeartbeats(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset(node("right", "", t0, t0.Add(-4*time.Minute), corev1.ConditionTrue), node("away", "", t0, t0.Add(-time.Hour), corev1.ConditionUnknown))
	r := NodeClocks(t.Context(), client, clocktesting.NewFakePassiveClock(t0))
	require.Equal(t, []Result{{Status: OK, Detail: "the heartbeats of 1 Ready nodes agree with the clock here"}}, r)
	client = fake.NewClientset(node("ahead", "", t0, t0.Add(time.Minute), corev1.ConditionTrue), node("behind", "", t0, t0.Add(-time.Hour), corev1.ConditionTrue))
	r = NodeClocks(t.Context(), client, clocktesting.NewFakePassiveClock(t0))
	require.Len(t, r, 2)
	require.Contains(t, r[0].Detail, "node ahead is 1m0s ahead of")
	require.Contains(t, r[1].Detail, "node behind is 54m0s behind")
}

// network is a try on nodes whose pods become what phases say, by role.
func network(t *testing.T, phases map[string]corev1.PodPhase, nodes ...runtime.Object) (Network, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(nodes...)
	client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
		p.Status.Phase, p.Status.PodIP = phases[p.Spec.Containers[0].Name], "10.42.0.7"
		return false, nil, nil
	})
	return Network{Client: client, Poll: time.Millisecond, ID: "x"}, client
}

func TestThePodNetworkIsTriedBetweenTheOldestNodeAndTheNewestOfOurs(t *testing.T) {
	t.Parallel()
	nodes := []runtime.Object{node("server-0", "", t0, t0, corev1.ConditionTrue), node("burst-a", "c1", t0.Add(time.Hour), t0, corev1.ConditionTrue),
		node("burst-b", "c2", t0.Add(2*time.Hour), t0, corev1.ConditionTrue), node("burst-c", "c3", t0.Add(3*time.Hour), t0, corev1.ConditionFalse)}
	for _, c := range []struct {
		name   string
		phases map[string]corev1.PodPhase
		want   Status
		says   string
	}{
		{"it works", map[string]corev1.PodPhase{"server": corev1.PodRunning, "client": corev1.PodSucceeded}, OK, "a pod on server-0 reaches one on burst-b"},
		{"it does not", map[string]corev1.PodPhase{"server": corev1.PodRunning, "client": corev1.PodFailed}, Problem, "does not reach one on burst-b (10.42.0.7)"},
		{"the server fails", map[string]corev1.PodPhase{"server": corev1.PodFailed}, Problem, "pod on burst-b: it failed"},
		{"the client waits", map[string]corev1.PodPhase{"server": corev1.PodRunning, "client": corev1.PodPending}, Problem, "does not come to its end in time, it is pending"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, client := network(t, c.phases, nodes...)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			r := n.Run(ctx)
			require.Len(t, r, 1)
			require.Equal(t, c.want, r[0].Status, r[0].Detail)
			require.Contains(t, r[0].Detail, c.says)
			left, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			require.Empty(t, left.Items, "both pods are removed")
		})
	}
}

func TestWithoutTwoNodesThePodNetworkIsNotTried(t *testing.T) {
	t.Parallel()
	n, _ := network(t, nil, node("server-0", "", t0, t0, corev1.ConditionTrue))
	require.Equal(t, Skipped, n.Run(t.Context())[0].Status)
	n, _ = network(t, nil, node("burst-a", "c", t0, t0, corev1.ConditionTrue))
	r := n.Run(t.Context())[0]
	require.Equal(t, Skipped, r.Status)
	require.Contains(t, r.Detail, "no second node")
}
