package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// livesRetry is how long to wait before a broken watch of records is opened again.
const livesRetry = time.Second

var errWatchEnded = errors.New("the watch ended")

// lives follows the records of provisioning and draining, to show where each life
// is. A snapshot has of them what decisions need; retries and the like would make it
// change without end.
type lives struct {
	nodes  *bus.State[lifecycle.Node]
	drains *bus.State[lifecycle.Drain]

	mu   sync.RWMutex
	join *join // nil: not read yet
}

func (a *App) newLives(ctx context.Context) (*lives, error) {
	nodes, err := bus.ReadState[lifecycle.Node](ctx, a.bus, events.HandlerProvisioning)
	if err != nil {
		return nil, fmt.Errorf("open node records: %w", err)
	}
	drains, err := bus.ReadState[lifecycle.Drain](ctx, a.bus, events.HandlerDraining)
	if err != nil {
		return nil, fmt.Errorf("open drain records: %w", err)
	}
	return &lives{nodes: nodes, drains: drains}, nil
}

// Position implements view.Lives.
func (l *lives) Position(cluster, node string) (lifecycle.Position, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.join == nil {
		return lifecycle.Position{}, false
	}
	k := bus.Key{Cluster: cluster, Name: node}
	n, d := l.join.nodes[k], l.join.drains[k]
	return lifecycle.Where(n, d), n != nil || d != nil
}

// runLives follows the records until ctx ends.
func (a *App) runLives(ctx context.Context, l *lives) error {
	for ctx.Err() == nil {
		if err := l.follow(ctx); err != nil && ctx.Err() == nil {
			a.opts.Logger.WarnContext(ctx, "node records can't be followed, trying again; what comes next for a node is not shown", "error", err)
		}
		l.mu.Lock()
		l.join = nil
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-a.opts.Clock.After(livesRetry):
		}
	}
	return nil
}

// follow reads the records and then every change, until ctx or a watch ends.
func (l *lives) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nodes, err := l.nodes.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch node records: %w", err)
	}
	drains, err := l.drains.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch drain records: %w", err)
	}
	j := newJoin()
	l.mu.Lock()
	l.join = j
	l.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n, ok := <-nodes:
			if !ok {
				return errWatchEnded
			}
			l.mu.Lock()
			j.node(n)
			l.mu.Unlock()
		case d, ok := <-drains:
			if !ok {
				return errWatchEnded
			}
			l.mu.Lock()
			j.drain(d)
			l.mu.Unlock()
		}
	}
}
