package docker

import (
	"context"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/resilience"
)

// prepullEvery is how often Prepull looks again: the server may have been
// upgraded, an image removed, a host replaced.
const prepullEvery = 10 * time.Minute

// Prepull keeps the pool's image on every host, so that no machine waits for it,
// until ctx ends. A host that can't be given it is tried again, while the others
// go on. serverVersion is asked each time: the image may follow it.
func (p *Provider) Prepull(ctx context.Context, serverVersion func(context.Context) (string, error)) {
	var wg sync.WaitGroup
	for _, h := range p.hosts {
		wg.Go(func() {
			for {
				// It ends well, or with ctx.
				_ = resilience.Retry(ctx, resilience.Policy{Initial: time.Second, Max: prepullEvery / 10, OnRetry: func(err error, wait time.Duration) {
					p.o.Logger.WarnContext(ctx, "image is not on a host yet, trying again", "host", h.hostLabel(), "error", err, "wait_seconds", wait.Seconds())
				}}, func(ctx context.Context) error { return h.prepull(ctx, serverVersion) })
				select {
				case <-ctx.Done():
					return
				case <-p.o.Clock.After(prepullEvery):
				}
			}
		})
	}
	wg.Wait()
}

func (h *host) prepull(ctx context.Context, serverVersion func(context.Context) (string, error)) error {
	version, err := serverVersion(ctx)
	if err != nil {
		return err
	}
	ref, err := h.p.o.image(version)
	if err != nil {
		return err
	}
	if there, err := h.hasImage(ctx, ref); there || err != nil {
		return err
	}
	return h.pullOnce(ctx, ref, true)
}
