package scaling

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// requiredKinds are the kinds of object without which the size of a pool and
// what is on its way are unknown: nothing at all is decided.
var requiredKinds = []string{KindNode, KindRecord}

// removalKinds are those that a removal needs in addition.
var removalKinds = []string{KindNode, KindRecord, KindPod, KindBudget, KindDaemonSet}

// evaluation is one call of Evaluate: the state in the making, the simulated
// cluster, and what is said of each pool.
type evaluation struct {
	now    time.Time
	policy Policy
	obs    Observation
	seed   Seed
	s      State
	pools  []*poolRun // by name
	world  *world

	claims  []Claim
	drains  []Order
	cancels []Order
	placed  []Placement
	pending int
	unready *Guard            // too many nodes are unready
	repairs []time.Time       // when nodes that are not Ready are to be repaired
	renamed map[string]string // former names of pools; see Policy.renamed

	returnable []string          // nodes whose removal was decided, unless it would lead to a new one
	returning  map[string]*Guard // nodes that stay, because they would come back; see comesBack
	listed     *Observation      // obs with its objects in slices; nil: not needed yet
	usage      map[string]Usage  // live, by node; see usageOf

	unsettled *unsettled // while removals are looked at
}

// poolRun is what an evaluation gathers about one pool.
type poolRun struct {
	Pool
	known    bool      // the policy has it
	open     []open    // schedules, by name
	reserves []reserve // of headroom that counts now
	stocks   []*stock  // of the reserves, while removals are looked at
	minBy    *open     // the one that sets Min, nil: the pool
	maxBy    *open     // likewise Max
	minUntil string    // what a sentence about Min ends with: until when, and which schedule
	maxUntil string
	minLifts time.Time // when a window ends after which Min is lower; zero: never
	maxLifts time.Time // likewise Max higher
	st       PoolState
	template *simNode
	judged   verdicts   // see onTemplate
	blank    *simNode   // a new node, to look at only
	trials   []*simNode // see trial
	// Whether it is known that the pool turns down classes that are spread, and does.
	spreadKnown, spreadDown bool

	size     int // nodes that stay, claims in flight included
	physical int // all nodes, leaving ones and those without a record included
	ready    int // Ready ones that stay
	leaving  int // those on their way out
	inFlight int // claims that are not Ready yet
	before   int // size when the evaluation began

	metrics    []judged // what its metric rules say, by name
	floor      floor    // what they keep
	knownFloor floor    // those of them that are known

	mayLeave   int            // nodes at a time
	tightest   *RemovalBudget // of them, nil: the pool's MaxRemovals
	budgetEnds time.Time      // zero: never

	added     []string
	removed   []string
	restored  []string
	upReason  []Reason // why nodes are added or restored, the weightiest first
	downs     []Reason
	holds     []Reason // what holds the pool, the weightiest first
	rules     []Rule
	guards    []Guard
	rejected  []Alternative
	utilized  int // nodes of which it was said that they are needed
	overruled []Reason
	would     []string
	pods      []string
	inputs    []string
	replies   []Reason // what became of requests
	answered  []string // requests that this evaluation served or refused
	deferred  []string
	actor     string
	since     time.Time // when the need arose
	proposed  bool      // a pod, alert, minimum or request wanted more nodes
	upAlert   bool      // an alert that asks for nodes fires
	upMetric  bool      // a metric rule asks for more nodes
	upOpen    bool      // a request for more nodes waits
}

// Evaluate derives what to do now. It leaves s and o as they are. Each pool of
// the policy gets exactly one decision, and so does every other pool, or no
// pool (""), that a request names.
func Evaluate(now time.Time, p Policy, s State, o Observation, seed Seed) Result {
	returning := map[string]*Guard{}
	for round := 1; ; round++ {
		e := newEvaluation(now, p, s, o, seed)
		e.returning = returning
		if !e.run() {
			return Result{State: e.s}
		}
		back := e.comesBack()
		if len(back) == 0 {
			return e.conclude()
		}
		if round >= vetoRounds {
			back = e.keepAll(back)
		}
		maps.Copy(returning, back)
	}
}

// newEvaluation is an evaluation that knows what counts now, and has not looked at
// the cluster yet.
func newEvaluation(now time.Time, p Policy, s State, o Observation, seed Seed) *evaluation {
	e := &evaluation{policy: p, obs: o, seed: seed, s: s.clone()}
	e.now = s.advance(now)
	e.s.Now = e.now
	e.renamed = p.renamed()
	e.s.rename(e.renamed)
	for _, pool := range p.pools() {
		p := &poolRun{Pool: pool, known: true, st: e.s.Pools[pool.Name]}
		p.schedule(e.now)
		p.scheduled(e.now, pool)
		e.pools = append(e.pools, p)
	}
	e.expire()
	for _, p := range e.pools {
		e.keepHeld(p)
		e.heldRules(p)
	}
	return e
}

// run gathers what is asked for, what may be done about it, and why; false before
// the first policy: inputs are folded, nothing is judged.
func (e *evaluation) run() bool {
	switch problem := e.unobservable(); {
	case len(e.policy.Pools) == 0:
		return false
	case problem != "":
		e.holdAll(problem)
	default:
		e.world = newWorld(e.obs, e.s, e.policy)
		e.reconcile()
		e.measure()
		e.nodeRequests()
		e.repair()
		e.scaleUp()
		e.scaleDown()
	}
	return true
}

// unobservable says why the observation can't be judged at all, or "".
func (e *evaluation) unobservable() string {
	if !e.obs.Known {
		if e.obs.Problem != "" {
			return e.obs.Problem
		}
		return "no full snapshot of the cluster has arrived yet"
	}
	for _, kind := range requiredKinds {
		if _, ok := e.obs.Freshness[kind]; !ok {
			return fmt.Sprintf("the snapshot holds no objects of kind %s: they are unknown", kind)
		}
	}
	return ""
}

// holdAll holds every pool on account of missing data.
func (e *evaluation) holdAll(problem string) {
	for _, r := range e.s.Requests {
		e.defer_(r, Reason{CodeStaleSnapshot, problem})
	}
	for _, p := range e.pools {
		p.size = len(e.claimsOf(p.Name))
		p.before, p.inFlight = p.size, p.size
		p.hold(CodeStaleSnapshot, problem)
		p.guard(Guard{Guard: "stale_data", Message: problem, Lifts: "with the next full snapshot"})
		for _, kind := range []string{RuleUnschedulable, RuleUtilization} {
			p.rules = append(p.rules, Rule{Rule: kind, Kind: kind, Verdict: Unknown, Message: problem})
		}
		for _, r := range e.policy.metricRules() {
			if r.Pool == p.Name {
				p.rules = append(p.rules, Rule{Rule: "metric " + r.Name, Kind: RuleMetric, Threshold: r.threshold(), Verdict: Unknown, Message: problem})
			}
		}
	}
}

func (e *evaluation) claimsOf(pool string) []Claim {
	var out []Claim
	for _, c := range e.s.Claims {
		if c.Pool == pool {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b Claim) int { return cmpString(a.Node, b.Node) })
	return out
}

// expire drops what is over by itself: alerts, pauses, requests.
func (e *evaluation) expire() {
	rules := e.policy.rules()
	for fp, a := range e.s.Alerts {
		if !a.ExpiresAt.After(e.now) || len(e.policy.Pools) > 0 && !anyMatches(rules, a.Labels) {
			// An alert that no rule knows is not kept: should a rule come to
			// know it, the next repeat brings it back.
			delete(e.s.Alerts, fp)
		}
	}
	e.forgetMetrics()
	for pool, p := range e.s.Pauses {
		if !p.Until.IsZero() && !p.Until.After(e.now) {
			delete(e.s.Pauses, pool)
		}
	}
	e.s.Holds = slices.DeleteFunc(e.s.Holds, func(h Hold) bool { return !h.Until.After(e.now) })
	keep := e.s.Requests[:0]
	for _, r := range e.s.Requests {
		if r.ExpiresAt.After(e.now) {
			keep = append(keep, r)
			continue
		}
		if len(e.policy.Pools) > 0 {
			e.answer(r, Reason{CodeRequestExpired, fmt.Sprintf("%s by %s expired at %s before it could come to pass",
				r.describe(), r.Actor, r.ExpiresAt.Format(time.RFC3339))})
		}
	}
	e.s.Requests = keep
}

func anyMatches(rules []AlertRule, labels map[string]string) bool {
	for _, r := range rules {
		if ok, _ := r.matches(labels); ok {
			return true
		}
	}
	return false
}

// pool returns the run of a pool; one that the policy does not have gets an
// empty one with the defaults of the configuration's deadlines.
func (e *evaluation) pool(name string) *poolRun {
	name = present(e.renamed, name)
	i, ok := slices.BinarySearchFunc(e.pools, name, func(p *poolRun, n string) int { return cmpString(p.Name, n) })
	if !ok {
		p := &poolRun{Pool: Pool{Name: name, ClaimExpiry: time.Minute, DrainDeadline: 2 * time.Minute}, mayLeave: 1}
		e.pools = slices.Insert(e.pools, i, p)
		return p
	}
	return e.pools[i]
}

func (p *poolRun) hold(code, message string) { p.holds = append(p.holds, Reason{code, message}) }

// guard notes a guard once.
func (p *poolRun) guard(g Guard) {
	if !slices.ContainsFunc(p.guards, func(o Guard) bool { return o.Guard == g.Guard && o.Value == g.Value }) {
		p.guards = append(p.guards, g)
	}
}

func (p *poolRun) input(ids ...string) {
	for _, id := range ids {
		if id != "" && !slices.Contains(p.inputs, id) {
			p.inputs = append(p.inputs, id)
		}
	}
}

func (p *poolRun) trigger(at time.Time) {
	if !at.IsZero() && (p.since.IsZero() || at.Before(p.since)) {
		p.since = at
	}
}
