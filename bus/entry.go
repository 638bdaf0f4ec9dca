package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// maxEntry is the largest a record may be in the bucket, in bytes: NATS's
// default limit of a message, less room for its headers.
const maxEntry = 1<<20 - 4<<10

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// entry is what a bucket holds for one key. It is written by one
// compare-and-swap, so that the state, the message it belongs to and what
// follows from it can't come apart.
//
//	message path:  read ─► handler's fn ─► CAS {state, last, outbox} ─► publish outbox ─► ack
//	                                        │                          │
//	           killed before: the message   │   killed after: redelivered with
//	           is redelivered, fn runs      │   sequence == last, the outbox is
//	           again on the old state       │   published again, fn does not run
type entry struct {
	// State is absent when there is no record: only the position is remembered.
	State json.RawMessage `json:"state,omitempty"`
	// Last is the last message that was applied.
	Last position `json:"last,omitzero"`
	// Now is the latest time that a turn has seen: stream time never goes back.
	Now time.Time `json:"now,omitzero"`
	// Outbox are the events that may not be published yet, in order.
	Outbox []owed `json:"outbox,omitempty"`
	Lease  holder `json:"lease,omitzero"`
	// Due is the deadline for which a timer is armed.
	Due time.Time `json:"due,omitzero"`
}

// position is a place in the stream of record.
type position struct {
	Incarnation string `json:"incarnation,omitempty"`
	Sequence    uint64 `json:"sequence,omitempty"`
}

// owed is an event of an outbox. Those of a message are certainly published once
// a later message of the key arrives, because the former one was acknowledged
// after publishing; those of work are removed when JetStream acknowledged them.
type owed struct {
	Sequence uint64       `json:"sequence,omitempty"` // of the message it came from; 0: from work
	Event    events.Event `json:"event"`
}

func (o owed) fromWork() bool { return o.Sequence == 0 }

// holder is who works on the record, and until when.
type holder struct {
	Owner string    `json:"owner,omitempty"`
	Epoch uint64    `json:"epoch,omitempty"` // grows with every owner
	Until time.Time `json:"until,omitzero"`
}

func (h holder) held(now time.Time) bool { return h.Owner != "" && now.Before(h.Until) }

func (e entry) exists() bool { return len(e.State) > 0 }

func (e entry) owesWork() bool {
	for _, o := range e.Outbox {
		if o.fromWork() {
			return true
		}
	}
	return false
}

func (e entry) owedEvents() []events.Event {
	out := make([]events.Event, len(e.Outbox))
	for i, o := range e.Outbox {
		out[i] = o.Event
	}
	return out
}

func (e entry) encode(k Key) ([]byte, error) {
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("record of %s: encode: %w", k, err)
	}
	if len(raw) >= compressFrom {
		raw = zstdEncoder.EncodeAll(raw, nil)
	}
	if len(raw) > maxEntry {
		return nil, fmt.Errorf("record of %s: %w: %d bytes after compression (state %d, outbox of %d events), at most %d",
			k, ErrTooLarge, len(raw), len(e.State), len(e.Outbox), maxEntry)
	}
	return raw, nil
}

// smallPayload is the size of data in bytes that stays in an outbox in any case.
const smallPayload = 4 << 10

// encodeEntry encodes e. What has no room in it because of its outbox goes to the
// payload bucket, the largest first: the state itself has to fit.
func (b *Bus) encodeEntry(ctx context.Context, k Key, e entry) ([]byte, error) {
	e.Outbox = slices.Clone(e.Outbox)
	for {
		raw, err := e.encode(k)
		if !errors.Is(err, ErrTooLarge) {
			return raw, err
		}
		largest := 0
		for _, o := range e.Outbox {
			if claimable(o.Event) == nil {
				largest = max(largest, len(o.Event.Data()))
			}
		}
		if largest < smallPayload {
			return nil, err
		}
		for i, o := range e.Outbox {
			if len(o.Event.Data()) < largest/2 || claimable(o.Event) != nil {
				continue
			}
			if e.Outbox[i].Event, err = b.claim(ctx, o.Event); err != nil {
				return nil, fmt.Errorf("record of %s: %w", k, err)
			}
		}
	}
}

func decodeEntry(k Key, raw []byte) (entry, error) {
	var e entry
	if bytes.HasPrefix(raw, zstdMagic) {
		var err error
		if raw, err = zstdDecoder.DecodeAll(raw, nil); err != nil {
			return e, fmt.Errorf("record of %s: decompress: %w", k, err)
		}
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("record of %s: decode: %w", k, err)
	}
	return e, nil
}
