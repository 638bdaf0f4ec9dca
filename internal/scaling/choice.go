package scaling

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
)

// Ways to choose between pools that could serve the same pods. All but balance
// are expanders of the cluster autoscaler by the same names; where it compares
// totals, we compare shares of a pod, because two pools need not serve the same
// number of pods.
const (
	ChooseLeastWaste = "least-waste" // the smallest share of the new nodes stays empty, CPU and memory averaged
	ChoosePriority   = "priority"    // the highest Pool.Priority
	ChoosePrice      = "price"       // the lowest price of a served pod
	ChooseMostPods   = "most-pods"   // serves the most pods
	ChooseLeastNodes = "least-nodes" // the fewest nodes for a served pod
	ChooseBalance    = "balance"     // the pool with the fewest nodes; new nodes are spread over equals
)

// defaultChoice is the cluster autoscaler's default, with fewer nodes before a
// matter of chance.
var defaultChoice = []string{ChooseLeastWaste, ChooseLeastNodes}

// option is what a pool would do for the pods that are left.
type option struct {
	pool  *poolRun
	nodes int
	pods  int
	waste int64 // thousandths of the new nodes that stay empty, cpu and memory averaged
}

// criterion is one link of the chain.
type criterion struct {
	code    string
	compare func(a, b option) int
	// why says why best was preferred to o.
	why func(best, o option) string
	fix string
}

var criteria = map[string]criterion{
	ChooseLeastWaste: {"MoreWaste", func(a, b option) int { return cmp.Compare(a.waste, b.waste) }, func(best, o option) string {
		return fmt.Sprintf("pool %s serves the pods with %s and %s unused, this one would leave %s unused on %d",
			best.pool.Name, count(best.nodes, "node"), percent(best.waste), percent(o.waste), o.nodes)
	}, "none needed: policy.pool_choice prefers what leaves least unused"},
	ChoosePriority: {"LowerPriority", func(a, b option) int { return cmp.Compare(b.pool.Priority, a.pool.Priority) }, func(best, o option) string {
		return fmt.Sprintf("pool %s has priority %d, this one %d", best.pool.Name, best.pool.Priority, o.pool.Priority)
	}, "raise the pool's priority"},
	ChoosePrice: {"HigherPrice", func(a, b option) int {
		return cmp.Compare(a.price()*int64(b.pods), b.price()*int64(a.pods))
	}, func(best, o option) string {
		return fmt.Sprintf("pool %s serves %s for %s an hour, this one %s for %s",
			best.pool.Name, count(best.pods, "pod"), micros(best.price()), count(o.pods, "pod"), micros(o.price()))
	}, "none needed: policy.pool_choice prefers what costs least"},
	ChooseMostPods: {"FewerPods", func(a, b option) int { return cmp.Compare(b.pods, a.pods) }, func(best, o option) string {
		return fmt.Sprintf("pool %s serves %s, this one %d", best.pool.Name, count(best.pods, "pod"), o.pods)
	}, "none needed: policy.pool_choice prefers what serves most pods"},
	ChooseLeastNodes: {"MoreNodes", func(a, b option) int { return cmp.Compare(a.nodes*b.pods, b.nodes*a.pods) }, func(best, o option) string {
		return fmt.Sprintf("pool %s serves %s with %s, this one %s with %d",
			best.pool.Name, count(best.pods, "pod"), count(best.nodes, "node"), count(o.pods, "pod"), o.nodes)
	}, "none needed: policy.pool_choice prefers fewer nodes"},
	ChooseBalance: {"LargerPool", func(a, b option) int { return cmp.Compare(a.pool.size, b.pool.size) }, func(best, o option) string {
		return fmt.Sprintf("pool %s has %s, this one %d", best.pool.Name, count(best.pool.size, "node"), o.pool.size)
	}, "none needed: policy.pool_choice spreads nodes over the pools"},
}

// price is what the new nodes cost an hour, in millionths.
func (o option) price() int64 { return int64(o.nodes) * o.pool.PriceMicros }

func micros(v int64) string { return fmt.Sprintf("%.4g", float64(v)/1e6) }

// choice is the chain by which a workload gets a pool.
type choice struct {
	chain []string
	// of is the workload: equals are told apart by a hash of it and the pool, so
	// that the same pods go to the same pool, and different ones to different
	// pools, however often the decision is taken.
	of string
}

func (p Policy) choice(of string) choice {
	c := choice{of: of}
	for _, name := range p.PoolChoice {
		if _, known := criteria[name]; known { // a later version may know more
			c.chain = append(c.chain, name)
		}
	}
	if len(c.chain) == 0 {
		c.chain = defaultChoice
	}
	return c
}

func (c choice) compare(a, b option) int {
	for _, name := range c.chain {
		if v := criteria[name].compare(a, b); v != 0 {
			return v
		}
	}
	return cmp.Or(cmp.Compare(c.hash(a), c.hash(b)), cmpString(a.pool.Name, b.pool.Name))
}

func (c choice) hash(o option) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.of + "\x00" + o.pool.Name)) // never fails
	return h.Sum64()
}

// why says by which link of the chain best was preferred to o.
func (c choice) why(best, o option) Alternative {
	out := Alternative{Subject: "pool " + o.pool.Name, quiet: true}
	for _, name := range c.chain {
		if k := criteria[name]; k.compare(best, o) != 0 {
			out.Reason, out.Fix = Reason{k.code, k.why(best, o)}, k.fix
			return out
		}
	}
	out.Reason = Reason{"EqualPool", fmt.Sprintf("pool %s serves the pods as well; between equals a hash of the pods and the pool decides", best.pool.Name)}
	out.Fix = "none needed: name priority in policy.pool_choice to prefer one of them"
	return out
}

// share is how many of its nodes the best pool builds before the choice is made
// again: all of them, unless balance spreads them over the pools that are as
// good in all that comes before it.
func (c choice) share(best option, options []option) int {
	at := slices.Index(c.chain, ChooseBalance)
	if at < 0 {
		return best.nodes
	}
	before := choice{chain: c.chain[:at]}
	sizes := []int{best.pool.size}
	for _, o := range options {
		if o.pool != best.pool && !slices.ContainsFunc(before.chain, func(name string) bool { return criteria[name].compare(best, o) != 0 }) {
			sizes = append(sizes, o.pool.size)
		}
	}
	for range best.nodes { // each to the smallest; the first of equals is the best
		i := slices.Index(sizes, slices.Min(sizes))
		sizes[i]++
	}
	return max(sizes[0]-best.pool.size, 1)
}
