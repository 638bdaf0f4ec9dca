package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// AllClusters is the topic of a subscription to every cluster.
const AllClusters = "*"

// SubscriberOptions describe who reads what.
type SubscriberOptions struct {
	// Handler names the consumers: subscribers of one name share the messages.
	Handler string
	// Suffixes are the subject endings to read. Default: events.Suffixes(Handler).
	Suffixes []string
}

// Subscriber is Watermill's message.Subscriber over the stream of record. The
// topic is a cluster's name or AllClusters. The messages of one key arrive one
// at a time and in order; different partitions go side by side. A Nack gives
// the message back after a backoff.
type Subscriber struct {
	b    *Bus
	opts SubscriberOptions
	kv   jetstream.KeyValue // of the handler; nil: opened by Subscribe

	mu     sync.Mutex
	closed bool
	stop   chan struct{}
	wg     sync.WaitGroup
}

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber returns a Subscriber of b. Closing it does not close b.
func NewSubscriber(b *Bus, o SubscriberOptions) (*Subscriber, error) {
	if len(o.Suffixes) == 0 {
		o.Suffixes = events.Suffixes(o.Handler)
	}
	if err := events.ValidateCluster(o.Handler); err != nil {
		return nil, fmt.Errorf("subscriber: handler: is %q, expected a DNS label", o.Handler)
	}
	if len(o.Suffixes) == 0 {
		return nil, fmt.Errorf("subscriber: handler %s reads no event of the catalogue", o.Handler)
	}
	return &Subscriber{b: b, opts: o, stop: make(chan struct{})}, nil
}

// Subscribe implements message.Subscriber. The channel is closed after ctx ended
// or Close was called, when every message that was sent is settled; it never
// closes by itself.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if topic != AllClusters {
		if err := events.ValidateCluster(topic); err != nil {
			return nil, fmt.Errorf("subscribe: topic: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("subscribe: the subscriber is closed")
	}
	kv := s.kv
	if kv == nil {
		var err error
		if kv, err = s.b.openBucket(ctx, s.opts.Handler); err != nil {
			return nil, fmt.Errorf("subscribe: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan *message.Message)
	var pulls sync.WaitGroup
	for p := range Partitions {
		l := &puller{Subscriber: s, kv: kv, topic: topic, partition: p, out: out}
		pulls.Go(func() { l.run(ctx) })
	}
	s.wg.Go(func() {
		select {
		case <-s.stop:
		case <-ctx.Done():
		}
		cancel()
		pulls.Wait()
		close(out)
	})
	return out, nil
}

// configs are the consumers of a subscription to every cluster.
func (s *Subscriber) configs() []jetstream.ConsumerConfig {
	out := make([]jetstream.ConsumerConfig, Partitions)
	for p := range out {
		out[p] = (&puller{Subscriber: s, topic: AllClusters, partition: p}).config()
	}
	return out
}

// Close ends every subscription and waits until their messages are settled.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// puller pulls one partition of one subscription.
type puller struct {
	*Subscriber
	kv        jetstream.KeyValue
	topic     string
	partition int
	out       chan<- *message.Message

	consumer  jetstream.Consumer
	wait      context.Context // bounds the waiting for messages
	endWait   context.CancelFunc
	idle      bool   // no message for a while
	uncounted uint64 // sequence that was given back before its handler ran
	delivered uint64 // consumer sequence of the last delivery to us
	marks     marks
}

// name is the consumer's prefix: a subscription to one cluster has consumers of
// its own.
func (l *puller) name() string {
	if l.topic == AllClusters {
		return l.opts.Handler
	}
	return l.opts.Handler + "-" + l.topic
}

func (l *puller) filters() []string {
	out := make([]string, len(l.opts.Suffixes))
	for i, suffix := range l.opts.Suffixes {
		out[i] = filterSubject(strconv.Itoa(l.partition), l.topic, "*", suffix)
	}
	return out
}

func (l *puller) config() jetstream.ConsumerConfig {
	return l.b.consumerConfig(l.name(), l.partition, l.filters())
}

func (l *puller) run(ctx context.Context) {
	defer l.b.reading(consumerName(l.name(), l.partition))()
	for fails := 0; l.b.slots.wait(ctx) == nil; {
		err := l.pull(ctx)
		if err == nil || ctx.Err() != nil {
			fails = 0
			continue
		}
		fails++
		l.b.metrics.failed("bus")
		l.b.interrupts.add(pullOf{l.name(), l.partition}, err)
		l.b.pause(ctx, backoff(l.b.opts.Times, fails))
	}
}

// pull receives messages until the iterator has to be replaced: because this
// process has no room, the partition became idle or busy, or after an error.
func (l *puller) pull(ctx context.Context) (err error) {
	if l.consumer == nil {
		if l.consumer, err = l.b.openConsumer(ctx, StreamName, l.config()); err != nil {
			return err
		}
	}
	expiry := l.b.opts.Times.PullExpiry
	if l.idle {
		expiry = l.b.opts.Times.IdleExpiry
	}
	it, err := l.consumer.Messages(
		jetstream.PullMaxMessages(10),
		jetstream.PullExpiry(expiry),
		jetstream.PullHeartbeat(l.b.heartbeat(expiry)),
		jetstream.PullPriorityGroup(pullGroup),
		jetstream.PullPrioritized(l.priority()),
	)
	if err != nil {
		l.consumer = nil
		return err
	}
	var waiting atomic.Bool // for a message: only then the pull may be ended
	unwatch := l.b.slots.watch(func() {
		if waiting.Load() {
			it.Drain()
		}
	})
	defer unwatch()
	defer it.Stop()
	defer func() {
		if l.wait != nil {
			l.endWait()
		}
	}()
	// An iterator is always drained to its end: a message that is on its way to it
	// would wait for AckWait otherwise.
	quiet := false
	for {
		waiting.Store(true)
		if l.b.slots.full() || ctx.Err() != nil {
			it.Drain()
		}
		m, err := l.next(ctx, it)
		waiting.Store(false)
		switch {
		case err == nil:
			if ctx.Err() != nil {
				_ = m.Nak() // it was on its way when we stopped: another process has it at once
				continue
			}
			if !l.receive(ctx, m) {
				continue
			}
			quiet = false
			if l.idle {
				l.idle = false
				it.Drain() // the next one has a shorter expiry
			}
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			if l.b.nc.IsClosed() {
				return err
			}
			return nil
		case errors.Is(err, context.Canceled):
			// The loop drains what is on its way.
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
			return nil // the connection is gone, nothing is on its way
		case errors.Is(err, context.DeadlineExceeded):
			if quiet && !l.idle {
				l.idle = true
				it.Drain() // the next one has a longer expiry
			}
			quiet = true
		default:
			l.consumer = nil // it may be gone
			return err
		}
	}
}

// heartbeat is how often the server shows that a pull of a duration is open.
func (b *Bus) heartbeat(expiry time.Duration) time.Duration {
	if b.opts.Replicas > 1 {
		// A server that dies takes the pull with it, and nobody says so.
		return min(expiry/2, b.opts.Times.Heartbeat)
	}
	return expiry / 2 // the library's default
}

// next waits for a message, or until nothing came for up to the idle time, or
// ctx ends. The time is measured by a context that serves many messages: one for
// each would cost more than all the rest of the pull.
func (l *puller) next(ctx context.Context, it jetstream.MessagesContext) (jetstream.Msg, error) {
	if ctx.Err() != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return it.Next(jetstream.NextContext(ctx))
	}
	if l.wait == nil || l.wait.Err() != nil {
		if l.wait != nil {
			l.endWait()
		}
		l.wait, l.endWait = context.WithTimeout(ctx, l.b.opts.Times.IdleExpiry/2)
	}
	return it.Next(jetstream.NextContext(l.wait))
}

func (l *puller) priority() uint8 {
	return uint8(mix32(l.b.opts.Instance, l.opts.Handler, strconv.Itoa(l.partition)) % 10)
}

// receive takes a slot and handles the message; false when there was none.
func (l *puller) receive(ctx context.Context, m jetstream.Msg) bool {
	received := l.b.wire.Now()
	meta, err := m.Metadata()
	if err != nil {
		l.b.opts.Logger.ErrorContext(ctx, "message without metadata ignored", "subject", m.Subject(), "error", err)
		return false
	}
	if meta.Sequence.Consumer != l.delivered+1 {
		l.marks.forget()
	}
	l.delivered = meta.Sequence.Consumer
	if !l.b.slots.take() {
		if meta.NumDelivered == 1 {
			l.uncounted = meta.Sequence.Stream
		}
		if err := m.NakWithDelay(l.b.opts.Times.Busy); err != nil {
			l.b.opts.Logger.WarnContext(ctx, "message not given back, it comes again after AckWait", "handler", l.opts.Handler, "error", err)
		}
		return false
	}
	defer l.b.slots.give()
	l.handle(ctx, m, meta, received)
	return true
}

// stale reports whether a message that was received after this process was
// frozen has been given to another one meanwhile: the last delivery of the
// consumer is not ours.
func (l *puller) stale(ctx context.Context, meta *jetstream.MsgMetadata) bool {
	if !l.b.alive.suspicious() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(fence*float64(l.b.opts.Times.AckWait)))
	defer cancel()
	info, err := l.consumer.Info(ctx)
	return err != nil || info.Delivered.Consumer != meta.Sequence.Consumer || info.NumAckPending == 0
}
