package externalgrpc

import (
	"context"
	"sync"
)

// memory is a Store as the bus keeps one.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
	revs map[string]uint64
	errs []error // of the next calls to Save
}

func newMemory() *memory { return &memory{data: map[string][]byte{}, revs: map[string]uint64{}} }

func (m *memory) Load(_ context.Context, key string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[key], m.revs[key], nil
}

func (m *memory) Save(_ context.Context, key string, data []byte, rev uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.errs) > 0 {
		err := m.errs[0]
		if m.errs = m.errs[1:]; err != nil {
			return err
		}
	}
	if m.revs[key] != rev {
		return ErrConflict
	}
	m.data[key] = data
	m.revs[key]++
	return nil
}
