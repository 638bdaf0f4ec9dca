package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// progressEvery is how often the log tells how far a pull is.
const progressEvery = 5 * time.Second

// pull is one image being pulled to one host. Whoever else needs it waits.
type pull struct{ done chan struct{} }

// ensureImage pulls an image when Options.Pull says so: by default what the host
// lacks, since tags of k3s do not move.
func (h *host) ensureImage(ctx context.Context, ref string) error {
	if h.p.o.Pull == PullAlways {
		return h.pullOnce(ctx, ref, false)
	}
	there, err := h.hasImage(ctx, ref)
	if there || err != nil {
		return err
	}
	if h.p.o.Pull == PullNever {
		return fmt.Errorf("%w: %s is not on host %s, and the pool's setting says never to pull it; load it there with docker pull or docker load", provider.ErrImage, ref, h.hostLabel())
	}
	return h.pullOnce(ctx, ref, true)
}

func (h *host) hasImage(ctx context.Context, ref string) (bool, error) {
	err := h.call(ctx, "image_inspect", h.p.o.CallTimeout, func(ctx context.Context) error {
		_, err := h.api.ImageInspect(ctx, ref)
		return err
	})
	switch {
	case absent(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for image %s: %w", ref, err)
	}
	return true, nil
}

// pullOnce pulls an image, or waits for another caller that does. missing says
// that it is enough if the image is there afterwards.
func (h *host) pullOnce(ctx context.Context, ref string, missing bool) error {
	for {
		h.mu.Lock()
		other := h.pulls[ref]
		if other == nil {
			mine := &pull{done: make(chan struct{})}
			h.pulls[ref] = mine
			h.mu.Unlock()
			defer func() {
				h.mu.Lock()
				delete(h.pulls, ref)
				h.mu.Unlock()
				close(mine.done)
			}()
			break
		}
		h.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !missing {
			continue
		}
		if there, err := h.hasImage(ctx, ref); there || err != nil {
			return err
		}
	}
	began := h.clock.Now()
	h.p.o.Logger.InfoContext(ctx, "pulling an image", "image", ref, "host", h.hostLabel())
	// Not through the circuit breaker: it takes minutes, and mostly it is the
	// registry that fails.
	err := h.direct(ctx, "pull", h.p.o.PullTimeout, func(ctx context.Context) error {
		err := h.pull(ctx, ref, began)
		switch {
		case err == nil:
			return nil
		case interrupted(err) || strings.Contains(err.Error(), noSpace):
			// That says nothing about the image.
			return fmt.Errorf("pull image %s to host %s: %w", ref, h.hostLabel(), err)
		default:
			return fmt.Errorf("%w: %s could not be pulled to host %s (run docker pull %s there to see why, or load it with docker load, or set the pool's image to one that is there): %w",
				provider.ErrImage, ref, h.hostLabel(), ref, err)
		}
	})
	took := h.clock.Since(began)
	result := "pulled"
	if err != nil {
		result = "failed"
	} else {
		h.p.o.Logger.InfoContext(ctx, "image pulled", "image", ref, "host", h.hostLabel(), "seconds", took.Seconds())
	}
	h.p.metrics.pulls.WithLabelValues(h.label, result).Observe(took.Seconds())
	return err
}

// interrupted says that the connection to the engine ended, or could not be made.
func interrupted(err error) bool {
	var network net.Error
	return client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// hostLabel is the best name that is known without asking.
func (h *host) hostLabel() string {
	names := h.names()
	if h.Name != "" {
		return h.Name
	}
	return names[len(names)-1]
}

// layer is how far one layer of an image is, in bytes.
type layer struct{ current, total int64 }

func (h *host) pull(ctx context.Context, ref string, began time.Time) error {
	progress, err := h.api.ImagePull(ctx, ref, image.PullOptions{})
	if err != nil {
		return err
	}
	defer progress.Close()
	// The pull has failed if the stream says so: its status was sent before.
	decoder := json.NewDecoder(progress)
	layers := map[string]layer{}
	told := began
	for {
		var line struct {
			ID       string `json:"id"`
			Status   string `json:"status"`
			Error    string `json:"error"`
			Progress struct {
				Current int64 `json:"current"`
				Total   int64 `json:"total"`
			} `json:"progressDetail"`
		}
		switch err := decoder.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("follow the pull: %w", err)
		case line.Error != "":
			return errors.New(line.Error)
		}
		// Extracting counts the same bytes once more.
		if line.Status == "Downloading" && line.Progress.Total > 0 {
			layers[line.ID] = layer{line.Progress.Current, line.Progress.Total}
		} else if l, ok := layers[line.ID]; ok && line.Status == "Download complete" {
			layers[line.ID] = layer{l.total, l.total}
		}
		if now := h.clock.Now(); now.Sub(told) >= progressEvery {
			told = now
			var sum layer
			for _, l := range layers {
				sum.current += l.current
				sum.total += l.total
			}
			h.p.o.Logger.InfoContext(ctx, "pulling an image", "image", ref, "host", h.hostLabel(), "status", line.Status,
				"downloaded", mebibytes(sum.current), "of_known", mebibytes(sum.total), "seconds", now.Sub(began).Seconds())
		}
	}
}
