package bus

import (
	"context"
	"errors"
	"iter"
	"time"

	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

var errSkeleton = errors.New("not built yet")

type keeper interface{}
type slots struct{}

func newSlots(int) *slots { return &slots{} }

type liveness struct{}

func newLiveness(clock.WithTicker, time.Duration) *liveness { return &liveness{} }
func (l *liveness) run(context.Context)                     {}

func (o Options) validateGiven() error { return nil }

func (b *Bus) Last(ctx context.Context, key Key, eventType string) (Delivery, bool, error) {
	return Delivery{}, false, errSkeleton
}

type ReadOptions struct {
	Cluster, Node string
	Types         []string
	FromSequence  uint64
	Since         time.Time
	UntilSequence uint64
	Follow        bool
	Limit         int
}

func (b *Bus) Read(ctx context.Context, o ReadOptions) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) { yield(Delivery{}, errSkeleton) }
}
func (b *Bus) Run(ctx context.Context, hs ...Handler) error          { return errSkeleton }
func (b *Bus) RunBatch(ctx context.Context, h BatchHandler) error    { return errSkeleton }
func (b *Bus) RunTimers(ctx context.Context) error                   { return errSkeleton }
func (b *Bus) Ready(ctx context.Context) error                       { return errSkeleton }
func (b *Bus) DeadLetters(ctx context.Context) ([]DeadLetter, error) { return nil, errSkeleton }

type DeadLetter struct {
	ID       string
	Handler  string
	Reason   string
	Attempts int
	Stack    string
	At       time.Time
	Sequence uint64
	Parked   bool
	Event    events.Event
}

type State[T any] struct{ _ *T }
type StateOptions[T any] struct {
	Handler  string
	Deadline func(k Key, st T) time.Time
}

func OpenState[T any](ctx context.Context, b *Bus, o StateOptions[T]) (*State[T], error) {
	return nil, errSkeleton
}
func ReadState[T any](ctx context.Context, b *Bus, handler string) (*State[T], error) {
	return nil, errSkeleton
}

type Turn[T any] struct {
	Key    Key
	State  *T
	Exists bool
	Now    time.Time
}
type EmitOption func(*events.Meta)

func (t *Turn[T]) Emit(p events.Payload, o ...EmitOption) error                { return errSkeleton }
func (t *Turn[T]) EmitTo(node string, p events.Payload, o ...EmitOption) error { return errSkeleton }
func Correlation(id string) EmitOption                                         { return nil }
func Causation(id string) EmitOption                                           { return nil }
func DryRun(on bool) EmitOption                                                { return nil }
func (t *Turn[T]) Delete()                                                     {}
func (t *Turn[T]) Unchanged()                                                  {}

func (s *State[T]) Apply(ctx context.Context, d Delivery, fn func(t *Turn[T]) error) error {
	return errSkeleton
}
func (s *State[T]) Amend(ctx context.Context, k Key, op string, fn func(t *Turn[T]) error) error {
	return errSkeleton
}

type Record[T any] struct {
	Key        Key
	State      T
	Revision   uint64
	LeaseOwner string
	LeaseUntil time.Time
	Last       uint64
	Deleted    bool
}

func (s *State[T]) Get(ctx context.Context, k Key) (Record[T], bool, error) {
	return Record[T]{}, false, errSkeleton
}
func (s *State[T]) All(ctx context.Context) ([]Record[T], error)        { return nil, errSkeleton }
func (s *State[T]) Watch(ctx context.Context) (<-chan Record[T], error) { return nil, errSkeleton }
func (s *State[T]) Acquire(ctx context.Context, k Key, ttl time.Duration) (*Lease[T], error) {
	return nil, errSkeleton
}

type Lease[T any] struct{ _ *T }

func (l *Lease[T]) Key() Key                          { return Key{} }
func (l *Lease[T]) Record() T                         { var t T; return t }
func (l *Lease[T]) Context() context.Context          { return nil }
func (l *Lease[T]) Confirm(ctx context.Context) error { return errSkeleton }
func (l *Lease[T]) Commit(ctx context.Context, op string, fn func(t *Turn[T]) error) error {
	return errSkeleton
}
func (l *Lease[T]) Release(ctx context.Context) error { return errSkeleton }

type WorkerOptions[T any] struct {
	Due         func(k Key, st T, now time.Time) (bool, time.Time)
	Step        func(ctx context.Context, l *Lease[T]) error
	Concurrency int
	TTL         time.Duration
}

func (s *State[T]) RunWorker(ctx context.Context, o WorkerOptions[T]) error { return errSkeleton }
