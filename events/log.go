package events

import "time"

// TypeLogRebased is about the stream of record itself.
const TypeLogRebased = TypePrefix + "log.rebased.v1"

// LogRebased says that a person declared the present stream of record to be the
// truth, after acknowledged events of the one before were lost.
type LogRebased struct {
	Actor  string `json:"actor"`
	Reason string `json:"reason"`
	// Previous is the incarnation that was known, and Known up to which sequence it
	// is known to have gone. What lies behind Shared in it is lost, but for what the
	// audit recorded in time.
	Previous string `json:"previous"`
	Known    uint64 `json:"known"`
	// Incarnation is the stream that goes on; up to Shared both hold the same events.
	Incarnation string    `json:"incarnation"`
	Shared      uint64    `json:"shared"`
	Records     int       `json:"records"` // of handlers, that follow it now
	Owed        int       `json:"owed"`    // events of their outboxes that are published again
	At          time.Time `json:"at"`
}

// EventType implements Payload.
func (LogRebased) EventType() string { return TypeLogRebased }

// Validate implements Payload.
func (p LogRebased) Validate() error {
	var r required
	r.text("actor", p.Actor)
	r.text("reason", p.Reason)
	r.text("previous", p.Previous)
	r.text("incarnation", p.Incarnation)
	return r.err()
}
