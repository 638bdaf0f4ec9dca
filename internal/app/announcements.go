package app

import (
	"context"
	"errors"

	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/announcing"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

func (a *App) addAnnouncing(context.Context) error {
	boards := map[string]announcing.Board{}
	for _, c := range a.opts.Config.Clusters {
		client, err := a.opts.World.Actor(c)
		if err != nil {
			return err
		}
		r, err := kube.NewRecorder(client, a.opts.Logger.With("cluster", c.Name), kube.Options{Registerer: a.opts.Registry})
		if err != nil {
			return err
		}
		a.closers = append(a.closers, r)
		boards[c.Name] = board{r}
	}
	h, err := announcing.New(announcing.Options{Boards: boards, Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry})
	if err != nil {
		return err
	}
	a.first = append(a.first, role{RoleAnnouncing, func(ctx context.Context) error { return a.bus.RunBatch(ctx, h) }})
	return nil
}

// board makes the API server the Board port of announcing.
type board struct{ recorder *kube.Recorder }

func (b board) Post(ctx context.Context, n announcing.Note) error {
	err := b.recorder.Post(ctx, kube.Note(n))
	if errors.Is(err, kube.ErrNotFound) {
		return &translated{err: err, kind: announcing.ErrNotFound}
	}
	return err
}
