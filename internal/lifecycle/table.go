package lifecycle

import (
	"fmt"
	"time"
)

// Deadline says what limits the time in a state.
type Deadline string

// What limits the time in a state.
const (
	DeadlineNone     Deadline = ""         // may last
	DeadlineNotAfter Deadline = "notafter" // the claim's or request's own end
	DeadlineRegister Deadline = "register" // the time from the machine's start to Ready
	DeadlineDrain    Deadline = "drain"    // the time from the drain's start to the last eviction
	DeadlineKeep     Deadline = "keep"     // that of the state before
)

// Undo says what is done when a state ends without reaching its goal.
type Undo string

// What is done when a state ends without reaching its goal.
const (
	UndoNothing  Undo = ""         // nothing exists yet, or the state is final
	UndoCleanUp  Undo = "clean-up" // stop the machine, delete Node object, password secret and machine
	UndoUncordon Undo = "uncordon" // make the node schedulable again
)

// TransitionError says that an event is impossible in a state.
type TransitionError struct {
	Of    string // "node" or "drain"
	State string
	Event string
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("%s in state %q: %s is impossible", e.Of, e.State, e.Event)
}

// Reason is a code for programs and a sentence for people.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
}

// Stage is when a life reached a named point.
type Stage struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}
