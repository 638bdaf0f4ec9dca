package collector

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// How long to wait before the bus is tried again.
const (
	retryFirst = 250 * time.Millisecond
	retryMost  = 5 * time.Second
)

// never is later than anything that is due.
const never = 24 * time.Hour

// outbox is what the loop knows of the snapshots that it has published.
type outbox struct {
	fold     *events.Fold // what the acknowledged ones add up to
	count    uint64       // of snapshots, for their ids
	at       time.Time    // when the last one was put together
	verdict  time.Time    // when the last one that told of an unschedulable pod was
	fullAt   time.Time    // when the next full one is due
	needFull bool         // it is not known what the bus has
	retryAt  time.Time    // after a failure; zero: none
	wait     time.Duration
}

// loop publishes what is due until ctx ends.
func (c *Collector) loop(ctx context.Context) {
	c.out.needFull = true
	timer := c.o.Clock.NewTimer(never)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := c.o.Clock.Now()
		due := c.due()
		if !due.After(now) {
			c.publish(ctx, now)
			continue
		}
		timer.Reset(due.Sub(now))
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C():
		}
	}
}

// due returns when something is to be published next.
func (c *Collector) due() time.Time {
	if !c.out.retryAt.IsZero() {
		return c.out.retryAt
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.needFull || len(c.observed) > 0 {
		return time.Time{}
	}
	// A tenth is left for the way to the bus.
	due := earliest(c.out.fullAt, c.out.at.Add(c.o.ChangedEvery*9/10))
	if at := c.pending.soonAt; !at.IsZero() {
		due = earliest(due, at.Add(c.o.SoonWindow))
	}
	if at := c.pending.pressingAt; !at.IsZero() {
		due = earliest(due, c.closes(at))
	}
	return due
}

// publish sends the observations of nodes that wait, and then the snapshot, if
// one is due.
func (c *Collector) publish(ctx context.Context, now time.Time) {
	err := c.publishObserved(ctx)
	if err == nil {
		err = c.publishSnapshot(ctx, now)
	}
	if ctx.Err() != nil {
		return
	}
	c.settle(ctx, now, err)
}

// settle notes how a publication went.
func (c *Collector) settle(ctx context.Context, now time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.reported
	if err == nil {
		if !r.failingSince.IsZero() {
			c.log.InfoContext(ctx, "snapshots are published again", "failing_since", r.failingSince)
		}
		c.out.retryAt, c.out.wait = time.Time{}, 0
		r.failingSince, r.failure, r.publishedAt = time.Time{}, nil, c.out.at
		return
	}
	c.metrics.failures.Inc()
	if r.failingSince.IsZero() {
		r.failingSince = now
		c.log.ErrorContext(ctx, "snapshot could not be published; changes are kept and a full one follows when the bus answers", "err", err)
	}
	r.failure = err
	c.out.wait = min(max(2*c.out.wait, retryFirst), retryMost)
	c.out.retryAt = c.o.Clock.Now().Add(c.out.wait)
}

func (c *Collector) publishObserved(ctx context.Context) error {
	c.mu.Lock()
	es := c.observed
	c.mu.Unlock()
	if len(es) == 0 {
		return nil
	}
	if err := c.send(ctx, es...); err != nil {
		return fmt.Errorf("publish %d observations of nodes: %w", len(es), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// More may have come meanwhile, behind these.
	c.observed = c.observed[len(es):]
	c.metrics.observed.Add(float64(len(es)))
	return nil
}

func (c *Collector) send(ctx context.Context, es ...events.Event) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.PublishTimeout)
	defer cancel()
	start := c.o.Clock.Now()
	err := c.o.Publisher.Publish(ctx, es...)
	c.metrics.publish.Observe(c.o.Clock.Since(start).Seconds())
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busAnswered(start)
	}
	return err
}

// batch is what one snapshot is made of.
type batch struct {
	objects   events.SnapshotObjects // all, or those that may have changed
	gone      map[string][]string
	freshness map[string]time.Time
	version   string
	pending   pending
}

// take hands over what is pending. What changes from now on is in the next batch.
func (c *Collector) take(full bool) batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := batch{freshness: c.freshnessNow(), version: c.fresh.version, pending: c.pending}
	c.pending = newPending()
	if full {
		b.objects = c.model.all()
	} else {
		b.objects, b.gone = c.model.some(b.pending.dirty)
	}
	return b
}

// giveBack keeps since when the changes of a batch wait. The objects are in the
// model, from which the full snapshot that follows is made.
func (c *Collector) giveBack(b batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.pending
	p.firstAt = earliest(p.firstAt, b.pending.firstAt)
	p.soonAt = earliest(p.soonAt, b.pending.soonAt)
	p.pressingAt = earliest(p.pressingAt, b.pending.pressingAt)
	p.verdictAt = earliest(p.verdictAt, b.pending.verdictAt)
}

// publishSnapshot publishes a snapshot if one is due by now.
func (c *Collector) publishSnapshot(ctx context.Context, now time.Time) error {
	c.out.retryAt = time.Time{}
	if c.due().After(now) {
		return nil
	}
	full := c.out.needFull || !c.out.fullAt.After(now)
	b := c.take(full)
	send := c.change
	if full {
		send = c.capture
	}
	if err := send(ctx, now.UTC(), b); err != nil {
		// Whether it was stored is unknown.
		c.out.needFull = true
		c.giveBack(b)
		return err
	}
	return nil
}

// capture publishes a full snapshot.
func (c *Collector) capture(ctx context.Context, now time.Time, b batch) error {
	all, _, err := events.NewFold().Delta(b.objects, nil)
	if err != nil {
		return fmt.Errorf("full snapshot: %w", err)
	}
	s := events.SnapshotCaptured{Epoch: c.o.Epoch, Digest: all.Digest, CapturedAt: now, Freshness: b.freshness,
		Objects: all.Changed, ServerVersion: b.version}
	if err := c.sendSnapshot(ctx, now, s, "", s.Digest); err != nil {
		return fmt.Errorf("publish full snapshot: %w", err)
	}
	c.out.fullAt, c.out.needFull = now.Add(c.o.FullEvery), false
	c.acknowledged(b, now, "captured")
	return c.out.fold.Capture(s)
}

// change publishes what differs from the last snapshot. When nothing does, it
// publishes only what renews the freshness, once that is due.
func (c *Collector) change(ctx context.Context, now time.Time, b batch) error {
	d, differs, err := c.out.fold.Delta(b.objects, b.gone)
	if err != nil {
		return fmt.Errorf("snapshot delta: %w", err)
	}
	if !differs && now.Before(c.out.at.Add(c.o.ChangedEvery*9/10)) {
		return nil
	}
	d.Epoch, d.CapturedAt, d.Freshness = c.o.Epoch, now, b.freshness
	if differs {
		d.FirstChangeAt = b.pending.firstAt.UTC()
	}
	if err := c.sendSnapshot(ctx, now, d, d.Base, d.Digest); err != nil {
		return fmt.Errorf("publish snapshot delta: %w", err)
	}
	c.acknowledged(b, now, "changed")
	return c.out.fold.Change(d)
}

// sendSnapshot publishes a snapshot under an id that no other has: a process
// that starts again may count from the start, but at another time.
func (c *Collector) sendSnapshot(ctx context.Context, now time.Time, p events.Payload, base, digest string) error {
	c.out.count++
	e, err := events.New(events.Meta{
		Cluster: c.o.Cluster, Publisher: Role, Time: now,
		ID: events.ID("snapshot", c.o.Cluster, strconv.FormatInt(c.o.Epoch, 10), strconv.FormatUint(c.out.count, 10),
			strconv.FormatInt(now.UnixNano(), 10), base, digest),
	}, p)
	if err != nil {
		return err
	}
	return c.send(ctx, e)
}

// acknowledged notes that the bus has stored a snapshot.
func (c *Collector) acknowledged(b batch, now time.Time, kind string) {
	c.out.at = now
	if !b.pending.verdictAt.IsZero() {
		c.out.verdict = now
	}
	c.metrics.published.WithLabelValues(kind).Inc()
	if at := b.pending.pressingAt; !at.IsZero() {
		c.metrics.latency.Observe(c.o.Clock.Since(at).Seconds())
	}
}
