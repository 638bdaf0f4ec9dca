package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
)

// Shadow is a candidate policy that is judged beside the one in force.
type Shadow struct {
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Digest    string    `json:"digest" doc:"Of the candidate policy"`
	File      string    `json:"file,omitempty" doc:"Where it was read, as the person named it"`
	NewPools  []string  `json:"new_pools,omitempty" doc:"Pools that the running configuration does not have"`
	Actor     string    `json:"actor"`
	Reason    string    `json:"reason"`
	StartedAt time.Time `json:"started_at"`
	Sequence  uint64    `json:"sequence" doc:"Of its shadow.started"`
	Waiting   string    `json:"waiting,omitempty" doc:"Why nothing is compared yet"`

	ComparedSince time.Time `json:"compared_since,omitzero"`
	ComparedUntil time.Time `json:"compared_until,omitzero" doc:"Time of the last event that both decided on"`
	// Counts since ComparedSince.
	Evaluations int `json:"evaluations" doc:"Of a pool, under both policies"`
	Differing   int `json:"differing" doc:"Of them"`
	Differences int `json:"differences" doc:"That began; one lasts until both agree again"`
	ShadowTotals
	Open      int `json:"open" doc:"Differences that there are now"`
	Corrected int `json:"corrected,omitempty" doc:"How often the shadow had another state of the policy in force than decision, and took decision's"`
}

// ShadowTotals add up the nodes of differences.
type ShadowTotals struct {
	Added   int `json:"added" doc:"Nodes that the candidate would have added and the policy in force did not"`
	Removed int `json:"removed" doc:"Nodes that it would have removed"`
	Held    int `json:"held" doc:"Nodes that were added or removed, and under the candidate would not have been"`
}

// ShadowStart asks to judge a candidate policy.
type ShadowStart struct {
	Cluster string `json:"cluster,omitempty" maxLength:"63" doc:"Where there are several"`
	Config  string `json:"config" minLength:"1" doc:"A configuration: clusters, pools and policy, without references"`
	File    string `json:"file,omitempty" maxLength:"500" doc:"Where it was read, for people"`
	Actor   string `json:"actor,omitempty" maxLength:"100" doc:"Who asks; the name of the token is added"`
	Reason  string `json:"reason" minLength:"1" maxLength:"1000" doc:"Why, for those who read the audit"`
	Key     string `json:"key,omitempty" maxLength:"100" doc:"The same key is one request, however often it is sent"`
}

// ShadowStarted says what was started.
type ShadowStarted struct {
	ID       string   `json:"id"`
	Cluster  string   `json:"cluster"`
	Digest   string   `json:"digest"`
	Same     bool     `json:"same,omitempty" doc:"It is the policy in force"`
	NewPools []string `json:"new_pools,omitempty" doc:"Pools that the running configuration does not have: they can be judged, and not be promoted"`
	Gone     []string `json:"gone_pools,omitempty" doc:"Pools of the running configuration that it does not have"`
	Replaced string   `json:"replaced,omitempty" doc:"Id of the shadow that it takes the place of"`
}

// ShadowEnd asks to stop or promote a shadow.
type ShadowEnd struct {
	Cluster string `json:"cluster,omitempty" maxLength:"63" doc:"Where there are several"`
	Shadow  string `json:"shadow" minLength:"1" maxLength:"100" doc:"Its id, so that nobody ends another one than was looked at"`
	Actor   string `json:"actor,omitempty" maxLength:"100" doc:"Who asks; the name of the token is added"`
	Reason  string `json:"reason" minLength:"1" maxLength:"1000" doc:"Why, for those who read the audit"`
}

// ShadowEnded says what became of it.
type ShadowEnded struct {
	Shadow  string `json:"shadow"`
	Cluster string `json:"cluster"`
	Digest  string `json:"digest" doc:"Of the candidate policy"`
	File    string `json:"file,omitempty" doc:"Where the candidate was read"`
	// Replaced and AheadOfFile are about a promotion.
	Replaced    string `json:"replaced,omitempty" doc:"Digest of the policy that was in force"`
	AheadOfFile bool   `json:"ahead_of_file,omitempty" doc:"The configuration file of the process says otherwise"`
}

// Shadows starts, ends and tells of candidate policies.
type Shadows interface {
	// Shadows returns those there are, by cluster.
	Shadows(ctx context.Context) ([]Shadow, error)
	// Start returns when the candidate is in the log. A *Refused says what is wrong
	// with it.
	Start(ctx context.Context, cluster, actor string, r ShadowStart) (ShadowStarted, error)
	// Stop ends one. A *Refused says why not.
	Stop(ctx context.Context, cluster, actor string, r ShadowEnd) (ShadowEnded, error)
	// Promote makes one the policy in force. A *Refused says why not.
	Promote(ctx context.Context, cluster, actor string, r ShadowEnd) (ShadowEnded, error)
}

// Refused is why something that was asked for is not done.
type Refused struct {
	Status  int // of the answer
	Message string
	Details []string
}

func (e *Refused) Error() string { return e.Message }

// ShadowDifference is a difference between both policies, from its beginning to its end.
type ShadowDifference struct {
	ID        string           `json:"id"`
	Pool      string           `json:"pool"`
	Effect    string           `json:"effect" enum:"add,remove,hold,other" doc:"What the candidate would do that the policy in force does not"`
	Nodes     int              `json:"nodes,omitempty" doc:"At most so far"`
	Since     time.Time        `json:"since"`
	Until     time.Time        `json:"until,omitzero" doc:"Absent: it lasts"`
	Input     uint64           `json:"input" doc:"Sequence of the event that both decided on"`
	Candidate *events.Decision `json:"candidate,omitempty"`
	Live      *events.Decision `json:"live,omitempty"`
}

// ShadowDiff is where a candidate policy decides otherwise.
type ShadowDiff struct {
	Shadow      Shadow             `json:"shadow"`
	Since       time.Time          `json:"since,omitzero"`
	Differences []ShadowDifference `json:"differences" nullable:"false" doc:"Oldest first"`
	ShadowTotals
	Other int `json:"other" doc:"Differences in which other nodes would have been removed"`
}

// shadows registers what is about candidate policies.
func (s *Server) shadows() {
	failures := []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}
	huma.Register(s.huma, huma.Operation{OperationID: "list-shadows", Method: http.MethodGet, Path: "/v1/shadows",
		Summary: "Candidate policies that are judged beside the ones in force", Errors: failures},
		func(ctx context.Context, in *ClusterFilter) (*body[Page[Shadow]], error) {
			all, err := s.o.Shadows.Shadows(ctx)
			return listed(ctx, s, "shadows", all, err, func(x Shadow) bool { return in.Cluster == "" || in.Cluster == x.Cluster })
		})
	huma.Register(s.huma, huma.Operation{OperationID: "diff-shadow", Method: http.MethodGet, Path: "/v1/shadows/diff",
		Summary: "Where a candidate policy decides otherwise than the one in force", Errors: failures}, s.diffShadow)
	huma.Register(s.huma, huma.Operation{OperationID: "start-shadow", Method: http.MethodPost, Path: "/v1/shadows/start",
		Summary: "Judge a candidate policy beside the one in force", DefaultStatus: http.StatusAccepted, Errors: failures,
		Description: "It is checked as any configuration. Nobody acts on what it would decide."},
		func(ctx context.Context, in *struct{ Body ShadowStart }) (*body[ShadowStarted], error) {
			return shadowAction(ctx, s, in.Body.Cluster, in.Body.Actor, in.Body.Reason, func(cluster, actor string) (ShadowStarted, error) {
				return s.o.Shadows.Start(ctx, cluster, actor, in.Body)
			})
		})
	for _, a := range []struct {
		id, summary string
		do          func(ctx context.Context, cluster, actor string, r ShadowEnd) (ShadowEnded, error)
	}{
		{"stop", "Judge a candidate policy no longer", s.o.Shadows.Stop},
		{"promote", "Make a candidate policy the one in force", s.o.Shadows.Promote},
	} {
		huma.Register(s.huma, huma.Operation{OperationID: a.id + "-shadow", Method: http.MethodPost, Path: "/v1/shadows/" + a.id,
			Summary: a.summary, DefaultStatus: http.StatusAccepted, Errors: failures},
			func(ctx context.Context, in *struct{ Body ShadowEnd }) (*body[ShadowEnded], error) {
				return shadowAction(ctx, s, in.Body.Cluster, in.Body.Actor, in.Body.Reason, func(cluster, actor string) (ShadowEnded, error) {
					return a.do(ctx, cluster, actor, in.Body)
				})
			})
	}
}

// shadowAction finds whom and which cluster it is about, and answers.
func shadowAction[T any](ctx context.Context, s *Server, cluster, claimed, reason string, do func(cluster, actor string) (T, error)) (*body[T], error) {
	caller, _ := auth.CallerFrom(ctx)
	actor, problem := actorOf(claimed, caller.Name)
	if problem != "" {
		return nil, huma.Error422UnprocessableEntity("The request is refused.", refusal("body.actor", problem, claimed))
	}
	if strings.TrimSpace(reason) == "" {
		return nil, huma.Error422UnprocessableEntity("The request is refused.", refusal("body.reason", "reason is empty; say why, for those who read the audit", reason))
	}
	cluster, err := s.oneCluster(cluster)
	if err != nil {
		return nil, err
	}
	out, err := do(cluster, actor)
	var no *Refused
	switch {
	case errors.As(err, &no):
		var details []error
		for _, d := range no.Details {
			details = append(details, &huma.ErrorDetail{Message: d})
		}
		return nil, huma.NewError(no.Status, no.Message, details...)
	case errors.Is(err, bus.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		s.o.Logger.ErrorContext(ctx, "request about a candidate policy not stored, the caller has to send again", "cluster", cluster, "error", err)
		return nil, huma.Error503ServiceUnavailable("The bus does not acknowledge. Send the same request again.")
	case err != nil:
		s.o.Logger.ErrorContext(ctx, "request about a candidate policy failed", "cluster", cluster, "error", err)
		return nil, huma.Error500InternalServerError("The request could not be carried out; the server's log says why.")
	}
	return &body[T]{out}, nil
}

// oneCluster is the cluster that is named, or the only one.
func (s *Server) oneCluster(name string) (string, error) {
	var clusters []string
	for _, t := range s.o.Targets() {
		clusters = append(clusters, t.Cluster)
	}
	if name == "" {
		if name = s.o.DefaultCluster(); name == "" {
			return "", huma.Error422UnprocessableEntity(fmt.Sprintf("There are several clusters (%s): name one.", list(clusters)))
		}
	}
	if !slices.Contains(clusters, name) {
		return "", huma.Error422UnprocessableEntity(fmt.Sprintf("There is no cluster %q; there are %s.", name, list(clusters)))
	}
	return name, nil
}

func (s *Server) diffShadow(ctx context.Context, in *struct {
	ClusterFilter
	Since string `query:"since" doc:"Only differences that lasted until then or began later: a time (RFC 3339) or how long ago; absent: all" maxLength:"40"`
}) (*body[ShadowDiff], error) {
	since, err := when(in.Since, s.o.Clock.Now())
	if err != nil {
		return nil, huma.Error422UnprocessableEntity("A time is not understood.", &huma.ErrorDetail{Location: "query.since", Message: err.Error(), Value: in.Since})
	}
	cluster, err := s.oneCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	all, err := s.o.Shadows.Shadows(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "shadows", err)
	}
	i := slices.IndexFunc(all, func(x Shadow) bool { return x.Cluster == cluster })
	if i < 0 {
		return nil, huma.Error404NotFound(fmt.Sprintf("No candidate policy is judged in cluster %s; 'k3s-autoscaler shadow start FILE' starts one.", cluster))
	}
	out := ShadowDiff{Shadow: all[i], Since: since, Differences: []ShadowDifference{}}
	until, err := s.o.Log.LastSequence(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the event log", err)
	}
	var f differences
	if out.Shadow.Sequence <= until {
		for d, err := range s.o.Log.Read(ctx, bus.ReadOptions{Cluster: cluster, Node: events.ClusterKey, Types: []string{events.TypeShadowDecided},
			FromSequence: out.Shadow.Sequence, UntilSequence: until}) {
			var undecodable *bus.UndecodableError
			switch {
			case errors.As(err, &undecodable):
				continue
			case err != nil:
				return nil, s.queryError(ctx, "the event log", err)
			}
			if p, err := events.Decode[events.ShadowDecided](d.Event); err == nil && p.Shadow == out.Shadow.ID {
				f.take(p, d.Event.Time())
			}
		}
	}
	for _, x := range f.all {
		if !x.Until.IsZero() && x.Until.Before(since) {
			continue
		}
		out.Differences = append(out.Differences, x)
		switch x.Effect {
		case events.EffectAdd:
			out.Added += x.Nodes
		case events.EffectRemove:
			out.Removed += x.Nodes
		case events.EffectHold:
			out.Held += x.Nodes
		default:
			out.Other++
		}
	}
	return &body[ShadowDiff]{out}, nil
}

// differences are those that the events of a shadow tell of, by their beginnings.
type differences struct {
	all  []ShadowDifference
	open map[string]int // by pool
}

func (f *differences) take(p events.ShadowDecided, at time.Time) {
	if f.open == nil {
		f.open = map[string]int{}
	}
	i, lasts := f.open[p.Pool]
	if lasts && f.all[i].ID != p.Difference || p.Effect == events.EffectNone {
		if lasts {
			f.all[i].Until = at.UTC()
		}
		delete(f.open, p.Pool)
		lasts = false
	}
	switch {
	case p.Effect == events.EffectNone:
	case lasts:
		f.all[i].Nodes, f.all[i].Input, f.all[i].Candidate, f.all[i].Live = p.Nodes, p.Input, p.Candidate, p.Live
	default:
		f.open[p.Pool] = len(f.all)
		f.all = append(f.all, ShadowDifference{ID: p.Difference, Pool: p.Pool, Effect: p.Effect, Nodes: p.Nodes, Since: p.Since, Input: p.Input,
			Candidate: p.Candidate, Live: p.Live})
	}
}
