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

// mistrust matches what TLS says about certificates, on either side.
var mistrust = regexp.MustCompile(`\bx509: |bad certificate|certificate required|unknown certificate authority`)

// networkMissing tells a missing network from a missing container or image:
// all three are 404.
var networkMissing = regexp.MustCompile(`\bnetwork \S+ not found`)

// noAnswerError says that an engine did not answer, as told from one that refuses.
type noAnswerError struct{ error }

func (e *noAnswerError) Unwrap() error { return e.error }

func noAnswer(format string, args ...any) error { return &noAnswerError{fmt.Errorf(format, args...)} }

// explain turns an error of the engine into one that tells an operator what to
// do, and names its kind. What it does not wrap in one of the provider's errors
// may be gone at the next attempt.
func (h *host) explain(err error) (string, error) {
	text := err.Error()
	var ssh *sshError
	switch {
	case errors.Is(err, provider.ErrImage):
		return kindImage, err
	case errors.Is(err, context.DeadlineExceeded):
		return kindTimeout, noAnswer("the Docker engine at %s did not answer in time, see its load and its log: %w", h.address, err)
	case errors.As(err, &ssh), h.dialer != nil && client.IsErrConnectionFailed(err) && errors.As(h.dialer.failure(), &ssh):
		// The client puts a text of its own in the place of some errors.
		return kindUnreachable, noAnswer("the Docker engine at %s is not reachable: %w", h.address, ssh)
	case mistrust.MatchString(text):
		return kindUnreachable, noAnswer("the Docker engine at %s and this process do not trust each other's certificates, see the pool's ca_file (who signed the engine's), cert_file and key_file (signed by whom the engine trusts): %w", h.address, err)
	case errors.Is(err, os.ErrPermission) || strings.Contains(text, "permission denied while trying to connect"):
		return kindUnreachable, noAnswer("the Docker engine at %s does not let this user in, give it the group of the socket: %w", h.address, err)
	case client.IsErrConnectionFailed(err):
		return kindUnreachable, noAnswer("the Docker engine at %s is not reachable, is it running?: %w", h.address, err)
	case strings.Contains(text, noSpace):
		return kindNoSpace, fmt.Errorf("%w: the disk of the Docker host at %s is full, free space there (docker system df says what takes it): %w", provider.ErrNoSpace, h.address, err)
	case networkMissing.MatchString(text):
		return kindRefused, fmt.Errorf("%w: network %s does not exist at %s, create it or change the pool's network: %w", provider.ErrRefused, h.p.o.Network, h.address, err)
	case strings.Contains(text, "could not select device driver"):
		return kindRefused, fmt.Errorf("%w: host %s can't give GPUs to containers, install NVIDIA's container toolkit there or take the host out of the pool: %w", provider.ErrRefused, h.label, err)
	case cerrdefs.IsInvalidArgument(err):
		return kindRefused, fmt.Errorf("%w: the Docker engine at %s does not accept the container: %w", provider.ErrRefused, h.address, err)
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
