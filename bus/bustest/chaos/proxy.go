package chaos

import (
	"fmt"
	"net"
	"sync"
)

// proxy forwards TCP connections to one server, and can cut it off: bytes of
// both directions wait, as on a network that drops packets, and new connections
// get no answer.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	open  *sync.Cond
	cut   bool
	conns map[net.Conn]bool
	ended bool
}

func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.open = sync.NewCond(&p.mu)
	go p.accept()
	return p, nil
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(c)
	}
}

func (p *proxy) serve(client net.Conn) {
	defer hangUp(client)
	if !p.pass() {
		return
	}
	srv, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer hangUp(srv)
	if !p.add(client, srv) {
		return
	}
	defer p.remove(client, srv)
	var wg sync.WaitGroup
	wg.Go(func() { p.forward(srv, client) })
	wg.Go(func() { p.forward(client, srv) })
	wg.Wait()
}

// forward copies until one side ends; then both do.
func (p *proxy) forward(dst, src net.Conn) {
	defer hangUp(dst)
	defer hangUp(src)
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !p.pass() {
				return
			}
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			p.pass() // that a connection ended is not heard of, either
			return
		}
	}
}

// pass waits while the proxy is cut; false when it has ended.
func (p *proxy) pass() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cut && !p.ended {
		p.open.Wait()
	}
	return !p.ended
}

func (p *proxy) add(cs ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		p.conns[c] = true
	}
	return !p.ended
}

func (p *proxy) remove(cs ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		delete(p.conns, c)
	}
}

// block cuts the proxy off.
func (p *proxy) block() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
}

// heal ends a cut. What waited arrives late, or its connections are broken.
func (p *proxy) heal(breakConnections bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if breakConnections {
		for c := range p.conns {
			hangUp(c)
		}
	}
	p.cut = false
	p.open.Broadcast()
}

func (p *proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for c := range p.conns {
		hangUp(c)
	}
	p.open.Broadcast()
}

// hangUp ends a connection; that it has ended already is no error.
func hangUp(c net.Conn) { _ = c.Close() }
