package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// List implements provider.NodeProvider. The machines are ordered by name; those
// of all pools of the cluster on these engines are among them. Of copies of one
// machine, which a creation that outlived its caller leaves, the one that came
// farthest is listed.
func (p *Provider) List(ctx context.Context) ([]provider.Machine, error) {
	lists, errs := make([][]provider.Machine, len(p.hosts)), make([]error, len(p.hosts))
	var wg sync.WaitGroup
	for i, h := range p.hosts {
		wg.Go(func() { lists[i], errs[i] = h.list(ctx) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list machines of cluster %s: %w", p.o.Cluster, err)
	}
	partial := &provider.HostsError{What: "machines of cluster " + p.o.Cluster}
	machines := []provider.Machine{}
	for i, h := range p.hosts {
		if errs[i] != nil {
			partial.Missing = append(partial.Missing, provider.MissingHost{Name: h.label, Err: errs[i]})
			continue
		}
		partial.Answered = append(partial.Answered, h.names()...)
		machines = append(machines, lists[i]...)
	}
	farther := func(m provider.Machine) int {
		return -slices.Index([]provider.State{provider.Created, provider.Exited, provider.Running}, m.State)
	}
	slices.SortStableFunc(machines, func(a, b provider.Machine) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(farther(a), farther(b)))
	})
	machines = slices.CompactFunc(machines, func(a, b provider.Machine) bool { return a.Name == b.Name })
	if len(partial.Missing) > 0 {
		return machines, partial
	}
	return machines, nil
}

func (h *host) list(ctx context.Context) ([]provider.Machine, error) {
	cluster := h.p.o.Cluster
	var found []container.Summary
	err := h.call(ctx, "list", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		found, err = h.api.ContainerList(ctx, container.ListOptions{
			All:     true,
			Filters: filters.NewArgs(filters.Arg("label", LabelCluster+"="+cluster)),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list containers of cluster %s: %w", cluster, err)
	}
	host, err := h.hostName(ctx)
	if err != nil {
		return nil, err
	}
	machines := make([]provider.Machine, 0, len(found))
	for _, c := range found {
		m := machineOf(c.Labels)
		m.Name, m.ID, m.Host, m.Image, m.CreatedAt = nameOf(c.Names), c.ID, host, c.Image, time.Unix(c.Created, 0).UTC()
		switch c.State {
		case container.StateCreated:
			m.State = provider.Created
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			m.State = provider.Running
		default: // the list has no exit code
			full, err := h.inspect(ctx, m.Name)
			if err == nil {
				m, err = h.machine(ctx, full)
			}
			switch {
			case errors.Is(err, provider.ErrNotFound):
				continue
			case err != nil:
				return nil, err
			}
		}
		machines = append(machines, m)
	}
	return machines, nil
}
