package scaling

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// topology is an index of who is where, by topology key and value, kept up to
// date as the simulation puts pods on nodes: to ask whether a pod may go on a
// node costs a look-up for each constraint, however many pods and nodes there
// are. Nodes that leave, with their pods, are not in it.
type topology struct {
	namespaces map[string]labels.Set // nil: unknown
	identities map[string]*identity
	order      []*identity // as they were met
	tallies    map[string]*tally
	spreads    map[string]*spread
	spreadList []*spread
	keys       []*topologyKey
	classes    int         // how many were compiled
	spreading  []*PodClass // those of them that are spread
}

// topologyKey numbers the domains of a key, so that a question is answered by a
// look into an array: there are as many questions as pods times nodes.
type topologyKey struct {
	name   string
	number int            // of the key
	values map[string]int // numbers of its domains
}

// noDomain is the number of a domain for nodes without the key.
const noDomain = -1

func (t *topology) key(name string) *topologyKey {
	for _, k := range t.keys {
		if k.name == name {
			return k
		}
	}
	k := &topologyKey{name: name, number: len(t.keys), values: map[string]int{}}
	t.keys = append(t.keys, k)
	return k
}

// locate finds the domains of a node.
func (t *topology) locate(n *simNode) {
	n.domains = make([]int, len(t.keys))
	for i, k := range t.keys {
		v, ok := n.labels[k.name]
		if !ok {
			n.domains[i] = noDomain
			continue
		}
		number, known := k.values[v]
		if !known {
			number = len(k.values)
			k.values[v] = number
		}
		n.domains[i] = number
	}
}

// crowded reports whether most of the domains that are numbered are no more.
func (t *topology) crowded(nodes int) bool {
	return slices.ContainsFunc(t.keys, func(k *topologyKey) bool { return len(k.values) > 4*nodes+4*maxClaims })
}

// atLeast is the slice with at least so many elements, further ones zero.
func atLeast[T any](in []T, n int) []T {
	if n <= len(in) {
		return in
	}
	out := slices.Grow(in, n-len(in))[:n]
	clear(out[len(in):])
	return out
}

// tally counts, by domain of a topology key, the pods that a selector selects,
// or for an anti-affinity those that hold it.
type tally struct {
	*topologyKey
	pods    podSelector
	holders bool
	at      []int // by number of the domain
	total   int
}

func (c *tally) count(n *simNode, by int) {
	if d := n.domains[c.number]; d != noDomain {
		c.at = atLeast(c.at, d+1)
		c.at[d] += by
		c.total += by
	}
}

// here reports whether there is one in the node's domain. A node without the
// key is in no domain.
func (c *tally) here(n *simNode) bool {
	d := n.domains[c.number]
	return d != noDomain && d < len(c.at) && c.at[d] > 0
}

func newTopology(classes []*PodClass, namespaces map[string]labels.Set) *topology {
	t := &topology{namespaces: namespaces, identities: map[string]*identity{},
		tallies: map[string]*tally{}, spreads: map[string]*spread{}}
	for _, c := range classes {
		t.compile(c)
	}
	t.acquaint()
	return t
}

func (t *topology) tally(name, key string, pods podSelector, holders bool) *tally {
	if c, ok := t.tallies[name]; ok {
		return c
	}
	c := &tally{topologyKey: t.key(key), pods: pods, holders: holders}
	t.tallies[name] = c
	return c
}

// bucket is where a selector is looked for: by the namespace and a label that a
// pod must have for it. What is not known of a selector is empty.
type bucket struct{ namespace, key, value string }

// acquaint finds out which selectors select which identities. Most selectors
// name one namespace and a label, so that few have to be tried for each.
func (t *topology) acquaint() {
	tallies, spreads := map[bucket][]*tally{}, map[bucket][]*spread{}
	for _, name := range sortedKeys(t.tallies) {
		b := t.tallies[name].pods.bucket()
		tallies[b] = append(tallies[b], t.tallies[name])
	}
	for _, s := range t.spreadList {
		spreads[s.pods.bucket()] = append(spreads[s.pods.bucket()], s)
	}
	for _, who := range t.order {
		try := func(b bucket) {
			for _, c := range tallies[b] {
				switch {
				case !c.pods.selects(t, who.namespace, who.labels):
				case c.holders:
					who.repelled = append(who.repelled, c)
				default:
					who.counted = append(who.counted, c)
				}
			}
			for _, s := range spreads[b] {
				if s.pods.selects(t, who.namespace, who.labels) {
					who.spreads = append(who.spreads, s)
				}
			}
		}
		for _, namespace := range []string{who.namespace, ""} {
			try(bucket{namespace: namespace})
			for _, k := range sortedKeys(who.labels) {
				try(bucket{namespace, k, who.labels[k]})
			}
		}
	}
}

func (s podSelector) bucket() bucket {
	if len(s) == 0 {
		return bucket{}
	}
	b := bucket{namespace: s[0].own}
	requirements, _ := s[0].pods.Requirements()
	for _, r := range requirements {
		if values := r.ValuesUnsorted(); len(values) == 1 && requiresValue(r) {
			b.key, b.value = r.Key(), values[0]
			return b
		}
	}
	return b
}

// count notes that a pod of the class is on the node (by = 1) or no longer is
// (-1). Pods that are being deleted still repel and attract, but are not
// counted for spreading, as in the PodTopologySpread plugin.
func (t *topology) count(c *PodClass, n *simNode, by int, deleting bool) {
	r := c.rules
	for _, counter := range r.who.counted {
		counter.count(n, by)
	}
	for _, counter := range r.holds {
		counter.count(n, by)
	}
	if deleting {
		return
	}
	for _, s := range r.who.spreads {
		s.count(n, by)
	}
}

// attach puts a node with all that is on it into the index, and detach takes
// it out; what is in or out already stays so.
func (w *world) attach(n *simNode) {
	if n.attached {
		return
	}
	n.attached = true
	if n.domains == nil {
		w.topology.locate(n)
	}
	n.counts = atLeast(n.counts, len(w.topology.spreadList))
	for _, s := range w.topology.spreadList {
		s.enter(w, n)
	}
	w.countAll(n, 1)
}

func (w *world) detach(n *simNode) {
	if !n.attached {
		return
	}
	w.countAll(n, -1)
	for _, s := range w.topology.spreadList {
		s.leave(n)
	}
	n.attached = false
}

func (w *world) countAll(n *simNode, by int) {
	if len(w.topology.tallies)+len(w.topology.spreads) == 0 {
		return // nobody asks
	}
	for _, h := range n.census {
		if !n.pushed || !w.expendable(h.class) {
			w.topology.count(h.class, n, by*h.staying, false)
			w.topology.count(h.class, n, by*h.deleting, true)
		}
	}
	for _, p := range n.coming {
		if c, ok := w.classes[p.Class]; ok && (!n.pushed || !w.expendable(c)) {
			w.topology.count(c, n, by, p.Deleting)
		}
	}
	for _, d := range n.daemons {
		if !n.pushed || !w.expendable(d.class) {
			w.topology.count(d.class, n, by, false)
		}
	}
	for _, c := range n.trial {
		w.topology.count(c, n, by, false)
	}
}

// headcount is how many pods of a class are on a node.
type headcount struct {
	class             *PodClass
	staying, deleting int
}

// census counts those of the pods that somebody asks about.
func (w *world) census(bound, nominated []*Pod) []headcount {
	var out []headcount
	for _, pods := range [][]*Pod{bound, nominated} {
		for _, p := range pods {
			c, ok := w.classes[p.Class]
			if !ok || !c.rules.asked() {
				continue
			}
			i := slices.IndexFunc(out, func(h headcount) bool { return h.class == c })
			if i < 0 {
				i, out = len(out), append(out, headcount{class: c})
			}
			if p.Deleting {
				out[i].deleting++
			} else {
				out[i].staying++
			}
		}
	}
	return out
}

// asked reports whether anybody asks where pods of the class are.
func (r *classRules) asked() bool { return len(r.who.counted)+len(r.who.spreads)+len(r.holds) > 0 }

// reset forgets all pods and nodes.
func (t *topology) reset() {
	for _, c := range t.tallies {
		clear(c.at)
		c.total = 0
	}
	for _, s := range t.spreadList {
		clear(s.domains)
		clear(s.levels)
		s.live, s.lowest, s.promised = 0, 0, nil
	}
}
