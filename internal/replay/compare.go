package replay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"iter"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// pageSize is how many records are read at once; a snapshot of a large cluster
// is a megabyte.
const pageSize = 64

// Difference is one place where the stores are not the same.
type Difference struct {
	Sequence uint64 `json:"sequence"`
	What     string `json:"what"` // in a sentence
	// Rebuilt and Live are the records in JSON, empty where there is none.
	Rebuilt json.RawMessage `json:"rebuilt,omitempty"`
	Live    json.RawMessage `json:"live,omitempty"`
}

// comparison goes through both stores side by side.
type comparison struct {
	o    *Options
	r    *Report
	sums [2]hash.Hash // of the rebuilt records and of the live ones
}

func (o *Options) compare(ctx context.Context, r *Report) error {
	gaps, err := o.Live.Gaps(ctx)
	if err != nil {
		return err
	}
	for _, g := range gaps {
		if from, to := max(g.From, r.From), min(g.To, r.To); g.Incarnation == r.Incarnation && from <= to {
			r.Lost += to - from + 1
		}
	}
	c := comparison{o: o, r: r, sums: [2]hash.Hash{sha256.New(), sha256.New()}}
	if err := c.run(ctx); err != nil {
		return err
	}
	r.Digest, r.LiveDigest = hex.EncodeToString(c.sums[0].Sum(nil)), hex.EncodeToString(c.sums[1].Sum(nil))
	return nil
}

func (c *comparison) run(ctx context.Context) error {
	rebuiltRecords := c.o.records(ctx, c.o.Into, c.r)
	if c.r.Events == 0 {
		rebuiltRecords = func(func(audit.Record, error) bool) {} // a store that knows no stream has no place in it
	}
	nextRebuilt, stop := iter.Pull2(rebuiltRecords)
	defer stop()
	nextLive, stop := iter.Pull2(c.o.records(ctx, c.o.Live, c.r))
	defer stop()
	rebuilt, errRebuilt, moreRebuilt := nextRebuilt()
	live, errLive, moreLive := nextLive()
	for moreRebuilt || moreLive {
		if err := errors.Join(errRebuilt, errLive); err != nil {
			return err
		}
		hasRebuilt := moreRebuilt && (!moreLive || rebuilt.Sequence <= live.Sequence)
		hasLive := moreLive && (!moreRebuilt || live.Sequence <= rebuilt.Sequence)
		var err error
		switch {
		case hasRebuilt && hasLive:
			err = c.both(rebuilt, live)
		case hasRebuilt:
			err = c.onlyRebuilt(ctx, rebuilt)
		default:
			err = c.onlyLive(live)
		}
		if err != nil {
			return err
		}
		if hasRebuilt {
			rebuilt, errRebuilt, moreRebuilt = nextRebuilt()
		}
		if hasLive {
			live, errLive, moreLive = nextLive()
		}
	}
	return nil
}

func (c *comparison) both(rebuilt, live audit.Record) error {
	c.r.Rebuilt++
	c.r.Live++
	a, err := c.add(0, rebuilt)
	if err != nil {
		return err
	}
	b, err := c.add(1, live)
	if err != nil {
		return err
	}
	if field := differing(rebuilt, live); field != "" {
		c.differ(Difference{Sequence: live.Sequence, What: "the records differ in " + field, Rebuilt: a, Live: b})
	}
	return nil
}

// onlyRebuilt is a copy of an event that was recorded at an earlier place, from
// before the range or from an earlier stream; or it is a difference.
func (c *comparison) onlyRebuilt(ctx context.Context, rebuilt audit.Record) error {
	first, err := c.o.Live.Get(ctx, rebuilt.ID)
	switch {
	case errors.Is(err, audit.ErrNotFound):
	case err != nil:
		return err
	default:
		earlier := first.Incarnation != rebuilt.Incarnation || first.Sequence < rebuilt.Sequence
		if moved := first; earlier {
			moved.Incarnation, moved.Sequence, moved.StreamTime = rebuilt.Incarnation, rebuilt.Sequence, rebuilt.StreamTime
			if differing(rebuilt, moved) == "" {
				c.r.Copies++
				return nil
			}
		}
	}
	c.r.Rebuilt++
	a, err := c.add(0, rebuilt)
	if err == nil {
		c.differ(Difference{Sequence: rebuilt.Sequence, What: fmt.Sprintf("the stream has event %s, the live audit store lacks it", rebuilt.ID), Rebuilt: a})
	}
	return err
}

func (c *comparison) onlyLive(live audit.Record) error {
	c.r.Live++
	b, err := c.add(1, live)
	if err == nil {
		c.differ(Difference{Sequence: live.Sequence, What: fmt.Sprintf("the live audit store has event %s, the stream does not give it", live.ID), Live: b})
	}
	return err
}

// add takes a record into a digest.
func (c *comparison) add(side int, rec audit.Record) ([]byte, error) {
	rec.StreamTime = rec.StreamTime.UTC()
	raw, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", rec.Cursor(), err)
	}
	// Encoding makes JSON uniform; the event counts as it is stored.
	for _, b := range [][]byte{raw, {'\n'}, rec.Event, {'\n'}} {
		c.sums[side].Write(b) // a hash never fails
	}
	return raw, nil
}

func (c *comparison) differ(d Difference) {
	if c.r.Differences++; c.r.First == nil {
		c.r.First = &d
	}
}

// differing names the first field in which two records differ, "" if none.
func differing(a, b audit.Record) string {
	for _, f := range []struct {
		name string
		same bool
	}{
		{"incarnation", a.Incarnation == b.Incarnation}, {"sequence", a.Sequence == b.Sequence}, {"stream time", a.StreamTime.Equal(b.StreamTime)},
		{"id", a.ID == b.ID}, {"source", a.Source == b.Source}, {"redrive", a.Redrive == b.Redrive}, {"type", a.Type == b.Type}, {"cluster", a.Cluster == b.Cluster}, {"key", a.Key == b.Key},
		{"pool", a.Pool == b.Pool}, {"correlation id", a.CorrelationID == b.CorrelationID}, {"causation id", a.CausationID == b.CausationID},
		{"actor", a.Actor == b.Actor}, {"reason", a.Reason == b.Reason}, {"message", a.Message == b.Message}, {"event", string(a.Event) == string(b.Event)},
	} {
		if !f.same {
			return f.name
		}
	}
	return ""
}

// lister is a store for reading.
type lister interface {
	List(ctx context.Context, q audit.Query) ([]audit.Record, error)
}

// records returns what is to be compared, page by page.
func (o *Options) records(ctx context.Context, src lister, r *Report) iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		if r.To < r.From {
			return
		}
		q := audit.Query{Types: o.Types, Cluster: o.Cluster, Node: o.Node, Limit: pageSize,
			Cursor: audit.Record{Incarnation: r.Incarnation, Sequence: r.From - 1}.Cursor()}
		for {
			page, err := src.List(ctx, q)
			if err != nil {
				yield(audit.Record{}, err)
				return
			}
			for _, rec := range page {
				if rec.Incarnation != r.Incarnation || rec.Sequence > r.To || !yield(rec, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
			q.Cursor = page[len(page)-1].Cursor()
		}
	}
}
