package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sound is a history in which nothing is wrong: two events of one key, an effect,
// a poisoned event of another key and what follows on it.
func sound() History {
	readers := map[string][]string{typeObserved: {handlerProvisioning}, typeRequested: {handlerDraining}, typeCordoned: {handlerProvisioning}}
	s := func(seq uint64, id, key, typ, cause, detail string) Stored {
		return Stored{Seq: seq, ID: id, Key: key, Type: typ, Cause: cause, Detail: detail, Readers: readers[typ]}
	}
	h := History{
		AckWait:   time.Second,
		Published: []string{"a", "b", "p", "q"},
		Stream: []Stored{
			s(1, "a", "n1", typeObserved, "", ""),
			s(2, "a.1", "n1", typeRequested, "a", position(1)),
			s(3, "b", "n1", typeObserved, "", ""),
			s(4, "a.2", "n1", typeCordoned, "a.1", position(1)),
			s(5, "b.1", "n1", typeRequested, "b", position(2)),
			s(6, "b.2", "n1", typeCordoned, "b.1", position(2)),
			s(7, "r", "n1", typeReady, "", "n1-3"),
			s(8, "p", "n2", typeObserved, "", ""),
			s(9, "q", "n2", typeObserved, "", ""),
			s(10, "d1", "n2", typeDeadLetter, "p", deadKey(handlerProvisioning, 8)),
			s(11, "d2", "n2", typeDeadLetter, "q", deadKey(handlerProvisioning, 9)),
		},
		Records: []Final{
			{handlerProvisioning, "n1", Record{Trail: []uint64{1, 3, 4, 6}, Ops: []Op{{ID: "n1-3", Done: true}}, Armed: 1, Fired: 1}},
			{handlerDraining, "n1", Record{Trail: []uint64{2, 5}}},
		},
		Dead:      []Dead{{Handler: handlerProvisioning, Key: "n2", Seq: 8, Attempts: 10}, {Handler: handlerProvisioning, Key: "n2", Seq: 9}},
		Committed: []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
		Lines: []Line{
			{At: 10e6, Who: "w0", What: WhatStart, Handler: handlerProvisioning, Key: "n1", Seq: 1, Call: 1},
			{At: 11e6, Who: "w0", What: WhatDone, Handler: handlerProvisioning, Key: "n1", Seq: 1, Call: 1},
			{At: 12e6, Who: "w1", What: WhatStart, Handler: handlerProvisioning, Key: "n1", Seq: 3, Call: 1},
			{At: 14e6, Who: "w1", What: WhatDone, Handler: handlerProvisioning, Key: "n1", Seq: 3, Call: 1},
			{At: 15e6, Who: "w0", What: WhatBegin, Key: "n1", Op: "n1-3", Epoch: 1},
			{At: 16e6, Who: "w0", What: WhatFault, Fault: FaultFreeze},
			{At: 17e6, Who: "w1", What: WhatBegin, Key: "n1", Op: "n1-3", Epoch: 2},
			{At: 18e6, Who: "w1", What: WhatEffect, Key: "n1", Op: "n1-3", Epoch: 2},
			{At: 19e6, Who: "w0", What: WhatHealed, Fault: FaultFreeze},
			{At: 20e6, Who: "w0", What: WhatAbort, Key: "n1", Op: "n1-3", Epoch: 1},
		},
	}
	h.Stream[7].Poison = true
	return h
}

func TestCheckFindsNothingInASoundHistory(t *testing.T) {
	t.Parallel()
	require.Empty(t, Check(sound()))
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		spoil   func(*History)
		rule    string
		message string
	}{
		{"an acknowledged event that is not stored", func(h *History) { h.Published = append(h.Published, "gone") }, RuleLost, "event gone was acknowledged"},
		{"an event that is stored twice", func(h *History) {
			h.Stream = append(h.Stream, Stored{Seq: 12, ID: "a", Key: "n1", Type: "x"})
			h.Committed = append(h.Committed, 12)
		}, RuleDoubled, "stored as sequence 1 and as 12"},
		{"a message that was not applied", func(h *History) { h.Records[0].Trail = []uint64{1, 4, 6} }, RuleLost, "provisioning/n1: message 3 was neither applied nor is it among"},
		{"a handler without any record", func(h *History) { h.Records = h.Records[:1] }, RuleLost, "draining/n1: message 2 was neither"},
		{"a message that was applied twice", func(h *History) { h.Records[1].Trail = []uint64{2, 5, 5} }, RuleOnce, "message 5 was applied twice"},
		{"messages in the wrong order", func(h *History) { h.Records[1].Trail = []uint64{5, 2} }, RuleOrder, "message 2 (place 2) was applied after 5 (place 5)"},
		{"a dead letter that was applied", func(h *History) {
			h.Records = append(h.Records, Final{handlerProvisioning, "n2", Record{Trail: []uint64{9}}})
		}, RuleDead, "message 9 was applied, although"},
		{"an output that is missing", func(h *History) { h.Stream[4].Type = "x" }, RuleOutput, "message 3 was applied, but its node.drain.requested is not in the stream"},
		{"two outputs of one message", func(h *History) {
			h.Stream[6] = Stored{Seq: 7, ID: "other", Key: "n1", Type: typeCordoned, Cause: "a.1", Detail: position(1)}
		}, RuleOutput, "led to 2 events"},
		{"an output of another state", func(h *History) { h.Stream[4].Detail = position(1) }, RuleOutput, "is at position-2 of the record"},
		{"outputs in the wrong order", func(h *History) {
			h.Stream[1].Cause, h.Stream[1].Detail, h.Stream[4].Cause, h.Stream[4].Detail = "b", position(2), "a", position(1)
		}, RuleOrder, "before that of an earlier message"},
		{"an effect that took place twice", func(h *History) { h.Lines = append(h.Lines, h.Lines[7]) }, RuleOnce, "operation n1-3 took place 2 times"},
		{"an effect that never took place", func(h *History) { h.Lines = h.Lines[:6] }, RuleOnce, "has a result, but never took place"},
		{"an effect without intent", func(h *History) { h.Records[0].Ops = nil }, RuleOnce, "no record holds its intent"},
		{"an effect without result", func(h *History) { h.Records[0].Ops[0].Done = false }, RuleUnended, "operation n1-3 has no result"},
		{"a result that is not published", func(h *History) { h.Stream[6].Type = "x" }, RuleOutput, "has 0 results in the stream"},
		{"a deadline that is not met", func(h *History) { h.Records[0].Fired = 0 }, RuleUnended, "1 deadlines were set and 0 were met"},
		{"an effect of a former owner", func(h *History) { h.Lines[9].What = WhatEffect }, RuleOverlap, "effect of w0 under epoch 1, after w1 began under epoch 2"},
		{"two owners of one epoch", func(h *History) { h.Lines[6].Epoch = 1 }, RuleOverlap, "both own epoch 1"},
		{"a message that overtakes one in work", func(h *History) { h.Lines[2].At = 10.5e6 }, RuleOverlap, "w1 began message 3 while w0 handled 1"},
		{"a message in the hands of two", func(h *History) { h.Lines[2].At, h.Lines[2].Seq, h.Lines[3].Seq = 10.5e6, 1, 1 }, RuleOverlap, "handled message 1 at the same time"},
		{"a batch with a gap", func(h *History) { h.Committed = []uint64{1, 2, 4} }, RuleBatch, "committed 4 where 3 follows"},
		{"a batch that was committed twice", func(h *History) { h.Committed = []uint64{1, 2, 2, 3} }, RuleBatch, "committed 2 where 3 follows"},
		{"batches that never came", func(h *History) { h.Committed = []uint64{1, 2} }, RuleBatch, "committed 2 events, the stream of record holds 11"},
		{"a refused batch", func(h *History) { h.Lines = append(h.Lines, Line{What: WhatGap}) }, RuleBatch, "did not follow"},
		{"a healthy event that was set aside", func(h *History) { h.Stream[7].Poison = false }, RuleDead, "although nothing is wrong with it"},
		{"a dead letter that is there twice", func(h *History) { h.Dead = append(h.Dead, h.Dead[0]) }, RuleDead, "among the dead letters twice"},
		{"a dead letter that is not recorded", func(h *History) { h.Stream[9].Detail = "" }, RuleDead, "is recorded in 0 events"},
		{"poison that was not set aside", func(h *History) { h.Dead = h.Dead[1:] }, RuleDead, "the poisoned message 8 is not among the dead letters"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := sound()
			tt.spoil(&h)
			var all []string
			found := false
			for _, v := range Check(h) {
				all = append(all, v.String())
				found = found || v.Rule == tt.rule && strings.Contains(v.Text, tt.message)
			}
			require.True(t, found, "expected %s: %s, got:\n%s", tt.rule, tt.message, strings.Join(all, "\n"))
		})
	}
}

// Redriven, the poisoned message and what followed it are applied, in their order.
func TestCheckFollowsARedrive(t *testing.T) {
	t.Parallel()
	redriven := func() History {
		h := sound()
		h.Dead = nil
		h.Stream = append(h.Stream,
			Stored{Seq: 12, ID: "p", Key: "n2", Type: typeObserved, Readers: []string{handlerProvisioning}, Origin: 8},
			Stored{Seq: 13, ID: "q", Key: "n2", Type: typeObserved, Readers: []string{handlerProvisioning}, Origin: 9},
			Stored{Seq: 14, ID: "p.1", Key: "n2", Type: typeRequested, Cause: "p", Detail: position(1)},
			Stored{Seq: 15, ID: "q.1", Key: "n2", Type: typeRequested, Cause: "q", Detail: position(2)})
		h.Records = append(h.Records, Final{handlerProvisioning, "n2", Record{Trail: []uint64{12, 13}}})
		h.Committed = append(h.Committed, 12, 13, 14, 15)
		return h
	}
	require.Empty(t, Check(redriven()))

	h := redriven()
	h.Records[2].Trail = []uint64{12}
	require.Contains(t, Check(h)[0].String(), "message 9 was neither applied nor is it among the dead letters, although it was redriven")

	h = redriven()
	h.Stream[11].Origin, h.Stream[12].Origin = 9, 8
	require.Contains(t, Check(h)[0].String(), "order: provisioning/n2: message 13 (place 8) was applied after 12 (place 9)")

	h = redriven()
	h.Stream[12].Origin = 8
	require.Contains(t, Check(h)[0].String(), "once: provisioning/n2: message 13 was applied twice")
}

// What may happen although the bus keeps its promises.
func TestCheckTakesNoWitnessThatWasDisturbed(t *testing.T) {
	t.Parallel()
	overtaken := func(more ...Line) History {
		h := sound()
		h.Lines[2].At = 10.5e6 // w1 begins message 3 while w0 handles message 1
		h.Lines = append(append(h.Lines[:1:1], more...), h.Lines[1:]...)
		return h
	}
	require.NotEmpty(t, Check(overtaken()))
	require.NotEmpty(t, Check(overtaken(Line{At: 10.2e6, Who: "w2", What: WhatFault, Fault: FaultFreeze})), "another process")
	for name, l := range map[string]Line{
		"its process was frozen":    {At: 10.2e6, Who: "w0", What: WhatFault, Fault: FaultFreeze},
		"its process was paused":    {At: 10.2e6, Who: "w0", What: WhatStall},
		"a server was paused":       {At: 10.2e6, Who: "s0", What: WhatStall, Server: true},
		"a leader was elected":      {At: 10.2e6, Who: "driver", What: WhatElected, Server: true},
		"a server was killed":       {At: 10.2e6, Who: "s0", What: WhatFault, Fault: FaultRestart, Server: true},
		"somebody else was cut off": {At: 10.2e6, Who: "w2", What: WhatFault, Fault: FaultPartition},
	} {
		require.Empty(t, Check(overtaken(l)), name)
	}
	// w2 had handled message 1, and acknowledged it, before it was given to w0.
	require.Empty(t, Check(overtaken(
		Line{At: 9e6, Who: "w2", What: WhatStart, Handler: handlerProvisioning, Key: "n1", Seq: 1, Call: 1},
		Line{At: 9.5e6, Who: "w2", What: WhatDone, Handler: handlerProvisioning, Key: "n1", Seq: 1, Call: 1})))

	// w0 was frozen between its lease and the work, and gives up before the effect.
	h := sound()
	h.Lines[9].What = WhatBegin
	require.Empty(t, Check(h))
	// A new leader gave a batch to w1 that follows one of w0's.
	h = sound()
	h.Lines = append(h.Lines, Line{At: 21e6, Who: "s0", What: WhatFault, Fault: FaultRestart, Server: true}, Line{At: 22e6, Who: "w1", What: WhatGap})
	require.Empty(t, Check(h))
}

// The trouble of a server lasts until every stream and consumer is whole, which is
// when its end is noted, and what was sent in it may arrive a little later: what
// happens from then on counts.
func TestCheckBelievesWitnessesAgainOnceTheServersAreWhole(t *testing.T) {
	t.Parallel()
	const ackWait = 1_000_000 // of the sound history, in microseconds
	for _, f := range []Line{
		{Who: "s0", Fault: FaultRestart, Server: true},
		{Who: "leaders", Fault: FaultStepDown, Server: true},
		{Who: "w2", Fault: FaultPartition},
	} {
		// overtaken has w1 begin message 3 while w0 handles message 1, in trouble that
		// begins and ends so much before that; with healed < 0 it never ends.
		overtaken := func(begun, healed int64) History {
			h := sound()
			for i := range h.Lines {
				h.Lines[i].At += 20 * ackWait
			}
			h.Lines[2].At = h.Lines[0].At + 500
			fault, end := f, f
			fault.What, fault.At = WhatFault, h.Lines[0].At-begun
			end.What, end.At = WhatHealed, h.Lines[0].At-healed
			trouble := []Line{fault}
			if healed >= 0 {
				trouble = append(trouble, end)
			}
			h.Lines = append(trouble, h.Lines...)
			return h
		}
		require.Empty(t, Check(overtaken(15*ackWait, -1)), "%s: the servers are not whole", f.Fault)
		require.Empty(t, Check(overtaken(15*ackWait, 2*ackWait)), "%s: they were not whole until a moment before", f.Fault)
		for name, h := range map[string]History{
			"long trouble, whole for long":  overtaken(15*ackWait, 4*ackWait),
			"short trouble, whole for long": overtaken(5*ackWait, 4*ackWait),
		} {
			out := Check(h)
			require.Len(t, out, 1, "%s: %s", f.Fault, name)
			require.Equal(t, RuleOverlap, out[0].Rule)
			require.Contains(t, out[0].Text, "w1 began message 3 while w0 handled 1")
		}
		// A second fault of another server is not ended by the end of the first.
		h := overtaken(15*ackWait, 4*ackWait)
		second := Line{At: h.Lines[0].At + ackWait, Who: "s1", What: WhatFault, Fault: FaultRestart, Server: true}
		h.Lines = slices.Insert(h.Lines, 1, second)
		require.Empty(t, Check(h), "%s: another server is in trouble still", f.Fault)
	}
}

func TestAScheduleFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		s := Plan(seed, Times())
		require.Equal(t, s, Plan(seed, Times()))
		certain := Faults()[seed%uint64(len(Faults()))]
		require.Contains(t, kindsOf(s), certain, "seed %d", seed)
		require.Equal(t, NextSeed(seed)%uint64(len(Faults())), seed%uint64(len(Faults())))
	}
}

// kindsOf are the faults of a schedule.
func kindsOf(s Schedule) []Fault {
	var out []Fault
	for _, f := range s.Faults {
		out = append(out, f.Fault)
	}
	for _, l := range s.Load {
		switch {
		case l.Poison:
			out = append(out, FaultPoison)
		case l.Hold > s.Times.AckWait:
			out = append(out, FaultSlow)
		case l.Twice:
			out = append(out, FaultDuplicate)
		}
	}
	if s.Redrive {
		out = append(out, FaultRedrive)
	}
	for _, by := range s.Skew {
		if by != 0 {
			out = append(out, FaultSkew)
		}
	}
	return out
}
