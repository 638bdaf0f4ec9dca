package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	// UnknownCluster stands for the cluster of a message on a subject that names none.
	UnknownCluster = "unknown"
)

// RunBatch delivers every event of the stream of record to h, in stream order,
// until ctx ends. One process at a time receives them. A batch is given again,
// with a growing delay, until h returns nil. A message that is no event reaches
// h as the deadletter.recorded that describes it, so that no sequence is
// missing.
func (b *Bus) RunBatch(ctx context.Context, h BatchHandler) error {
	if err := events.ValidateCluster(h.Name()); err != nil {
		return fmt.Errorf("run batches: handler: is %q, expected a DNS label", h.Name())
	}
	if err := b.openable(ctx, StreamName, b.batchConfig(h.Name())); err != nil {
		return ignoreEnd(ctx, fmt.Errorf("run batches: %w", err))
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
		fails++
		b.metrics.failed("bus")
		b.opts.Logger.WarnContext(ctx, "reading batches interrupted, it goes on", "handler", h.Name(), "error", err)
		b.pause(ctx, backoff(b.opts.Times, fails))
	}
	return nil
}

// batchRunner reads for one batch handler. Messages may come out of order, when
// some are still with a process that died: those that came early are kept until
// the gap is filled, because an acknowledgement covers everything before it.
type batchRunner struct {
	b *Bus
	h BatchHandler
	c jetstream.Consumer

	floor uint64            // everything up to this sequence is acknowledged
	held  map[uint64]parcel // received, later than floor
	gapAt time.Time         // since when the next one is missing; zero: it is not
}

// parcel is a message and its delivery.
type parcel struct {
	msg jetstream.Msg
	d   Delivery
}

func (r *batchRunner) ensure(ctx context.Context) (err error) {
	if r.c, err = r.b.openConsumer(ctx, StreamName, r.b.batchConfig(r.h.Name())); err != nil {
		return err
	}
	r.floor = r.c.CachedInfo().AckFloor.Stream
	return nil
}

func (r *batchRunner) run(ctx context.Context) error {
	if err := r.ensure(ctx); err != nil {
		return err
	}
	r.held = map[uint64]parcel{}
	it, err := r.c.Messages(
		jetstream.PullMaxMessages(maxBatch),
		jetstream.PullExpiry(r.b.opts.Times.PullExpiry),
		jetstream.PullPriorityGroup(pullGroup),
	)
	if err != nil {
		return err
	}
	defer r.handBack(it)
	for {
		if err := r.receive(ctx, it); err != nil || ctx.Err() != nil {
			return ignoreEnd(ctx, err)
		}
		ps, err := r.next(ctx)
		if err != nil {
			return err
		}
		if len(ps) == 0 {
			continue
		}
		if err := r.deliver(ctx, ps); err != nil {
			return err
		}
	}
}

// handBack returns what was received and not acknowledged, so that another
// process has it at once.
func (r *batchRunner) handBack(it jetstream.MessagesContext) {
	it.Drain()
	for {
		m, err := it.Next(jetstream.NextMaxWait(time.Second))
		if err != nil {
			break
		}
		_ = m.Nak()
	}
	for _, seq := range slices.Sorted(maps.Keys(r.held)) {
		_ = r.held[seq].msg.Nak()
	}
}

// receive takes messages until none follows closely. It waits for the first one;
// while others are held, only until their next sign of life is due.
func (r *batchRunner) receive(ctx context.Context, it jetstream.MessagesContext) error {
	wait := r.b.opts.Times.AckWait / 3
	opt := jetstream.NextContext(ctx)
	if len(r.held) > 0 {
		opt = jetstream.NextMaxWait(wait)
	}
	for large := false; len(r.held) < maxBatch && !large; {
		m, err := it.Next(opt)
		if errors.Is(err, nats.ErrTimeout) {
			break
		}
		if err != nil {
			return err
		}
		opt = jetstream.NextMaxWait(batchWindow)
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		seq := meta.Sequence.Stream
		if seq <= r.floor {
			continue // acknowledged already
		}
		d, decodeErr := r.b.parse(m.Subject(), m.Headers(), m.Data(), seq, meta.Timestamp)
		d.Attempt = int(meta.NumDelivered)
		if _, apart := claimed(d.Event); apart && decodeErr == nil {
			// It ends the batch: what it takes, in memory and time, is that of one.
			large = true
			decodeErr = r.b.complete(ctx, &d, m.Subject())
		}
		var undecodable *UndecodableError
		switch {
		case errors.As(decodeErr, &undecodable):
			if d, err = r.undecodable(ctx, m, d, undecodable); err != nil {
				return err
			}
		case decodeErr != nil:
			return decodeErr
		}
		r.held[seq] = parcel{m, d}
	}
	return nil
}

// next takes the messages that follow what is acknowledged, none if there is a
// gap.
func (r *batchRunner) next(ctx context.Context) ([]parcel, error) {
	if len(r.held) == 0 {
		return nil, nil
	}
	first := r.floor + 1
	if _, ok := r.held[first]; !ok {
		// Another process has acknowledged it, or has it still; or a limit of the
		// stream discarded it.
		if err := r.refresh(ctx); err != nil {
			return nil, err
		}
		if first = r.floor + 1; len(r.held) == 0 {
			return nil, nil
		}
		info, err := r.b.info(ctx)
		if err != nil {
			return nil, err
		}
		lowest := slices.Min(slices.Collect(maps.Keys(r.held)))
		if lowest > max(first, info.State.FirstSeq) && !r.waited(lowest) {
			if !r.proveAll(ctx) {
				return nil, errFenced
			}
			return nil, nil
		}
		first = lowest
	}
	r.gapAt = time.Time{}
	var ps []parcel
	for seq := first; len(ps) < maxBatch; seq++ {
		p, ok := r.held[seq]
		if !ok {
			break
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// refresh reads what is acknowledged.
func (r *batchRunner) refresh(ctx context.Context) error {
	ctx, cancel := r.b.bound(ctx)
	defer cancel()
	info, err := r.c.Info(ctx)
	if err != nil {
		return fmt.Errorf("consumer %s: %w", r.h.Name(), unavailable(err))
	}
	r.floor = max(r.floor, info.AckFloor.Stream)
	maps.DeleteFunc(r.held, func(seq uint64, _ parcel) bool { return seq <= r.floor })
	return nil
}

// waited reports whether a gap lasts longer than any process can hold a message
// without being given up.
func (r *batchRunner) waited(lowest uint64) bool {
	now := r.b.wire.Now()
	if r.gapAt.IsZero() {
		r.gapAt = now
	}
	if now.Sub(r.gapAt) < 4*r.b.opts.Times.AckWait {
		return false
	}
	r.b.metrics.failed("bus")
	r.b.opts.Logger.Error("events are missing in the stream of record", "handler", r.h.Name(), "after_sequence", r.floor, "before_sequence", lowest)
	return true
}

// deliver gives the batch to the handler until it takes it, and acknowledges it.
func (r *batchRunner) deliver(ctx context.Context, ps []parcel) error {
	ds := make([]Delivery, len(ps))
	for i, p := range ps {
		ds[i] = p.d
	}
	for n := 1; ; n++ {
		if (n > 1 || r.b.alive.suspicious()) && !r.proveAll(ctx) {
			return errFenced
		}
		held, lost := r.hold(ctx)
		start := r.b.wire.Now()
		err := r.handle(held, ds)
		r.b.metrics.durations.WithLabelValues(r.h.Name()).Observe(r.b.wire.Since(start).Seconds())
		switch {
		case lost():
			return errFenced
		case err == nil:
			return r.ack(ctx, ps)
		case ctx.Err() != nil:
			return nil
		}
		delay := backoff(r.b.opts.Times, n)
		if d, ok := RetryDelay(err); ok {
			delay = d
		}
		// It is bounded by the time for which the batch is ours without a sign of life.
		delay = min(delay, r.b.opts.Times.AckWait/2)
		r.b.metrics.failed(r.h.Name())
		r.b.metrics.deliveries.WithLabelValues(r.h.Name(), "failed").Add(float64(len(ds)))
		r.b.opts.Logger.WarnContext(ctx, "batch not handled, it will be tried again", "handler", r.h.Name(), "from_sequence", ds[0].Sequence,
			"events", len(ds), "attempt", n, "in", delay.String(), "error", err)
		r.b.pause(ctx, delay)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// ack acknowledges everything up to the last of ps.
func (r *batchRunner) ack(ctx context.Context, ps []parcel) error {
	ctx, cancel := r.b.bound(context.WithoutCancel(ctx))
	defer cancel()
	last := ps[len(ps)-1]
	if err := last.msg.DoubleAck(ctx); err != nil {
		return fmt.Errorf("acknowledge up to %d: %w", last.d.Sequence, unavailable(err))
	}
	r.b.metrics.deliveries.WithLabelValues(r.h.Name(), "handled").Add(float64(len(ps)))
	r.floor = last.d.Sequence
	for _, p := range ps {
		delete(r.held, p.d.Sequence)
	}
	return nil
}

func (r *batchRunner) handle(ctx context.Context, ds []Delivery) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = middleware.Panicked(v)
		}
	}()
	if err := r.h.HandleBatch(ctx, ds); err != nil {
		return err
	}
	return r.errands(ctx, ds)
}

// errands carries out what a recorded batch asks about dead letters of this handler.
func (r *batchRunner) errands(ctx context.Context, ds []Delivery) error {
	for _, d := range ds {
		typ := d.Event.Type()
		if typ != events.TypeDeadletterDropRequested && typ != events.TypeDeadletterRedriveRequested {
			continue
		}
		var to struct {
			Handler string `json:"handler"`
		}
		if json.Unmarshal(d.Event.Data(), &to) != nil || to.Handler != r.h.Name() {
			continue
		}
		x := errand{b: r.b, handler: r.h.Name(), d: d, again: true, owned: func() bool { return ctx.Err() == nil }}
		var bad *events.DecodeError
		if err := x.run(ctx); errors.As(err, &bad) {
			// It is recorded, and means nothing.
			r.b.opts.Logger.WarnContext(ctx, "request about dead letters ignored: it can't be understood", "handler", r.h.Name(), "sequence", d.Sequence, "error", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// hold proves that this process has what it holds until lost is called, which
// reports whether it may belong to another one by now.
func (r *batchRunner) hold(ctx context.Context) (held context.Context, lost func() bool) {
	wait := r.b.opts.Times.AckWait
	held, cancel := context.WithCancelCause(ctx)
	confirmed := r.b.wire.Now()
	late := func(now time.Time) bool { return elapsed(confirmed, now) >= time.Duration(fence*float64(wait)) }
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
			// Not when it is late: the server would say yes to a process that was
			// frozen, though the messages may be another one's by now.
			if sent := r.b.wire.Now(); !late(sent) && r.proveAll(held) {
				confirmed = sent
			}
			if late(r.b.wire.Now()) {
				cancel(errFenced)
				return
			}
		}
	}()
	return held, func() bool {
		cancel(context.Canceled)
		<-done
		return errors.Is(context.Cause(held), errFenced) || late(r.b.wire.Now())
	}
}

// proveAll asks for more time for each message: the server counts each by itself.
func (r *batchRunner) proveAll(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, r.b.opts.Times.AckWait/3)
	defer cancel()
	for _, p := range r.held {
		if _, err := r.b.nc.RequestWithContext(ctx, p.msg.Reply(), []byte("+WPI")); err != nil {
			return false
		}
	}
	return true
}

// undecodable sets a message aside and returns the event that says so in its
// place; the same event, with the same id, is on its way to the record.
func (r *batchRunner) undecodable(ctx context.Context, m jetstream.Msg, d Delivery, why *UndecodableError) (Delivery, error) {
	d, err := Undecoded(r.h.Name(), d, why)
	if err != nil {
		return d, err
	}
	letter := undecodedLetter(r.h.Name(), d, why)
	letter.Subject, letter.Header, letter.Data = m.Subject(), m.Headers(), m.Data()
	if err := r.b.publishDead(ctx, letter, d.Key); err != nil {
		return d, err
	}
	if err := r.b.Publish(ctx, d.Event); err != nil {
		return d, fmt.Errorf("record dead letter %s: %w", letter.ID, err)
	}
	r.b.buried(ctx, letter, d.Key)
	return d, nil
}

func (b *Bus) measureBatch(ctx context.Context, handler string) {
	tick := b.wire.NewTicker(b.opts.Times.Metrics)
	defer tick.Stop()
	waiting := backlog{b: b, handler: handler, consumers: []string{handler}}
	for {
		waiting.measure(ctx)
		b.measureDead(ctx, handler, false)
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}
