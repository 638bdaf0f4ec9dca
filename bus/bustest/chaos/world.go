//go:build unix

package chaos

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// errTooLate is the world's answer to a call after its deadline.
var errTooLate = errors.New("the effect comes after the deadline of its call")

// world is what effects change: the lines WhatEffect of the history. It does not
// know leases or epochs, and would do an operation twice: what keeps that from
// happening is the bus alone.
type world struct {
	history *Tail
	// lock is a file. Its lock makes the check of a deadline and the effect one
	// instant. Who freezes processes takes it, too: what a process does that is
	// frozen between its last check and the effect, no lease can prevent.
	lock string
}

func openWorld(dir string) *world {
	return &world{history: NewTail(historyPath(dir)), lock: worldLock(dir)}
}

// has reports whether an operation took place.
func (w *world) has(op string) (bool, error) {
	lines, err := w.history.Lines()
	if err != nil {
		return false, err
	}
	for _, l := range lines {
		if l.What == WhatEffect && l.Op == op {
			return true, nil
		}
	}
	return false, nil
}

// effect makes an operation take place, unless it comes too late.
func (w *world) effect(log *Log, line Line, deadline time.Time) error {
	unlock, err := flock(w.lock)
	if err != nil {
		return err
	}
	defer unlock()
	if time.Now().Round(0).After(deadline) {
		return errTooLate
	}
	line.What = WhatEffect
	log.Add(line)
	return nil
}

// flock takes an exclusive lock on a file. Each call opens it: locks of one open
// file do not exclude each other.
func flock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
