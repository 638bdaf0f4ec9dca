package backtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// incarnation of the simulated stream.
const incarnation = "backtest"

// restless is how many snapshots may follow from each other within an instant. A
// decision leads to a claim or a drain, which leads to the next snapshot, and so on
// until nothing more is decided; more than this is a fault of ours.
const restless = 1000

// simulation is one policy on its way through the log.
type simulation struct {
	ctx   context.Context
	key   bus.Key
	rec   *recorded
	w     *world
	l     *ledger
	run   *decision.Rerun
	under func(decision.Config) decision.Config
	seq   uint64
	now   time.Time
	woken time.Time // the last deadline that was kept
	// moments are the decisions, in order.
	moments []moment
	prices  map[string]float64
}

// moment is a decision that was published.
type moment struct {
	at time.Time
	d  events.Decision
}

// nothing is the history of a simulation: all of it is in memory.
type nothing struct{}

func (nothing) Read(context.Context, bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(func(bus.Delivery, error) bool) {}
}

// begin begins with the snapshot of a checkpoint.
func (s *simulation) begin(b beginning, snapshot bus.Delivery, delays map[string]Delays, otherwise Delays) error {
	if _, ok := s.rec.apply(snapshot); !ok {
		return fmt.Errorf("the snapshot at sequence %d can't be read", snapshot.Sequence)
	}
	s.now = snapshot.StreamTime
	s.l = newLedger(s.now)
	s.w = newWorld(s.rec, s.l, b.state, delays, otherwise)
	state := b.state
	// The simulated stream begins here.
	state.Full, state.Last, state.Digest, state.Stale = 0, 0, "", ""
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	p := b.checkpoint
	p.State, p.Snapshot = raw, 0
	e, err := events.New(events.Meta{Cluster: s.key.Cluster, Publisher: events.HandlerDecision, ID: "checkpoint", Time: s.now}, p)
	if err != nil {
		return err
	}
	s.run, err = decision.NewRerun(nothing{}, bus.Delivery{Event: e, Key: s.key, Incarnation: incarnation, StreamTime: s.now}, decision.Under(s.applied))
	if err != nil {
		return err
	}
	first, err := s.w.begin(s.now)
	if err != nil {
		return err
	}
	if err := s.say("collector", first); err != nil {
		return err
	}
	return s.settle(false)
}

// applied is what is decided under when the log says that a policy was applied. In a
// simulation there is always somebody who acts.
func (s *simulation) applied(c decision.Config) decision.Config {
	s.w.then = byName(c.Policy)
	c.DryRun = false
	if s.under != nil {
		c = s.under(c)
	}
	s.w.pools = byName(c.Policy)
	s.prices = map[string]float64{}
	for _, p := range c.Policy.Pools {
		s.prices[p.Name] = p.Price
	}
	return c
}

// take goes on to the time of a delivery of the log, and takes it over.
func (s *simulation) take(d bus.Delivery) error {
	if err := s.until(d.StreamTime); err != nil {
		return err
	}
	switch d.Event.Type() {
	case events.TypeSnapshotCaptured, events.TypeSnapshotChanged:
		delta, ok := s.rec.apply(d)
		if !ok {
			return nil // decision held every pool; here it sees nothing new
		}
		s.w.update(delta, s.now)
		return s.settle(true)
	case events.TypeTimerFired:
		return nil // the simulation keeps its own deadlines
	}
	return s.deliver(d.Event)
}

// until lets time go by: nodes take their steps, and deadlines are kept.
func (s *simulation) until(at time.Time) error {
	for {
		step, wake := s.w.next(), s.run.WakeAt()
		if !wake.After(s.woken) {
			wake = time.Time{}
		}
		switch {
		case due(step, at) && (wake.IsZero() || !wake.Before(step)):
			s.now = later(step, s.now)
			s.w.step(s.now)
			if err := s.settle(false); err != nil {
				return err
			}
		case due(wake, at):
			s.now, s.woken = later(wake, s.now), wake
			if err := s.say("bus", events.TimerFired{Handler: events.HandlerDecision, DueAt: wake}); err != nil {
				return err
			}
			if err := s.settle(false); err != nil {
				return err
			}
		default:
			s.now = later(at, s.now)
			return nil
		}
	}
}

func due(t, at time.Time) bool { return !t.IsZero() && !t.After(at) }

// settle tells decision what changed, until nothing more follows from it. always: once
// even if nothing did, as a collector does to say that it is alive.
func (s *simulation) settle(always bool) error {
	for range restless {
		delta, differs, err := s.w.tell(s.now)
		if err != nil {
			return err
		}
		if !differs && !always {
			return nil
		}
		always = false
		if err := s.say("collector", delta); err != nil {
			return err
		}
	}
	return fmt.Errorf("at %s one decision follows from the other without end", s.now.Format(time.RFC3339))
}

// say has decision read what the simulation says.
func (s *simulation) say(publisher string, p events.Payload) error {
	e, err := events.New(events.Meta{Cluster: s.key.Cluster, Publisher: publisher, ID: "simulated-" + strconv.FormatUint(s.seq+1, 10), Time: s.now}, p)
	if err != nil {
		return err
	}
	return s.deliver(e)
}

// deliver has decision read an event, and acts on what follows.
func (s *simulation) deliver(e events.Event) error {
	s.seq++
	out, err := s.run.Handle(s.ctx, bus.Delivery{Event: e, Key: s.key, Sequence: s.seq, Incarnation: incarnation, StreamTime: s.now, Attempt: 1})
	if err != nil {
		return err
	}
	for _, e := range out {
		if err := s.act(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *simulation) act(e events.Event) error {
	var err error
	switch e.Type() {
	case events.TypeNodeClaimed:
		var p events.NodeClaimed
		if p, err = events.Decode[events.NodeClaimed](e); err == nil {
			s.w.claim(p, events.Extension(e, events.ExtCorrelationID), s.now)
		}
	case events.TypeNodeDrainRequested:
		var p events.NodeDrainRequested
		if p, err = events.Decode[events.NodeDrainRequested](e); err == nil {
			s.w.drain(p, e.ID(), s.now)
		}
	case events.TypeNodeDrainCancelled:
		var p events.NodeDrainCancelled
		if p, err = events.Decode[events.NodeDrainCancelled](e); err == nil {
			s.w.cancel(p, s.now)
		}
	case events.TypeScaleupDecided, events.TypeScaledownDecided, events.TypeScaleHeld:
		var p struct{ events.Decision }
		if err = json.Unmarshal(e.Data(), &p); err == nil {
			s.moments = append(s.moments, moment{s.now, p.Decision})
		}
	}
	return err
}

// end closes the books at the end of the range.
func (s *simulation) end(at time.Time) (Figures, error) {
	if s.run == nil {
		return Figures{}, errors.New("the snapshot of the checkpoint is missing")
	}
	if err := s.until(at); err != nil {
		return Figures{}, err
	}
	return s.l.figures(at, s.prices), nil
}
