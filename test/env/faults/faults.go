// Package faults stands between the product and a Docker engine and lets calls
// fail in the ways that engines and networks do: refused with an answer, cut
// before or after the engine acted, late, or with nobody listening at all.
//
// Toxiproxy, which stands before the API server, knows bytes alone; what an
// engine refuses and whose reply is lost depends on the call.
package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Cut says when a connection ends in place of an answer.
type Cut int

// Moments of a cut.
const (
	CutNever  Cut = iota
	CutBefore     // the engine never hears of the call
	CutAfter      // the engine acts, and its answer is lost
)

// Fault is what happens to calls.
type Fault struct {
	// Method and Path select the calls; empty is any. Path is a regular expression
	// on the path without the API's version, e.g. ^/containers/create$.
	Method, Path string
	// Times is how many calls it happens to; 0 is all until it is lifted.
	Times int

	Delay   time.Duration         // passes first
	Before  func(r *http.Request) // is called next
	Cut     Cut
	Status  int    // answers in place of the engine
	Message string // of that answer, as engines word it
}

// Injected is a Fault at work.
type Injected struct {
	fault Fault
	path  *regexp.Regexp
	p     *Docker

	hits, left int // guarded by p.mu
}

// Hits is how many calls it has happened to.
func (i *Injected) Hits() int {
	i.p.mu.Lock()
	defer i.p.mu.Unlock()
	return i.hits
}

// Lift ends the fault. It is idempotent.
func (i *Injected) Lift() {
	i.p.mu.Lock()
	defer i.p.mu.Unlock()
	i.p.faults = slices.DeleteFunc(i.p.faults, func(f *Injected) bool { return f == i })
}

// Clear lifts every fault.
func (p *Docker) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// Docker is a proxy before one engine. It is safe for concurrent use.
type Docker struct {
	dir      string
	socket   string
	upstream *httputil.ReverseProxy
	raw      *http.Transport

	mu      sync.Mutex
	faults  []*Injected
	server  *http.Server // nil while it is down
	serving chan struct{}
}

// NewDocker listens on a socket of its own before the engine at host, e.g.
// unix:///var/run/docker.sock or tcp://127.0.0.1:2375.
func NewDocker(host string) (*Docker, error) {
	u, err := url.Parse(host)
	if err != nil {
		return nil, fmt.Errorf("engine %q: %w", host, err)
	}
	network, address := "unix", u.Path
	if u.Scheme != "unix" {
		network, address = "tcp", u.Host
	}
	dir, err := os.MkdirTemp("", "faults-") // short: a socket's path may have 108 bytes
	if err != nil {
		return nil, err
	}
	p := &Docker{dir: dir, socket: filepath.Join(dir, "docker.sock")}
	p.raw = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
	p.upstream = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "engine"}) },
		Transport:     p.raw,
		FlushInterval: -1, // logs and progress come as they are written
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	if err := p.Up(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

// Host is where the product finds the engine.
func (p *Docker) Host() string { return "unix://" + p.socket }

// Inject adds a fault. Of several that fit a call the one that was added first
// happens.
func (p *Docker) Inject(f Fault) *Injected {
	i := &Injected{fault: f, path: regexp.MustCompile(f.Path), p: p, left: f.Times}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, i)
	return i
}

// Down ends every connection and listens no more, as an engine that was stopped
// or a host that is off. It is idempotent.
func (p *Docker) Down() error {
	p.mu.Lock()
	server, serving := p.server, p.serving
	p.server = nil
	p.mu.Unlock()
	if server == nil {
		return nil
	}
	err := server.Close() // removes the socket, too
	<-serving
	return err
}

// Up undoes Down. It is idempotent.
func (p *Docker) Up() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		return nil
	}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		return err
	}
	p.server, p.serving = &http.Server{Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: time.Minute}, make(chan struct{})
	go func(s *http.Server, done chan struct{}) {
		defer close(done)
		_ = s.Serve(l) // ends with Close
	}(p.server, p.serving)
	return nil
}

// Close ends the proxy and removes its socket.
func (p *Docker) Close() error {
	err := p.Down()
	p.raw.CloseIdleConnections()
	return errors.Join(err, os.RemoveAll(p.dir))
}

// version is the API's version in a path.
var version = regexp.MustCompile(`^/v[0-9]+\.[0-9]+/`)

// take returns the fault that happens to a call, if one does.
func (p *Docker) take(r *http.Request) *Fault {
	path := version.ReplaceAllString(r.URL.Path, "/")
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, i := range p.faults {
		if i.fault.Method != "" && i.fault.Method != r.Method || !i.path.MatchString(path) {
			continue
		}
		i.hits++
		if i.fault.Times > 0 {
			if i.left--; i.left == 0 {
				p.faults = slices.Delete(p.faults, n, n+1)
			}
		}
		return &i.fault
	}
	return nil
}

func (p *Docker) serve(w http.ResponseWriter, r *http.Request) {
	f := p.take(r)
	if f == nil {
		p.upstream.ServeHTTP(w, r)
		return
	}
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	if f.Before != nil {
		f.Before(r)
	}
	switch {
	case f.Cut == CutBefore:
		panic(http.ErrAbortHandler)
	case f.Cut == CutAfter:
		p.actAndLose(r)
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		refuse(w, f.Status, f.Message)
	default:
		p.upstream.ServeHTTP(w, r)
	}
}

// actAndLose lets the engine act to the end, whoever hung up meanwhile.
func (p *Docker) actAndLose(r *http.Request) {
	out := r.Clone(context.WithoutCancel(r.Context()))
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", "engine", ""
	res, err := p.raw.RoundTrip(out)
	if err != nil {
		return // then it had nothing to lose
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
}

// refuse answers as an engine does.
func refuse(w http.ResponseWriter, status int, message string) {
	if message == "" {
		message = strings.ToLower(http.StatusText(status))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}
