package fit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// maxRounds bounds how often the pool may grow for what the scheduler has put
// elsewhere than the simulation did.
const maxRounds = 6

// Outcome is how far the simulation and the scheduler agree on a case.
type Outcome struct {
	Pods     int // that wait
	Placed   int // placements of the simulation, over all rounds
	Promised int // pods that it put somewhere in some round
	Nodes    int // that were added
	First    int // those of them that were added at once
	Packed   int // that first-fit-decreasing would have added
	Fitted   int // pods that it has a place for then
	Rounds   int
	// Refused are placements that the scheduler would not make.
	Refused []string
	// Unasked are pods that the simulation put somewhere though nobody wants a
	// node for them: they are gated, expendable, or left to others.
	Unasked []string
	// Stranded are pods that the simulation put somewhere, and that wait still
	// after all rounds.
	Stranded []string
	Rejected int // pods that the simulation has no place for at the end
	// Wrong are those of them that a node of some pool would take.
	Wrong []string
}

// Settle returns the case as the autoscaler meets it: what the scheduler can
// place without a new node is placed.
func Settle(s *Scheduler, c *Case) (*Case, error) {
	c = c.Clone()
	if err := run(s, c, c.Queue()); err != nil {
		return nil, err
	}
	return c, nil
}

// Compare has the simulation decide with what it knows of the case, gives the
// nodes to the scheduler, and looks again for as long as nodes come. know
// returns the case as the simulation sees it. The case is changed.
func Compare(s *Scheduler, c *Case, know func(*Case) *Case) (Outcome, error) {
	out := Outcome{Pods: len(c.Waiting())}
	packed, fitted, err := Pack(s, c)
	if err != nil {
		return out, fmt.Errorf("first fit: %w", err)
	}
	out.Packed, out.Fitted = packed, fitted
	promised := map[string]bool{}
	for out.Rounds = 0; out.Rounds < maxRounds; out.Rounds++ {
		res, err := Decide(know(c), out.Rounds)
		if err != nil {
			return out, fmt.Errorf("decide: %w", err)
		}
		waiting := c.Waiting()
		out.Nodes += len(res.Claims)
		if out.Rounds == 0 {
			out.First = len(res.Claims)
		}
		if err := c.grow(s, res.Claims); err != nil {
			return out, err
		}
		var pods, nodes []string
		for _, p := range res.Placements {
			promised[p.Pod] = true
			if !slices.Contains(waiting, p.Pod) {
				out.Unasked = append(out.Unasked, fmt.Sprintf("round %d: pod %s waits for no node", out.Rounds, p.Pod))
			}
			pods, nodes = append(pods, p.Pod), append(nodes, p.Node)
		}
		fates, err := s.Place(c, pods, nodes)
		if err != nil {
			return out, fmt.Errorf("place: %w", err)
		}
		out.Placed += len(pods)
		for i, f := range fates {
			if f.Node == "" {
				out.Refused = append(out.Refused, fmt.Sprintf("round %d: pod %s on node %s: %s", out.Rounds, pods[i], nodes[i], f.Reason))
			}
		}
		// The scheduler chooses among the nodes, but where pods keep each other
		// away it is first come, first served.
		queue := slices.DeleteFunc(c.Queue(), func(ref string) bool { return slices.Contains(pods, ref) })
		if err := run(s, c, slices.Concat(pods, queue)); err != nil {
			return out, err
		}
		if len(res.Claims) == 0 {
			break
		}
	}
	err = judge(s, c, promised, &out)
	return out, err
}

// grow adds the claimed nodes, and what comes with them.
func (c *Case) grow(s *Scheduler, claims []scaling.Claim) error {
	for _, claim := range claims {
		i := slices.IndexFunc(c.Pools, func(p scaling.Pool) bool { return p.Name == claim.Pool })
		n := NewNode(c.Pools[i], claim.Node, claim.ID)
		c.Nodes = append(c.Nodes, n)
		c.Pods = append(c.Pods, c.DaemonPods(n)...)
		c.Records = append(c.Records, Record(claim.Pool, claim.Node, claim.ID))
	}
	// Until the nodes are there, the nominated pods have got their room.
	for _, p := range c.Pods {
		if n := p.Status.NominatedNodeName; n != "" && p.Spec.NodeName == "" {
			bind(p, n)
		}
	}
	// The pods of DaemonSets come with the node.
	return run(s, c, c.pending(ofDaemonSet))
}

// Refusals are the placements that the scheduler would not make, by pod, if it came to
// the pods in the order of the decision.
func Refusals(s *Scheduler, c *Case, res scaling.Result) (map[string]string, error) {
	c = c.Clone()
	if err := c.grow(s, res.Claims); err != nil {
		return nil, err
	}
	var pods, nodes []string
	for _, p := range res.Placements {
		pods, nodes = append(pods, p.Pod), append(nodes, p.Node)
	}
	fates, err := s.Place(c, pods, nodes)
	if err != nil {
		return nil, fmt.Errorf("place: %w", err)
	}
	out := map[string]string{}
	for i, f := range fates {
		if f.Node == "" {
			out[pods[i]] = f.Reason
		}
	}
	return out, nil
}

// run has the scheduler try the pods until nothing moves any more.
func run(s *Scheduler, c *Case, pods []string) error {
	for len(pods) > 0 {
		fates, err := s.Schedule(c, pods)
		if err != nil {
			return fmt.Errorf("schedule: %w", err)
		}
		var left []string
		for i, f := range fates {
			c.evict(f.Evicted)
			if f.Node == "" {
				left = append(left, pods[i])
			} else {
				bind(c.pod(pods[i]), f.Node)
			}
		}
		if len(left) == len(pods) {
			return nil
		}
		pods = slices.DeleteFunc(left, func(ref string) bool { return c.pod(ref) == nil })
	}
	return nil
}

func bind(p *corev1.Pod, node string) {
	p.Spec.NodeName, p.Status.Phase, p.Status.Conditions, p.Status.NominatedNodeName = node, corev1.PodRunning, nil, ""
}

func (c *Case) evict(refs []string) {
	c.Pods = slices.DeleteFunc(c.Pods, func(p *corev1.Pod) bool { return slices.Contains(refs, Ref(p)) })
}

func (c *Case) pending(of func(*corev1.Pod) bool) []string {
	var out []string
	for _, p := range c.Pods {
		if p.Spec.NodeName == "" && of(p) {
			out = append(out, Ref(p))
		}
	}
	return out
}

// judge looks at the pods that wait at the end.
func judge(s *Scheduler, c *Case, promised map[string]bool, out *Outcome) error {
	var rejected []string
	for _, ref := range c.Waiting() {
		if promised[ref] {
			out.Stranded = append(out.Stranded, ref)
		} else {
			rejected = append(rejected, ref)
		}
	}
	out.Promised, out.Rejected = len(promised), len(rejected)
	templates := c.templates()
	fates, err := s.Probe(c, rejected, templates)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	for i, ref := range rejected {
		for j, f := range fates[i*len(templates) : (i+1)*len(templates)] {
			if f.Node != "" {
				out.Wrong = append(out.Wrong, fmt.Sprintf("pod %s would fit on a node of %s", ref, templates[j].Name))
				break
			}
		}
	}
	return nil
}

// templates are new nodes of the pools.
func (c *Case) templates() []Template {
	var out []Template
	for _, p := range c.Pools {
		n := NewNode(p, p.Name+"-new", "")
		t := Template{Name: p.Name, Node: n, Pods: c.DaemonPods(n)}
		for _, d := range t.Pods {
			d.Spec.NodeName = n.Name
		}
		out = append(out, t)
	}
	return out
}

// Pack is how many nodes first-fit-decreasing by dominant resource adds, with
// the scheduler's filters for what fits.
func Pack(s *Scheduler, c *Case) (nodes, placedPods int, err error) {
	share := func(ref string) float64 {
		r := resource.PodRequests(c.pod(ref), resource.PodResourcesOptions{})
		return max(float64(r.Cpu().MilliValue())/4000, float64(r.Memory().Value())/(8*gi))
	}
	pods := c.Waiting()
	slices.SortStableFunc(pods, func(a, b string) int { return cmp.Compare(share(b), share(a)) })
	fates, n, err := s.Pack(c, append(c.pending(ofDaemonSet), pods...), c.templates())
	placed := 0
	for _, f := range fates[len(fates)-len(pods):] {
		if f.Node != "" {
			placed++
		}
	}
	return n, placed, err
}

// Answer is what the simulation says of a case, for a look at whether a
// constraint made a difference to it.
func Answer(c *Case) (string, error) {
	res, err := Decide(c, 0)
	if err != nil {
		return "", err
	}
	pools := map[string]string{}
	for _, n := range res.Claims {
		pools[n.Node] = n.Pool
	}
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(pools)) {
		parts = append(parts, pools[n])
	}
	for _, p := range res.Placements {
		where := p.Node
		if in, ok := pools[p.Node]; ok {
			where = "new node of " + in
		}
		parts = append(parts, p.Pod+" on "+where)
	}
	slices.Sort(parts)
	return strings.Join(parts, "\n"), nil
}

// DecidedBy returns the constraints that make a difference to what the simulation
// says of the case.
func DecidedBy(c *Case) ([]string, error) {
	var by []string
	as, err := Answer(c)
	if err != nil {
		return nil, err
	}
	for _, k := range Constraints {
		if !c.Has[k.Name] {
			continue
		}
		without, err := Answer(k.Stripped(c))
		if err != nil {
			return nil, err
		}
		if without != as {
			by = append(by, k.Name)
		}
	}
	return by, nil
}

// Add adds up the outcomes of many cases.
func (o *Outcome) Add(p Outcome) {
	o.Pods += p.Pods
	o.Placed += p.Placed
	o.Promised += p.Promised
	o.Nodes += p.Nodes
	o.Packed += p.Packed
	o.Fitted += p.Fitted
	o.First += p.First
	o.Rounds += p.Rounds
	o.Rejected += p.Rejected
	o.Refused = append(o.Refused, p.Refused...)
	o.Unasked = append(o.Unasked, p.Unasked...)
	o.Stranded = append(o.Stranded, p.Stranded...)
	o.Wrong = append(o.Wrong, p.Wrong...)
}
