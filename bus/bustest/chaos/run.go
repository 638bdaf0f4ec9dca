//go:build unix

package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

// maxBytes bounds the stream of record of a run.
const maxBytes = 64 << 20

// Run runs a schedule in a directory, which must be empty, and checks what came
// of it. The error is about the run itself.
func Run(ctx context.Context, s Schedule, dir string) (Result, error) {
	began := time.Now()
	r := &runner{s: s, dir: dir, tail: NewTail(historyPath(dir)), live: map[int]string{}, fired: map[Fault]int{}, missed: map[Fault]int{}}
	defer r.end()
	h, err := r.run(ctx)
	if err != nil {
		return Result{Schedule: s}, fmt.Errorf("%s: %w", s, err)
	}
	res := Result{Schedule: s, Violations: append(r.violations, Check(h)...), Events: len(h.Stream), Dead: len(h.Dead), Fired: r.fired, Missed: r.missed, Took: time.Since(began)}
	for _, l := range h.Lines {
		if l.What == WhatEffect {
			res.Effects++
		}
	}
	return res, nil
}

// runner runs one schedule.
type runner struct {
	s    Schedule
	dir  string
	log  *Log
	tail *Tail

	servers    []*process
	restarts   [clusterServers]sync.Mutex // by server
	urls       []string                   // of the servers, without proxy
	publishers []*bus.Bus

	mu         sync.Mutex
	workers    []*workerSlot
	live       map[int]string // names of the workers by their index
	fired      map[Fault]int
	missed     map[Fault]int
	published  []string
	redriven   bool
	violations []Violation
}

// workerSlot is one worker and those that replace it.
type workerSlot struct {
	mu      sync.Mutex // one fault at a time
	index   int
	life    int // how many processes there were
	proc    *process
	proxies []*proxy
	server  *serverSpec // runs in it
}

func (r *runner) run(ctx context.Context) (h History, err error) {
	if r.log, err = OpenLog(historyPath(r.dir), "driver"); err != nil {
		return h, err
	}
	if err := r.startServers(ctx); err != nil {
		return h, err
	}
	if r.s.Topology == Cluster {
		stop, err := r.watchElections()
		if err != nil {
			return h, err
		}
		defer stop()
	}
	for i := range r.s.Workers {
		if err := r.addWorker(i); err != nil {
			return h, err
		}
	}
	if err := r.connect(ctx); err != nil {
		return h, err
	}
	defer func() {
		for _, b := range r.publishers {
			err = errors.Join(err, b.Close())
		}
	}()
	if err := r.ready(ctx); err != nil {
		return h, err
	}
	if err := r.storm(ctx); err != nil {
		return h, err
	}
	if why := r.settle(ctx); why != "" {
		r.violate(RuleUnended, "after the last fault was healed: %s", why)
	} else if r.s.Redrive {
		if err := r.redrive(ctx); err != nil {
			return h, err
		}
		if why := r.settle(ctx); why != "" {
			r.violate(RuleUnended, "after the dead letters were redriven: %s", why)
		}
	}
	r.stopWorkers()
	return r.collect(ctx)
}

func (r *runner) violate(rule, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, Violation{Rule: rule, Text: fmt.Sprintf(format, args...)})
}

func (r *runner) count(f Fault, hit bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hit {
		r.fired[f]++
	} else {
		r.missed[f]++
	}
}

func (r *runner) startServers(ctx context.Context) error {
	specs, err := serverSpecs(r.s.Topology, r.dir, r.s.Times.AckWait)
	if err != nil {
		return err
	}
	for i := range specs {
		spec := &specs[i]
		r.urls = append(r.urls, "nats://127.0.0.1:"+strconv.Itoa(spec.Port))
		if r.s.Topology == Embedded {
			r.workers = append(r.workers, &workerSlot{server: spec})
			continue
		}
		p, err := startProcess(r.dir, spec.Name, childSpec{Server: spec})
		if err != nil {
			return err
		}
		r.servers = append(r.servers, p)
	}
	if r.s.Topology != Cluster {
		return nil
	}
	return r.formed(ctx)
}

// addWorker starts the worker with an index.
func (r *runner) addWorker(i int) error {
	r.mu.Lock()
	if i == len(r.workers) {
		r.workers = append(r.workers, &workerSlot{index: i})
	}
	w := r.workers[i]
	r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server == nil {
		for _, u := range r.urls {
			p, err := newProxy(strings.TrimPrefix(u, "nats://"))
			if err != nil {
				return err
			}
			w.proxies = append(w.proxies, p)
		}
	}
	return r.startWorker(w)
}

func (r *runner) startWorker(w *workerSlot) error {
	urls := make([]string, len(w.proxies))
	for i, p := range w.proxies {
		urls[i] = p.url()
	}
	w.life++
	spec := workerSpec{
		Name: fmt.Sprintf("w%d.%d", w.index, w.life), Dir: r.dir, URL: strings.Join(urls, ","), Times: r.s.Times, Replicas: r.replicas(),
		Skew: r.s.Skew[w.index%len(r.s.Skew)], Mutant: r.s.Mutant, Server: w.server,
	}
	var err error
	w.proc, err = startProcess(r.dir, spec.Name, childSpec{Worker: &spec})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[w.index] = spec.Name
	return err
}

func (r *runner) replicas() int {
	if r.s.Topology == Cluster {
		return clusterServers
	}
	return 1
}

// connect opens the buses of two publishers.
func (r *runner) connect(ctx context.Context) error {
	for len(r.publishers) < 2 {
		b, err := r.open(ctx, "publisher-"+strconv.Itoa(len(r.publishers)), r.s.Times)
		if err != nil {
			return err
		}
		r.publishers = append(r.publishers, b)
	}
	return nil
}

// open opens a bus without a proxy; it waits for the servers.
func (r *runner) open(ctx context.Context, instance string, times bus.Times) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var b *bus.Bus
	err := r.persist(ctx, func() (err error) {
		b, err = bus.Open(ctx, bus.Options{
			URL: strings.Join(r.urls, ","), Instance: instance, Times: times, Replicas: r.replicas(), MaxBytes: maxBytes,
			Connect: []nats.Option{nats.IgnoreDiscoveredServers()},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the servers: %w", err)
	}
	return b, nil
}

// ready waits until all workers work.
func (r *runner) ready(ctx context.Context) error {
	var ended error
	err := r.await(ctx, 2*time.Minute, "all workers are ready", func(lines []Line) bool {
		for _, w := range r.workers {
			if !w.proc.running() {
				ended = w.proc.ended()
				return true
			}
		}
		n := 0
		for _, l := range lines {
			if l.What == WhatReady {
				n++
			}
		}
		return n == len(r.workers)
	})
	return errors.Join(err, ended)
}

// await waits for something in the history.
func (r *runner) await(ctx context.Context, limit time.Duration, what string, ok func([]Line) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		lines, err := r.tail.Lines()
		if err != nil {
			return err
		}
		if ok(lines) {
			return nil
		}
		if pause(ctx, 5*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// stopWorkers ends all workers, last the one that a server may run in.
func (r *runner) stopWorkers() {
	var wg sync.WaitGroup
	for _, w := range r.workers[1:] {
		wg.Go(func() { r.stopWorker(w) })
	}
	wg.Wait()
	r.stopWorker(r.workers[0])
}

// stopWorker tells a worker to end, which it does within its grace.
func (r *runner) stopWorker(w *workerSlot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.proc.stop(10*r.s.Times.Shutdown + 20*time.Second); err != nil {
		r.violate(RuleShutdown, "%s: %v", w.proc.name, err)
	}
}

// end kills what still runs.
func (r *runner) end() {
	for _, w := range r.workers {
		if w.proc != nil {
			w.proc.kill()
		}
		for _, p := range w.proxies {
			p.close()
		}
	}
	for _, p := range r.servers {
		p.kill()
	}
	if r.log != nil {
		_ = r.log.Close()
	}
}

// outputPath is where a child's standard error goes.
func outputPath(dir, name string) string { return filepath.Join(dir, name+".log") }
