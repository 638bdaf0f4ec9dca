package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc"
)

// ledgers makes the notes of provisioning the Store of node groups.
type ledgers struct {
	notes   *bus.Notes
	cluster string
}

func (l ledgers) Load(ctx context.Context, key string) ([]byte, uint64, error) {
	return l.notes.Load(ctx, l.cluster, key)
}

func (l ledgers) Save(ctx context.Context, key string, data []byte, revision uint64) error {
	err := l.notes.Save(ctx, l.cluster, key, data, revision)
	if errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("%w: %w", externalgrpc.ErrConflict, err)
	}
	return err
}

func (w realWorld) externalGRPC(c config.Cluster, p config.Pool, notes *bus.Notes) (*externalgrpc.Provider, error) {
	g := p.ExternalGRPC
	o := externalgrpc.Options{Cluster: c.Name, Pool: p.Name, Address: g.Address, NodeGroup: g.NodeGroup, Timeout: g.Timeout.Std(),
		Store: ledgers{notes, c.Name}, Logger: w.log.With("pool", p.Name)}
	if g.TLS != nil {
		o.TLS = externalgrpc.TLS{CAFile: g.TLS.CAFile, CertFile: g.TLS.CertFile, KeyFile: g.TLS.KeyFile}
	}
	gp, err := externalgrpc.New(o)
	if err != nil {
		return nil, fmt.Errorf("cluster %s, pool %s: %w", c.Name, p.Name, err)
	}
	return gp, nil
}
