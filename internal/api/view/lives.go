package view

import (
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// position is where the life of a node of ours is, by the records as they are now;
// the snapshot's word counts where they can't be read.
func (v *View) position(n *api.Node) *api.Position {
	p, ok := v.o.Lives.Position(n.Cluster, n.Name)
	switch {
	case ok && p.Phase != "":
		out := &api.Position{Phase: p.Phase, Since: p.Since, Until: p.Until, Next: p.Next}
		if r := p.Retry; r != nil {
			out.Retry = &api.Retry{Of: r.Of, Attempt: r.Attempt, Error: r.Error, NextAt: r.NextAt}
		}
		return out
	case n.Phase != "":
		return &api.Position{Phase: n.Phase, Since: n.Since, Until: n.Deadline}
	}
	return nil
}
