package events

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Types of the events that redrive and drop dead letters. All of them are
// addressed: only the handler that they name reads them, on the key of the dead
// letters, so that they have a place in the order of what they concern.
const (
	TypeDeadletterRedriveRequested = TypePrefix + "deadletter.redrive.requested.v1"
	TypeDeadletterDropRequested    = TypePrefix + "deadletter.drop.requested.v1"
	TypeDeadletterRedriven         = TypePrefix + "deadletter.redriven.v1"
	TypeDeadletterDropped          = TypePrefix + "deadletter.dropped.v1"
	TypeDeadletterRequestRefused   = TypePrefix + "deadletter.request.refused.v1"
)

// MaxRequestedLetters is how many dead letters one request may name: it bounds
// the size of the event.
const MaxRequestedLetters = 500

// DeadletterRedriveRequested asks to publish dead letters of this key again. On
// the key of a node it means all of them, in their order, whatever it names: the
// events of a node have one order. On the key of a cluster it means those that
// it names.
type DeadletterRedriveRequested struct {
	Handler     string   `json:"handler"`
	DeadLetters []string `json:"dead_letters,omitempty"` // ids
	Actor       string   `json:"actor"`
	Reason      string   `json:"reason"`
}

// EventType implements Payload.
func (DeadletterRedriveRequested) EventType() string { return TypeDeadletterRedriveRequested }

// Validate implements Payload.
func (p DeadletterRedriveRequested) Validate() error {
	return letterRequest(p.Handler, p.Actor, p.Reason, len(p.DeadLetters), 0)
}

// DeadletterDropRequested asks to delete dead letters of this key for good. What
// the events themselves were stays in the audit.
type DeadletterDropRequested struct {
	Handler     string   `json:"handler"`
	DeadLetters []string `json:"dead_letters"` // ids
	Actor       string   `json:"actor"`
	Reason      string   `json:"reason"`
}

// EventType implements Payload.
func (DeadletterDropRequested) EventType() string { return TypeDeadletterDropRequested }

// Validate implements Payload.
func (p DeadletterDropRequested) Validate() error {
	return letterRequest(p.Handler, p.Actor, p.Reason, len(p.DeadLetters), 1)
}

func letterRequest(handler, actor, reason string, n, low int) error {
	var r required
	r.oneOf("handler", handler, HandlerDecision, HandlerProvisioning, HandlerDraining, HandlerAuditing, HandlerAnnouncing, HandlerShadow)
	r.text("actor", actor)
	r.text("reason", reason)
	if n < low || n > MaxRequestedLetters {
		r = append(r, fmt.Sprintf("dead_letters: has %d, expected %d to %d", n, low, MaxRequestedLetters))
	}
	return r.err()
}

// LetterNote names a dead letter, the event in it, and what is to be said of it.
type LetterNote struct {
	DeadLetter string `json:"dead_letter"`
	EventID    string `json:"event_id,omitempty"`
	OfType     string `json:"event_type,omitempty"`
	Note       string `json:"note,omitempty"`
}

// DeadletterRedriven closes one round of a redrive: the copies of that round
// stand before it in the order of the key. For a node it is also the turn at
// which the handler looks whether more dead letters have gathered meanwhile.
type DeadletterRedriven struct {
	Handler   string `json:"handler"`
	RequestID string `json:"request_id"`
	Actor     string `json:"actor"`
	Reason    string `json:"reason"`
	// Round is the sequence of the request, or of the closing event of the round
	// before, whose turn published the copies.
	Round uint64 `json:"round"`
	Count int    `json:"count"` // copies that were published
	// Left are dead letters that were asked for and stay, with the reason.
	Left []LetterNote `json:"left,omitempty"`
}

// EventType implements Payload.
func (DeadletterRedriven) EventType() string { return TypeDeadletterRedriven }

// Validate implements Payload.
func (p DeadletterRedriven) Validate() error {
	var r required
	r.text("handler", p.Handler)
	r.text("request_id", p.RequestID)
	r.text("actor", p.Actor)
	return r.err()
}

// DeadletterDropped says that dead letters are deleted.
type DeadletterDropped struct {
	Handler   string       `json:"handler"`
	RequestID string       `json:"request_id"`
	Actor     string       `json:"actor"`
	Reason    string       `json:"reason"`
	Letters   []LetterNote `json:"dead_letters"`
	Remaining int          `json:"remaining"` // dead letters of the key and handler that are left
	Unparked  bool         `json:"unparked"`  // the handler acts on the key again
}

// EventType implements Payload.
func (DeadletterDropped) EventType() string { return TypeDeadletterDropped }

// Validate implements Payload.
func (p DeadletterDropped) Validate() error {
	var r required
	r.text("handler", p.Handler)
	r.text("request_id", p.RequestID)
	r.text("actor", p.Actor)
	r.atLeast("dead_letters", int64(len(p.Letters)), 1)
	return r.err()
}

// DeadletterRequestRefused says that a redrive or drop was not carried out, and
// why.
type DeadletterRequestRefused struct {
	Handler   string `json:"handler"`
	RequestID string `json:"request_id"`
	Actor     string `json:"actor"`
	Reason    string `json:"reason"`  // of who asked
	Message   string `json:"message"` // why not
}

// EventType implements Payload.
func (DeadletterRequestRefused) EventType() string { return TypeDeadletterRequestRefused }

// Validate implements Payload.
func (p DeadletterRequestRefused) Validate() error {
	var r required
	r.text("handler", p.Handler)
	r.text("request_id", p.RequestID)
	r.text("message", p.Message)
	return r.err()
}

// ExtRedrive marks the copy of an event that was redriven for one handler, which
// alone handles it. Only the bus sets it. Its value is Redrive.String().
const ExtRedrive = "redrive"

// Redrive is where a copy belongs.
type Redrive struct {
	Handler string
	Round   uint64 // sequence of the event whose turn published the copy
	Number  int    // of the copy in its round, from 1
	// Origin is the sequence at which the event first stood: should the copy fail,
	// its dead letter keeps that place. 0: in a stream that was replaced.
	Origin uint64
}

// String is "<handler>/<round>/<number>/<origin>".
func (r Redrive) String() string {
	return fmt.Sprintf("%s/%d/%d/%d", r.Handler, r.Round, r.Number, r.Origin)
}

// RedriveOf returns the mark of a copy; false for any other event.
func RedriveOf(e Event) (r Redrive, ok bool, err error) {
	v, has := extension(e, ExtRedrive)
	if !has {
		return r, false, nil
	}
	text, _ := v.(string)
	if parts := strings.Split(text, "/"); len(parts) == 4 && isLabel(parts[0]) {
		var e1, e2, e3 error
		r.Handler = parts[0]
		r.Round, e1 = strconv.ParseUint(parts[1], 10, 64)
		r.Number, e2 = strconv.Atoi(parts[2])
		r.Origin, e3 = strconv.ParseUint(parts[3], 10, 64)
		err = errors.Join(e1, e2, e3)
	}
	if r.Handler == "" || r.Number < 1 || err != nil {
		return Redrive{}, false, fmt.Errorf("%s: is %q, expected <handler>/<round>/<number>/<sequence>", ExtRedrive, v)
	}
	return r, true, nil
}

// Redrivable says why an event can't be published again; nil when it can.
func Redrivable(e Event) error {
	if err := RedrivableType(e.Type()); err != nil {
		return err
	}
	return Check(e)
}

// RedrivableType says why no event of a type can be published again; nil when one
// can.
func RedrivableType(typ string) error {
	switch typ {
	case TypeSnapshotCaptured, TypeSnapshotChanged:
		return errors.New("later snapshots have replaced it, and decision would hold every pool until the next full one; drop it")
	case TypeDeadletterRedriveRequested, TypeDeadletterDropRequested, TypeDeadletterRedriven:
		return errors.New("it is a request about dead letters; drop it and ask again")
	}
	return nil
}
