package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// redrive publishes dead letters of the key again. The events of a node have one
// order, so that all of them go; those of a cluster are independent.
//
//	node:  R (its turn) ── marker: round R ── copies, each: publish, ack, delete ── closing event
//	       … events that were published meanwhile: parked, behind …
//	       copies: pass ── closing event (its turn): no letter left → unparked; else it is the next R
func (x errand) redrive(ctx context.Context, p events.DeadletterRedriveRequested) error {
	switch {
	case x.kv == nil:
		return x.refuse(ctx, x.d.Event.ID(), p.Actor, p.Reason, x.handler+" reads every event as it stands: what it set aside is no event and can only be dropped", stored{})
	case !events.MayRedrive(x.handler):
		return x.refuse(ctx, x.d.Event.ID(), p.Actor, p.Reason, x.handler+" may publish no copy of what it reads: what it set aside can only be dropped", stored{})
	}
	if x.d.Key.IsCluster() {
		return x.redriveSome(ctx, p)
	}
	m, err := x.b.readMark(ctx, x.kv, x.d.Key)
	if err != nil {
		return err
	}
	r := round{At: x.d.Sequence, Request: x.d.Event.ID(), Actor: p.Actor, Reason: p.Reason}
	if open := m.Round; open != nil && open.At != r.At && !open.Broken {
		return x.refuse(ctx, r.Request, r.Actor, r.Reason, fmt.Sprintf("a redrive of %s for %s is under way (request %s of %s); it takes every dead letter of the node",
			x.d.Key, x.handler, open.Request, open.Actor), stored{})
	}
	return x.beginRound(ctx, m, r)
}

// close is the turn of a closing event: its round is over.
func (x errand) close(ctx context.Context, p events.DeadletterRedriven) error {
	if x.kv == nil || x.d.Key.IsCluster() {
		return nil
	}
	m, err := x.b.readMark(ctx, x.kv, x.d.Key)
	if err != nil || m.Round == nil {
		return err
	}
	r := *m.Round
	switch {
	case r.At == x.d.Sequence: // it comes again, and has begun the next round
	case r.At != p.Round:
		return nil // of a round that was broken and replaced
	case r.Broken || r.Stopped:
		m.Round = nil
		return x.b.writeMark(ctx, x.kv, &m)
	}
	r.At, r.Passed = x.d.Sequence, passed{}
	return x.beginRound(ctx, m, r)
}

// beginRound opens the round r and publishes what it holds, or unparks the key
// when there is nothing left.
func (x errand) beginRound(ctx context.Context, m mark, r round) error {
	letters, err := x.b.lettersOf(ctx, x.handler, x.d.Key)
	if err != nil {
		return err
	}
	letters = slices.DeleteFunc(letters, func(dl DeadLetter) bool { return !dl.Parked })
	begun := m.Round != nil && m.Round.At == r.At
	switch {
	case begun:
		r = *m.Round
	case len(letters) == 0 && m.exists():
		if x.d.Event.Type() == events.TypeDeadletterRedriveRequested {
			if err := x.publish(ctx, x.closing(r, 0, nil), stored{}); err != nil {
				return err
			}
		}
		if err := x.b.unpark(ctx, x.kv, m); err != nil {
			return err
		}
		x.step("redrive/unparked")
		x.b.opts.Logger.InfoContext(ctx, "key unparked: its dead letters are redriven", "handler", x.handler, "key", x.d.Key.String(),
			"actor", r.Actor, "reason", r.Reason)
		return nil
	case len(letters) == 0:
		return x.refuse(ctx, r.Request, r.Actor, r.Reason, fmt.Sprintf("%s has no dead letters on %s that can be redriven", x.handler, x.d.Key), stored{})
	default:
		if !m.exists() {
			m.parked = parked{ID: letters[0].ID, Reason: letters[0].Reason, Since: letters[0].At, Sequence: letters[0].Sequence}
		}
		m.Round = &r
		if err := x.b.writeMark(ctx, x.kv, &m); err != nil {
			return err
		}
		x.step("redrive/begun")
	}
	x.again = begun
	done, err := x.done(ctx)
	if err != nil {
		return err
	}
	left, err := x.copyAll(ctx, &m, letters, done)
	if err != nil {
		return err
	}
	if err := x.publish(ctx, x.closing(*m.Round, len(done.copies), left), done); err != nil {
		return err
	}
	x.step("redrive/closed")
	x.b.opts.Logger.InfoContext(ctx, "dead letters redriven", "handler", x.handler, "key", x.d.Key.String(), "count", len(done.copies),
		"left", len(left), "actor", r.Actor, "reason", r.Reason)
	return nil
}

func (x errand) closing(r round, count int, left []events.LetterNote) events.DeadletterRedriven {
	return events.DeadletterRedriven{Handler: x.handler, RequestID: r.Request, Actor: r.Actor, Reason: r.Reason, Round: x.d.Sequence, Count: count, Left: left}
}

// copyAll publishes the letters of a round in their order; one that can't be
// published breaks it, because nothing may overtake it.
func (x errand) copyAll(ctx context.Context, m *mark, letters []DeadLetter, done stored) (left []events.LetterNote, err error) {
	for i, dl := range letters {
		if !m.Round.Stopped {
			err := x.copy(ctx, dl, done)
			var no *uncopiableError
			if !errors.As(err, &no) {
				if err != nil {
					return nil, err
				}
				continue
			}
			m.Round.Stopped = true
			m.ID, m.Reason = dl.ID, fmt.Sprintf("it can't be redriven: %v", no)
			if err := x.b.writeMark(ctx, x.kv, m); err != nil {
				return nil, err
			}
		}
		text := "it follows " + m.ID
		if dl.ID == m.ID {
			text = m.Reason
		}
		if left = append(left, note(dl, text)); len(left) == events.MaxRequestedLetters {
			left = append(left, events.LetterNote{Note: fmt.Sprintf("and %d more", len(letters)-i-1)})
			break
		}
	}
	return left, nil
}

// redriveSome publishes the named dead letters of a cluster.
func (x errand) redriveSome(ctx context.Context, p events.DeadletterRedriveRequested) error {
	done, err := x.done(ctx)
	if err != nil {
		return err
	}
	letters, err := x.b.lettersOf(ctx, x.handler, x.d.Key)
	if err != nil {
		return err
	}
	r := round{At: x.d.Sequence, Request: x.d.Event.ID(), Actor: p.Actor, Reason: p.Reason}
	var left []events.LetterNote
	seen := map[string]bool{}
	for _, dl := range letters {
		if !slices.Contains(p.DeadLetters, dl.ID) {
			continue
		}
		seen[dl.ID] = true
		err := x.copy(ctx, dl, done)
		var no *uncopiableError
		switch {
		case errors.As(err, &no):
			left = append(left, note(dl, no.Error()))
		case err != nil:
			return err
		}
	}
	for _, id := range p.DeadLetters {
		if !seen[id] && !done.copies[id] {
			left = append(left, events.LetterNote{DeadLetter: id, Note: x.absent()})
		}
	}
	if len(done.copies) == 0 {
		why := "it names no dead letter"
		if len(left) > 0 {
			why = left[0].Note
		}
		return x.refuse(ctx, r.Request, r.Actor, r.Reason, why, done)
	}
	if err := x.publish(ctx, x.closing(r, len(done.copies), left), done); err != nil {
		return err
	}
	x.step("redrive/closed")
	x.b.opts.Logger.InfoContext(ctx, "dead letters redriven", "handler", x.handler, "key", x.d.Key.String(), "count", len(done.copies),
		"left", len(left), "actor", r.Actor, "reason", r.Reason)
	return nil
}

// uncopiableError says why a dead letter can only be dropped.
type uncopiableError struct{ err error }

func (e *uncopiableError) Error() string { return e.err.Error() }
func (e *uncopiableError) Unwrap() error { return e.err }

// copy publishes the event of dl again unless that is done, and then deletes dl.
func (x errand) copy(ctx context.Context, dl DeadLetter, done stored) error {
	if !done.copies[dl.ID] {
		m, err := x.encodeCopy(ctx, dl, len(done.copies)+1)
		if err != nil {
			return err
		}
		if !x.owned() {
			return errFenced
		}
		if _, err := x.b.publishMsg(ctx, m); err != nil {
			return fmt.Errorf("redrive dead letter %s: %w", dl.ID, err)
		}
		done.copies[dl.ID] = true
		x.step("redrive/copied")
	}
	if !x.owned() {
		return errFenced
	}
	if err := x.b.deleteLetter(ctx, dl); err != nil {
		return err
	}
	x.step("redrive/deleted")
	return nil
}

// encodeCopy returns the event of dl as it is published again: with its own id,
// marked, and with a message id that tells it from the first publication.
func (x errand) encodeCopy(ctx context.Context, dl DeadLetter, number int) (*nats.Msg, error) {
	e, err := dl.Event, error(nil)
	_, apart := claimed(e)
	switch {
	case apart:
		var lost *payloadError
		if e, err = x.b.redeem(ctx, e); errors.As(err, &lost) {
			return nil, &uncopiableError{lost}
		} else if err != nil {
			return nil, fmt.Errorf("redrive dead letter %s: %w", dl.ID, err)
		}
	case dl.Bodyless:
		if e, err = x.b.original(ctx, dl); err != nil {
			return nil, err
		}
	case dl.Undecodable != "":
		return nil, &uncopiableError{errors.New("it is no event: " + dl.Undecodable)}
	}
	if err := events.Redrivable(e); err != nil {
		return nil, &uncopiableError{err}
	}
	mark := events.Redrive{Handler: x.handler, Round: x.d.Sequence, Number: number}
	if dl.Incarnation == x.d.Incarnation {
		mark.Origin = dl.Origin
	}
	e = e.Clone()
	e.SetExtension(events.ExtRedrive, mark.String())
	m, err := x.b.encode(ctx, e)
	if errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		return nil, fmt.Errorf("redrive dead letter %s: %w", dl.ID, err)
	}
	if err != nil {
		return nil, &uncopiableError{err}
	}
	if !broken.copyID {
		m.Header[headerMsgID] = []string{MessageID(e) + redriveMark + dl.ID}
	}
	return m, nil
}

// original reads the event of a dead letter whose body had no room.
func (b *Bus) original(ctx context.Context, dl DeadLetter) (events.Event, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	m, err := b.stream.GetMsg(ctx, dl.Sequence)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) || (err == nil && dl.Incarnation != b.incarn):
		return events.Event{}, &uncopiableError{errors.New("its data was too large to be set aside, and the stream of record no longer holds it")}
	case err != nil:
		return events.Event{}, fmt.Errorf("read the data of dead letter %s: %w", dl.ID, unavailable(err))
	}
	d, err := b.delivery(ctx, m.Subject, m.Header, m.Data, m.Sequence, m.Time)
	var undecodable *UndecodableError
	if errors.As(err, &undecodable) {
		return events.Event{}, &uncopiableError{err}
	}
	return d.Event, err
}
