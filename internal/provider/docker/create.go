package docker

import (
	"bytes"
	"context"
	"fmt"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

const (
	// nameAttempts and namePause bound the wait for a container whose name the
	// engine has given away, but which it does not show yet.
	nameAttempts = 20
	namePause    = 100 * time.Millisecond
)

// Create implements provider.NodeProvider. A container that an earlier call left
// without its token is completed.
func (p *Provider) Create(ctx context.Context, s provider.Spec) (provider.Machine, error) {
	m, err := p.create(ctx, s)
	if err != nil {
		return m, fmt.Errorf("create machine %s: %w", s.Name, err)
	}
	return m, nil
}

func (p *Provider) create(ctx context.Context, s provider.Spec) (provider.Machine, error) {
	if err := s.Validate(); err != nil {
		return provider.Machine{}, err
	}
	if s.Cluster != p.o.Cluster {
		return provider.Machine{}, fmt.Errorf("%w: it is for cluster %s, this provider is for %s", provider.ErrRefused, s.Cluster, p.o.Cluster)
	}
	token, err := readToken(p.o.TokenFile)
	if err != nil {
		return provider.Machine{}, err
	}
	c, err := p.obtain(ctx, s)
	if err != nil {
		return provider.Machine{}, err
	}
	if err := owner(c, s); err != nil {
		return provider.Machine{}, err
	}
	if stateOf(c.State) == provider.Created {
		// Copied whether or not an earlier call has done so: it costs one call, and
		// a token that was rotated in between is replaced.
		if err := p.copyToken(ctx, c.ID, token); err != nil {
			return provider.Machine{}, err
		}
	}
	return p.machine(ctx, c)
}

// obtain returns the container of that name, whoever made it and owns it.
func (p *Provider) obtain(ctx context.Context, s provider.Spec) (container.InspectResponse, error) {
	c, err := p.inspect(ctx, s.Name)
	if err == nil || !notFound(err) {
		return c, err
	}
	err = p.newContainer(ctx, s)
	if err != nil && !cerrdefs.IsConflict(err) {
		return c, err
	}
	// Made, or another process is making it, or a foreign one has just got the
	// name. The engine gives a name away before it shows the container.
	for range nameAttempts {
		c, inspectErr := p.inspect(ctx, s.Name)
		if inspectErr == nil || !notFound(inspectErr) {
			return c, inspectErr
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-p.o.Clock.After(namePause):
		}
	}
	if err != nil {
		return c, fmt.Errorf("%w, but the engine shows no container of that name: %w", provider.ErrNameTaken, err)
	}
	return c, fmt.Errorf("it vanished right after its creation: %w", provider.ErrNotFound)
}

func (p *Provider) newContainer(ctx context.Context, s provider.Spec) error {
	image, err := p.o.image(s.ServerVersion)
	if err != nil {
		return err
	}
	host, err := p.capacity(ctx)
	if err != nil {
		return err
	}
	r, err := p.o.render(s, image, host)
	if err != nil {
		return err
	}
	if err := p.ensureImage(ctx, image, host.host); err != nil {
		return err
	}
	var created container.CreateResponse
	err = p.call(ctx, "create", p.o.CallTimeout, func(ctx context.Context) (err error) {
		created, err = p.api.ContainerCreate(ctx, r.Config, r.HostConfig, r.Network, nil, s.Name)
		return err
	})
	switch {
	case absent(err): // removed between the look and the creation
		return fmt.Errorf("%w: %s was removed from host %s while the container was being made: %w", provider.ErrImage, image, host.host, err)
	case err != nil:
		return fmt.Errorf("create container: %w", err)
	}
	for _, w := range created.Warnings {
		p.o.Logger.WarnContext(ctx, "docker engine warns about a machine", "node", s.Name, "pool", s.Pool, "host", host.host, "warning", w)
	}
	return nil
}

// owner says whose c is, if it is not of this Spec.
func owner(c container.InspectResponse, s provider.Spec) error {
	want := machineOf(map[string]string{LabelCluster: s.Cluster, LabelClaim: s.ClaimID, LabelEpoch: s.Epoch})
	got := machineOf(c.Config.Labels)
	got.Pool = ""
	if got == want {
		return nil
	}
	if got.Cluster == "" {
		return fmt.Errorf("%w: container %.12s was not made by k3s-autoscaler", provider.ErrNameTaken, c.ID)
	}
	return fmt.Errorf("%w: container %.12s belongs to cluster %s, claim %s, epoch %s", provider.ErrNameTaken, c.ID, got.Cluster, got.ClaimID, got.Epoch)
}

func (p *Provider) copyToken(ctx context.Context, id, token string) error {
	archive, err := tokenArchive(token, p.o.Clock.Now())
	if err != nil {
		return err
	}
	err = p.call(ctx, "copy", p.o.CallTimeout, func(ctx context.Context) error {
		return p.api.CopyToContainer(ctx, id, "/", bytes.NewReader(archive), container.CopyToContainerOptions{})
	})
	if err != nil {
		return fmt.Errorf("copy the join token into the container: %w", err)
	}
	return nil
}
