package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
)

// attemptRoot starts the bucket keys of counted attempts.
const attemptRoot = "attempt"

// tally counts the attempts of the message at the head of one partition. The
// server counts deliveries, which is not the same: a message that was given back
// because the process had no room, stopped, or waits for another service was
// delivered, but its handler did not fail.
//
// It is written before the handler runs, from the second delivery on, so that a
// message that kills its process is counted, too, and a first delivery costs
// nothing.
type tally struct {
	Sequence uint64 `json:"sequence"`
	Attempts int    `json:"attempts"`
	Reason   string `json:"reason,omitempty"` // of the last failure
	Stack    string `json:"stack,omitempty"`
}

func (l *puller) tallyKey() string {
	return attemptRoot + "." + l.name() + "." + strconv.Itoa(l.partition)
}

// count notes that the handler is about to run.
func (l *puller) count(f *inflight, delivered uint64) (tally, error) {
	seq := f.delivery.Sequence
	t := tally{Sequence: seq, Attempts: 1}
	if delivered <= 1 {
		return t, nil
	}
	was, err := l.readTally(f.ctx)
	switch {
	case err != nil:
		return t, err
	case was.Sequence == seq:
		t = was
		t.Attempts++
	case l.uncounted == seq:
		// It was given back before its handler ran.
	default:
		t.Attempts = 2
		t.Reason = "the process ended while its handler ran"
	}
	return t, l.writeTally(f.ctx, t)
}

// uncount takes the attempt back: it was no failure of the handler's. If that
// can't be written, the attempt counts: a little early is better than for ever.
func (l *puller) uncount(f *inflight) {
	if f.delivery.Attempt == 0 {
		return // not counted
	}
	t := tally{Sequence: f.delivery.Sequence}
	if f.delivery.Attempt > 1 {
		was, err := l.readTally(context.WithoutCancel(f.ctx))
		if err != nil {
			return
		}
		t.Reason, t.Stack = was.Reason, was.Stack
	}
	t.Attempts = f.delivery.Attempt - 1
	l.remember(f, t)
}

// remember writes a tally after the handler ran; ctx may have ended with it.
func (l *puller) remember(f *inflight, t tally) {
	if err := l.writeTally(context.WithoutCancel(f.ctx), t); err != nil {
		l.b.opts.Logger.Warn("attempt not noted", "handler", l.opts.Handler, "sequence", t.Sequence, "error", err)
	}
}

func (l *puller) readTally(ctx context.Context) (tally, error) {
	ctx, cancel := l.b.request(ctx, l.b.getSubject(bucketStream(l.opts.Handler), bucketWrite(l.opts.Handler, l.tallyKey())))
	defer cancel()
	var t tally
	v, err := l.kv.Get(ctx, l.tallyKey())
	err = refusal(ctx, err)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(v.Value(), &t)
	}
	if err != nil {
		return t, fmt.Errorf("read the attempts of partition %d: %w", l.partition, unavailable(err))
	}
	return t, nil
}

func (l *puller) writeTally(ctx context.Context, t tally) error {
	raw, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("count attempts: %w", err)
	}
	ctx, cancel := l.b.request(ctx, bucketWrite(l.opts.Handler, l.tallyKey()))
	defer cancel()
	if _, err = l.kv.Put(ctx, l.tallyKey(), raw); err != nil {
		return fmt.Errorf("count attempts of partition %d: %w", l.partition, unavailable(refusal(ctx, err)))
	}
	return nil
}
