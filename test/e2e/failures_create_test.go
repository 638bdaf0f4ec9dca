//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env/faults"
)

// creating selects the call that makes a container.
func creating(f faults.Fault) faults.Fault {
	f.Method, f.Path = http.MethodPost, "^/containers/create$"
	return f
}

// What goes wrong until a node is Ready: each in a pool of its own, and then the
// pool has its node after all.
func TestNodesThatDoNotComeAtOnce(t *testing.T) {
	cases := []struct {
		name   string
		pool   pool
		inject func(t *testing.T, e *faults.Docker) (undo func())
		code   string // of the failure; empty: the same claim comes to its end
		stage  string
		log    string // part of the failure's
		metric string
		lasts  bool // the cause is in the configuration: no node ever comes
	}{
		{name: "refused", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(creating(faults.Fault{Status: 500, Message: "driver failed programming external connectivity", Times: 2}))
			return nil
		}, metric: `autoscaler_docker_api_errors_total{kind="other",operation="create"}`},
		{name: "rejected", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(creating(faults.Fault{Status: 400, Message: "invalid HostConfig", Times: 1}))
			return nil
		}, code: "ProviderRefused", stage: "claimed", metric: `autoscaler_docker_api_errors_total{kind="refused",operation="create"}`},
		{name: "image", pool: pool{Docker: "          pull: never\n"}, inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(faults.Fault{Method: http.MethodGet, Path: "^/images/.*/json$", Status: 404, Message: "No such image", Times: 1})
			return nil
		}, code: "ImageUnavailable", stage: "claimed"},
		{name: "name", inject: takeName, code: "NameTaken", stage: "claimed"},
		{name: "space", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(creating(faults.Fault{Status: 500, Message: "mkdir /var/lib/docker/overlay2/x: no space left on device", Times: 1}))
			return nil
		}, code: "NoSpace", stage: "claimed", metric: `autoscaler_docker_api_errors_total{kind="no_space",operation="create"}`},
		{name: "lost-create", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(creating(faults.Fault{Cut: faults.CutAfter, Times: 1}))
			return nil
		}},
		{name: "lost-start", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(faults.Fault{Method: http.MethodPost, Path: "/start$", Cut: faults.CutAfter, Times: 1})
			return nil
		}},
		{name: "cut-start", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(faults.Fault{Method: http.MethodPost, Path: "/start$", Cut: faults.CutBefore, Times: 2})
			return nil
		}},
		{name: "slow", inject: func(_ *testing.T, e *faults.Docker) func() {
			e.Inject(creating(faults.Fault{Delay: 3 * time.Second, Times: 1}))
			return nil
		}},
		{name: "exits", pool: pool{Image: world.ImageExits}, code: "MachineExited", stage: "created", log: "fails on purpose", lasts: true},
		{name: "stuck", pool: pool{Image: world.ImageStuck, Register: "3s"}, code: "NotRegistered", stage: "created", log: "Waiting", lasts: true},
		{name: "label", pool: pool{Register: "5s", Docker: "          extra_args: [--node-label=node-restriction.kubernetes.io/team=a]\n"},
			code: "LabelRefused", stage: "created", log: "node-restriction", lasts: true},
		{name: "unready", pool: pool{Register: "5s"}, inject: neverReady, code: "NotReady", stage: "registered"},
	}
	var pools []pool
	for _, c := range cases {
		c.pool.Name, c.pool.CPU, c.pool.Memory = c.name, "100m", "128Mi"
		pools = append(pools, c.pool)
	}
	f := newFaulty(t, "e2e-fc", pools...)
	f.begin()
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				var undo func()
				if c.inject != nil {
					undo = c.inject(t, f.engines[c.name])
				}
				f.keeps(t, c.name, 1)
				if c.code != "" {
					failed := f.failed(t, c.name, 60*time.Second)
					t.Logf("%.1f s: %s: %s", time.Since(began).Seconds(), failed.Failure.Reason.Code, failed.Failure.Reason.Message)
					require.Equal(t, c.code, failed.Failure.Reason.Code, "%s\n%s", failed.Failure.Reason.Message, failed.Failure.Log)
					require.Equal(t, c.stage, failed.Failure.Stage)
					require.Contains(t, failed.Failure.Log, c.log)
					f.counts(t, `autoscaler_node_failures_total{reason="`+c.code+`"}`)
				}
				if undo != nil {
					undo()
				}
				if c.lasts {
					f.keeps(t, c.name, 0)
					return
				}
				ready := f.readyOf(t, c.name, 60*time.Second)
				t.Logf("%.1f s: node %s is Ready", time.Since(began).Seconds(), ready.Node)
				if c.metric != "" {
					f.counts(t, c.metric)
				}
				claims := claimsOf(f, c.name)
				if c.code == "" {
					require.Len(t, claims, 1, "it is tried again inside the claim")
					return
				}
				require.NotEqual(t, claims[0].Node, ready.Node, "another claim has another name")
			})
		}
	})
	f.leavesNothing()
}

// takeName lets somebody else have the name of a container just before ours is
// made. The stranger must be left alone.
func takeName(t *testing.T, e *faults.Docker) func() {
	ctx := context.Background()
	var stranger string
	e.Inject(creating(faults.Fault{Times: 1, Before: func(r *http.Request) {
		c, err := engine.ContainerCreate(ctx, &container.Config{Image: world.Image, Labels: map[string]string{"owner": "somebody else"}}, nil, nil, nil, r.URL.Query().Get("name"))
		if err != nil {
			t.Errorf("take the name: %v", err)
		}
		stranger = c.ID
	}}))
	return func() {
		in, err := engine.ContainerInspect(ctx, stranger)
		require.NoError(t, err, "the stranger is left alone")
		require.Equal(t, "created", in.State.Status)
		require.NoError(t, engine.ContainerRemove(ctx, stranger, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	}
}

// neverReady makes the API server refuse that a node of the pool "unready" is Ready.
func neverReady(t *testing.T, _ *faults.Docker) func() {
	ctx := context.Background()
	name := "e2e-never-ready"
	policies, bindings := admin.AdmissionregistrationV1().ValidatingAdmissionPolicies(), admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	remove := func() {
		_ = bindings.Delete(ctx, name, metav1.DeleteOptions{})
		_ = policies.Delete(ctx, name, metav1.DeleteOptions{})
	}
	remove()
	fail := admissionv1.Fail
	_, err := policies.Create(ctx, &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		FailurePolicy: &fail,
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"nodes", "nodes/status"}},
		}}}},
		Validations: []admissionv1.Validation{{
			Expression: `!object.metadata.name.startsWith('unready-') || !has(object.status.conditions) || !object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')`,
			Message:    "this node is never Ready",
		}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(remove)
	_, err = bindings.Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	time.Sleep(2 * time.Second) // until the API server goes by it
	return remove
}

// A token that the server refuses is told from a node that does not come for other
// reasons, and one that was rotated is taken up without a restart.
func TestATokenThatIsRefusedIsToldAndARotatedOneIsTakenUp(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	wrong, err := os.ReadFile(world.WrongTokenFile)
	require.NoError(t, err)
	right, err := os.ReadFile(world.JoinTokenFile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(token, wrong, 0o600))
	f := newFaulty(t, "e2e-ft", pool{Name: "token", Register: "4s", TokenFile: token})
	f.begin()
	f.keeps(t, "token", 1)
	failed := f.failed(t, "token", 60*time.Second)
	require.Equal(t, "TokenRejected", failed.Failure.Reason.Code, "%s\n%s", failed.Failure.Reason.Message, failed.Failure.Log)
	require.Contains(t, failed.Failure.Reason.Message, "node-token")
	require.NotContains(t, fmt.Sprint(failed), string(wrong))
	require.NoError(t, os.WriteFile(token, right, 0o600))
	f.readyOf(t, "token", 60*time.Second)
	f.leavesNothing()
}

// A Docker engine that is down while five nodes are asked for costs no attempt
// limit, no dead letter and no claim: the nodes come when it is back.
func TestAnEngineThatIsDownForAMinuteDelaysAScaleUpAndLosesNothing(t *testing.T) {
	const nodes, outage = 5, time.Minute
	f := newFaulty(t, "e2e-fd", pool{Name: "down", Max: nodes, CPU: "100m", Memory: "128Mi"})
	f.begin()
	require.NoError(t, f.engines["down"].Down())
	down := time.Now()
	f.keeps(t, "down", nodes)
	eventually(t, 30*time.Second, "five nodes are claimed", func() error {
		if n := len(claimsOf(f, "down")); n < nodes {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	never(t, outage-time.Since(down), "a claim fails", func() bool {
		return len(told(f, func(events.NodeFailed) bool { return true })) > 0
	})
	f.counts(t, `autoscaler_docker_api_errors_total{kind="unreachable",operation="inspect"}`)
	require.NoError(t, f.engines["down"].Up())
	up := time.Now()
	eventually(t, 90*time.Second, "five nodes are Ready", readyNodes(t, f.product, nodes))
	t.Logf("the engine was away for %.0f s; all nodes are Ready %.1f s after it is back", up.Sub(down).Seconds(), time.Since(up).Seconds())
	require.Len(t, claimsOf(f, "down"), nodes, "no claim was given up")
	require.Empty(t, told(f, func(events.NodeFailed) bool { return true }))
	f.leavesNothing()
}
