package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// childEnv says what a child process is; the program starts itself.
const childEnv = "K3S_AUTOSCALER_BENCH_CHILD"

const (
	secret  = "only-for-this-measurement"
	cluster = "home"
	// mode is what both sides of a ratio have in common.
	mode = "server in a process of its own, TCP loopback, sync every 2m, explicit acks"
)

// role is what a child process does.
type role struct {
	Serve string // directory of the data: run a server
	// Durable has that server sync before it acknowledges.
	Durable bool
	Work    string // URL: run a handler
	Idle    string // directory: run the whole product on an idle cluster
	// Product is a directory: run the whole product on a real API server, with that
	// batch window; Floor: run test/floor there.
	Product, Window     string
	Floor               bool
	Kubeconfig, Actor   string
	Namespace, Provider string // what both work on
	Name                string
	// InFlight and Wait describe the handler: how many events at a time, and how
	// long it waits with each.
	InFlight int
	Wait     time.Duration
}

func child(spec string) error {
	var r role
	if err := json.Unmarshal([]byte(spec), &r); err != nil {
		return err
	}
	switch {
	case r.Serve != "":
		return serve(r.Serve, r.Durable)
	case r.Idle != "":
		return idle(r.Idle)
	case r.Product != "":
		return runProduct(r)
	case r.Floor:
		return runFloor(r)
	}
	return work(r)
}

// serve runs a server until standard input ends, with the parent.
func serve(dir string, durable bool) error {
	s, err := embedded.Start(embedded.Options{Dir: dir, Unsynced: !durable, Listen: "127.0.0.1:0", Token: secret, MaxStore: 16 << 30})
	if err != nil {
		return err
	}
	defer s.Shutdown()
	fmt.Println(s.URL())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// work handles events until standard input ends, and says how many it handled.
func work(r role) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b, err := open(ctx, r.Work, func(o *bus.Options) { o.Instance, o.InFlight = r.Name, r.InFlight })
	if err != nil {
		return err
	}
	h := newCounter(r.Wait)
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx, h) }()
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() { // each line asks for the count
		fmt.Println(h.n.Load())
	}
	cancel()
	return errors.Join(in.Err(), <-done, b.Close())
}

// process is a running child.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start starts a child and waits for its first line.
func start(r role) (*process, string, error) {
	spec, err := json.Marshal(r)
	if err != nil {
		return nil, "", err
	}
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		return nil, "", err
	}
	if !p.out.Scan() {
		p.end()
		return nil, "", fmt.Errorf("child %s said nothing", r.Name)
	}
	return p, p.out.Text(), nil
}

// count asks a worker how many events it has handled.
func (p *process) count() (int, error) {
	if _, err := fmt.Fprintln(p.in); err != nil {
		return 0, err
	}
	if !p.out.Scan() {
		return 0, errors.New("a worker ended")
	}
	return strconv.Atoi(p.out.Text())
}

func (p *process) end() {
	_ = p.in.Close() // it ends by that
	_ = p.cmd.Wait()
}

// world is what the figures share.
type world struct {
	dir   string
	sites []*site // that live until the end
	ends  []func()
}

func newWorld() (*world, error) {
	dir, err := os.MkdirTemp("", "k3s-autoscaler-bench-")
	return &world{dir: dir}, err
}

func (w *world) close() {
	for _, s := range w.sites {
		s.close()
	}
	for _, end := range w.ends {
		end()
	}
	_ = os.RemoveAll(w.dir)
}

// site is one server with a bus on it, and a plain connection.
type site struct {
	url string
	b   *bus.Bus
	js  jetstream.JetStream
	nc  *nats.Conn
	p   *process
}

// site starts a server of its own. The caller closes it.
func (w *world) site(ctx context.Context, opts ...func(*bus.Options)) (*site, error) {
	return w.siteOf(ctx, role{Name: "server"}, opts...)
}

// durableSite is one whose server has what it acknowledges on disk.
func (w *world) durableSite(ctx context.Context) (*site, error) {
	return w.siteOf(ctx, role{Name: "server", Durable: true})
}

func (w *world) siteOf(ctx context.Context, r role, opts ...func(*bus.Options)) (*site, error) {
	dir, err := os.MkdirTemp(w.dir, "server-")
	if err != nil {
		return nil, err
	}
	r.Serve = dir
	p, url, err := start(r)
	if err != nil {
		return nil, err
	}
	s := &site{url: url, p: p}
	if s.b, err = open(ctx, url, opts...); err != nil {
		s.p.end()
		return nil, err
	}
	if s.nc, err = nats.Connect(url, nats.Token(secret)); err != nil {
		_ = s.b.Close()
		s.p.end()
		return nil, err
	}
	s.js, err = jetstream.New(s.nc)
	return s, err
}

func (s *site) close() {
	_ = s.b.Close()
	s.nc.Close()
	s.p.end()
}

func open(ctx context.Context, url string, opts ...func(*bus.Options)) (*bus.Bus, error) {
	o := bus.Options{URL: url, Connect: []nats.Option{nats.Token(secret)}, MaxBytes: 4 << 30, InFlight: 2 * bus.Partitions}
	for _, opt := range opts {
		opt(&o)
	}
	return bus.Open(ctx, o)
}

// observed is event number i on one of so many nodes, read by provisioning.
func observed(i, nodes int) (events.Event, error) {
	node := "node-" + strconv.Itoa(i%nodes)
	now := time.Now().UTC()
	return events.New(events.Meta{Cluster: cluster, Node: node, Publisher: "bench", ID: "e" + strconv.Itoa(i), Time: now, CorrelationID: "life-" + node},
		events.NodeObserved{Node: node, What: events.ObservedReady, At: now})
}

// fill publishes events from (inclusive) to (exclusive) without waiting for each.
func (s *site) fill(ctx context.Context, from, to, nodes int) error {
	for ; from < to; from += 4000 {
		for i := from; i < min(from+4000, to); i++ {
			e, err := observed(i, nodes)
			if err != nil {
				return err
			}
			m, err := bus.EncodeEvent(e)
			if err != nil {
				return err
			}
			if _, err := s.js.PublishMsgAsync(m); err != nil {
				return err
			}
		}
		select {
		case <-s.js.PublishAsyncComplete():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// subjects of one partition that provisioning reads.
func subjects(partition int) []string {
	var out []string
	for _, suffix := range events.Suffixes(events.HandlerProvisioning) {
		out = append(out, strings.Join([]string{"p", strconv.Itoa(partition), events.SubjectRoot, "*", "node", "*", suffix}, "."))
	}
	return out
}
