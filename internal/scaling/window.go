package scaling

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Window is a time that comes again and again.
type Window struct {
	// Schedule is when a window begins, as cron writes it: minute, hour, day of
	// month, month, day of week. Empty: always.
	Schedule string
	// Duration is how long a window lasts.
	Duration time.Duration
	// Timezone is that of Schedule, e.g. Europe/Berlin; empty: UTC.
	Timezone string
}

// Check says what of a window can't be understood: the field, and why.
func (w Window) Check() (field string, err error) {
	if _, err := w.location(); err != nil {
		return "timezone", err
	}
	if w.Schedule == "" {
		if w.Duration != 0 {
			return "duration", fmt.Errorf("is %s without a schedule", lasts(w.Duration))
		}
		return "", nil
	}
	if s, err := w.parse(); err != nil || s.Next(time.Unix(0, 0).UTC()).IsZero() { // or on a day that never comes
		return "schedule", fmt.Errorf("is %q", w.Schedule)
	}
	if w.Duration <= 0 {
		return "duration", fmt.Errorf("is %s", lasts(w.Duration))
	}
	return "", nil
}

func (w Window) location() (*time.Location, error) {
	loc, err := time.LoadLocation(w.Timezone) // "" is UTC
	if err != nil || w.Timezone == "Local" {
		return nil, fmt.Errorf("is %q", w.Timezone)
	}
	return loc, nil
}

// parse reads the schedule. A zone in it, which the library would take and on some
// of which it panics, has a field of its own; @every has no beginning.
func (w Window) parse() (cron.Schedule, error) {
	if strings.Contains(w.Schedule, "TZ=") || strings.HasPrefix(w.Schedule, "@every") {
		return nil, fmt.Errorf("is %q", w.Schedule)
	}
	return cron.ParseStandard(w.Schedule)
}

// maxJoined bounds how many windows that follow each other without a gap are
// looked through for their end.
const maxJoined = 100

// clock is a window that can be asked for its times; nil: it is not understood.
func (w Window) clock() *clock {
	loc, err := w.location()
	if err != nil {
		return nil
	}
	s, err := w.parse()
	if err != nil {
		return nil
	}
	return &clock{s, loc, w.Duration}
}

type clock struct {
	starts cron.Schedule
	zone   *time.Location
	lasts  time.Duration
}

// at is the end of the window that now is in. Windows that overlap or follow each
// other at once are one. Zero: it has no end that could be found.
func (c *clock) at(now time.Time) (until time.Time, in bool) {
	// The next beginning after that of a window that would have ended now.
	began := c.starts.Next(now.Add(-c.lasts).In(c.zone))
	if began.IsZero() || began.After(now) {
		return time.Time{}, false
	}
	for range maxJoined {
		until = began.Add(c.lasts)
		if began = c.starts.Next(began); began.IsZero() || began.After(until) {
			return until.UTC(), true
		}
	}
	return time.Time{}, true
}

// next is when a window begins after now; zero: none does within years.
func (c *clock) next(now time.Time) time.Time {
	at := c.starts.Next(now.In(c.zone))
	if at.IsZero() {
		return at
	}
	return at.UTC()
}

// window is the end of the window that now is in; zero: it always counts, as does
// one that is not understood: that protects.
func (w Window) window(now time.Time) (until time.Time, in bool) {
	if w.Schedule == "" {
		return time.Time{}, true
	}
	c := w.clock()
	if c == nil {
		return time.Time{}, true
	}
	return c.at(now)
}
