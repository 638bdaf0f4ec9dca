package scaling

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const gi = 1 << 30

// evaluations counts those of all tests.
var evaluations atomic.Int64

// setup is a cluster in the making, and a row of evaluations of it.
type setup struct {
	t      testing.TB
	now    time.Time
	policy Policy
	state  State
	obs    Observation
	step   int
	named  int  // pods that were given a name
	frozen bool // the snapshot is not taken again at each evaluation
}

func newSetup(t testing.TB, pools ...Pool) *setup {
	if len(pools) == 0 {
		pools = []Pool{testPool("a")}
	}
	return &setup{t: t, now: t0, policy: Policy{Pools: pools, StartupGrace: 10 * time.Minute, StaleAfter: 30 * time.Second,
		MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}, obs: Observation{Cluster: "c", Known: true}}
}

// testPool has nodes of one core and 1 GiB.
func testPool(name string) Pool {
	return Pool{Name: name, Provider: "p", Min: 0, Max: 5, Size: Resources{CPUMilli: 1000, MemoryBytes: gi, Pods: 110},
		ScaleUpCooldown: time.Minute, ScaleDownAfterAdd: 10 * time.Minute, ScaleDownAfterFail: 3 * time.Minute,
		ScaleDownCooldown: time.Minute, Stabilization: 5 * time.Minute, UtilizationThreshold: 0.5, Unneeded: 5 * time.Minute,
		MinLifetime: 10 * time.Minute, MaxRemovals: 1, RegisterDeadline: 2 * time.Minute, ClaimExpiry: time.Minute,
		DrainDeadline: 2 * time.Minute, BackoffInitial: 30 * time.Second, BackoffMax: 10 * time.Minute, BackoffReset: time.Hour}
}

func testID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:20]
}

func testSeed(event string) Seed {
	return Seed{Event: event, ID: testID, NodeName: func(pool, claim string) string { return pool + "-" + claim[:10] }}
}

func (s *setup) pool(name string) *Pool {
	for i := range s.policy.Pools {
		if s.policy.Pools[i].Name == name {
			return &s.policy.Pools[i]
		}
	}
	s.t.Fatalf("no pool %s", name)
	return nil
}

// evaluate evaluates at s.now with a snapshot of this instant.
func (s *setup) evaluate() Result {
	s.t.Helper()
	if !s.frozen {
		s.obs.CapturedAt = s.now
		s.obs.Freshness = map[string]time.Time{}
		for _, k := range removalKinds {
			s.obs.Freshness[k] = s.now
		}
	}
	s.step++
	evaluations.Add(1)
	res := Evaluate(s.now, s.policy, s.state, s.obs, testSeed(fmt.Sprint("event-", s.step)))
	s.state = res.State
	return res
}

// pass lets time go by in steps of ten seconds, as snapshots come, and returns
// the results in which something was decided.
func (s *setup) pass(d time.Duration) []Result {
	s.t.Helper()
	var out []Result
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(min(10*time.Second, end.Sub(s.now)))
		if r := s.evaluate(); len(r.Claims)+len(r.Drains)+len(r.Cancels) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// until lets time go by until something is decided, at most d.
func (s *setup) until(d time.Duration) Result {
	s.t.Helper()
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(10 * time.Second)
		if r := s.evaluate(); len(r.Claims)+len(r.Drains)+len(r.Cancels) > 0 {
			return r
		}
	}
	require.Fail(s.t, "nothing was decided", "in %s", d)
	return Result{}
}

func (s *setup) apply(in Input) { s.state = s.state.Apply(s.now, in) }

// foreign adds a node that is not ours.
func (s *setup) foreign(name string, cpu int64) *Node {
	s.obs.Nodes = append(s.obs.Nodes, Node{Name: name, CreatedAt: t0.Add(-24 * time.Hour), ReadySince: t0.Add(-24 * time.Hour), Ready: true,
		Labels:      map[string]string{corev1.LabelHostname: name, corev1.LabelArchStable: "amd64"},
		Allocatable: Resources{CPUMilli: cpu, MemoryBytes: 8 * gi, Pods: 110}})
	return &s.obs.Nodes[len(s.obs.Nodes)-1]
}

// node adds a Ready node of ours that is a day old, later ones a minute younger.
func (s *setup) node(pool, name string) {
	at := t0.Add(-24*time.Hour + time.Duration(len(s.obs.Nodes))*time.Minute)
	claim := "claim-" + name
	s.obs.Records = append(s.obs.Records, Record{Name: name, Pool: pool, ClaimID: claim, Phase: PhaseReady, ClaimedAt: at, ReadyAt: at})
	s.register(pool, name, claim, at, true)
}

func (s *setup) register(pool, name, claim string, at time.Time, ready bool) {
	p := s.pool(pool)
	labels := map[string]string{corev1.LabelHostname: name, corev1.LabelArchStable: "amd64", LabelPool: pool, LabelClaim: claim, LabelCluster: "c"}
	for k, v := range p.Labels {
		labels[k] = v
	}
	n := Node{Name: name, CreatedAt: at, Labels: labels, Taints: slices.Clone(p.Taints), Ready: ready, Allocatable: p.Size.clone()}
	if ready {
		n.ReadySince = at
	}
	s.obs.Nodes = append(s.obs.Nodes, n)
}

func (s *setup) record(name string) *Record {
	for i := range s.obs.Records {
		if s.obs.Records[i].Name == name {
			return &s.obs.Records[i]
		}
	}
	s.t.Fatalf("no record of %s", name)
	return nil
}

func (s *setup) nodeOf(name string) *Node {
	for i := range s.obs.Nodes {
		if s.obs.Nodes[i].Name == name {
			return &s.obs.Nodes[i]
		}
	}
	s.t.Fatalf("no node %s", name)
	return nil
}

// take makes the record of a claim, as provisioning does.
func (s *setup) take(c Claim, phase string) *Record {
	s.obs.Records = append(s.obs.Records, Record{Name: c.Node, Pool: c.Pool, ClaimID: c.ID, Phase: phase, ClaimedAt: s.now})
	return &s.obs.Records[len(s.obs.Records)-1]
}

// ready makes a claim a Ready node.
func (s *setup) ready(c Claim) {
	s.drop(c.Node)
	r := s.take(c, PhaseReady)
	r.ReadyAt = s.now
	s.register(c.Pool, c.Node, c.ID, s.now, true)
}

// drop takes a node, its record and its pods out of the cluster.
func (s *setup) drop(name string) {
	s.obs.Nodes = slices.DeleteFunc(s.obs.Nodes, func(n Node) bool { return n.Name == name })
	s.obs.Records = slices.DeleteFunc(s.obs.Records, func(r Record) bool { return r.Name == name })
	s.obs.Pods = slices.DeleteFunc(s.obs.Pods, func(p Pod) bool { return p.Node == name })
}

// class adds a class of pods.
func (s *setup) class(id string, cpu int64) *PodClass {
	s.obs.Classes = append(s.obs.Classes, PodClass{ID: id, Namespace: "ns", Labels: map[string]string{"app": id},
		Requests: Resources{CPUMilli: cpu, MemoryBytes: 64 << 20}})
	return &s.obs.Classes[len(s.obs.Classes)-1]
}

// pods adds n pods of a class, each of a Deployment: bound to node, or pending
// and unschedulable when node is empty.
func (s *setup) pods(class, node string, n int) *Pod {
	for range n {
		p := Pod{Namespace: "ns", Name: fmt.Sprintf("%s-%03d", class, s.named), Class: class, Node: node, Phase: "Running",
			CreatedAt: s.now, OwnerKind: "ReplicaSet", OwnerName: class}
		s.named++
		if node == "" {
			p.Phase, p.UnschedulableSince = "Pending", s.now
		}
		s.obs.Pods = append(s.obs.Pods, p)
	}
	if n == 0 {
		return nil
	}
	return &s.obs.Pods[len(s.obs.Pods)-1]
}

// bind binds the pending pods of a class to a node.
func (s *setup) bind(class, node string, n int) {
	for i := range s.obs.Pods {
		if p := &s.obs.Pods[i]; n > 0 && p.Class == class && p.Node == "" {
			p.Node, p.Phase, p.UnschedulableSince = node, "Running", time.Time{}
			n--
		}
	}
}

func (s *setup) fire(name string, labels ...string) {
	l := map[string]string{"alertname": name}
	for i := 0; i+1 < len(labels); i += 2 {
		l[labels[i]] = labels[i+1]
	}
	s.apply(AlertFired{EventID: "alert-" + name, Fingerprint: fmt.Sprint(name, labels), Labels: l, StartsAt: s.now, ExpiresAt: s.now.Add(15 * time.Minute)})
}

func (s *setup) resolve(name string, startsAt time.Time) {
	s.apply(AlertResolved{EventID: "resolved-" + name, Fingerprint: fmt.Sprint(name, []string(nil)), StartsAt: startsAt, ExpiresAt: s.now.Add(15 * time.Minute)})
}

func (s *setup) request(r Request) {
	r.ID = cmpOr(r.ID, fmt.Sprint("request-", s.step, "-", len(s.state.Requests)))
	r.Actor, r.Reason = cmpOr(r.Actor, "alice"), cmpOr(r.Reason, "maintenance")
	s.apply(Requested{r})
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (s *setup) rule(name, pool, direction string, amount int) {
	s.policy.AlertRules = append(s.policy.AlertRules, AlertRule{Name: name, Pool: pool, Direction: direction, Amount: amount,
		Matchers: []Matcher{{"alertname", MatchEqual, name}}})
}

func only(t testing.TB, r Result) Decision {
	t.Helper()
	require.Len(t, r.Decisions, 1)
	return r.Decisions[0]
}

func of(t testing.TB, r Result, pool string) Decision {
	t.Helper()
	for _, d := range r.Decisions {
		if d.Pool == pool {
			return d
		}
	}
	require.Fail(t, "no decision", "pool %q in %v", pool, r.Decisions)
	return Decision{}
}

func drained(r Result) []string {
	var out []string
	for _, d := range r.Drains {
		if d.Goal == GoalRemove {
			out = append(out, d.Node)
		}
	}
	return out
}

func cancelled(r Result) []string {
	var out []string
	for _, c := range r.Cancels {
		out = append(out, c.Node)
	}
	return out
}

func guardOf(d Decision, name string) *Guard {
	for i := range d.Guards {
		if d.Guards[i].Guard == name {
			return &d.Guards[i]
		}
	}
	return nil
}

func rejects(d Decision, subject, code string) *Alternative {
	for i := range d.Rejected {
		if d.Rejected[i].Subject == subject && d.Rejected[i].Reason.Code == code {
			return &d.Rejected[i]
		}
	}
	return nil
}
