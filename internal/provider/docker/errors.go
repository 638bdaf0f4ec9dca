package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// Kinds of failed calls, the values of the metric's label "kind".
const (
	kindUnreachable = "unreachable"
	kindTimeout     = "timeout"
	kindNoSpace     = "no_space"
	kindImage       = "image"
	kindRefused     = "refused"
	kindOther       = "other"
)

// noSpace is how the kernel words a full disk, and engines with it.
const noSpace = "no space left on device"

// networkMissing tells a missing network from a missing container or image:
// all three are 404.
var networkMissing = regexp.MustCompile(`\bnetwork \S+ not found`)

// explain turns an error of the engine into one that tells an operator what to
// do, and names its kind. What it does not wrap in one of the provider's errors
// may be gone at the next attempt.
func (p *Provider) explain(err error) (string, error) {
	text := err.Error()
	switch {
	case errors.Is(err, provider.ErrImage):
		return kindImage, err
	case errors.Is(err, context.DeadlineExceeded):
		return kindTimeout, fmt.Errorf("the Docker engine at %s did not answer in time, see its load and its log: %w", p.o.Engine, err)
	case errors.Is(err, os.ErrPermission) || strings.Contains(text, "permission denied while trying to connect"):
		return kindUnreachable, fmt.Errorf("the Docker engine at %s does not let this user in, give it the group of the socket: %w", p.o.Engine, err)
	case client.IsErrConnectionFailed(err):
		return kindUnreachable, fmt.Errorf("the Docker engine at %s is not reachable, is it running?: %w", p.o.Engine, err)
	case strings.Contains(text, noSpace):
		return kindNoSpace, fmt.Errorf("%w: the disk of the Docker host at %s is full, free space there (docker system df says what takes it): %w", provider.ErrNoSpace, p.o.Engine, err)
	case networkMissing.MatchString(text):
		return kindRefused, fmt.Errorf("%w: network %s does not exist at %s, create it or change the pool's network: %w", provider.ErrRefused, p.o.Network, p.o.Engine, err)
	case cerrdefs.IsInvalidArgument(err):
		return kindRefused, fmt.Errorf("%w: the Docker engine at %s does not accept the container: %w", provider.ErrRefused, p.o.Engine, err)
	default:
		return kindOther, err
	}
}

// absent says that the machine or image asked for is not there.
func absent(err error) bool {
	return cerrdefs.IsNotFound(err) && !errors.Is(err, provider.ErrImage) && !networkMissing.MatchString(err.Error())
}

// expected says that an answer is part of the work, not a failure of the
// engine: the absence of a machine or image, or a name that is in use.
func expected(err error) bool { return cerrdefs.IsConflict(err) || absent(err) }
