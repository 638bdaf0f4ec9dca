package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/handlers/decision"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

func (a *App) addShadow(ctx context.Context) error {
	// Nothing but the bus: it has no way to act.
	h, err := decision.NewShadow(ctx, decision.ShadowOptions{Bus: a.bus, Version: a.opts.Version, Logger: a.opts.Logger, Registerer: a.opts.Registry})
	if err != nil {
		return err
	}
	a.handle(RoleShadow, h, nil)
	return nil
}

// shadows implements api.Shadows on the log and the shadow's record.
type shadows struct {
	app    *App
	record *bus.State[decision.ShadowRecord]
}

func (a *App) newShadows(ctx context.Context) (*shadows, error) {
	record, err := bus.ReadState[decision.ShadowRecord](ctx, a.bus, events.HandlerShadow)
	if err != nil {
		return nil, fmt.Errorf("open the shadow's record: %w", err)
	}
	return &shadows{app: a, record: record}, nil
}

// candidate is a shadow as the log and the shadow's record have it.
type candidate struct {
	id       string
	sequence uint64
	started  events.ShadowStarted
	record   *decision.ShadowRecord // nil: the shadow has not taken it up
	api      api.Shadow
}

// Shadows implements api.Shadows.
func (s *shadows) Shadows(ctx context.Context) ([]api.Shadow, error) {
	var out []api.Shadow
	for _, c := range s.app.opts.Config.Clusters {
		x, ok, err := s.candidate(ctx, c.Name)
		if err != nil {
			return nil, fmt.Errorf("candidate policy of cluster %s: %w", c.Name, err)
		}
		if ok {
			out = append(out, x.api)
		}
	}
	slices.SortFunc(out, func(x, y api.Shadow) int { return cmp.Compare(x.Cluster, y.Cluster) })
	return out, nil
}

// candidate returns the candidate policy of a cluster; false when there is none.
// The log knows what was asked for, the record what has come of it and, after the
// retention of the log, what it was.
func (s *shadows) candidate(ctx context.Context, cluster string) (candidate, bool, error) {
	k := bus.Key{Cluster: cluster, Name: events.ClusterKey}
	r, recorded, err := s.record.Get(ctx, k)
	if err != nil {
		return candidate{}, false, err
	}
	var c candidate
	if recorded {
		st := r.State
		c = candidate{id: st.ID, sequence: st.Sequence, started: st.Started, record: &st}
		c.api.StartedAt = st.StartedAt
	}
	last, known, err := s.app.bus.Last(ctx, k, events.TypeShadowStarted)
	if err != nil {
		return candidate{}, false, err
	}
	if known && last.Event.ID() != c.id {
		p, err := events.Decode[events.ShadowStarted](last.Event)
		if err != nil {
			return candidate{}, false, err
		}
		if !recorded && r.Last >= last.Sequence { // it was taken up, and has ended
			return candidate{}, false, nil
		}
		c = candidate{id: last.Event.ID(), sequence: last.Sequence, started: p}
		c.api.StartedAt = last.StreamTime
	}
	if c.id == "" {
		return candidate{}, false, nil
	}
	if ended, err := s.ended(ctx, k, c.id); ended || err != nil {
		return candidate{}, false, err
	}
	c.describe(cluster)
	return c, true, nil
}

// ended reports whether a shadow was stopped or promoted, though the shadow itself
// may not have come to that yet.
func (s *shadows) ended(ctx context.Context, k bus.Key, id string) (bool, error) {
	stop, ok, err := s.app.bus.Last(ctx, k, events.TypeShadowStopped)
	if err != nil {
		return false, err
	}
	if ok {
		if p, err := events.Decode[events.ShadowStopped](stop.Event); err != nil || p.Shadow == id {
			return err == nil, err
		}
	}
	now, err := s.app.inForce(ctx, k.Cluster)
	return now.Promotion != nil && now.Promotion.Shadow == id, err
}

func (c *candidate) describe(cluster string) {
	x := &c.api
	x.ID, x.Cluster, x.Sequence = c.id, cluster, c.sequence
	x.Digest, x.File, x.NewPools, x.Actor, x.Reason = c.started.Digest, c.started.File, c.started.NewPools, c.started.Actor, c.started.Reason
	switch {
	case c.record == nil:
		x.Waiting = "the shadow has not taken it up: does a process run the role " + RoleShadow + "?"
		return
	case c.record.Live == nil:
		x.Waiting = "it begins with decision's next checkpoint, which follows each full snapshot (collector.full_every)"
	default:
		x.ComparedUntil = c.record.Live.At
	}
	t := c.record.Tally
	x.ComparedSince = c.record.ComparedSince
	x.Evaluations, x.Differing, x.Differences = t.Evaluations, t.Differing, t.Differences
	x.ShadowTotals = api.ShadowTotals{Added: t.Added, Removed: t.Removed, Held: t.Held}
	x.Open, x.Corrected = len(c.record.Open), c.record.Corrected
}

// Start implements api.Shadows.
func (s *shadows) Start(ctx context.Context, cluster, actor string, r api.ShadowStart) (api.ShadowStarted, error) {
	parsed, err := config.ParseCandidate(cmp.Or(r.File, "candidate"), []byte(r.Config))
	var problems *config.Errors
	if errors.As(err, &problems) {
		no := &api.Refused{Status: http.StatusUnprocessableEntity, Message: "The candidate policy is refused."}
		for _, p := range problems.Problems {
			no.Details = append(no.Details, p.String())
		}
		return api.ShadowStarted{}, no
	}
	if err != nil {
		return api.ShadowStarted{}, err
	}
	wanted, ok := parsed.Cluster(cluster)
	if !ok {
		return api.ShadowStarted{}, &api.Refused{Status: http.StatusUnprocessableEntity,
			Message: fmt.Sprintf("The candidate has no cluster %q; it has %s.", cluster, strings.Join(clusterNames(parsed), ", "))}
	}
	p := events.ShadowStarted{Policy: parsed.Policy(cluster), File: r.File, Actor: actor, Reason: r.Reason}
	if p.Digest, err = policyDigest(p.Policy, false); err != nil {
		return api.ShadowStarted{}, err
	}
	out := api.ShadowStarted{Cluster: cluster, Digest: p.Digest}
	running, _ := s.app.opts.Config.Cluster(cluster)
	for _, pool := range wanted.Pools {
		if _, has := running.Pool(pool.Name); !has {
			p.NewPools = append(p.NewPools, pool.Name)
		}
	}
	for _, pool := range running.Pools {
		if _, has := wanted.Pool(pool.Name); !has {
			out.Gone = append(out.Gone, pool.Name)
		}
	}
	out.NewPools = p.NewPools
	now, err := s.app.inForce(ctx, cluster)
	if err != nil {
		return out, err
	}
	if d, err := policyDigest(now.Policy, false); err == nil {
		out.Same = d == p.Digest
	}
	if before, ok, err := s.candidate(ctx, cluster); err != nil {
		return out, err
	} else if ok {
		out.Replaced = before.id
	}
	k := bus.Key{Cluster: cluster, Name: events.ClusterKey}
	checkpoint, known, err := s.app.bus.Last(ctx, k, events.TypeDecisionCheckpointed)
	if err != nil {
		return out, err
	}
	if known {
		p.Checkpoint = checkpoint.Sequence
	}
	out.ID = events.ID("shadow", cluster, p.Digest, actor, cmp.Or(r.Key, s.app.opts.Clock.Now().String()))
	if out.Replaced == out.ID {
		out.Replaced = "" // the same request once more
	}
	return out, s.publish(ctx, cluster, out.ID, p)
}

func (s *shadows) publish(ctx context.Context, cluster, id string, p events.Payload) error {
	e, err := events.New(events.Meta{Cluster: cluster, Publisher: "api", ID: id, Time: s.app.opts.Clock.Now().UTC(), CorrelationID: id}, p)
	if err != nil {
		return &api.Refused{Status: http.StatusUnprocessableEntity, Message: err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, s.app.opts.Config.API.Limits.PublishWait.Std())
	defer cancel()
	return s.app.bus.Publish(ctx, e)
}

// named is the shadow of a cluster, if it is the one that is meant.
func (s *shadows) named(ctx context.Context, cluster, id string) (candidate, error) {
	c, ok, err := s.candidate(ctx, cluster)
	switch {
	case err != nil:
		return candidate{}, err
	case !ok:
		return candidate{}, &api.Refused{Status: http.StatusNotFound, Message: fmt.Sprintf("No candidate policy is judged in cluster %s.", cluster)}
	case c.id != id:
		return candidate{}, &api.Refused{Status: http.StatusConflict,
			Message: fmt.Sprintf("Another candidate policy is judged in cluster %s since then: %s, started by %s (%s).", cluster, c.id, c.started.Actor, c.started.Reason)}
	}
	return c, nil
}

// Stop implements api.Shadows.
func (s *shadows) Stop(ctx context.Context, cluster, actor string, r api.ShadowEnd) (api.ShadowEnded, error) {
	c, err := s.named(ctx, cluster, r.Shadow)
	if err != nil {
		return api.ShadowEnded{}, err
	}
	out := api.ShadowEnded{Shadow: c.id, Cluster: cluster, Digest: c.started.Digest, File: c.started.File}
	return out, s.publish(ctx, cluster, events.ID("shadow stopped", c.id), events.ShadowStopped{Shadow: c.id, Actor: actor, Reason: r.Reason})
}

// Promote implements api.Shadows. What provisioning can't do is refused: its
// providers are those of the running configuration.
func (s *shadows) Promote(ctx context.Context, cluster, actor string, r api.ShadowEnd) (api.ShadowEnded, error) {
	c, err := s.named(ctx, cluster, r.Shadow)
	if err != nil {
		return api.ShadowEnded{}, err
	}
	running, _ := s.app.opts.Config.Cluster(cluster)
	for _, pool := range c.started.Policy.Pools {
		have, ok := running.Pool(pool.Name)
		if !ok || have.Provider != pool.Provider {
			return api.ShadowEnded{}, &api.Refused{Status: http.StatusConflict,
				Message: fmt.Sprintf("Pool %s (provider %s) is not in the running configuration, so that nothing here could create its nodes. Put the candidate's file in place and start anew instead.", pool.Name, pool.Provider)}
		}
	}
	now, err := s.app.inForce(ctx, cluster)
	if err != nil {
		return api.ShadowEnded{}, err
	}
	file, err := policyDigest(s.app.opts.Config.Policy(cluster), false)
	if err != nil {
		return api.ShadowEnded{}, err
	}
	if d, err := policyDigest(now.Policy, false); err != nil {
		return api.ShadowEnded{}, err
	} else if d == c.started.Digest {
		return api.ShadowEnded{}, &api.Refused{Status: http.StatusConflict, Message: "The candidate is the policy in force already; 'k3s-autoscaler shadow stop' ends the comparison."}
	}
	out := api.ShadowEnded{Shadow: c.id, Cluster: cluster, Digest: c.started.Digest, File: c.started.File, Replaced: now.Digest, AheadOfFile: c.started.Digest != file}
	next := policyInForce{Sequence: now.Sequence, Policy: c.started.Policy, Promotion: &events.Promotion{Shadow: c.id, Actor: actor, Reason: r.Reason,
		Replaced: now.Digest, Source: c.started.File, File: file, Text: s.app.opts.Config.TextDigest()}}
	ctx, cancel := context.WithTimeout(ctx, s.app.opts.Config.API.Limits.PublishWait.Std())
	defer cancel()
	err = s.app.publishPolicy(ctx, cluster, next)
	if errors.Is(err, bus.ErrConflict) {
		return out, &api.Refused{Status: http.StatusConflict, Message: fmt.Sprintf("The policy of cluster %s was changed meanwhile. Look at it and promote again.", cluster)}
	}
	return out, err
}
