//go:build unix

package chaos

import (
	"context"
	"errors"
	"sync"
	"time"
)

// storm publishes the load and injects the faults; when it returns, all of them
// are healed.
func (r *runner) storm(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(r.s.Faults)+1)
	wg.Go(func() { errs[len(r.s.Faults)] = r.load(ctx) })
	for i, f := range r.s.Faults {
		wg.Go(func() {
			pause(ctx, f.At)
			errs[i] = r.inject(ctx, f)
		})
	}
	wg.Wait()
	for _, l := range r.s.Load {
		switch {
		case l.Hold > r.s.Times.AckWait:
			r.count(FaultSlow, true)
		case l.Poison:
			r.count(FaultPoison, true)
		case l.Twice:
			r.count(FaultDuplicate, true)
		}
	}
	for i, by := range r.s.Skew {
		if by != 0 && i < len(r.workers) {
			r.count(FaultSkew, true)
		}
	}
	return errors.Join(errs...)
}

// load publishes every event until it is acknowledged: those of a key one after
// the other, different keys side by side.
func (r *runner) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.s.Span+2*time.Minute+20*r.s.Times.AckWait)
	defer cancel()
	began := time.Now()
	byKey := make([][]int, r.s.Keys)
	for i, l := range r.s.Load {
		byKey[l.Key] = append(byKey[l.Key], i)
	}
	var wg sync.WaitGroup
	errs := make([]error, r.s.Keys)
	for k, indexes := range byKey {
		wg.Go(func() {
			for _, i := range indexes {
				pause(ctx, r.s.Load[i].At-time.Since(began))
				if err := r.publish(ctx, i); err != nil {
					errs[k] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *runner) publish(ctx context.Context, i int) error {
	e, err := r.s.Load[i].event(i)
	if err != nil {
		return err
	}
	n := 1
	if r.s.Load[i].Twice {
		n = len(r.publishers)
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	for p := range n {
		wg.Go(func() {
			for {
				err := r.publishers[(i+p)%len(r.publishers)].Publish(ctx, e)
				if err == nil {
					return
				}
				if pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
					errs[p] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published = append(r.published, e.ID())
	return nil
}
