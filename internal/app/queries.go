package app

import (
	"context"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/promql"
)

// addQueries adds what asks Prometheus on behalf of the metric rules of a cluster.
// Where to ask is this process's configuration; what to ask is the policy that
// decision follows, so that both never speak of different rules for long, and the
// candidate that the shadow judges beside it.
func (a *App) addQueries(ctx context.Context, c config.Cluster, epoch int64) error {
	memory, err := bus.ReadState[decision.Record](ctx, a.bus, events.HandlerDecision)
	if err != nil {
		return fmt.Errorf("open decision's record: %w", err)
	}
	judged, err := bus.ReadState[decision.ShadowRecord](ctx, a.bus, events.HandlerShadow)
	if err != nil {
		return fmt.Errorf("open the shadow's record: %w", err)
	}
	o := collector.QueryOptions{Cluster: c.Name, Policies: policies{memory, judged, c.Name}, Publisher: a.bus, Epoch: epoch,
		Clock: a.opts.Clock, Logger: a.opts.Logger, Registerer: a.opts.Registry}
	if p := c.Prometheus; p != nil {
		client, err := promql.New(promql.Options{URL: p.URL, TokenFile: p.TokenFile, Username: p.Username, PasswordFile: p.PasswordFile,
			CAFile: p.CAFile, Timeout: p.Timeout.Std()})
		if err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		o.Prometheus = client
	}
	q, err := collector.NewQueries(o)
	if err != nil {
		return err
	}
	a.first = append(a.first, role{"queries of cluster " + c.Name, q.Run})
	return nil
}

// policies are those of a cluster that are followed or judged.
type policies struct {
	memory  *bus.State[decision.Record]
	judged  *bus.State[decision.ShadowRecord]
	cluster string
}

// Policies implements collector.Policies.
func (p policies) Policies(ctx context.Context) ([]events.Policy, error) {
	k := bus.Key{Cluster: p.cluster, Name: events.ClusterKey}
	r, ok, err := p.memory.Get(ctx, k)
	if err != nil || !ok || r.State.Config == nil {
		return nil, err
	}
	out := []events.Policy{r.State.Config.Policy}
	c, ok, err := p.judged.Get(ctx, k)
	if err != nil {
		return out, fmt.Errorf("read the candidate policy of cluster %s: %w", p.cluster, err)
	}
	if ok {
		out = append(out, c.State.Started.Policy)
	}
	return out, nil
}
