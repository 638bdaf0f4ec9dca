//go:build e2e

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/providertest"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

// realParts is an engine and a control plane.
type realParts struct {
	*env.Env
	engine *client.Client
	admin  kubernetes.Interface
	token  string
}

var startParts = sync.OnceValues(func() (*realParts, error) {
	e, err := env.Start(context.Background(), env.Options{})
	if err != nil {
		return nil, err
	}
	r := &realParts{Env: e}
	if r.engine, err = client.NewClientWithOpts(client.WithHost(e.DockerHost), client.WithAPIVersionNegotiation()); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", e.AdminKubeconfig)
	if err != nil {
		return nil, err
	}
	if r.admin, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(e.JoinTokenFile)
	r.token = strings.TrimSpace(string(token))
	return r, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if r, err := startParts(); err == nil {
		_ = r.Release(context.Background())
	}
	os.Exit(code)
}

func parts(t *testing.T) *realParts {
	t.Helper()
	r, err := startParts()
	require.NoError(t, err)
	return r
}

func (r *realParts) options(cluster string) Options {
	return Options{
		Cluster: cluster, ServerURL: r.APIServerURLForNodes, TokenFile: r.JoinTokenFile,
		Hosts: []Host{{Address: r.DockerHost}}, Network: r.Network, Image: r.Image,
		ContainerLabels: map[string]string{"dev.k3s-autoscaler.testenv.user": "providertest"},
	}
}

func (r *realParts) provider(t *testing.T, cluster string, change func(*Options)) *Provider {
	t.Helper()
	o := r.options(cluster)
	if change != nil {
		change(&o)
	}
	for i := range o.Hosts {
		// Machines of other tests may be on the engine: there has to be room beside them.
		o.Hosts[i].CPUMilli, o.Hosts[i].MemoryBytes = 64_000, 1<<40
	}
	return newProvider(t, o)
}

// forget deletes what the machines of a test have left in Kubernetes.
func (r *realParts) forget(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	require.NoError(t, r.admin.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "providertest"}))
	secrets, err := r.admin.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	for _, s := range secrets.Items {
		if strings.HasPrefix(s.Name, "pt-") && strings.HasSuffix(s.Name, ".node-password.k3s") {
			err := r.admin.CoreV1().Secrets(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})
			require.True(t, err == nil || apierrors.IsNotFound(err), "%v", err)
		}
	}
}

func (r *realParts) readyNode(ctx context.Context, t *testing.T, name string) *corev1.Node {
	t.Helper()
	var node *corev1.Node
	require.Eventually(t, func() bool {
		var err error
		if node, err = r.admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); err != nil {
			return false
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}, 2*time.Minute, 50*time.Millisecond, "node %s does not become Ready", name)
	return node
}

func (r *realParts) rawLog(t *testing.T, name string) string {
	t.Helper()
	stream, err := r.engine.ContainerLogs(t.Context(), name, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	require.NoError(t, err)
	defer stream.Close()
	var b bytes.Buffer
	_, err = stdcopy.StdCopy(&b, &b, stream)
	require.NoError(t, err)
	return b.String()
}

func (r *realParts) inspect(t *testing.T, name string) container.InspectResponse {
	t.Helper()
	c, err := r.engine.ContainerInspect(t.Context(), name)
	require.NoError(t, err)
	return c
}

func TestConformance(t *testing.T) {
	r := parts(t)
	providertest.Exercise(t, func(t *testing.T) providertest.Subject {
		r.forget(t)
		t.Cleanup(func() { r.forget(t) })
		known := map[string][]string{}
		return providertest.Subject{
			Provider: func(t *testing.T, cluster string) provider.NodeProvider { return r.provider(t, cluster, nil) },
			Clusters: [2]string{"providertest", "providertest-other"},
			CPUMilli: 300, MemoryBytes: 300 << 20, ServerVersion: r.ServerVersion,
			Allocatable: func(ctx context.Context, t *testing.T, node string) (int64, int64, int64) {
				a := r.readyNode(ctx, t, node).Status.Allocatable
				return a.Cpu().MilliValue(), a.Memory().Value(), a.Pods().Value()
			},
			Exits: func(t *testing.T, cluster string) provider.NodeProvider {
				return r.provider(t, cluster, func(o *Options) { o.Image = r.ImageExits })
			},
			Complaint: "this image fails on purpose",
			Foreign: func(t *testing.T, name string) func() bool {
				made, err := r.engine.ContainerCreate(t.Context(), &container.Config{Image: r.Image, Labels: map[string]string{"theirs": "yes"}}, &container.HostConfig{NetworkMode: "none"}, nil, nil, name)
				require.NoError(t, err)
				t.Cleanup(func() {
					require.NoError(t, r.engine.ContainerRemove(context.Background(), made.ID, container.RemoveOptions{RemoveVolumes: true}))
				})
				before := r.inspect(t, name)
				return func() bool {
					now := r.inspect(t, name)
					return now.ID == made.ID && *now.State == *before.State
				}
			},
			Volumes: func(t *testing.T, name string) int {
				if c, err := r.engine.ContainerInspect(t.Context(), name); err == nil {
					for _, m := range c.Mounts {
						if m.Type == "volume" {
							known[name] = append(known[name], m.Name)
						}
					}
				}
				there := 0
				for _, v := range known[name] {
					if _, err := r.engine.VolumeInspect(t.Context(), v); err == nil {
						there++
					}
				}
				return there
			},
			Interrupt: func(t *testing.T, _ string, s provider.Spec) {
				c := r.inspect(t, s.Name)
				require.NoError(t, r.engine.ContainerRemove(t.Context(), c.ID, container.RemoveOptions{RemoveVolumes: true}))
				_, err := r.engine.ContainerCreate(t.Context(), c.Config, c.HostConfig, nil, nil, s.Name)
				require.NoError(t, err)
			},
			Secrets: []string{r.token, secretPart(r.token)},
			Inspect: func(t *testing.T, name string) string {
				all, err := json.Marshal(r.inspect(t, name))
				require.NoError(t, err)
				return string(all)
			},
			Leaks: func(t *testing.T, cluster string) (provider.NodeProvider, func(string) string) {
				// An argument that the agent refuses is quoted in its log.
				p := r.provider(t, cluster, func(o *Options) { o.ExtraArgs = []string{"--node-label=" + r.token} })
				return p, func(name string) string { return r.rawLog(t, name) }
			},
		}
	})
}

func secretPart(token string) string { return token[strings.LastIndex(token, ":")+1:] }

func e2eSpec(r *realParts, name string) provider.Spec {
	return provider.Spec{
		Name: "pt-" + name, Cluster: "providertest", Pool: "pt", ClaimID: name, Epoch: "e", CPUMilli: 300, MemoryBytes: 300 << 20,
		ServerVersion: r.ServerVersion, Labels: map[string]string{"providertest": name},
	}
}

func deleteAfter(t *testing.T, r *realParts, p *Provider, name string) {
	t.Helper()
	t.Cleanup(func() {
		_ = p.Delete(context.Background(), name)
		r.forget(t)
	})
}

func TestEngineShowsWhatWasAskedForAndTheTokenIsAFileForRootAlone(t *testing.T) {
	r := parts(t)
	p, s := r.provider(t, "providertest", func(o *Options) { o.Image = ImageAuto; o.Repository, _, _ = strings.Cut(r.Image, ":") }), e2eSpec(r, "shown")
	deleteAfter(t, r, p, s.Name)
	m, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, r.Image, m.Image, "auto is the server's version")

	c := r.inspect(t, s.Name)
	require.True(t, c.HostConfig.Privileged)
	require.True(t, *c.HostConfig.Init)
	require.Equal(t, container.RestartPolicyDisabled, c.HostConfig.RestartPolicy.Name)
	require.EqualValues(t, 300_000_000, c.HostConfig.NanoCPUs)
	require.EqualValues(t, 300<<20+AgentMemoryBytes, c.HostConfig.Memory)
	require.Equal(t, c.HostConfig.Memory, c.HostConfig.MemorySwap)
	require.Equal(t, s.Name, c.Config.Hostname)
	require.Contains(t, c.HostConfig.Tmpfs, "/run")
	require.Contains(t, c.NetworkSettings.Networks, r.Network)

	content, _, err := r.engine.CopyFromContainer(t.Context(), c.ID, tokenPath)
	require.NoError(t, err)
	defer content.Close()
	archive := tar.NewReader(content)
	h, err := archive.Next()
	require.NoError(t, err)
	require.EqualValues(t, 0o400, h.Mode&0o777)
	require.Zero(t, h.Uid)
	got, err := io.ReadAll(archive)
	require.NoError(t, err)
	require.Equal(t, r.token, string(got))
}

func TestRotatedTokenReachesTheNextMachineWithoutARestart(t *testing.T) {
	r := parts(t)
	file := writeToken(t, "of-yesterday")
	p, s := r.provider(t, "providertest", func(o *Options) { o.TokenFile = file }), e2eSpec(r, "rotated")
	deleteAfter(t, r, p, s.Name)
	m, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(r.token), 0o600))
	_, err = p.Create(t.Context(), s)
	require.NoError(t, err)
	token, err := p.hosts[0].machineToken(t.Context(), m.ID)
	require.NoError(t, err)
	require.Equal(t, r.token, token, "a machine that waits for its start gets the present token")
	require.NoError(t, p.Start(t.Context(), s.Name))
	r.readyNode(t.Context(), t, s.Name)
}

func TestWrongTokenStaysUpAndItsLogSaysWhyWithoutTheToken(t *testing.T) {
	r := parts(t)
	p, s := r.provider(t, "providertest", func(o *Options) { o.TokenFile = r.WrongTokenFile }), e2eSpec(r, "wrong")
	deleteAfter(t, r, p, s.Name)
	_, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), s.Name))
	require.Eventually(t, func() bool {
		log, err := p.Logs(t.Context(), s.Name, 10_000)
		return err == nil && strings.Contains(log, "401 Unauthorized")
	}, 30*time.Second, 50*time.Millisecond)
	m, err := p.Get(t.Context(), s.Name)
	require.NoError(t, err)
	require.Equal(t, provider.Running, m.State)
}

func TestMistakesAreExplainedByARealEngine(t *testing.T) {
	r := parts(t)
	s := e2eSpec(r, "mistake")
	reg := prometheus.NewRegistry()

	p := r.provider(t, "providertest", func(o *Options) { o.Network, o.Registerer = "no-such-network", reg })
	deleteAfter(t, r, p, s.Name)
	_, err := p.Create(t.Context(), s)
	if err == nil { // older engines look for the network at the start
		err = p.Start(t.Context(), s.Name)
	}
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "network no-such-network does not exist")
	require.NotErrorIs(t, err, provider.ErrNotFound)
	require.Positive(t, testutil.CollectAndCount(reg, "autoscaler_docker_api_errors_total"))
	_ = p.Delete(t.Context(), s.Name)

	p = r.provider(t, "providertest", func(o *Options) {
		o.Image, o.PullTimeout = "localhost:1/k3s:v1.30.0-k3s1", 10*time.Second
		o.AllowUnversionedImage = true
	})
	s.ServerVersion = "v1.30.0+k3s1"
	_, err = p.Create(t.Context(), s)
	require.ErrorIs(t, err, provider.ErrImage)
	require.ErrorContains(t, err, "docker pull localhost:1/k3s:v1.30.0-k3s1")
	require.NotErrorIs(t, err, provider.ErrRefused)
	_, err = p.Get(t.Context(), s.Name)
	require.ErrorIs(t, err, provider.ErrNotFound, "nothing was made")

	p = r.provider(t, "providertest", nil)
	big := e2eSpec(r, "mistake")
	big.MemoryBytes = 1 << 50
	_, err = p.Create(t.Context(), big)
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "of memory, less than the 1073741824Mi of the machine")
}

func TestMachineThatEndedByItselfStaysExitedAcrossEverything(t *testing.T) {
	r := parts(t)
	p, s := r.provider(t, "providertest", nil), e2eSpec(r, "killed")
	deleteAfter(t, r, p, s.Name)
	_, err := p.Create(t.Context(), s)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), s.Name))
	require.NoError(t, r.engine.ContainerKill(t.Context(), s.Name, "KILL"))
	require.Eventually(t, func() bool {
		m, err := p.Get(t.Context(), s.Name)
		return err == nil && m.State == provider.Exited && m.ExitCode == 137
	}, 30*time.Second, 20*time.Millisecond)
	started := r.inspect(t, s.Name).State.StartedAt
	require.ErrorIs(t, p.Start(t.Context(), s.Name), provider.ErrExited)
	require.Equal(t, started, r.inspect(t, s.Name).State.StartedAt)
}
