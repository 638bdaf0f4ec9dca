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
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
)

// applyConfig publishes the policy of every cluster: decisions follow the log,
// never the file. The id derives from the digest and the event it follows in this
// log, so that going back to an earlier policy is an event of its own, and two
// gateways that start at once publish in turn.
func (a *App) applyConfig(ctx context.Context) error {
	for _, c := range a.opts.Config.Clusters {
		for {
			err := a.publishFile(ctx, c.Name)
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

// publishFile publishes the policy of the configuration file, or again the one that
// a person promoted: a start alone never takes back what was promoted. It does
// when the file says the same, or was changed since: the last word counts.
func (a *App) publishFile(ctx context.Context, cluster string) error {
	now, err := a.inForce(ctx, cluster)
	if err != nil {
		return err
	}
	next := now
	next.Policy, next.Promotion = a.opts.Config.Policy(cluster), nil
	if p := now.Promotion; p != nil {
		file, err := policyDigest(next.Policy, false)
		if err != nil {
			return err
		}
		promoted, err := policyDigest(now.Policy, false)
		if err != nil {
			return err
		}
		unchanged := file == p.File || p.Text != "" && p.Text == a.opts.Config.TextDigest()
		switch {
		case file == promoted: // the file has caught up
		case unchanged:
			next.Policy, next.Promotion = now.Policy, p
			a.opts.Logger.WarnContext(ctx, "the policy in force was promoted and is another than the configuration file's, which was not changed since: the promoted one stays; put its file in place",
				"cluster", cluster, "promoted_by", p.Actor, "reason", p.Reason, "file", p.Source)
		default:
			a.opts.Logger.WarnContext(ctx, "the configuration file was changed since a policy was promoted: the file's policy takes its place",
				"cluster", cluster, "promoted_by", p.Actor, "reason", p.Reason, "file", p.Source)
		}
	}
	return a.publishPolicy(ctx, cluster, next)
}

// policyInForce is what the last config.applied says.
type policyInForce struct {
	Sequence  uint64 // 0: the log does not hold it
	Digest    string
	Policy    events.Policy
	Promotion *events.Promotion
}

// inForce is the policy in force of a cluster. The log may no longer hold the
// event; decision remembers it.
func (a *App) inForce(ctx context.Context, cluster string) (policyInForce, error) {
	k := bus.Key{Cluster: cluster, Name: events.ClusterKey}
	last, known, err := a.bus.Last(ctx, k, events.TypeConfigApplied)
	if err != nil {
		return policyInForce{}, err
	}
	if known {
		p, err := events.Decode[events.ConfigApplied](last.Event)
		return policyInForce{Sequence: last.Sequence, Digest: p.Digest, Policy: p.Policy, Promotion: p.Promotion}, err
	}
	r, ok, err := a.memory.Get(ctx, k)
	if err != nil || !ok || r.State.Config == nil {
		return policyInForce{}, err
	}
	c := r.State.Config
	return policyInForce{Digest: c.Digest, Policy: c.Policy, Promotion: c.Promotion}, nil
}

// publishPolicy makes p the policy in force, if the one before it still is.
func (a *App) publishPolicy(ctx context.Context, cluster string, p policyInForce) error {
	digest, err := policyDigest(p.Policy, a.opts.DryRun)
	if err != nil {
		return err
	}
	e, err := events.New(events.Meta{
		Cluster: cluster, Publisher: "app", ID: events.ID("config", cluster, digest, a.bus.Incarnation(), strconv.FormatUint(p.Sequence, 10)),
		Time: a.opts.Clock.Now(), DryRun: a.opts.DryRun,
	}, events.ConfigApplied{
		Digest: digest, Previous: p.Sequence, DryRun: a.opts.DryRun, Version: a.opts.Version, Start: a.started, Policy: p.Policy, Promotion: p.Promotion,
	})
	if err != nil {
		return err
	}
	_, err = a.bus.PublishExpecting(ctx, e, p.Sequence)
	return err
}

// policyDigest identifies a policy together with whether anybody acts on it.
func policyDigest(p events.Policy, dryRun bool) (string, error) {
	encoded, err := json.Marshal(struct {
		Policy events.Policy
		DryRun bool
	}{p, dryRun})
	if err != nil {
		return "", fmt.Errorf("encode policy: %w", err)
	}
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:]), nil
}

// openMemory opens decision's record for reading, once.
func (a *App) openMemory(ctx context.Context) (err error) {
	if a.memory == nil {
		if a.memory, err = bus.ReadState[decision.Record](ctx, a.bus, events.HandlerDecision); err != nil {
			return fmt.Errorf("open decision's record: %w", err)
		}
	}
	return nil
}
