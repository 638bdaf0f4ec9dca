package scaling

import "time"

// overlapFrom is where Overlap begins to look: what is understood does not depend
// on the day on which it is asked. The calendar repeats itself after 28 years.
// overlapLooks is how many windows it looks at: eleven years of daily ones.
var (
	overlapFrom = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	overlapTo   = overlapFrom.AddDate(28, 0, 0)
)

const overlapLooks = 4000

// Overlap reports whether two windows are ever open at the same time, and an
// instant at which they are. Of two that both begin very often it looks at the
// first ones only.
func (w Window) Overlap(o Window) (at time.Time, found bool) {
	a, b := w.clock(), o.clock()
	if a == nil || b == nil {
		return time.Time{}, false
	}
	// They overlap if and only if one of them is open, or begins, while the other is.
	// The beginnings of either tell; those that come less often are through first.
	ofA, ofB := a.next(overlapFrom), b.next(overlapFrom)
	for range overlapLooks {
		if ofA.IsZero() || ofB.IsZero() || ofA.After(overlapTo) || ofB.After(overlapTo) {
			break
		}
		if at, found := b.during(ofA, a.lasts); found {
			return at, true
		}
		if at, found := a.during(ofB, b.lasts); found {
			return at, true
		}
		ofA, ofB = a.next(ofA), b.next(ofB)
	}
	return time.Time{}, false
}

// during is when a window is open first within d from at.
func (c *clock) during(at time.Time, d time.Duration) (time.Time, bool) {
	began := c.starts.Next(at.Add(-c.lasts).In(c.zone))
	switch {
	case began.IsZero() || !began.Before(at.Add(d)):
		return time.Time{}, false
	case began.Before(at):
		return at, true
	}
	return began.UTC(), true
}
