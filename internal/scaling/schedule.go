package scaling

import (
	"fmt"
	"slices"
	"time"
)

// Schedule sets limits of a pool while its window is open, instead of the pool's
// own. Of several open ones each keeps its word, as with budgets: a minimum
// promises nodes, so the highest counts; a maximum limits what they cost, so the
// lowest counts. A schedule that sets no minimum leaves that to the others and the
// pool, and so with the rest.
type Schedule struct {
	Name string
	Window
	Min, Max *int      // nil: not set
	Headroom *Headroom // likewise; of several open ones each is kept
}

// open is a schedule whose window is open.
type open struct {
	Schedule
	until  time.Time // zero: no end in sight
	zone   *time.Location
	ending string // see end
}

// Limits are what the open schedules make of a pool.
type Limits struct {
	Min, Max int
	// Open says of every open schedule what it sets, and until when.
	Open []string
}

// LimitsAt are the limits of the pool at an instant.
func (p Pool) LimitsAt(now time.Time) Limits {
	run := &poolRun{Pool: p}
	run.schedule(now)
	out := Limits{Min: run.Min, Max: run.Max}
	for _, o := range run.open {
		out.Open = append(out.Open, o.sets())
	}
	return out
}

// schedule puts the limits of the open schedules in the place of the pool's own.
// The maximum is never exceeded, whatever the schedules say.
func (p *poolRun) schedule(now time.Time) {
	for _, s := range p.sortedSchedules() {
		c := s.clock()
		if c == nil { // the configuration refuses it
			continue
		}
		if until, in := c.at(now); in {
			o := open{Schedule: s, until: until, zone: c.zone}
			o.ending = o.end(now)
			p.open = append(p.open, o)
		}
	}
	for i := range p.open {
		o := &p.open[i]
		if o.Min != nil && (p.minBy == nil || *o.Min > *p.minBy.Min) {
			p.minBy = o
		}
		if o.Max != nil && (p.maxBy == nil || *o.Max < *p.maxBy.Max) {
			p.maxBy = o
		}
	}
	if p.maxBy != nil {
		p.Max = *p.maxBy.Max
	}
	if p.minBy != nil {
		p.Min = *p.minBy.Min
	}
	if p.minBy != nil || p.maxBy != nil {
		p.Min = min(p.Min, p.Max)
	}
	if p.minBy != nil {
		p.minUntil = p.minBy.ending
	}
	if p.maxBy != nil {
		p.maxUntil = p.maxBy.ending
	}
	p.reserves = p.reserved()
}

// sortedSchedules returns the schedules by name. Of two of one name the first
// counts; the configuration refuses them.
func (p *poolRun) sortedSchedules() []Schedule {
	out := slices.Clone(p.Schedules)
	slices.SortStableFunc(out, func(a, b Schedule) int { return cmpString(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b Schedule) bool { return a.Name == b.Name })
}

// scheduled writes a rule for every open schedule, and one for each of the others
// that says when it opens. own is the pool without its schedules.
func (p *poolRun) scheduled(now time.Time, own Pool) {
	if p.minBy != nil && !p.minBy.until.IsZero() && own.LimitsAt(p.minBy.until).Min < p.Min {
		p.minLifts = p.minBy.until
	}
	if p.maxBy != nil && !p.maxBy.until.IsZero() && own.LimitsAt(p.maxBy.until).Max > p.Max {
		p.maxLifts = p.maxBy.until
	}
	for _, s := range p.sortedSchedules() {
		rule := Rule{Rule: RuleSchedule + " " + s.Name, Kind: RuleSchedule, Value: "closed", Verdict: None}
		if i := slices.IndexFunc(p.open, func(o open) bool { return o.Name == s.Name }); i >= 0 {
			rule.Value, rule.Message = "open", p.open[i].sets()
			if o := p.open[i]; o.Min != nil && *o.Min > p.Max {
				rule.Message += fmt.Sprintf("; the maximum of %d holds", p.Max)
			}
		} else if c := s.clock(); c == nil {
			rule.Verdict, rule.Message = Unknown, "its window is not understood"
		} else if next := c.next(now); !next.IsZero() {
			rule.Message = "opens at " + instant(next, now, c.zone)
		}
		p.rules = append(p.rules, rule)
	}
}

// sets says what an open schedule sets.
func (o *open) sets() string {
	var what string
	for _, v := range []struct {
		name string
		n    *int
	}{{"min", o.Min}, {"max", o.Max}} {
		if v.n != nil {
			what = join(what, fmt.Sprintf("%s is %d", v.name, *v.n))
		}
	}
	if o.Headroom != nil {
		what = join(what, "headroom is "+o.Headroom.String())
	}
	return what + o.ending
}

// end is " until 18:00 Europe/Berlin (schedule office-hours)", for the end of a
// sentence about what it sets.
func (o *open) end(now time.Time) string {
	if o.until.IsZero() {
		return fmt.Sprintf(" (schedule %s)", o.Name)
	}
	return fmt.Sprintf(" until %s (schedule %s)", instant(o.until, now, o.zone), o.Name)
}

// instant writes a time as people of a zone say it: the day only if it is another.
func instant(at, now time.Time, zone *time.Location) string {
	at = at.In(zone)
	layout := "15:04"
	if at.Format(time.DateOnly) != now.In(zone).Format(time.DateOnly) {
		layout = "2006-01-02 15:04"
	}
	return at.Format(layout) + " " + zone.String()
}

// turns are when the windows of the pool begin and end next.
func (p *poolRun) turns(now time.Time) []time.Time {
	var out []time.Time
	for _, s := range p.Schedules {
		if c := s.clock(); c != nil {
			until, _ := c.at(now)
			out = append(out, until, c.next(now))
		}
	}
	return out
}
