// Package kube reaches the API server of a cluster: clients from a kubeconfig,
// and the few acts on nodes and pods that scaling needs. It knows no handler;
// internal/app adapts it to the ports of those that act.
//
// Everything takes a kubernetes.Interface, so that it runs unchanged against a
// simulated cluster.
package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"
)

// How many requests a second a client makes at most, and at once. client-go's
// own defaults (5 and 10) make the eviction of a full node wait for itself;
// the server protects itself by priority and fairness.
const (
	DefaultQPS   = 50
	DefaultBurst = 100
)

// UserAgent is what the API server's audit log shows of us.
const UserAgent = "k3s-autoscaler"

// Load returns the client configuration of the current context of a kubeconfig
// file, or of the pod's service account when path is empty. There is no
// timeout on it, since that would cut watches: every call has one of its own.
func Load(path string) (*rest.Config, error) {
	c, err := load(path)
	if err != nil {
		return nil, err
	}
	c.QPS, c.Burst, c.UserAgent = DefaultQPS, DefaultBurst, UserAgent
	return c, nil
}

func load(path string) (*rest.Config, error) {
	if path == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no kubeconfig is set and there is no service account to fall back on (%w): "+
				"set clusters[].kubeconfig, or run in a pod with automountServiceAccountToken", err)
		}
		return c, nil
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}
	raw, err := rules.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("kubeconfig %s does not exist: a k3s server writes it to /etc/rancher/k3s/k3s.yaml, "+
			"copy it from there and put the server's address into it", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("kubeconfig %s: %w: let the user of this process read it, or start k3s with --write-kubeconfig-mode", path, err)
	case err != nil:
		return nil, fmt.Errorf("kubeconfig %s is not valid: %w", path, err)
	}
	c, err := clientcmd.NewDefaultClientConfig(*raw, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s can't be used: %w: check its current-context and the cluster and user named there", path, err)
	}
	return c, nil
}

// NewClient returns the typed client for a configuration. It speaks protobuf,
// which costs the server and us a fraction of JSON.
func NewClient(c *rest.Config) (kubernetes.Interface, error) {
	c = rest.CopyConfig(c)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return evictionTransport{next} })
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", c.Host, err)
	}
	return client, nil
}

// NewMetricsClient returns the client of metrics.k8s.io, which need not be
// served. It speaks JSON, which every implementation of that API understands.
func NewMetricsClient(c *rest.Config) (metrics.Interface, error) {
	client, err := metrics.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("metrics client of %s: %w", c.Host, err)
	}
	return client, nil
}

// evictionTransport hands a refused eviction to the caller at once. client-go
// would sleep for the server's Retry-After (10 s while a new budget is being
// processed) and repeat the call, up to ten times, unseen by the drain. The
// wish of the server is still in the body.
type evictionTransport struct{ next http.RoundTripper }

func (t evictionTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(r)
	if err == nil && strings.HasSuffix(r.URL.Path, "/eviction") {
		res.Header.Del("Retry-After")
	}
	return res, err
}

// WrappedRoundTripper lets client-go look through it, e.g. to close idle connections.
func (t evictionTransport) WrappedRoundTripper() http.RoundTripper { return t.next }
