package bus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"k8s.io/utils/clock"
)

// fence is the share of AckWait after which a process without a confirmed sign
// of life gives a message up.
const fence = 0.8

var (
	errFenced   = errors.New("another process may own the message: no sign of life was confirmed in time")
	errShutdown = errors.New("the process stops")
)

// inflight is one message between its delivery and its acknowledgement.
type inflight struct {
	b        *Bus
	l        *puller
	msg      jetstream.Msg
	delivery Delivery
	ctx      context.Context // ends when the message is no longer ours
	cancel   context.CancelCauseFunc
	first    clock.Timer   // of the first sign of life
	stopped  chan struct{} // closed when signs of life have ended, if they began

	mu        sync.Mutex
	confirmed time.Time // when the last confirmed sign of life was sent
	err       error     // of the handler
	dead      string    // the reason why it is among the dead letters
}

type inflightKey struct{}

func inflightFrom(ctx context.Context) *inflight {
	f, _ := ctx.Value(inflightKey{}).(*inflight)
	return f
}

// DeliveryFrom returns the delivery that a message's context carries.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	f := inflightFrom(ctx)
	if f == nil {
		return Delivery{}, false
	}
	return f.delivery, true
}

// hold starts to keep a message that was received at the given time.
func (l *puller) hold(ctx context.Context, m jetstream.Msg, d Delivery, received time.Time) *inflight {
	f := &inflight{b: l.b, l: l, msg: m, delivery: d, confirmed: received, stopped: make(chan struct{})}
	ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	f.ctx = context.WithValue(ctx, inflightKey{}, f)
	f.first = l.b.wire.AfterFunc(l.b.opts.Times.AckWait/3, f.beat) // most messages are settled before
	return f
}

// beat proves every third of AckWait that this process still works on the
// message. Only a confirmation counts: a sign of life that nobody received must
// not make us believe that we own the message.
func (f *inflight) beat() {
	defer close(f.stopped)
	wait := f.b.opts.Times.AckWait
	tick := f.b.wire.NewTicker(wait / 3)
	defer tick.Stop()
	for first := true; ; first = false {
		rest := f.rest(f.b.wire.Now())
		if rest <= 0 {
			f.cancel(errFenced)
			return
		}
		if first {
			f.confirm()
			continue
		}
		lapse := f.b.wire.NewTimer(rest)
		select {
		case <-f.ctx.Done():
			lapse.Stop()
			return
		case <-lapse.C():
		case <-tick.C():
			f.confirm()
		}
		lapse.Stop()
	}
}

// rest is for how long the message is certainly ours after now.
func (f *inflight) rest(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Duration(fence*float64(f.b.opts.Times.AckWait)) - elapsed(f.confirmed, now)
}

// confirm asks the server for more time, while there is some left. After that it
// must not: when this process was frozen, the message may be another one's by
// now, and the server, which does not look at who asks, would say yes.
func (f *inflight) confirm() {
	sent := f.b.wire.Now()
	rest := f.rest(sent)
	if rest <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, min(rest, f.b.opts.Times.AckWait/3))
	defer cancel()
	if _, err := f.b.nc.RequestWithContext(ctx, f.msg.Reply(), []byte("+WPI")); err != nil {
		if f.ctx.Err() == nil {
			f.b.opts.Logger.Warn("sign of life not confirmed", "handler", f.l.opts.Handler, "sequence", f.delivery.Sequence, "key", f.delivery.Key.String(), "error", err)
		}
		return
	}
	f.mu.Lock()
	f.confirmed = sent
	f.mu.Unlock()
}

// owned reports whether the message is certainly ours still.
func (f *inflight) owned() bool {
	return broken.fence || !errors.Is(context.Cause(f.ctx), errFenced) && f.rest(f.b.wire.Now()) > 0
}

// drop ends the signs of life.
func (f *inflight) drop() {
	f.cancel(context.Canceled)
	if !f.first.Stop() {
		<-f.stopped
	}
}

// failed notes what the handler returned, for who decides about the message.
func (f *inflight) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *inflight) result() (dead string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead, f.err
}

// poison sets the event aside because of a permanent error of its handler.
func (f *inflight) poison() error {
	_, err := f.result()
	why := explain(err)
	why.attempts = f.delivery.Attempt
	if err := f.l.bury(f, why, !f.delivery.Key.IsCluster()); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = why.reason()
	return nil
}
