package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// ensureImage pulls an image when Options.Pull says so: by default what the host
// lacks, since tags of k3s do not move.
func (p *Provider) ensureImage(ctx context.Context, ref, host string) error {
	if p.o.Pull == PullAlways {
		return p.pullExplained(ctx, ref, host)
	}
	err := p.call(ctx, "image_inspect", p.o.CallTimeout, func(ctx context.Context) error {
		_, err := p.api.ImageInspect(ctx, ref)
		return err
	})
	if err == nil {
		return nil
	}
	if !absent(err) {
		return fmt.Errorf("look for image %s: %w", ref, err)
	}
	if p.o.Pull == PullNever {
		return fmt.Errorf("%w: %s is not on host %s, and the pool's setting says never to pull it; load it there with docker pull or docker load", provider.ErrImage, ref, host)
	}
	p.o.Logger.InfoContext(ctx, "pulling an image that the host lacks", "image", ref, "host", host)
	return p.pullExplained(ctx, ref, host)
}

func (p *Provider) pullExplained(ctx context.Context, ref, host string) error {
	return p.call(ctx, "pull", p.o.PullTimeout, func(ctx context.Context) error {
		err := p.pull(ctx, ref)
		switch {
		case err == nil:
			return nil
		case interrupted(err) || strings.Contains(err.Error(), noSpace):
			// That says nothing about the image.
			return fmt.Errorf("pull image %s to host %s: %w", ref, host, err)
		default:
			return fmt.Errorf("%w: %s could not be pulled to host %s (run docker pull %s there to see why, or load it with docker load, or set the pool's image to one that is there): %w",
				provider.ErrImage, ref, host, ref, err)
		}
	})
}

// interrupted says that the connection to the engine ended, or could not be made.
func interrupted(err error) bool {
	var network net.Error
	return client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

func (p *Provider) pull(ctx context.Context, ref string) error {
	progress, err := p.api.ImagePull(ctx, ref, image.PullOptions{})
	if err != nil {
		return err
	}
	defer progress.Close()
	// The pull has failed if the stream says so: its status was sent before.
	decoder := json.NewDecoder(progress)
	for {
		var line struct {
			Error string `json:"error"`
		}
		switch err := decoder.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("follow the pull: %w", err)
		case line.Error != "":
			return errors.New(line.Error)
		}
	}
}
