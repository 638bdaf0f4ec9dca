package view

import (
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// position is where the life of a node of ours is, by the records as they are now;
// the snapshot's word counts where they can't be read. What ends the state of a node
// by a decision is decision's to say.
func (v *View) position(n *api.Node, m Memory) *api.Position {
	var out *api.Position
	switch p, ok := v.o.Lives.Position(n.Cluster, n.Name); {
	case ok && p.Phase != "":
		out = &api.Position{Phase: p.Phase, Since: p.Since, Until: p.Until, Next: p.Next}
		if r := p.Retry; r != nil {
			out.Retry = &api.Retry{Of: r.Of, Attempt: r.Attempt, Error: r.Error, NextAt: r.NextAt}
		}
	case n.Phase != "":
		out = &api.Position{Phase: n.Phase, Since: n.Since, Until: n.Deadline}
	default:
		return nil
	}
	if i := slices.IndexFunc(m.Rules.Pools, func(p scaling.Pool) bool { return p.Name == n.Pool }); i >= 0 && out.Phase == string(lifecycle.Unready) {
		out.Until = m.Rules.Pools[i].RepairsAt(m.Core.Unready[n.Name])
	}
	return out
}
