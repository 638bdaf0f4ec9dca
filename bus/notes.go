package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// noteRoot starts the bucket keys of notes.
const noteRoot = "note"

// Notes are what a handler keeps that belongs to no key of the stream of record:
// whole documents beside its records, in the same bucket, changed by
// compare-and-swap.
type Notes struct {
	b       *Bus
	handler string
	kv      jetstream.KeyValue
}

// OpenNotes opens the bucket of a handler for notes, making it if absent.
func OpenNotes(ctx context.Context, b *Bus, handler string) (*Notes, error) {
	if err := events.ValidateCluster(handler); err != nil {
		return nil, fmt.Errorf("open notes: handler: is %q, expected a DNS label", handler)
	}
	kv, err := b.openBucket(ctx, handler)
	if err != nil {
		return nil, fmt.Errorf("open notes: %w", err)
	}
	return &Notes{b: b, handler: handler, kv: kv}, nil
}

// key is the bucket key of a note; any name will do, since it is encoded.
func (n *Notes) key(cluster, name string) (string, error) {
	if err := events.ValidateCluster(cluster); err != nil {
		return "", err
	}
	if name == "" {
		return "", errors.New("name of the note is empty")
	}
	return fmt.Sprintf("%s.%s.%x", noteRoot, cluster, name), nil
}

// Load returns a note and its revision; nil and 0 when there is none.
func (n *Notes) Load(ctx context.Context, cluster, name string) ([]byte, uint64, error) {
	key, err := n.key(cluster, name)
	if err != nil {
		return nil, 0, fmt.Errorf("read note: %w", err)
	}
	ctx, cancel := n.b.request(ctx, n.b.getSubject(bucketStream(n.handler), bucketWrite(n.handler, key)))
	defer cancel()
	v, err := n.kv.Get(ctx, key)
	err = refusal(ctx, err)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read note %s of cluster %s: %w", name, cluster, unavailable(err))
	}
	return v.Value(), v.Revision(), nil
}

// Save replaces a note that still has this revision, 0 for none; ErrConflict
// otherwise.
func (n *Notes) Save(ctx context.Context, cluster, name string, data []byte, revision uint64) error {
	key, err := n.key(cluster, name)
	if err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	ctx, cancel := n.b.request(ctx, bucketWrite(n.handler, key))
	defer cancel()
	if revision == 0 {
		_, err = n.kv.Create(ctx, key, data)
	} else {
		_, err = n.kv.Update(ctx, key, data, revision)
	}
	err = refusal(ctx, err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyExists) || isWrongLast(err):
		return fmt.Errorf("write note %s of cluster %s: %w", name, cluster, ErrConflict)
	}
	return fmt.Errorf("write note %s of cluster %s: %w", name, cluster, unavailable(err))
}
