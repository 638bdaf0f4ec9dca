package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// isErrand reports whether the bus itself carries an event out for its handler.
func isErrand(typ string) bool {
	return typ == events.TypeDeadletterRedriveRequested || typ == events.TypeDeadletterDropRequested || typ == events.TypeDeadletterRedriven
}

// errand is an event about dead letters whose turn has come: it holds the head of
// the line of its key, so nothing else changes the dead letters of its handler
// and key, or the park marker, meanwhile. Killed at any point it is carried out
// again, and finds in the streams what is done already.
type errand struct {
	b       *Bus
	handler string
	kv      jetstream.KeyValue // nil: the handler parks nothing
	d       Delivery
	again   bool        // it may be done in part
	owned   func() bool // the message is certainly ours still
}

// errand carries out the message of f.
func (l *puller) errand(f *inflight, again bool) error {
	l.marks.add(f.delivery.Key)
	x := errand{b: l.b, handler: l.opts.Handler, kv: l.kv, d: f.delivery, again: again, owned: f.owned}
	if err := x.run(f.ctx); err != nil {
		var d *events.DecodeError
		if errors.As(err, &d) {
			return l.setAside(f, failure{err: err, attempts: 1}, false)
		}
		l.b.metrics.failed("bus")
		return err
	}
	l.ended("handled")
	l.finish(f, f.msg.Ack)
	return nil
}

func (x errand) run(ctx context.Context) error {
	e := x.d.Event
	switch e.Type() {
	case events.TypeDeadletterRedriveRequested:
		p, err := events.Decode[events.DeadletterRedriveRequested](e)
		if err == nil {
			err = x.redrive(ctx, p)
		}
		return err
	case events.TypeDeadletterDropRequested:
		p, err := events.Decode[events.DeadletterDropRequested](e)
		if err == nil {
			err = x.drop(ctx, p)
		}
		return err
	default:
		p, err := events.Decode[events.DeadletterRedriven](e)
		if err == nil {
			err = x.close(ctx, p)
		}
		return err
	}
}

func (x errand) step(name string) { x.b.opts.OnStep(x.handler + "/" + name) }

// outcome builds an event that follows from this errand, on the same key.
func (x errand) outcome(p events.Payload) (events.Event, error) {
	m := events.Meta{
		Cluster: x.d.Key.Cluster, Node: x.d.Key.node(), Publisher: publisherBus,
		ID:   events.ID(p.EventType(), x.handler, x.d.Key.String(), x.d.Incarnation, strconv.FormatUint(x.d.Sequence, 10)),
		Time: x.d.StreamTime, CausationID: x.d.Event.ID(),
		CorrelationID: events.Extension(x.d.Event, events.ExtCorrelationID), TraceParent: events.Extension(x.d.Event, events.ExtTraceParent),
	}
	return events.New(m, p)
}

// publish publishes an outcome, unless done says that it stands in the stream.
func (x errand) publish(ctx context.Context, p events.Payload, done stored) error {
	e, err := x.outcome(p)
	if err != nil {
		return fmt.Errorf("outcome of %s %s: %w", x.d.Event.Type(), x.d.Event.ID(), err)
	}
	if done.outcomes[e.ID()] {
		return nil
	}
	return x.b.Publish(ctx, e)
}

func (x errand) refuse(ctx context.Context, requestID, actor, reason, why string, done stored) error {
	x.b.opts.Logger.WarnContext(ctx, "request about dead letters refused", "handler", x.handler, "key", x.d.Key.String(),
		"request", requestID, "actor", actor, "reason", why)
	return x.publish(ctx, events.DeadletterRequestRefused{Handler: x.handler, RequestID: requestID, Actor: actor, Reason: reason, Message: why}, done)
}

// stored is what an errand that was begun before has put into the stream.
type stored struct {
	copies   map[string]bool // ids of the dead letters that were copied
	outcomes map[string]bool // ids of what the bus said on the key since
}

// redriveMark separates the id of an event from that of the dead letter in the
// message id of a copy.
const redriveMark = "#redrive-"

// done reads what the stream holds of this errand: JetStream itself recognises a
// second publication only for the duplicate window.
func (x errand) done(ctx context.Context) (stored, error) {
	s := stored{copies: map[string]bool{}, outcomes: map[string]bool{}}
	if !x.again {
		return s, nil
	}
	token, err := x.d.Key.token()
	if err != nil {
		return s, err
	}
	o := scanOptions{stream: StreamName, from: x.d.Sequence + 1, subjects: []string{filterSubject(strconv.Itoa(x.d.Partition), x.d.Key.Cluster, token, ">")}}
	err = x.b.scan(ctx, o, func(m jetstream.Msg, meta *jetstream.MsgMetadata) (bool, error) {
		d, err := x.b.parse(m.Subject(), m.Headers(), m.Data(), meta.Sequence.Stream, meta.Timestamp)
		if err != nil {
			return true, nil // no event: not ours
		}
		_, letter, _ := strings.Cut(m.Headers().Get(headerMsgID), redriveMark)
		switch {
		case d.Redrive.Handler == x.handler && d.Redrive.Round == x.d.Sequence:
			s.copies[letter] = true
		case strings.HasSuffix(d.Event.Source(), "/"+publisherBus):
			s.outcomes[d.Event.ID()] = true
		}
		return true, nil
	})
	if err != nil {
		return s, fmt.Errorf("look for what is redriven already: %w", err)
	}
	return s, nil
}

// drop deletes dead letters, and unparks the key when none is left. It is
// recorded first: what is deleted can't be named any more.
func (x errand) drop(ctx context.Context, p events.DeadletterDropRequested) error {
	done, err := x.done(ctx)
	if err != nil {
		return err
	}
	all, err := x.b.lettersOf(ctx, x.handler, x.d.Key)
	if err != nil {
		return err
	}
	var m mark
	if x.kv != nil && !x.d.Key.IsCluster() {
		if m, err = x.b.readMark(ctx, x.kv, x.d.Key); err != nil {
			return err
		}
	}
	out := events.DeadletterDropped{Handler: x.handler, RequestID: x.d.Event.ID(), Actor: p.Actor, Reason: p.Reason}
	var gone []DeadLetter
	parkedLeft, first := 0, ""
	for _, dl := range all {
		switch {
		case slices.Contains(p.DeadLetters, dl.ID):
			gone = append(gone, dl)
			out.Letters = append(out.Letters, note(dl, ""))
		case dl.Parked:
			if parkedLeft++; parkedLeft == 1 {
				first = dl.ID
			}
		}
	}
	out.Remaining = len(all) - len(gone)
	// During a round the closing event unparks.
	out.Unparked = m.exists() && m.Round == nil && parkedLeft == 0
	for _, id := range p.DeadLetters {
		if !slices.ContainsFunc(gone, func(dl DeadLetter) bool { return dl.ID == id }) {
			out.Letters = append(out.Letters, events.LetterNote{DeadLetter: id, Note: x.absent()})
		}
	}
	if len(gone) == 0 && !x.said(done, out) {
		return x.refuse(ctx, out.RequestID, p.Actor, p.Reason, "none of the dead letters that it names is there: "+x.absent(), done)
	}
	if err := x.publish(ctx, out, done); err != nil {
		return err
	}
	x.step("drop/recorded")
	for _, dl := range gone {
		if !x.owned() {
			return errFenced
		}
		if err := x.b.deleteLetter(ctx, dl); err != nil {
			return err
		}
		x.step("drop/deleted")
	}
	switch {
	case out.Unparked:
		if err := x.b.unpark(ctx, x.kv, m); err != nil {
			return err
		}
		x.step("drop/unparked")
	case m.exists() && first != "" && slices.Contains(p.DeadLetters, m.ID):
		m.ID = first // what is named can be looked up
		if err := x.b.writeMark(ctx, x.kv, &m); err != nil {
			return err
		}
	}
	x.b.opts.Logger.InfoContext(ctx, "dead letters dropped", "handler", x.handler, "key", x.d.Key.String(), "count", len(gone),
		"remaining", out.Remaining, "unparked", out.Unparked, "actor", p.Actor, "reason", p.Reason)
	return nil
}

func (x errand) said(done stored, p events.Payload) bool {
	e, err := x.outcome(p)
	return err == nil && done.outcomes[e.ID()]
}

func (x errand) absent() string {
	return fmt.Sprintf("%s has no such dead letter on %s; it was redriven or dropped", x.handler, x.d.Key)
}

func note(dl DeadLetter, text string) events.LetterNote {
	n := events.LetterNote{DeadLetter: dl.ID, Note: text}
	if dl.Event.Context != nil {
		n.EventID, n.OfType = dl.Event.ID(), dl.Event.Type()
	}
	return n
}

func (b *Bus) deleteLetter(ctx context.Context, dl DeadLetter) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	s, err := b.js.Stream(ctx, DeadLetterStream)
	if err != nil {
		return fmt.Errorf("delete dead letter %s: %w", dl.ID, unavailable(err))
	}
	for _, seq := range dl.stored {
		if err := s.DeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && !isMissing(err) {
			return fmt.Errorf("delete dead letter %s: %w", dl.ID, unavailable(err))
		}
	}
	return nil
}

// isMissing recognises what the server says of a message that is deleted already.
func isMissing(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeMessageNotFound || strings.Contains(api.Description, "no message found"))
}
