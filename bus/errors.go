package bus

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
)

var (
	// ErrUnavailable means that JetStream did not acknowledge in time: no
	// connection, no leader, no room. The caller may try again; an event is
	// deduplicated by its id.
	ErrUnavailable = errors.New("the bus does not acknowledge")
	// ErrConflict means that the expected last sequence did not match: somebody
	// else published on the subject.
	ErrConflict = errors.New("the subject has a newer event")
	// ErrLeased means that another owner holds an unexpired lease on the record.
	ErrLeased = errors.New("another owner holds the lease")
	// ErrLeaseLost means that the lease expired or was taken over: the owner must
	// stop and write nothing.
	ErrLeaseLost = errors.New("the lease was lost")
	// ErrIncarnation means that a record belongs to another incarnation of the
	// stream of record: sequences can't be compared. An operator has to rebase.
	ErrIncarnation = errors.New("the record belongs to another incarnation of the stream")
	// ErrIncompatible means that the stream of record was made by a version with
	// another schema or number of partitions.
	ErrIncompatible = errors.New("the stream of record is incompatible with this version")
	// ErrNotProvisioned means that a stream, consumer or bucket is missing or is not
	// what this version needs, and this process does not make it. An operator has to
	// provision.
	ErrNotProvisioned = errors.New("the bus is not provisioned for this version: run 'k3s-autoscaler bus provision'")
	// ErrAbsent means that there is no stream of record.
	ErrAbsent = errors.New("there is no stream of record")
	// ErrLost means that the stream of record lacks events that were acknowledged,
	// or is gone. An operator has to restore it, or to rebase.
	ErrLost = errors.New("events of the stream of record are lost")
	// ErrTooLarge means that an event or a record exceeds what the bus can hold.
	ErrTooLarge = errors.New("too large for the bus")
	// ErrReadOnly means that a State opened by ReadState was asked to write.
	ErrReadOnly = errors.New("the state was opened for reading only")
)

type terminalError struct {
	err   error
	where []uintptr
}

func (e *terminalError) Error() string { return e.err.Error() }
func (e *terminalError) Unwrap() error { return e.err }

// Terminal marks err as permanent: trying again can't help. The event goes to
// the dead letters at once. Terminal(nil) is nil.
func Terminal(err error) error {
	if err == nil {
		return nil
	}
	where := make([]uintptr, 16)
	// Where it was decided that nothing helps goes into the dead letter.
	return &terminalError{err: err, where: where[:runtime.Callers(2, where)]}
}

func (e *terminalError) stack() string {
	var b strings.Builder
	frames := runtime.CallersFrames(e.where)
	for {
		f, more := frames.Next()
		if f.Function == "" {
			break
		}
		fmt.Fprintf(&b, "%s\n\t%s:%d\n", f.Function, f.File, f.Line)
		if !more {
			break
		}
	}
	return b.String()
}

// IsTerminal reports whether err was marked by Terminal.
func IsTerminal(err error) bool {
	var t *terminalError
	return errors.As(err, &t)
}

type retryAfterError struct {
	err error
	d   time.Duration
}

func (e *retryAfterError) Error() string { return fmt.Sprintf("%v (again in %s)", e.err, e.d) }
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter gives the message back for d. It keeps the head of the line: no
// later event of its partition is delivered to this handler meanwhile. It does
// not count as an attempt. RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, max(d, 0)}
}

// RetryDelay returns the delay that RetryAfter put into err.
func RetryDelay(err error) (time.Duration, bool) {
	var r *retryAfterError
	if errors.As(err, &r) {
		return r.d, true
	}
	return 0, false
}
