package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/resilience"
)

// Engines are the Docker engines that the providers of one process use. It is
// safe for concurrent use.
type Engines struct {
	// placing is held while a host is chosen and its room is reserved.
	placing sync.Mutex

	mu   sync.Mutex
	open map[engineKey]*engine
}

// NewEngines returns none yet.
func NewEngines() *Engines { return &Engines{open: map[engineKey]*engine{}} }

// engineKey is what makes two hosts of two pools the same engine.
type engineKey struct {
	name, address string
	tls           TLS
	ssh           SSH
	parallel      int
}

// engine is one Docker engine: what pools share that have it for a host.
type engine struct {
	label   string // its name, or else its address
	address string
	api     *client.Client
	dialer  *sshDialer // nil: not by SSH
	breaker *resilience.Breaker
	slots   chan struct{} // one for each machine that may be created or started now
	clock   clock.Clock

	mu       sync.Mutex
	hostname string                 // what the engine calls its machine, once known
	reserved map[string]reservation // by the name of the machine
	sizes    map[string]size        // by container; those whose labels do not say
	pulls    map[string]*pull       // by image
}

// reservation is room for a machine that the engine does not show yet.
type reservation struct {
	pool  poolKey
	size  size
	until time.Time
}

type poolKey struct{ cluster, pool string }

// get returns the engine of a host, the same for each pool.
func (es *Engines) get(h Host, log *slog.Logger, reg prometheus.Registerer, clk clock.Clock) (*engine, error) {
	es.mu.Lock()
	defer es.mu.Unlock()
	key := engineKey{name: h.Name, address: h.Address, tls: h.TLS, ssh: h.SSH, parallel: h.MaxParallel}
	if e := es.open[key]; e != nil {
		return e, nil
	}
	e := &engine{
		label: h.Name, address: h.Address, slots: make(chan struct{}, h.MaxParallel), clock: clk,
		reserved: map[string]reservation{}, sizes: map[string]size{}, pulls: map[string]*pull{},
	}
	if e.label == "" {
		e.label = h.Address
	}
	if err := e.connect(h); err != nil {
		return nil, fmt.Errorf("prepare the client of %s: %w", h.Address, err)
	}
	var err error
	e.breaker, err = resilience.NewBreaker(resilience.BreakerOptions{
		Component: "docker", Host: e.label, Registerer: reg,
		IsFailure: func(err error) bool { return errors.As(err, new(*noAnswerError)) },
		OnChange: func(_, to resilience.State, last error) {
			switch to {
			case resilience.Open:
				log.Warn("docker host does not answer, it gets no new machines until it does", "host", e.label, "error", last)
			case resilience.Closed:
				log.Info("docker host answers again", "host", e.label)
			case resilience.HalfOpen:
			}
		},
	})
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	es.open[key] = e
	return e, nil
}

// connect prepares the client; it calls nothing.
func (e *engine) connect(h Host) error {
	opts := []client.Opt{client.WithAPIVersionNegotiation(), client.WithUserAgent("k3s-autoscaler")}
	if u, err := url.Parse(h.Address); err == nil && u.Scheme == "ssh" {
		e.dialer = newSSHDialer(u, h.SSH)
		// A transport of its own: no proxy of the environment stands between.
		opts = append(opts, client.WithHost("http://"+u.Hostname()), client.WithHTTPClient(&http.Client{
			Transport: &http.Transport{DialContext: e.dialer.DialContext}, CheckRedirect: client.CheckRedirect,
		}))
	} else {
		opts = append(opts, client.WithHost(h.Address))
		if h.TLS != (TLS{}) {
			opts = append(opts, client.WithTLSClientConfig(h.TLS.CAFile, h.TLS.CertFile, h.TLS.KeyFile))
		}
	}
	var err error
	e.api, err = client.NewClientWithOpts(opts...)
	return err
}

func (e *engine) close() error {
	var errs []error
	if e.api != nil {
		errs = append(errs, e.api.Close())
	}
	if e.dialer != nil {
		errs = append(errs, e.dialer.Close())
	}
	return errors.Join(errs...)
}

// slot waits until the engine may be busy with one more machine.
func (e *engine) slot(ctx context.Context) (release func(), err error) {
	select {
	case e.slots <- struct{}{}:
		return func() { <-e.slots }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait until host %s, which is busy with %d machines, takes another one: %w", e.label, cap(e.slots), ctx.Err())
	}
}

// reserve keeps room for a machine, until the engine shows it or the time is up.
func (e *engine) reserve(name string, pool poolKey, s size, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reserved[name] = reservation{pool: pool, size: s, until: e.clock.Now().Add(d)}
}

// prolong keeps room that was reserved for so long from now on; 0 gives it back.
func (e *engine) prolong(name string, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r, ok := e.reserved[name]; ok && d > 0 {
		r.until = e.clock.Now().Add(d)
		e.reserved[name] = r
		return
	}
	delete(e.reserved, name)
}

// reservations are those that count beside the machines shown.
func (e *engine) reservations(shown map[string]bool) []reservation {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []reservation
	now := e.clock.Now()
	for name, r := range e.reserved {
		switch {
		case shown[name]:
		case r.until.Before(now):
			delete(e.reserved, name)
		default:
			out = append(out, r)
		}
	}
	return out
}
