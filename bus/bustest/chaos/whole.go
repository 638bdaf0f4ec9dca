//go:build unix

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// dial waits until a server answers.
func (r *runner) dial(ctx context.Context, url string) (*nats.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		nc, err := nats.Connect(url)
		if err == nil {
			return nc, nil
		}
		if pause(ctx, 50*time.Millisecond); ctx.Err() != nil {
			return nil, fmt.Errorf("%s does not answer: %w", url, err)
		}
	}
}

// formed waits until the servers of a cluster place a stream on all of them.
func (r *runner) formed(ctx context.Context) error {
	return r.persuade(ctx, strings.Join(r.urls, ","), "the cluster is formed", func(ctx context.Context, js jetstream.JetStream) error {
		const probe = "PROBE"
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: probe, Storage: jetstream.MemoryStorage, Replicas: r.replicas()})
		if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return err
		}
		return js.DeleteStream(ctx, probe)
	})
}

// whole waits until every stream and every consumer has a leader and all of its
// followers: that a server answers is not yet the end of its trouble, and a leader
// that was just elected may not know what the last one had delivered.
func (r *runner) whole(ctx context.Context, url string) error {
	return r.persuade(ctx, url, "the servers are whole", func(ctx context.Context, js jetstream.JetStream) error {
		list := js.ListStreams(ctx)
		for info := range list.Info() {
			if err := r.complete(info.Cluster); err != nil {
				return fmt.Errorf("stream %s: %w", info.Config.Name, err)
			}
			s, err := js.Stream(ctx, info.Config.Name)
			if err != nil {
				return err
			}
			consumers := s.ListConsumers(ctx)
			for c := range consumers.Info() {
				// The consumers of a reader have one replica, as long as it reads.
				if c.Config.Durable == "" {
					continue
				}
				if err := r.complete(c.Cluster); err != nil {
					return fmt.Errorf("consumer %s of %s: %w", c.Name, c.Stream, err)
				}
			}
			if err := consumers.Err(); err != nil {
				return err
			}
		}
		return list.Err()
	})
}

// complete says what a replicated thing lacks.
func (r *runner) complete(c *jetstream.ClusterInfo) error {
	if r.s.Topology != Cluster {
		return nil
	}
	if c == nil || c.Leader == "" {
		return errors.New("has no leader")
	}
	for _, p := range c.Replicas {
		if p.Offline || !p.Current {
			return fmt.Errorf("its replica on %s is behind", p.Name)
		}
	}
	return nil
}

// persuade asks the servers until fn succeeds.
func (r *runner) persuade(ctx context.Context, url, what string, fn func(context.Context, jetstream.JetStream) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	nc, err := r.dial(ctx, url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return fn(ctx, js)
		}()
		if err == nil {
			return nil
		}
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
	}
}
