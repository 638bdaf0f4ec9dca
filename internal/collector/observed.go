package collector

import (
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// nodeWatcher turns what the API server says of our nodes into node.observed.
// Ids derive from the node's uid, what happened and when, so that the present
// state, told again after a restart, is recognised as known.
type nodeWatcher struct {
	cluster string
	seen    map[string]seenNode // by name
}

// seenNode is what was last told of a node.
type seenNode struct {
	uid    string
	labels map[string]string // our own
	what   string            // ready, unready or empty
	since  time.Time
	// flips counts the changes within one second, the precision of Kubernetes'
	// times: without it the third of ready, unready, ready would have the first's id.
	flips int
}

// observation is a fact with the id of its event.
type observation struct {
	id   string
	fact events.NodeObserved
}

// set returns what is new about a node.
func (w *nodeWatcher) set(n *corev1.Node) []observation {
	s, known := w.seen[n.Name]
	if !kube.Ours(n, w.cluster) {
		// The claim label was taken off: the node is a person's now.
		delete(w.seen, n.Name)
		return nil
	}
	var out []observation
	if known && s.uid != string(n.UID) {
		// Deleted and registered again while nobody watched.
		out = append(out, w.deleted(n.Name, s, n.CreationTimestamp.UTC()))
		known = false
	}
	if !known {
		s = seenNode{uid: string(n.UID)}
		fact := events.NodeObserved{Node: n.Name, What: events.ObservedRegistered, UID: s.uid, Labels: ourLabels(n.Labels), At: n.CreationTimestamp.UTC()}
		out = append(out, observation{id: w.id(s.uid, fact.What), fact: fact})
	}
	s.labels = ourLabels(n.Labels)
	if c := readyCondition(n); c != nil {
		what := events.ObservedUnready
		if c.Status == corev1.ConditionTrue {
			what = events.ObservedReady
		}
		at := c.LastTransitionTime.UTC()
		switch {
		case what == s.what && at.Equal(s.since):
		case at.Equal(s.since):
			s.flips++
			fallthrough
		default:
			if !at.Equal(s.since) {
				s.flips = 0
			}
			s.what, s.since = what, at
			fact := events.NodeObserved{Node: n.Name, What: what, UID: s.uid, Labels: s.labels, At: at}
			if what == events.ObservedUnready {
				fact.Reason, fact.Message = c.Reason, text(c.Message)
			}
			id := w.id(s.uid, what, string(c.Status), at.Format(time.RFC3339))
			if s.flips > 0 {
				id = w.id(s.uid, what, string(c.Status), at.Format(time.RFC3339), fmt.Sprint(s.flips))
			}
			out = append(out, observation{id: id, fact: fact})
		}
	}
	w.seen[n.Name] = s
	return out
}

// gone returns the end of a node that was ours.
func (w *nodeWatcher) gone(name string, at time.Time) []observation {
	s, known := w.seen[name]
	if !known {
		return nil
	}
	delete(w.seen, name)
	return []observation{w.deleted(name, s, at.UTC())}
}

func (w *nodeWatcher) deleted(name string, s seenNode, at time.Time) observation {
	return observation{id: w.id(s.uid, events.ObservedDeleted),
		fact: events.NodeObserved{Node: name, What: events.ObservedDeleted, UID: s.uid, Labels: s.labels, At: at}}
}

func (w *nodeWatcher) id(parts ...string) string {
	return events.ID(append([]string{"observed", w.cluster}, parts...)...)
}

func ourLabels(all map[string]string) map[string]string {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(k, _ string) bool {
		return k != events.LabelCluster && k != events.LabelPool && k != events.LabelClaim
	})
	return out
}

// observe queues observations for the loop. c.mu is held.
func (c *Collector) observe(os []observation) {
	for _, o := range os {
		at := o.fact.At
		if at.IsZero() {
			at = c.o.Clock.Now().UTC()
			o.fact.At = at
		}
		e, err := events.New(events.Meta{
			Cluster: c.o.Cluster, Node: o.fact.Node, Publisher: Role, ID: o.id, Time: at,
			CorrelationID: c.model.records[o.fact.Node].CorrelationID,
		}, o.fact)
		if err != nil {
			c.log.Error("observation of a node is not published", "node", o.fact.Node, "what", o.fact.What, "err", err)
			continue
		}
		c.observed = append(c.observed, e)
		c.nudge()
	}
}
