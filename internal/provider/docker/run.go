package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// logMargin is how much more output is read than asked for, so that a secret at
// the cut is still recognised; it is longer than any form of a token.
const logMargin = 4 * maxTokenBytes

// logLines bounds what the engine reads of a machine that has run for weeks.
const logLines = "5000"

// Start implements provider.NodeProvider.
func (p *Provider) Start(ctx context.Context, name string) error {
	found, err := p.ours(ctx, name, everywhere)
	if err != nil {
		return fmt.Errorf("start machine %s: %w", name, err)
	}
	h, c := found[0].h, found[0].c
	switch stateOf(c.State) {
	case provider.Running:
		return nil
	case provider.Exited:
		return fmt.Errorf("start machine %s: %w with code %d", name, provider.ErrExited, c.State.ExitCode)
	case provider.Created:
	}
	if len(found) > 1 {
		return fmt.Errorf("start machine %s: hosts %s and %s both have a container of it; its creation has to be repeated, which removes one", name, h.label, found[1].h.label)
	}
	if token, err := h.machineToken(ctx, c.ID); err != nil {
		return fmt.Errorf("start machine %s: %w", name, err)
	} else if token == "" {
		return fmt.Errorf("start machine %s: it has no join token yet, its creation was interrupted and has to be repeated", name)
	}
	release, err := h.slot(ctx)
	if err != nil {
		return fmt.Errorf("start machine %s: %w", name, err)
	}
	defer release()
	err = h.call(ctx, "start", p.o.CallTimeout, func(ctx context.Context) error {
		return h.api.ContainerStart(ctx, c.ID, container.StartOptions{})
	})
	return h.acted("start", name, err)
}

// Stop implements provider.NodeProvider: SIGTERM, and SIGKILL after the grace
// period.
func (p *Provider) Stop(ctx context.Context, name string) error {
	found, err := p.ours(ctx, name, everywhere)
	if err != nil {
		return fmt.Errorf("stop machine %s: %w", name, err)
	}
	grace := int(p.o.StopGrace / time.Second)
	var errs []error
	for _, f := range found {
		err := f.h.call(ctx, "stop", p.o.StopGrace+p.o.CallTimeout, func(ctx context.Context) error {
			return f.h.api.ContainerStop(ctx, f.c.ID, container.StopOptions{Timeout: &grace})
		})
		errs = append(errs, f.h.acted("stop", name, err))
	}
	return errors.Join(errs...)
}

// Delete implements provider.NodeProvider: the container and its anonymous
// volumes, and copies of it that were never started.
func (p *Provider) Delete(ctx context.Context, name string) error {
	found, err := p.ours(ctx, name, everywhere)
	if err != nil {
		return fmt.Errorf("delete machine %s: %w", name, err)
	}
	var errs []error
	for _, f := range found {
		errs = append(errs, f.h.acted("delete", name, f.h.remove(ctx, f.c.ID)))
		f.h.prolong(name, 0)
	}
	return errors.Join(errs...)
}

func (h *host) remove(ctx context.Context, id string) error {
	return h.call(ctx, "remove", h.p.o.CallTimeout, func(ctx context.Context) error {
		err := h.api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if cerrdefs.IsConflict(err) { // another caller is removing it: gone is gone
			return h.removed(ctx, id)
		}
		return err
	})
}

// acted words the outcome of an act on a container that was there before.
func (h *host) acted(act, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case absent(err):
		return fmt.Errorf("%s machine %s: %w", act, name, provider.ErrNotFound) // it was there a moment ago
	default:
		return fmt.Errorf("%s machine %s: %w", act, name, err)
	}
}

// removed waits until another caller's removal has ended.
func (h *host) removed(ctx context.Context, id string) error {
	done, failed := h.api.ContainerWait(ctx, id, container.WaitConditionRemoved)
	select {
	case r := <-done:
		if r.Error != nil {
			return errors.New(r.Error.Message)
		}
		return nil
	case err := <-failed:
		return err
	}
}

// Logs implements provider.NodeProvider. The token that this machine joined with
// and the present one are redacted, and what looks like a token.
func (p *Provider) Logs(ctx context.Context, name string, maxBytes int) (string, error) {
	found, err := p.ours(ctx, name, enough)
	if err != nil {
		return "", fmt.Errorf("read the log of machine %s: %w", name, err)
	}
	h, c := found[0].h, found[0].c
	redactor, err := h.redactor(ctx, c.ID)
	if err != nil {
		return "", fmt.Errorf("read the log of machine %s: it is withheld, since its secrets are not known: %w", name, err)
	}
	end := &tail{limit: max(maxBytes, 0) + logMargin}
	err = h.call(ctx, "logs", p.o.CallTimeout, func(ctx context.Context) error {
		stream, err := h.api.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: logLines})
		if err != nil {
			return err
		}
		defer stream.Close()
		_, err = stdcopy.StdCopy(end, end, stream)
		return err
	})
	if err != nil {
		return "", h.acted("read the log of", name, err)
	}
	return lastBytes(redactor.redact(end.String()), maxBytes), nil
}

// redactor knows the machine's own token and the present one. One of them is
// enough: a machine that has its token was given one of the file's.
func (h *host) redactor(ctx context.Context, id string) (redactor, error) {
	own, err := h.machineToken(ctx, id)
	present, fileErr := readToken(h.p.o.TokenFile)
	if err != nil && fileErr != nil {
		return redactor{}, errors.Join(err, fileErr)
	}
	return newRedactor(own, present), nil
}

// machineToken reads the token that was copied into a container; empty: none.
func (h *host) machineToken(ctx context.Context, id string) (string, error) {
	var content bytes.Buffer
	err := h.call(ctx, "read_token", h.p.o.CallTimeout, func(ctx context.Context) error {
		r, _, err := h.api.CopyFromContainer(ctx, id, tokenPath)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(&content, io.LimitReader(r, 4*maxTokenBytes))
		return err
	})
	switch {
	case absent(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read the machine's token back: %w", err)
	}
	return tokenFromArchive(&content)
}

func notFound(err error) bool { return errors.Is(err, provider.ErrNotFound) }
