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
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/resilience"
)

// Provider is a provider.NodeProvider on the Docker engines of one pool. It is
// safe for concurrent use, and so are several of them, in several processes, on
// the same engines.
type Provider struct {
	o       Options
	hosts   []*host
	metrics metrics
}

var (
	_ provider.NodeProvider = (*Provider)(nil)
	_ provider.Placer       = (*Provider)(nil)
)

// host is an engine as one pool uses it.
type host struct {
	Host
	*engine
	p *Provider
}

// New validates o and makes a Provider. It does not call the engines, which may
// come later.
func New(o Options) (*Provider, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("docker provider: %w", err)
	}
	o = o.withDefaults()
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("docker provider: register metrics: %w", err)
	}
	p := &Provider{o: o, metrics: m}
	for _, h := range o.Hosts {
		e, err := o.Engines.get(h, o.Logger, o.Registerer, o.Clock)
		if err != nil {
			return nil, fmt.Errorf("docker provider: %w", err)
		}
		p.hosts = append(p.hosts, &host{Host: h, engine: e, p: p})
	}
	return p, nil
}

// Close ends the connections to the engines. Those of other pools that share
// them are made anew at their next call.
func (p *Provider) Close() error {
	var errs []error
	for _, h := range p.hosts {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}

// Get implements provider.NodeProvider.
func (p *Provider) Get(ctx context.Context, name string) (provider.Machine, error) {
	found, err := p.ours(ctx, name, enough)
	if err != nil {
		return provider.Machine{}, err
	}
	return found[0].h.machine(ctx, found[0].c)
}

// sighting is a container on a host.
type sighting struct {
	h *host
	c container.InspectResponse
}

// How long look waits for hosts that have not answered yet.
const (
	everywhere = false // all of them
	enough     = true  // until a running machine was found: there is only one
)

// look asks all hosts for the containers of that name, whoever owns them. A
// running one comes first, then one that has run; else the order is that of the
// hosts. The error is a *provider.HostsError when not all of them answered, or
// none has one; what was found comes with it.
func (p *Provider) look(ctx context.Context, name string, soon bool) ([]sighting, error) {
	asking, stop := context.WithCancel(ctx)
	defer stop()
	seen := make([]*container.InspectResponse, len(p.hosts))
	errs := make([]error, len(p.hosts))
	var wg sync.WaitGroup
	var stopped atomic.Bool
	for i, h := range p.hosts {
		wg.Go(func() {
			c, err := h.inspect(asking, name)
			switch {
			case err == nil:
				seen[i] = &c
				if soon && stateOf(c.State) == provider.Running && c.Config.Labels[LabelCluster] == p.o.Cluster {
					stopped.Store(true)
					stop()
				}
			case !notFound(err):
				errs[i] = err
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look for container %s: %w", name, err)
	}
	absence := &provider.HostsError{What: "machine " + name}
	var found []sighting
	for i, h := range p.hosts {
		switch {
		case errs[i] != nil:
			absence.Missing = append(absence.Missing, provider.MissingHost{Name: h.label, Err: errs[i]})
			continue
		case seen[i] != nil:
			found = append(found, sighting{h, *seen[i]})
		}
		absence.Answered = append(absence.Answered, h.names()...)
	}
	slices.SortStableFunc(found, func(a, b sighting) int { return cmp.Compare(rank(b.c), rank(a.c)) })
	if len(found) > 0 && (stopped.Load() || len(absence.Missing) == 0) {
		return found, nil
	}
	return found, absence
}

// rank orders the copies of a machine by how far they came.
func rank(c container.InspectResponse) int {
	return slices.Index([]provider.State{provider.Created, provider.Exited, provider.Running}, stateOf(c.State))
}

// ours returns the containers of that name that belong to this cluster, at least
// one, or a *provider.HostsError. One is enough: what hosts that do not answer
// have does not matter then.
func (p *Provider) ours(ctx context.Context, name string, soon bool) ([]sighting, error) {
	found, err := p.look(ctx, name, soon)
	found = slices.DeleteFunc(found, func(s sighting) bool { return s.c.Config.Labels[LabelCluster] != p.o.Cluster })
	if len(found) > 0 {
		return found, nil
	}
	if err == nil {
		all := &provider.HostsError{What: "machine " + name}
		for _, h := range p.hosts {
			all.Answered = append(all.Answered, h.names()...)
		}
		err = all
	}
	return nil, err
}

// inspect returns the container of that name, whoever owns it, or ErrNotFound.
func (h *host) inspect(ctx context.Context, name string) (container.InspectResponse, error) {
	var c container.InspectResponse
	err := h.call(ctx, "inspect", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		c, err = h.api.ContainerInspect(ctx, name)
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

func (h *host) machine(ctx context.Context, c container.InspectResponse) (provider.Machine, error) {
	host, err := h.hostName(ctx)
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

// hostName is what records call the host.
func (h *host) hostName(ctx context.Context) (string, error) {
	if h.Name != "" {
		return h.Name, nil
	}
	h.mu.Lock()
	known := h.hostname
	h.mu.Unlock()
	if known != "" {
		return known, nil
	}
	c, err := h.capacity(ctx)
	return c.host, err
}

// names are all that records may call the host: it may have got its name after
// its first machines.
func (h *host) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := []string{h.label}
	if h.hostname != "" && h.hostname != h.label {
		names = append(names, h.hostname)
	}
	return names
}

// capacity asks the engine for its machine. It is asked for each machine made,
// since a virtual host may have been resized.
func (h *host) capacity(ctx context.Context) (capacity, error) {
	var info system.Info
	err := h.call(ctx, "info", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		info, err = h.api.Info(ctx)
		return err
	})
	if err != nil {
		return capacity{}, fmt.Errorf("ask the Docker engine for its capacity: %w", err)
	}
	if info.NCPU <= 0 || info.MemTotal <= 0 {
		return capacity{}, fmt.Errorf("ask the Docker engine for its capacity: it says %d CPUs and %d bytes of memory", info.NCPU, info.MemTotal)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hostname = info.Name
	return capacity{host: cmp.Or(h.Name, info.Name), cpus: info.NCPU, memoryBytes: info.MemTotal}, nil
}

// call makes one call to the engine, unless its circuit breaker is open.
func (h *host) call(ctx context.Context, operation string, timeout time.Duration, fn func(context.Context) error) error {
	var outcome error
	err := h.breaker.Do(func() error {
		outcome = h.direct(ctx, operation, timeout, fn)
		switch {
		case outcome == nil || expected(outcome):
			return nil
		case ctx.Err() != nil:
			return context.Canceled // the caller gave up, which says nothing
		}
		return outcome
	})
	var open *resilience.OpenError
	if errors.As(err, &open) {
		return &noAnswerError{open}
	}
	return outcome
}

// direct bounds one call to the engine, explains its failure and counts it.
func (h *host) direct(ctx context.Context, operation string, timeout time.Duration, fn func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := fn(bounded)
	if err == nil || expected(err) || ctx.Err() != nil {
		return err
	}
	kind, err := h.explain(err)
	h.p.metrics.errors.WithLabelValues(operation, kind).Inc()
	return err
}
