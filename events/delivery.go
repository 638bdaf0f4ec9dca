package events

import "time"

// Types of the events that the bus itself publishes.
const (
	TypeTimerFired         = TypePrefix + "timer.fired.v1"
	TypeDeadletterRecorded = TypePrefix + "deadletter.recorded.v1"
)

// TimerFired says that the deadline of a handler's record of a key has come.
// It is a wake-up, not the truth: the handler compares DueAt with its record.
type TimerFired struct {
	Handler string    `json:"handler"`
	DueAt   time.Time `json:"due_at"`
}

// EventType implements Payload.
func (TimerFired) EventType() string { return TypeTimerFired }

// Validate implements Payload.
func (p TimerFired) Validate() error {
	var r required
	r.oneOf("handler", p.Handler, HandlerDecision, HandlerProvisioning, HandlerDraining)
	r.instant("due_at", p.DueAt)
	return r.err()
}

// DeadletterRecorded says that a handler set an event aside. The event itself
// is in the dead-letter stream.
type DeadletterRecorded struct {
	EventID  string    `json:"event_id"`
	OfType   string    `json:"event_type"`
	Handler  string    `json:"handler"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Sequence uint64    `json:"sequence"` // in the stream of record
	Parked   bool      `json:"parked"`   // later events of the key follow it
	At       time.Time `json:"at"`
}

// EventType implements Payload.
func (DeadletterRecorded) EventType() string { return TypeDeadletterRecorded }

// Validate implements Payload.
func (p DeadletterRecorded) Validate() error {
	var r required
	r.text("event_id", p.EventID)
	r.text("handler", p.Handler)
	r.text("reason", p.Reason)
	return r.err()
}
