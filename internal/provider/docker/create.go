package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
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
	files, err := p.o.files()
	if err != nil {
		return provider.Machine{}, err
	}
	found, missing := p.look(ctx, s.Name, everywhere)
	if err := ctx.Err(); err != nil {
		return provider.Machine{}, err
	}
	for _, f := range found {
		if err := owner(f.c, s); err != nil {
			return provider.Machine{}, err
		}
	}
	if len(found) > 0 {
		return p.complete(ctx, s, found, files)
	}
	h, err := p.chosen(ctx, s, missing)
	if err != nil {
		return provider.Machine{}, err
	}
	release, err := h.slot(ctx)
	if err != nil {
		return provider.Machine{}, err
	}
	defer release()
	h.prolong(s.Name, p.o.PullTimeout+3*p.o.CallTimeout)
	c, err := h.obtain(ctx, s)
	if err == nil {
		err = owner(c, s)
	}
	if errors.Is(err, provider.ErrImage) || errors.Is(err, provider.ErrRefused) || errors.Is(err, provider.ErrNameTaken) {
		h.prolong(s.Name, 0) // nothing was made
	} else {
		h.prolong(s.Name, settleFor)
	}
	if err != nil {
		return provider.Machine{}, err
	}
	return h.fill(ctx, c, files)
}

// chosen is the host that the caller has recorded. Without one, every host has to
// answer before one is chosen: the machine may be on one that does not.
func (p *Provider) chosen(ctx context.Context, s provider.Spec, absence error) (*host, error) {
	if s.Host == "" {
		var hosts *provider.HostsError
		if errors.As(absence, &hosts) && len(hosts.Missing) > 0 {
			return nil, absence
		}
		return p.place(ctx, s)
	}
	for _, h := range p.hosts {
		if slices.Contains(h.names(), s.Host) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("host %s, which was chosen for it, is none of the pool's any more", s.Host)
}

// complete finishes a machine that exists. Copies of it that were never started,
// on other hosts, go: a creation that its caller had given up has come to an end
// after all.
func (p *Provider) complete(ctx context.Context, s provider.Spec, found []sighting, files files) (provider.Machine, error) {
	keep := found[0]
	if stateOf(keep.c.State) == provider.Created {
		for _, f := range found {
			if slices.Contains(f.h.names(), s.Host) {
				keep = f
			}
		}
	}
	for _, f := range found {
		if f.h == keep.h || stateOf(f.c.State) != provider.Created {
			continue
		}
		p.o.Logger.WarnContext(ctx, "removing a second container of a machine, which was never started", "node", s.Name, "host", f.h.label, "kept_on", keep.h.label)
		if err := f.h.remove(ctx, f.c.ID); err != nil && !absent(err) {
			return provider.Machine{}, fmt.Errorf("remove its second container on host %s: %w", f.h.label, err)
		}
	}
	return keep.h.fill(ctx, keep.c, files)
}

// fill puts the files into a machine that has not run. They are copied whether or
// not an earlier call has done so: it costs one call, and a token that was
// rotated in between is replaced.
func (h *host) fill(ctx context.Context, c container.InspectResponse, files files) (provider.Machine, error) {
	if stateOf(c.State) == provider.Created {
		if err := h.copyFiles(ctx, c.ID, files); err != nil {
			return provider.Machine{}, err
		}
	}
	return h.machine(ctx, c)
}

// obtain returns the container of that name, whoever made it and owns it.
func (h *host) obtain(ctx context.Context, s provider.Spec) (container.InspectResponse, error) {
	c, err := h.inspect(ctx, s.Name)
	if err == nil || !notFound(err) {
		return c, err
	}
	err = h.newContainer(ctx, s)
	if err != nil && !cerrdefs.IsConflict(err) {
		return c, err
	}
	// Made, or another process is making it, or a foreign one has just got the
	// name. The engine gives a name away before it shows the container.
	for range nameAttempts {
		c, inspectErr := h.inspect(ctx, s.Name)
		if inspectErr == nil || !notFound(inspectErr) {
			return c, inspectErr
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-h.p.o.Clock.After(namePause):
		}
	}
	if err != nil {
		return c, fmt.Errorf("%w, but the engine shows no container of that name: %w", provider.ErrNameTaken, err)
	}
	return c, fmt.Errorf("it vanished right after its creation: %w", provider.ErrNotFound)
}

func (h *host) newContainer(ctx context.Context, s provider.Spec) error {
	image, err := h.p.o.image(s.ServerVersion)
	if err != nil {
		return err
	}
	host, err := h.capacity(ctx)
	if err != nil {
		return err
	}
	r, err := h.p.o.render(s, image, host)
	if err != nil {
		return err
	}
	if err := h.ensureImage(ctx, image); err != nil {
		return err
	}
	var created container.CreateResponse
	err = h.call(ctx, "create", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		created, err = h.api.ContainerCreate(ctx, r.Config, r.HostConfig, r.Network, nil, s.Name)
		return err
	})
	switch {
	case absent(err): // removed between the look and the creation
		return fmt.Errorf("%w: %s was removed from host %s while the container was being made: %w", provider.ErrImage, image, host.host, err)
	case err != nil:
		return fmt.Errorf("create container: %w", err)
	}
	for _, w := range created.Warnings {
		h.p.o.Logger.WarnContext(ctx, "docker engine warns about a machine", "node", s.Name, "pool", s.Pool, "host", host.host, "warning", w)
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

func (h *host) copyFiles(ctx context.Context, id string, files files) error {
	archive, err := files.archive(h.p.o.Clock.Now())
	if err != nil {
		return err
	}
	err = h.call(ctx, "copy", h.p.o.CallTimeout, func(ctx context.Context) error {
		return h.api.CopyToContainer(ctx, id, "/", bytes.NewReader(archive), container.CopyToContainerOptions{})
	})
	if err != nil {
		return fmt.Errorf("copy the join token into the container: %w", err)
	}
	return nil
}
