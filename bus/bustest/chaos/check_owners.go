package chaos

import (
	"fmt"
	"maps"
	"slices"
)

// owners: an effect never takes place after another owner began, under a higher
// epoch, to work on the key.
func (c *checker) owners() {
	type claim struct {
		epoch uint64
		line  Line
	}
	high := map[string]claim{}
	for _, l := range c.h.Lines {
		if l.What != WhatBegin && l.What != WhatEffect {
			continue
		}
		h, ok := high[l.Key]
		switch {
		case ok && l.Epoch < h.epoch && l.What == WhatBegin:
			// It was frozen since it took its lease; it asks again before the effect.
		case ok && l.Epoch < h.epoch:
			c.fail(RuleOverlap, []Line{h.line, l}, "key %s: %s of %s under epoch %d, after %s began under epoch %d", l.Key, l.What, l.Who, l.Epoch, h.line.Who, h.epoch)
		case ok && l.Epoch == h.epoch && l.Who != h.line.Who:
			c.fail(RuleOverlap, []Line{h.line, l}, "key %s: %s and %s both own epoch %d", l.Key, h.line.Who, l.Who, l.Epoch)
		case !ok || l.Epoch > h.epoch:
			high[l.Key] = claim{l.Epoch, l}
		}
	}
}

// call is one call of a handler.
type call struct{ start, end Line }

// calls: while a process handles a message, no other handles that or a later one
// of its key. A process that was paused or cut off is no witness, and around
// trouble of a server or the network nobody is: what was sent in time may arrive
// too late. Nor is a call for a message that was handled before: its
// acknowledgement was on its way, and says that the next message may come.
func (c *checker) calls() {
	open := map[string]Line{}
	ended := map[string][]call{}
	starts := map[string][]Line{}
	for _, l := range c.h.Lines {
		if l.Handler == "" || l.Call == 0 {
			continue
		}
		id := fmt.Sprintf("%s/%d", l.Who, l.Call)
		name := l.Handler + "/" + l.Key
		if l.What == WhatStart {
			open[id] = l
			starts[name] = append(starts[name], l)
		} else if s, ok := open[id]; ok && l.What == WhatDone && !c.disturbed(s, l) {
			again := slices.ContainsFunc(ended[name], func(e call) bool { return e.start.Seq == s.Seq && e.end.At < s.At })
			if !again {
				ended[name] = append(ended[name], call{s, l})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ended)) {
		for _, done := range ended[name] {
			for _, other := range starts[name] {
				if other.At > done.start.At && other.At < done.end.At && other.Seq > done.start.Seq {
					c.fail(RuleOverlap, []Line{done.start, other, done.end}, "%s: %s began message %d while %s handled %d", name, other.Who, other.Seq, done.start.Who, done.start.Seq)
				}
			}
			for _, other := range ended[name] {
				if other.start.Seq == done.start.Seq && other.start.At > done.start.At && other.start.At < done.end.At {
					c.fail(RuleOverlap, []Line{done.start, other.start, done.end, other.end}, "%s: %s and %s handled message %d at the same time", name, done.start.Who, other.start.Who, done.start.Seq)
				}
			}
		}
	}
}

// disturbed reports whether a call is no proof: its process was frozen or cut
// off, or a server or the network was in trouble a little earlier.
func (c *checker) disturbed(start, end Line) bool {
	before := (3 * c.h.AckWait).Microseconds()
	wide := map[string]Line{} // trouble of servers and networks that lasts
	for _, l := range c.h.Lines {
		if l.At > end.At {
			break
		}
		switch l.What {
		case WhatStall, WhatElected:
			if (l.Server || l.Who == start.Who) && l.At+before > start.At {
				return true
			}
		case WhatFault:
			if l.Server || l.Fault == FaultPartition {
				wide[l.Who+string(l.Fault)] = l
			} else if l.Who == start.Who && l.At > start.At {
				return true
			}
		case WhatHealed:
			f, ok := wide[l.Who+string(l.Fault)]
			delete(wide, l.Who+string(l.Fault))
			if ok && f.At < end.At && l.At+before > start.At {
				return true
			}
		}
	}
	return len(wide) > 0
}
