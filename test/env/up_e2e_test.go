//go:build e2e

package env

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// bench is an environment of the tests' own, since they take it down.
type bench struct {
	*Env
	client *kubernetes.Clientset
	docker *client.Client
}

// TestEnvironment runs in steps, each on what the one before left: bringing it
// up takes seconds, and once is enough.
func TestEnvironment(t *testing.T) {
	opts := Options{StateDir: filepath.Join(os.TempDir(), "k3s-autoscaler-env-test"), Log: logWriter{t}}
	t.Cleanup(func() { require.NoError(t, Stop(context.WithoutCancel(t.Context()), opts)) })
	hadPluginDir := isDir(pluginDir)

	started := time.Now()
	e, err := Start(t.Context(), opts)
	require.NoError(t, err)
	if e.RealK3s {
		t.Fatal("this test is of the stand-ins: run it without K3S_AUTOSCALER_E2E_K3S")
	}
	t.Logf("up in %.1f s", time.Since(started).Seconds())
	b := &bench{Env: e}
	b.client, err = e.adminClient()
	require.NoError(t, err)
	b.docker, err = client.NewClientWithOpts(client.WithHost(e.DockerHost), client.WithAPIVersionNegotiation())
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.docker.Close() })

	require.Equal(t, kubernetesVersion, e.ServerVersion)
	t.Run("a second start attaches", func(t *testing.T) {
		again, err := Start(t.Context(), opts)
		require.NoError(t, err)
		require.Equal(t, e.ID, again.ID)
		require.NoError(t, again.Release(t.Context()))
		_, err = Attach(t.Context(), opts)
		require.NoError(t, err, "it has another user")
	})
	t.Run("the product's accounts can do what they should and no more", b.testAccess)
	t.Run("a node is Ready with the allocatable that was asked for", b.testNode)
	t.Run("agents that must not join do not", b.testRefusals)
	t.Run("a cut network makes a node unready and healing restores it", b.testDoors)
	t.Run("an alert reaches the webhook with its token", b.testMonitoring)
	t.Run("a reset leaves an empty cluster", b.testReset)
	t.Run("nothing is left after it is taken down", func(t *testing.T) { b.testDown(t, opts, hadPluginDir) })
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

// agent creates an agent container as the product does, with the token copied
// into it, and starts it.
func (b *bench) agent(t *testing.T, name, image, tokenFile string, args ...string) string {
	t.Helper()
	yes := true
	created, err := b.docker.ContainerCreate(t.Context(),
		&container.Config{
			Image: image, Hostname: name, Cmd: append([]string{"agent", "--node-name", name}, args...),
			Env: []string{"K3S_URL=" + b.APIServerURLForNodes, "K3S_TOKEN_FILE=/etc/rancher/join-token"},
		},
		&container.HostConfig{
			Privileged: true, Init: &yes, Tmpfs: map[string]string{"/run": "", "/var/run": ""},
			Resources: container.Resources{NanoCPUs: 500_000_000, Memory: 256 << 20},
		},
		&network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{b.Network: {}}}, nil, name)
	require.NoError(t, err)
	token, err := os.ReadFile(tokenFile)
	require.NoError(t, err)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "etc/rancher/join-token", Mode: 0o400, Size: int64(len(token)), Typeflag: tar.TypeReg}))
	_, err = w.Write(token)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, b.docker.CopyToContainer(t.Context(), created.ID, "/", &archive, container.CopyToContainerOptions{}))
	require.NoError(t, b.docker.ContainerStart(t.Context(), created.ID, container.StartOptions{}))
	return created.ID
}

func (b *bench) logs(t *testing.T, id string) string {
	t.Helper()
	stream, err := b.docker.ContainerLogs(t.Context(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	require.NoError(t, err)
	defer stream.Close()
	content, err := io.ReadAll(stream)
	require.NoError(t, err)
	return string(content)
}

func (b *bench) remove(t *testing.T, id string) {
	t.Helper()
	require.NoError(t, b.docker.ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true, RemoveVolumes: true}))
}

func (b *bench) ready(t *testing.T, name string) v1.ConditionStatus {
	t.Helper()
	node, err := b.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	require.NoError(t, err)
	for _, condition := range node.Status.Conditions {
		if condition.Type == v1.NodeReady {
			return condition.Status
		}
	}
	return v1.ConditionUnknown
}

func (b *bench) waitReady(t *testing.T, name string, want v1.ConditionStatus) {
	t.Helper()
	require.Eventually(t, func() bool { return b.ready(t, name) == want }, 90*time.Second, 100*time.Millisecond, "node %s is not %s", name, want)
}

func (b *bench) testNode(t *testing.T) {
	before, err := b.docker.VolumeList(t.Context(), volume.ListOptions{})
	require.NoError(t, err)
	info, err := b.docker.Info(t.Context())
	require.NoError(t, err)
	memory := resource.NewQuantity(info.MemTotal, resource.BinarySI)
	cpu := resource.NewQuantity(int64(info.NCPU), resource.DecimalSI)
	reservedCPU, reservedMemory := cpu.DeepCopy(), memory.DeepCopy()
	reservedCPU.Sub(resource.MustParse("500m"))
	reservedMemory.Sub(resource.MustParse("256Mi"))

	started := time.Now()
	id := b.agent(t, "good", b.Image, b.JoinTokenFile,
		"--node-label=pool=burst", "--node-taint=burst=true:NoSchedule", "--kubelet-arg=max-pods=20",
		fmt.Sprintf("--kubelet-arg=system-reserved=cpu=%s,memory=%s", reservedCPU.String(), reservedMemory.String()))
	b.waitReady(t, "good", v1.ConditionTrue)
	t.Logf("container created to node Ready: %.1f s", time.Since(started).Seconds())

	node, err := b.client.CoreV1().Nodes().Get(t.Context(), "good", metav1.GetOptions{})
	require.NoError(t, err)
	require.Zero(t, node.Status.Capacity.Cpu().Cmp(*cpu), "capacity is the host's, whatever the container's limits")
	require.Zero(t, node.Status.Capacity.Memory().Cmp(*memory))
	require.Zero(t, node.Status.Allocatable.Cpu().Cmp(resource.MustParse("500m")))
	require.Zero(t, node.Status.Allocatable.Memory().Cmp(resource.MustParse("256Mi")))
	require.Equal(t, int64(20), node.Status.Allocatable.Pods().Value())
	require.Equal(t, "burst", node.Labels["pool"])
	require.Equal(t, kubernetesVersion, node.Status.NodeInfo.KubeletVersion)
	require.Contains(t, node.Spec.Taints, v1.Taint{Key: "burst", Value: "true", Effect: v1.TaintEffectNoSchedule})
	_, err = b.client.CoreV1().Secrets("kube-system").Get(t.Context(), "good.node-password.k3s", metav1.GetOptions{})
	require.NoError(t, err)

	// A pod that is scheduled runs.
	_, err = b.client.CoreV1().Pods("default").Create(t.Context(), &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod"},
		Spec: v1.PodSpec{
			Containers:  []v1.Container{{Name: "c", Image: "registry.invalid/c:1"}},
			Tolerations: []v1.Toleration{{Operator: v1.TolerationOpExists}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		pod, err := b.client.CoreV1().Pods("default").Get(t.Context(), "pod", metav1.GetOptions{})
		return err == nil && pod.Status.Phase == v1.PodRunning && pod.Spec.NodeName == "good"
	}, 60*time.Second, 100*time.Millisecond)

	// SIGTERM: exit code 0 (of SIGKILL, after a minute, it would be 137), and the
	// Node object stays.
	patience := 60
	require.NoError(t, b.docker.ContainerStop(t.Context(), id, container.StopOptions{Timeout: &patience}))
	inspected, err := b.docker.ContainerInspect(t.Context(), id)
	require.NoError(t, err)
	require.Zero(t, inspected.State.ExitCode)
	_, err = b.client.CoreV1().Nodes().Get(t.Context(), "good", metav1.GetOptions{})
	require.NoError(t, err)

	// Its anonymous volumes go with it, if it is removed with its volumes.
	during, err := b.docker.VolumeList(t.Context(), volume.ListOptions{})
	require.NoError(t, err)
	require.Len(t, during.Volumes, len(before.Volumes)+4)
	b.remove(t, id)
	after, err := b.docker.VolumeList(t.Context(), volume.ListOptions{})
	require.NoError(t, err)
	require.Len(t, after.Volumes, len(before.Volumes))
}

func (b *bench) testRefusals(t *testing.T) {
	cases := map[string]struct {
		image, token string
		args         []string
		log          string
		running      bool
	}{
		"good":             {b.Image, b.JoinTokenFile, nil, "Node password rejected", true}, // the name of the step before
		"wrong-token":      {b.Image, b.WrongTokenFile, nil, "401 Unauthorized", true},
		"role-label":       {b.Image, b.JoinTokenFile, []string{"--node-label=node-role.kubernetes.io/worker=true"}, "node-role.kubernetes.io/worker", true},
		"restricted-label": {b.Image, b.JoinTokenFile, []string{"--node-label=node-restriction.kubernetes.io/a=b"}, "node-restriction.kubernetes.io/a", true},
		"exits":            {b.ImageExits, b.JoinTokenFile, nil, "agent exits at once", false},
		"stuck":            {b.ImageStuck, b.JoinTokenFile, nil, "before joining", true},
	}
	ids := map[string]string{}
	for name, c := range cases {
		ids[name] = b.agent(t, name, c.image, c.token, c.args...)
	}
	slow := b.agent(t, "slow", b.ImageSlow, b.JoinTokenFile)
	for name, c := range cases {
		require.Eventually(t, func() bool { return strings.Contains(b.logs(t, ids[name]), c.log) }, 60*time.Second, 100*time.Millisecond, "%s does not log %q", name, c.log)
		require.Eventually(t, func() bool {
			inspected, err := b.docker.ContainerInspect(t.Context(), ids[name])
			require.NoError(t, err)
			return inspected.State.Running == c.running
		}, 20*time.Second, 100*time.Millisecond, name)
	}
	b.waitReady(t, "slow", v1.ConditionTrue)
	for name, c := range cases {
		if name != "good" {
			require.Empty(t, b.ready(t, name), "%s has registered", name)
		} else {
			// The agent that had the name was stopped a moment ago: its last
			// report counts until the node controller misses the next ones.
			b.waitReady(t, name, v1.ConditionUnknown)
		}
		token, err := os.ReadFile(c.token)
		require.NoError(t, err)
		require.NotContains(t, b.logs(t, ids[name]), strings.TrimSpace(string(token)))
	}

	// Once the secret is gone, the name can be used again.
	require.NoError(t, b.client.CoreV1().Secrets("kube-system").Delete(t.Context(), "good.node-password.k3s", metav1.DeleteOptions{}))
	b.waitReady(t, "good", v1.ConditionTrue)
	for _, id := range ids {
		b.remove(t, id)
	}
	b.remove(t, slow)
}

func (b *bench) testAccess(t *testing.T) {
	for file, want := range map[string]bool{b.ReaderKubeconfig: false, b.ActorKubeconfig: true} {
		config, err := clientcmd.BuildConfigFromFlags("", file)
		require.NoError(t, err)
		user, err := kubernetes.NewForConfig(config)
		require.NoError(t, err)
		allowed := func(group, verb, resource, subresource, namespace string) bool {
			review, err := user.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Group: group, Verb: verb, Resource: resource, Subresource: subresource, Namespace: namespace,
				}},
			}, metav1.CreateOptions{})
			require.NoError(t, err)
			return review.Status.Allowed
		}
		require.True(t, allowed("", "list", "nodes", "", ""))
		require.Equal(t, want, allowed("", "patch", "nodes", "", ""))
		require.Equal(t, want, allowed("", "delete", "nodes", "", ""))
		require.Equal(t, want, allowed("", "create", "pods", "eviction", ""))
		require.Equal(t, want, allowed("", "delete", "secrets", "", "kube-system"))
		require.False(t, allowed("", "delete", "secrets", "", "default"))
		require.False(t, allowed("", "get", "secrets", "", "kube-system"))
		require.False(t, allowed("", "delete", "pods", "", "default"))
	}
	require.NoError(t, b.CutControl(t.Context()))
	config, err := clientcmd.BuildConfigFromFlags("", b.ReaderKubeconfig)
	require.NoError(t, err)
	reader, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	_, err = reader.Discovery().ServerVersion()
	require.Error(t, err, "the control door is closed")
	_, err = b.client.Discovery().ServerVersion()
	require.NoError(t, err, "the admin's is not")
	require.NoError(t, b.HealControl(t.Context()))
	_, err = reader.Discovery().ServerVersion()
	require.NoError(t, err)
}

func (b *bench) testDoors(t *testing.T) {
	b.agent(t, "cut", b.Image, b.JoinTokenFile)
	b.waitReady(t, "cut", v1.ConditionTrue)
	started := time.Now()
	require.NoError(t, b.CutNodes(t.Context()))
	b.waitReady(t, "cut", v1.ConditionUnknown)
	t.Logf("network cut to node unready: %.1f s", time.Since(started).Seconds())
	require.NoError(t, b.HealNodes(t.Context()))
	b.waitReady(t, "cut", v1.ConditionTrue)
}

func (b *bench) testMonitoring(t *testing.T) {
	exporter, err := NewExporter()
	require.NoError(t, err)
	defer func() { require.NoError(t, exporter.Close()) }()
	bodies := make(chan string, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- r.Header.Get("Authorization") + " " + string(body)
	}))
	defer hook.Close()
	dir := t.TempDir()
	rules, token := filepath.Join(dir, "rules.yml"), filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(rules, []byte(`groups:
- name: queue
  rules:
  - {alert: Backlog, expr: queue_depth > 10, labels: {pool: burst}}
`), 0o600))
	require.NoError(t, os.WriteFile(token, []byte("hook-token"), 0o600))
	started := time.Now()
	monitoring, err := b.StartMonitoring(t.Context(), MonitoringOptions{
		RuleFiles: []string{rules}, ScrapeTargets: map[string][]string{"queue": {exporter.Address}}, WebhookURL: hook.URL, TokenFile: token,
	})
	require.NoError(t, err)
	t.Logf("Prometheus and Alertmanager ready in %.1f s", time.Since(started).Seconds())

	for _, status := range []struct {
		name  string
		value float64
	}{{"firing", 50}, {"resolved", 0}} {
		started := time.Now()
		exporter.Set("queue_depth", map[string]string{"queue": "a"}, status.value)
		deadline := time.After(time.Minute)
		for seen := false; !seen; {
			select {
			case body := <-bodies:
				require.True(t, strings.HasPrefix(body, "Bearer hook-token {"), body)
				seen = strings.Contains(body, `"status":"`+status.name+`"`) && strings.Contains(body, `"pool":"burst"`)
			case <-deadline:
				t.Fatalf("no %s alert after a minute", status.name)
			}
		}
		t.Logf("sample to webhook, %s: %.1f s", status.name, time.Since(started).Seconds())
	}
	require.NoError(t, monitoring.Stop())
	require.NoError(t, monitoring.Stop(), "twice")
	require.NoDirExists(t, monitoring.dir)
}

func (b *bench) testReset(t *testing.T) {
	require.NoError(t, b.CutControl(t.Context()))
	b.agent(t, "left", b.Image, b.JoinTokenFile)
	b.waitReady(t, "left", v1.ConditionTrue)
	require.NoError(t, b.Reset(t.Context()))
	nodes, err := b.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, nodes.Items)
	pods, err := b.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, pods.Items)
	secrets, err := b.client.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, secret := range secrets.Items {
		require.NotContains(t, secret.Name, "node-password")
	}
	containers, err := b.docker.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("network", b.Network))})
	require.NoError(t, err)
	require.Empty(t, containers)
}

// testDown takes the environment down with an agent and the monitoring still
// running, which is what a test that failed leaves.
func (b *bench) testDown(t *testing.T, opts Options, hadPluginDir bool) {
	b.agent(t, "last", b.Image, b.JoinTokenFile)
	b.waitReady(t, "last", v1.ConditionTrue)
	_, err := b.StartMonitoring(t.Context(), MonitoringOptions{WebhookURL: "http://127.0.0.1:1"})
	require.NoError(t, err)
	_, err = net.InterfaceByName(bridgeName(b.ID))
	require.NoError(t, err)
	p := b.processes()
	running, err := p.list()
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(running), 7)

	started := time.Now()
	require.NoError(t, b.Release(t.Context()), "the last user")
	t.Logf("down in %.1f s", time.Since(started).Seconds())

	requireNothingLeft(t, b.Env, running)
	if b.PrivateEngine {
		require.Equal(t, hadPluginDir, isDir(pluginDir))
	} else {
		for _, filter := range []filters.Args{filters.NewArgs(filters.Arg("label", label+"="+b.ID))} {
			containers, err := b.docker.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filter})
			require.NoError(t, err)
			require.Empty(t, containers)
			networks, err := b.docker.NetworkList(t.Context(), network.ListOptions{Filters: filter})
			require.NoError(t, err)
			require.Empty(t, networks)
		}
	}
	_, err = Attach(t.Context(), opts)
	require.Error(t, err)
}

// requireNothingLeft looks for processes, files, mounts and interfaces.
func requireNothingLeft(t *testing.T, e *Env, running []process) {
	t.Helper()
	for _, one := range running {
		require.False(t, one.alive(), one.Name)
	}
	require.Empty(t, e.processes().marked(), "no child either")
	require.NoDirExists(t, e.StateDir)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), e.StateDir)
	_, err = net.InterfaceByName(bridgeName(e.ID))
	require.Error(t, err, "the bridge is still there")
}

func TestAnEngineThatWasKilledLeavesNothingEither(t *testing.T) {
	opts := Options{StateDir: filepath.Join(os.TempDir(), "k3s-autoscaler-crash-test"), Log: logWriter{t}}
	t.Cleanup(func() { require.NoError(t, Stop(context.WithoutCancel(t.Context()), opts)) })
	e, err := Start(t.Context(), opts)
	require.NoError(t, err)
	if !e.PrivateEngine {
		t.Logf("the engine at %s is not ours to kill; only an ordinary end was tested", e.DockerHost)
		require.NoError(t, e.Stop(t.Context()))
		return
	}
	b := &bench{Env: e}
	b.client, err = e.adminClient()
	require.NoError(t, err)
	b.docker, err = client.NewClientWithOpts(client.WithHost(e.DockerHost), client.WithAPIVersionNegotiation())
	require.NoError(t, err)
	defer b.docker.Close()
	b.agent(t, "orphan", b.Image, b.JoinTokenFile)
	b.waitReady(t, "orphan", v1.ConditionTrue)
	running, err := e.processes().list()
	require.NoError(t, err)
	for _, one := range running {
		if one.Name == "dockerd" {
			require.NoError(t, one.end(0))
		}
	}
	_, err = Attach(t.Context(), opts)
	require.ErrorContains(t, err, "dockerd of the environment")
	require.NoError(t, e.Stop(t.Context()))
	requireNothingLeft(t, e, running)
}
