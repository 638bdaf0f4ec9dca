package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// calls is a provider's server on loopback, which notes when it is called.
type calls struct {
	url    string
	server *http.Server
	mu     sync.Mutex
	at     map[string]time.Time // by node
	came   chan string
}

func listen() (*calls, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &calls{url: "http://" + l.Addr().String(), at: map[string]time.Time{}, came: make(chan string, 10_000)}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: time.Minute}
	go func() { _ = c.server.Serve(l) }()
	return c, nil
}

func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	var n struct{ Name string }
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	_, twice := c.at[n.Name]
	if !twice {
		c.at[n.Name] = now
	}
	c.mu.Unlock()
	if !twice {
		c.came <- n.Name
	}
}

func (c *calls) when(name string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[name]
}

func (c *calls) close() { _ = c.server.Close() }

// remote is a provider whose Create is a call to calls. Its machines never join.
type remote struct {
	url string
	mu  sync.Mutex
	all map[string]provider.Machine
}

var _ provider.NodeProvider = (*remote)(nil)

func (p *remote) Create(ctx context.Context, s provider.Spec) (provider.Machine, error) {
	body, err := json.Marshal(struct {
		Name string `json:"name"`
	}{s.Name})
	if err != nil {
		return provider.Machine{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return provider.Machine{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return provider.Machine{}, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return provider.Machine{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.all[s.Name]
	if !ok {
		m = provider.Machine{Name: s.Name, ID: s.Name, Cluster: s.Cluster, Pool: s.Pool, ClaimID: s.ClaimID, Epoch: s.Epoch, State: provider.Created, CreatedAt: time.Now().UTC()}
		p.all[s.Name] = m
	}
	return m, nil
}

func (p *remote) set(name string, s provider.State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.all[name]
	if !ok {
		return fmt.Errorf("machine %s: %w", name, provider.ErrNotFound)
	}
	m.State = s
	p.all[name] = m
	return nil
}

func (p *remote) Start(_ context.Context, name string) error { return p.set(name, provider.Running) }
func (p *remote) Stop(_ context.Context, name string) error  { return p.set(name, provider.Exited) }

func (p *remote) Delete(_ context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.all[name]; !ok {
		return fmt.Errorf("machine %s: %w", name, provider.ErrNotFound)
	}
	delete(p.all, name)
	return nil
}

func (p *remote) Get(_ context.Context, name string) (provider.Machine, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.all[name]
	if !ok {
		return m, fmt.Errorf("machine %s: %w", name, provider.ErrNotFound)
	}
	return m, nil
}

func (p *remote) List(context.Context) ([]provider.Machine, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []provider.Machine
	for _, name := range slices.Sorted(maps.Keys(p.all)) {
		out = append(out, p.all[name])
	}
	return out, nil
}

func (p *remote) Logs(context.Context, string, int) (string, error) { return "", nil }
