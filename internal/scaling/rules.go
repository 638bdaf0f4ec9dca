package scaling

import (
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// classRules are the constraints of a class, parsed once an evaluation.
type classRules struct {
	topology *topology
	number   int                                // of the class in it
	node     *nodeaffinity.RequiredNodeAffinity // nil: none
	volumes  []volumeRule
	names    bool // its node constraints may name single nodes
	who      *identity
	holds    []*tally // where its own anti-affinity keeps others away
	anti     []*tally // whom it keeps away from
	affinity []*tally // whom it goes to, one for each topology key
	selfish  bool     // meets its own affinity
	spread   []spreadRule
}

type volumeRule struct {
	kind  string
	nodes *nodeaffinity.NodeSelector
	err   error
}

type spreadRule struct {
	*spread
	maxSkew, minDomains, self int
}

// monotone reports whether a pod more anywhere can only make fewer nodes fit:
// then a node that did not take a pod of the class need not be asked again.
func (r *classRules) monotone() bool { return len(r.affinity)+len(r.spread) == 0 }

// identity is what other pods select a pod by. Classes share it.
type identity struct {
	namespace string
	labels    labels.Set
	counted   []*tally  // those that count it
	repelled  []*tally  // the anti-affinities of others that keep it away
	spreads   []*spread // those that count it
}

// podSelector selects pods: by each of its terms.
type podSelector []termSelector

type termSelector struct {
	own        string // one namespace, or ""
	namespaces map[string]bool
	byLabels   labels.Selector // of namespaces
	pods       labels.Selector
}

func (s podSelector) selects(t *topology, namespace string, set labels.Set) bool {
	for _, term := range s {
		if !term.inNamespace(t, namespace) || !term.pods.Matches(set) {
			return false
		}
	}
	return len(s) > 0
}

func (s termSelector) inNamespace(t *topology, namespace string) bool {
	switch {
	case s.own != "":
		return s.own == namespace
	case s.namespaces[namespace]:
		return true
	case s.byLabels == nil:
		return false
	case t.namespaces == nil: // unknown: what is not understood protects
		return true
	}
	return s.byLabels.Matches(t.namespaces[namespace])
}

// selectorOf parses a selector; one that can't be read selects nothing, and
// the API server does not let it in.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}

func parseTerm(c *PodClass, term PodTerm) termSelector {
	out := termSelector{pods: selectorOf(term.Selector)}
	if len(term.Namespaces) == 0 && term.NamespaceSelector == nil {
		out.own = c.Namespace
		return out
	}
	out.namespaces = map[string]bool{}
	for _, n := range term.Namespaces {
		out.namespaces[n] = true
	}
	if term.NamespaceSelector != nil {
		out.byLabels = selectorOf(term.NamespaceSelector)
	}
	return out
}

// compile parses the constraints of a class and enters it into the index.
func (t *topology) compile(c *PodClass) {
	r := &classRules{topology: t, number: t.classes, who: t.identify(c), names: namesNodes(c)}
	t.classes++
	c.rules = r
	if len(c.NodeAffinity) > 0 {
		a := nodeaffinity.NewRequiredNodeAffinity(nil, &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: c.NodeAffinity}}})
		r.node = &a
	}
	for _, v := range c.Volumes {
		sel, err := nodeaffinity.NewNodeSelector(&corev1.NodeSelector{NodeSelectorTerms: v.Terms})
		r.volumes = append(r.volumes, volumeRule{kind: v.Kind, nodes: sel, err: err})
	}
	for _, term := range c.PodAntiAffinity {
		sel := podSelector{parseTerm(c, term)}
		key := t.intern(c, term)
		r.holds = append(r.holds, t.tally("holds"+key, term.TopologyKey, sel, true))
		r.anti = append(r.anti, t.tally("counts"+key, term.TopologyKey, sel, false))
	}
	if len(c.PodAffinity) > 0 {
		// Those that meet all of the terms count, as in the InterPodAffinity plugin.
		var all podSelector
		var keys []string
		for _, term := range c.PodAffinity {
			all = append(all, parseTerm(c, term))
			keys = append(keys, term.TopologyKey)
		}
		key := t.intern(c, c.PodAffinity...)
		slices.Sort(keys)
		for _, k := range slices.Compact(keys) {
			r.affinity = append(r.affinity, t.tally("counts"+key+"\x00"+k, k, all, false))
		}
		r.selfish = all.selects(t, c.Namespace, r.who.labels)
	}
	t.compileSpread(c, r)
}

func (t *topology) compileSpread(c *PodClass, r *classRules) {
	if len(c.Spread) == 0 {
		return
	}
	t.spreading = append(t.spreading, c)
	var keys []string
	for _, s := range c.Spread {
		keys = append(keys, s.TopologyKey)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for _, s := range c.Spread {
		own := spreadKey{Namespace: c.Namespace, Key: s.TopologyKey, Keys: keys, Selector: s.Selector, HonorTaints: s.HonorTaints,
			IgnoreNodeAffinity: s.IgnoreNodeAffinity}
		if !s.IgnoreNodeAffinity {
			own.NodeSelector, own.NodeAffinity = c.NodeSelector, c.NodeAffinity
		}
		if s.HonorTaints {
			own.Tolerations = c.Tolerations
		}
		sp := t.spreadOf(own, c, s)
		rule := spreadRule{spread: sp, maxSkew: int(s.MaxSkew), minDomains: int(max(s.MinDomains, 1))}
		if sp.pods.selects(t, c.Namespace, r.who.labels) {
			rule.self = 1
		}
		r.spread = append(r.spread, rule)
	}
}

// namesNodes reports whether the node constraints of a class could tell nodes
// of one template apart.
func namesNodes(c *PodClass) bool {
	if _, ok := c.NodeSelector[corev1.LabelHostname]; ok {
		return true
	}
	named := func(terms []corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(terms, func(t corev1.NodeSelectorTerm) bool {
			return len(t.MatchFields) > 0 || slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool {
				return r.Key == corev1.LabelHostname
			})
		})
	}
	return named(c.NodeAffinity) || slices.ContainsFunc(c.Volumes, func(v VolumeTopology) bool { return named(v.Terms) })
}

// intern names the terms so that equal ones of several classes share a tally.
// What has no namespace of its own means that of the class.
func (t *topology) intern(c *PodClass, terms ...PodTerm) string {
	own := ""
	if slices.ContainsFunc(terms, func(t PodTerm) bool { return len(t.Namespaces) == 0 && t.NamespaceSelector == nil }) {
		own = c.Namespace
	}
	return fingerprint(struct {
		Own   string
		Terms []PodTerm
	}{own, terms})
}

// fingerprint is a text that is the same for equal values: maps are written in
// the order of their keys.
func fingerprint(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // of plain data: can't be
		panic(err)
	}
	return string(b)
}

func (t *topology) identify(c *PodClass) *identity {
	key := fingerprint(struct {
		Namespace string
		Labels    map[string]string
	}{c.Namespace, c.Labels})
	if who, ok := t.identities[key]; ok {
		return who
	}
	who := &identity{namespace: c.Namespace, labels: labels.Set(maps.Clone(c.Labels))}
	t.identities[key] = who
	t.order = append(t.order, who)
	return who
}
