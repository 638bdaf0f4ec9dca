package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// marks are the keys of a handler that may be parked; all others are certainly
// not. That holds as long as every delivery of the partition comes to this
// process: only who handles a message parks its key. So one request for all of
// them is enough, until another process had the partition.
type marks struct {
	bucket jetstream.Stream
	keys   map[string]bool // names of park markers in the bucket; nil: not read
}

func (m *marks) forget() { m.keys = nil }

// add notes that a key may be parked.
func (m *marks) add(k Key) {
	name, err := parkedKey(k)
	if err == nil && m.keys != nil {
		m.keys[name] = true
	}
}

// remove notes that a key is not parked.
func (m *marks) remove(k Key) {
	if name, err := parkedKey(k); err == nil {
		delete(m.keys, name)
	}
}

// mayBeParked is false for a key that is certainly not parked.
func (l *puller) mayBeParked(ctx context.Context, k Key) (bool, error) {
	name, err := parkedKey(k)
	if err != nil {
		return false, err
	}
	if l.marks.keys == nil {
		if err := l.marks.read(ctx, l.b, l.opts.Handler); err != nil {
			return false, fmt.Errorf("read which keys are parked: %w", unavailable(err))
		}
	}
	return l.marks.keys[name], nil
}

// read asks the leader of the bucket for the subjects of park markers. One that
// was removed leaves its subject behind.
func (m *marks) read(ctx context.Context, b *Bus, handler string) (err error) {
	ctx, cancel := b.request(ctx, apiSubject("STREAM.INFO", bucketStream(handler)))
	defer cancel()
	if m.bucket == nil {
		if m.bucket, err = b.js.Stream(ctx, bucketStream(handler)); err != nil {
			return refusal(ctx, err)
		}
	}
	root := bucketWrite(handler, "")
	info, err := m.bucket.Info(ctx, jetstream.WithSubjectFilter(root+parkedRoot+".>"))
	if err != nil {
		return refusal(ctx, err)
	}
	m.keys = make(map[string]bool, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		m.keys[subject[len(root):]] = true
	}
	return nil
}
