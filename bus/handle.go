package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"
)

// handle brings one message to its end: acknowledged, given back, set aside, or
// left to whoever owns it now.
func (l *puller) handle(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata, received time.Time) {
	if l.stale(ctx, meta) {
		l.ended("stale")
		l.b.opts.Logger.WarnContext(ctx, "message left alone: it arrived while this process was frozen, and belongs to another one",
			"handler", l.opts.Handler, "sequence", meta.Sequence.Stream)
		return
	}
	d, decodeErr := l.b.parse(m.Subject(), m.Headers(), m.Data(), meta.Sequence.Stream, meta.Timestamp)
	f := l.hold(ctx, m, d, received)
	defer f.drop()
	done, err := l.admit(f, decodeErr, meta.NumDelivered)
	if err == nil && !done {
		done, err = l.complete(ctx, f)
	}
	switch {
	case err != nil:
		l.giveBack(f, err, l.b.opts.Times.BackoffMin)
	case !done:
		l.offer(ctx, f)
	}
}

// admit counts the attempt, and sets aside what must not reach the handler; done
// says that the message is settled.
func (l *puller) admit(f *inflight, decodeErr error, delivered uint64) (done bool, err error) {
	d := &f.delivery
	if decodeErr != nil {
		return true, l.setAside(f, failure{err: decodeErr, attempts: int(delivered)}, false)
	}
	switch {
	case d.Redrive.Handler != "" && d.Redrive.Handler != l.opts.Handler:
		// It was handled here when it was first published.
		l.ended("skipped")
		l.finish(f, f.msg.Ack)
		return true, nil
	case isErrand(d.Event.Type()):
		return true, l.errand(f, delivered > 1)
	}
	if done, err := l.checkParked(f); done || err != nil {
		return true, err
	}
	t, err := l.count(f, delivered)
	if err != nil {
		return false, err
	}
	d.Attempt = t.Attempts
	if t.Attempts <= l.b.opts.MaxAttempts {
		return false, nil
	}
	return true, l.exhausted(f, t)
}

// complete fetches data that is stored apart; done says that the message is
// settled, because that is gone.
func (l *puller) complete(ctx context.Context, f *inflight) (done bool, err error) {
	fctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)() // the process stops
	err = l.b.complete(fctx, &f.delivery, f.msg.Subject())
	var lost *UndecodableError
	switch {
	case errors.As(err, &lost):
		return true, l.setAside(f, failure{err: lost, attempts: f.delivery.Attempt}, !f.delivery.Key.IsCluster())
	case err != nil && ctx.Err() != nil:
		l.handBack(f)
		return true, nil
	}
	return false, err
}

// checkParked sets aside what arrives on a parked key; done says that the message
// is settled.
func (l *puller) checkParked(f *inflight) (done bool, err error) {
	d := f.delivery
	if d.Key.IsCluster() {
		return false, nil
	}
	if d.Redrive.Handler == "" {
		if maybe, err := l.mayBeParked(f.ctx, d.Key); !maybe || err != nil {
			return false, err
		}
	}
	m, err := l.b.readMark(f.ctx, l.kv, d.Key)
	if err != nil {
		return false, err
	}
	switch m.admits(d) {
	case setAside:
		return true, l.follow(f, failure{err: fmt.Errorf("the key is parked behind dead letter %s: %s", m.ID, m.Reason)})
	case begun:
		return true, l.follow(f, failure{err: errors.New(m.Reason), attempts: m.Attempts})
	case duplicate:
		l.ended("skipped")
		l.b.opts.Logger.WarnContext(f.ctx, "copy ignored: it was published twice by a redrive", "handler", l.opts.Handler,
			"event_id", d.Event.ID(), "key", d.Key.String(), "sequence", d.Sequence)
		l.finish(f, f.msg.Ack)
		return true, nil
	case passes:
		m.Round.Passed = passed{Number: d.Redrive.Number, Sequence: d.Sequence}
		return false, l.b.writeMark(f.ctx, l.kv, &m)
	}
	if !m.exists() {
		l.marks.remove(d.Key)
	}
	return false, nil
}

// offer hands the message to the subscription's channel and waits for its end.
func (l *puller) offer(ctx context.Context, f *inflight) {
	msg := messageOf(f.delivery.Event)
	msg.SetContext(f.ctx)
	select {
	case l.out <- msg:
	case <-ctx.Done():
		l.handBack(f)
		return
	case <-f.ctx.Done():
		l.ended("fenced")
		return
	}
	acked, settled := l.await(ctx, f, msg)
	switch dead, err := f.result(); {
	case !f.owned():
		// Whoever owns it now does it again; an acknowledgement of ours would free
		// the slot and let the next message of the key overtake.
		l.ended("fenced")
		l.b.metrics.failed("bus")
		l.b.opts.Logger.Warn("result discarded: this process no longer owns the message", "handler", l.opts.Handler,
			"sequence", f.delivery.Sequence, "key", f.delivery.Key.String(), "error", context.Cause(f.ctx))
	case !settled:
		l.ended("abandoned")
		l.b.opts.Logger.Warn("handler did not end in time, its message comes again after AckWait", "handler", l.opts.Handler,
			"sequence", f.delivery.Sequence, "key", f.delivery.Key.String())
	case acked && dead != "":
		l.ended("dead")
		l.finish(f, func() error { return f.msg.TermWithReason(dead) })
	case acked:
		l.ended("handled")
		l.finish(f, f.msg.Ack)
	case errors.Is(context.Cause(f.ctx), errShutdown):
		l.handBack(f)
	default:
		l.failed(f, err)
	}
}

// await waits until the message is acked or nacked. After ctx ended, the handler
// has Times.Shutdown to end by itself and as long again with its context
// cancelled.
func (l *puller) await(ctx context.Context, f *inflight, msg *message.Message) (acked, settled bool) {
	stopping := ctx.Done()
	lost := f.ctx.Done()
	var grace <-chan time.Time
	for {
		select {
		case <-msg.Acked():
			return true, true
		case <-msg.Nacked():
			return false, true
		case <-lost:
			lost, stopping = nil, nil
			grace = l.b.wire.After(l.b.opts.Times.Shutdown)
		case <-stopping:
			stopping = nil
			grace = l.b.wire.After(l.b.opts.Times.Shutdown)
		case <-grace:
			if lost == nil {
				return false, false
			}
			f.cancel(errShutdown)
		}
	}
}

// failed decides what becomes of a message whose handler returned err.
func (l *puller) failed(f *inflight, err error) {
	if err == nil {
		err = errors.New("the message was refused without a reason")
	}
	attempts := f.delivery.Attempt
	if d, ok := RetryDelay(err); ok {
		l.ended("retried")
		l.giveBack(f, err, d)
		return
	}
	if errors.Is(err, ErrUnavailable) {
		l.ended("retried")
		l.giveBack(f, err, backoff(l.b.opts.Times, attempts))
		return
	}
	l.ended("failed")
	l.b.metrics.failed(l.opts.Handler)
	why := explain(err)
	t := tally{Sequence: f.delivery.Sequence, Attempts: attempts, Reason: why.reason(), Stack: why.stack}
	if attempts >= l.b.opts.MaxAttempts || IsTerminal(err) {
		if err := l.exhausted(f, t); err != nil {
			l.giveBack(f, err, l.b.opts.Times.BackoffMin)
		}
		return
	}
	delay := backoff(l.b.opts.Times, attempts)
	l.b.opts.Logger.Warn("event not handled, it will be tried again", "handler", l.opts.Handler, "event_id", f.delivery.Event.ID(),
		"event_type", f.delivery.Event.Type(), "key", f.delivery.Key.String(), "sequence", f.delivery.Sequence,
		"attempt", attempts, "of", l.b.opts.MaxAttempts, "in", delay.String(), "error", err)
	l.remember(f, t)
	l.finish(f, func() error { return f.msg.NakWithDelay(delay) })
}

// giveBack returns a message that is no failure of the handler's: it does not
// count as an attempt.
func (l *puller) giveBack(f *inflight, err error, d time.Duration) {
	l.b.opts.Logger.Info("event given back", "handler", l.opts.Handler, "event_id", f.delivery.Event.ID(),
		"key", f.delivery.Key.String(), "sequence", f.delivery.Sequence, "for", d.String(), "error", err)
	l.uncount(f)
	l.finish(f, func() error { return f.msg.NakWithDelay(max(d, time.Millisecond)) })
}

// handBack returns a message at once because the process stops.
func (l *puller) handBack(f *inflight) {
	l.ended("handed-back")
	l.uncount(f)
	l.finish(f, f.msg.Nak)
}

// finish sends the last word about a message, if it is still ours to say.
func (l *puller) finish(f *inflight, send func() error) {
	if !f.owned() {
		return
	}
	if err := send(); err != nil {
		l.b.metrics.failed("bus")
		l.b.opts.Logger.Warn("acknowledgement not sent, the event comes again", "handler", l.opts.Handler, "sequence", f.delivery.Sequence, "error", err)
	}
}

func (l *puller) ended(outcome string) {
	l.b.metrics.deliveries.WithLabelValues(l.opts.Handler, outcome).Inc()
}

// backoff is the delay after the n-th failure: doubling from the minimum to the
// maximum, with up to a quarter less by chance, so that what failed together is
// not tried together.
func backoff(t Times, n int) time.Duration {
	d := t.BackoffMax
	if n = max(n, 1); n < 20 {
		d = min(t.BackoffMin<<(n-1), t.BackoffMax)
	}
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}
