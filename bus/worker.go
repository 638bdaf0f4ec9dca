package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
)

// WorkerOptions describe the work that a handler does outside of messages.
type WorkerOptions[T any] struct {
	// Due says whether the record has open work now; if not, when to look again
	// (zero: when the record changes). It must be quick and without effects. Required.
	Due func(k Key, st T, now time.Time) (bool, time.Time)
	// Step does one step: an effect under the lease's context, then l.Commit. It is
	// called again at once while Due says so. After an error the step is tried again
	// when Due says so, at the earliest after a growing backoff. ctx is the lease's.
	// Required.
	Step func(ctx context.Context, l *Lease[T]) error
	// Concurrency is how many records are worked on at once. Default 8.
	Concurrency int
	// TTL of a lease; it is renewed every third of it while a step runs. Another
	// process takes over after that long. Default 30s.
	TTL time.Duration
}

// RunWorker works on the records until ctx ends, and then waits for the running
// steps, whose contexts end with ctx. Every change of a record wakes it at once, and
// a message may hand it its record in the write that records it (Turn.TakeUp);
// leases that expired are taken over when they do. Any number of processes may run it.
func (s *State[T]) RunWorker(ctx context.Context, o WorkerOptions[T]) error {
	if s.readOnly {
		return ErrReadOnly
	}
	if o.Due == nil || o.Step == nil {
		return errors.New("run worker: due and step are required")
	}
	o.Concurrency = cmp.Or(o.Concurrency, 8)
	o.TTL = cmp.Or(o.TTL, 30*time.Second)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		s.keep(ctx)
	}()
	defer func() {
		cancel()
		<-kept
	}()
	var changes <-chan change
	err := s.b.persist(ctx, "the work of "+s.opts.Handler, func() (err error) {
		changes, err = s.watch(ctx)
		return err
	})
	if err != nil {
		return ignoreEnd(ctx, fmt.Errorf("run worker: %w", err))
	}
	w := &worker[T]{s: s, o: o, ctx: ctx, jobs: map[Key]*job[T]{}, done: make(chan finished[T]),
		places: make(chan reservation), over: make(chan struct{})}
	s.worker.Store(w)
	defer s.worker.CompareAndSwap(w, nil)
	return w.run(ctx, changes)
}

// worker is the scheduler of one RunWorker; jobs and running belong to run's goroutine.
type worker[T any] struct {
	s       *State[T]
	o       WorkerOptions[T]
	ctx     context.Context // of the steps
	jobs    map[Key]*job[T]
	running int
	done    chan finished[T]
	places  chan reservation
	over    chan struct{} // closed when no place is given any more
}

// job is what the worker knows about one record.
type job[T any] struct {
	rec     Record[T]
	running bool
	fails   int
	notYet  time.Time // backoff after an error
	next    time.Time // when to look again; zero: on change
}

type finished[T any] struct {
	rec    Record[T] // as the job left it
	err    error
	unused bool // a place that was reserved and given back
}

func (w *worker[T]) run(ctx context.Context, changes <-chan change) error {
	clk := w.s.b.opts.Clock
	sweep := clk.NewTicker(w.s.b.opts.Times.Sweep)
	defer sweep.Stop()
	timer := clk.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case c, ok := <-changes:
			if !ok || ctx.Err() != nil {
				w.wait()
				return nil
			}
			w.changed(ctx, c)
		case f := <-w.done:
			w.finish(ctx, f)
		case r := <-w.places:
			r.answer <- ctx.Err() == nil && w.place(r.key, clk.Now())
		case <-sweep.C():
			w.scan(ctx)
		case <-timer.C():
			w.scan(ctx)
		}
		if next := w.earliest(); !next.IsZero() {
			timer.Reset(max(next.Sub(clk.Now()), 0))
		}
	}
}

// wait waits for the running steps.
func (w *worker[T]) wait() {
	close(w.over)
	for w.running > 0 {
		<-w.done
		w.running--
	}
}

func (w *worker[T]) changed(ctx context.Context, c change) {
	if c.caughtUp {
		return
	}
	if j := w.jobs[c.key]; j != nil && c.revision <= j.rec.Revision {
		return
	}
	if !c.entry.exists() {
		if j := w.jobs[c.key]; j == nil || !j.running {
			delete(w.jobs, c.key)
			return
		}
	}
	rec, err := w.s.record(c.key, c.entry, c.revision)
	if err != nil {
		w.s.b.metrics.failed("bus")
		w.s.b.opts.Logger.ErrorContext(ctx, "record can't be read, its work waits", "handler", w.s.opts.Handler, "key", c.key.String(), "error", err)
		return
	}
	j := w.jobs[c.key]
	if j == nil {
		j = &job[T]{}
		w.jobs[c.key] = j
	}
	j.rec = rec
	w.consider(ctx, j)
}

func (w *worker[T]) finish(ctx context.Context, f finished[T]) {
	w.running--
	j := w.jobs[f.rec.Key]
	j.running = false
	if f.rec.Revision > j.rec.Revision {
		j.rec = f.rec // the watcher is a little late: don't start on what is done
	}
	switch {
	case f.unused:
	case f.err == nil || ctx.Err() != nil:
		j.fails, j.notYet = 0, time.Time{}
	case errors.Is(f.err, ErrLeased):
		// The record says until when; the watcher brings it.
		j.notYet = w.s.b.opts.Clock.Now().Add(w.s.b.opts.Times.BackoffMin)
	default:
		j.fails++
		delay := backoff(w.s.b.opts.Times, j.fails)
		j.notYet = w.s.b.opts.Clock.Now().Add(delay)
		w.s.b.metrics.failed(w.s.opts.Handler)
		w.s.b.opts.Logger.WarnContext(ctx, "work step failed, it will be tried again", "handler", w.s.opts.Handler,
			"cluster", f.rec.Key.Cluster, "node", f.rec.Key.Name, "failures", j.fails, "at_the_earliest_in", delay.String(), "error", f.err)
	}
	if j.rec.Deleted || j.rec.Revision == 0 {
		delete(w.jobs, f.rec.Key)
	}
	// A slot is free: others may wait for it.
	w.scan(ctx)
}

func (w *worker[T]) scan(ctx context.Context) {
	for _, j := range w.jobs {
		w.consider(ctx, j)
	}
}

// consider starts a job that is due, or notes when to look again.
func (w *worker[T]) consider(ctx context.Context, j *job[T]) {
	j.next = time.Time{}
	if j.running || j.rec.Deleted || ctx.Err() != nil {
		return
	}
	now := w.s.b.opts.Clock.Now().UTC()
	due, at := w.o.Due(j.rec.Key, j.rec.State, now)
	switch {
	case !due:
		if !at.IsZero() && !at.After(now) {
			at = now.Add(w.s.b.opts.Times.BackoffMin)
		}
		j.next = at
		return
	case now.Before(j.notYet):
		j.next = j.notYet
		return
	case j.rec.LeaseOwner != "" && now.Before(j.rec.LeaseUntil) && !w.s.b.abandoned(j.rec.LeaseOwner) &&
		!w.s.left.may(j.rec.Key, j.rec.LeaseOwner) && !broken.lease:
		j.next = j.rec.LeaseUntil
		return
	case w.running >= w.o.Concurrency:
		return // finish scans again
	}
	j.running = true
	w.running++
	k := j.rec.Key
	go func() { w.done <- w.work(ctx, k) }()
}

func (w *worker[T]) earliest() time.Time {
	var first time.Time
	for _, j := range w.jobs {
		if !j.next.IsZero() && (first.IsZero() || j.next.Before(first)) {
			first = j.next
		}
	}
	return first
}

// work takes the lease and does steps while the record is due.
func (w *worker[T]) work(ctx context.Context, k Key) finished[T] {
	l, err := w.s.Acquire(ctx, k, w.o.TTL)
	if err != nil {
		return finished[T]{rec: Record[T]{Key: k}, err: err}
	}
	return w.held(ctx, l)
}

// hold is work under a lease that was taken with a message.
func (w *worker[T]) hold(l *Lease[T]) finished[T] {
	l.begin(w.ctx)
	return w.held(w.ctx, l)
}

// held does the steps that are due, and gives the lease back.
func (w *worker[T]) held(ctx context.Context, l *Lease[T]) finished[T] {
	stop := w.renew(l)
	err := w.steps(ctx, l)
	stop()
	// The lease is given back even when the process ends, so that another one can
	// go on at once.
	rctx, cancel := w.s.b.bound(context.WithoutCancel(ctx))
	defer cancel()
	err = errors.Join(err, l.Release(rctx))
	return finished[T]{rec: l.record(), err: err}
}

func (w *worker[T]) steps(ctx context.Context, l *Lease[T]) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = middleware.Panicked(r)
		}
	}()
	for ctx.Err() == nil {
		if due, _ := w.o.Due(l.Key(), l.Record(), w.s.b.opts.Clock.Now().UTC()); !due {
			return nil
		}
		before := l.commits()
		if err := w.o.Step(l.Context(), l); err != nil {
			return err
		}
		if l.commits() == before {
			return errors.New("the step committed nothing: it would run for ever")
		}
	}
	return nil
}

// renew keeps the lease until the returned function is called.
func (w *worker[T]) renew(l *Lease[T]) (stop func()) {
	ctx, cancel := context.WithCancel(l.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := w.s.b.opts.Clock.NewTicker(w.o.TTL / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C():
				if err := l.Confirm(ctx); err != nil && ctx.Err() == nil {
					w.s.b.opts.Logger.WarnContext(ctx, "lease not renewed", "handler", w.s.opts.Handler, "key", l.Key().String(), "error", err)
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
