package scaling

import corev1 "k8s.io/api/core/v1"

// memo is what was found out about a node by its labels and taints alone, so that it
// is found out once as long as these and the classes stay as they are. Nodes of one
// template share one; that of a node that is there is kept from one evaluation to the
// next.
type memo struct {
	places []answer // by number of the class: whether the node is placeable
	spread []answer // by index of the spread: whether pods are spread over the node
}

type answer uint8

const (
	unasked answer = iota
	yes
	no
)

// recall is the answer, which ask is called for once.
func recall(in *[]answer, i, all int, ask func() bool) bool {
	*in = atLeast(*in, all)
	a := &(*in)[i]
	if *a == unasked {
		*a = no
		if ask() {
			*a = yes
		}
	}
	return *a == yes
}

// memoOf is where answers about the node for pods of the class are kept, nil: nowhere.
func (n *simNode) memoOf(c *PodClass) *memo {
	switch {
	case n.template == nil:
		return n.memo
	case c.rules.names: // its nodes may differ
		return nil
	}
	return n.template.memo
}

// setTaints has the node carry other taints than those that its memo is about.
func (n *simNode) setTaints(taints []corev1.Taint) { n.taints, n.memo = taints, nil }

// allowed is whether the node is placeable, remembered.
func (w *world) allowed(c *PodClass, n *simNode) bool {
	m := n.memoOf(c)
	if m == nil {
		return w.placeable(c, n) == nil
	}
	return recall(&m.places, c.rules.number, c.rules.topology.classes, func() bool { return w.placeable(c, n) == nil })
}
