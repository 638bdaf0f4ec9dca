//go:build unix

package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// settle waits until everything is handled; it returns what is not. It gives up
// when nothing was done for longer than a lease, its take-over, the backoff after
// it and two sweeps take: on a busy machine everything may take long.
func (r *runner) settle(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	patience := 20*time.Second + 2*leaseTTL(r.s.Times) + r.s.Times.BackoffMax + 2*r.s.Times.Sweep
	why, quiet, before, since := "", 0, 0, time.Now()
	for {
		open, err := r.unsettled(ctx)
		if err != nil {
			open = err.Error()
		}
		if why = open; why != "" {
			quiet = 0
		} else if quiet++; quiet == 2 {
			return ""
		}
		if n := r.progress(); n != before {
			before, since = n, time.Now()
		}
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil || time.Since(since) > patience {
			return cmp.Or(why, "it changes again and again")
		}
	}
}

// progress is how much was brought to an end.
func (r *runner) progress() (n int) {
	lines, err := r.tail.Lines()
	if err != nil {
		return 0
	}
	for _, l := range lines {
		switch l.What {
		case WhatDone, WhatLate, WhatEffect, WhatCommit:
			n++
		}
	}
	return n
}

// unsettled says what is not at its end, "" when everything is.
func (r *runner) unsettled(ctx context.Context) (string, error) {
	b := r.publishers[0]
	for _, handler := range []string{handlerProvisioning, handlerDraining} {
		n, err := b.Pending(ctx, handler)
		if err != nil {
			return "", err
		}
		if n > 0 {
			return fmt.Sprintf("%d events wait for %s", n, handler), nil
		}
	}
	recs, err := records(ctx, b)
	if err != nil {
		return "", err
	}
	for _, f := range recs {
		if op := f.next(); op != nil {
			return fmt.Sprintf("%s/%s: operation %s is open", f.Handler, f.Key, op.ID), nil
		}
		if !f.Due.IsZero() && (r.redriven || !r.s.poisoned(f.Key)) {
			return fmt.Sprintf("%s/%s: the deadline %s was not met", f.Handler, f.Key, f.Due.Format(time.RFC3339Nano)), nil
		}
	}
	last, err := b.LastSequence(ctx)
	if err != nil {
		return "", err
	}
	have, err := r.committed()
	if err != nil {
		return "", err
	}
	if uint64(len(have)) < last {
		return fmt.Sprintf("the batch reader committed %d of %d events", len(have), last), nil
	}
	return "", nil
}

func records(ctx context.Context, b *bus.Bus) ([]Final, error) {
	var out []Final
	for _, handler := range []string{handlerProvisioning, handlerDraining} {
		st, err := bus.ReadState[Record](ctx, b, handler)
		if err != nil {
			return nil, err
		}
		recs, err := st.All(ctx)
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			out = append(out, Final{Handler: handler, Key: rec.Key.Name, Record: rec.State})
		}
	}
	return out, nil
}

func (r *runner) committed() ([]uint64, error) {
	raw, err := os.ReadFile(storePath(r.dir))
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the batch store: %w", err)
	}
	var out []uint64
	for _, line := range strings.Fields(string(raw)) {
		n, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read the batch store: %w", err)
		}
		out = append(out, n)
	}
	return out, nil
}

// collect reads the history when all workers have ended.
func (r *runner) collect(ctx context.Context) (h History, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if r.s.Topology == Embedded {
		// The server ended with its worker.
		if err := r.serveAgain(); err != nil {
			return h, err
		}
	}
	// The times of the schedule are for the faults: reading a whole log within them
	// is no part of what is tested, and a busy machine may not manage.
	times := r.s.Times
	times.Request = 30 * time.Second
	b, err := r.open(ctx, "historian", times)
	if err != nil {
		return h, fmt.Errorf("collect the history: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	h.AckWait = r.s.Times.AckWait
	h.Published = r.published
	if h.Lines, err = r.tail.Lines(); err != nil {
		return h, err
	}
	err = r.persist(ctx, func() error {
		h.Stream = nil
		for d, err := range b.Read(ctx, bus.ReadOptions{}) {
			if err != nil {
				return err
			}
			s, err := stored(d)
			if err != nil {
				return err
			}
			h.Stream = append(h.Stream, s)
		}
		if h.Records, err = records(ctx, b); err != nil {
			return err
		}
		dls, err := b.DeadLetters(ctx)
		h.Dead = nil
		for _, d := range dls {
			h.Dead = append(h.Dead, Dead{Handler: d.Handler, Key: d.Event.Subject(), Seq: d.Sequence, Attempts: d.Attempts, Reason: d.Reason})
		}
		return err
	})
	if err != nil {
		return h, fmt.Errorf("collect the history: %w", err)
	}
	h.Committed, err = r.committed()
	return h, err
}

// persist tries fn again while the servers do not answer.
func (r *runner) persist(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if err == nil || !errors.Is(err, bus.ErrUnavailable) {
			return err
		}
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return err
		}
	}
}

// serveAgain starts the embedded server's directory as a server of its own.
func (r *runner) serveAgain() error {
	spec := *r.workers[0].server
	p, err := startProcess(r.dir, spec.Name, childSpec{Server: &spec})
	if err == nil {
		r.servers = append(r.servers, p)
	}
	return err
}

// stored is what the checker wants to know about an event.
func stored(d bus.Delivery) (Stored, error) {
	def, ok := events.Lookup(d.Event.Type())
	if !ok {
		return Stored{}, fmt.Errorf("event type %s is not in the catalogue", d.Event.Type())
	}
	s := Stored{Seq: d.Sequence, ID: d.Event.ID(), Key: d.Key.Name, Type: def.Suffix(), Cause: events.Extension(d.Event, events.ExtCausationID), Readers: slices.Clone(def.Readers)}
	if d.Redrive.Handler != "" {
		s.Readers, s.Origin = []string{d.Redrive.Handler}, d.Redrive.Origin
	}
	var err error
	switch d.Event.Type() {
	case events.TypeNodeObserved:
		var p events.NodeObserved
		if p, err = events.Decode[events.NodeObserved](d.Event); err == nil {
			var in instructions
			in, err = instructionsOf(p)
			s.Poison = in.poison
		}
	case events.TypeNodeDrainRequested:
		var p events.NodeDrainRequested
		p, err = events.Decode[events.NodeDrainRequested](d.Event)
		s.Detail = p.Reason.Code
	case events.TypeNodeCordoned:
		var p events.NodeCordoned
		p, err = events.Decode[events.NodeCordoned](d.Event)
		s.Detail = p.Reason.Code
	case events.TypeNodeReady:
		var p events.NodeReady
		p, err = events.Decode[events.NodeReady](d.Event)
		s.Detail = p.ClaimID
	case events.TypeTimerFired:
		var p events.TimerFired
		p, err = events.Decode[events.TimerFired](d.Event)
		s.Readers = []string{p.Handler} // of a copy, too
	case events.TypeDeadletterRecorded:
		var p events.DeadletterRecorded
		p, err = events.Decode[events.DeadletterRecorded](d.Event)
		s.Detail = deadKey(p.Handler, p.Sequence)
	}
	return s, err
}
