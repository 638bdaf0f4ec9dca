package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// parkedRoot starts the bucket keys of parked keys.
const parkedRoot = "parked"

// parked is why the events of a key go to the dead letters. Only who handles a
// message of the key changes it, by compare-and-swap:
//
//	       an event fails                    request R
//	(none) ──────────────► parked ─────────────────────────► round R: copies pass
//	   ▲                     ▲  ▲                              │   │
//	   │                     │  └── closing event of R ◄─ broken │ a copy fails
//	   └─────────────────────┴──────── closing event of R ◄──────┘
//	     no letter is left: unparked      letters gathered: next round
type parked struct {
	ID       string    `json:"dead_letter"` // the one that parked it
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts,omitempty"`
	Since    time.Time `json:"since"`
	Sequence uint64    `json:"sequence"`
	Round    *round    `json:"round,omitempty"`
}

// round is one round of a redrive. Its copies stand in the stream between the
// message that began it and its closing event, and so find it open.
type round struct {
	At      uint64 `json:"at"`      // sequence of the message that began it
	Request string `json:"request"` // id of the request
	Actor   string `json:"actor"`
	Reason  string `json:"reason"`
	// Passed is the last copy that reached the handler: a copy that was published
	// twice is recognised by it.
	Passed passed `json:"passed,omitzero"`
	// Broken says that a copy failed again: the ones behind it go to the dead letters.
	Broken bool `json:"broken,omitempty"`
	// Stopped says that a dead letter can't be copied: the round is the last one.
	Stopped bool `json:"stopped,omitempty"`
}

type passed struct {
	Number   int    `json:"number"`
	Sequence uint64 `json:"sequence"`
}

// mark is the park marker of a key as it was read.
type mark struct {
	parked
	key      Key
	revision uint64 // 0: the key is not parked
}

func (m mark) exists() bool { return m.revision > 0 }

// admission is what a park marker means for a message.
type admission int

const (
	admitted  admission = iota
	passes              // a copy, for the first time: to be noted
	setAside            // behind what parked the key
	begun               // it is what parked the key; its process was killed then
	duplicate           // a copy that was published twice
)

// admits decides about a delivery that is for this handler.
func (m mark) admits(d Delivery) admission {
	copied := d.Redrive.Handler != ""
	switch {
	case !m.exists() && copied:
		// A copy stands before the closing event of its round, and only that unparks.
		return duplicate
	case !m.exists():
		return admitted
	case m.Sequence == d.Sequence && (m.Round == nil || m.Round.Broken):
		return begun
	case !copied:
		return setAside
	case m.Round == nil:
		return duplicate
	case m.Round.Broken || m.Round.At != d.Redrive.Round:
		return setAside
	}
	switch last := m.Round.Passed; {
	case d.Redrive.Number > last.Number:
		return passes
	case d.Redrive.Number == last.Number && d.Sequence == last.Sequence:
		return admitted // it comes again
	}
	return duplicate
}

func parkedKey(k Key) (string, error) {
	token, err := k.token()
	if err != nil {
		return "", err
	}
	return parkedRoot + "." + k.Cluster + "." + token, nil
}

func (b *Bus) readMark(ctx context.Context, kv jetstream.KeyValue, k Key) (mark, error) {
	m := mark{key: k}
	name, err := parkedKey(k)
	if err != nil {
		return m, err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	v, err := kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(v.Value(), &m.parked)
	}
	if err != nil {
		return m, fmt.Errorf("read whether %s is parked: %w", k, unavailable(err))
	}
	m.revision = v.Revision()
	return m, nil
}

// writeMark writes m if nobody changed it since it was read; ErrConflict otherwise.
func (b *Bus) writeMark(ctx context.Context, kv jetstream.KeyValue, m *mark) error {
	name, err := parkedKey(m.key)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(m.parked)
	if err != nil {
		return fmt.Errorf("park %s: %w", m.key, err)
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	var rev uint64
	if m.revision == 0 {
		rev, err = kv.Create(ctx, name, raw)
	} else {
		rev, err = kv.Update(ctx, name, raw, m.revision)
	}
	switch {
	case err == nil:
		m.revision = rev
		return nil
	case errors.Is(err, jetstream.ErrKeyExists) || isWrongLast(err):
		return fmt.Errorf("park %s: %w", m.key, ErrConflict)
	}
	return fmt.Errorf("park %s: %w", m.key, unavailable(err))
}

// unpark removes m if nobody changed it since it was read.
func (b *Bus) unpark(ctx context.Context, kv jetstream.KeyValue, m mark) error {
	name, err := parkedKey(m.key)
	if err != nil {
		return err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	err = kv.Purge(ctx, name, jetstream.LastRevision(m.revision))
	if isWrongLast(err) {
		return fmt.Errorf("unpark %s: %w", m.key, ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("unpark %s: %w", m.key, unavailable(err))
	}
	return nil
}

// park notes that the message of d failed. Of a key that is parked already the
// first dead letter counts, unless d is a copy: then its round is broken.
func (b *Bus) park(ctx context.Context, kv jetstream.KeyValue, d Delivery, p parked) error {
	for {
		m, err := b.readMark(ctx, kv, d.Key)
		if err != nil {
			return err
		}
		switch {
		case !m.exists():
			m.parked = p
		case m.Round != nil && !m.Round.Broken && d.Redrive.Handler != "" && m.Round.At == d.Redrive.Round:
			p.Since, p.Round = m.Since, m.Round
			m.parked = p
			m.Round.Broken = true
		default:
			return nil
		}
		if err := b.writeMark(ctx, kv, &m); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// ParkedKey is a key on which a handler does not act, because an event of it is
// among the dead letters: the later ones follow it there, in order, until they
// are redriven or dropped.
type ParkedKey struct {
	Handler    string
	Key        Key
	DeadLetter string // the one that parked it
	Reason     string
	Since      time.Time
	Redriving  bool // a redrive is under way
}

// Parked returns the keys on which a handler does not act.
func (b *Bus) Parked(ctx context.Context, handler string) ([]ParkedKey, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	kv, err := b.openBucket(ctx, handler)
	if err != nil {
		return nil, err
	}
	w, err := kv.Watch(ctx, parkedRoot+".>", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("list parked keys of %s: %w", handler, unavailable(err))
	}
	defer func() { _ = w.Stop() }() // it goes by itself with its context
	var out []ParkedKey
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list parked keys of %s: %w", handler, unavailable(ctx.Err()))
		case v := <-w.Updates():
			if v == nil { // the end of what there is
				return out, nil
			}
			var p parked
			t := strings.SplitN(v.Key(), ".", 3)
			if err := json.Unmarshal(v.Value(), &p); err != nil || len(t) != 3 {
				return nil, fmt.Errorf("list parked keys of %s: %s can't be read: %w", handler, v.Key(), err)
			}
			name, err := events.DecodeKey(t[2])
			if err != nil {
				return nil, fmt.Errorf("list parked keys of %s: %w", handler, err)
			}
			out = append(out, ParkedKey{Handler: handler, Key: Key{Cluster: t[1], Name: name}, DeadLetter: p.ID, Reason: p.Reason, Since: p.Since,
				Redriving: p.Round != nil && !p.Round.Broken})
		}
	}
}

// measureDead reports what waits among the dead letters. Every process that runs
// the handler reports the same.
func (b *Bus) measureDead(ctx context.Context, handler string, parks bool) {
	if n, err := b.countLetters(ctx, handler); err == nil {
		b.metrics.waiting.WithLabelValues(handler).Set(float64(n))
	}
	if !parks {
		return
	}
	if ks, err := b.Parked(ctx, handler); err == nil {
		b.metrics.parked.WithLabelValues(handler).Set(float64(len(ks)))
	}
}

func (b *Bus) countLetters(ctx context.Context, handler string) (uint64, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	s, err := b.js.Stream(ctx, DeadLetterStream)
	if err != nil {
		return 0, fmt.Errorf("count dead letters of %s: %w", handler, unavailable(err))
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(deadRoot+"."+handler+".>"))
	if err != nil {
		return 0, fmt.Errorf("count dead letters of %s: %w", handler, unavailable(err))
	}
	var n uint64
	for _, c := range info.State.Subjects {
		n += c
	}
	return n, nil
}
