package app

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/docker"
)

// World is how the roles reach what lies outside. The real one is made of
// kubeconfigs and Docker engines; the demo brings a simulated one, which is all
// that is simulated there.
type World interface {
	// Reader returns clients that are only ever used to read; metrics may be nil.
	Reader(c config.Cluster) (kubernetes.Interface, metrics.Interface, error)
	// Actor returns the client that cordons, evicts, deletes, and writes Kubernetes
	// Events. It is asked for by provisioning, draining and announcing alone, never
	// in a dry run.
	Actor(c config.Cluster) (kubernetes.Interface, error)
	// Provider returns what creates the machines of a pool. It is asked for by
	// provisioning alone, never in a dry run. It may keep what has to survive it in
	// notes.
	Provider(c config.Cluster, p config.Pool, notes *bus.Notes) (provider.NodeProvider, error)
}

// realWorld reaches API servers by kubeconfig and Docker engines by address.
type realWorld struct {
	log *slog.Logger
	reg prometheus.Registerer
	// engines are shared by all pools.
	engines *docker.Engines
}

func (realWorld) Reader(c config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	rc, err := kube.Load(kubeconfigPath(c.Kubeconfig))
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	client, err := kube.NewClient(rc)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	m, err := kube.NewMetricsClient(rc)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	return client, m, nil
}

func (realWorld) Actor(c config.Cluster) (kubernetes.Interface, error) {
	rc, err := kube.Load(kubeconfigPath(c.ActorKubeconfig))
	if err != nil {
		return nil, fmt.Errorf("cluster %s: actor: %w", c.Name, err)
	}
	client, err := kube.NewClient(rc)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: actor: %w", c.Name, err)
	}
	return client, nil
}

// kubeconfigPath turns the configuration's word for the pod's own service
// account into what package kube takes for it.
func kubeconfigPath(path string) string {
	if path == config.InCluster {
		return ""
	}
	return path
}

func (w realWorld) Provider(c config.Cluster, p config.Pool, notes *bus.Notes) (provider.NodeProvider, error) {
	switch p.Provider {
	case config.ProviderDocker:
		o := docker.Options{
			Cluster: c.Name, ServerURL: c.ServerURL, TokenFile: c.TokenFile,
			Logger: w.log.With("pool", p.Name), Registerer: w.reg,
		}
		if d := p.Docker; d != nil {
			o.Image, o.Repository, o.Network = d.Image, d.ImageRepository, d.Network
			o.Placement, o.FormerPools, o.Engines = docker.Placement(d.Placement), p.RenamedFrom, w.engines
			o.RegistriesFile, o.GPUs = d.RegistriesFile, d.GPUs
			o.ExtraArgs, o.StopGrace = d.ExtraArgs, d.StopTimeout.Std()
			o.Env, o.Mounts, o.Pull = d.Env, d.Mounts, docker.Pull(d.Pull)
			for _, h := range d.Engines() {
				o.Hosts = append(o.Hosts, dockerHost(h))
			}
		}
		dp, err := docker.New(o)
		if err != nil {
			return nil, fmt.Errorf("cluster %s, pool %s: %w", c.Name, p.Name, err)
		}
		return dp, nil
	case config.ProviderExternalGRPC:
		gp, err := w.externalGRPC(c, p, notes)
		if err != nil {
			return nil, err // not a nil of a type
		}
		return gp, nil
	default:
		return nil, fmt.Errorf("cluster %s, pool %s: provider %q exists in the demo only", c.Name, p.Name, p.Provider)
	}
}

func dockerHost(h config.DockerHost) docker.Host {
	out := docker.Host{Name: h.Name, Address: h.Host, MaxNodes: h.MaxNodes, MaxParallel: h.MaxParallel}
	if h.TLS != nil {
		out.TLS = docker.TLS{CAFile: h.TLS.CAFile, CertFile: h.TLS.CertFile, KeyFile: h.TLS.KeyFile}
	}
	if h.SSH != nil {
		out.SSH = docker.SSH{KeyFile: h.SSH.KeyFile, KnownHostsFile: h.SSH.KnownHostsFile}
	}
	if h.CPU != nil {
		out.CPUMilli = int64(*h.CPU)
	}
	if h.Memory != nil {
		out.MemoryBytes = int64(*h.Memory)
	}
	return out
}

// prepuller keeps what its machines need where they are going to be made, until
// ctx ends.
type prepuller interface {
	Prepull(ctx context.Context, serverVersion func(context.Context) (string, error))
}
