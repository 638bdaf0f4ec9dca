package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// State is what one handler keeps: a bucket with one record of type T (written
// as JSON) for each key. Only the handler writes it, always by compare-and-swap.
type State[T any] struct {
	b        *Bus
	opts     StateOptions[T]
	kv       jetstream.KeyValue
	readOnly bool
	keeping  atomic.Bool // a sweep runs
	left     leftLeases
	worker   atomic.Pointer[worker[T]] // of this process; nil: none runs
}

// StateOptions describe the state of a handler.
type StateOptions[T any] struct {
	// Handler is the handler's name. Required.
	Handler string
	// Deadline is when the handler wants a timer.fired for this record; zero: none.
	// The bus arms one timer for each record and sweeps for overdue ones. The timer
	// is a wake-up, not the truth: the handler compares it with its record.
	Deadline func(k Key, st T) time.Time
}

// Record is the state of one key as a reader sees it.
type Record[T any] struct {
	Key        Key
	State      T
	Revision   uint64 // of the bucket
	LeaseOwner string // empty: nobody works on it
	LeaseUntil time.Time
	Last       uint64 // sequence of the last message that was applied
	Deleted    bool   // the record was deleted; State is the zero value
}

// keeper is a State of any type, as the message path sees it.
type keeper interface {
	// settle reports whether the delivery was applied already, and publishes its
	// events again if so.
	settle(ctx context.Context, d Delivery) (bool, error)
	// check refuses records that know more than the stream of record holds.
	check(ctx context.Context) error
	// keep sweeps until ctx ends; it returns at once when a sweep runs already.
	keep(ctx context.Context)
}

// recordRoot starts the bucket keys of records.
const recordRoot = "record"

// OpenState opens the bucket of a handler, making it if absent. One State serves
// the whole process.
func OpenState[T any](ctx context.Context, b *Bus, o StateOptions[T]) (*State[T], error) {
	s, err := openState(ctx, b, o, false)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.states[o.Handler] = s
	return s, nil
}

// ReadState opens the bucket of a handler for Get, All and Watch.
func ReadState[T any](ctx context.Context, b *Bus, handler string) (*State[T], error) {
	return openState(ctx, b, StateOptions[T]{Handler: handler}, true)
}

func openState[T any](ctx context.Context, b *Bus, o StateOptions[T], readOnly bool) (*State[T], error) {
	if err := events.ValidateCluster(o.Handler); err != nil {
		return nil, fmt.Errorf("open state: handler: is %q, expected a DNS label", o.Handler)
	}
	kv, err := b.openBucket(ctx, o.Handler)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	return &State[T]{b: b, opts: o, kv: kv, readOnly: readOnly}, nil
}

// Get returns the record of k; false when there is none.
func (s *State[T]) Get(ctx context.Context, k Key) (Record[T], bool, error) {
	e, rev, err := s.load(ctx, k)
	if err != nil {
		return Record[T]{}, false, err
	}
	r, err := s.record(k, e, rev)
	return r, err == nil && e.exists(), err
}

// All returns every record.
func (s *State[T]) All(ctx context.Context) ([]Record[T], error) {
	var out []Record[T]
	err := s.each(ctx, func(k Key, e entry, rev uint64) error {
		if !e.exists() {
			return nil
		}
		r, err := s.record(k, e, rev)
		if err == nil {
			out = append(out, r)
		}
		return err
	})
	return out, err
}

// Watch sends the current records, then every one that changes, until ctx ends
// and the channel is closed. A deleted record comes with Deleted set, except
// among the current ones. Under load only the latest version of a record may
// be seen; after the connection was lost, all of them come again.
func (s *State[T]) Watch(ctx context.Context) (<-chan Record[T], error) {
	changes, err := s.watch(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan Record[T])
	go func() {
		defer close(out)
		current := true
		for c := range changes {
			if c.caughtUp {
				current = false
				continue
			}
			if current && !c.entry.exists() {
				continue
			}
			r, err := s.record(c.key, c.entry, c.revision)
			if err != nil {
				s.b.opts.Logger.ErrorContext(ctx, "record can't be read", "handler", s.opts.Handler, "key", c.key.String(), "error", err)
				continue
			}
			select {
			case out <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (s *State[T]) record(k Key, e entry, rev uint64) (Record[T], error) {
	r := Record[T]{Key: k, Revision: rev, LeaseOwner: e.Lease.Owner, LeaseUntil: e.Lease.Until, Last: e.Last.Sequence, Deleted: !e.exists()}
	if e.exists() {
		if err := json.Unmarshal(e.State, &r.State); err != nil {
			return r, fmt.Errorf("record of %s: decode state: %w", k, err)
		}
	}
	return r, nil
}

func bucketKey(k Key) (string, error) {
	token, err := k.token()
	if err != nil {
		return "", err
	}
	return recordRoot + "." + k.Cluster + "." + token, nil
}

func parseBucketKey(name string) (Key, error) {
	t := strings.SplitN(name, ".", 3)
	if len(t) != 3 || t[0] != recordRoot {
		return Key{}, fmt.Errorf("bucket key %q is no record", name)
	}
	node, err := events.DecodeKey(t[2])
	if err != nil {
		return Key{}, fmt.Errorf("bucket key %q: %w", name, err)
	}
	return Key{Cluster: t[1], Name: node}, nil
}

// load reads the entry of k; revision 0 means that there is none.
func (s *State[T]) load(ctx context.Context, k Key) (entry, uint64, error) {
	name, err := bucketKey(k)
	if err != nil {
		return entry{}, 0, fmt.Errorf("read record: %w", err)
	}
	ctx, cancel := s.b.request(ctx, s.b.getSubject(bucketStream(s.opts.Handler), bucketWrite(s.opts.Handler, name)))
	defer cancel()
	v, err := s.kv.Get(ctx, name)
	err = refusal(ctx, err)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return entry{}, 0, nil
	}
	if err != nil {
		return entry{}, 0, fmt.Errorf("read record of %s: %w", k, unavailable(err))
	}
	e, err := decodeEntry(k, v.Value())
	return e, v.Revision(), err
}

// store writes e if the record still has revision rev; ErrConflict otherwise.
func (s *State[T]) store(ctx context.Context, k Key, e entry, rev uint64) (uint64, error) {
	if s.readOnly {
		return 0, ErrReadOnly
	}
	name, err := bucketKey(k)
	if err != nil {
		return 0, fmt.Errorf("write record: %w", err)
	}
	raw, err := s.b.encodeEntry(ctx, k, e)
	if err != nil {
		return 0, err
	}
	ctx, cancel := s.b.request(ctx, bucketWrite(s.opts.Handler, name))
	defer cancel()
	var now uint64
	switch {
	case broken.cas:
		now, err = s.kv.Put(ctx, name, raw)
	case rev == 0:
		now, err = s.kv.Create(ctx, name, raw)
	default:
		now, err = s.kv.Update(ctx, name, raw, rev)
	}
	err = refusal(ctx, err)
	switch {
	case err == nil:
		return now, nil
	case errors.Is(err, jetstream.ErrKeyExists) || isWrongLast(err):
		return 0, fmt.Errorf("write record of %s: %w", k, ErrConflict)
	}
	return 0, fmt.Errorf("write record of %s: %w", k, unavailable(err))
}

// change is one entry as the watcher sees it; caughtUp marks the end of the
// current ones.
type change struct {
	key      Key
	entry    entry
	revision uint64
	caughtUp bool
}

// watch sends every entry, then every change, until ctx ends. After the
// connection was lost it reads all of them again: the server may have been
// restarted, and the client would notice only after several heartbeats.
func (s *State[T]) watch(ctx context.Context) (<-chan change, error) {
	reconnected := s.b.reconnects.next()
	w, end, err := s.openWatch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch the records of %s: %w", s.opts.Handler, err)
	}
	out := make(chan change)
	go func() {
		defer close(out)
		for {
			s.forward(ctx, w, reconnected, out)
			if s.b.nc.IsConnected() {
				_ = w.Stop()
			} else {
				go func(w jetstream.KeyWatcher) { _ = w.Stop() }(w) // it would wait for an answer
			}
			end()
			reconnected = s.b.reconnects.next()
			err := s.b.persist(ctx, "the records of "+s.opts.Handler, func() (err error) {
				w, end, err = s.openWatch(ctx)
				return err
			})
			if err != nil {
				if ctx.Err() == nil {
					s.b.opts.Logger.ErrorContext(ctx, "records can't be watched any more", "handler", s.opts.Handler, "error", err)
				}
				return
			}
			if ctx.Err() != nil {
				_ = w.Stop()
				end()
				return
			}
		}
	}()
	return out, nil
}

// openWatch opens a watcher within the time of one request: the client would
// wait for ever for an answer that got lost. The context of a watcher lives as
// long as it does, so it can't be the one that bounds the request. end releases it.
func (s *State[T]) openWatch(ctx context.Context) (w jetstream.KeyWatcher, end context.CancelFunc, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(s.b.opts.Times.Request, func() { cancel(context.DeadlineExceeded) })
	w, err = s.kv.Watch(ctx, recordRoot+".>")
	if !late.Stop() && err == nil {
		err = context.Cause(ctx) // it has ended already
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, nil, unavailable(err)
	}
	return w, func() { cancel(nil) }, nil
}

// forward sends what w reports until ctx ends or the connection was lost.
func (s *State[T]) forward(ctx context.Context, w jetstream.KeyWatcher, reconnected <-chan struct{}, out chan<- change) {
	for {
		var c change
		select {
		case <-ctx.Done():
			return
		case <-reconnected:
			return
		case v, ok := <-w.Updates():
			if !ok {
				return
			}
			var err error
			if v == nil {
				c.caughtUp = true
			} else if c, err = readChange(v); err != nil {
				s.b.metrics.failed("bus")
				s.b.opts.Logger.ErrorContext(ctx, "record can't be read", "handler", s.opts.Handler, "bucket_key", v.Key(), "error", err)
				continue
			}
		}
		select {
		case out <- c:
		case <-ctx.Done():
			return
		}
	}
}

func readChange(v jetstream.KeyValueEntry) (change, error) {
	k, err := parseBucketKey(v.Key())
	if err != nil {
		return change{}, err
	}
	c := change{key: k, revision: v.Revision()}
	if v.Operation() == jetstream.KeyValuePut {
		c.entry, err = decodeEntry(k, v.Value())
	}
	return c, err
}

// each calls fn for every entry, records or not, as they are now.
func (s *State[T]) each(ctx context.Context, fn func(Key, entry, uint64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.watch(ctx)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("read the records of %s: %w", s.opts.Handler, ctx.Err())
		case c, ok := <-changes:
			switch {
			case !ok:
				return fmt.Errorf("read the records of %s: %w", s.opts.Handler, errors.Join(ErrUnavailable, ctx.Err()))
			case c.caughtUp:
				return nil
			}
			if err := fn(c.key, c.entry, c.revision); err != nil {
				return err
			}
		}
	}
}
