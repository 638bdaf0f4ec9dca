package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const (
	// maxBatch is how many events one batch holds at most, and how many may be
	// unacknowledged.
	maxBatch = 256
	// batchWindow is how long a batch waits for more.
	batchWindow = 5 * time.Millisecond
	// unknownCluster stands for the cluster of a message on a subject that names none.
	unknownCluster = "unknown"
)

// errGap means that earlier events are unacknowledged elsewhere: acknowledging
// ours would acknowledge theirs, too.
var errGap = errors.New("earlier events are still with another process")

// RunBatch delivers every event of the stream of record to h, in stream order,
// until ctx ends. One process at a time receives them. A batch is given again,
// with a growing delay, until h returns nil. A message that is no event reaches
// h as the deadletter.recorded that describes it, so that no sequence is
// missing.
func (b *Bus) RunBatch(ctx context.Context, h BatchHandler) error {
	if err := events.ValidateCluster(h.Name()); err != nil {
		return fmt.Errorf("run batches: handler: is %q, expected a DNS label", h.Name())
	}
	mctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.measureBatch(mctx, h.Name())
	}()
	defer func() {
		cancel()
		<-done
	}()
	defer b.reading(h.Name())()
	r := &batchRunner{b: b, h: h}
	for fails := 0; ctx.Err() == nil; {
		err := r.run(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if errors.Is(err, errGap) {
			b.pause(ctx, b.opts.Times.AckWait/4)
			continue
		}
		fails++
		b.metrics.failed("bus")
		b.opts.Logger.WarnContext(ctx, "reading batches interrupted, it goes on", "handler", h.Name(), "error", err)
		b.pause(ctx, backoff(b.opts.Times, fails))
	}
	return nil
}

type batchRunner struct {
	b *Bus
	h BatchHandler
	c jetstream.Consumer

	floor uint64    // everything up to this sequence is acknowledged
	gapAt time.Time // since when earlier events are missing; zero: they are not
}

// batch is some messages and their deliveries.
type batch struct {
	msgs []jetstream.Msg
	ds   []Delivery
}

func (r *batchRunner) ensure(ctx context.Context) (err error) {
	ctx, cancel := r.b.bound(ctx)
	defer cancel()
	r.c, err = r.b.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:        r.h.Name(),
		FilterSubject:  partPrefix + ".>",
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckAllPolicy,
		AckWait:        r.b.opts.Times.AckWait,
		MaxAckPending:  maxBatch,
		MaxDeliver:     -1,
		Replicas:       r.b.opts.Replicas,
		PriorityPolicy: jetstream.PriorityPolicyPinned,
		PriorityGroups: []string{pullGroup},
		PinnedTTL:      max(r.b.opts.Times.AckWait, time.Second),
	})
	if err != nil {
		return fmt.Errorf("consumer %s: %w", r.h.Name(), unavailable(err))
	}
	r.floor = r.c.CachedInfo().AckFloor.Stream
	return nil
}

func (r *batchRunner) run(ctx context.Context) error {
	if err := r.ensure(ctx); err != nil {
		return err
	}
	it, err := r.c.Messages(
		jetstream.PullMaxMessages(maxBatch),
		jetstream.PullExpiry(r.b.opts.Times.PullExpiry),
		jetstream.PullPriorityGroup(pullGroup),
	)
	if err != nil {
		return err
	}
	defer it.Stop()
	for {
		bt, err := r.gather(ctx, it)
		if err != nil || len(bt.msgs) == 0 {
			return err
		}
		if err := r.follows(ctx, bt); err != nil {
			for _, m := range bt.msgs {
				_ = m.NakWithDelay(r.b.opts.Times.AckWait / 4)
			}
			return err
		}
		if err := r.deliver(ctx, bt); err != nil {
			return err
		}
	}
}

// gather waits for one message and takes what follows it closely. Messages that
// are acknowledged already, or come a second time, are left out.
func (r *batchRunner) gather(ctx context.Context, it jetstream.MessagesContext) (batch, error) {
	var bt batch
	last := r.floor
	for len(bt.msgs) < maxBatch {
		var opt jetstream.NextOpt = jetstream.NextMaxWait(batchWindow)
		if len(bt.msgs) == 0 {
			opt = jetstream.NextContext(ctx)
		}
		m, err := it.Next(opt)
		switch {
		case errors.Is(err, nats.ErrTimeout):
			return bt, nil
		case err != nil && ctx.Err() != nil:
			return batch{}, nil
		case err != nil:
			return batch{}, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return batch{}, err
		}
		if meta.Sequence.Stream <= last {
			continue
		}
		last = meta.Sequence.Stream
		d, decodeErr := r.b.delivery(m.Subject(), m.Headers(), m.Data(), last, meta.Timestamp)
		d.Attempt = int(meta.NumDelivered)
		if decodeErr != nil {
			if d, err = r.undecodable(ctx, m, d, decodeErr); err != nil {
				return batch{}, err
			}
		}
		bt.msgs, bt.ds = append(bt.msgs, m), append(bt.ds, d)
	}
	return bt, nil
}

// follows makes sure that the batch begins right after what is acknowledged.
func (r *batchRunner) follows(ctx context.Context, bt batch) error {
	first := bt.ds[0].Sequence
	if first <= r.floor+1 {
		r.gapAt = time.Time{}
		return nil
	}
	info, err := r.b.info(ctx)
	if err != nil {
		return err
	}
	if first <= max(r.floor+1, info.State.FirstSeq) {
		r.gapAt = time.Time{}
		return nil
	}
	now := r.b.wire.Now()
	if r.gapAt.IsZero() {
		r.gapAt = now
	}
	if now.Sub(r.gapAt) < 4*r.b.opts.Times.AckWait {
		return errGap
	}
	// Nobody has them: they are gone. The handler sees the gap in the sequences.
	r.b.metrics.failed("bus")
	r.b.opts.Logger.ErrorContext(ctx, "events are missing in the stream of record", "handler", r.h.Name(), "after_sequence", r.floor, "before_sequence", first)
	r.gapAt = time.Time{}
	return nil
}

// deliver gives the batch to the handler until it takes it, and acknowledges it.
func (r *batchRunner) deliver(ctx context.Context, bt batch) error {
	last := bt.msgs[len(bt.msgs)-1]
	for n := 1; ; n++ {
		if (n > 1 || r.b.alive.suspicious()) && !r.proveAll(ctx, bt) {
			return errFenced
		}
		held, lost := r.holdBatch(ctx, bt)
		start := r.b.wire.Now()
		err := r.handle(held, bt.ds)
		r.b.metrics.durations.WithLabelValues(r.h.Name()).Observe(r.b.wire.Since(start).Seconds())
		if err == nil {
			if lost() {
				return errFenced
			}
			actx, cancel := r.b.bound(context.WithoutCancel(ctx))
			defer cancel()
			if err := last.DoubleAck(actx); err != nil {
				return fmt.Errorf("acknowledge up to %d: %w", bt.ds[len(bt.ds)-1].Sequence, unavailable(err))
			}
			r.b.metrics.deliveries.WithLabelValues(r.h.Name(), "handled").Add(float64(len(bt.ds)))
			r.floor = bt.ds[len(bt.ds)-1].Sequence
			return nil
		}
		if lost() {
			return errFenced
		}
		if ctx.Err() != nil {
			return nil
		}
		delay := backoff(r.b.opts.Times, n)
		if d, ok := RetryDelay(err); ok {
			delay = d
		}
		r.b.metrics.failed(r.h.Name())
		r.b.metrics.deliveries.WithLabelValues(r.h.Name(), "failed").Add(float64(len(bt.ds)))
		r.b.opts.Logger.WarnContext(ctx, "batch not handled, it will be tried again", "handler", r.h.Name(), "from_sequence", bt.ds[0].Sequence,
			"events", len(bt.ds), "attempt", n, "in", delay.String(), "error", err)
		// The wait is bounded by the time for which the batch is ours without a sign
		// of life; the next round begins with one.
		r.b.pause(ctx, min(delay, r.b.opts.Times.AckWait/2))
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (r *batchRunner) handle(ctx context.Context, ds []Delivery) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = middleware.Panicked(v)
		}
	}()
	return r.h.HandleBatch(ctx, ds)
}

// holdBatch proves that this process works on the batch until lost is called,
// which reports whether it may belong to another one by now.
func (r *batchRunner) holdBatch(ctx context.Context, bt batch) (held context.Context, lost func() bool) {
	wait := r.b.opts.Times.AckWait
	held, cancel := context.WithCancelCause(ctx)
	confirmed := r.b.wire.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := r.b.wire.NewTicker(wait / 3)
		defer tick.Stop()
		for {
			select {
			case <-held.Done():
				return
			case <-tick.C():
			}
			sent := r.b.wire.Now()
			if r.proveAll(held, bt) {
				confirmed = sent
			}
			if elapsed(confirmed, r.b.wire.Now()) > time.Duration(fence*float64(wait)) {
				cancel(errFenced)
				return
			}
		}
	}()
	return held, func() bool {
		cancel(context.Canceled)
		<-done
		return errors.Is(context.Cause(held), errFenced) || elapsed(confirmed, r.b.wire.Now()) > time.Duration(fence*float64(wait))
	}
}

// proveAll asks for more time for each message: the server counts each by itself.
func (r *batchRunner) proveAll(ctx context.Context, bt batch) bool {
	ctx, cancel := context.WithTimeout(ctx, r.b.opts.Times.AckWait/3)
	defer cancel()
	for _, m := range bt.msgs {
		if _, err := r.b.nc.RequestWithContext(ctx, m.Reply(), []byte("+WPI")); err != nil {
			return false
		}
	}
	return true
}

// undecodable sets a message aside and returns the event that says so in its
// place.
func (r *batchRunner) undecodable(ctx context.Context, m jetstream.Msg, d Delivery, why error) (Delivery, error) {
	if d.Key == (Key{}) {
		d.Key = Key{Cluster: unknownCluster, Name: events.ClusterKey}
	}
	dl, err := r.b.bury(ctx, burial{consumer: r.h.Name(), handler: r.h.Name(), delivery: d, msg: m, why: failure{err: why, attempts: d.Attempt}})
	if err != nil {
		return d, err
	}
	// The same event, with the same id, is on its way to the record.
	if d.Event, err = deadEvent(dl, d.Key); err != nil {
		return d, fmt.Errorf("record undecodable message %d: %w", d.Sequence, err)
	}
	return d, nil
}

func (b *Bus) measureBatch(ctx context.Context, handler string) {
	tick := b.wire.NewTicker(b.opts.Times.Metrics)
	defer tick.Stop()
	for {
		if info, err := b.consumerInfo(ctx, handler); err == nil {
			b.metrics.depth.WithLabelValues(handler).Set(float64(info.NumPending) + float64(info.NumAckPending))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}
