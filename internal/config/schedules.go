package config

import (
	"fmt"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// expectedOfWindow is what the fields of a budget or a schedule should hold.
var expectedOfWindow = map[string]string{
	"nodes":    "a number of nodes such as 0 or 2, or a share of the pool such as 10%",
	"schedule": "five fields as cron has them, such as 0 9 * * 1-5, or @daily; the timezone has a key of its own",
	"duration": "how long a window lasts, such as 8h, where there is a schedule",
	"timezone": "a name of the tz database such as Europe/Berlin, or UTC",
}

func (s Schedule) window() scaling.Window {
	return scaling.Window{Schedule: s.Schedule, Duration: s.Duration.Std(), Timezone: s.Timezone}
}

// checkSchedules wants windows that the core understands, and limits that do not
// contradict each other: not within a schedule, not with the pool's own where a
// schedule sets one of the two, and not between schedules that can be open at the
// same time.
func (d *decoder) checkSchedules(at, pool string, p Pool) {
	seen := map[string]bool{}
	sound := make([]bool, len(p.Schedules)) // windows that are understood
	for i, s := range p.Schedules {
		key := fmt.Sprintf("%s[%d]", at, i)
		d.checkTwice(seen, key+".name", s.Name, "schedule")
		sound[i] = s.Schedule != "" && s.Duration > 0
		if field, err := s.window().Check(); err != nil && sound[i] {
			d.fail(d.given(key+"."+field, key), err.Error(), expectedOfWindow[field])
			sound[i] = false
		}
		if s.Min == nil && s.Max == nil {
			d.fail(key, "sets nothing", "min, max, or both")
			continue
		}
		d.checkLimits(key, pool, p, s)
	}
	for i, a := range p.Schedules {
		for j, b := range p.Schedules {
			if i == j || !sound[i] || !sound[j] || a.Min == nil || b.Max == nil || *a.Min <= *b.Max {
				continue
			}
			if when, both := a.window().Overlap(b.window()); both {
				d.fail(fmt.Sprintf("%s[%d].min", at, i), fmt.Sprintf("min is %d, larger than max (%d) of schedule %q, and both are open at %s",
					*a.Min, *b.Max, b.Name, instant(when, a.Timezone)), "min at most max wherever two windows overlap")
			}
		}
	}
}

// checkLimits compares min and max of one schedule; the one that it does not set
// is the pool's.
func (d *decoder) checkLimits(key, pool string, p Pool, s Schedule) {
	switch {
	case s.Min != nil && *s.Min < 0, s.Max != nil && *s.Max < 0, p.Max < 0: // has been reported
	case s.Min != nil && s.Max != nil:
		if *s.Min > *s.Max {
			d.fail(key+".min", fmt.Sprintf("min is %d, larger than max (%d)", *s.Min, *s.Max), "min at most max")
		}
	case s.Min != nil && d.has(pool+".max") && *s.Min > p.Max:
		d.fail(key+".min", fmt.Sprintf("min is %d, larger than the pool's max (%d)", *s.Min, p.Max), "min at most max; a schedule may set a max of its own")
	case s.Max != nil && *s.Max < p.Min:
		d.fail(key+".max", fmt.Sprintf("max is %d, smaller than the pool's min (%d)", *s.Max, p.Min), "max at least min; a schedule may set a min of its own")
	}
}

func instant(at time.Time, zone string) string {
	if loc, err := time.LoadLocation(zone); err == nil {
		at = at.In(loc)
	}
	return at.Format("15:04 on Mon 2 Jan 2006 MST")
}
