package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// History is everything that is known about a run.
type History struct {
	Lines []Line
	// Published are the ids of the events whose publication was acknowledged.
	Published []string
	// Stream is the stream of record.
	Stream []Stored
	// Records are the final records of the handlers.
	Records []Final
	Dead    []Dead
	// Committed are the sequences in the store of the batch reader, as stored.
	Committed []uint64
	// AckWait is the protocol's.
	AckWait time.Duration
}

// Stored is one event of the stream of record.
type Stored struct {
	Seq     uint64
	ID      string
	Key     string
	Type    string   // without prefix and version: "node.observed"
	Cause   string   // id of the event it follows from
	Detail  string   // position or operation that led to it; of a dead letter's event: handler and sequence
	Readers []string // handlers that read it
	Poison  bool
	// Origin is set for the copy of a dead letter that was redriven: the sequence
	// at which its event first stood.
	Origin uint64
}

// place is where the event belongs in the order of its key.
func (s Stored) place() uint64 {
	if s.Origin > 0 {
		return s.Origin
	}
	return s.Seq
}

// Final is a record at the end of a run.
type Final struct {
	Handler, Key string
	Record
}

// Dead is a dead letter.
type Dead struct {
	Handler, Key string
	Seq          uint64
	Attempts     int
	Reason       string
}

// Names that the rules speak of.
const (
	handlerProvisioning = events.HandlerProvisioning
	handlerDraining     = events.HandlerDraining
	handlerAuditing     = events.HandlerAuditing

	typeObserved   = "node.observed"
	typeRequested  = "node.drain.requested"
	typeCordoned   = "node.cordoned"
	typeReady      = "node.ready"
	typeDeadLetter = "deadletter.recorded"
)

// The rules that Check knows.
const (
	RuleLost     = "lost"     // every acknowledged event is handled or among the dead letters
	RuleOrder    = "order"    // the messages of a key are applied in the order of the stream
	RuleOnce     = "once"     // one effect for each operation
	RuleOutput   = "output"   // one event for each message and index
	RuleOverlap  = "overlap"  // one owner of a key at a time
	RuleBatch    = "batch"    // a batch reader commits everything once, in order
	RuleDead     = "dead"     // only what can't be handled is set aside
	RuleUnended  = "unended"  // everything comes to an end
	RuleDoubled  = "doubled"  // an event is stored once
	RuleShutdown = "shutdown" // a process that is told to stop ends by itself
)

// Violation is a broken promise.
type Violation struct {
	Rule  string
	Text  string
	Lines []Line // of the history, that show it
}

func (v Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", v.Rule, v.Text)
	for _, l := range v.Lines {
		b.WriteString("\n    " + l.String())
	}
	return b.String()
}

// Check returns every promise that a history shows to be broken.
func Check(h History) []Violation {
	c := &checker{h: h, byID: map[string]Stored{}, bySeq: map[uint64]Stored{}, copied: map[string]bool{}, records: map[string]Final{}}
	for _, f := range h.Records {
		c.records[f.Handler+"/"+f.Key] = f
	}
	c.stream()
	c.applied()
	c.outputs()
	c.operations()
	c.owners()
	c.calls()
	c.batches()
	c.deadLetters()
	return c.out
}

type checker struct {
	h       History
	byID    map[string]Stored // the first of each id
	bySeq   map[uint64]Stored
	records map[string]Final // by handler and key
	copied  map[string]bool  // handler and sequence of what was redriven
	out     []Violation
}

func (c *checker) fail(rule string, lines []Line, format string, args ...any) {
	const enough = 40
	if len(lines) > enough {
		lines = lines[:enough]
	}
	c.out = append(c.out, Violation{Rule: rule, Text: fmt.Sprintf(format, args...), Lines: lines})
}

// about are the lines of one message.
func (c *checker) about(handler string, seq uint64) []Line {
	return c.where(func(l Line) bool { return l.Handler == handler && l.Seq == seq })
}

func (c *checker) where(fn func(Line) bool) []Line {
	var out []Line
	for _, l := range c.h.Lines {
		if fn(l) {
			out = append(out, l)
		}
	}
	return out
}

// stream: what was acknowledged is stored, and nothing is stored twice.
func (c *checker) stream() {
	for _, s := range c.h.Stream {
		c.bySeq[s.Seq] = s
		if s.Origin > 0 {
			for _, handler := range s.Readers {
				c.copied[deadKey(handler, s.Origin)] = true
			}
			continue
		}
		if first, ok := c.byID[s.ID]; ok {
			c.fail(RuleDoubled, nil, "event %s (%s, key %s) is stored as sequence %d and as %d", s.ID, s.Type, s.Key, first.Seq, s.Seq)
			continue
		}
		c.byID[s.ID] = s
	}
	for _, id := range c.h.Published {
		if _, ok := c.byID[id]; !ok {
			c.fail(RuleLost, nil, "event %s was acknowledged, but the stream of record does not hold it", id)
		}
	}
}

// first reports whether an event is no second one of its id.
func (c *checker) first(s Stored) bool { return s.Origin == 0 && c.byID[s.ID].Seq == s.Seq }

// applied: each record shows all messages of its key but the dead ones, once and
// in order. A copy stands for the message that was set aside.
func (c *checker) applied() {
	dead := map[string]bool{} // by handler and place
	for _, d := range c.h.Dead {
		s := c.bySeq[d.Seq]
		dead[deadKey(d.Handler, s.place())] = true
	}
	want := map[string][]uint64{} // places
	for _, s := range c.h.Stream {
		for _, handler := range s.Readers {
			if s.Origin == 0 && !dead[deadKey(handler, s.Seq)] {
				want[handler+"/"+s.Key] = append(want[handler+"/"+s.Key], s.Seq)
			}
		}
	}
	for name := range c.records {
		if _, ok := want[name]; !ok {
			want[name] = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		c.trail(name, want[name], c.records[name].Trail)
	}
}

// trail compares the places of a key's messages with those that were applied.
func (c *checker) trail(name string, want, have []uint64) {
	handler, _, _ := strings.Cut(name, "/")
	seen := map[uint64]bool{}
	var last, lastPlace uint64
	for i, seq := range have {
		place := c.bySeq[seq].place()
		switch {
		case seen[place]:
			c.fail(RuleOnce, c.about(handler, seq), "%s: message %d was applied twice: %v", name, seq, have)
		case seq < last || place < lastPlace:
			c.fail(RuleOrder, append(c.about(handler, seq), c.about(handler, last)...), "%s: message %d (place %d) was applied after %d (place %d), at position %d: %v",
				name, seq, place, last, lastPlace, i+1, have)
		case !slices.Contains(want, place):
			c.fail(RuleDead, c.about(handler, seq), "%s: message %d was applied, although it is among the dead letters or not in the stream", name, seq)
		}
		seen[place] = true
		last, lastPlace = max(last, seq), max(lastPlace, place)
	}
	for _, seq := range want {
		if !seen[seq] {
			what := ""
			if c.copied[deadKey(handler, seq)] {
				what = ", although it was redriven"
			}
			c.fail(RuleLost, c.about(handler, seq), "%s: message %d was neither applied nor is it among the dead letters%s; applied: %v", name, seq, what, have)
		}
	}
}

func deadKey(handler string, seq uint64) string { return fmt.Sprintf("%s/%d", handler, seq) }

// outputs: each message that was applied led to its one event, at its position,
// and those of a key follow in the order of their causes.
func (c *checker) outputs() {
	caused := map[string][]Stored{} // by cause and type
	for _, s := range c.h.Stream {
		if s.Cause != "" && c.first(s) {
			caused[s.Cause+"/"+s.Type] = append(caused[s.Cause+"/"+s.Type], s)
		}
	}
	last := map[string]Stored{}
	for _, s := range c.h.Stream {
		handler, typ := outputOf(s.Type)
		if handler == "" || s.Origin == 0 && !c.first(s) {
			continue
		}
		key := handler + "/" + s.Key
		i := slices.Index(c.records[key].Trail, s.Seq)
		if i < 0 {
			continue // a dead letter, or lost
		}
		outs := caused[s.ID+"/"+typ]
		switch len(outs) {
		case 0:
			c.fail(RuleOutput, c.about(handler, s.Seq), "%s: message %d was applied, but its %s is not in the stream", key, s.Seq, typ)
			continue
		case 1:
		default:
			c.fail(RuleOutput, c.about(handler, s.Seq), "%s: message %d led to %d events %s with different ids, sequences %d and %d", key, s.Seq, len(outs), typ, outs[0].Seq, outs[1].Seq)
		}
		o := outs[0]
		if want := position(i + 1); o.Detail != want {
			c.fail(RuleOutput, c.about(handler, s.Seq), "%s: message %d is at %s of the record, its %s (sequence %d) says %s", key, s.Seq, want, typ, o.Seq, o.Detail)
		}
		if before := last[key]; before.Seq > o.Seq {
			c.fail(RuleOrder, c.about(handler, s.Seq), "%s: %s of message %d is sequence %d, before that of an earlier message (sequence %d)", key, typ, s.Seq, o.Seq, before.Seq)
		}
		last[key] = o
	}
}

// outputOf says which event a handler emits for a message of a type.
func outputOf(typ string) (handler, emits string) {
	switch typ {
	case typeObserved:
		return handlerProvisioning, typeRequested
	case typeRequested:
		return handlerDraining, typeCordoned
	}
	return "", ""
}

// operations: each intent led to one effect and one result.
func (c *checker) operations() {
	results := map[string]int{}
	for _, s := range c.h.Stream {
		if s.Type == typeReady && c.first(s) {
			results[s.Detail]++
		}
	}
	intents := map[string]bool{}
	effects := map[string][]Line{}
	for _, l := range c.h.Lines {
		if l.What == WhatEffect {
			effects[l.Op] = append(effects[l.Op], l)
		}
	}
	of := func(op string) []Line { return c.where(func(l Line) bool { return l.Op == op }) }
	parked := map[string]bool{} // nothing reaches those any more, their timers neither
	for _, d := range c.h.Dead {
		parked[d.Handler+"/"+d.Key] = true
	}
	for _, f := range c.h.Records {
		if (!f.Due.IsZero() || f.Armed != f.Fired) && !parked[f.Handler+"/"+f.Key] {
			c.fail(RuleUnended, nil, "%s/%s: %d deadlines were set and %d were met, the last is %s", f.Handler, f.Key, f.Armed, f.Fired, f.Due.Format(time.RFC3339Nano))
		}
		for _, op := range f.Ops {
			intents[op.ID] = true
			switch {
			case !op.Done:
				c.fail(RuleUnended, of(op.ID), "%s/%s: operation %s has no result", f.Handler, f.Key, op.ID)
			case len(effects[op.ID]) == 0:
				c.fail(RuleOnce, of(op.ID), "%s/%s: operation %s has a result, but never took place", f.Handler, f.Key, op.ID)
			case results[op.ID] != 1:
				c.fail(RuleOutput, of(op.ID), "%s/%s: operation %s has %d results in the stream, expected one", f.Handler, f.Key, op.ID, results[op.ID])
			}
		}
	}
	for _, op := range slices.Sorted(maps.Keys(effects)) {
		if n := len(effects[op]); n > 1 {
			c.fail(RuleOnce, of(op), "operation %s took place %d times", op, n)
		}
		if !intents[op] {
			c.fail(RuleOnce, of(op), "operation %s took place, but no record holds its intent", op)
		}
	}
}
