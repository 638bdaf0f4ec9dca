package config

import (
	"encoding"
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
		d.checkHeadroom(key+".headroom", p, s.Headroom)
		if s.Min == nil && s.Max == nil && s.Headroom == nil {
			d.fail(key, "sets nothing", "min, max or headroom")
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

// checkHeadroom wants a node to have room for a pod of it.
func (d *decoder) checkHeadroom(key string, p Pool, h *Headroom) {
	if h == nil || h.Pods == 0 {
		return
	}
	text := func(v encoding.TextMarshaler) string {
		b, _ := v.MarshalText() // of amounts: can't fail
		return string(b)
	}
	if p.CPU > 0 && h.Pod.CPU > p.CPU {
		d.fail(d.given(key+".pod.cpu", key), fmt.Sprintf("a pod of the headroom asks for %s CPU, a node has %s", text(h.Pod.CPU), text(p.CPU)), "pod.cpu at most cpu of the pool")
	}
	if p.Memory > 0 && h.Pod.Memory > p.Memory {
		d.fail(d.given(key+".pod.memory", key), fmt.Sprintf("a pod of the headroom asks for %s of memory, a node has %s", text(h.Pod.Memory), text(p.Memory)), "pod.memory at most memory of the pool")
	}
}

func instant(at time.Time, zone string) string {
	if loc, err := time.LoadLocation(zone); err == nil {
		at = at.In(loc)
	}
	return at.Format("15:04 on Mon 2 Jan 2006 MST")
}
