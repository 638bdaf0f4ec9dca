package scaling

import (
	"fmt"
	"maps"
	"slices"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// pack adds new nodes for the groups, which are unschedulable and in the order
// of first-fit-decreasing, pool by pool, and says what becomes of the rest.
func (e *evaluation) pack(groups []*group, inFlight, undecided int) {
	asked := 0
	served := map[string]int{}
	all := map[string][]*Pod{}
	for _, g := range groups {
		asked += len(g.pods)
		all[g.class.ID] = slices.Clone(g.pods)
	}
	holds := map[string]*Guard{}
	for _, p := range e.pools {
		if p.known {
			holds[p.Name] = e.upGuard(p, false)
		}
	}
	rejected := map[*poolRun]Alternative{}
	for {
		var options []option
		for _, p := range e.pools {
			if p.known && holds[p.Name] == nil {
				if o := e.estimate(p, groups); o.pods > 0 {
					options = append(options, o)
				}
			}
		}
		if len(options) == 0 {
			break
		}
		first := slices.IndexFunc(groups, func(g *group) bool { return len(g.pods) > 0 })
		choice := e.policy.choice(groups[first].class.ID)
		best := slices.MinFunc(options, choice.compare)
		for _, o := range options {
			if _, known := rejected[o.pool]; !known && o.pool != best.pool {
				rejected[o.pool] = choice.why(best, o)
			}
		}
		if !e.build(best.pool, groups, choice.share(best, options), served) {
			break
		}
		e.settle(groups)
	}
	for p, a := range rejected {
		if served[p.Name] == 0 { // the others had their turn
			p.rejected = append(p.rejected, a)
		}
	}
	e.explainPods(groups, all, holds, served, asked, inFlight, undecided)
}

// estimate packs what is left onto nodes of one pool without deciding anything.
func (e *evaluation) estimate(p *poolRun, groups []*group) option {
	o := option{pool: p}
	var nodes []*simNode
	var used Resources
	taken := map[*tally]int{}
	was := e.world.topology.promises()
	defer e.world.topology.restorePromises(was)
	for _, g := range groups {
		left := len(g.pods)
		put := func(on []*simNode) int {
			n := e.world.distribute(g.class, on, left, func(n *simNode) { n.trial = append(n.trial, g.class) })
			left -= n
			o.pods += n
			used.CPUMilli += int64(n) * g.class.Requests.CPUMilli
			used.MemoryBytes += int64(n) * g.class.Requests.MemoryBytes
			return n
		}
		put(nodes[g.class.rules.keptOff(nodes, taken):])
		for left > 0 && len(nodes) < p.slots() && e.onTemplate(p, g.class) == nil {
			n := p.trial(len(nodes))
			if e.upsets(p, g.class, n) {
				break
			}
			e.world.attach(n)
			if put([]*simNode{n}) == 0 {
				e.world.detach(n)
				break
			}
			nodes = append(nodes, n)
			if !g.class.rules.monotone() {
				put(nodes)
			}
		}
	}
	for _, n := range nodes {
		e.world.detach(n)
	}
	o.nodes = len(nodes)
	if o.nodes > 0 {
		count := int64(o.nodes)
		cpu := permille(used.CPUMilli, p.template.alloc.CPUMilli*count)
		memory := permille(used.MemoryBytes, p.template.alloc.MemoryBytes*count)
		o.waste = max(1000-(cpu+memory)/2, 0)
	}
	return o
}

// build claims the nodes that estimate has counted, at most limit, and reports
// whether any pod found a place there.
func (e *evaluation) build(p *poolRun, groups []*group, limit int, served map[string]int) bool {
	var mine []*simNode
	placedAny := false
	put := func(g *group, n *simNode) {
		before := g.pods
		e.fill([]*group{g}, []*simNode{n})
		placed := before[:len(before)-len(g.pods)]
		if len(placed) == 0 {
			return
		}
		placedAny = true
		served[p.Name] += len(placed)
		p.trigger(oldest(placed))
		for _, pod := range placed {
			if len(p.pods) < maxNamed {
				p.pods = append(p.pods, pod.Ref())
			}
		}
	}
	taken := map[*tally]int{}
	for _, g := range groups {
		for _, n := range mine[g.class.rules.keptOff(mine, taken):] {
			if len(g.pods) == 0 {
				break
			}
			put(g, n)
		}
		for len(g.pods) > 0 && len(mine) < limit && p.slots() > 0 && e.newNode(p, g.class) == nil {
			n := e.claim(p, CausePods, Reason{CodeUnschedulablePods, "pods fit on no node that exists or is on its way"})
			mine = append(mine, n)
			put(g, n)
			if !g.class.rules.monotone() {
				for _, n := range mine {
					put(g, n)
				}
			}
		}
	}
	return placedAny
}

// keptOff is how many of the first nodes hold a pod that the class keeps away from. Of
// classes that keep away from the same pods each would ask all of them, so how far they
// are taken is noted; pods only come, to the nodes and to the list.
func (r *classRules) keptOff(nodes []*simNode, taken map[*tally]int) int {
	most := 0
	for _, t := range r.anti {
		i := taken[t]
		for i < len(nodes) && len(nodes[i].lowly) == 0 && t.here(nodes[i]) {
			i++
		}
		taken[t], most = i, max(most, i)
	}
	return most
}

// explainPods writes the rule of unschedulable pods for every pool, and what
// would have to change for the pods that stay without a node.
func (e *evaluation) explainPods(groups []*group, all map[string][]*Pod, holds map[string]*Guard, served map[string]int, asked, inFlight, undecided int) {
	classes := make([]*PodClass, len(groups))
	for i, g := range groups {
		classes[i] = g.class
	}
	for _, p := range e.pools {
		if !p.known {
			continue
		}
		rule := Rule{Rule: RuleUnschedulable, Kind: RuleUnschedulable, Value: count(asked, "pod"), Threshold: "1 pod", Verdict: None}
		if n := served[p.Name]; n > 0 {
			rule.Verdict = Up
			rule.Message = agree(n, "pod fits", "pods fit") + " on new nodes of this pool"
		}
		misfits := e.newNodes(p, classes)
		if n := wanted(groups, misfits); n > 0 { // a guard or max keeps the nodes away, not the rule
			rule.Verdict = Up
			rule.Message = join(rule.Message, agree(n, "pod would fit", "pods would fit")+" on more nodes of this pool")
		}
		if inFlight > 0 {
			rule.Message = join(rule.Message, agree(inFlight, "pod waits", "pods wait")+" for nodes that are on their way")
		}
		if undecided > 0 {
			rule.Message = join(rule.Message, agree(undecided, "pod fits", "pods fit")+" nowhere, but the scheduler has not refused them yet")
		}
		for _, c := range e.claims {
			if c.Pool == p.Name && c.Cause == CausePods {
				rule.Delta++
			}
		}
		if _, known := e.obs.Freshness[KindPod]; known { // or waiting has said that they are not
			p.rules = append(p.rules, rule)
		}
		if inFlight > 0 && p.inFlight > 0 {
			p.hold(CodeClaimsInFlight, fmt.Sprintf("%s for nodes that are on their way, %d of them in this pool", agree(inFlight, "pod waits", "pods wait"), p.inFlight))
		}
		for i, g := range groups {
			e.explainGroup(p, g, all[g.class.ID], holds[p.Name], misfits[i])
		}
	}
}

// wanted counts the pods without a node that would fit on a new one: of each group
// the misfit is nil then.
func wanted(groups []*group, misfits []*misfit) int {
	n := 0
	for i, g := range groups {
		if misfits[i] == nil {
			n += len(g.pods)
		}
	}
	return n
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// explainGroup says what the pool could not do for the pods of a class, or
// need not; why a new node would not take one is misfit, or nil.
func (e *evaluation) explainGroup(p *poolRun, g *group, all []*Pod, held *Guard, misfit *misfit) {
	m := e.onTemplate(p, g.class)
	if m == nil && len(g.pods) > 0 {
		if m = misfit; m != nil {
			all = g.pods // the others, if any, have found a place
		}
	}
	switch {
	case m != nil && len(g.pods) < len(all): // another pool serves them
		return
	case m != nil:
		p.hold(CodeNoPoolFits, fmt.Sprintf("pod %s %s", all[0].Ref(), m.message))
		e.rejectPods(all, *m, []*poolRun{p})
		p.would = append(p.would, m.fix)
	case len(g.pods) == 0:
	case held != nil:
		p.proposed = true
		p.held(held, Reason{CodeUnschedulablePods, fmt.Sprintf("%s like %s would fit on a new node", count(len(g.pods), "pod"), g.pods[0].Ref())})
		p.would = append(p.would, held.remedy(p))
		p.holdPods(g.pods, Reason{held.code, "would fit on a new node, but " + held.Message}, held.remedy(p))
	default:
		p.proposed = true
		limit := p.maxGuard()
		text := fmt.Sprintf("%s like %s can't have a node: %s", count(len(g.pods), "pod"), g.pods[0].Ref(), limit.Message)
		p.guard(limit)
		p.hold(limit.code, text)
		p.overruled = append(p.overruled, Reason{limit.code, text})
		p.would = append(p.would, limit.remedy(p))
		p.holdPods(g.pods, Reason{limit.code, "would fit on a new node, but " + limit.Message}, limit.remedy(p))
	}
}
