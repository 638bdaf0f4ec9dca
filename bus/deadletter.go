package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/middleware"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// parkedRoot starts the bucket keys of parked keys.
const parkedRoot = "parked"

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
	Sequence uint64 // of the event in the stream of record
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
	l.b.mu.Lock()
	state := l.b.states[l.opts.Handler]
	l.b.mu.Unlock()
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
		delete(l.unparked, f.delivery.Key)
	}
	_, err := l.b.bury(context.WithoutCancel(f.ctx), burial{
		consumer: l.name(), handler: l.opts.Handler, kv: l.kv, delivery: f.delivery, msg: f.msg, why: why, park: park,
	})
	return err
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
}

// bury publishes the dead letter, parks the key, and records both. Killed in
// between, it is done again: every part has an id of its own.
func (b *Bus) bury(ctx context.Context, u burial) (DeadLetter, error) {
	d := u.delivery
	dl := DeadLetter{
		ID:       events.ID("deadletter", u.consumer, d.Incarnation, strconv.FormatUint(d.Sequence, 10)),
		Handler:  u.handler,
		Reason:   u.why.reason(),
		Attempts: u.why.attempts,
		Stack:    u.why.stack,
		At:       b.opts.Clock.Now().UTC(),
		Sequence: d.Sequence,
		Parked:   u.park,
		Event:    d.Event,
		Subject:  u.msg.Subject(),
		Header:   u.msg.Headers(),
		Data:     u.msg.Data(),
	}
	if err := b.publishDead(ctx, dl, d.Key); err != nil {
		return dl, err
	}
	if u.park {
		if err := parkKey(ctx, b, u.kv, d.Key, parked{ID: dl.ID, Reason: dl.Reason, Since: dl.At, Sequence: d.Sequence}); err != nil {
			return dl, err
		}
	}
	if err := b.recordDead(ctx, dl, d.Key); err != nil {
		return dl, err
	}
	b.metrics.deadLetters.WithLabelValues(u.handler).Inc()
	b.opts.Logger.ErrorContext(ctx, "event set aside as a dead letter", "handler", u.handler, "dead_letter", dl.ID,
		"event_type", typeOf(d.Event), "key", d.Key.String(), "sequence", d.Sequence, "attempts", dl.Attempts, "key_parked", u.park, "reason", dl.Reason)
	return dl, nil
}

func typeOf(e events.Event) string {
	if e.Context == nil {
		return ""
	}
	return e.Type()
}

func (b *Bus) publishDead(ctx context.Context, dl DeadLetter, k Key) error {
	cluster, token := "_", "_"
	if t, err := k.token(); err == nil {
		cluster, token = k.Cluster, t
	}
	m := &nats.Msg{Subject: strings.Join([]string{deadRoot, dl.Handler, cluster, token}, "."), Header: nats.Header{}, Data: dl.Data}
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

// DeadLetters returns the events that handlers set aside, oldest first.
func (b *Bus) DeadLetters(ctx context.Context) ([]DeadLetter, error) {
	var out []DeadLetter
	err := b.scan(ctx, scanOptions{stream: DeadLetterStream, subjects: []string{deadRoot + ".>"}}, func(m jetstream.Msg, _ *jetstream.MsgMetadata) (bool, error) {
		out = append(out, readDead(m))
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return out, nil
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
	return dl
}

// parked is why the events of a key go to the dead letters.
type parked struct {
	ID       string    `json:"dead_letter"` // the first one
	Reason   string    `json:"reason"`
	Since    time.Time `json:"since"`
	Sequence uint64    `json:"sequence"`
}

func parkedKey(k Key) (string, error) {
	token, err := k.token()
	if err != nil {
		return "", err
	}
	return parkedRoot + "." + k.Cluster + "." + token, nil
}

func readParked(ctx context.Context, kv jetstream.KeyValue, k Key) (p parked, ok bool, err error) {
	name, err := parkedKey(k)
	if err != nil {
		return p, false, err
	}
	v, err := kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return p, false, nil
	}
	if err == nil {
		err = json.Unmarshal(v.Value(), &p)
	}
	if err != nil {
		return p, false, fmt.Errorf("read whether %s is parked: %w", k, unavailable(err))
	}
	return p, true, nil
}

// parkKey parks a key, unless it is parked already: the first dead letter counts.
func parkKey(ctx context.Context, b *Bus, kv jetstream.KeyValue, k Key, p parked) error {
	name, err := parkedKey(k)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("park %s: %w", k, err)
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	if _, err := kv.Create(ctx, name, raw); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("park %s: %w", k, unavailable(err))
	}
	return nil
}

// Parked returns the keys of a handler whose events go to the dead letters.
func (b *Bus) Parked(ctx context.Context, handler string) ([]Key, error) {
	kv, err := b.ensureBucket(ctx, handler)
	if err != nil {
		return nil, err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	names, err := kv.ListKeysFiltered(ctx, parkedRoot+".>")
	if err != nil {
		return nil, fmt.Errorf("list parked keys of %s: %w", handler, unavailable(err))
	}
	var out []Key
	for name := range names.Keys() {
		t := strings.SplitN(name, ".", 3)
		if node, err := events.DecodeKey(t[2]); err == nil {
			out = append(out, Key{Cluster: t[1], Name: node})
		}
	}
	return out, nil
}
