package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// applyConfig publishes the policy of every cluster: decisions follow the log,
// never the file. The id derives from the digest and the event it follows in this
// log, so that going back to an earlier policy is an event of its own, and two
// gateways that start at once publish in turn.
func (a *App) applyConfig(ctx context.Context) error {
	for _, c := range a.opts.Config.Clusters {
		policy := a.opts.Config.Policy(c.Name)
		encoded, err := json.Marshal(struct {
			Policy events.Policy
			DryRun bool
		}{policy, a.opts.DryRun})
		if err != nil {
			return fmt.Errorf("encode policy of cluster %s: %w", c.Name, err)
		}
		sum := sha256.Sum256(encoded)
		digest := hex.EncodeToString(sum[:])
		for {
			err := a.publishConfig(ctx, c.Name, digest, policy)
			if errors.Is(err, bus.ErrConflict) {
				continue // another gateway was first: follow it
			}
			if err != nil {
				return fmt.Errorf("publish the policy of cluster %s: %w", c.Name, err)
			}
			break
		}
	}
	return nil
}

func (a *App) publishConfig(ctx context.Context, cluster, digest string, policy events.Policy) error {
	last, known, err := a.bus.Last(ctx, bus.Key{Cluster: cluster, Name: events.ClusterKey}, events.TypeConfigApplied)
	if err != nil {
		return err
	}
	var previous uint64
	if known {
		previous = last.Sequence
	}
	e, err := events.New(events.Meta{
		Cluster: cluster, Publisher: "app", ID: events.ID("config", cluster, digest, a.bus.Incarnation(), strconv.FormatUint(previous, 10)),
		Time: a.opts.Clock.Now(), DryRun: a.opts.DryRun,
	}, events.ConfigApplied{
		Digest: digest, Previous: previous, DryRun: a.opts.DryRun, Version: a.opts.Version, Start: a.started, Policy: policy,
	})
	if err != nil {
		return err
	}
	_, err = a.bus.PublishExpecting(ctx, e, previous)
	return err
}
