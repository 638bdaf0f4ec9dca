package bus

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// Mutants break one rule of this package each, for the rest of the process.
func Mutants() map[string]func() {
	return map[string]func(){
		"late ack":           func() { broken.fence = true },
		"no lease check":     func() { broken.lease = true },
		"no CAS":             func() { broken.cas = true },
		"no outbox replay":   func() { broken.outbox = true },
		"same id in redrive": func() { broken.copyID = true },
	}
}

// Decompress is what a reader of an object does with it.
func Decompress(raw []byte) ([]byte, error) { return decompress(encodingZstd, raw) }

// Compress is what the writer of a message or object does with its data.
func Compress(data []byte) []byte { return zstdEncoder.EncodeAll(data, nil) }

// ReadLate makes a State read from a server that is one write of each key late,
// until the returned function is called.
func ReadLate[T any](s *State[T]) (end func()) {
	now := s.kv
	s.kv = &late{KeyValue: now, last: map[string]jetstream.KeyValueEntry{}}
	return func() { s.kv = now }
}

type late struct {
	jetstream.KeyValue

	mu   sync.Mutex
	last map[string]jetstream.KeyValueEntry // before the last write
}

func (l *late) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.last[key]; ok {
		return e, nil
	}
	return l.KeyValue.Get(ctx, key)
}

func (l *late) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	before, err := l.KeyValue.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	now, err := l.KeyValue.Update(ctx, key, value, revision)
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.last[key] = before
	}
	return now, err
}
