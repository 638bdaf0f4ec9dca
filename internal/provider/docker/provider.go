// Package docker creates k3s agents as privileged containers of a Docker
// engine, the way k3d does.
//
// A machine is one container of the node's name. It runs once: the engine never
// restarts it, so after a crash of the agent, of the engine or of the host it
// stays exited until it is deleted, and another claim replaces it.
//
// The join token is a file that is copied into the container before its first
// start; neither the container's configuration nor its captured output show it.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// Provider is a provider.NodeProvider on one Docker engine. It is safe for
// concurrent use, and so are several of them, in several processes, on one
// engine.
type Provider struct {
	o       Options
	api     *client.Client
	metrics metrics

	mu   sync.Mutex
	host string // the engine's name for its machine, once known
}

var _ provider.NodeProvider = (*Provider)(nil)

// New validates o and makes a Provider. It does not call the engine, which may
// come later.
func New(o Options) (*Provider, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("docker provider: %w", err)
	}
	o = o.withDefaults()
	opts := []client.Opt{client.WithHost(o.Engine), client.WithAPIVersionNegotiation(), client.WithUserAgent("k3s-autoscaler")}
	if o.TLS != (TLS{}) {
		opts = append(opts, client.WithTLSClientConfig(o.TLS.CAFile, o.TLS.CertFile, o.TLS.KeyFile))
	}
	api, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker provider: prepare the client of %s: %w", o.Engine, err)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("docker provider: register metrics: %w", err)
	}
	return &Provider{o: o, api: api, metrics: m}, nil
}

// Close ends idle connections to the engine.
func (p *Provider) Close() error { return p.api.Close() }

// Get implements provider.NodeProvider.
func (p *Provider) Get(ctx context.Context, name string) (provider.Machine, error) {
	c, err := p.ours(ctx, name)
	if err != nil {
		return provider.Machine{}, err
	}
	return p.machine(ctx, c)
}

// List implements provider.NodeProvider. The machines are ordered by name; those
// of all pools of the cluster on this engine are among them.
func (p *Provider) List(ctx context.Context) ([]provider.Machine, error) {
	var found []container.Summary
	err := p.call(ctx, "list", p.o.CallTimeout, func(ctx context.Context) (err error) {
		found, err = p.api.ContainerList(ctx, container.ListOptions{
			All:     true,
			Filters: filters.NewArgs(filters.Arg("label", LabelCluster+"="+p.o.Cluster)),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list containers of cluster %s: %w", p.o.Cluster, err)
	}
	host, err := p.hostName(ctx)
	if err != nil {
		return nil, err
	}
	machines := make([]provider.Machine, 0, len(found))
	for _, c := range found {
		m := machineOf(c.Labels)
		m.ID, m.Host, m.Image, m.CreatedAt = c.ID, host, c.Image, time.Unix(c.Created, 0).UTC()
		for _, n := range c.Names {
			// A container has further names, with two slashes, where it is linked to.
			if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
				m.Name = n
			}
		}
		switch c.State {
		case container.StateCreated:
			m.State = provider.Created
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			m.State = provider.Running
		default: // the list has no exit code
			if m, err = p.Get(ctx, m.Name); errors.Is(err, provider.ErrNotFound) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		machines = append(machines, m)
	}
	slices.SortFunc(machines, func(a, b provider.Machine) int { return cmp.Compare(a.Name, b.Name) })
	return machines, nil
}

// ours returns the container of that name if it belongs to this cluster, or
// ErrNotFound.
func (p *Provider) ours(ctx context.Context, name string) (container.InspectResponse, error) {
	c, err := p.inspect(ctx, name)
	if err == nil && c.Config.Labels[LabelCluster] != p.o.Cluster {
		return c, fmt.Errorf("container %s is not ours: %w", name, provider.ErrNotFound)
	}
	return c, err
}

// inspect returns the container of that name, whoever owns it, or ErrNotFound.
func (p *Provider) inspect(ctx context.Context, name string) (container.InspectResponse, error) {
	var c container.InspectResponse
	err := p.call(ctx, "inspect", p.o.CallTimeout, func(ctx context.Context) (err error) {
		c, err = p.api.ContainerInspect(ctx, name)
		return err
	})
	switch {
	case absent(err):
		return c, fmt.Errorf("container %s: %w", name, provider.ErrNotFound)
	case err != nil:
		return c, fmt.Errorf("inspect container %s: %w", name, err)
	case c.ContainerJSONBase == nil || c.State == nil || c.Config == nil:
		return c, fmt.Errorf("inspect container %s: the engine's answer lacks its state", name)
	case c.Name != "/"+name: // the engine also takes the beginning of an id for a name
		return c, fmt.Errorf("container %s: %w", name, provider.ErrNotFound)
	}
	return c, nil
}

func (p *Provider) machine(ctx context.Context, c container.InspectResponse) (provider.Machine, error) {
	host, err := p.hostName(ctx)
	if err != nil {
		return provider.Machine{}, err
	}
	created, err := time.Parse(time.RFC3339Nano, c.Created)
	if err != nil {
		return provider.Machine{}, fmt.Errorf("inspect container %s: creation time: %w", c.Name, err)
	}
	m := machineOf(c.Config.Labels)
	m.Name, m.ID, m.Host, m.Image = strings.TrimPrefix(c.Name, "/"), c.ID, host, c.Config.Image
	m.State, m.CreatedAt = stateOf(c.State), created.UTC()
	if m.State == provider.Exited {
		m.ExitCode = c.State.ExitCode
	}
	return m, nil
}

func machineOf(labels map[string]string) provider.Machine {
	return provider.Machine{
		Cluster: labels[LabelCluster], Pool: labels[LabelPool],
		ClaimID: labels[LabelClaim], Epoch: labels[LabelEpoch],
	}
}

func stateOf(s *container.State) provider.State {
	if s.Running || s.Paused || s.Restarting {
		return provider.Running
	}
	// A container that the engine could not start has never run either.
	if started, err := time.Parse(time.RFC3339Nano, s.StartedAt); err != nil || started.IsZero() {
		return provider.Created
	}
	return provider.Exited
}

func (p *Provider) hostName(ctx context.Context) (string, error) {
	p.mu.Lock()
	known := p.host
	p.mu.Unlock()
	if known != "" {
		return known, nil
	}
	c, err := p.capacity(ctx)
	return c.host, err
}

// capacity asks the engine for its machine. It is asked for each machine made,
// since a virtual host may have been resized.
func (p *Provider) capacity(ctx context.Context) (capacity, error) {
	var info system.Info
	err := p.call(ctx, "info", p.o.CallTimeout, func(ctx context.Context) (err error) {
		info, err = p.api.Info(ctx)
		return err
	})
	if err != nil {
		return capacity{}, fmt.Errorf("ask the Docker engine for its capacity: %w", err)
	}
	if info.NCPU <= 0 || info.MemTotal <= 0 {
		return capacity{}, fmt.Errorf("ask the Docker engine for its capacity: it says %d CPUs and %d bytes of memory", info.NCPU, info.MemTotal)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.host = info.Name
	return capacity{host: info.Name, cpus: info.NCPU, memoryBytes: info.MemTotal}, nil
}

// call bounds one call to the engine, explains its failure and counts it.
func (p *Provider) call(ctx context.Context, operation string, timeout time.Duration, fn func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := fn(bounded)
	if err == nil || expected(err) || ctx.Err() != nil {
		return err
	}
	kind, err := p.explain(err)
	p.metrics.errors.WithLabelValues(operation, kind).Inc()
	return err
}
