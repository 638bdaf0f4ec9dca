//go:build unix

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// inject injects a fault and heals it.
func (r *runner) inject(ctx context.Context, f Injection) error {
	switch f.Fault {
	case FaultCompete:
		r.mu.Lock()
		n := len(r.workers)
		r.mu.Unlock()
		r.log.Add(Line{What: WhatFault, Who: fmt.Sprintf("w%d.1", n), Fault: f.Fault})
		r.count(f.Fault, true)
		return r.addWorker(n)
	case FaultStepDown:
		return r.stepDown(ctx)
	case FaultRestart:
		if r.s.Topology != Embedded {
			return r.restartServer(ctx, f)
		}
		f.Worker = 0 // the server is in it
	}
	r.mu.Lock()
	w := r.workers[f.Worker%len(r.workers)]
	r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.Fault == FaultPartition && w.server != nil {
		r.count(f.Fault, false) // no network between them
		return nil
	}
	fault := Line{Who: w.proc.name, What: WhatFault, Fault: f.Fault, Server: w.server != nil}
	switch f.Fault {
	case FaultKillStep:
		return r.killStep(ctx, w, f, fault)
	case FaultKill, FaultRestart:
		r.hit(ctx, w)
		r.log.Add(fault)
		w.proc.kill()
		r.count(f.Fault, r.wasHit(fault))
		pause(ctx, r.s.Times.AckWait/2)
		return r.replace(ctx, w, fault)
	case FaultFreeze:
		return r.freeze(ctx, w, f, fault)
	case FaultPartition:
		r.hit(ctx, w)
		r.log.Add(fault)
		for _, p := range w.proxies {
			p.block()
		}
		r.count(f.Fault, r.wasHit(fault))
		pause(ctx, f.For)
		for _, p := range w.proxies {
			p.heal(f.Abrupt)
		}
		fault.What = WhatHealed
		r.log.Add(fault)
		return nil
	}
	return fmt.Errorf("fault %q is unknown", f.Fault)
}

// hit waits a little until the worker has something in flight.
func (r *runner) hit(ctx context.Context, w *workerSlot) {
	_ = r.await(ctx, r.s.Times.AckWait, "a message is in flight", func(lines []Line) bool { return open(lines, w.proc.name) > 0 })
}

// wasHit reports whether something was in flight when a fault was noted.
func (r *runner) wasHit(fault Line) bool {
	lines, err := r.tail.Lines()
	if err != nil {
		return false
	}
	for i := len(lines) - 1; i >= 0; i-- {
		if l := lines[i]; l.What == fault.What && l.Fault == fault.Fault && l.Who == fault.Who {
			return open(lines[:i], fault.Who) > 0
		}
	}
	return false
}

// replace starts a new process in the place of one that died. One that a server
// ran in heals when it serves again.
func (r *runner) replace(ctx context.Context, w *workerSlot, fault Line) error {
	if err := r.startWorker(w); err != nil {
		return err
	}
	err := r.awaitReady(ctx, w)
	fault.What = WhatHealed
	r.log.Add(fault)
	return err
}

// awaitReady waits until the process of w works.
func (r *runner) awaitReady(ctx context.Context, w *workerSlot) error {
	name := w.proc.name
	var ended error
	err := r.await(ctx, time.Minute+20*r.s.Times.AckWait, name+" is ready", func(lines []Line) bool {
		if !w.proc.running() {
			ended = w.proc.ended()
			return true
		}
		for i := len(lines) - 1; i >= 0; i-- {
			if lines[i].What == WhatReady && lines[i].Who == name {
				return true
			}
		}
		return false
	})
	return errors.Join(err, ended)
}

// killStep lets the worker kill itself at a step of the bus.
func (r *runner) killStep(ctx context.Context, w *workerSlot, f Injection, fault Line) error {
	fault.Note = f.Step
	r.log.Add(fault)
	if err := w.proc.arm(f.Step, f.Nth); err != nil {
		return err
	}
	hit := true
	select {
	case <-w.proc.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(3 * r.s.Times.AckWait):
		hit = false // too few messages came to it
		w.proc.kill()
	}
	r.count(f.Fault, hit)
	pause(ctx, r.s.Times.AckWait/2)
	return r.replace(ctx, w, fault)
}

// freeze stops the worker for a while. Not between its last check and an effect:
// see world.
func (r *runner) freeze(ctx context.Context, w *workerSlot, f Injection, fault Line) error {
	r.hit(ctx, w)
	unlock, err := flock(worldLock(r.dir))
	if err != nil {
		return err
	}
	r.log.Add(fault)
	err = w.proc.signal(syscall.SIGSTOP)
	unlock()
	if err != nil {
		return err
	}
	r.count(f.Fault, r.wasHit(fault))
	pause(ctx, f.For)
	fault.What = WhatHealed
	r.log.Add(fault)
	return w.proc.signal(syscall.SIGCONT)
}

// anyOpen reports whether any process has something in flight.
func (r *runner) anyOpen() bool {
	lines, err := r.tail.Lines()
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.live {
		if open(lines, name) > 0 {
			return true
		}
	}
	return false
}

// restartServer kills a server and starts it again on its directory.
func (r *runner) restartServer(ctx context.Context, f Injection) error {
	i := f.Worker % len(r.servers)
	// One at a time: two processes on one directory are no fault that happens.
	r.restarts[i].Lock()
	defer r.restarts[i].Unlock()
	r.mu.Lock()
	p := r.servers[i]
	r.mu.Unlock()
	fault := Line{Who: p.name, What: WhatFault, Fault: f.Fault, Server: true}
	_ = r.await(ctx, r.s.Times.AckWait, "a message is in flight", func([]Line) bool { return r.anyOpen() })
	hit := r.anyOpen()
	r.log.Add(fault)
	p.kill()
	r.count(f.Fault, hit)
	pause(ctx, f.For/4)
	next, err := startProcess(r.dir, p.name, p.spec)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.servers[i] = next
	r.mu.Unlock()
	err = r.whole(ctx, r.urls[i])
	fault.What = WhatHealed
	r.log.Add(fault)
	return err
}

// stepDown lets the leaders of the record, its buckets and some consumers step down.
func (r *runner) stepDown(ctx context.Context) error {
	nc, err := r.dial(ctx, strings.Join(r.urls, ","))
	if err != nil {
		return err
	}
	defer nc.Close()
	subjects := []string{"STREAM.LEADER.STEPDOWN." + bus.StreamName, "STREAM.LEADER.STEPDOWN.KV_k3sas-" + handlerProvisioning, "STREAM.LEADER.STEPDOWN." + bus.TimersStream}
	for p := range bus.Partitions {
		if p%2 == 0 {
			subjects = append(subjects, fmt.Sprintf("CONSUMER.LEADER.STEPDOWN.%s.%s-%d", bus.StreamName, handlerProvisioning, p))
		}
	}
	_ = r.await(ctx, r.s.Times.AckWait, "a message is in flight", func([]Line) bool { return r.anyOpen() })
	fault := Line{Who: "leaders", What: WhatFault, Fault: FaultStepDown, Server: true}
	hit := r.anyOpen()
	r.log.Add(fault)
	var errs []error
	for _, s := range subjects {
		m, err := nc.Request("$JS.API."+s, nil, 2*r.s.Times.AckWait) // the answer may be lost with a leader
		if err == nil && strings.Contains(string(m.Data), `"success":true`) {
			continue
		}
		if err == nil {
			err = errors.New(string(m.Data))
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	// Some may be without a leader just now, because of another fault.
	r.count(FaultStepDown, hit && len(errs) < len(subjects))
	pause(ctx, r.s.Times.AckWait/2)
	err = r.whole(ctx, strings.Join(r.urls, ","))
	fault.What = WhatHealed
	r.log.Add(fault)
	return err
}

// redrive asks for the dead letters of the poisoned keys to be redriven, and kills
// every process that gets to a step of it, once.
func (r *runner) redrive(ctx context.Context) error {
	r.redriven = true
	asked := map[string]bool{}
	for _, l := range r.s.Load {
		key := keyName(l.Key)
		if !l.Poison || asked[key] {
			continue
		}
		asked[key] = true
		if err := r.armRedrive(); err != nil {
			return err
		}
		e, err := events.New(events.Meta{Cluster: ClusterName, Node: key, Publisher: "api", ID: "redrive-" + key, Time: time.Now()},
			events.DeadletterRedriveRequested{Handler: handlerProvisioning, Actor: "chaos", Reason: "the cause is removed"})
		if err != nil {
			return err
		}
		if err := r.persist(ctx, func() error { return r.publishers[0].Publish(ctx, e) }); err != nil {
			return err
		}
	}
	if r.s.RedriveKill == "" {
		r.count(FaultRedrive, true)
		return nil
	}
	return r.reviveRedrive(ctx)
}

func (r *runner) armRedrive() error {
	if r.s.RedriveKill == "" {
		return nil
	}
	for _, w := range r.workers {
		if err := w.proc.arm(r.s.RedriveKill, 1); err != nil {
			return err
		}
	}
	return nil
}

// reviveRedrive replaces the processes that a redrive killed, until it killed none
// for a while. None is waited for before all are started: the server may have died
// with one of them.
func (r *runner) reviveRedrive(ctx context.Context) error {
	var dead []Line
	revive := func() error {
		for _, w := range r.workers {
			if w.proc.running() {
				continue
			}
			fault := Line{Who: w.proc.name, What: WhatFault, Fault: FaultRedrive, Server: w.server != nil}
			r.log.Add(fault)
			dead = append(dead, fault)
			if err := r.startWorker(w); err != nil {
				return err
			}
		}
		return nil
	}
	// The next process gets the message after AckWait.
	for quiet, n := 0, 0; quiet < 12 && ctx.Err() == nil; quiet++ {
		pause(ctx, r.s.Times.AckWait/4)
		if err := revive(); err != nil {
			return err
		}
		if len(dead) > n {
			n, quiet = len(dead), 0
		}
	}
	for _, w := range r.workers {
		_, _ = fmt.Fprintln(w.proc.in, "disarmed 0") // it may have died just now
	}
	pause(ctx, r.s.Times.AckWait/4)
	if err := revive(); err != nil {
		return err
	}
	var errs []error
	for _, w := range r.workers {
		errs = append(errs, r.awaitReady(ctx, w))
	}
	for _, fault := range dead {
		fault.What = WhatHealed
		r.log.Add(fault)
	}
	r.count(FaultRedrive, len(dead) > 0)
	return errors.Join(errs...)
}
