// Package simulated is a provider whose machines are agents of a simulated
// world: they join it after a while, and can be made to fail.
package simulated

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/simulation"
)

// Host and Image are what every machine says of itself.
const (
	Host  = "simulation"
	Image = "simulated/k3s"
)

// Fault is how a machine misbehaves.
type Fault struct {
	// Exits ends the agent at its start with this line in its log.
	Exits string
	// NeverRegisters lets the agent run without joining.
	NeverRegisters bool
	// Slower multiplies the time until it is Ready; 0 is 1.
	Slower float64
}

// Options of a Provider. World and Cluster are required.
type Options struct {
	World   *simulation.World
	Cluster string
	// Engine keeps the machines of several providers. Default: one of its own.
	Engine *Engine
	// Fault says how the machine of a Spec misbehaves; nil: none does.
	Fault func(provider.Spec) Fault
	Clock clock.PassiveClock // default: the real one
}

// Provider makes the machines of one cluster on an Engine. It is safe for
// concurrent use, and so are several of them on one Engine.
type Provider struct {
	o      Options
	engine *Engine
}

var _ provider.NodeProvider = (*Provider)(nil)

// New returns a Provider without machines.
func New(o Options) (*Provider, error) {
	var errs []error
	if o.World == nil {
		errs = append(errs, errors.New("world is required"))
	}
	if o.Cluster == "" {
		errs = append(errs, errors.New("cluster is required"))
	}
	if o.Fault == nil {
		o.Fault = func(provider.Spec) Fault { return Fault{} }
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Engine == nil {
		o.Engine = &Engine{}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("simulated provider: %w", err)
	}
	return &Provider{o: o, engine: o.Engine}, nil
}

// Create implements provider.NodeProvider.
func (p *Provider) Create(_ context.Context, s provider.Spec) (provider.Machine, error) {
	if err := s.Validate(); err != nil {
		return provider.Machine{}, fmt.Errorf("create machine %s: %w", s.Name, err)
	}
	if s.Cluster != p.o.Cluster {
		return provider.Machine{}, fmt.Errorf("create machine %s: %w: it is for cluster %s, this provider is for %s", s.Name, provider.ErrRefused, s.Cluster, p.o.Cluster)
	}
	e := p.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.machines[s.Name]; m != nil {
		if m.Cluster != s.Cluster || m.ClaimID != s.ClaimID || m.Epoch != s.Epoch {
			return provider.Machine{}, fmt.Errorf("create machine %s: %w: it belongs to claim %s of cluster %s", s.Name, provider.ErrNameTaken, m.ClaimID, m.Cluster)
		}
		return m.Machine, nil
	}
	e.made++
	m := &machine{spec: s, Machine: provider.Machine{
		Name: s.Name, ID: fmt.Sprintf("sim-%06d", e.made), Host: Host, Image: Image, Cluster: s.Cluster, Pool: s.Pool,
		ClaimID: s.ClaimID, Epoch: s.Epoch, State: provider.Created, CreatedAt: p.o.Clock.Now().UTC(),
	}}
	if e.machines == nil {
		e.machines = map[string]*machine{}
	}
	e.machines[s.Name] = m
	return m.Machine, nil
}

// ours returns the machine of that name if it belongs to this cluster. The
// caller holds the engine's lock.
func (p *Provider) ours(name string) *machine {
	if m := p.engine.machines[name]; m != nil && m.Cluster == p.o.Cluster {
		return m
	}
	return nil
}

// Start implements provider.NodeProvider.
func (p *Provider) Start(_ context.Context, name string) error {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	m := p.ours(name)
	switch {
	case m == nil:
		return fmt.Errorf("start machine %s: %w", name, provider.ErrNotFound)
	case m.State == provider.Running:
		return nil
	case m.State == provider.Exited:
		return fmt.Errorf("start machine %s: %w", name, provider.ErrExited)
	}
	fault := p.o.Fault(m.spec)
	if fault.Exits != "" {
		m.State, m.ExitCode = provider.Exited, 1
		m.log.add(fault.Exits)
		return nil
	}
	taints := make([]corev1.Taint, len(m.spec.Taints))
	for i, t := range m.spec.Taints {
		taints[i] = corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)}
	}
	if err := p.o.World.StartAgent(m.ID, simulation.Agent{
		Name: name, Password: m.ID, CPUMilli: m.spec.CPUMilli, MemoryBytes: m.spec.MemoryBytes, MaxPods: m.spec.MaxPods,
		Labels: maps.Clone(m.spec.Labels), Taints: taints, Version: m.spec.ServerVersion,
		NeverRegisters: fault.NeverRegisters, Slower: fault.Slower, Log: m.log.add,
	}); err != nil {
		return fmt.Errorf("start machine %s: %w", name, err)
	}
	m.State = provider.Running
	return nil
}

// Stop implements provider.NodeProvider.
func (p *Provider) Stop(_ context.Context, name string) error {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	m := p.ours(name)
	if m == nil {
		return fmt.Errorf("stop machine %s: %w", name, provider.ErrNotFound)
	}
	if m.State == provider.Running {
		p.o.World.StopAgent(m.ID)
		m.State = provider.Exited
	}
	return nil
}

// Delete implements provider.NodeProvider.
func (p *Provider) Delete(_ context.Context, name string) error {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	m := p.ours(name)
	if m == nil {
		return fmt.Errorf("delete machine %s: %w", name, provider.ErrNotFound)
	}
	p.o.World.StopAgent(m.ID)
	delete(p.engine.machines, name)
	return nil
}

// Get implements provider.NodeProvider.
func (p *Provider) Get(_ context.Context, name string) (provider.Machine, error) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	m := p.ours(name)
	if m == nil {
		return provider.Machine{}, fmt.Errorf("look at machine %s: %w", name, provider.ErrNotFound)
	}
	return m.Machine, nil
}

// List implements provider.NodeProvider.
func (p *Provider) List(context.Context) ([]provider.Machine, error) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	var out []provider.Machine
	for _, m := range p.engine.machines {
		if m.Cluster == p.o.Cluster {
			out = append(out, m.Machine)
		}
	}
	slices.SortFunc(out, func(a, b provider.Machine) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Logs implements provider.NodeProvider. A simulated agent knows no secret.
func (p *Provider) Logs(_ context.Context, name string, maxBytes int) (string, error) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	m := p.ours(name)
	if m == nil {
		return "", fmt.Errorf("read log of machine %s: %w", name, provider.ErrNotFound)
	}
	return m.log.last(maxBytes), nil
}
