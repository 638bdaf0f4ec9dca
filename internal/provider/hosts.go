package provider

import (
	"context"
	"errors"
	"strings"
)

// ErrNoRoom says that no host of the provider has room for the machine now, and
// that nothing was made. Its text names each host with what it lacks.
var ErrNoRoom = errors.New("no host has room for the machine")

// Placer is what a provider with several hosts implements beside NodeProvider.
//
// The caller records the host that Place returns, and then calls Create with it
// in Spec.Host: whoever takes the work over knows where to look for a machine
// whose creation was cut short, and waits for that host rather than make a
// second machine on another.
type Placer interface {
	// Place chooses a host that has room for the machine. Spec.Host is the host
	// of an earlier attempt that made nothing; it is chosen again if it can be.
	// ErrNoRoom when none has room, ErrRefused when none ever will.
	Place(ctx context.Context, s Spec) (host string, err error)
}

// HostsError says which hosts of a provider answered. Get returns it for a
// machine that none of them has, List for a list that is not complete.
//
// It is ErrNotFound when all hosts answered. Otherwise a machine that was not
// seen is on one of the Missing hosts or does not exist: unknown, not gone.
type HostsError struct {
	What string // what was asked for, e.g. "machine a-1"
	// Answered are the hosts that answered, each under every name that a record
	// of its machines may bear.
	Answered []string
	// Missing are the hosts that did not, with the reason.
	Missing []MissingHost
}

// MissingHost is a host that did not answer.
type MissingHost struct {
	Name string
	Err  error
}

// Error implements error.
func (e *HostsError) Error() string {
	if len(e.Missing) == 0 {
		return e.What + ": " + ErrNotFound.Error()
	}
	why := make([]string, len(e.Missing))
	for i, m := range e.Missing {
		why[i] = "host " + m.Name + " does not answer: " + m.Err.Error()
	}
	return e.What + ": unknown, since " + strings.Join(why, "; ")
}

// Unwrap returns why hosts are missing, or ErrNotFound.
func (e *HostsError) Unwrap() []error {
	if len(e.Missing) == 0 {
		return []error{ErrNotFound}
	}
	errs := make([]error, len(e.Missing))
	for i, m := range e.Missing {
		errs[i] = m.Err
	}
	return errs
}
