//go:build unix

package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// ClusterName is the cluster that all events of a schedule concern.
const ClusterName = "home"

// inFlight is how many messages a worker handles at once.
const inFlight = 8

// Record is the state of both handlers.
type Record struct {
	// Trail are the sequences of all messages that were applied, in order.
	Trail []uint64  `json:"trail"`
	Ops   []Op      `json:"ops,omitempty"`
	Due   time.Time `json:"due,omitzero"`
	// Armed and Fired count deadlines that were set and that were met.
	Armed int `json:"armed,omitempty"`
	Fired int `json:"fired,omitempty"`
}

// Op is an external effect: its intent, until it is done.
type Op struct {
	ID   string        `json:"id"`
	Work time.Duration `json:"work"`
	Done bool          `json:"done,omitempty"`
}

// next is the first operation that is not done, nil if all are.
func (r *Record) next() *Op {
	for i := range r.Ops {
		if !r.Ops[i].Done {
			return &r.Ops[i]
		}
	}
	return nil
}

// workerSpec is what a worker process is told.
type workerSpec struct {
	Name     string        `json:"name"`
	Dir      string        `json:"dir"` // history, batch store and lock of the world
	URL      string        `json:"url"`
	Times    bus.Times     `json:"times"`
	Replicas int           `json:"replicas"`
	Skew     time.Duration `json:"skew"`
	Mutant   string        `json:"mutant"`
	Server   *serverSpec   `json:"server"` // to run one in this process
}

func historyPath(dir string) string { return filepath.Join(dir, "history") }
func worldLock(dir string) string   { return filepath.Join(dir, "world.lock") }
func storePath(dir string) string   { return filepath.Join(dir, "batches") }

// worker is a process that works as the handlers of the product do.
type worker struct {
	spec  workerSpec
	log   *Log
	b     *bus.Bus
	world *world
	calls atomic.Int64
	pause *pauses
	kill  killer
	stp   *bus.State[Record] // provisioning's
	std   *bus.State[Record] // draining's
	audit bus.BatchHandler   // nil: none
}

func runWorker(spec workerSpec, co ChildOptions) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	log, err := OpenLog(historyPath(spec.Dir), spec.Name)
	if err != nil {
		return err
	}
	w := &worker{spec: spec, log: log}
	w.kill.log = log
	go w.kill.listen(os.Stdin)
	w.pause = watchPauses(log, spec.Times.AckWait, spec.Server != nil)
	w.world = openWorld(spec.Dir)
	o := bus.Options{
		URL: spec.URL, Instance: spec.Name, Times: spec.Times, Replicas: spec.Replicas, MaxBytes: maxBytes,
		InFlight: inFlight, Clock: skewed{by: spec.Skew}, OnStep: w.kill.step,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("worker", spec.Name),
		// Servers name each other to clients, past the proxy between them.
		Connect: []nats.Option{nats.IgnoreDiscoveredServers()},
	}
	if spec.Server != nil {
		srv, err := embedded.Start(embedded.Options{Dir: spec.Server.Dir, Unsynced: true, Listen: "127.0.0.1:" + strconv.Itoa(spec.Server.Port)})
		if err != nil {
			return err
		}
		defer srv.Shutdown()
		o.URL, o.Server = "", srv
	}
	if err := w.open(ctx, o); err != nil || ctx.Err() != nil {
		return err
	}
	if co.Audit != nil {
		if w.audit, err = co.Audit(spec.Dir, w.b); err != nil {
			return err
		}
	}
	log.Add(Line{What: WhatReady})
	err = w.run(ctx)
	return errors.Join(err, w.b.Close())
}

// open waits for the servers.
func (w *worker) open(ctx context.Context, o bus.Options) error {
	for {
		err := w.openOnce(ctx, o)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, bus.ErrUnavailable) {
			return err
		}
		o.Logger.WarnContext(ctx, "the bus is not open yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(o.Times.BackoffMin):
		}
	}
}

func (w *worker) openOnce(ctx context.Context, o bus.Options) (err error) {
	if w.b, err = bus.Open(ctx, o); err != nil {
		return err
	}
	w.stp, err = bus.OpenState(ctx, w.b, bus.StateOptions[Record]{
		Handler:  events.HandlerProvisioning,
		Deadline: func(_ bus.Key, r Record) time.Time { return r.Due },
	})
	if err == nil {
		w.std, err = bus.OpenState(ctx, w.b, bus.StateOptions[Record]{Handler: events.HandlerDraining})
	}
	if err != nil {
		_ = w.b.Close()
	}
	return err
}

func (w *worker) run(ctx context.Context) error {
	// What ends with an error ends the rest, and the process.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	parts := []func(context.Context) error{
		func(ctx context.Context) error {
			return w.b.Run(ctx, handlerFunc{events.HandlerProvisioning, w.provision}, handlerFunc{events.HandlerDraining, w.drain})
		},
		func(ctx context.Context) error {
			return w.stp.RunWorker(ctx, bus.WorkerOptions[Record]{
				TTL: leaseTTL(w.spec.Times),
				Due: func(_ bus.Key, r Record, _ time.Time) (bool, time.Time) { return r.next() != nil, time.Time{} },
				Step: func(ctx context.Context, l *bus.Lease[Record]) error {
					return w.work(ctx, l)
				},
			})
		},
		func(ctx context.Context) error { return w.b.RunBatch(ctx, &reader{w: w}) },
		w.b.RunTimers,
	}
	errs := make([]error, len(parts))
	for i, part := range parts {
		wg.Go(func() {
			defer cancel()
			errs[i] = part(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

type handlerFunc struct {
	name string
	fn   func(context.Context, bus.Delivery) error
}

func (h handlerFunc) Name() string { return h.name }
func (h handlerFunc) Handle(ctx context.Context, d bus.Delivery) error {
	return h.fn(ctx, d)
}

// call notes the beginning of a handler; the returned function notes its end.
func (w *worker) call(ctx context.Context, handler string, d bus.Delivery) (end func(error)) {
	l := Line{What: WhatStart, Handler: handler, Key: d.Key.Name, Seq: d.Sequence, Call: w.calls.Add(1), Note: "attempt " + strconv.Itoa(d.Attempt)}
	w.log.Add(l)
	began := time.Now()
	return func(err error) {
		l.Note = ""
		switch {
		case ctx.Err() != nil:
			l.What = WhatLost
		case err != nil:
			l.What, l.Note = WhatFailed, err.Error()
		case w.pause.since(began):
			l.What = WhatLate
		default:
			l.What = WhatDone
		}
		w.log.Add(l)
	}
}

// errPoison is what a poisoned event leads to.
var errPoison = errors.New("this event is poison")

// provision handles the load: it notes the message, the effect and the deadline
// that it leads to, and asks draining for something.
func (w *worker) provision(ctx context.Context, d bus.Delivery) (err error) {
	end := w.call(ctx, events.HandlerProvisioning, d)
	defer func() { end(err) }()
	var in instructions
	switch d.Event.Type() {
	case events.TypeNodeObserved:
		p, err := events.Decode[events.NodeObserved](d.Event)
		if err != nil {
			return bus.Terminal(err)
		}
		if in, err = instructionsOf(p); err != nil {
			return bus.Terminal(err)
		}
		if in.poison && d.Redrive.Handler == "" {
			return errPoison // whoever redrives it has removed the cause
		}
		// It does not look at its context: a handler that is busy does not, either.
		time.Sleep(in.hold)
		if ctx.Err() != nil {
			return nil // a result that comes too late must not be acknowledged
		}
	case events.TypeTimerFired:
	case events.TypeNodeCordoned:
	default:
		return bus.Terminal(fmt.Errorf("event type %s is not of this load", d.Event.Type()))
	}
	return w.stp.Apply(ctx, d, func(t *bus.Turn[Record]) error {
		t.State.Trail = append(t.State.Trail, d.Sequence)
		if d.Event.Type() == events.TypeTimerFired {
			// Any timer will do: the time of the turn is what counts.
			if !t.State.Due.IsZero() && !t.Now.Before(t.State.Due) {
				t.State.Due = time.Time{}
				t.State.Fired++
			}
			return nil
		}
		if d.Event.Type() != events.TypeNodeObserved {
			return nil
		}
		if in.work > 0 {
			t.State.Ops = append(t.State.Ops, Op{ID: opID(d.Key.Name, d.Sequence), Work: in.work})
			t.TakeUp() // or another worker does, when it sees the record
		}
		if in.timer > 0 && t.State.Due.IsZero() {
			t.State.Due = t.Now.Add(in.timer)
			t.State.Armed++
		}
		return t.Emit(events.NodeDrainRequested{
			Node: d.Key.Name, Goal: events.GoalDrain, DecisionID: "chaos", NotAfter: t.Now.Add(time.Hour), Deadline: events.Duration(time.Hour),
			DecidedAt: t.Now, Reason: events.Reason{Code: position(len(t.State.Trail))},
		})
	})
}

// drain answers what provisioning asked.
func (w *worker) drain(ctx context.Context, d bus.Delivery) (err error) {
	end := w.call(ctx, events.HandlerDraining, d)
	defer func() { end(err) }()
	return w.std.Apply(ctx, d, func(t *bus.Turn[Record]) error {
		t.State.Trail = append(t.State.Trail, d.Sequence)
		return t.Emit(events.NodeCordoned{
			DrainRef: events.DrainRef{Node: d.Key.Name, Goal: events.GoalDrain, RequestID: d.Event.ID()},
			Reason:   events.Reason{Code: position(len(t.State.Trail))},
		})
	})
}

func opID(key string, seq uint64) string { return key + "-" + strconv.FormatUint(seq, 10) }

// position says in an event which one of its record's messages led to it.
func position(n int) string { return "position-" + strconv.Itoa(n) }

// work does the next effect: intent (by the message), effect, result.
func (w *worker) work(ctx context.Context, l *bus.Lease[Record]) error {
	rec := l.Record()
	op := rec.next()
	if op == nil {
		return errors.New("no open operation")
	}
	line := Line{Key: l.Key().Name, Op: op.ID, Epoch: l.Epoch()}
	say := func(what string) { line.What = what; w.log.Add(line) }
	done, err := w.world.has(op.ID)
	if err != nil {
		return err
	}
	if done {
		say(WhatAdopt)
		return w.result(ctx, l, op.ID)
	}
	say(WhatBegin)
	select {
	case <-ctx.Done():
	case <-time.After(op.Work):
	}
	confirmed := time.Now()
	if err := l.Confirm(ctx); err != nil {
		say(WhatAbort)
		return err
	}
	// An effect has a deadline, as every call of another service does: the time
	// for which the lease is certainly ours.
	if err := w.world.effect(w.log, line, confirmed.Add(leaseTTL(w.spec.Times)*4/5)); err != nil {
		say(WhatAbort)
		return err
	}
	return w.result(ctx, l, op.ID)
}

func (w *worker) result(ctx context.Context, l *bus.Lease[Record], op string) error {
	return l.Commit(ctx, "result:"+op, func(t *bus.Turn[Record]) error {
		for i := range t.State.Ops {
			if t.State.Ops[i].ID == op {
				t.State.Ops[i].Done = true
			}
		}
		return t.Emit(events.NodeReady{Node: t.Key.Name, ClaimID: op, At: t.Now})
	})
}
