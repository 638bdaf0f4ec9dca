package chaos

import (
	"strings"
)

// batches: the store holds every sequence of the stream once, in order.
func (c *checker) batches() {
	for i, seq := range c.h.Committed {
		if want := uint64(i + 1); seq != want {
			c.fail(RuleBatch, c.where(func(l Line) bool {
				return l.Handler == handlerAuditing && l.What == WhatCommit && l.Seq <= seq+300 && l.Seq+300 >= seq
			}),
				"the batch reader committed %d where %d follows", seq, want)
			return
		}
	}
	if n := len(c.h.Stream); n > 0 && uint64(len(c.h.Committed)) < c.h.Stream[n-1].Seq {
		c.fail(RuleBatch, nil, "the batch reader committed %d events, the stream of record holds %d", len(c.h.Committed), c.h.Stream[n-1].Seq)
	}
	// A leader of the consumer that was just elected may not know what the last one
	// gave to another process. The store refuses what does not follow, as auditing's
	// does, which reads what is missing from the stream.
	for _, l := range c.h.Lines {
		if l.What == WhatGap && !c.disturbed(l, l) {
			c.fail(RuleBatch, []Line{l}, "a batch did not follow what was committed")
		}
	}
}

// deadLetters: what is poisoned is set aside once, with what follows on its key,
// and nothing else is.
func (c *checker) deadLetters() {
	poisoned := map[string]uint64{} // handler and key: the first poisoned sequence
	for _, s := range c.h.Stream {
		if s.Poison && s.Origin == 0 && poisoned[handlerProvisioning+"/"+s.Key] == 0 {
			poisoned[handlerProvisioning+"/"+s.Key] = s.Seq
		}
	}
	recorded := map[string]int{}
	for _, s := range c.h.Stream {
		if s.Type == typeDeadLetter && c.first(s) {
			recorded[s.Detail]++
		}
	}
	seen := map[string]bool{}
	for _, d := range c.h.Dead {
		name := deadKey(d.Handler, d.Seq)
		if seen[name] {
			c.fail(RuleDead, c.about(d.Handler, d.Seq), "%s/%s: message %d is among the dead letters twice", d.Handler, d.Key, d.Seq)
			continue
		}
		seen[name] = true
		if first := poisoned[d.Handler+"/"+d.Key]; first == 0 || d.Seq < first {
			c.fail(RuleDead, c.about(d.Handler, d.Seq), "%s/%s: message %d was set aside after %d attempts, although nothing is wrong with it: %s", d.Handler, d.Key, d.Seq, d.Attempts, d.Reason)
		}
		if recorded[name] != 1 {
			c.fail(RuleDead, c.about(d.Handler, d.Seq), "%s/%s: the dead letter of message %d is recorded in %d events, expected one", d.Handler, d.Key, d.Seq, recorded[name])
		}
	}
	for name, first := range poisoned {
		handler, _, _ := strings.Cut(name, "/")
		if !seen[deadKey(handler, first)] && !c.copied[deadKey(handler, first)] {
			c.fail(RuleDead, c.about(handler, first), "%s: the poisoned message %d is not among the dead letters", name, first)
		}
	}
}
