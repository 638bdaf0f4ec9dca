package scaling

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// siblings are the Ready nodes of ours in a pool: a new node will be like them. What
// they have in common is counted as nodes come and go, so that a template costs no
// look at each of them.
type siblings struct {
	nodes  int
	labels map[labelPair]int // how many carry it
	taints map[taintTriple]int
	newest *nodeEntry // the one that became Ready last, the first by name of several; nil: not known
}

type labelPair struct{ key, value string }

type taintTriple struct {
	key, value string
	effect     corev1.TaintEffect
}

// join counts a node among its siblings, if it is one, and leave takes it back.
func (x *Index) join(e *nodeEntry) {
	n := &e.sum
	if !n.owned || !n.node.Ready {
		return
	}
	s := x.siblings[n.pool]
	if s == nil {
		s = &siblings{labels: map[labelPair]int{}, taints: map[taintTriple]int{}}
		x.siblings[n.pool] = s
	}
	e.among = s
	s.count(n, 1)
	if s.newest != nil && e.newer(s.newest) {
		s.newest = e
	}
}

func (e *nodeEntry) leave() {
	s := e.among
	if s == nil {
		return
	}
	e.among = nil
	s.count(&e.sum, -1)
	if s.newest == e {
		s.newest = nil
	}
}

// newer reports whether the node became Ready later, or comes first of two that did
// so together.
func (e *nodeEntry) newer(o *nodeEntry) bool {
	if c := e.sum.readyAt().Compare(o.sum.readyAt()); c != 0 {
		return c > 0
	}
	return e.name < o.name
}

func (s *siblings) count(n *simNode, by int) {
	s.nodes += by
	for k, v := range n.labels {
		// Those that name their node are its own.
		if k != corev1.LabelHostname && k != LabelClaim && v != n.name {
			note(s.labels, labelPair{k, v}, by)
		}
	}
	for i, t := range n.taints {
		if !slices.ContainsFunc(n.taints[:i], func(o corev1.Taint) bool { return o.MatchTaint(&t) && o.Value == t.Value }) {
			note(s.taints, taintTriple{t.Key, t.Value, t.Effect}, by)
		}
	}
}

func note[K comparable](in map[K]int, k K, by int) {
	if in[k] += by; in[k] == 0 {
		delete(in, k)
	}
}

// model is the node of the pool that became Ready last, and its siblings; nil: there
// is none.
func (x *Index) model(pool string) (*simNode, *siblings) {
	s := x.siblings[pool]
	if s == nil || s.nodes == 0 {
		return nil, nil
	}
	if s.newest == nil {
		for _, e := range x.order {
			if e.among == s && (s.newest == nil || e.newer(s.newest)) {
				s.newest = e
			}
		}
	}
	return &s.newest.sum, s
}

// agreedLabels are the labels that all of them have: whoever makes the nodes sets
// them, whether the policy says so or not.
func (s *siblings) agreedLabels(of *simNode) map[string]string {
	out := maps.Clone(of.labels)
	maps.DeleteFunc(out, func(k, v string) bool { return s.labels[labelPair{k, v}] < s.nodes })
	return out
}

// withAgreedTaints adds the taints that all of them have: a new one will have them,
// too. What Kubernetes itself taints a node with comes and goes.
func (s *siblings) withAgreedTaints(taints []corev1.Taint, of *simNode) []corev1.Taint {
	out := slices.Clone(taints)
	for _, t := range of.taints {
		known := slices.ContainsFunc(out, func(o corev1.Taint) bool { return o.MatchTaint(&t) && o.Value == t.Value })
		if s.taints[taintTriple{t.Key, t.Value, t.Effect}] == s.nodes && !known && !strings.HasPrefix(t.Key, "node.kubernetes.io/") && t.Key != taintUninitialized {
			out = append(out, t)
		}
	}
	return out
}
