package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Headers of a dead letter, beside those of the event.
const (
	headerDead         = "K3sas-Dead-"
	headerDeadID       = headerDead + "Id"
	headerDeadHandler  = headerDead + "Handler"
	headerDeadReason   = headerDead + "Reason"
	headerDeadAttempts = headerDead + "Attempts"
	headerDeadStack    = headerDead + "Stack"
	headerDeadAt       = headerDead + "At"
	headerDeadSequence = headerDead + "Sequence"
	headerDeadSubject  = headerDead + "Subject"
	headerDeadParked   = headerDead + "Parked"
	headerDeadBody     = headerDead + "Body"
	headerDeadStream   = headerDead + "Incarnation"
)

const (
	maxReason = 4 << 10
	maxStack  = 16 << 10
)

// DeadLetter is an event that a handler set aside.
type DeadLetter struct {
	ID       string // derives from handler, stream and sequence
	Handler  string
	Reason   string
	Attempts int // 0: it was never tried, its key is parked
	Stack    string
	At       time.Time
	Key      Key    // of the event; of UnknownCluster when its subject is none of ours
	Sequence uint64 // of the event, or of the copy that failed again, in the stream of record
	// Origin is the sequence at which the event first stood: what a redrive orders by.
	Origin      uint64
	Incarnation string // of the stream of record; empty: written before it was noted
	// Parked says that later events of the key follow it, until it is redriven or
	// dropped: nothing acts on a node whose history has a gap.
	Parked bool
	// Event is the zero value when the message is no event; then Undecodable says why.
	Event       events.Event
	Undecodable string
	// Subject, Header and Data are the message as it was stored.
	Subject string
	Header  map[string][]string
	Data    []byte
	// Bodyless says that Data had no room: the stream of record has it at Sequence,
	// or it is in the payload bucket.
	Bodyless bool

	stored []uint64 // sequences in the dead-letter stream; several when it was published twice
}

// failure is why a message is set aside.
type failure struct {
	err      error
	attempts int
	stack    string
}

func (f failure) reason() string { return clip(f.err.Error(), maxReason) }

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

// explain finds the stack of an error: where it panicked or was marked Terminal.
func explain(err error) failure {
	f := failure{err: err}
	var p *middleware.PanicError
	var t *terminalError
	switch {
	case errors.As(err, &p):
		f.stack = clip(p.Stack, maxStack)
	case errors.As(err, &t):
		f.stack = clip(t.stack(), maxStack)
	}
	return f
}

// exhausted ends a message that is not tried again: unless its effect was
// written and only its publication or acknowledgement failed, it is set aside.
func (l *puller) exhausted(f *inflight, t tally) error {
	state := l.b.state(l.opts.Handler)
	ctx := context.WithoutCancel(f.ctx)
	if state != nil {
		settled, err := state.settle(ctx, f.delivery)
		if err != nil {
			return err
		}
		if settled {
			l.ended("handled")
			l.finish(f, f.msg.Ack)
			return nil
		}
	}
	if t.Reason == "" {
		t.Reason = "no attempt came to an end"
	}
	return l.setAside(f, failure{err: errors.New(t.Reason), attempts: min(t.Attempts, l.b.opts.MaxAttempts), stack: t.Stack}, !f.delivery.Key.IsCluster())
}

// setAside publishes the dead letter and ends the message.
func (l *puller) setAside(f *inflight, why failure, park bool) error {
	if err := l.bury(f, why, park); err != nil {
		return err
	}
	l.ended("dead")
	l.finish(f, func() error { return f.msg.TermWithReason(why.reason()) })
	return nil
}

// bury sets aside a message that is still ours.
func (l *puller) bury(f *inflight, why failure, park bool) error {
	if !f.owned() {
		return errFenced
	}
	if park {
		// The handler's goroutine buries a permanent error while the puller waits for it.
		l.marks.add(f.delivery.Key)
	}
	_, err := l.b.bury(context.WithoutCancel(f.ctx), burial{
		consumer: l.name(), handler: l.opts.Handler, kv: l.kv, delivery: f.delivery, msg: f.msg, why: why, park: park,
	})
	return err
}

// follow sets aside a message whose key is parked already.
func (l *puller) follow(f *inflight, why failure) error {
	if !f.owned() {
		return errFenced
	}
	if _, err := l.b.bury(context.WithoutCancel(f.ctx), burial{
		consumer: l.name(), handler: l.opts.Handler, delivery: f.delivery, msg: f.msg, why: why, park: true, follows: true,
	}); err != nil {
		return err
	}
	l.ended("dead")
	l.finish(f, func() error { return f.msg.TermWithReason(why.reason()) })
	return nil
}

// burial is a message that is to be set aside.
type burial struct {
	consumer string // several may belong to one handler
	handler  string
	kv       jetstream.KeyValue // of the handler; needed to park
	delivery Delivery
	msg      jetstream.Msg
	why      failure
	park     bool
	follows  bool // the key is parked behind another one
}

// bury parks the key, publishes the dead letter, and records both. Killed in
// between, it is done again: every part has an id of its own. The key is parked
// first, because a message that comes again finds it so and is set aside with
// the same reason; the other way round its handler could run again, and succeed,
// after its dead letter was published.
func (b *Bus) bury(ctx context.Context, u burial) (DeadLetter, error) {
	if u.delivery.Key == (Key{}) {
		u.delivery.Key = Key{Cluster: UnknownCluster, Name: events.ClusterKey}
	}
	d := u.delivery
	dl := DeadLetter{
		ID:       deadLetterID(u.consumer, d),
		Handler:  u.handler,
		Reason:   u.why.reason(),
		Attempts: u.why.attempts,
		Stack:    u.why.stack,
		At:       b.opts.Clock.Now().UTC(),
		Key:      d.Key,
		Sequence: d.Sequence,
		Origin:   d.origin(),

		Incarnation: d.Incarnation,
		Parked:      u.park,
		Event:       d.Event,
		Subject:     u.msg.Subject(),
		Header:      u.msg.Headers(),
		Data:        u.msg.Data(),
	}
	if u.park && !u.follows {
		if err := b.park(ctx, u.kv, d, parked{ID: dl.ID, Reason: dl.Reason, Attempts: dl.Attempts, Since: dl.At, Sequence: d.Sequence}); err != nil {
			return dl, err
		}
		b.opts.OnStep(u.handler + "/park/after")
	}
	if err := b.publishDead(ctx, dl, d.Key); err != nil {
		return dl, err
	}
	b.opts.OnStep(u.handler + "/bury/after")
	if err := b.recordDead(ctx, dl, d.Key); err != nil {
		return dl, err
	}
	b.buried(ctx, dl, d.Key)
	return dl, nil
}

// buried counts and reports a message that was set aside.
func (b *Bus) buried(ctx context.Context, dl DeadLetter, k Key) {
	b.metrics.deadLetters.WithLabelValues(dl.Handler).Inc()
	b.opts.Logger.ErrorContext(ctx, "event set aside as a dead letter", "handler", dl.Handler, "dead_letter", dl.ID,
		"event_type", typeOf(dl.Event), "key", k.String(), "sequence", dl.Sequence, "attempts", dl.Attempts, "key_parked", dl.Parked, "reason", dl.Reason)
}

func typeOf(e events.Event) string {
	if e.Context == nil {
		return ""
	}
	return e.Type()
}

func (b *Bus) publishDead(ctx context.Context, dl DeadLetter, k Key) error {
	subject, err := deadSubject(dl.Handler, k)
	if err != nil {
		return fmt.Errorf("publish dead letter %s of %s: %w", dl.ID, dl.Handler, err)
	}
	m := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: dl.Data}
	for name, vs := range dl.Header {
		if !strings.HasPrefix(strings.ToLower(name), "nats-") { // those would steer this publication
			m.Header[name] = vs
		}
	}
	set := func(name, v string) {
		if v != "" {
			m.Header[name] = []string{encodeValue(v)}
		}
	}
	set(headerMsgID, dl.ID)
	set(headerDeadID, dl.ID)
	set(headerDeadHandler, dl.Handler)
	set(headerDeadReason, dl.Reason)
	set(headerDeadAttempts, strconv.Itoa(dl.Attempts))
	set(headerDeadStack, dl.Stack)
	set(headerDeadAt, dl.At.Format(time.RFC3339Nano))
	set(headerDeadSequence, strconv.FormatUint(dl.Sequence, 10))
	set(headerDeadSubject, dl.Subject)
	set(headerDeadParked, strconv.FormatBool(dl.Parked))
	set(headerDeadStream, dl.Incarnation)
	if limit := b.nc.MaxPayload(); int64(m.Size()) > limit {
		// A message at the limit has no room for the reason: first without the
		// stack, then compressed, at last without its body, which the stream of
		// record still holds.
		m.Header.Del(headerDeadStack)
		if int64(m.Size()) > limit && m.Header[headerEncoding] == nil {
			m.Data = zstdEncoder.EncodeAll(m.Data, nil)
			m.Header[headerEncoding] = []string{encodingZstd}
		}
		if int64(m.Size()) > limit {
			m.Data = nil
			m.Header[headerDeadBody] = []string{"only in the stream of record"}
		}
	}
	if _, err := b.publishMsg(ctx, m); err != nil {
		return fmt.Errorf("publish dead letter %s of %s: %w", dl.ID, dl.Handler, err)
	}
	return nil
}

// recordDead publishes deadletter.recorded on the key of the event.
func (b *Bus) recordDead(ctx context.Context, dl DeadLetter, k Key) error {
	e, err := deadEvent(dl, k)
	if err != nil {
		// A subject that is no key of ours: the dead letter itself has to do.
		b.opts.Logger.ErrorContext(ctx, "dead letter not recorded as an event", "dead_letter", dl.ID, "subject", dl.Subject, "error", err)
		return nil
	}
	return b.Publish(ctx, e)
}

func deadEvent(dl DeadLetter, k Key) (events.Event, error) {
	m := events.Meta{
		Cluster: k.Cluster, Node: k.node(), Publisher: publisherBus,
		ID:   events.ID("deadletter.recorded", dl.ID),
		Time: dl.At,
	}
	id := "message " + strconv.FormatUint(dl.Sequence, 10)
	if dl.Event.Context != nil {
		id = dl.Event.ID()
		m.CausationID, m.CorrelationID = id, events.Extension(dl.Event, events.ExtCorrelationID)
	}
	return events.New(m, events.DeadletterRecorded{
		EventID: id, OfType: typeOf(dl.Event), Handler: dl.Handler, Reason: dl.Reason,
		Attempts: dl.Attempts, Sequence: dl.Sequence, Parked: dl.Parked, At: dl.At,
	})
}

// deadSubject is where the dead letters of a handler and key are.
func deadSubject(handler string, k Key) (string, error) {
	token, err := k.token()
	if err != nil {
		return "", err
	}
	return strings.Join([]string{deadRoot, handler, k.Cluster, token}, "."), nil
}

// DeadLetters returns the events that handlers set aside: those of one handler
// and key in the order in which they are redriven, otherwise oldest first.
func (b *Bus) DeadLetters(ctx context.Context) ([]DeadLetter, error) {
	return b.letters(ctx, deadRoot+".>")
}

// lettersOf returns the dead letters of a handler and key.
func (b *Bus) lettersOf(ctx context.Context, handler string, k Key) ([]DeadLetter, error) {
	subject, err := deadSubject(handler, k)
	if err != nil {
		return nil, err
	}
	return b.letters(ctx, subject)
}

func (b *Bus) letters(ctx context.Context, subject string) ([]DeadLetter, error) {
	var out []DeadLetter
	at := map[string]int{} // by id
	err := b.scan(ctx, scanOptions{stream: DeadLetterStream, subjects: []string{subject}}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) (bool, error) {
		dl := readDead(m)
		i, twice := at[dl.ID]
		if !twice {
			i = len(out)
			at[dl.ID] = i
			out = append(out, dl)
		}
		out[i].stored = append(out[i].stored, meta.Sequence.Stream)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	inOrder(out)
	return out, nil
}

// inOrder sorts the letters of each handler, key and stream by origin, in the
// places that they have: a copy that failed again stands behind what was set
// aside meanwhile, but its event came first.
func inOrder(ls []DeadLetter) {
	type line struct {
		handler, incarnation string
		key                  Key
	}
	places := map[line][]int{}
	for i, dl := range ls {
		k := line{dl.Handler, dl.Incarnation, dl.Key}
		places[k] = append(places[k], i)
	}
	for _, at := range places {
		group := make([]DeadLetter, len(at))
		for n, i := range at {
			group[n] = ls[i]
		}
		slices.SortStableFunc(group, func(x, y DeadLetter) int { return cmp.Compare(x.Origin, y.Origin) })
		for n, i := range at {
			ls[i] = group[n]
		}
	}
}

func readDead(m jetstream.Msg) DeadLetter {
	h := maps.Clone(m.Headers())
	get := func(name string) string { return decodeValue(h.Get(name)) }
	dl := DeadLetter{
		ID: get(headerDeadID), Handler: get(headerDeadHandler), Reason: get(headerDeadReason),
		Stack: get(headerDeadStack), Subject: get(headerDeadSubject), Parked: get(headerDeadParked) == "true", Data: m.Data(),
	}
	// A value that does not parse is of another writer: it stays zero.
	dl.Attempts, _ = strconv.Atoi(get(headerDeadAttempts))
	dl.Sequence, _ = strconv.ParseUint(get(headerDeadSequence), 10, 64)
	dl.At, _ = time.Parse(time.RFC3339Nano, get(headerDeadAt))
	dl.Incarnation, dl.Bodyless = get(headerDeadStream), get(headerDeadBody) != ""
	dl.Origin = dl.Sequence
	dl.Key = Key{Cluster: UnknownCluster, Name: events.ClusterKey}
	if t := strings.SplitN(m.Subject(), ".", 4); len(t) == 4 {
		if name, err := events.DecodeKey(t[3]); err == nil {
			dl.Key = Key{Cluster: t[2], Name: name}
		}
	}
	for name := range h {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, strings.ToLower(headerDead)) || strings.HasPrefix(lower, "nats-") {
			delete(h, name)
		}
	}
	dl.Header = h
	e, err := DecodeEvent(h, m.Data())
	if err != nil {
		dl.Undecodable = err.Error()
		return dl
	}
	dl.Event = e
	if _, apart := claimed(e); apart {
		dl.Bodyless = true
	}
	if r, ok, err := events.RedriveOf(e); ok && err == nil {
		dl.Origin = r.Origin
	}
	return dl
}
