package provisioning

import (
	"context"
	"errors"
	"fmt"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Where a provider names the nodes, a claim begins under the name that decision
// gave it. When a Node object with the machine's provider id turns up, the life
// goes on in a record of the Node's name, so that everybody else (collector,
// draining, decision, people) sees one name, which is Kubernetes':
//
//	claim's record                            Node's record
//	created ─ observed{named as X}
//	  ├─ the provider is told the name
//	  ├─ X gets our labels
//	  └─ observed{claimed as N} on X's key ──► created, as the claim was
//	renamed ◄─ once that record is there        └─ looks at X: registered, ready
//
// The claim's record lives until the other is there: at no time is a node that
// was bought counted by nobody.

// suspectNamed is the kind of a suspicion that is none: a record that was taken
// over catches up with what the API server said before it was there.
const suspectNamed = "named"

// naming reports whether the record waits for the one that takes it over.
func naming(n lifecycle.Node) bool { return n.Naming != nil && n.Phase == lifecycle.Created }

// names looks for the Node objects of machines, in one round of watch.
type names struct {
	h     *Handler
	nodes map[string]map[string]NodeObject // by cluster and provider id
}

func (h *Handler) newNames() *names { return &names{h: h, nodes: map[string]map[string]NodeObject{}} }

// look publishes node.observed when the Node of a machine has turned up.
func (s *names) look(ctx context.Context, r bus.Record[lifecycle.Node], m Machine) error {
	h, n := s.h, r.State
	if m.ProviderID == "" || n.Phase != lifecycle.Created || n.Naming != nil || n.ClaimedAs != "" {
		return nil
	}
	cluster := r.Key.Cluster
	if s.nodes[cluster] == nil {
		nodes, err := h.nodes(cluster)
		if err != nil {
			return err
		}
		err = h.effect(ctx, "list", h.times.Call, func(ctx context.Context) (err error) {
			s.nodes[cluster], err = nodes.ListByProviderID(ctx)
			return err
		})
		if err != nil {
			return fmt.Errorf("look for the Node object of machine %s: %w", n.Name, err)
		}
	}
	object, ok := s.nodes[cluster][m.ProviderID]
	if !ok {
		return nil
	}
	return h.publish(ctx, events.Meta{Cluster: cluster, Node: n.Name, CorrelationID: n.CorrelationID, Time: h.clock.Now(),
		ID: events.ID("named", cluster, n.Name, n.ClaimID, object.UID)},
		events.NodeObserved{Node: n.Name, What: events.ObservedNamed, NamedAs: object.Name, UID: object.UID, ProviderID: m.ProviderID,
			Message: "its Node object has the provider's id " + m.ProviderID, At: h.clock.Now()})
}

// named takes note of a Node on the claim's record, or makes the Node's record.
func (h *Handler) named(ctx context.Context, d bus.Delivery, p events.NodeObserved) error {
	if p.ClaimedAs != "" {
		return h.takeOver(ctx, d, p)
	}
	return h.change(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		n := t.State
		if n.Phase != lifecycle.Created || n.Naming != nil || n.ClaimedAs != "" || p.NamedAs == "" {
			t.Unchanged()
			return nil
		}
		n.Naming = &lifecycle.Naming{Node: p.NamedAs, ProviderID: p.ProviderID}
		n.CausationID = d.Event.ID()
		return nil
	})
}

// takeOver makes the record of a Node from that of its claim.
func (h *Handler) takeOver(ctx context.Context, d bus.Delivery, p events.NodeObserved) error {
	r, ok, err := h.state.Get(ctx, bus.Key{Cluster: d.Key.Cluster, Name: p.ClaimedAs})
	if err != nil {
		return fmt.Errorf("read record of claim %s: %w", p.ClaimedAs, err)
	}
	claim := r.State
	if !ok || !naming(claim) || claim.Naming.Node != p.Node || claim.ClaimID != p.Labels[events.LabelClaim] {
		h.log.WarnContext(ctx, "node not taken over: its claim has ended meanwhile", "node", p.Node, "claimed_as", p.ClaimedAs)
		return nil
	}
	return h.state.Apply(ctx, d, func(t *bus.Turn[lifecycle.Node]) error {
		if n := t.State; n.Phase != "" && !n.Settled() {
			t.Unchanged() // known already, or somebody else's, which the claim's worker sees
			return nil
		}
		n := claim
		n.Name, n.ClaimedAs, n.Naming, n.UID = p.Node, claim.Name, nil, ""
		n.CausationID = d.Event.ID()
		n.Suspicion = &lifecycle.Suspicion{Kind: suspectNamed, Detail: "its claim began as " + claim.Name, At: t.Now}
		*t.State = n
		return nil
	})
}

// handOver hands a claim over to the record of its Node. Each step may be done
// twice.
func (h *Handler) handOver(ctx context.Context, l *lease) error {
	n := l.Record()
	to := bus.Key{Cluster: l.Key().Cluster, Name: n.Naming.Node}
	err := h.markNode(l.Context(), l.Key(), n)
	switch {
	case err == nil:
	case abandoned(l.Context(), err):
		return err
	case errors.Is(err, ErrNameTaken):
		return h.fail(ctx, l, failure{code: ReasonNameTaken, message: err.Error(), cleanUp: true}, naming)
	case h.clock.Now().After(n.Deadline):
		return h.overdue(ctx, l)
	default:
		return h.retryNaming(ctx, l, err)
	}
	taken, ok, err := h.state.Get(ctx, to)
	other := taken.State
	switch {
	case err != nil:
		return h.retryNaming(ctx, l, fmt.Errorf("read record of node %s: %w", to.Name, err))
	case ok && other.ClaimID == n.ClaimID && other.ClaimedAs == n.Name:
		return h.renamed(ctx, l)
	case ok && !other.Settled():
		return h.fail(ctx, l, failure{code: ReasonNameTaken, cleanUp: true,
			message: fmt.Sprintf("the provider named the node %s, which claim %s has", to.Name, other.ClaimID)}, naming)
	case h.clock.Now().After(n.Deadline):
		return h.overdue(ctx, l)
	case n.Naming.Said:
		return h.retryNaming(ctx, l, nil)
	}
	_, err = commit(ctx, l, "named/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		now := t.State
		if !naming(*now) || now.Naming.Node != to.Name {
			return errMoved
		}
		now.Naming.Said, now.Naming.NextAt = true, t.Now.Add(h.times.RetryBase)
		return t.EmitTo(to.Name, events.NodeObserved{Node: to.Name, What: events.ObservedNamed, ProviderID: now.Naming.ProviderID, ClaimedAs: now.Name,
			Labels: map[string]string{events.LabelClaim: now.ClaimID, events.LabelPool: now.Pool}, At: t.Now},
			bus.Correlation(now.CorrelationID), bus.Causation(now.CausationID))
	})
	if err != nil {
		return fmt.Errorf("hand over to node %s: %w", to.Name, err)
	}
	return nil
}

// markNode tells the provider the name of the node, and the Node object whose it is.
func (h *Handler) markNode(ctx context.Context, k bus.Key, n lifecycle.Node) error {
	m, err := h.machines(k.Cluster, n.Pool)
	if err != nil {
		return err
	}
	nodes, err := h.nodes(k.Cluster)
	if err != nil {
		return err
	}
	// The provider first: a Node with our labels that no machine answers for is
	// an orphan.
	err = h.effect(ctx, "name", h.times.Call, func(ctx context.Context) error { return m.Named(ctx, n.Name, n.Naming.Node) })
	if err != nil {
		return fmt.Errorf("tell the provider that machine %s is node %s: %w", n.Name, n.Naming.Node, err)
	}
	err = h.effect(ctx, "claim-node", h.times.Call, func(ctx context.Context) error {
		return nodes.ClaimNode(ctx, NodeClaim{Name: n.Naming.Node, ProviderID: n.Naming.ProviderID, Pool: n.Pool, ClaimID: n.ClaimID, Labels: n.Spec.Labels})
	})
	if err != nil {
		return fmt.Errorf("label node %s as the node of claim %s: %w", n.Naming.Node, n.ClaimID, err)
	}
	return nil
}

// renamed ends the claim's record: the Node's goes on.
func (h *Handler) renamed(ctx context.Context, l *lease) error {
	n := l.Record()
	moved, err := commit(ctx, l, "renamed/"+n.ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		if !naming(*t.State) || t.State.On(lifecycle.OnRenamed, t.Now) != nil {
			return errMoved
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record the new name: %w", err)
	}
	if !moved {
		h.log.InfoContext(ctx, "the provider has named the node of a claim", "claimed_as", n.Name, "node", n.Naming.Node, "pool", n.Pool,
			"claim", n.ClaimID, "correlation_id", n.CorrelationID)
	}
	return nil
}

// retryNaming commits when the hand-over is looked at again; without a cause it
// waits for the other record.
func (h *Handler) retryNaming(ctx context.Context, l *lease, cause error) error {
	n := l.Record()
	try := n.Naming.Attempt + 1
	_, err := commit(ctx, l, fmt.Sprintf("name-retry/%s/%d", n.ClaimID, try), func(t *bus.Turn[lifecycle.Node]) error {
		if !naming(*t.State) {
			return errMoved
		}
		t.State.Naming.Attempt, t.State.Naming.NextAt = try, t.Now.Add(h.backoff(n.Name, try))
		return nil
	})
	if err != nil {
		return errors.Join(cause, fmt.Errorf("record next attempt: %w", err))
	}
	if cause != nil {
		return fmt.Errorf("attempt %d: %w", try, cause)
	}
	return nil
}

// catchUp brings a record that was taken over up to what the API server says now.
// What it says later finds the record.
func (h *Handler) catchUp(ctx context.Context, l *lease, w world) error {
	var after func()
	_, err := commit(ctx, l, "caught-up/"+l.Record().ClaimID, func(t *bus.Turn[lifecycle.Node]) error {
		after = nil
		n := t.State
		if n.Suspicion == nil || n.Suspicion.Kind != suspectNamed {
			return errMoved
		}
		n.Suspicion = nil
		if n.Phase == lifecycle.Created {
			if err := registerNode(t, w.node.UID); err != nil {
				return err
			}
		}
		if !w.node.Ready || n.Phase != lifecycle.Registered {
			return nil
		}
		var err error
		after, err = h.readyNode(t)
		return err
	})
	if err != nil {
		return fmt.Errorf("record what the API server says of node %s: %w", l.Record().Name, err)
	}
	if after != nil {
		after()
	}
	return nil
}
