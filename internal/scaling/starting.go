package scaling

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// startupPrefixes are those of the keys of taints that a node of any pool
// carries until something on it is ready (a network plugin, a driver), as the
// cluster autoscaler names them. No new node is judged by them.
var startupPrefixes = []string{"startup-taint.cluster-autoscaler.kubernetes.io/", "ignore-taint.cluster-autoscaler.kubernetes.io/"}

// startupLimit is how long after it became Ready a node may carry a startup
// taint before it counts as one that takes no pods: the cluster autoscaler's
// default of max-node-startup-time.
const startupLimit = 15 * time.Minute

// splitStartup tells startup taints from the others; pool are those that the
// policy of the node's pool names.
func splitStartup(ts, pool []corev1.Taint) (startup, rest []corev1.Taint) {
	for _, t := range ts {
		prefixed := slices.ContainsFunc(startupPrefixes, func(prefix string) bool { return strings.HasPrefix(t.Key, prefix) })
		if prefixed || slices.ContainsFunc(pool, func(o corev1.Taint) bool { return o.MatchTaint(&t) }) {
			startup = append(startup, t)
		} else {
			rest = append(rest, t)
		}
	}
	return startup, rest
}

// startsUntil is when a node that carries startup taints stops counting as one
// that takes pods soon.
func (n *simNode) startsUntil() time.Time {
	since := n.node.ReadySince
	if since.IsZero() {
		since = n.node.CreatedAt
	}
	return since.Add(startupLimit)
}

// starting gives a Ready node with startup taints its kind: it takes pods soon,
// or, when it has been waiting for too long, none that don't tolerate them.
func (e *evaluation) starting(n *simNode) {
	if n.kind != kindReady || len(n.startup) == 0 {
		return
	}
	if n.startsUntil().After(e.now) {
		n.kind = kindStarting
		return
	}
	n.setTaints(slices.Concat(n.taints, n.startup))
}

// soon are the kinds of node that take pods, or will without a new decision.
var soon = []kind{kindReady, kindStarting, kindRestoring, kindInFlight}
